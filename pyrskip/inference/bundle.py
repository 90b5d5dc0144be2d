"""An export on disk: what its files are called, what config.json says, and that nothing in it was changed.

There are two kinds: a gate with the native model that it decides for, `whole`; and a `gate` alone, for a
model that runs elsewhere.

config.json            its kind, names from registries, sizes, preprocessing, costs, prices; never an import
                       path
model.safetensors      the model's weights under model., the gate's under gate.
tokenizer.json         of the language model; of a gate alone only where its model's tokens are counted by it
query/                 weights and tokenizer of the question encoder, where that is a model of its own
onnx/<graph>.onnx      gate, vision, and signal-<name> for each signal that the gate reads and that is more
                       than its source; where the model is in it, projector, prefill, decode and fixed: listed
                       actions without a gate
native/<graph>.pt2     compiled code, only where it was asked for; never read unless the caller allows it
README.md              model card;  metrics.json  the frontier and the parity check
checksums.json         SHA-256 of every other file
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyrskip.errors import UserError
from pyrskip.inference.outside import Outside
from pyrskip.inference.safe import Safe
from pyrskip.pyramid import Pyramid

FORMAT = "pyrskip-export"
VERSION = 1
DECIDES = ("gate", "vision")
GRAPHS = (*DECIDES, "projector", "prefill", "decode")
"""Of an export that holds a model, beside those of signals; DECIDES: of a gate alone."""
FIXED = "fixed"
"""The graph of listed actions that are played in place of the gate's decisions."""
KINDS = ("whole", "gate")
SOURCES = ("question", "glance", "pixels", "first_token")
"""What an engine has for signals to be computed from: see pyrskip.signals."""
STATE = ("real", "keys", "values", "memory_keys", "memory_values")
"""What prefill leaves for decode, after its logits: which keys are real [B, K] bool, keys and values [L, B,
H, K, d] and, where layers read visual tokens that are no part of the sequence, theirs [L, B, H, M, d]. The
decode graph returns the first three, one key longer."""
NATIVE = "native"
CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class Costs:
    """gate: FLOPs of a decision, its signals' included; unit: FLOPs of relative cost 1; encode: (rows,
    columns) of a tile's map -> FLOPs of encoding it, 2 a multiply-add; none of a gate alone."""

    gate: float
    unit: float
    encode: Mapping[tuple[int, int], float]


@dataclass(frozen=True)
class Guaranteed:
    """retention: the share of the full pyramid's score that `price` keeps on new images, with this
    confidence, by so many held-out images. kept: what it kept on test, None where full scored nothing."""

    retention: float
    price: float
    confidence: float
    images: int
    kept: float | None


@dataclass(frozen=True)
class Prices:
    """Allowed: low <= price <= high. default: what is used where neither a price, a retention nor max_tokens
    is given. guaranteed: what can be asked for by its retention. safe: what is played where a gate is to be
    never worse than fixed selections, None where that is not known."""

    low: float
    high: float
    default: float
    guaranteed: tuple[Guaranteed, ...] = ()
    safe: Safe | None = None

    def __post_init__(self) -> None:
        for of in self.guaranteed:
            if not self.low <= of.price <= self.high:
                raise ValueError(f"prices: {of.price}, which guarantees {of.retention}, is out of range")


@dataclass(frozen=True)
class SignalSpec:
    """A signal that the gate reads. source: one of SOURCES; tensors: their names; graph: what computes them
    from the source; None: they are the source's."""

    source: str
    tensors: tuple[str, ...]
    graph: str | None

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"signals: source={self.source!r} is none of {', '.join(SOURCES)}")


@dataclass(frozen=True)
class Language:
    """Of the language model of an export that holds it: most tokens of a question and of an answer, and the
    token that ends one."""

    max_words: int
    max_answer: int
    end: int


