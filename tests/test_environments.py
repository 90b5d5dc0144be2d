"""Environments: a rule gets the same from a model as from the table that was rolled out with it."""

import copy
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.cost import Cost
from pyrskip.decision import ActionConfig, ActionSet, Candidates, Decision, blind, reference
from pyrskip.errors import UserError
from pyrskip.gates import build_gate
from pyrskip.gates.gate import GateConfig
from pyrskip.models.native import NativeModel
from pyrskip.observation import Observation
from pyrskip.policies import Relaxed
from pyrskip.policies.bernoulli import BernoulliPolicy
from pyrskip.policies.sampling import multilinear
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.environments import ModelEnvironment, TableEnvironment
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.rollouts.table import OUTSIDE, RolloutTable
from pyrskip.sample import Batch
from pyrskip.signals import SIGNALS
from tests.decisions import of_every_action
from tests.models import mixed_decisions, taught_model, tiny_batch, tiny_model
from tests.tables import synthetic_table

WHOLE = BudgetRule()
NEEDS = ("query", "glance")


def roll_out(model: NativeModel, batches: list[Batch], budget: BudgetRule = WHOLE) -> RolloutTable:
    module = RolloutModule(model, ActionSet.by_level(model.pyramid), budget, "val")
    parts = [module.predict_step(batch, i) for i, batch in enumerate(batches)]
    return RolloutTable.concatenate([part for part in parts if part is not None])


class World:
    """A model that answers some questions under some actions, its table, and both environments."""

    def __init__(self, budget: BudgetRule = WHOLE) -> None:
        batch = tiny_batch()
        # one question that has two accepted answers
        self.batch = replace(
            batch, questions=(*batch.questions[:-1], replace(batch.questions[-1], answers=("no", "yes")))
        )
        self.model = taught_model(self.batch, steps=40, mixed=False)
        self.table = roll_out(self.model, [self.batch], budget)
        self.unit = self.table.mean_full_flops
        self.offline = TableEnvironment(self.table, self.model.pyramid, budget, self.unit)
        self.online = ModelEnvironment(self.model, self.table.actions, budget, self.unit, SIGNALS)
        self.rows = torch.arange(len(self.batch))
        self.capacity = self.model.pyramid.capacity(self.batch.size)[self.batch.image_of]

    def decisions(self, budget: BudgetRule = WHOLE) -> list[Decision]:
        """Of every action."""
        return of_every_action(self.table.actions, self.capacity, budget)


@pytest.fixture(scope="module")
def world() -> World:
    made = World()
    assert 0.2 < made.table.score.mean() < 0.95 and made.table.score.std(1).max() > 0, (
        "scores must differ by action"
    )
    return made


def hard(keep: Tensor, actions: ActionSet) -> Relaxed:
    keep = keep.float()
    return Relaxed(keep, multilinear(keep, actions.selection))


def test_scores_and_costs_are_the_same_online_and_offline(world: World) -> None:
    online, offline, batch, rows = world.online, world.offline, world.batch, world.rows
    for decision in world.decisions():
        assert online.score(batch, decision).equal(offline.score(rows, decision))
        one, other = online.probability(batch, decision), offline.probability(rows, decision)
        assert torch.allclose(one, other, atol=1e-5)
        assert torch.allclose(online.cost(batch, decision), offline.cost(rows, decision), rtol=1e-6)
        assert online.tokens(batch, decision).equal(offline.tokens(rows, decision))
    assert online.scores(batch).equal(offline.scores(rows))
    assert torch.allclose(online.probabilities(batch), offline.probabilities(rows), atol=1e-5)
    full = world.decisions()[world.table.actions.full]
    assert float(world.offline.cost(world.rows, full).mean()) == pytest.approx(1, rel=1e-6)


