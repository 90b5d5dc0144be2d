"""A model that somebody else trained and serves, as a gate sees it: a black box, and encoders of the gate's
own.

Axes: B questions, T tiles. The black box answers and says what that costs. It shows nothing of its inside, so
the gate looks at the glance through an image encoder and at the question through a sentence encoder, and pays
for both.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from pyrskip.cost import Cost
from pyrskip.errors import UserError, unknown_name
from pyrskip.identity import read_where
from pyrskip.models.native import CostConfig, NativeModel, PyramidConfig
from pyrskip.models.text import MiniLmText, TextConfig, TextEncoder
from pyrskip.models.tiers import Features
from pyrskip.models.tiles import encode_flops, encode_tiles
from pyrskip.models.vision import VisionConfig, VisionEncoder
from pyrskip.models.vlm.hf import HfConfig, HfVlm
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.pruners import Pruner
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch

MODELS = ("native", "hf", "remote")
DIGITS = 12


@dataclass(frozen=True)
class AnswererConfig:
    """Which model answers. name: 'native' (trained here), 'hf' (of the transformers library) or 'remote'
    (behind a server).

    hf, remote: read where the name says so.
    """

    name: str = "native"
    hf: HfConfig = field(default_factory=HfConfig, metadata=read_where("name", ("hf",)))
    remote: RemoteConfig = field(default_factory=RemoteConfig, metadata=read_where("name", ("remote",)))

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise unknown_name("model.name", self.name, MODELS)

    @property
    def served(self) -> bool:
        return self.name != "native"

    @property
    def sources(self) -> frozenset[str]:
        """What the model shows that signals are computed from."""
        return ServedModel.sources if self.served else NativeModel.sources

    @property
    def prunable(self) -> frozenset[str] | None:
        """What pruners may read beside visual tokens; None where the model does not show those. A family of
        model=hf may have less: `HfVlm` says so."""
        return None if self.name == "remote" else NativeModel.prunable

    @property
    def probable(self) -> bool:
        """Whether it tells the probability of a given answer."""
        return self.name != "remote" or self.remote.probability

    @property
    def max_answer(self) -> int:
        """Tokens of a served model's answer."""
        return self.hf.max_answer if self.name == "hf" else self.remote.max_answer


class ServedModel(nn.Module):
    """A `GatedModel` (pyrskip.models.tiers) around a black box. Only tiles that are asked for reach the black
    box, the glance alone reaches `vision`."""

    sources = frozenset({"question", "glance", "pixels"})

    def __init__(self, box: HfVlm | RemoteModel, vision: VisionEncoder, text: MiniLmText) -> None:
        super().__init__()
        self.box, self.vision = box, vision
        self.text: TextEncoder = text
        self.pyramid, self.reference, self.convention, self.at_once = (
            box.pyramid,
            box.reference,
            box.convention,
            box.at_once,
        )
        self.requires_grad_(False)
        self.eval()

    @property
    def device(self) -> torch.device:
        return self.vision.mean.device

    @property
    def encoded(self) -> int:
        return self.vision.encoded + self.box.encoded

    @property
    def pruner(self) -> Pruner | None:
        """Of the black box; none prunes behind a server."""
        return self.box.pruner if isinstance(self.box, HfVlm) else None

    @pruner.setter
    def pruner(self, pruner: Pruner | None) -> None:
        if isinstance(self.box, HfVlm):
            self.box.pruner = pruner

    @property
    def as_run(self) -> HfVlm | None:
        """The model as its users run it, a box of one tile; None where that is `reference`, a selection."""
        return self.box.as_run if isinstance(self.box, HfVlm) else None

    def encode(self, batch: Batch, keep: Tensor) -> Features:
        return encode_tiles(self.vision, self.pyramid, batch, keep)

    def look(self, batch: Batch, features: Features, tokens: Tensor) -> Features:
        return features  # the box looks for itself

    def write(self, batch: Batch, features: Features, tokens: Tensor) -> list[str]:
        return self.box.answer(batch, tokens)

    def glance_flops(self, size: Tensor) -> Tensor:
        return encode_flops(self.vision, self.pyramid, size)[:, self.pyramid.glance]

    def first_token(self, batch: Batch, features: Features) -> None:
        return None

    def first_token_flops(self, texts: Sequence[str], size: Tensor) -> Tensor:
        return torch.zeros(len(texts), dtype=torch.float64)

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        return self.box.realise(asked, size)

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        return self.box.cost(realised, size, prompt_tokens)

    def prompt_tokens(self, batch: Batch) -> Tensor:
        return self.box.prompt_tokens(batch)

    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        return self.box.answer(batch, asked)

    def loglik(self, batch: Batch, asked: Tensor) -> Tensor | None:
        return self.box.loglik(batch, asked)


