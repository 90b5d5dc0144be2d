"""What is asked of a model behind a server, and what its costs are computed from."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pyrskip.cost import Transformer
from pyrskip.errors import UserError, unknown_name
from pyrskip.files import folder_digest
from pyrskip.identity import HOW

SIZES = ("layers", "width", "heads", "kv_heads", "mlp", "vocab")
TOKENS_KEYS = ("max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class RemoteConfig:
    """url: up to and with /v1. model: its name there. key: the environment variable that holds the API key,
    '' for none.

    max_answer: tokens of an answer. tokens_key: the field of a request that says so. instruction: a line
    after every question. extra: more fields of every request, such as mm_processor_kwargs; null leaves out
    one of ours. picture: more fields of every picture's image_url, such as detail. parallel: requests at a
    time; timeout: seconds without a byte of one; retries: of one that the server could not take, after ever
    longer waits.

    probability: whether the server is asked for the probability of accepted answers as well, a request each
    (prompt_logprobs, which vLLM has).

    What the cost is computed from: processor, a folder with the model's processor and config.json, '' to ask
    the server how many tokens pictures have; layers, width, heads, kv_heads, mlp, gated (three MLP matrices)
    and vocab, of the language model, where config.json does not say them; encoder_flops, of the image encoder
    for a visual token.
    """

    prunable: ClassVar[frozenset[str] | None] = None  # visual tokens are not shown
    url: str = field(default="", metadata=HOW)
    model: str = ""
    key: str = field(default="", metadata=HOW)
    max_answer: int = 16
    tokens_key: str = field(default="max_tokens", metadata=HOW)
    instruction: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    picture: dict[str, Any] = field(default_factory=dict)
    parallel: int = field(default=8, metadata=HOW)
    timeout: float = field(default=120.0, metadata=HOW)
    retries: int = field(default=5, metadata=HOW)
    probability: bool = False
    processor: str = field(default="", metadata=HOW)
    encoder_flops: float | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    mlp: int | None = None
    gated: bool = True
    vocab: int | None = None

    def __post_init__(self) -> None:
        if min(self.max_answer, self.parallel) < 1 or self.timeout <= 0 or self.retries < 0:
            raise UserError(
                f"model.remote.max_answer={self.max_answer}, parallel={self.parallel}, "
                f"timeout={self.timeout}, retries={self.retries}: allowed: at least 1, 1, above 0 and 0"
            )
        if self.tokens_key not in TOKENS_KEYS:
            raise unknown_name("model.remote.tokens_key", self.tokens_key, TOKENS_KEYS)
        for name in ("model", "messages", *TOKENS_KEYS, "stream", "stream_options"):
            if name in self.extra:
                raise UserError(
                    f"model.remote.extra.{name} is set by pyrskip; allowed: other fields of a request"
                )
        if "url" in self.picture:
            raise UserError("model.remote.picture.url is the picture itself; allowed: other fields")

    def check(self) -> None:
        """Raises UserError unless everything is there that a request and its cost need."""
        if not self.url.startswith(("http://", "https://")):
            raise UserError(
                f"model.remote.url={self.url!r} is no address; allowed: http://<host>:<port>/v1, or https://"
            )
        if self.processor and not Path(self.processor).is_dir():
            raise UserError(
                f"model.remote.processor={self.processor} is no folder; allowed: one with the served model's "
                "processor and config.json, or '' to have the server count"
            )
        for name in ("model", "encoder_flops", *(() if self.processor else SIZES)):
            if getattr(self, name) in (None, ""):
                raise UserError(
                    f"model.remote.{name} is missing; allowed: what the served model's card or config.json "
                    "says"
                    + (
                        ", or model.remote.processor=<a folder that holds config.json>"
                        if name in SIZES
                        else ""
                    )
                )
        if self.key and not os.environ.get(self.key):
            raise UserError(
                f"model.remote.key={self.key} is no environment variable that is set; allowed: one with the "
                "API key"
            )
        if not self.processor:
            _ = self.transformer

    def identity(self) -> str:
        """What tells its model from another, without the address, since the same model may be served
        elsewhere; with the fields of its requests, and what its tokens are counted by."""
        words = [f"remote {self.model}, {self.instruction!r}"]
        words += [
            f"{name} {json.dumps(fields, sort_keys=True)}"
            for name, fields in (("extra", self.extra), ("picture", self.picture))
            if fields
        ]
        if self.processor:
            words.append(f"counted by {folder_digest(Path(self.processor), ('.json', '.jinja'))}")
        return ", ".join(words)

    def body(self, pictures: Sequence[str], words: str, most: int | None = None) -> dict[str, Any]:
        """A request for an answer to words about pictures, data URLs; most: its tokens, or max_answer."""
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": url} | self.picture} for url in pictures
        ]
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": words}]}],
            self.tokens_key: most or self.max_answer,
            "temperature": 0,
            "seed": 0,
        } | self.extra
        return {name: value for name, value in asked.items() if value is not None}

    def words(self, text: str) -> str:
        """A question, and the instruction behind it."""
        return "\n".join(filter(None, (text, self.instruction)))

    @property
    def transformer(self) -> Transformer:
        """The language model's sizes: those given, and of the rest what the processor's folder says. Raises
        UserError where neither does."""
        sizes = {name: getattr(self, name) for name in SIZES}
        if None in sizes.values():
            read = _sizes_in(self.processor)
            sizes = {name: read[name] if size is None else size for name, size in sizes.items()}
        return Transformer(**sizes, gated=self.gated, cross=False, lean=False)


def _sizes_in(folder: str) -> dict[str, int]:
    """What a folder's config.json says of the language model, by the names of SIZES."""
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise UserError("model.remote.processor needs the extra: pip install 'pyrskip[hf]'") from error
    try:
        text = AutoConfig.from_pretrained(Path(folder), trust_remote_code=False).get_text_config()
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.remote.processor={folder} has no config.json that can be read ({error}); allowed: the "
            f"served model's folder, or model.remote.{', '.join(SIZES)}"
        ) from error
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise UserError(
            f"model.remote.processor={folder} is of a mixture of experts, whose config.json does not say how "
            "many run; allowed: model.remote.mlp and the other sizes, of what runs for a token"
        )
    return {
        "layers": text.num_hidden_layers,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        "mlp": text.intermediate_size,
        "vocab": text.vocab_size,
    }