@dataclass(frozen=True)
class Spec:
    """config.json, checked. signals: by name. query_words: most tokens of a question that the query encoder
    takes. answerer: the language model, or what is known of the model that a gate alone decides for."""

    pyramid: Pyramid
    signals: Mapping[str, SignalSpec]
    costs: Costs
    prices: Prices
    answerer: Language | Outside
    query_words: int
    own_query: bool
    plain: dict[str, Any]

    @property
    def graphs(self) -> tuple[str, ...]:
        own = DECIDES if isinstance(self.answerer, Outside) else GRAPHS
        fixed = () if self.prices.safe is None else (FIXED,)
        return (*(of.graph for of in self.signals.values() if of.graph), *own, *fixed)

    @property
    def tokenized(self) -> bool:
        """Whether tokens of questions are counted by the answering model's tokenizer."""
        return not isinstance(self.answerer, Outside) or self.answerer.prompt.tokenized

    def action(self, name: str) -> int:
        """The number of a listed action. Raises ValueError where none is called so."""
        names: list[str] = self.plain["gate"]["actions"]["names"]
        return names.index(name)

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> "Spec":
        """Raises UserError for another format or a newer version, KeyError, TypeError or ValueError for a
        broken one."""
        if plain.get("format") != FORMAT:
            raise UserError(f"config.json has format={plain.get('format')!r}; allowed: {FORMAT!r}")
        version = plain["format_version"]
        if not isinstance(version, int) or not 1 <= version <= VERSION:
            raise UserError(
                f"config.json has format_version={version!r}, made by pyrskip "
                f"{plain.get('pyrskip_version')}; this pyrskip reads 1 to {VERSION}: upgrade it"
            )
        kind = plain.get("kind", "whole")
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}")
        cost, sizes, prices = (plain[key] for key in ("cost", "pyramid", "prices"))
        answerer: Language | Outside
        if kind == "gate":
            answerer = Outside.parse(plain["outside"])
            if plain["query"]["name"] == "embedding":
                raise ValueError("query.name='embedding' is of a model that is in the export")
        else:
            language = plain["language"]
            answerer = Language(int(language["max_words"]), int(language["max_answer"]), int(language["end"]))
        grid = tuple(int(g) for g in sizes["grid"])
        halo = int(sizes.get("halo", 0))
        pyramid = Pyramid(int(sizes["size"]), len(grid), int(sizes["stride"]), grid, halo)
        high = math.inf if prices["high"] is None else float(prices["high"])
        safe = prices.get("safe")
        spec = cls(
            pyramid=pyramid,
            signals={
                str(name): SignalSpec(of["source"], tuple(of["tensors"]), of["graph"])
                for name, of in plain["signals"].items()
            },
            costs=Costs(
                gate=float(cost["gate"]),
                unit=float(cost["full_pyramid"]),
                encode={(int(r), int(c)): float(flops) for r, c, flops in cost.get("encode", ())},
            ),
            prices=Prices(
                float(prices["low"]),
                high,
                float(prices["default"]),
                tuple(Guaranteed(**of) for of in prices.get("guaranteed", ())),
                None if safe is None else Safe.parse(safe),
            ),
            answerer=answerer,
            query_words=int(plain["query"]["max_words"]),
            own_query=plain["query"]["name"] != "embedding",
            plain=plain,
        )
        for _, action in () if spec.prices.safe is None else spec.prices.safe.fixed:
            spec.action(action)
        return spec


def read_bundle(directory: Path, native: bool = False) -> Spec:
    """Check every file against its checksum, then read config.json. native: whether compiled code counts as
    well.

    Raises UserError where a file is missing, was changed, is not listed, or says what this version cannot
    read.
    """
    listed = _check_files(directory, native)
    try:
        plain = json.loads((directory / "config.json").read_text())
        if not isinstance(plain, dict):
            raise TypeError("it is no object")
        spec = Spec.parse(plain)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise UserError(
            f"{directory}/config.json cannot be read ({type(error).__name__}: {error}); export again"
        ) from error
    tokenizer = ("tokenizer.json",) if spec.tokenized else ()
    for name in (*tokenizer, *(f"onnx/{graph}.onnx" for graph in spec.graphs)):
        _check_listed(name, listed, directory)
    return spec


def signal_graph(name: str) -> str:
    """The graph that computes a signal."""
    return f"signal-{name}"


def _check_files(directory: Path, native: bool) -> dict[str, str]:
    """The digests of the files. Raises UserError unless they are those that were written, byte for byte."""
    try:
        listed = json.loads((directory / CHECKSUMS).read_text())
        sums = {str(name): str(digest) for name, digest in listed.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{directory} is no export: {CHECKSUMS} cannot be read ({error}); run pyrskip export"
        ) from error
    for name, digest in sums.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise UserError(f"{directory}/{CHECKSUMS} lists {name}, which is outside of it")
        if _is_native(name) and not native:
            continue
        if not path.is_file():
            raise UserError(f"{directory} is incomplete: {name} is missing; export or download it again")
        if file_digest(path) != digest:
            raise UserError(
                f"{path} is not the file that was exported (its SHA-256 differs); export or download it again"
            )
    for name in ("config.json", "model.safetensors"):
        _check_listed(name, sums, directory)
    return sums


def _check_listed(name: str, listed: Mapping[str, str], directory: Path) -> None:
    if name not in listed:
        raise UserError(f"{directory}/{CHECKSUMS} does not list {name}; export again")


def write_checksums(directory: Path) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    sums = {path.relative_to(directory).as_posix(): file_digest(path) for path in files}
    (directory / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_native(name: str) -> bool:
    return Path(name).parts[0] == NATIVE
