"""Claims about the quadtree that looks: each level is decided on in view of what coarser kept tiles show.

Every claim about chances is held against an enumeration of all selections. T tiles: 4 of level 0, 4 or 1 of
level 1, and the glance; of the second row some are padding.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pyrskip.answering import answer
from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, ActionSet, Decision
from pyrskip.errors import UserError
from pyrskip.gated import Gated
from pyrskip.gates import build_gate, load_gate, save_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.models.native import NativeModel
from pyrskip.observation import Layout, RevealLevel
from pyrskip.policies.descent import DescentPolicy, LevelHead
from pyrskip.policies.nested import levels_of, under
from pyrskip.pyramid import Pyramid
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import ModelEnvironment, TableEnvironment
from pyrskip.training.rules import RULES, rule_config
from tests.models import tiny_batch, tiny_model
from tests.toys import toy_module, toy_table, train_by_lightning

GRIDS = ((2, 2, 1), (2, 1, 1))
SIZE = torch.tensor([[64, 64], [64, 23]])
CHANNELS, WIDTH = 5, 8
every = pytest.mark.parametrize(("grid", "row"), list(product(GRIDS, (0, 1))))


def revealing(shown: Tensor, grid: tuple[int, ...], asked: list[Tensor] | None = None) -> RevealLevel:
    """shown [T, C] or [B, T, C]: what the tile above each shows at its place; asked: is given what was looked
    at."""

    def reveal(level: int, keep: Tensor) -> Tensor:
        if asked is not None:
            asked.append(keep)
        below = shown[..., levels_of(grid) == level - 1, :]
        return below * under(keep, grid[level], grid[level - 1])[..., None]

    return reveal


def parts(grid: tuple[int, ...], seed: int = 0) -> tuple[LevelHead, Tensor, Tensor, Layout]:
    """A head with random weights, the state of one row, what tiles show, and the layout."""
    torch.manual_seed(seed)
    pyramid = Pyramid(64, 3, 8, grid)
    layout = Layout(
        {"glance": (CHANNELS, 2, 2)}, pyramid.tiles, ActionSet.by_level(pyramid), BudgetRule(), grid
    )
    head = LevelHead(GateConfig(policy="quadtree", width=WIDTH, looks=True, open_bias=0.3), layout)
    torch.nn.init.normal_(head.out.weight)
    state, shown = torch.randn(1, pyramid.tiles, WIDTH), 2 * torch.randn(pyramid.tiles, CHANNELS)
    return head, state, shown, layout


def policy_of(
    grid: tuple[int, ...] = (2, 2, 1), row: int = 0, rows: int = 1, seed: int = 0, asked: Any = None
) -> DescentPolicy:
    """Random, the same in every row."""
    head, state, shown, layout = parts(grid, seed)
    capacity = Pyramid(64, 3, 8, grid).capacity(SIZE)[row].expand(rows, -1)
    reveal = revealing(shown, grid, asked)
    state = state.expand(rows, -1, -1)
    return DescentPolicy(head, state, reveal, grid, capacity, layout.actions, layout.budget)


def selections(grid: tuple[int, ...], row: int) -> Tensor:
    """Every selection of a row's real tiles that holds the glance, [K, T] bool."""
    capacity = Pyramid(64, 3, 8, grid).capacity(SIZE)[row, :-1]
    return torch.tensor(
        [[*on, True] for on in product(*((False, True) if c else (False,) for c in capacity))]
    )


def decision_of(kept: Tensor, grid: tuple[int, ...], row: int) -> Decision:
    return Decision(kept * Pyramid(64, 3, 8, grid).capacity(SIZE)[row])


