"""The clock of a finished run: its model and one of its gates, on a device."""

import torch

from pyrskip.config import Config
from pyrskip.data.reader import collate
from pyrskip.errors import UserError, unknown_name
from pyrskip.evaluation.bench import SIZES, Timed, bench
from pyrskip.evaluation.timing import device_name
from pyrskip.models.native import NativeModel
from pyrskip.stages.finished import Finished

DEVICES = ("cpu", "cuda")
PRECISIONS = ("32-true", "bf16-mixed")


def bench_run(
    config: Config, device: str, precision: str, seconds: float, price: float | None, seed: int | None
) -> tuple[str, list[Timed]]:
    """What was timed, and its times. device: by default the one that the run was trained on; precision: one
    of PRECISIONS, the first of which is what the frontier answers in. price, seed: of the gate, by default
    those that its export would have.

    Raises UserError where a stage is missing, the model runs elsewhere, or there is no such device or gate.
    """
    device = device or ("cpu" if config.trainer.accelerator == "cpu" else "cuda")
    if device not in DEVICES or (device == "cuda" and not torch.cuda.is_available()):
        there = ", ".join(DEVICES if torch.cuda.is_available() else DEVICES[:1])
        raise UserError(f"device={device} is not here; allowed: {there}")
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if config.model.served:
        raise UserError(
            f"model.name={config.model.name} runs elsewhere, and its time is its own; allowed: native"
        )
    run = Finished.of(config, seed)
    assert isinstance(run.model, NativeModel)
    model, gate = run.model.to(device), run.gate.to(device)
    [price] = gate.prices([run.price if price is None else price])
    batch = collate([run.test[i] for i in range(min(SIZES[-1], len(run.test)))], config.pyramid.size)
    with torch.autocast(device, torch.bfloat16, enabled=precision == PRECISIONS[1]):
        rows = bench(model, gate, batch.to(device), run.unit, price, seconds)
    return f"{device_name(model.device)}, {precision}, price {price:g}", rows
