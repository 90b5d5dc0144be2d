"""config.json of an export: everything that a service must know, in registered names and numbers."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from itertools import product
from math import inf
from typing import Any

import numpy as np

from pyrskip.errors import UserError
from pyrskip.gates import describe_gate
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import FORMAT, VERSION, Guaranteed, Prices, signal_graph
from pyrskip.inference.modules import is_bare
from pyrskip.inference.outside import Outside
from pyrskip.inference.safe import Safe
from pyrskip.models.language import END
from pyrskip.models.native import NativeModel
from pyrskip.models.text import MiniLmText
from pyrskip.models.tiers import GatedModel
from pyrskip.models.vision import VisionConfig
from pyrskip.models.vlm.served import ServedModel
from pyrskip.reward import RewardConfig
from pyrskip.signals import signals_of
from pyrskip.tracking.versions import versions

PROBES = 16


def describe(model: NativeModel, gate: Gate, unit: float, own_flops: float, prices: Prices) -> dict[str, Any]:
    """config.json of a gate with its model. unit: FLOPs of relative cost 1; own_flops: of a decision, its
    signals' included."""
    config, language = model.config, model.config.language
    words = model.text.max_words if isinstance(model.text, MiniLmText) else language.max_words
    plain = describe_deciding("whole", model, gate, prices, config.text.name, words)
    return plain | {
        "model": asdict(config) | {"vision": _vision(config.vision), "text": {"name": config.text.name}},
        "language": {
            "tokenizer": "tokenizer.json",
            "max_words": language.max_words,
            "max_answer": language.max_answer,
            "end": END,
        },
        "cost": {
            "gate": own_flops,
            "full_pyramid": unit,
            "encode": [[rows, columns, flops] for (rows, columns), flops in encode_flops(model).items()],
        },
    }


def describe_alone(
    model: ServedModel,
    vision: VisionConfig,
    gate: Gate,
    unit: float,
    own_flops: float,
    prices: Prices,
    outside: Outside,
) -> dict[str, Any]:
    """config.json of a gate alone. vision: the encoder that it looks through; the rest as of `describe`."""
    assert isinstance(model.text, MiniLmText)
    plain = describe_deciding("gate", model, gate, prices, "minilm", model.text.max_words)
    return plain | {
        "model": {"vision": _vision(vision)},
        "outside": asdict(outside),
        "cost": {"gate": own_flops, "full_pyramid": unit},
    }


def _vision(config: VisionConfig) -> dict[str, Any]:
    """Without where its weights came from."""
    return asdict(config) | {"weights": "none"}


def describe_deciding(
    kind: str, model: GatedModel, gate: Gate, prices: Prices, query: str, max_words: int
) -> dict[str, Any]:
    """What every kind of export tells a service in config.json: registered names and numbers. query: the
    question encoder; max_words: of a question, that it takes."""
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "kind": kind,
        "pyrskip_version": versions().get("pyrskip", "not installed"),
        "pyramid": {
            "size": model.pyramid.size,
            "stride": model.pyramid.stride,
            "grid": list(model.pyramid.grid),
            "halo": model.pyramid.halo,
        },
        "preprocessing": {
            "mode": "RGB",
            "shrink": "box filter to the canvas, never enlarged",
            "levels": "mean of the valid pixels below",
            "range": [0, 1],
            "mean": model.vision.mean.flatten().tolist(),
            "std": model.vision.std.flatten().tolist(),
            "normalised": "in the vision graph",
        },
        "query": {"name": query, "max_words": max_words},
        "signals": {
            name: {
                "source": of.source,
                "tensors": list(of.shapes),
                "graph": None if is_bare(of) else signal_graph(name),
            }
            for name, of in signals_of(model, gate.config.needs).items()
        },
        "gate": describe_gate(gate),
        "prices": {
            "low": prices.low,
            "high": None if prices.high == inf else prices.high,
            "default": prices.default,
            "guaranteed": [asdict(of) for of in prices.guaranteed],
            "safe": None if prices.safe is None else asdict(prices.safe),
        },
    }


def encode_flops(model: NativeModel) -> Mapping[tuple[int, int], int]:
    """FLOPs of encoding a tile of every size that there can be: (rows, columns) of its map -> FLOPs.

    Counted on tensors without memory. Convolutions cost a + b n and attention c n^2 of a map of n cells:
    three sizes tell the formula, and where it gives exactly what is counted at PROBES others as well, it
    stands for the rest.
    """
    vision, stride = copy.deepcopy(model.vision).to("meta"), model.vision.stride
    pyramid = model.pyramid
    sides = {pyramid.side(level) // stride + 2 * pyramid.halo for level in range(pyramid.levels)}
    sizes = sorted({(r, c) for side in sides for r, c in product(range(1, side + 1), repeat=2)})

    def counted(size: tuple[int, int]) -> int:
        return vision.flops(size[0] * stride, size[1] * stride)

    known = [(1, 1), (1, 2), (2, 2)]
    if len(sizes) <= PROBES or not set(known) <= set(sizes):
        return {size: counted(size) for size in sizes}
    powers = np.array([[1, rows * columns, (rows * columns) ** 2] for rows, columns in known])
    a, b, c = (round(x) for x in np.linalg.solve(powers, [float(counted(size)) for size in known]))
    formula = {size: a + b * size[0] * size[1] + c * (size[0] * size[1]) ** 2 for size in sizes}
    probes = [*sizes[:: -(-len(sizes) // PROBES)], sizes[-1]]
    if all(formula[size] == counted(size) for size in probes):
        return formula
    return {size: counted(size) for size in sizes}


def prices_of(
    gate: Gate,
    reward: RewardConfig,
    default: float,
    guaranteed: tuple[Guaranteed, ...] = (),
    safe: Safe | None = None,
) -> Prices:
    """What may be asked: the one price that the gate was trained for, those that were sampled, or any where
    the price is in the policy's arithmetic alone."""
    own = gate.prices(())
    if own:
        return Prices(own[0], own[0], own[0], guaranteed, safe)
    low, high = (reward.low, reward.high) if gate.dial else (0.0, inf)
    return Prices(low, high, default, guaranteed, safe)


def guaranteed(summary: Mapping[str, Any], seed: int) -> tuple[Guaranteed, ...]:
    """The retentions that are guaranteed for a seed's gate, from summary.json."""
    own = [of for at in summary["targets"].values() for of in at["gate"]["seeds"] if of["seed"] == seed]
    return tuple(
        Guaranteed(found["asked"], of["price"], found["confidence"], found["images"], found["kept_on_test"])
        for of in own
        if (found := of["guarantee"])["guaranteed"]
    )


def safe_of(summary: Mapping[str, Any], seed: int) -> Safe:
    """What is played in place of a seed's gate, from summary.json. Raises UserError where that does not say
    it."""
    if "worth" not in summary:
        raise UserError(
            "the run's summary.json does not say where its gates are above fixed selections; draw the "
            "frontier again with pyrskip eval"
        )
    return Safe.parse(next(of for of in summary["worth"]["seeds"] if of["seed"] == seed))
