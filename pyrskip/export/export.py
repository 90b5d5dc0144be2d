"""From a finished run to an export: what `pyrskip export` does.

Everything is written beside the wanted place and moved there only when parity holds: there is no half an
export.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

import pyrskip
from pyrskip.config import Config
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.errors import UserError
from pyrskip.evaluation.summary import default_price
from pyrskip.export.card import card
from pyrskip.export.graphs import trace, write_native, write_onnx
from pyrskip.export.parity import as_plain, check
from pyrskip.gated import Gated
from pyrskip.gates import describe_gate, load_gate
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import (
    FORMAT,
    NATIVE,
    SOURCES,
    VERSION,
    Guaranteed,
    Prices,
    signal_graph,
    write_checksums,
)
from pyrskip.inference.modules import is_bare
from pyrskip.inference.safe import Safe
from pyrskip.models.language import END
from pyrskip.models.native import NativeModel
from pyrskip.models.text import MiniLmText
from pyrskip.pruners import NONE
from pyrskip.reward import RewardConfig
from pyrskip.signals import SIGNALS, signals_of
from pyrskip.stages.data import DATA
from pyrskip.stages.flex import FLEX
from pyrskip.stages.frontier import FRONTIER
from pyrskip.stages.gate import GATE, gate_directory
from pyrskip.stages.run import Run

SAMPLES = 25
"""Images that the gate's FLOPs are measured on, as the frontier's are."""
PROBES = 16


def export_run(
    config: Config,
    out: Path,
    *,
    seed: int | None = None,
    native: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Export the gate of a finished run, with the model that it decides for. seed: of the gate, the run's
    first by default.

    native: compiled packages as well. Raises UserError where a stage is missing, `out` is there already, the
    gate looks before it has decided, or the export does not do what the model does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is there already; allowed: a new directory, or an empty one")
    if config.model.served:
        raise UserError(
            f"model.name={config.model.name} is served where it is, and an export holds its model; allowed: "
            "native"
        )
    if config.pruner.name != NONE:
        raise UserError(
            f"pruner.name={config.pruner.name} cannot be exported: an export's graphs read every token; "
            f"allowed: {NONE}"
        )
    run = Run(config, {})
    for stage in (DATA, FLEX, GATE, FRONTIER):
        if not run.done(stage):
            raise UserError(
                f"run={run.root} has no finished {stage.name} stage; finish it with pyrskip train"
            )
    seed = config.seed if seed is None else seed
    allowed = range(config.seed, config.seed + config.seeds)
    if seed not in allowed:
        raise UserError(f"seed={seed} was not trained; allowed: {', '.join(map(str, allowed))}")
    model = NativeModel.load(run.directory(FLEX), config.cost)
    gate = load_gate(gate_directory(run.root, "gate", seed))
    _check_gate(gate)
    told = _read(run.root / "summary.json")
    rows = [row for row in _read(run.root / "frontier.json") if row["seed"] in (None, seed)]
    prices = sorted({row["price"] for row in rows if row["method"] == "gate"})
    price = default_price(told, seed)
    test = ShardDataset(run.directory(DATA), "test", config.pyramid.size)

    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        batch = collate([test[i] for i in range(min(SAMPLES, len(test)))], config.pyramid.size)
        unit = float(told["unit_flops"])
        own_flops = Gated(model, gate, unit).gate_flops(batch)
        dial = prices_of(gate, config.reward, price, guaranteed(told, seed), safe_of(told, seed))
        plain = describe(model, gate, unit, own_flops, dial)
        say("tracing the graphs")
        write_parts(model, gate, plain, part, native)
        say(f"checking {len(test)} test images at {len(prices)} prices")
        engines = {"onnx": pyrskip.load(part, "onnx"), "torch": pyrskip.load(part, "torch")}
        if native:
            engines["native"] = pyrskip.load(part, "torch", allow_native=True)
        parity = check(model, gate, engines, test, unit, prices, price)
        for result in parity:
            say(str(result))
        metrics = {
            "seed": seed,
            "price": price,
            "parity": as_plain(parity),
            "summary": told,
            "frontier": rows,
        }
        (part / "metrics.json").write_text(json.dumps(metrics, indent=1))
        (part / "README.md").write_text(card(config, plain, rows, parity, seed, told))
        write_checksums(part)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        raise UserError(f"out={out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def write_parts(
    model: NativeModel,
    gate: Gate,
    plain: dict[str, Any],
    directory: Path,
    native: bool = False,
    graphs: Sequence[str] | None = None,
) -> None:
    """What is loaded: graphs (by default all), weights, tokenizers, config.json and their checksums. plain:
    of `describe`. Raises UserError as `trace` does."""
    programs = trace(model, gate, plain["cost"]["full_pyramid"], graphs)
    write_onnx(programs, directory / "onnx")
    if native:
        write_native(programs, directory / NATIVE)
    _write_weights(model, gate, directory)
    (directory / "config.json").write_text(json.dumps(plain, indent=1))
    write_checksums(directory)


def describe(model: NativeModel, gate: Gate, unit: float, own_flops: float, prices: Prices) -> dict[str, Any]:
    """config.json: everything that a service must know, in registered names and numbers.

    unit: FLOPs of relative cost 1; own_flops: of a decision, its signals' included.
    """
    vision, language = model.config.vision, model.config.language
    text = model.text
    return {
        "format": FORMAT,
        "format_version": VERSION,
        "pyrskip_version": version("pyrskip"),
        "model": asdict(model.config)
        | {"vision": asdict(vision) | {"weights": "none"}, "text": {"name": model.config.text.name}},
        "pyramid": {
            "size": model.pyramid.size,
            "stride": model.pyramid.stride,
            "grid": list(model.pyramid.grid),
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
        "language": {
            "tokenizer": "tokenizer.json",
            "max_words": language.max_words,
            "max_answer": language.max_answer,
            "end": END,
        },
        "query": {
            "name": model.config.text.name,
            "max_words": text.max_words if isinstance(text, MiniLmText) else language.max_words,
        },
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
        "cost": {
            "gate": own_flops,
            "full_pyramid": unit,
            "encode": [[rows, columns, flops] for (rows, columns), flops in encode_flops(model).items()],
        },
    }


def encode_flops(model: NativeModel) -> Mapping[tuple[int, int], int]:
    """FLOPs of encoding a tile of every size that there can be: (rows, columns) of its map -> FLOPs.

    Counted on tensors without memory. Convolutions cost a + b n and attention c n^2 of a map of n cells:
    three sizes tell the formula, and where it gives exactly what is counted at PROBES others as well, it
    stands for the rest.
    """
    vision, stride = copy.deepcopy(model.vision).to("meta"), model.vision.stride
    sides = {model.pyramid.side(level) // stride for level in range(model.pyramid.levels)}
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


def guaranteed(told: Mapping[str, Any], seed: int) -> tuple[Guaranteed, ...]:
    """The retentions that are guaranteed for a seed's gate, from summary.json."""
    own = [of for at in told["targets"].values() for of in at["gate"]["seeds"] if of["seed"] == seed]
    return tuple(
        Guaranteed(found["asked"], of["price"], found["confidence"], found["images"], found["kept_on_test"])
        for of in own
        if (found := of["guarantee"])["guaranteed"]
    )


