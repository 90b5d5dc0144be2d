"""Arithmetic of every registered policy, and of one from outside: in float32 under autocast, and without the
products of integer matrices that GPUs refuse.

B = 3 rows, T = 3 tiles. Each policy is made from a gate's outputs, as in training.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet, Candidates
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.gates.heuristics import nearest
from pyrskip.observation import Layout, Observation
from pyrskip.policies import POLICIES, Policy
from pyrskip.policies.categorical import CategoricalPolicy
from pyrskip.policies.policy import Deciding, listed
from pyrskip.policies.sequential import SequentialPolicy
from pyrskip.pyramid import Pyramid

PYRAMID, LADDER = Pyramid(64, 3, 8), (0, 64, 256)
SIZE = torch.tensor([[64, 64], [40, 64], [7, 64]])
CHANNELS, WIDTH, MOST = 5, 16, 30
SIGNALS = {"query": (None, 8), "query_mask": (None,), "glance": (CHANNELS, 2, 2), "glance_mask": (2, 2)}


class Mixed(CategoricalPolicy):
    """A policy of another package: products of matrices in every kind of member."""

    @staticmethod
    def mix(value: Tensor) -> Tensor:
        width = value.shape[-1]
        return value @ torch.linspace(-1, 1, width * width).view(width, width)

    @classmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "Mixed":
        return cls(cls.mix(outputs), listed(seen, gate.layout), gate.layout.actions)

    @cached_property
    def scaled(self) -> Tensor:
        return self.mix(self.logit)

    @property
    def probs(self) -> Tensor:
        return self.scaled.softmax(-1)


@dataclass(frozen=True)
class Kind:
    """policy: a registered name, and its options."""

    policy: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        return "-".join((self.policy, *(name for name, _ in self.options)))


LOOKING = [Kind(policy, (("looks", True),)) for policy in ("sequential", "quadtree")]
KINDS = [Kind(name) for name in [*POLICIES, "mixed"]] + LOOKING
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture(autouse=True)
def mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(POLICIES, "_entries", {**POLICIES, "mixed": Mixed})


def world(kind: Kind) -> tuple[Gate, Observation]:
    """A gate with random weights, over rungs where its policy knows them."""
    torch.manual_seed(0)
    budget = BudgetRule() if POLICIES[kind.policy].per_tile else BudgetRule(rungs=LADDER)
    actions, capacity = ActionSet.of(PYRAMID, budget), PYRAMID.capacity(SIZE)
    config = GateConfig(policy=kind.policy, width=WIDTH, **dict(kind.options))
    gate = build_gate(config, Layout(SIGNALS, PYRAMID.tiles, actions, budget, PYRAMID.grid)).eval()
    torch.nn.init.normal_(gate.head.weight)
    if gate.kind.episodic:
        torch.nn.init.normal_(gate.head.get_submodule("steps.out").weight)
    gate.tilt.fill_(0.3)
    rows = len(SIZE)
    features = 3 * torch.randn(PYRAMID.tiles, CHANNELS)
    signals = {
        "query": torch.randn(rows, 4, 8),
        "query_mask": torch.ones(rows, 4, dtype=torch.bool),
        "glance": torch.randn(rows, CHANNELS, 2, 2),
        "glance_mask": torch.ones(rows, 2, 2, dtype=torch.bool),
    }
    cost = actions.tokens(capacity, budget).sum(-1) / 84
    price = torch.rand(rows)
    # every level is one tile, which shows the next finer one all of itself
    return gate, Observation(
        signals,
        capacity,
        cost,
        price,
        lambda tile, keep: features[tile] * keep[:, None],
        lambda level, keep: features[level] * keep[..., None],
    )


def everything(kind: Kind, during: AbstractContextManager[Any]) -> Iterator[tuple[str, Tensor]]:
    """All that a policy computes, within a context, by name."""
    gate, seen = world(kind)
    with torch.no_grad(), during:
        policy: Policy = gate.policy(seen)
        torch.manual_seed(1)
        sample, mode, limited = policy.sample(), policy.mode(), policy.mode(MOST)
        for name, decision in (("sample", sample), ("mode", mode), ("limited", limited)):
            assert decision.action is not None
            yield f"{name}.tokens", decision.tokens
            yield f"{name}.action", decision.action
        yield "log_prob", policy.log_prob(sample)
        torch.manual_seed(2)
        yield "entropy", policy.entropy()
        yield "marginals", policy.marginals()
        if policy.probs is not None:
            yield "probs", policy.probs
            torch.manual_seed(3)
            relaxed = policy.rsample(0.7)
            yield "keep", relaxed.keep
            if relaxed.weight is not None:
                yield "weight", relaxed.weight
        for name in ("logit", "choice", "scaled", "context"):
            if hasattr(policy, name):
                yield name, getattr(policy, name)
        if isinstance(policy, SequentialPolicy):
            steps = policy.steps(sample)
            yield from ((f"steps.{name}", value) for name, value in vars(steps).items())


@kinds
def test_a_policy_computes_the_same_under_autocast(kind: Kind) -> None:
    plain = dict(everything(kind, nullcontext()))
    under = dict(everything(kind, torch.autocast("cpu", torch.bfloat16)))
    assert plain.keys() == under.keys() and len(plain) >= 9
    for name, value in plain.items():
        assert under[name].dtype == value.dtype != torch.bfloat16, name
        assert under[name].equal(value), name


@kinds
def test_the_gradient_of_a_policy_is_the_same_under_autocast(kind: Kind) -> None:
    found = []
    for during in (nullcontext(), torch.autocast("cpu", torch.bfloat16)):
        gate, seen = world(kind)
        with during:
            policy = gate.policy(seen)
            torch.manual_seed(1)
            loss = policy.log_prob(policy.mode()).sum() + policy.entropy().sum()
        loss.backward()
        found.append([p.grad for p in gate.parameters() if p.grad is not None])
    assert found[0] and all(one.equal(other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_autocast_of_any_device_is_off_within_a_policy_and_on_behind_it(device: str) -> None:
    class Watched(Mixed):
        def under(self) -> bool:
            return torch.is_autocast_enabled(device)

    watched = Watched(
        torch.zeros(1, 2), Candidates(torch.tensor([[[0, 1], [1, 1]]])), ActionSet.by_level(PYRAMID)
    )
    torch.set_autocast_enabled(device, True)
    try:
        assert not watched.under() and torch.is_autocast_enabled(device)
    finally:
        torch.set_autocast_enabled(device, False)


class NoIntegerProducts(TorchDispatchMode):
    """Refuses what CUDA has no kernel for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("mm", "mv", "bmm", "dot", "addmm", "addmv", "baddbmm"):
            kinds = {value.dtype for value in args if isinstance(value, Tensor)}
            if not all(kind.is_floating_point for kind in kinds):
                raise NotImplementedError(f"{func} of {kinds}")
        return func(*args, **(kwargs or {}))


