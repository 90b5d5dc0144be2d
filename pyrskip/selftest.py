"""Ten seconds of everything that a run stands on, on one device: a tiny model of random weights learns two
pictures apart, a gate decides for it, and it answers from what is kept."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from pyrskip.answering import answer
from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet
from pyrskip.gated import Gated
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.models.language import LanguageConfig, train_tokenizer
from pyrskip.models.native import CostConfig, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.vision import VisionConfig
from pyrskip.observation import Layout
from pyrskip.sample import Batch, Question, Sample
from pyrskip.signals import shapes_of, signals_of

SIDE, CLOSE = 64, 1e-3
STEPS, RATE, APART = 25, 1e-2, 0.35
"""Steps, learning rate and loss of the training; to know the two answers, but not which is right, has a loss
of log 2."""
ASKED, COLOURS = "what colour is it?", {"red": (220, 40, 40), "blue": (40, 60, 220)}


@dataclass(frozen=True)
class Check:
    """claim: what was looked at; wrong: what was found in its place, '' where it holds."""

    claim: str
    wrong: str
    seconds: float


def selftest(device: str) -> Iterator[Check]:
    """One claim after another; an exception is what is wrong with its claim."""
    model, batch = tiny_model().to(device), pictures().to(device)
    gate = tiny_gate(model).to(device)
    claims: dict[str, Callable[[], str]] = {
        "a model learns two pictures apart": lambda: learned(model, batch),
        "a gate decides, and the model answers": lambda: decided(model, gate, batch),
        "what is skipped is never encoded": lambda: encoded(model, batch),
        "an answer does not depend on its batch": lambda: apart(model, batch),
    }
    if device != "cpu":
        claims["the device computes what the CPU does"] = lambda: alike(model, batch)
    for claim, check in claims.items():
        began = perf_counter()
        try:
            wrong = check()
        except Exception as error:  # whatever a broken installation raises
            wrong = f"{type(error).__name__}: {' '.join(str(error).split())}"
        yield Check(claim, wrong, perf_counter() - began)


def learned(model: NativeModel, batch: Batch) -> str:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
    features = model.encode(batch, whole(model, batch) > 0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model.loss(batch, features, whole(model, batch)).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    model.eval()
    return "" if losses[-1] < APART else f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}"


def decided(model: NativeModel, gate: Gate, batch: Batch) -> str:
    answers = answer(Gated(model, gate, unit=1e7), batch)
    glance = answers.decided.selection[:, model.pyramid.glance]
    whole = len(answers.texts) == len(batch) and bool(glance.all())
    return "" if whole else f"{len(answers.texts)} answers, glance kept: {glance.tolist()}"


def encoded(model: NativeModel, batch: Batch) -> str:
    keep = torch.zeros(len(batch), model.pyramid.tiles, dtype=torch.bool)
    keep[:, model.pyramid.glance] = True
    before = model.encoded
    model.encode(batch, keep.to(model.device))
    found = model.encoded - before
    return "" if found == len(batch) else f"{found} tiles were encoded, {len(batch)} are kept"


def apart(model: NativeModel, batch: Batch) -> str:
    together = loglik(model, batch)
    alone = torch.cat([loglik(model, batch.rows([row])) for row in range(len(batch))])
    return different(together, alone)


def alike(model: NativeModel, batch: Batch) -> str:
    there = loglik(model, batch)
    model.to("cpu")
    return different(there, loglik(model, batch.to("cpu")))


@torch.no_grad()
def loglik(model: NativeModel, batch: Batch) -> Tensor:
    """Log-likelihood of the right answers with everything kept, [B], on the CPU."""
    features = model.encode(batch, whole(model, batch) > 0)
    return model.forced(batch, features, whole(model, batch)).loglik.cpu()


def different(found: Tensor, wanted: Tensor) -> str:
    gap = float((found - wanted).abs().max())
    return "" if gap <= CLOSE else f"log-likelihoods differ by {gap:.2g}, more than {CLOSE:g}"


def whole(model: NativeModel, batch: Batch) -> Tensor:
    """The decision that asks for all of every tile, [B, T]."""
    return model.pyramid.capacity(batch.size)[batch.image_of]


def pictures() -> Batch:
    samples = []
    for name, colour in COLOURS.items():
        image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, SIDE, SIDE).clone()
        samples.append(Sample(name, image, (Question(ASKED, (name,), "colour"),)))
    return Batch.collate(samples, SIDE)


def tiny_model() -> NativeModel:
    torch.manual_seed(0)
    config = ModelConfig(
        PyramidConfig(SIDE, levels=3),
        VisionConfig("mobilenetv3_small_050", out_index=2, weights="none"),
        TextConfig("embedding"),
        LanguageConfig("decoder", layers=2, width=32, heads=2, mlp=48, vocabulary=320, max_answer=6),
        CostConfig(),
    )
    return NativeModel(config, train_tokenizer([ASKED, *COLOURS] * 3, 320))


def tiny_gate(model: NativeModel) -> Gate:
    config = GateConfig(name="joint", policy="utility", width=8)
    actions, budget = ActionSet.of(model.pyramid, BudgetRule(), ActionConfig()), BudgetRule()
    shapes = shapes_of(signals_of(model, config.needs))
    layout = Layout(shapes, model.pyramid.tiles, actions, budget, model.pyramid.grid)
    return build_gate(config, layout).eval()
