"""Tokens of a prompt, counted from what a processor of the transformers library writes.

No weights are read. A picture's image tokens are counted in the prompt that the processor makes of a blank
one of that size. What it says of itself (`_get_num_multimodal_tokens`) is missing in some families and wrong
in others, and is not asked.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pyrskip.errors import UserError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

QUESTION = "?"
Size = tuple[int, int]
"""Rows and columns of a picture."""


class ProcessorTokens:
    """Counts of a processor, each picture's size and each text counted once."""

    def __init__(self, processor: "ProcessorMixin") -> None:
        self.processor, self.image_token = processor, image_token_of(processor)
        self._visual: dict[Size, int] = {}
        self._added: dict[Size, int] = {}
        self._texts: dict[str, int] = {}

    @classmethod
    def of(cls, folder: str) -> "ProcessorTokens":
        """The processor in a folder; no code of it is run. Raises UserError where it holds none."""
        try:
            from transformers import AutoProcessor
        except ImportError as error:
            raise UserError("a processor needs the extra: pip install 'pyrskip[hf]'") from error
        try:
            return cls(AutoProcessor.from_pretrained(Path(folder), trust_remote_code=False))
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"{folder!r} holds no processor that can be loaded: {error}") from error

    def visual(self, size: Size) -> int:
        """Image tokens of a picture. Raises ValueError where the processor refuses its size."""
        if size not in self._visual:
            self._visual[size] = self._ids(QUESTION, [size]).count(self.image_token)
        return self._visual[size]

    def pictures(self, sizes: Sequence[Size]) -> list[int]:
        """What a picture of each size adds to a prompt, separators included; 0 where the processor refuses
        the size."""
        for size in set(sizes) - self._added.keys():
            try:
                self._added[size] = len(self._ids(QUESTION, [size])) - self.texts([QUESTION])[0]
            except ValueError:
                self._added[size] = 0
        return [self._added[size] for size in sizes]

    def texts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of a prompt that holds a text alone, the chat template's included."""
        for text in set(texts) - self._texts.keys():
            self._texts[text] = len(self._ids(text, []))
        return [self._texts[text] for text in texts]

    def together(self, sizes: Sequence[Size]) -> int:
        """What several pictures add to a prompt."""
        return len(self._ids(QUESTION, sizes)) - self.texts([QUESTION])[0]

    def _ids(self, text: str, sizes: Sequence[Size]) -> list[int]:
        content: list[dict[str, Any]] = [
            {"type": "image", "image": Image.new("RGB", (columns, rows), (128, 128, 128))}
            for rows, columns in sizes
        ]
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        written = self.processor.apply_chat_template(
            turn, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        ids: list[int] = written[0] if isinstance(written[0], list) else written
        return ids


def image_token_of(processor: "ProcessorMixin") -> int:
    """The id that the processor writes for a visual token. Raises UserError where it names none."""
    token = getattr(processor, "image_token_id", None)
    if token is None and getattr(processor, "image_token", None) is not None:
        token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    if token is None:
        raise UserError(f"{type(processor).__name__} names no image token, so its tokens cannot be counted")
    return int(token)