def test_the_guard_against_integer_products_sees_them() -> None:
    matrix = torch.ones(2, 2, dtype=torch.int64)
    for product in (lambda: matrix @ matrix, lambda: matrix @ matrix[0], lambda: matrix[0] @ matrix[0]):
        with pytest.raises(NotImplementedError, match=r"int64"), NoIntegerProducts():
            product()


@kinds
def test_no_policy_multiplies_integer_matrices(kind: Kind) -> None:
    assert dict(everything(kind, NoIntegerProducts()))


@pytest.mark.parametrize("budget", [BudgetRule(), BudgetRule(rungs=LADDER)], ids=["levels", "rungs"])
def test_no_action_set_multiplies_integer_matrices(budget: BudgetRule) -> None:
    actions, capacity = ActionSet.of(PYRAMID, budget), PYRAMID.capacity(SIZE)
    with NoIntegerProducts():
        assert actions.complete
        numbers = actions.number(actions.steps[:, :-1])
        candidates = Candidates(actions.tokens(capacity, budget))
        candidates.take(torch.zeros(len(SIZE), dtype=torch.int64))
        if budget.rungs:
            picked = nearest(candidates.tokens[0], PYRAMID, actions)
            assert picked.equal(torch.arange(len(actions)))
    assert numbers is not None and numbers.equal(torch.arange(len(actions)))
    some = replace(actions, selection=actions.selection[1:], names=actions.names[1:], rung=None, ladder=())
    assert not some.complete and some.number(some.steps[:, :-1]) is None
