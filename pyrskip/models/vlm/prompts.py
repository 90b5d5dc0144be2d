"""What a model's own processor makes of pictures and questions, and how many tokens it writes for them.

Axes: B questions, N tokens of the longest prompt.

Nothing is assumed of a family's arithmetic: the processor is given a picture and its image tokens are
counted, once for every size of a picture.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.models.vlm.families import FAMILIES
from pyrskip.registry import load_plugins

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin

Size = tuple[int, int]
"""Rows and columns of a picture, pixels."""
Asked = tuple[Sequence[Image.Image], str]
"""The pictures of a question, in the order in which the model reads them, and its words."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LONGEST = 50
"""A side may be so many times the other; processors refuse lines, so what is longer is padded to it."""
QUESTION = "What is it?"


class Look(NamedTuple):
    """A picture as the processor takes it. tokens: visual ones; beside: further tokens of the prompt, such as
    what stands around a picture; shapes: what the tower is given, alike where its work is alike."""

    tokens: int
    beside: int
    shapes: tuple[Any, ...]


class Prompts:
    """Prompts of a model, by its own chat template and processor.

    as_run: pictures go through the processor with its own settings, as users of the model run it, and not
    with those under which a tile is one look. Raises UserError for an unknown family, and for a processor
    that does not fit the model.
    """

    def __init__(
        self,
        config: "PreTrainedConfig",
        processor: "ProcessorMixin",
        instruction: str = "",
        as_run: bool = False,
    ) -> None:
        self.config, self.processor, self.instruction = config, processor, instruction
        self.family, self.as_run = FAMILIES[config.model_type], as_run
        self.tokenizer: Any = processor.tokenizer
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.images_kwargs = {} if as_run else self.family.one(processor.image_processor)
        if not processor.chat_template and not self.family.wordless:
            raise UserError(
                "the processor has no chat template, so nothing says how a question is put to this model"
            )
        self._looks: dict[tuple[Size, bool], Look] = {}
        self._check()

    @classmethod
    def from_pretrained(cls, path: str, instruction: str = "", as_run: bool = False) -> "Prompts":
        """Of a folder or a hub id. Reads no weights and runs no code of a repository."""
        return cls(*parts(path), instruction, as_run)

    def own(self) -> "Prompts":
        """The prompts of the same model as its users run it."""
        return Prompts(self.config, self.processor, self.instruction, as_run=True)

    def prompt(self, pictures: int, text: str) -> str:
        """The chat template around so many pictures and then the question.

        A special token of the tokenizer in a question is only a space.
        """
        for token in self._special:
            text = text.replace(token, " ")
        words = "\n".join(filter(None, (text, self.instruction)))
        if not self.processor.chat_template:
            image: str = self.processor.image_token
            return image * pictures + words
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": words}]
        turn = [{"role": "user", "content": content}]
        prompt: str = self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return prompt

    def inputs(self, rows: Sequence[Asked]) -> dict[str, Any]:
        """What the processor gives the model for these rows, padded on the left: input_ids [B, N] and what
        belongs to it. Rows with and without pictures go together unless the family is wordless."""
        texts = [self.prompt(len(pictures), text) for pictures, text in rows]
        images = [list(pictures) for pictures, _ in rows]
        if self.family.wordless and not any(images):
            bos = self.tokenizer.bos_token or ""
            lines = [f"{bos}{text}\n" for text in texts]
            given = self.tokenizer(
                lines, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
            )
            return dict(given)
        text_kwargs: dict[str, Any] = {"padding": True, "padding_side": "left"}
        # a template that writes the first token itself must not get a second one
        if self.tokenizer.bos_token and texts[0].startswith(self.tokenizer.bos_token):
            text_kwargs["add_special_tokens"] = False
        seen: dict[str, Any] = {}
        if any(images):
            seen = {"images": images, "images_kwargs": dict(self.images_kwargs)}
        try:
            out = self.processor(text=texts, **seen, text_kwargs=text_kwargs, return_tensors="pt")
        except ValueError as error:
            sizes = ", ".join(f"{p.height} x {p.width}" for row in images for p in row)
            raise UserError(f"the model's processor refuses pictures of {sizes}: {error}") from error
        return {name: value for name, value in out.items() if name != "labels"}

    def look(self, size: Size, lone: bool = True) -> Look:
        """What a picture of this size is to the model, exactly: counted in what the processor writes.

        lone: it is the only one of its prompt; the same otherwise, unless the family is not additive.
        """
        size = self.shown(size)
        key = size, lone or self.family.additive
        if key not in self._looks:
            copies = 1 if key[1] else 2
            inputs = self.inputs([([_blank(size)] * copies, QUESTION)])
            tokens = self.visual(inputs)[0] // copies
            beside = (length(inputs) - self._wordy) // copies
            if not self.family.cross:
                beside -= tokens
            self._looks[key] = Look(tokens, beside, _shapes(inputs))
        return self._looks[key]

    def place(self, look: Look) -> int:
        """Tokens that a picture takes in the prompt."""
        return look.beside + (0 if self.family.cross else look.tokens)

    def blank(self, size: Size, lone: bool = True) -> tuple[dict[str, Any], int]:
        """Inputs with pictures of this size, and how many they are: one, or two where a lone one differs."""
        copies = 1 if lone or self.family.additive else 2
        return self.inputs([([_blank(self.shown(size))] * copies, QUESTION)]), copies

    def words(self, text: str) -> int:
        """Tokens of the template and a question, without a picture."""
        return length(self.inputs([((), text)]))

    def asked(self, words: Tensor) -> Tensor:
        """Tokens of questions alone, in so many of template and question; 1, of the template, where one has
        none. int64 of any shape."""
        return (words - sum(self.around)).clamp(min=1)

    @cached_property
    def around(self) -> tuple[int, int]:
        """Tokens of the template in front of a question, and behind it, with the instruction: those that two
        questions share."""
        one, other = (self.inputs([((), text)])["input_ids"][0].tolist() for text in (QUESTION, "a"))

        def alike(one: list[int], other: list[int]) -> int:
            pairs = enumerate(zip(one, other, strict=False))
            return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))

        before = alike(one, other)
        return before, alike(one[before:][::-1], other[before:][::-1])

    def visual(self, inputs: dict[str, Any]) -> list[int]:
        """Visual tokens of each row of the processor's output."""
        if self.family.cross:  # of each piece of a picture, the patches and one more
            v = self.config.vision_config
            pieces = inputs["aspect_ratio_mask"].sum((-1, -2)) if "aspect_ratio_mask" in inputs else None
            if pieces is None:
                return [0] * len(inputs["input_ids"])
            return [int(n) for n in pieces * ((v.image_size // v.patch_size) ** 2 + 1)]
        return [int(n) for n in (inputs["input_ids"] == self.image_id).sum(-1)]

    def shown(self, size: Size) -> Size:
        """The size of the picture that is made of a tile of this size."""
        rows, columns = size
        if self.family.square and not self.as_run:
            return (max(size),) * 2
        if max(size) < self.family.least:
            columns = self.family.least
        return max(rows, -(-columns // LONGEST)), max(columns, -(-rows // LONGEST))

    def picture(self, crop: Tensor) -> Image.Image:
        """A tile's pixels [3, h, w] 0..255 as a picture, padded below and to the right with the processor's
        mean colour where `shown` says so."""
        rows, columns = self.shown((crop.shape[1], crop.shape[2]))
        mean = getattr(self.processor.image_processor, "image_mean", None) or [0.5] * 3
        padded = (crop.new_tensor(mean) * 255)[:, None, None].repeat(1, rows, columns)
        padded[:, : crop.shape[1], : crop.shape[2]] = crop
        return Image.fromarray(padded.round().byte().permute(1, 2, 0).numpy())

    @cached_property
    def image_id(self) -> int:
        """The token at whose places the model puts visual features, whatever the template's placeholder."""
        for name in ("image_token_id", "image_token_index"):
            found = getattr(self.config, name, None)
            if found is not None:
                return int(found)
        raise UserError(f"the config of model family {self.config.model_type!r} names no image token")

    @property
    def room(self) -> int | None:
        """Tokens that the language model has positions for; None where its config does not say."""
        room: int | None = getattr(self.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return room

    @cached_property
    def _special(self) -> tuple[str, ...]:
        known = self.tokenizer.added_tokens_decoder.values()
        named = (getattr(self.processor, "image_token", None), getattr(self.processor, "boi_token", None))
        return tuple({t.content for t in known if t.special} | {t for t in named if isinstance(t, str)})

    @cached_property
    def _wordy(self) -> int:
        return self.words(QUESTION)

    def _check(self) -> None:
        inputs = self.inputs([([_blank((64, 64))], QUESTION)])
        if self.visual(inputs)[0] < 1:
            raise UserError(
                f"the processor writes no image token that the model knows ({self.image_id}) for a picture: "
                "they belong to different models, or the chat template leaves pictures out"
            )


def parts(path: str) -> tuple["PreTrainedConfig", "ProcessorMixin"]:
    """Config and processor of a folder or a hub id. Raises UserError where there is none, and for an unknown
    family before its processor is read."""
    try:
        from transformers import AutoConfig, AutoProcessor
    except ImportError as error:
        raise UserError(
            "models of the transformers library need the extra: pip install 'pyrskip[hf]'"
        ) from error
    load_plugins()  # a model type of theirs is then known to the library
    there = Path(path).is_dir()
    if not there and not HUB_ID.fullmatch(path):
        raise UserError(
            f"model.hf.path={path!r} is no folder; allowed: one in the Hugging Face format, or a hub id "
            "<owner>/<name>"
        )
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        _ = FAMILIES[config.model_type]
        return config, AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:  # a processor may need a package of its own
        where = "its" if there else "there is no such folder, and the hub's"
        raise UserError(
            f"model.hf.path={path!r}: {where} model and processor cannot be loaded: {error}"
        ) from error


def length(inputs: dict[str, Any]) -> int:
    """Tokens of a single prompt."""
    return int(inputs["attention_mask"].sum())


def _blank(size: Size) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]), (124, 116, 104))


def _shapes(inputs: dict[str, Any]) -> tuple[Any, ...]:
    """Shapes of what the tower computes with, and the whole numbers that say how it is laid out."""
    seen: list[Any] = []
    for name, value in sorted(inputs.items()):
        if not isinstance(value, Tensor) or value.shape[:2] == inputs["input_ids"].shape:
            continue  # of the prompt's tokens
        if value.is_floating_point():
            seen.append((name, *value.shape))
        elif value.numel() <= 64 and name != "image_sizes":  # what is cut off behind the tower
            seen.append((name, *value.flatten().tolist()))
    return tuple(seen)
