"""Gates: what they read and what they must not, for every registered gate and policy."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gates import GATES, build_gate, load_gate, save_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.observation import Layout, Observation
from pyrskip.policies import POLICIES
from pyrskip.policies.sequential import SequentialPolicy
from pyrskip.pyramid import Pyramid
from tests.decisions import same

PYRAMID = Pyramid(64, 3, 8)
SIGNALS = {
    "query": (None, 12),
    "query_mask": (None,),
    "glance": (6, 2, 2),
    "glance_mask": (2, 2),
    "statistics": (PYRAMID.tiles, 4),
    "answer_stats": (3,),
}
LAYOUT = Layout(SIGNALS, PYRAMID.tiles, ActionSet.by_level(PYRAMID), BudgetRule(), PYRAMID.grid)
EVERY = [(n, p) for n, gate in GATES.items() for p in POLICIES if POLICIES[p].per_tile or not gate.regional]
LISTED = [name for name, gate in GATES.items() if not gate.regional]
every = pytest.mark.parametrize(("name", "policy"), EVERY)


def gate_of(name: str = "joint", policy: str = "utility", layout: Layout = LAYOUT, **config: Any) -> Gate:
    """A gate whose head is not at its start, where it says the same of everything."""
    torch.manual_seed(0)
    gate = build_gate(GateConfig(name=name, policy=policy, width=16, **config), layout).eval()
    torch.nn.init.normal_(gate.head.weight)
    if gate.kind.episodic:
        torch.nn.init.normal_(gate.head.get_submodule("steps.out").weight)
    return gate


def observation(rows: int = 5, words: int = 7, seed: int = 0) -> Observation:
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(1, 65, (rows, 2), generator=generator)
    cells = PYRAMID.cells(size)[:, PYRAMID.glance]
    grid = torch.arange(2)
    inside = (grid[:, None] < cells[:, 0, None, None]) & (grid < cells[:, 1, None, None])
    lengths = torch.randint(1, words + 1, (rows, 1), generator=generator)
    kept = LAYOUT.actions.selection.double()
    return Observation(
        signals={
            "query": torch.randn(rows, words, 12, generator=generator),
            "query_mask": torch.arange(words) < lengths,
            "glance": torch.randn(rows, 6, 2, 2, generator=generator),
            "glance_mask": inside,
            "statistics": torch.rand(rows, PYRAMID.tiles, 4, generator=generator),
            "answer_stats": torch.rand(rows, 3, generator=generator),
        },
        capacity=PYRAMID.capacity(size),
        cost=(PYRAMID.capacity(size).double() @ kept.T / 84).float(),
        price=torch.rand(rows, generator=generator) + 0.01,
    )


def pick(seen: Observation, rows: list[int]) -> Observation:
    signals = {name: value[rows] for name, value in seen.signals.items()}
    rest = {name: getattr(seen, name)[rows] for name in ("capacity", "cost", "price")}
    return replace(seen, signals=signals, **rest)


def other(seen: Observation, **signals: Tensor) -> Observation:
    """The observation with other values of some signals."""
    return replace(seen, signals={**seen.signals, **signals})


@every
def test_a_gate_does_not_see_its_batch_mates(name: str, policy: str) -> None:
    gate, seen = gate_of(name, policy), observation()
    together = gate(seen)
    widths = {"rungs": 2, "autoregressive": 2 + 4, "sequential": 16}
    assert together.shape == (5, 3 if POLICIES[policy].per_tile else widths.get(policy, 4))
    assert together.std(0).max() > 1e-3
    for row in range(5):
        assert torch.allclose(gate(pick(seen, [row]))[0], together[row], atol=1e-5)
    order = [3, 1, 4, 0, 2]
    assert torch.allclose(gate(pick(seen, order)), together[order], atol=1e-5)


@every
def test_a_gate_does_not_see_padding_words_or_cells(name: str, policy: str) -> None:
    gate, seen = gate_of(name, policy), observation()
    plain = gate(seen)
    words, cells = seen["query_mask"], seen["glance_mask"]
    assert not words.all() and not cells.all()
    dirty = other(
        seen,
        query=seen["query"].where(words[..., None], 50.0),
        glance=seen["glance"].where(cells[:, None], -50.0),
    )
    assert torch.allclose(gate(dirty), plain, atol=1e-5)
    longer = other(
        seen,
        query=torch.cat([seen["query"], torch.full((5, 4, 12), 9.0)], dim=1),
        query_mask=torch.cat([words, torch.zeros(5, 4, dtype=torch.bool)], dim=1),
    )
    assert torch.allclose(gate(longer), plain, atol=1e-5)


CHANGED = {
    "query": lambda seen: other(
        seen, query=seen["query"].roll(1, 0), query_mask=seen["query_mask"].roll(1, 0)
    ),
    "glance": lambda seen: other(seen, glance=-seen["glance"]),
    "statistics": lambda seen: other(seen, statistics=1 - seen["statistics"]),
    "answer_stats": lambda seen: other(seen, answer_stats=seen["answer_stats"].flip(0)),
}


@every
def test_a_gate_says_at_several_prices_what_it_says_at_each(name: str, policy: str) -> None:
    gate, seen = gate_of(name, policy), observation()
    prices = torch.rand(3, 5) + 0.01
    at_each = torch.stack([gate(replace(seen, price=price)) for price in prices])
    assert gate.of_prices(seen, prices).equal(at_each)


@every
@pytest.mark.parametrize("more", [(), ("answer_stats",)], ids=["", "answer_stats"])
def test_a_gate_sees_the_signals_that_it_needs_and_nothing_else(
    name: str, policy: str, more: tuple[str, ...]
) -> None:
    of = {"predictor": ("query",), "glance": ("glance",), "relevance": ("query", "glance", "statistics")}
    needs = of.get(name, ("query", "glance")) + more
    gate, seen = gate_of(name, policy, signals=more), observation()
    assert gate.config.needs == needs
    plain = gate(seen)
    for signal, change in CHANGED.items():
        assert gate(change(seen)).equal(plain) is (signal not in needs)
    without = {key: value for key, value in seen.signals.items() if not key.startswith(needs[-1])}
    with pytest.raises(
        UserError, match=rf"the gate reads the signal '{needs[-1]}', and .* has none; allowed"
    ):
        gate(replace(seen, signals=without))


@every
def test_a_gate_knows_its_price_before_it_decides(name: str, policy: str) -> None:
    gate, seen = gate_of(name, policy), observation()
    dearer = replace(seen, price=seen.price * 10)
    # the price of some policies is in their arithmetic, not in what is learned
    assert gate(dearer).equal(gate(seen)) is (policy in ("utility", "evidence"))
    assert not torch.equal(gate.policy(dearer).marginals(), gate.policy(seen).marginals())


@pytest.mark.parametrize("name", LISTED)
def test_a_higher_price_never_buys_a_dearer_decision(name: str) -> None:
    gate, seen = gate_of(name, "utility"), observation(rows=40)
    rows = torch.arange(40)
    paid = []
    for price in (0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 100.0):
        mode = gate.policy(replace(seen, price=torch.full((40,), price))).mode()
        paid.append(seen.cost[rows, mode.action])
    assert all((dearer <= cheaper).all() for cheaper, dearer in pairwise(paid))
    assert paid[0].mean() > paid[-1].mean() and paid[-1].equal(seen.cost.amin(-1))


@every
def test_a_tilt_never_buys_a_dearer_decision(name: str, policy: str) -> None:
    gate, seen = gate_of(name, policy), observation(rows=40)
    paid = []
    for tilt in (-1e4, -1.0, 0.0, 1.0, 1e4):
        gate.tilt.fill_(tilt)
        paid.append(gate.policy(seen).mode().tokens.sum(-1))
    assert all((less <= more).all() for more, less in pairwise(paid))
    assert paid[0].equal(seen.capacity.sum(-1)) and paid[-1].equal(seen.capacity[:, -1])


def test_a_bernoulli_gate_starts_open_and_the_others_undecided() -> None:
    seen = observation()
    bernoulli = (
        build_gate(GateConfig(name="joint", policy="bernoulli", open_bias=2.0), LAYOUT)
        .policy(seen)
        .marginals()
    )
    assert (
        bernoulli[:, :-1].sub(torch.tensor(2.0).sigmoid()).abs().max() < 1e-6 and bernoulli[:, -1].eq(1).all()
    )
    categorical = build_gate(GateConfig(name="joint", policy="categorical"), LAYOUT).policy(seen).probs
    assert categorical is not None and categorical.sub(0.25).abs().max() < 1e-6
    assert (
        build_gate(GateConfig(name="joint", policy="utility"), LAYOUT)(seen).eq(0).all()
    )  # a score of one half


@every
def test_a_gate_is_in_float32_under_autocast(name: str, policy: str) -> None:
    gate, seen = gate_of(name, policy), observation()
    plain = gate(seen)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate(seen).dtype == torch.float32 and gate(seen).equal(plain)
        half = other(seen, query=seen["query"].bfloat16(), glance=seen["glance"].bfloat16())
        assert gate(half).dtype == torch.float32


@every
def test_every_parameter_of_a_gate_learns(name: str, policy: str) -> None:
    gate = gate_of(name, policy).train()
    seen = observation()
    learned = gate(seen).square().sum()
    decided = gate.policy(seen)
    if isinstance(decided, SequentialPolicy):
        episode = decided.steps(decided.mode())
        learned = episode.log_prob.square().sum() + episode.value.square().sum()
    learned.backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.ne(0).any() for p in gate.parameters()
    )


@every
def test_a_saved_gate_decides_the_same(name: str, policy: str, tmp_path: Path) -> None:
    layout = replace(LAYOUT, budget=BudgetRule(total=20, floor=1, weights=(1.0, 2.0, 3.0)))
    options = {option: 0.2 for option in POLICIES[policy].options if option != "looks"}
    gate, seen = (
        gate_of(name, policy, layout, dropout=0.5, signals=("answer_stats",), **options),
        observation(),
    )
    gate.tilt.fill_(0.25)
    save_gate(gate, tmp_path / "gate")
    assert {path.name for path in (tmp_path / "gate").iterdir()} == {"gate.json", "gate.safetensors"}
    again = load_gate(tmp_path / "gate")
    assert type(again) is type(gate) and again.config == gate.config and not again.training
    assert again.layout.budget == layout.budget and again.layout.actions.names == layout.actions.names
    assert again.layout.signals == SIGNALS
    assert again(seen).equal(gate(seen))
    assert same(again.policy(seen).mode(), gate.policy(seen).mode())
    assert again.policy(seen).marginals().equal(gate.policy(seen).marginals())


def tamper(directory: Path, *keys: str, value: Any) -> None:
    path = directory / "gate.json"
    plain = json.loads(path.read_text())
    inner = plain
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(plain))


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (
            ("gate", "name"),
            "os.system",
            r"gate\.name='os\.system'.*allowed: glance, joint, predictor, region, relevance",
        ),
        (
            ("gate", "policy"),
            "eval",
            r"gate\.policy='eval'.*allowed: autoregressive, bernoulli, categorical, evidence, quadtree, "
            r"rungs, sequential, topk, utility",
        ),
        (("gate", "width"), 17, "holds no gate that can be read"),
        (("gate", "nonsense"), 1, "holds no gate that can be read"),
        (("budget", "floor"), -1, r"budget\.floor=-1"),
        (("signals", "query"), [None, 99], "holds no gate that can be read"),
        (("signals",), {}, "the model has no signal 'query'"),
        (("actions",), None, "holds no gate that can be read"),
        pytest.param(("actions", "selection"), [[1, 0], [1]], "holds no gate"),
        pytest.param(("actions", "selection"), [[0, 1], [1, 1], [0, 1], [1, 1]], "holds no gate"),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_tampered_gate_is_refused(keys: tuple[str, ...], value: Any, says: str, tmp_path: Path) -> None:
    save_gate(gate_of(), tmp_path)
    tamper(tmp_path, *keys, value=value)
    with pytest.raises(UserError, match=says):
        load_gate(tmp_path)


@pytest.mark.parametrize("name", ["gate.json", "gate.safetensors"])
def test_a_folder_without_a_whole_gate_is_refused(name: str, tmp_path: Path) -> None:
    save_gate(gate_of(), tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(UserError, match="holds no gate that can be read.*run the gate stage"):
        load_gate(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="holds no gate that can be read"):
        load_gate(tmp_path)


def test_an_unknown_gate_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"gate\.name='oracle'.*allowed: glance, joint, predictor, region, relevance"
    ):
        build_gate(GateConfig(name="oracle"), LAYOUT)


@pytest.mark.parametrize(
    "config", [{"width": 0}, {"temperature": 0.0}, {"dropout": 1.0}, {"policy": "greedy"}], ids=str
)
def test_an_impossible_gate_is_refused_with_what_is_allowed(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(config))}=.*allowed"):
        GateConfig(**config)


@every
def test_a_decision_has_flops_of_its_own(name: str, policy: str) -> None:
    gate, seen = gate_of(name, policy), observation()
    flops = gate.flops(seen)
    weights = sum(m.weight.numel() for m in [*gate.mlp, gate.head] if isinstance(m, torch.nn.Linear))
    assert flops >= 2 * weights
    assert flops == gate.flops(pick(seen, [0]))
