"""From a finished run to an export: what `pyrskip export` does.

Everything is written beside the wanted place and moved there only when parity holds: there is no half an
export.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyrskip
from pyrskip.config import Config
from pyrskip.data.reader import ShardDataset, collate
from pyrskip.errors import UserError
from pyrskip.export.alone import GateParity, check_alone
from pyrskip.export.card import card
from pyrskip.export.describe import describe, describe_alone, guaranteed, prices_of, safe_of
from pyrskip.export.outside import outside_of
from pyrskip.export.parity import Parity, check
from pyrskip.export.write import write_alone, write_parts
from pyrskip.files import whole_directory
from pyrskip.gated import Gated
from pyrskip.gates.gate import Gate
from pyrskip.inference import Engine, GateAlone
from pyrskip.inference.bundle import SOURCES, Prices, write_checksums
from pyrskip.models.native import NativeModel
from pyrskip.models.vlm.served import ServedModel
from pyrskip.pruners import NONE
from pyrskip.sample import Batch
from pyrskip.signals import SIGNALS
from pyrskip.stages.finished import Finished, read_result

SAMPLES = 25
"""Images that the gate's FLOPs are measured on, as the frontier's are."""


def export_run(
    config: Config,
    out: Path,
    *,
    seed: int | None = None,
    native: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Export the gate of a finished run, with the native model that it decides for, or alone where that is
    served. seed: of the gate, the run's first by default.

    native: compiled packages as well. Raises UserError where a stage is missing, `out` is there already, the
    gate looks before it has decided, or the export does not do what the model does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={out} is there already; allowed: a new directory, or an empty one")
    if config.model.served and native:
        raise UserError(
            f"native=true with model.name={config.model.name}: a gate alone has no compiled code; allowed: "
            "native=false"
        )
    if config.pruner.name != NONE:
        raise UserError(
            f"pruner.name={config.pruner.name} cannot be exported: an export's graphs read every token; "
            f"allowed: {NONE}"
        )
    run = Finished.of(config, seed)
    model, gate, unit, summary = run.model, run.gate, run.unit, run.summary
    _check_gate(gate)
    rows = [row for row in read_result(run.root / "frontier.json") if row["seed"] in (None, run.seed)]
    prices = sorted({row["price"] for row in rows if row["method"] == "gate"})

    with whole_directory(out) as part:
        batch = collate([run.test[i] for i in range(min(SAMPLES, len(run.test)))], config.pyramid.size)
        own_flops = Gated(model, gate, unit).gate_flops(batch)
        safe = None if config.model.served else safe_of(summary, run.seed)
        dial = prices_of(gate, config.reward, run.price, guaranteed(summary, run.seed), safe)
        made = _Made(config, gate, unit, own_flops, dial, batch, run.test, prices, run.price, part, say)
        plain, parity = _whole(model, made, native) if isinstance(model, NativeModel) else _alone(model, made)
        for result in parity:
            say(str(result))
        metrics = {
            "seed": run.seed,
            "price": run.price,
            "parity": [asdict(result) for result in parity],
            "summary": summary,
            "frontier": rows,
        }
        (part / "metrics.json").write_text(json.dumps(metrics, indent=1))
        (part / "README.md").write_text(card(config, plain, rows, parity, run.seed, summary))
        write_checksums(part)
    return out


@dataclass(frozen=True)
class _Made:
    """What an export is made of, beside the model. unit: FLOPs of relative cost 1; own_flops: of a decision;
    some: questions of the test split; prices: of the decisions that are checked on all of it, price: of the
    answers, one of them; part: where it is written."""

    config: Config
    gate: Gate
    unit: float
    own_flops: float
    dial: Prices
    some: Batch
    test: ShardDataset
    prices: Sequence[float]
    price: float
    part: Path
    say: Callable[[str], None]

    def checking(self) -> None:
        self.say(f"checking {len(self.test)} test images at {len(self.prices)} prices")


def _whole(model: NativeModel, of: _Made, native: bool) -> tuple[dict[str, Any], Sequence[Parity]]:
    """Write a gate with its model, and check it: config.json, and what was found."""
    plain = describe(model, of.gate, of.unit, of.own_flops, of.dial)
    of.say("tracing the graphs")
    write_parts(model, of.gate, plain, of.part, native)
    of.checking()
    loaded = {"onnx": pyrskip.load(of.part, "onnx"), "torch": pyrskip.load(of.part, "torch")}
    if native:
        loaded["native"] = pyrskip.load(of.part, "torch", allow_native=True)
    engines = {name: engine for name, engine in loaded.items() if isinstance(engine, Engine)}
    return plain, check(model, of.gate, engines, of.test, of.unit, of.prices, of.price)


def _alone(model: ServedModel, of: _Made) -> tuple[dict[str, Any], Sequence[GateParity]]:
    """Write a gate alone, and check it, as `_whole`."""
    of.say("measuring what the model gives a picture, and what that costs")
    outside, tokenizer = outside_of(model.box, of.config.model.own.identity(), of.some, of.say)
    plain = describe_alone(model, of.config.vision, of.gate, of.unit, of.own_flops, of.dial, outside)
    of.say("tracing the graphs")
    write_alone(model, of.gate, outside, tokenizer, plain, of.part)
    of.checking()
    loaded = {backend: pyrskip.load(of.part, backend) for backend in ("onnx", "torch")}
    deciders = {name: gate.decider for name, gate in loaded.items() if isinstance(gate, GateAlone)}
    return plain, check_alone(model, of.gate, deciders, of.test, of.unit, of.prices)


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
