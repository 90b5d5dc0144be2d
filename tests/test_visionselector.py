"""The pruner that learns: its soft choice is exact, so is its loss, and a run trains it before it prunes."""

from dataclasses import replace
from math import log, sqrt
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.models.native import NativeModel
from pyrskip.pruners import Prunable
from pyrskip.pruners.visionselector import Scorer, SelectorConfig, SoftTopK, VisionSelector
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages import run_stages
from pyrskip.stages.model import model_of
from pyrskip.stages.run import Run
from pyrskip.training.selector import SelectorModule, SoftSelection
from tests.configs import tiny
from tests.models import tiny_batch, tiny_model


def soft(score: Tensor, count: list[int], real: Tensor | None = None) -> Tensor:
    real = torch.ones_like(score, dtype=torch.bool) if real is None else real
    chosen: Tensor = SoftTopK.apply(score.double(), real, torch.tensor(count))
    return chosen


def random_scores(rows: int = 4, tokens: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    score = 3 * torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    return score, torch.arange(tokens) < torch.tensor([[9], [5], [7], [3]])[:rows]


def test_soft_choices_are_what_sums_to_the_count() -> None:
    assert soft(torch.zeros(1, 4), [1]).tolist() == [pytest.approx([0.25] * 4)]
    # 1 / (1 + e^-t) + 3 / (3 + e^-t) = 1 where e^-t is the root of 3
    high = sqrt(3) / (1 + sqrt(3))
    assert soft(torch.tensor([[0.0, log(3)]]), [1]).tolist() == [pytest.approx([1 - high, high])]
    score, real = random_scores()
    chosen = soft(score, [3, 2, 4, 1], real)
    assert chosen.sum(-1).tolist() == pytest.approx([3, 2, 4, 1], abs=1e-9)
    assert not chosen[~real].any()


def test_all_that_is_there_is_chosen_where_all_may_stay() -> None:
    score, real = random_scores()
    assert torch.allclose(soft(score, [9, 5, 7, 3], real), real.double(), atol=1e-6)


def test_a_soft_choices_gradient_is_its_derivative() -> None:
    score, real = random_scores()
    count = torch.tensor([3, 2, 4, 1])
    assert torch.autograd.gradcheck(
        lambda s: SoftTopK.apply(s, real, count), (score.requires_grad_(),), atol=1e-6
    )


def test_a_soft_choice_depends_on_its_row_alone() -> None:
    score, real = random_scores()
    together = soft(score, [3, 2, 4, 1], real)
    assert torch.allclose(soft(score[1:2, :5], [2])[0], together[1, :5], atol=1e-12)


def test_a_token_is_scored_by_what_its_query_says_to_the_mean_of_keys() -> None:
    scorer = Scorer(2)
    scorer.query.data, scorer.key.data = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    # queries 1 and 3, keys 2 and 4, whose mean is 3
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    assert scorer(tokens, torch.tensor([[True, True, False]]))[0, :2].tolist() == [3.0, 9.0]


def test_scores_are_those_of_the_full_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    scorer, tokens = Scorer(8), torch.randn(1, 5, 8, generator=generator, dtype=torch.float64)
    for weight in scorer.parameters():
        weight.data = torch.randn(8, 4, generator=generator)
    q, k = tokens[0] @ scorer.query.double(), tokens[0] @ scorer.key.double()
    full = (q @ k.T).mean(-1) / sqrt(4)
    found = scorer(tokens, torch.ones(1, 5, dtype=torch.bool))[0]
    assert torch.allclose(found, full)
    pruner = VisionSelector(SelectorConfig("visionselector", 0.5), scorer)
    seen = Prunable(tokens, torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.int64), {})
    assert pruner.keep(seen)[0].nonzero()[:, 0].tolist() == sorted(full.topk(3).indices.tolist())


def module(steps: int = 10, **given: float) -> SelectorModule:
    model = tiny_model()
    config = SelectorConfig("visionselector", steps=steps, **given)  # type: ignore[arg-type]
    return SelectorModule(config, model, ActionSet.by_level(model.pyramid), BudgetRule())


def test_a_step_is_the_answers_loss_behind_soft_tokens_and_the_gap_to_hard_ones() -> None:
    training, batch = module(), tiny_batch((2, 1))
    training.on_train_batch_start(batch, 3)
    loss = training.training_step(batch, 3)
    loss.backward()  # type: ignore[no-untyped-call]
    model = training.model
    assert isinstance(model.pruner, SoftSelection) and model.pruner.config.ratio == 0.2
    capacity = model.pyramid.capacity(batch.size)[batch.image_of]
    actions = ActionSet.by_level(model.pyramid).tokens(capacity, BudgetRule()).unbind(1)
    alike = [torch.allclose(_expected(training, asked, 3), loss.double(), rtol=1e-5) for asked in actions]
    assert alike.count(True) == 1
    gradients = [weight.grad for weight in training.scorer.parameters()]
    assert all(of is not None and of.abs().max() > 0 for of in gradients)
    assert all(weight.grad is None for weight in model.parameters())


