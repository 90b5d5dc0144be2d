"""Samples that lmms-eval wrote of the same task, without a gate and behind one at several prices, as a
frontier: accuracy against the prompt's tokens that were left.

lmms-eval (0.7) writes a line a document into {time}_samples_{task}.jsonl: `doc_id`, `input`, `target`, its
metrics by name, and `token_counts`, of each request that the document took what its server counted. Its
`doc_hash` is the same of all documents. It ends well where requests failed, and their text says so.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pyrskip.errors import UserError
from pyrskip.evaluation.bootstrap import Bootstrap, Interval

FAILED = "[LMMS_EVAL_REQUEST_FAILED"
"""Begins the answer of a request that lmms-eval gave up."""


@dataclass(frozen=True)
class Samples:
    """Of one run of a task, by document: score in [0, 1], and tokens of the prompts of all its turns."""

    path: str
    score: dict[str, float]
    tokens: dict[str, int]


@dataclass(frozen=True)
class Point:
    """A run beside the one without a gate, over the same documents. kept: its prompts' tokens over that one's
    (RTR), a gate's own cost as tokens included; retention: its score over that one's; each with a 95 %
    interval by paired bootstrap over documents."""

    path: str
    score: float
    score_ci95: Interval
    kept: float
    kept_ci95: Interval
    retention: float
    documents: int


def read_samples(path: Path, metric: str) -> Samples:
    """Raises UserError for a file that is none, a metric that is not in it, a request that failed, and a
    server that counted nothing."""
    score: dict[str, float] = {}
    tokens: dict[str, int] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            sample = json.loads(line)
            key = json.dumps([sample["doc_id"], sample["input"], sample["target"]])
            counts = sample["token_counts"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{place} is no sample of lmms-eval ({type(error).__name__}: {error}); allowed: a file "
                "<time>_samples_<task>.jsonl, written with --log_samples"
            ) from error
        if FAILED in json.dumps([sample.get("resps"), sample.get("filtered_resps")]):
            raise UserError(f"{place}: the request failed, and was scored as an answer; run the task again")
        value = sample.get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            known = [n for n, v in sample.items() if isinstance(v, float) or (v in (0, 1) and n != "doc_id")]
            raise UserError(f"{place}: metric={metric} is {value!r}; allowed: {', '.join(known) or 'none'}")
        if not counts or not all(isinstance(of, dict) and of.get("input_tokens") for of in counts):
            raise UserError(
                f"{place} says no token_counts.input_tokens of each request; allowed: a server that counts "
                "(usage), such as vLLM, through lmms-eval's model openai"
            )
        if key in score:
            raise UserError(
                f"{place}: document {sample['doc_id']} is there twice; allowed: samples of one run"
            )
        score[key] = float(value)
        tokens[key] = sum(int(of["input_tokens"]) for of in counts)
    if not score:
        raise UserError(f"{path} holds no samples")
    return Samples(str(path), score, tokens)


def points(whole: Samples, gated: Sequence[Samples], own: float = 0.0) -> list[Point]:
    """whole: the run without a gate; own: what a gate costs a document, as tokens. Raises UserError where a
    run is of other documents."""
    for run in gated:
        if run.score.keys() != whole.score.keys():
            raise UserError(
                f"{run.path} is of other documents than {whole.path}: "
                f"{len(run.score.keys() ^ whole.score.keys())} are in one of both; allowed: the same task "
                "and limit"
            )
    keys = list(whole.score)
    bootstrap = Bootstrap(torch.arange(len(keys)))
    before = torch.tensor([float(whole.tokens[key]) for key in keys])
    found = []
    for run in (whole, *gated):
        paid = 0.0 if run is whole else own
        score = torch.tensor([run.score[key] for key in keys], dtype=torch.float64)
        tokens = torch.tensor([run.tokens[key] + paid for key in keys], dtype=torch.float64)
        found.append(
            Point(
                run.path,
                float(score.mean()),
                bootstrap.interval(score),
                float(tokens.sum() / before.sum()),
                bootstrap.interval_of_ratio(tokens, before.double()),
                float(score.sum()) / (sum(whole.score.values()) or float("nan")),
                len(keys),
            )
        )
    return found
