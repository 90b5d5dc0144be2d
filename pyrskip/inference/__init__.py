"""Load an export and run it: one call, no training stack, and with backend='onnx' no torch."""

from pathlib import Path

from tokenizers import Tokenizer

from pyrskip.errors import UserError, unknown_name
from pyrskip.inference.alone import GateAlone, OutsideDecider, Replacement
from pyrskip.inference.backends import OnnxBackend
from pyrskip.inference.bundle import CHECKSUMS, file_digest, read_bundle
from pyrskip.inference.decider import Backend, Request, Selection
from pyrskip.inference.engine import Answer, Engine
from pyrskip.inference.hub import fetch
from pyrskip.inference.outside import Outside

__all__ = [
    "BACKENDS",
    "Answer",
    "Engine",
    "GateAlone",
    "Replacement",
    "Request",
    "Selection",
    "load",
    "load_engine",
]

BACKENDS = ("torch", "onnx")


def load(
    source: str | Path,
    backend: str = "torch",
    *,
    allow_native: bool = False,
    threads: int | None = None,
    revision: str | None = None,
) -> Engine | GateAlone:
    """An export: an Engine, ready to select and to answer; or a GateAlone, ready to decide for a model that
    runs elsewhere.

    source: a directory that `pyrskip export` made, or a hub id such as 'someone/gate' (with its revision).
    backend: 'torch', or 'onnx', which needs onnxruntime and no torch. threads: of one operator, with 'onnx'.
    allow_native: run the export's compiled code in place of torch's own operators; only for exports whose
    maker you trust.

    Raises UserError where the export is broken, changed, newer than this version, or needs what is not
    installed.
    """
    if backend not in BACKENDS:
        raise unknown_name("backend", backend, BACKENDS)
    if allow_native and backend != "torch":
        raise UserError(f"allow_native=True is for backend='torch'; backend={backend!r} has no compiled code")
    directory = fetch(str(source), revision, native=allow_native)
    spec = read_bundle(directory, native=allow_native)
    tokenizer = _tokenizer(directory / "tokenizer.json") if spec.tokenized else None
    query_tokenizer = None
    if spec.own_query:
        query_tokenizer = _tokenizer(directory / "query" / "tokenizer.json")
        query_tokenizer.no_padding()
        query_tokenizer.enable_truncation(spec.query_words, direction="left")
    run: Backend
    if backend == "onnx":
        run = OnnxBackend(directory, spec.graphs, threads)
    else:
        try:
            from pyrskip.inference.torch_backend import TorchBackend
        except ImportError as error:
            raise UserError("backend='torch' needs torch and timm: pip install 'pyrskip[torch]'") from error
        run = TorchBackend(directory, spec, tokenizer, allow_native)
    digest = file_digest(directory / CHECKSUMS)
    if isinstance(spec.answerer, Outside):
        assert query_tokenizer is not None
        return GateAlone(OutsideDecider(spec, tokenizer, query_tokenizer, run, digest))
    assert tokenizer is not None
    return Engine(spec, tokenizer, query_tokenizer, run, digest)


def load_engine(source: str, backend: str, threads: int | None) -> Engine:
    """An export that holds its model. Raises UserError as `load` does, and for a gate alone."""
    loaded = load(source, backend, threads=threads)
    if isinstance(loaded, GateAlone):
        raise UserError(
            f"model={source} is a gate alone, and the model that answers runs elsewhere; allowed: an export "
            "that holds its model, or pyrskip gateway bundle=..."
        )
    return loaded


def _tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizer's own errors are no narrower
        raise UserError(f"{path} cannot be read as a tokenizer: {error}") from error