def _expected(training: SelectorModule, asked: Tensor, step: int) -> Tensor:
    """The loss of a step of ten under a decision, token by token."""
    model, batch = training.model, tiny_batch((2, 1))
    with torch.no_grad():
        features = model.encode(batch, asked > 0)
        model.pruner = None
        visual, _ = model.visual(batch, features, asked)
        gaps = []

        def by_hand(tokens: Tensor, real: Tensor) -> Tensor:
            scaled = tokens.clone()
            for row, count in enumerate(real.sum(-1).tolist()):
                score = training.scorer(tokens[row : row + 1, :count], real[row : row + 1, :count])
                stays = -int(-(count * 0.2 - 1e-6) // 1)
                chosen = soft(score, [stays])[0]
                hard = torch.zeros(count, dtype=torch.float64)
                hard[score[0].argsort(descending=True, stable=True)[:stays]] = 1.0
                gaps.append(F.binary_cross_entropy(chosen, hard, reduction="none"))
                scaled[row, :count] = tokens[row, :count] * chosen[:, None].float()
            return scaled

        ids, mask = model.language.tokenize_answers([q.answers[0] for q in batch.questions])
        seen = replace(visual, tokens=by_hand(visual.tokens, visual.real))
        logits = model.language.logits(seen, None, model.language.tokenize(batch.texts), ids)
        miss = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        pull = 0.1 + (2.0 - 0.1) * step / 9
        return (miss * mask).sum(-1).mean().double() + pull * torch.cat(gaps).mean()


def test_a_scorer_learns_which_tokens_are_of_use() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(64, 12, 8, generator=generator) + torch.tensor([0.0, 1.0] + [0.0] * 6)
    real = torch.ones(64, 12, dtype=torch.bool)
    use, scorer = tokens[..., 0].double(), Scorer(8)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=0.02)
    for _ in range(150):
        chosen: Tensor = SoftTopK.apply(scorer(tokens, real), real, torch.full((64,), 3))
        optimizer.zero_grad()
        (-(chosen * use).sum(-1).mean()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    pruner = VisionSelector(SelectorConfig("visionselector", 0.25), scorer)
    kept = pruner.keep(Prunable(tokens, real, torch.zeros(64, 12, dtype=torch.int64), {}))
    best = use.topk(3, dim=-1).values.sum(-1).mean()
    assert float((use * kept).sum(-1).mean() / best) > 0.95


def test_the_model_stays_as_it_is_while_the_scorer_learns() -> None:
    training = module()
    training.train()
    assert not training.model.training and not training.model.projector.training
    trained = {name for name, weight in training.named_parameters() if weight.requires_grad}
    assert trained == {"scorer.query", "scorer.key"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budget": 1.0}, "pruner.budget=1.0: allowed: above 0 and below 1"),
        ({"steps": 0}, "pruner.steps=0"),
        ({"pull": -1.0}, r"pull=-1.0: allowed: at least 1, above 0, at least 0 and at least 0"),
    ],
)
def test_a_training_that_cannot_be_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SelectorConfig("visionselector", **given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_trains_its_pruner_before_it_rolls_out(finished_run: Path, tmp_path: Path) -> None:
    given = (
        f"from={finished_run}",
        "stages=[pruner,rollouts]",
        "name=selector",
        "pruner.name=visionselector",
        "pruner.ratio=0.5",
        "+pruner.steps=2",
    )
    config = tiny(tmp_path, *given)
    root = run_stages(config, {})
    table = RolloutTable.load(root / "rollouts/test")
    assert table.origin["pruner"].startswith("visionselector 0.5 steps=2 ")
    model = model_of(Run(config, {}))
    assert isinstance(model, NativeModel) and isinstance(model.pruner, VisionSelector)
    scorer = model.pruner.scorer
    assert scorer is not None and not scorer.query.equal(Scorer(len(scorer.query)).query)
    # what is done is not done again, and what was learned otherwise is another run's
    assert run_stages(config, {}) == root
    with pytest.raises(UserError, match=r"selector/pruner was made with visionselector.steps=2"):
        run_stages(tiny(tmp_path, *given[:-1], "+pruner.steps=3"), {})


@pytest.mark.slow
def test_a_run_is_held_against_a_pruner_that_learned(finished_run: Path, tmp_path: Path) -> None:
    given = (f"from={finished_run}", "stages=[pruner,peers,gate,frontier]", "name=held")
    root = run_stages(tiny(tmp_path, *given, "peers.pruners=[visionselector]", "peers.ratios=[0.5]"), {})
    assert (root / "pruner/scorer.safetensors").exists()
    assert RolloutTable.load(root / "peers/visionselector-0.5/test").origin["pruner"].count(" ") == 2