def check_served(config: AnswererConfig, vision: VisionConfig, text: TextConfig) -> None:
    """Refuse what a gate for a served model cannot be trained with, without loading anything."""
    if config.name == "hf" and not config.hf.path:
        raise UserError("model.hf.path is missing; allowed: a folder in the Hugging Face format, or a hub id")
    if config.name == "remote":
        config.remote.check()
    if text.name == "embedding":
        raise UserError(
            f"text.name=embedding reads the native model's words, and model.name={config.name} has none to "
            "show; allowed: text=minilm"
        )
    if vision.weights == "none" or not vision.frozen:
        raise UserError(
            f"vision.weights={vision.weights}, frozen={vision.frozen}: the gate of a served model looks "
            "through an encoder that nothing trains; allowed: pretrained weights, frozen=true"
        )


def identity(config: AnswererConfig) -> str:
    """What tells one served model from another: its weights' digest where they are files, else its name.

    The words that it is asked in belong to it. Raises UserError where a folder's files cannot be read.
    """
    if config.name == "remote":
        return _remote_identity(config.remote)
    folder = Path(config.hf.path)
    if not folder.is_dir():
        return f"hf {config.hf.path} {config.hf.dtype}, {config.hf.instruction!r}"
    digest = _folder_digest(folder, (".safetensors", ".json", ".jinja"))
    return f"hf {digest} {config.hf.dtype}, {config.hf.instruction!r}"


def _remote_identity(config: RemoteConfig) -> str:
    """Without the address, since the same model may be served elsewhere; with the fields of its requests, and
    what its tokens are counted by."""
    words = [f"remote {config.model}, {config.instruction!r}"]
    words += [
        f"{name} {json.dumps(fields, sort_keys=True)}"
        for name, fields in (("extra", config.extra), ("picture", config.picture))
        if fields
    ]
    if config.processor:
        words.append(f"counted by {_folder_digest(Path(config.processor), ('.json', '.jinja'))}")
    return ", ".join(words)


def _folder_digest(folder: Path, kinds: Collection[str]) -> str:
    files = sorted(p for p in folder.iterdir() if p.suffix in kinds)
    return hashlib.sha256("".join(f"{p.name} {file_digest(p)}" for p in files).encode()).hexdigest()[:DIGITS]


def file_digest(path: Path) -> str:
    """The first digits of a file's SHA-256. Raises UserError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def build_served(
    config: AnswererConfig, pyramid: PyramidConfig, vision: VisionConfig, text: TextConfig, cost: CostConfig
) -> ServedModel:
    """The configured black box and the gate's encoders. Raises UserError where one cannot be loaded."""
    check_served(config, vision, text)
    sight = VisionEncoder(vision)
    geometry = Pyramid(pyramid.size, pyramid.levels, sight.stride, tuple(pyramid.grid))
    box = (
        HfVlm.from_pretrained(config.hf, geometry, cost)
        if config.name == "hf"
        else RemoteModel(config.remote, geometry, cost)
    )
    return ServedModel(box, sight, MiniLmText(text.path))
