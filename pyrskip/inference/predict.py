"""`pyrskip predict`: questions on images in, answers with their decisions and cost out, a JSON object a line.

An input line is {"image": path, "question": text} and, where wanted, "id", "price" and "max_tokens"; paths
are relative to the file. An output line is the input's with "answer", "levels", "tokens", "cost" and
"confidence", or with "error". Lines are written as they are answered, and an interrupted run goes on behind
the last whole one.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pyrskip.errors import UserError
from pyrskip.inference import load
from pyrskip.inference.engine import Engine, Picture, Prepared, Request
from pyrskip.inference.keys import Keys
from pyrskip.picture import EXTENSIONS

USAGE = """usage: pyrskip predict model=<export> input=<what> [key=value ...]

  model=<directory or hub id>
  input=<file.jsonl>        a line each: {"image": "a.png", "question": "what is it?"}; "id", "price",
                            "max_tokens" as wanted
  input=<image or folder>   with question=<text>; a folder's images in the order of their names
  input=-                   lines as above from stdin
  out=<file.jsonl>          default: stdout. A file that is there is continued
  price=<number>  max_tokens=<tokens>  of lines that say nothing else
  backend=onnx|torch        default: onnx
  batch=<lines>             answered together, default 16; 1 answers each line of a pipe at once
  threads=<number>          of one operator

example: pyrskip predict model=exports/easy_vqa input=questions.jsonl out=answers.jsonl price=0.05"""

IMAGES = tuple(f".{extension}" for extension in EXTENSIONS)
DIAL = ("price", "max_tokens")


@dataclass(frozen=True)
class Line:
    """A line of input. record: as given; error: why there is no request."""

    id: str
    record: dict[str, Any]
    request: Request | None
    error: str = ""


def run(given: dict[str, str]) -> None:
    """The command. Exits with 1 where a line could not be answered."""
    keys = Keys(
        given, ("model", "input", "question", "out", "price", "max_tokens", "backend", "batch", "threads")
    )
    price, max_tokens = keys.number("price"), keys.whole("max_tokens")
    dial = {"price": price, "max_tokens": max_tokens}
    model, backend, batch = keys.text("model"), keys.text("backend", "onnx"), keys.whole("batch", default=16)
    lines = read_lines(keys.text("input"), given.get("question"), dial)
    engine = load(model, backend, threads=keys.whole("threads"))
    engine.check_dial(price, max_tokens)
    out = Path(given["out"]) if given.get("out") else None
    made_by = {"export": engine.digest[:16], "dial": dial}
    done = _continue(out, made_by) if out else set()
    with out.open("a") if out else nullcontext(sys.stdout) as file:
        failed = answer_lines(
            engine, (line for line in lines if line.id not in done), file, made_by, batch, len(done)
        )
    if failed:
        sys.exit(1)


def answer_lines(
    engine: Engine, lines: Iterator[Line], out: IO[str], made_by: dict[str, Any], batch: int, before: int = 0
) -> int:
    """Write an output line for each line, in order. Returns how many failed."""
    start, answered, failed = time.monotonic(), 0, 0
    while some := list(islice(lines, batch)):
        results = _answer(engine, some)
        for line, result in zip(some, results, strict=True):
            answered, failed = answered + ("error" not in result), failed + ("error" in result)
            out.write(json.dumps(line.record | {"id": line.id} | result | made_by) + "\n")
        out.flush()
        _progress(answered, failed, before, time.monotonic() - start, end="\r" if sys.stderr.isatty() else "")
    _progress(answered, failed, before, time.monotonic() - start, end="\n")
    return failed


def read_lines(source: str, question: str | None, dial: dict[str, Any]) -> Iterator[Line]:
    """Lines of a JSONL file or stdin, or one an image. Raises UserError where the source is none of them."""
    path = Path(source)
    if source != "-" and not path.exists():
        raise UserError(
            f"input={source} does not exist; allowed: a .jsonl file, an image, a folder of images, or -"
        )
    if source == "-" or path.suffix == ".jsonl":
        if question is not None:
            raise UserError("question= is for an image or a folder; the lines of a file ask their own")
        return _of_jsonl(path if source != "-" else None, dial)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGES) if path.is_dir() else [path]
    if not question:
        raise UserError(f"question= is missing: what to ask of {source}")
    if not files:
        raise UserError(f"input={source} holds no images; allowed: {', '.join(IMAGES)}")
    return (
        Line(str(file), {"image": str(file), "question": question}, Request(file, question, **dial))
        for file in files
    )


def _of_jsonl(path: Path | None, dial: dict[str, Any]) -> Iterator[Line]:
    folder = path.parent if path else Path()
    seen: set[str] = set()
    with path.open() if path else nullcontext(sys.stdin) as file:
        for number, text in enumerate(file, 1):
            if not text.strip():
                continue
            line = _parse(text, str(number), folder, dial)
            if line.id in seen:
                raise UserError(f"line {number} has the id {line.id!r} of an earlier one; ids must differ")
            seen.add(line.id)
            yield line


def _parse(text: str, number: str, folder: Path, dial: dict[str, Any]) -> Line:
    try:
        record = json.loads(text)
    except ValueError as error:
        return Line(number, {}, None, f"line {number} is no JSON: {error}")
    if not isinstance(record, dict) or not all(
        isinstance(record.get(key), str) for key in ("image", "question")
    ):
        return Line(number, {}, None, f'line {number} is no {{"image": path, "question": text}}')
    own = {key: record.get(key, dial[key]) for key in DIAL}
    return Line(
        str(record.get("id", number)), record, Request(folder / record["image"], record["question"], **own)
    )


def _answer(engine: Engine, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Of each line: what is added to it."""
    opened: dict[object, Picture] = {}
    results: list[dict[str, Any]] = [{"error": line.error} for line in lines]
    prepared: list[tuple[int, Prepared]] = []
    for row, line in enumerate(lines):
        if line.request is None:
            continue
        try:
            prepared.append((row, engine.prepare_one(line.request, opened)))
        except UserError as error:
            results[row] = {"error": str(error)}
    if prepared:
        answers = engine.answer_rows([p for _, p in prepared])
        for (row, _), answer in zip(prepared, answers, strict=True):
            results[row] = {"answer": answer.text} | vars(answer.selection)
    return results


def _continue(out: Path, made_by: dict[str, Any]) -> set[str]:
    """Ids that a file has answered, once a torn last line is cut off. Raises UserError where it was made
    differently."""
    if not out.exists():
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        found = [{key: record[key] for key in made_by} for record in records]
        ids = {str(record["id"]) for record in records}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"out={out} is there and is no file of predict's; allowed: another name") from error
    if any(of != made_by for of in found):
        raise UserError(f"out={out} was made by another export, price or max_tokens; allowed: another name")
    if len(whole) < len(content):
        with out.open("r+b") as file:
            file.truncate(len(whole))
    return ids


def _progress(answered: int, failed: int, before: int, seconds: float, end: str) -> None:
    if end:
        rest = f", {before} were there before" if before else ""
        rate = (answered + failed) / max(seconds, 1e-9)
        print(
            f"{answered} answered, {failed} failed{rest}, {rate:.0f} a second",
            end=end,
            file=sys.stderr,
            flush=True,
        )
