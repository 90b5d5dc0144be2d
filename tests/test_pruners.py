"""Claims about pruners: what stays is as much as the ratio says, the same in every place that a model is run,
and paid for as it is run."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.config import Config
from pyrskip.cost import Transformer, answer_flops, kv_bytes
from pyrskip.decision import ActionSet, Decision
from pyrskip.errors import UserError
from pyrskip.gated import encode_glance
from pyrskip.models.native import CostConfig, NativeModel
from pyrskip.models.vlm.served import AnswererConfig
from pyrskip.pruners import PRUNERS, KeepingPruner, Prunable, PrunerConfig, build_pruner
from pyrskip.pruners.random import RandomPruner, scrambled
from pyrskip.rollouts.environments import ModelEnvironment, TableEnvironment
from pyrskip.rollouts.rollout import RolloutModule
from tests.models import every_tile, mixed_decisions, tiny_batch, tiny_model

CONFIG = PrunerConfig("random", 0.4)


class MostAlike(KeepingPruner):
    """The tokens that are most like a word of the question."""

    needs = ("text",)

    def keep(self, seen: Prunable) -> Tensor:
        words, mask = seen.beside["text"]
        alike = F.normalize(seen.tokens, dim=-1) @ F.normalize(words, dim=-1).transpose(1, 2)
        return self.highest(alike.masked_fill(~mask[:, None], -1.0).amax(-1), seen)

    def flops(self, tokens: Tensor, words: Tensor, language: Transformer) -> Tensor:
        return 10.0 * language.width * tokens.double()


@pytest.fixture(params=[RandomPruner, MostAlike])
def pruned(native: NativeModel, request: pytest.FixtureRequest) -> Iterator[NativeModel]:
    native.pruner = request.param(CONFIG)
    yield native
    native.pruner = None


def test_as_many_tokens_stay_as_the_ratio_says_in_their_order(pruned: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(pruned, tiny_batch())
    features = pruned.encode(batch, asked > 0)
    before, real, tile_before = pruned.project(batch, features, asked)
    visual, tile = pruned.visual(batch, features, asked)
    for row, of in enumerate(visual.of.tolist()):
        count = int(visual.real[of].sum())
        assert count == -(-int(real[row].sum()) * 2 // 5)
        assert visual.real[of, :count].all()
        place = [
            next(i for i in range(before.shape[1]) if before[row, i].equal(token))
            for token in visual.tokens[of, :count]
        ]
        assert place == sorted(set(place)) and max(place) < int(real[row].sum())
        assert tile[of, :count].equal(tile_before[row, place])


def test_masked_training_is_gathered_inference_behind_a_pruner(pruned: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(pruned, tiny_batch(), 1)
    every, keep = every_tile(pruned, batch), asked > 0
    features = pruned.encode(batch, every > 0)
    masked = pruned.forced(batch, features, asked + every.where(~keep, 0), gates=keep.float())
    with torch.no_grad():
        assert torch.allclose(masked.loglik, pruned.loglik(batch, asked), rtol=0, atol=1e-5)
        pruner, pruned.pruner = pruned.pruner, None
        assert (masked.loglik - pruned.loglik(batch, asked)).abs().max() > 1e-2
        pruned.pruner = pruner


def test_skipped_tiles_have_a_gradient_behind_a_pruner(pruned: NativeModel) -> None:
    batch, every = tiny_batch(), every_tile(pruned, tiny_batch())
    gates = (torch.arange(pruned.pyramid.tiles) == pruned.pyramid.glance).float().repeat(len(batch), 1)
    gates.requires_grad_()
    pruned.forced(batch, pruned.encode(batch, every > 0), every, gates=gates).loglik.sum().backward()
    assert gates.grad is not None and gates.grad[:, : pruned.pyramid.glance].ne(0).any(-1).all()


def test_an_answer_behind_a_pruner_does_not_depend_on_batch_mates(pruned: NativeModel) -> None:
    batch, asked = tiny_batch(), mixed_decisions(pruned, tiny_batch(), 1)
    together, answers = pruned.loglik(batch, asked), pruned.answer(batch, asked)
    for row in range(len(batch)):
        alone = batch.rows([row])
        assert torch.allclose(pruned.loglik(alone, asked[[row]])[0], together[row], rtol=0, atol=1e-5)
        assert pruned.answer(alone, asked[[row]]) == [answers[row]]


def test_the_encoder_is_paid_whole_and_the_language_model_for_what_stays(pruned: NativeModel) -> None:
    batch = tiny_batch()
    size, words = batch.size[batch.image_of], pruned.prompt_tokens(batch)
    realised = pruned.realise(mixed_decisions(pruned, batch), size)
    cost = pruned.cost(realised, size, words)
    tokens = realised.sum(-1)
    stays = -(-tokens * 2 // 5)
    assert cost.tokens.equal(tokens)
    spec = pruned.language.transformer
    assert torch.allclose(cost.kv_bytes, kv_bytes(spec, stays + words + 1), rtol=1e-12)
    own = 10.0 * pruned.language.width * tokens if isinstance(pruned.pruner, MostAlike) else 0.0
    flops = (
        answer_flops(spec, stays, words, 1)
        + pruned.projector.flops_per_token() * tokens
        + ((realised > 0) * pruned.encode_flops(size)).sum(-1)
        + own
    )
    assert torch.allclose(cost.flops, flops, rtol=1e-12)


def test_multiply_adds_count_a_pruners_own_work_half() -> None:
    counted = []
    for unit in ("flops", "macs"):
        model = tiny_model(cost=CostConfig(unit=unit))
        model.pruner = MostAlike(CONFIG)
        size = torch.tensor([[64, 64]])
        realised = model.realise(model.pyramid.capacity(size), size)
        counted.append(float(model.cost(realised, size, torch.tensor([5])).flops))
    assert counted[0] == pytest.approx(2 * counted[1], rel=1e-12)


def test_what_the_model_says_after_the_glance_is_of_a_pruned_glance(pruned: NativeModel) -> None:
    batch = tiny_batch()
    features, size = encode_glance(pruned, batch), batch.size[batch.image_of]
    logits, flops = pruned.first_token(batch, features), pruned.first_token_flops(batch.texts, size)
    pruner, pruned.pruner = pruned.pruner, None
    whole, dear = pruned.first_token(batch, features), pruned.first_token_flops(batch.texts, size)
    pruned.pruner = pruner
    fewer = pruned.realise(pruned._glance(size), size).sum(-1) > 1
    assert fewer.any() and ((logits - whole).abs().amax(-1) > 1e-4).equal(fewer)
    if isinstance(pruner, RandomPruner):
        assert (flops < dear).equal(fewer)


def test_every_token_stays_at_a_ratio_of_1(native: NativeModel) -> None:
    assert build_pruner(PrunerConfig("random", 1.0)) is None and build_pruner(PrunerConfig()) is None
    batch, asked = tiny_batch(), mixed_decisions(native, tiny_batch())
    plain, tile = native.visual(batch, native.encode(batch, asked > 0), asked)
    native.pruner = RandomPruner(PrunerConfig("random", 1.0))
    same, same_tile = native.visual(batch, native.encode(batch, asked > 0), asked)
    native.pruner = None
    assert same.tokens[same.real].equal(plain.tokens[plain.real]) and same.real.equal(plain.real)
    assert same_tile[same.real].equal(tile[plain.real])


def test_a_table_and_the_model_give_the_same_behind_a_pruner() -> None:
    model, batch = tiny_model(), tiny_batch()
    model.pruner = MostAlike(CONFIG)
    actions, whole = ActionSet.by_level(model.pyramid), BudgetRule()
    table = RolloutModule(model, actions, whole, "gate").predict_step(batch, 0)
    assert table is not None
    unit = table.mean_full_flops
    offline = TableEnvironment(table, model.pyramid, whole, unit)
    online = ModelEnvironment(model, actions, whole, unit, ("query", "glance"))
    rows = torch.arange(len(batch))
    assert torch.allclose(online.probabilities(batch), offline.probabilities(rows), rtol=0, atol=1e-5)
    action = rows % len(actions)
    tokens = actions.tokens(every_tile(model, batch), whole)[rows, action]
    decision = Decision(tokens, action)
    assert torch.allclose(online.cost(batch, decision), offline.cost(rows, decision))
    assert online.tokens(batch, decision).equal(offline.tokens(rows, decision))


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
def test_random_tokens_are_spread_and_know_no_padding(count: int) -> None:
    kept = []
    for padded in (count, count + 3):
        real = torch.arange(padded)[None] < count
        seen = Prunable(torch.zeros(1, padded, 4), real, torch.zeros(1, padded, dtype=torch.int64), {})
        kept.append(RandomPruner(PrunerConfig("random", 0.5)).keep(seen)[0])
        assert int(kept[-1].sum()) == -(-count // 2) and not kept[-1][count:].any()
    assert kept[1][:count].equal(kept[0])
    if count == 1000:
        assert all(200 < int(part.sum()) < 300 for part in kept[0].split(500))
        # no rhythm: neighbours agree as often as they differ
        assert 0.45 < float((kept[0][1:] == kept[0][:-1]).float().mean()) < 0.55
    assert len(scrambled(torch.arange(count)).unique()) == count


def test_a_pruner_that_keeps_other_numbers_than_are_paid_for_is_refused() -> None:
    class All(KeepingPruner):
        def keep(self, seen: Prunable) -> Tensor:
            return seen.real

    model, batch = tiny_model(), tiny_batch()
    model.pruner = All(PrunerConfig("random", 0.5))
    with pytest.raises(UserError, match="All.prune leaves .* as many as its stays says, for so many"):
        model.answer(batch, every_tile(model, batch))


@pytest.mark.parametrize(
    ("name", "ratio", "message"),
    [
        ("random", 0.0, "pruner.ratio=0.0: allowed: above 0, at most 1"),
        ("random", 1.5, "pruner.ratio=1.5: allowed"),
        ("none", 0.5, "pruner.ratio=0.5, tokens=0 with pruner.name=none.*allowed: 1 and 0, or .*random"),
        (
            "psychic",
            0.5,
            "pruner.name='psychic' is unknown; allowed: .*none, .*random.*docs/extending-models.md",
        ),
    ],
)
def test_a_pruner_that_cannot_be_is_refused(name: str, ratio: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PrunerConfig(name, ratio)


def test_a_pruner_whose_needs_a_model_lacks_is_refused_with_what_it_has() -> None:
    class Watched(RandomPruner):
        needs = ("text", "tiles", "cls")

    PRUNERS.register("watched", Watched)
    try:
        message = (
            "reads tiles, cls, which model.name=native does not have: it has tokens, attention, salience, "
            "text; allowed: "
        )
        with pytest.raises(UserError, match=message + "none, .*random"):
            Config(pruner=PrunerConfig("watched", 0.5))
    finally:
        del PRUNERS._entries["watched"], PRUNERS._places["watched"]


def test_a_model_behind_a_server_has_no_tokens_to_prune() -> None:
    with pytest.raises(UserError, match="pruner.name=random with model.name=remote, whose visual tokens can"):
        Config(pruner=PrunerConfig("random", 0.5), model=AnswererConfig("remote"))