def log_probs(grid: tuple[int, ...], row: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Every selection and its log-probability, [K, T] and [K] float64."""
    kept = selections(grid, row)
    policy = policy_of(grid, row, len(kept), seed)
    return kept, policy.log_prob(decision_of(kept, grid, row)).detach().double()


def by_hand(kept: Tensor, grid: tuple[int, ...], row: int) -> float:
    """Log-probability of one selection [T], tile by tile."""
    head, state, shown, _ = parts(grid)
    capacity = Pyramid(64, 3, 8, grid).capacity(SIZE)[row]
    coarse, total, seen = grid[1], 0.0, []
    above_of = {t: 8 if grid[1] == 2 else 5 for t in range(4, len(kept) - 1)}
    above_of |= {t: 4 + (t if coarse == 2 else 0) for t in range(4)}
    for tiles in (range(4, len(kept) - 1), range(4)):
        asked = [t for t in tiles if capacity[t] and kept[above_of[t]]]
        seen += [shown[t] for t in asked]
        for t in asked:
            mean = torch.stack(seen).mean(0)
            read = state[0, t] + head.above.weight @ head.norm(shown[t]) + head.kept.weight @ head.norm(mean)
            logit = head.out.weight[0] @ F.gelu(read) + head.start[t]
            total += float(F.logsigmoid(logit if kept[t] else -logit).detach())
        if any(kept[t] and t not in asked for t in tiles):
            return float("-inf")
    return total


@every
def test_a_selection_is_as_likely_as_its_steps_and_all_sum_to_one(grid: tuple[int, ...], row: int) -> None:
    kept, log_prob = log_probs(grid, row)
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-5)
    wanted = torch.tensor([by_hand(of, grid, row) for of in kept[::3]])
    torch.testing.assert_close(log_prob[::3].float(), wanted, atol=1e-5, rtol=1e-5)
    assert log_prob.isinf().any() and log_prob[log_prob.isfinite()].std() > 0.3


def test_padding_and_a_selection_without_the_glance_are_never_taken() -> None:
    policy = policy_of(row=1)
    for tile in (1, 8):
        selection = policy.mode().selection
        selection[:, tile] ^= True
        assert policy.log_prob(Decision(selection.long())).eq(-float("inf")).all()


@every
def test_samples_are_as_likely_as_they_are_said_to_be(grid: tuple[int, ...], row: int) -> None:
    kept, log_prob = log_probs(grid, row)
    place, count = 2 ** torch.arange(kept.shape[1]), 20_000
    with torch.no_grad():
        drawn = policy_of(grid, row, count).sample().selection
    found = torch.bincount((drawn * place).sum(-1), minlength=2 ** len(place))[(kept * place).sum(-1)] / count
    chance = log_prob.exp()
    assert float(found.sum()) == pytest.approx(1)
    assert ((found - chance).abs() <= 4.5 * (chance * (1 - chance) / count).sqrt() + 1e-4).all()


@every
def test_entropy_along_episodes_is_right_on_average(grid: tuple[int, ...], row: int) -> None:
    kept, log_prob = log_probs(grid, row)
    chance = log_prob.exp()
    found = policy_of(grid, row, len(kept)).along(decision_of(kept, grid, row))
    p = found.logit.sigmoid().double()
    along = -((p * p.log() + (1 - p) * (-p).log1p()) * found.asked).sum(-1)
    possible = chance > 0
    wanted = -(chance[possible] * log_prob[possible]).sum()
    assert float((chance * along).sum()) == pytest.approx(float(wanted), abs=1e-5)
    torch.manual_seed(0)
    with torch.no_grad():
        drawn = policy_of(grid, row, 20_000).entropy().double()
    assert abs(float(drawn.mean() - wanted)) < 4 * float(drawn.std()) / 20_000**0.5 + 1e-4


def test_the_score_functions_mean_is_the_gradient_of_the_mean_reward() -> None:
    grid, row = (2, 1, 1), 0
    kept = selections(grid, row)
    reward = torch.randn(len(kept), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    policy = policy_of(grid, row, len(kept))
    decided = decision_of(kept, grid, row)

    def mean() -> float:
        with torch.no_grad():
            return float((policy.log_prob(decided).double().exp() * reward).sum())

    log_prob = policy.log_prob(decided)
    taken = log_prob.isfinite()
    chance = log_prob.detach().double().exp()
    estimate = (chance * reward * log_prob.where(taken, 0.0)).sum()
    for weight in (
        policy.head.above.weight,
        policy.head.kept.weight,
        policy.head.out.weight,
        policy.head.start,
    ):
        (gradient,) = torch.autograd.grad(estimate, weight, retain_graph=True)
        place = int(gradient.abs().argmax())
        flat = weight.data.view(-1)
        ends, step = [], 3e-3
        for move in (step, -2 * step):
            flat[place] += move
            ends.append(mean())
        flat[place] += step
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope) > 1e-2 and float(gradient.view(-1)[place]) == pytest.approx(slope, rel=2e-2)


@every
def test_the_mode_is_the_likeliest_choice_of_each_level_in_turn(grid: tuple[int, ...], row: int) -> None:
    for seed in range(8):
        kept, log_prob = log_probs(grid, row, seed)
        chance = log_prob.exp()
        for tiles in (slice(4, None), slice(0, 4)):
            sets, of = torch.unique(kept[:, tiles], dim=0, return_inverse=True)
            best = torch.zeros(len(sets), dtype=torch.float64).index_add(0, of, chance).argmax()
            chance = chance.where(of == best, 0.0)
        assert policy_of(grid, row, seed=seed).mode().selection[0].equal(kept[chance.argmax()])


@pytest.mark.parametrize("most", [1, 3, 4, 8, 12, 20, 30, 36, 60])
def test_a_mode_under_a_limit_never_exceeds_it_and_looks_at_what_it_keeps_alone(most: int) -> None:
    for seed, grid in product(range(6), GRIDS):
        asked = list[Tensor]()
        policy = policy_of(grid, seed=seed, asked=asked)
        free, limited = policy.mode(), policy.mode(most)
        del asked[:2]
        assert 1 <= int(limited.tokens.sum()) <= most and int(limited.tokens[0, -1]) >= 1
        if int(free.tokens.sum()) <= most:
            assert limited.tokens.equal(free.tokens)
        assert policy.log_prob(limited).isfinite().all()
        assert asked[1].equal(limited.selection[:, 4:-1])
        # of the coarser level the likeliest stay
        logit, gone = policy.along(limited).logit[0, 4:-1], (free.selection & ~limited.selection)[0, 4:-1]
        stay = limited.selection[0, 4:-1]
        assert not gone.any() or not stay.any() or logit[stay].min() >= logit[gone].max()


def test_each_row_has_a_limit_of_its_own() -> None:
    limit = torch.tensor([4, 12, 30, 500])
    together = policy_of(rows=4).mode(limit)
    for row, most in enumerate(limit.tolist()):
        assert together.tokens[row].equal(policy_of().mode(most).tokens[0])


@pytest.mark.parametrize("most", [None, 12, 30])
def test_log_odds_that_move_by_less_than_the_margin_keep_the_same_tiles(most: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    for seed in range(8):
        policy = policy_of(seed=seed)
        mode = policy.mode(most)
        margin = float(policy.margin(mode, most))
        assert margin > 0
        start = policy.head.start.data.clone()
        for _ in range(5):
            move = (torch.rand(9, generator=generator) - 0.5) * min(margin, 3.0) * 0.999
            policy.head.start.data.copy_(start + move)
            assert policy.mode(most).tokens.equal(mode.tokens)
            policy.head.start.data.copy_(start)


def test_a_row_is_decided_on_as_if_it_were_alone() -> None:
    grid = (2, 2, 1)
    head, _, _, layout = parts(grid)
    torch.manual_seed(3)
    state, shown = torch.randn(6, 9, WIDTH), torch.randn(6, 9, CHANNELS)
    capacity = Pyramid(64, 3, 8, grid).capacity(SIZE)[torch.arange(6) % 2]

    def of(rows: slice) -> DescentPolicy:
        reveal = revealing(shown[rows], grid)
        return DescentPolicy(head, state[rows], reveal, grid, capacity[rows], layout.actions, layout.budget)

    whole = of(slice(None))
    sample, mode, limited = whole.sample(), whole.mode(), whole.mode(20)
    assert len(torch.unique(mode.selection, dim=0)) > 2
    for row in range(6):
        alone = of(slice(row, row + 1))
        assert alone.mode().tokens[0].equal(mode.tokens[row])
        assert alone.mode(20).tokens[0].equal(limited.tokens[row])
        own = alone.log_prob(Decision(sample.tokens[row : row + 1]))
        torch.testing.assert_close(own[0], whole.log_prob(sample)[row])
        torch.testing.assert_close(alone.marginals()[0], whole.marginals()[row])


def test_what_a_kept_tile_shows_changes_what_follows_and_no_other() -> None:
    grid = (2, 2, 1)
    head, state, shown, layout = parts(grid)
    capacity = Pyramid(64, 3, 8, grid).capacity(SIZE)[:1]

    def logits(features: Tensor, kept: Tensor) -> Tensor:
        reveal = revealing(features, grid)
        policy = DescentPolicy(head, state, reveal, grid, capacity, layout.actions, layout.budget)
        return policy.along(Decision(kept.long())).logit[0]

    kept = torch.tensor([[False] * 4 + [True, True, False, False, True]])
    before = logits(shown, kept)
    for tile, moved in (
        (0, {0, 1}),
        (2, set()),
    ):  # of what lies under tile 4, and under tile 6, which is not kept
        other = shown.clone()
        other[tile] = torch.tensor([4.0, -3.0, 2.0, 0.0, -5.0])
        apart = (logits(other, kept) - before).abs()
        asked = {t for t in (0, 1) if apart[t] > 1e-4}
        assert asked == moved and apart[4:].eq(0).all()


def of_model(name: str = "region") -> tuple[NativeModel, Gate, ModelEnvironment]:
    """A tiny model with 16, 4 and 1 tiles, and a gate of chance that looks."""
    model = tiny_model((4, 2, 1))
    config = GateConfig(name=name, policy="quadtree", width=16, looks=True, open_bias=0.5)
    environment = ModelEnvironment(model, ActionSet.by_level(model.pyramid), BudgetRule(), 1e7, config.needs)
    torch.manual_seed(5)
    gate = build_gate(config, environment.layout).eval()
    assert isinstance(gate.head, LevelHead)
    torch.nn.init.normal_(gate.head.out.weight)
    return model, gate, environment


def test_what_is_revealed_is_the_mean_of_the_parents_cells_at_a_tiles_place() -> None:
    model, _, environment = of_model()
    batch = tiny_batch()
    seen = environment.observe(batch, torch.zeros(len(batch)))
    assert seen.reveal_level is not None
    pyramid = model.pyramid
    maps = model.encode(batch, torch.ones(len(batch), 21, dtype=torch.bool)).maps
    cells = pyramid.cells(batch.size)
    keep = torch.rand(len(batch), 4, generator=torch.Generator().manual_seed(0)) < 0.6
    for level, kept in ((2, torch.ones(len(batch), 1, dtype=torch.bool)), (1, keep)):
        found = seen.reveal_level(level, kept)
        f, start = pyramid.grid[level - 1], {2: 20, 1: 16}[level]
        assert found.shape == (len(batch), f * f, model.vision.channels)
        for row, tile in product(range(len(batch)), range(f * f)):
            # a tile's place is one cell of the tile above, which has 2 x 2 of them
            y, x = divmod(tile, f)
            above, image = (y // 2) * (f // 2) + x // 2, int(batch.image_of[row])
            rows, columns = cells[image, start + above].tolist()
            there = bool(kept[row, above]) and y % 2 < rows and x % 2 < columns
            own = maps[start + above][image, :, y % 2, x % 2]
            assert torch.allclose(found[row, tile], own if there else torch.zeros_like(own), atol=1e-5)


def test_a_tile_is_encoded_once_over_all_levels_and_samples_while_it_learns() -> None:
    model, gate, environment = of_model()
    batch = tiny_batch()
    seen = environment.observe(batch, torch.full((len(batch),), 0.1))
    torch.manual_seed(0)
    wanted = torch.zeros(len(batch), 21, dtype=torch.bool)
    wanted[:, -1] = True
    for _ in range(3):
        policy = gate.policy(seen)
        decision = policy.sample()
        environment.score(batch, decision)
        policy.log_prob(decision).sum().backward()
        wanted |= decision.selection
        assert model.encoded == int(
            (batch.of_images(wanted) & (model.pyramid.capacity(batch.size) > 0)).sum()
        )
    assert wanted[:, :-1].any() and not wanted.all()


@pytest.mark.parametrize("limit", [None, 12])
def test_an_answer_encodes_what_is_kept_once_and_nothing_else(limit: int | None) -> None:
    model, gate, _ = of_model()
    batch = tiny_batch()
    answers = answer(Gated(model, gate, 1e7, 0.1, limit), batch)
    kept = answers.decided.selection
    assert model.encoded == int(batch.of_images(kept).sum()) and kept[:, 16:20].any() and kept[:, :16].any()
    assert answers.texts == model.answer(batch, answers.decided.tokens)
    assert limit is None or answers.decided.tokens.sum(-1).max() <= limit


def test_a_gates_own_work_is_counted_without_what_it_looks_at() -> None:
    model, gate, environment = of_model()
    batch = tiny_batch()
    seen = environment.observe(batch, torch.full((len(batch),), 0.1))
    encoded = model.encoded
    flops = gate.flops(seen)
    assert model.encoded == encoded
    blind = build_gate(replace(gate.config, looks=False), environment.layout).eval()
    channels, width = model.vision.channels, gate.config.width
    # of every tile the part that the observation fixes, and the log-odds from its state and what is above it;
    # of both levels the mean; a blind head has one number a tile
    own = 21 * width**2 + 20 * (width * channels + width) + 2 * width * channels - 21 * width
    assert flops - blind.flops(seen) == 2 * own


@pytest.mark.parametrize("name", ["region", "joint"])
def test_a_saved_gate_that_looks_decides_the_same_and_every_parameter_learns(
    name: str, tmp_path: Any
) -> None:
    _, gate, environment = of_model(name)
    batch = tiny_batch()
    seen = environment.observe(batch, torch.full((len(batch),), 0.1))
    save_gate(gate, tmp_path)
    again = load_gate(tmp_path)
    mode = gate.policy(seen).mode()
    assert again.policy(seen).mode().tokens.equal(mode.tokens)
    gate.train().policy(seen).log_prob(mode).square().sum().backward()
    assert all(p.grad is not None and p.grad.ne(0).any() for p in gate.parameters())


def hidden_child() -> TableEnvironment:
    """Questions that one of four tiles of level 0 answers, which the one tile of level 1 shows and nothing
    else."""
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    actions = ActionSet.of(pyramid, BudgetRule(), ActionConfig(unit="tile"))
    table = toy_table(pyramid, actions, {"one": torch.zeros(6, dtype=torch.bool)})
    which = torch.arange(len(table)) % 4
    held = torch.zeros(table.score.shape)
    held[:, : len(actions)] = actions.selection[:, :4].T[which].float()
    held[:, len(actions)] = 1.0
    shown = 0.3 * torch.randn(len(table), 6, CHANNELS, generator=torch.Generator().manual_seed(2))
    shown[torch.arange(len(table)), which, 0] += 4
    image = {name: torch.ones_like(value) for name, value in table.signals["image"].items()}
    signals = {**table.signals, "image": image}
    table = replace(table, score=held, probability=held, signals=signals, shown=shown)
    return TableEnvironment(table, pyramid, BudgetRule(), table.mean_full_flops)


@pytest.mark.slow
def test_what_only_the_parent_tells_is_learned_by_looking_and_by_nothing_else() -> None:
    environment = hidden_child()
    rows, price = torch.arange(len(environment.table)), 0.5
    constant = environment.scores(rows).mean(0) - price * environment.relative[rows].mean(0)

    def earned(looks: bool) -> tuple[float, float]:
        torch.manual_seed(0)
        gate = build_gate(
            GateConfig(name="joint", policy="quadtree", width=16, looks=looks), environment.layout
        )
        config = toy_module("reinforce", "quadtree", RewardConfig(price), environment=environment).config
        module = RULES["reinforce"](config, gate, environment, RewardConfig(price), 0)
        train_by_lightning(module)
        mode = gate.eval().policy(environment.observe(rows, torch.full((len(rows),), price))).mode()
        score, cost = environment.score(rows, mode), environment.cost(rows, mode)
        return float((score - price * cost).mean()), float(score.mean())

    looking, right = earned(True)
    blind, _ = earned(False)
    assert right > 0.95 and looking > float(constant.max()) + 0.1
    assert blind <= float(constant.max()) + 1e-6


def test_what_cannot_look_is_refused() -> None:
    config = GateConfig(name="region", policy="quadtree", looks=True, width=16)
    with pytest.raises(UserError, match=r"gate\.looks=true cannot be relaxed"):
        policy_of().rsample(1.0)
    _, gate, environment = of_model()
    seen = environment.observe(tiny_batch(), torch.full((len(tiny_batch()),), 0.1))
    with pytest.raises(
        UserError, match=r"gate\.looks=true decides on features.*table holds none; allowed: rule"
    ):
        gate.policy(replace(seen, reveal_level=None))
    with pytest.raises(UserError, match=r"gate\.members=2 .*step by step"):
        replace(config, members=2)
    with pytest.raises(
        UserError, match=r"gate\.looks=true with gate\.name=relevance.*gate\.name=glance, joint"
    ):
        replace(config, name="relevance")
    for rule in ("gumbel", "exact"):
        says = rf"gate\.looks=true cannot be trained by rule\.name='{rule}'.*rule\.name=reinforce$"
        with pytest.raises(UserError, match=says):
            RULES[rule].check(rule_config(rule)(name=rule, online=True), config, RewardConfig(0.1))
    RULES["reinforce"].check(
        rule_config("reinforce")(name="reinforce", online=True), config, RewardConfig(0.1)
    )