def safe_of(told: Mapping[str, Any], seed: int) -> Safe:
    """What is played in place of a seed's gate, from summary.json. Raises UserError where that does not say
    it."""
    if "worth" not in told:
        raise UserError(
            "the run's summary.json does not say where its gates are above fixed selections; draw the "
            "frontier again with pyrskip eval"
        )
    return Safe.parse(next(of for of in told["worth"]["seeds"] if of["seed"] == seed))


def _check_gate(gate: Gate) -> None:
    if gate.config.looks:
        raise UserError(
            "gate.looks=true looks at a level before it decides on the next, and an export's gate decides in "
            "one step, before anything finer than the glance is encoded; allowed: gate.looks=false"
        )
    for name in gate.config.needs:
        if SIGNALS[name].source not in SOURCES:
            raise UserError(
                f"signal {name!r} is computed from {SIGNALS[name].source}, which an export does not have; "
                f"allowed: {', '.join(SOURCES)}"
            )


def _write_weights(model: NativeModel, gate: Gate, directory: Path) -> None:
    state = {f"model.{name}": t for name, t in model.state_dict().items() if not name.startswith("text.")}
    state |= {f"gate.{name}": t for name, t in gate.state_dict().items()}
    safetensors.torch.save_file(
        {name: t.contiguous() for name, t in state.items()}, directory / "model.safetensors"
    )
    (directory / "model.safetensors").chmod(0o644)
    (directory / "tokenizer.json").write_text(model.language.tokenizer.to_str())
    if isinstance(model.text, MiniLmText):
        model.text.model.save_pretrained(directory / "query")
        model.text.tokenizer.save_pretrained(directory / "query")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); draw the frontier again with pyrskip eval"
        ) from error