def test_a_row_has_its_own_decision_and_rows_come_in_any_order(world: World) -> None:
    order = [5, 0, 7, 2]
    action = torch.tensor([0, 3, 1, 2])
    decision = Decision(torch.stack([d.tokens for d in world.decisions()])[action, order], action)
    some, rows = world.batch.rows(order), torch.tensor(order)
    assert world.online.score(some, decision).equal(world.offline.score(rows, decision))
    assert torch.allclose(world.online.cost(some, decision), world.offline.cost(rows, decision), rtol=1e-6)


def flat(seen: Observation) -> dict[str, Tensor]:
    """Every tensor of an observation by name."""
    return {**seen.signals, "capacity": seen.capacity, "cost": seen.cost, "price": seen.price}


def test_the_gate_sees_the_same_online_and_offline(world: World) -> None:
    price = torch.rand(len(world.batch))
    online, offline = world.online.observe(world.batch, price), world.offline.observe(world.rows, price)
    assert online.signals.keys() == offline.signals.keys()
    for name, value in flat(online).items():
        assert flat(offline)[name].dtype == value.dtype
        assert torch.allclose(flat(offline)[name].float(), value.float(), atol=1e-5), name


@pytest.mark.parametrize("budget", [WHOLE, BudgetRule(total=40, floor=2)], ids=["whole", "shared"])
def test_listed_decisions_are_those_of_each_image(
    budget: BudgetRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    size = torch.tensor([[64, 16], [64, 64], [20, 64]]).repeat(4, 1)  # on narrow ones tiles are padding
    table = replace(
        synthetic_table(images=12), size=size, actions=ActionSet.of(pyramid, budget, ActionConfig("tile"))
    )
    rows, price = torch.tensor([5, 0, 35, 2, 0]), torch.zeros(5)
    kept = TableEnvironment(table, pyramid, budget, 1.0).observe(rows, price).candidates
    monkeypatch.setattr("pyrskip.rollouts.environments.KNOWN", 0)
    assert TableEnvironment(table, pyramid, budget, 1.0).observe(rows, price).candidates is None
    expected = Candidates(table.actions.tokens(pyramid.capacity(size)[table.image_of[rows]], budget))
    assert kept is not None
    assert kept.tokens.equal(expected.tokens) and kept.first.equal(expected.first)
    assert (expected.first != torch.arange(len(table.actions))).any(1).tolist() == [
        False,
        True,
        True,
        True,
        True,
    ]


def test_the_gate_sees_the_glance_where_the_image_is(world: World) -> None:
    seen = world.online.observe(world.batch, torch.zeros(len(world.batch)))
    glance, mask = seen["glance"], seen["glance_mask"]
    assert mask.sum((1, 2)).equal(world.capacity[:, -1]) and mask[:, 0, 0].all()
    assert glance.masked_fill(mask[:, None], 0.0).eq(0).all()
    features = world.model.encode(world.batch, world.capacity > 0)
    assert torch.allclose(glance, features.maps[-1][world.batch.image_of], atol=1e-5)
    assert seen.capacity.equal(world.capacity)


def test_to_observe_encodes_the_glance_alone(world: World) -> None:
    before = world.model.vision.encoded
    world.online.observe(
        replace(world.batch), torch.zeros(len(world.batch))
    )  # a batch that was not looked at before
    assert world.model.vision.encoded - before == len(world.batch.image)


def test_what_is_encoded_of_a_batch_piece_by_piece_is_what_would_be_at_once() -> None:
    model, batch = tiny_model((2, 1, 1)), tiny_batch()
    actions = ActionSet.by_level(model.pyramid)
    online = ModelEnvironment(model, actions, WHOLE, 1.0, NEEDS)
    asked = mixed_decisions(model, batch)
    online.observe(batch, torch.zeros(len(batch)))
    for tokens in (asked, asked.roll(1, 0), asked):
        online.score(batch, Decision(tokens))
    every = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    pieces = online.encode(batch, every.long())
    assert model.encoded == int((model.pyramid.capacity(batch.size) > 0).sum())
    at_once = model.encode(batch, every)
    assert pieces.encoded.equal(at_once.encoded)
    for a, b in zip(pieces.maps, at_once.maps, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    # another batch has features of its own
    other = tiny_batch(seed=1)
    assert not torch.allclose(online.encode(other, every.long()).maps[0], at_once.maps[0], atol=1e-2)


def test_a_roll_out_encodes_every_tile_once_for_all_actions() -> None:
    model, batch = tiny_model((2, 1, 1)), tiny_batch()
    roll_out(model, [batch])
    assert model.vision.encoded == int((model.pyramid.capacity(batch.size) > 0).sum())


def test_the_columns_after_the_actions_are_the_reference_and_no_image(world: World) -> None:
    size, words = world.batch.size[world.batch.image_of], world.model.prompt_tokens(world.batch)
    for name, selection in zip(
        OUTSIDE, (reference(world.model.pyramid), blind(world.model.pyramid)), strict=True
    ):
        column, asked = world.table.column(name), world.capacity * selection
        cost = world.model.cost(world.model.realise(asked, size), size, words)
        assert world.table.cost.flops[:, column].equal(cost.flops)
        assert world.table.cost.tokens[:, column].equal(cost.tokens)
        assert world.table.score[:, column].equal(world.online.score(world.batch, Decision(asked)))
        loglik = world.model.loglik(world.batch, asked)
        assert torch.allclose(world.table.probability[:, column], loglik.exp(), atol=1e-5)


def relaxed(environment: Any, rows: Any, sample: Relaxed) -> tuple[Tensor, Tensor]:
    """Score and cost of a straight-through sample: probability online, the metric offline."""
    soft = isinstance(environment, ModelEnvironment)
    score = environment.relaxed(rows, sample, lambda score, cost: score, soft)
    return score, environment.relaxed(rows, sample, lambda score, cost: cost, soft)


def test_relaxed_at_a_selection_is_its_score_and_cost_offline(world: World) -> None:
    for selection, decision in zip(world.table.actions.selection, world.decisions(), strict=True):
        sample = hard(selection.expand(len(world.batch), -1), world.table.actions)
        score, cost = relaxed(world.offline, world.rows, sample)
        assert score.equal(world.offline.score(world.rows, decision))
        assert cost.equal(world.offline.cost(world.rows, decision))


def test_relaxed_at_a_selection_is_its_answers_probability_and_cost_online(world: World) -> None:
    keep = torch.rand(world.capacity.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    keep[:, -1] = True
    score, cost = relaxed(world.online, world.batch, hard(keep, world.table.actions))
    asked = world.capacity * keep
    assert torch.allclose(score, world.model.loglik(world.batch, asked).exp(), atol=1e-5)
    assert cost.equal(world.online.cost(world.batch, Decision(asked)))


def test_relaxed_at_a_selection_is_its_answers_probability_under_a_total_as_well(world: World) -> None:
    budget = BudgetRule(total=24, floor=1)
    online = ModelEnvironment(world.model, world.table.actions, budget, world.unit, NEEDS)
    keep = world.table.actions.selection[1].expand(len(world.batch), -1)
    score, _ = relaxed(online, world.batch, hard(keep, world.table.actions))
    asked = budget.tokens(keep, world.capacity)
    assert torch.allclose(score, world.model.loglik(world.batch, asked).exp(), atol=1e-5)


def test_the_gradient_of_relaxed_is_that_of_the_multilinear_extension(world: World) -> None:
    actions, rows = world.table.actions, world.rows
    keep = torch.rand(len(rows), 3, generator=torch.Generator().manual_seed(1))
    keep[:, -1] = 1.0
    keep.requires_grad_()
    values = relaxed(world.offline, rows, Relaxed(keep, multilinear(keep, actions.selection)))
    for which, value in enumerate(values):
        gradient = torch.autograd.grad(value.sum(), keep, retain_graph=True)[0]
        for tile in range(2):
            # it is linear in each tile: the slope is the difference of its ends
            ends = []
            for end in (0.0, 1.0):
                at = keep.detach().clone()
                at[:, tile] = end
                ends.append(
                    relaxed(world.offline, rows, Relaxed(at, multilinear(at, actions.selection)))[which]
                )
            assert torch.allclose(gradient[:, tile], ends[1] - ends[0], atol=1e-5)
        assert gradient[:, :2].abs().max() > 1e-3


def test_the_gradient_of_relaxed_online_is_that_of_the_answer_and_of_what_a_tile_costs(world: World) -> None:
    keep = torch.tensor([1.0, 0.0, 1.0]).repeat(len(world.batch), 1).requires_grad_()
    toward_cost = torch.autograd.grad(relaxed(world.online, world.batch, Relaxed(keep, None))[1].sum(), keep)[
        0
    ]
    glance = world.online.cost(world.batch, world.decisions()[0])
    for tile, name in ((0, "0"), (1, "1")):
        alone = world.online.cost(world.batch, world.decisions()[world.table.actions.index(name)])
        assert torch.allclose(toward_cost[:, tile], alone - glance, rtol=1e-5)
        assert toward_cost[:, tile].gt(0).all()
    online = copy.deepcopy(world.online)
    online.model.double()
    keep = torch.tensor([0.7, 0.6, 1.0], dtype=torch.float64).repeat(len(world.batch), 1).requires_grad_()
    toward_score = torch.autograd.grad(relaxed(online, world.batch, Relaxed(keep, None))[0].sum(), keep)[0]
    assert toward_score.abs().max() > 1e-2
    with torch.no_grad():
        for tile in range(2):
            step = 1e-4
            moves = []
            for k in (1, -1, 2, -2):
                at = keep.detach().clone()
                at[:, tile] += k * step
                moves.append(relaxed(online, world.batch, Relaxed(at, None))[0])
            slope = (8 * (moves[0] - moves[1]) - (moves[2] - moves[3])) / (12 * step)
            # rounding of 1e-15 over the step, and the step's fourth power
            assert torch.allclose(toward_score[:, tile], slope, rtol=1e-5, atol=1e-7)


def test_tiles_of_a_level_can_be_gated_online_and_not_by_a_table() -> None:
    model, batch = tiny_model((2, 1, 1)), tiny_batch()
    table = roll_out(model, [batch])
    online = ModelEnvironment(model, table.actions, WHOLE, table.mean_full_flops, NEEDS)
    offline = TableEnvironment(table, model.pyramid, WHOLE, table.mean_full_flops)
    gate = build_gate(GateConfig(name="joint", policy="bernoulli"), online.layout)
    sample = gate.policy(online.observe(batch, torch.zeros(len(batch)))).rsample(1.0)
    score, cost = relaxed(online, batch, sample)
    assert score.isfinite().all() and cost.gt(0).all()
    with pytest.raises(UserError, match=r"gate\.policy=bernoulli.*allowed: rule\.online=true"):
        relaxed(offline, torch.arange(len(batch)), sample)
    capacity = model.pyramid.capacity(batch.size)[batch.image_of]
    tile_by_tile = BernoulliPolicy(torch.zeros(capacity.shape), capacity, table.actions, WHOLE).sample()
    with pytest.raises(UserError, match="none of the rollout table's actions"):
        offline.score(torch.arange(len(batch)), tile_by_tile)


def test_what_a_budget_asks_for_an_action_keeps_its_tiles(world: World) -> None:
    """However small the total, a kept tile, the glance too, gets a token."""
    for action, decision in enumerate(world.decisions(BudgetRule(total=4, floor=1))):
        kept = world.table.actions.selection[action]
        assert decision.selection.equal(kept & (world.capacity > 0)) and (decision.tokens[:, -1] > 0).all()


def same(a: RolloutTable, b: RolloutTable) -> bool:
    for field in fields(RolloutTable):
        one, other = getattr(a, field.name), getattr(b, field.name)
        if isinstance(one, Tensor):
            equal = one.dtype == other.dtype and one.equal(other)
        elif isinstance(one, Cost):
            equal = all(getattr(one, n).equal(getattr(other, n)) for n in ("tokens", "flops", "kv_bytes"))
        elif isinstance(one, ActionSet):
            equal = one.names == other.names and one.selection.equal(other.selection)
        elif field.name == "signals":
            equal = {per: of.keys() for per, of in one.items()} == {
                per: of.keys() for per, of in other.items()
            }
            equal = equal and all(one[per][name].equal(other[per][name]) for per in one for name in one[per])
        else:
            equal = one == other
        if not equal:
            return False
    return True


def test_a_saved_table_comes_back_the_same(world: World, tmp_path: Path) -> None:
    world.table.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"table.safetensors", "table.json"}
    assert same(RolloutTable.load(tmp_path), world.table)


def test_a_table_of_parts_is_the_table_of_the_whole(world: World) -> None:
    # images 0 and 1, then 2, then 3 and 4; the parts' longest questions differ and so do their texts
    parts = [world.batch.rows(list(rows)) for rows in (range(3), range(3, 6), range(6, 9))]
    joined = roll_out(world.model, parts)
    assert joined.score.equal(world.table.score)
    assert torch.allclose(joined.probability, world.table.probability, atol=1e-5)
    assert joined.cost.flops.equal(world.table.cost.flops)
    assert joined.image_of.equal(world.table.image_of) and joined.image_keys == world.table.image_keys
    assert joined.keys == world.table.keys and joined.types == world.table.types
    assert len(joined.texts) == len(set(joined.texts)) and set(joined.texts) == set(world.table.texts)
    ours = TableEnvironment(joined, world.model.pyramid, WHOLE, world.unit).observe(
        world.rows, torch.ones(len(world.rows))
    )
    theirs = world.offline.observe(world.rows, torch.ones(len(world.rows)))
    # what stands in the place of padding words is nobody's
    for name, value in flat(theirs).items():
        words = theirs["query_mask"][..., None] if name == "query" else torch.tensor(True)
        assert torch.allclose((flat(ours)[name] * words).float(), (value * words).float(), atol=1e-5), name


def test_similarity_is_a_cosine_and_lowest_where_a_tile_has_no_token() -> None:
    model, batch = tiny_model((2, 1, 1)), tiny_batch()
    similarity = roll_out(model, [batch]).similarity
    empty = model.pyramid.capacity(batch.size)[batch.image_of] == 0
    assert similarity.shape == empty.shape and similarity.abs().max() <= 1 + 1e-6
    assert similarity[empty].eq(-1).all() and similarity[~empty].gt(-1).all()


@pytest.mark.parametrize("name", ["table.safetensors", "table.json"])
def test_a_broken_table_is_refused(world: World, name: str, tmp_path: Path) -> None:
    world.table.save(tmp_path)
    content = (tmp_path / name).read_bytes()
    for broken in (content[: len(content) // 2], b""):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(
            UserError, match="holds no rollout table that can be read.*run the rollouts stage"
        ):
            RolloutTable.load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match="holds no rollout table that can be read"):
        RolloutTable.load(tmp_path)


@pytest.mark.parametrize("key", ["split", "types"])
def test_a_table_that_lacks_a_list_is_refused(world: World, key: str, tmp_path: Path) -> None:
    world.table.save(tmp_path)
    lists = json.loads((tmp_path / "table.json").read_text())
    del lists[key]
    (tmp_path / "table.json").write_text(json.dumps(lists))
    with pytest.raises(UserError, match="holds no rollout table"):
        RolloutTable.load(tmp_path)


def test_a_table_that_cannot_be_written_is_a_sentence(world: World, tmp_path: Path) -> None:
    (tmp_path / "table.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(UserError, match="cannot be written"):
        world.table.save(tmp_path)
