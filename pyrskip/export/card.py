"""The model card of an export: what it decides, what that costs, how it was trained, how it is loaded."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyrskip.config import Config, to_plain
from pyrskip.evaluation.guarantee import said
from pyrskip.evaluation.verdict import said as verdict_said

# sections of the run's config that made the weights
TRAINED_BY = ("data", "pyramid", "vision", "text", "language", "flex", "budget", "gate", "rule", "reward")

HEAD = """---
library_name: pyrskip
pipeline_tag: visual-question-answering
tags: [pyrskip, skip-gate, image-pyramid]
---

"""
WHOLE = """# {name}: a skip gate and the model that it decides for

From the question and a glance of {glance} px, the gate (`{gate}`, policy `{policy}`) decides which levels of
an image pyramid of {size} px and {levels} levels are encoded, before any of their pixels are. The price is
the dial: what relative cost 1, the mean full pyramid, is worth in score. Default: {price}.

```python
import pyrskip

model = pyrskip.load("path/to/this/export", backend="onnx")
answer = model.answer("image.png", "a question", price={price})
print(answer.text, answer.selection.levels, answer.selection.cost)
```
"""
ALONE = """# {name}: a skip gate for a model that runs elsewhere

From the question and a glance of {glance} px, the gate (`{gate}`, policy `{policy}`) decides which levels of
an image pyramid of {size} px and {levels} levels are sent to the model that answers. It was trained for
`{outside}`, whose tokens and FLOPs it counts by rules in config.json. The price is the dial: what relative
cost 1, the mean full pyramid, is worth in score. Default: {price}.

```python
import pyrskip

gate = pyrskip.load("path/to/this/export", backend="onnx")
sent = gate.decide("image.png", "a question", price={price})
print(sent.pictures, sent.selection.tokens, sent.saved)
```
"""
FRONTIER = """
## Accuracy against cost

The test split of `{source}`. Cost is FLOPs of everything that runs, the gate included, over the mean
full pyramid's.

| method | price | accuracy | 95% interval | cost | over the model without a gate | visual tokens |
|---|---|---|---|---|---|---|
{frontier}
"""
SAFE = """
## Is the gate worth having?

{worth}

`model.answer(..., price=..., safe=True)` plays the gate at prices where the held-out images tell that it is
above the hull of fixed selections, and the best of those at the others. This gate decides at {played}.
"""
REST = """
## What is guaranteed

Shares of the full pyramid's score, on an image that is drawn anew as the data's were and a question that is
drawn from those on it. Each line is for itself; `{takes}(..., retention=...)` takes what is guaranteed.

{guarantees}

## Parity

Checked on the whole test split before this was written; an export that differs is not written.

{parity}

## How it was trained

Gate seed {seed}, by the rule `{rule}`. The config that made the weights:

```json
{config}
```

## Limits

* Accuracy and cost are those of the split above; on other images and questions they must be measured.
* {reads}
* Checksums tell damage and changes, not who made the files.
"""
READS_WHOLE = """\
Images are shrunk to {size} px a side, questions hold at most {words} tokens (longer ones are cut,
  options never), answers at most {answer}."""
READS_ALONE = """\
The gate reads a question's last {words} tokens. Another model than `{outside}` gives other tokens and
  answers: the numbers above are not its own."""

METHODS = ("full", "reference", "gate")


def card(
    config: Config,
    plain: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    parity: Sequence[object],
    seed: int,
    summary: Mapping[str, Any],
) -> str:
    """README.md. plain: config.json; parity: what the checks found, each a line; rows: the frontier's, of
    this seed and of methods without one; summary: summary.json."""
    sections = to_plain(config)
    pyramid, outside = plain["pyramid"], plain.get("outside")
    levels = len(pyramid["grid"])
    reads = (
        READS_ALONE.format(words=plain["query"]["max_words"], outside=outside["name"])
        if outside
        else READS_WHOLE.format(
            size=pyramid["size"], words=plain["language"]["max_words"], answer=plain["language"]["max_answer"]
        )
    )
    trained_by = [key for key in TRAINED_BY if not outside or key not in ("language", "flex")]
    safe = plain["prices"]["safe"]
    methods = METHODS if safe is None else (*METHODS, "gate:safe")
    return (HEAD + (ALONE if outside else WHOLE) + FRONTIER + ("" if safe is None else SAFE) + REST).format(
        name=config.name,
        outside=outside and outside["name"],
        takes="gate.decide" if outside else "model.answer",
        reads=reads,
        glance=pyramid["size"] >> (levels - 1),
        gate=plain["gate"]["gate"]["name"],
        policy=plain["gate"]["gate"]["policy"],
        size=pyramid["size"],
        levels=levels,
        price=plain["prices"]["default"],
        source=config.data.source,
        frontier="\n".join(
            _line(row)
            for method in methods
            for row in rows
            if row["method"] == method and row["split"] == "test"
        ),
        worth=safe and verdict_said(summary["worth"]) + ".",
        played=safe and _ranges(safe["gate"]),
        guarantees="\n".join(
            f"* {of['guarantee']['asked']:.4g}: {said([of['guarantee']])}. Price {of['price']:g}, kept on "
            f"test: {_share(of['guarantee']['kept_on_test'])}."
            for at in summary["targets"].values()
            for of in at["gate"]["seeds"]
            if of["seed"] == seed
        ),
        parity="\n".join(f"* {result}" for result in parity),
        seed=seed,
        rule=config.rule.name,
        config=json.dumps({key: sections[key] for key in trained_by}, indent=1),
    )


def _ranges(prices: Sequence[Sequence[float]]) -> str:
    """Ranges of prices, in words."""
    return "prices from " + ", ".join(f"{low:g} to {high:g}" for low, high in prices) if prices else "none"


def _share(value: float | None) -> str:
    return "nothing, nor does full" if value is None else f"{value:.2%}"


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["accuracy_ci95"]
    price = "" if row["price"] is None else f"{row['price']:g}"
    cells = (
        row["method"],
        price,
        f"{row['accuracy']:.4f}",
        f"{low:.4f} to {high:.4f}",
        f"{row['relative_flops']:.3f}",
    )
    return "| " + " | ".join((*cells, f"{row['flops_of_reference']:.3f}", f"{row['tokens']:.1f}")) + " |"
