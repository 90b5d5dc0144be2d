"""`pyrskip predict`: questions on images in, answers with their decisions and cost out, a JSON object a line.

An input line is {"image": path, "question": text} and, where wanted, "id", and "price" and "max_tokens" or
"safe", or "retention"; paths are relative to the file. An output line is the input's with "answer",
"levels", "tokens", "cost", "confidence" and "cut", or with "error". Lines are written as they are answered.
Another run answers those that are not, or failed, and leaves all in their order.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import compress, islice
from pathlib import Path
from typing import IO, Any

from pyrskip.errors import UserError
from pyrskip.files import write_whole, writing
from pyrskip.inference import load_engine
from pyrskip.inference.decider import Picture, Prepared
from pyrskip.inference.engine import Engine
from pyrskip.inference.keys import Keys
from pyrskip.inference.lines import DIAL, Key, Line, key_of, read_lines, value_of

USAGE = """usage: pyrskip predict model=<export> input=<what> [key=value ...]

  model=<directory or hub id>
  input=<file>              a line each: {"image": "a.png", "question": "what is it?"}; "id", "price",
                            "max_tokens", "retention", "safe" as wanted; or one JSON array of them
  input=<image or folder>   with question=<text>; a folder's images in the order of their names
  input=-                   lines as above from stdin
  out=<file.jsonl>          default: stdout. A file that is there is continued, and failed lines tried again
  price=<number>  max_tokens=<tokens>  of lines that say nothing else
  retention=<share>         of full's score, one that the export guarantees; in place of the two
  safe=true                 a fixed selection at prices where the gate is not above those; default: false
  backend=onnx|torch        default: onnx
  batch=<lines>             answered together, default 16; 1 answers each line of a pipe at once
  threads=<number>          of one operator

example: pyrskip predict model=exports/easy_vqa input=questions.jsonl out=answers.jsonl price=0.05"""


def run(given: dict[str, str]) -> None:
    """The command. Exits with 1 where a line could not be answered."""
    keys = Keys(given, ("model", "input", "question", "out", *DIAL, "backend", "batch", "threads"))
    dial: dict[str, Any] = {
        "price": keys.number("price"),
        "max_tokens": keys.whole("max_tokens"),
        "retention": keys.number("retention"),
    }
    if keys.flag("safe", False):
        dial["safe"] = True
    model, backend, batch = keys.text("model"), keys.text("backend", "onnx"), keys.whole("batch", default=16)
    lines = read_lines(keys.text("input"), given.get("question"), dial)
    engine = load_engine(model, backend, keys.whole("threads"))
    engine.check_dial(**dial)
    out = Path(given["out"]) if given.get("out") else None
    made_by = {"export": engine.digest[:16], "dial": dial}
    done = _continue(out, made_by) if out else set()
    order: dict[Key, int] = {}
    with _appended(out) if out else nullcontext(sys.stdout) as file:
        failed = answer_lines(engine, _not_done(lines, done, order), file, made_by, batch, len(done))
    if out and done:
        _sort(out, order)
    if failed:
        sys.exit(1)


def answer_lines(
    engine: Engine, lines: Iterator[Line], out: IO[str], made_by: dict[str, Any], batch: int, before: int = 0
) -> int:
    """Write an output line for each line, in order. Returns how many failed."""
    start, answered, failed, cut = time.monotonic(), 0, 0, 0
    while some := list(islice(lines, batch)):
        results = _answer(engine, some)
        for line, result in zip(some, results, strict=True):
            answered, failed = answered + ("error" not in result), failed + ("error" in result)
            cut += result.get("cut", 0) > 0
            given = {key: value for key, value in line.record.items() if key not in ("answer", "error")}
            out.write(json.dumps(given | {"id": line.id} | result | made_by) + "\n")
        out.flush()
        _progress(answered, failed, before, time.monotonic() - start, end="\r" if sys.stderr.isatty() else "")
    _progress(answered, failed, before, time.monotonic() - start, end="\n")
    if cut:
        print(f"{cut} questions were too long and cut; cut= says by how many tokens", file=sys.stderr)
    return failed


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
        except Exception as error:  # whatever else one line makes decoders raise
            results[row] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    if prepared:
        answers = engine.answer_rows([p for _, p in prepared])
        for (row, _), answer in zip(prepared, answers, strict=True):
            results[row] = {"answer": answer.text} | vars(answer.selection)
    return results


def _continue(out: Path, made_by: dict[str, Any]) -> set[Key]:
    """The lines that a file has answered, once failed ones and a torn last one are taken out. Raises
    UserError where it was made differently."""
    if not out.exists():
        return set()
    with writing(out):
        content = out.read_bytes()
    *whole, last = content.split(b"\n")
    if last and (not last.startswith(b"{") or value_of(last.decode(errors="replace")) is not None):
        whole.append(last)  # not torn, and may be of another's
    try:
        records = [json.loads(line) for line in whole]
        found = [{key: record[key] for key in made_by} for record in records]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"out={out} is there and is no file of predict's; allowed: another name") from error
    if any(of != made_by for of in found):
        raise UserError(
            f"out={out} was made by another export, price, max_tokens, retention or safe; allowed: another "
            "name"
        )
    answered = ["error" not in record for record in records]
    done = _keys(compress(records, answered))
    kept = b"".join(line + b"\n" for line in compress(whole, answered))
    if kept != content:
        write_whole(out, kept)
    return set(done)


def _keys(records: Iterable[dict[str, Any]]) -> list[Key]:
    """What the lines of a file of answers are known by."""
    times: Counter[tuple[str, str, str]] = Counter()
    keys: list[Key] = []
    for record in records:
        key = key_of(record)
        times[key] += 1
        keys.append((*key, times[key]))
    return keys


def _not_done(lines: Iterable[Line], done: set[Key], order: dict[Key, int]) -> Iterator[Line]:
    """order: takes the place of every line."""
    for line in lines:
        order[line.key] = len(order)
        if line.key not in done:
            yield line


def _sort(out: Path, order: dict[Key, int]) -> None:
    """Put a file's lines in the order of the input, those that are no more in it first."""
    lines = out.read_bytes().splitlines(keepends=True)
    places = [order.get(key, -1) for key in _keys(map(json.loads, lines))]
    if places != sorted(places):
        write_whole(out, b"".join(lines[i] for i in sorted(range(len(lines)), key=places.__getitem__)))


def _appended(out: Path) -> IO[str]:
    with writing(out):
        return out.open("a")


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
