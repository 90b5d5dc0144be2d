"""Published ways to decide, as methods of the frontier: by numbers worked out by hand, and paid in full."""

from dataclasses import replace
from math import exp, log
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from pyrskip.cost import measured_flops
from pyrskip.decision import ActionSet
from pyrskip.evaluation.frontier import Frontier, frontier
from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods import METHODS
from pyrskip.evaluation.methods.tokens import prefixes
from pyrskip.evaluation.timing import Clock, Timing
from pyrskip.gated import encode_glance
from pyrskip.gates.asking import NEVER, threshold
from pyrskip.gates.measures import attended_actions, entropy, finest, finest_actions, rank, salience, variance
from pyrskip.models.native import CostConfig
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts import router
from pyrskip.rollouts.table import RolloutTable
from tests.models import every_tile, tiny_batch, tiny_model
from tests.tables import synthetic_pyramid, synthetic_table
from tests.test_frontier import computed, inputs_of, of_rungs, tables

PEERS = ("entropy", "variance", "arr_coc", "attention", "visionthink", "adaptvision", "vir", "prefix")
INSIDE = torch.tensor([[[True, True, False]]])


def cells(*channels: list[float]) -> Tensor:
    """A map [1, C, 1, 3] of one row of cells, the last of which is padding."""
    return torch.tensor(channels, dtype=torch.float32)[None, :, None]


def test_the_entropy_of_alike_channels_is_the_log_of_their_number_and_of_one_that_stands_out_0() -> None:
    assert entropy(cells([1, 5, 9], [1, 5, 0]), INSIDE).item() == pytest.approx(log(2))
    assert entropy(cells([0, 99, 9], [99, 0, 9]), INSIDE).item() == pytest.approx(0.0)
    # a cell of log 2 and one of 0
    assert entropy(cells([0, 99, 9], [0, 0, 0]), INSIDE).item() == pytest.approx(log(2) / 2)


def test_variance_and_salience_are_of_what_is_inside() -> None:
    # channel 0: 0 and 2, about 1; channel 1: 3 and 3
    maps = cells([0, 2, 50], [3, 3, 50])
    assert variance(maps, INSIDE).item() == pytest.approx((1 + 0) / 2)
    assert salience(maps, INSIDE).item() == pytest.approx(1.0)
    # 0, 0 and 3 about 1: what stands out is 2 away
    assert salience(cells([0, 0, 3]), torch.ones_like(INSIDE)).item() == pytest.approx(2.0)


def test_a_rank_is_the_share_of_known_scores_below() -> None:
    assert rank(torch.tensor([2.5, 1.0, 9.0]), torch.tensor([4.0, 2.0, 1.0, 3.0])).tolist() == [0.5, 0.0, 1.0]


def test_levels_follow_the_published_thresholds() -> None:
    relevance = torch.tensor([0.81, 0.8, 0.5, 0.31, 0.3], dtype=torch.float64)
    assert finest(relevance, 4, 1.0).tolist() == [0, 1, 2, 2, 3]
    assert finest(relevance, 3, 1.0).tolist() == [0, 1, 1, 1, 2]  # the first and the last of them
    assert finest(relevance, 3, 2.0).tolist() == [0, 0, 1, 1, 1]  # 0.6 and below 0
    actions = ActionSet.by_level(Pyramid(64, 3, 8))
    picked = finest_actions(torch.tensor([0, 1, 2]), actions, 3)
    assert [actions.names[a] for a in picked.tolist()] == ["0", "1", "glance"]


def test_relevance_is_the_weighted_mean_of_three_ranks() -> None:
    splits = {name: synthetic_table(name, 4) for name in ("gate", "val", "test")}
    for table in splits.values():
        glance = table.signals["image"]["glance"] = torch.zeros(4, 2, 2, 2)  # type: ignore[index]
        # image 0 shows most, for its channels are alike; in image 3 one cell stands out most, in both
        glance[:, 0] += torch.arange(4.0)[:, None, None]
        glance[:, :, 0, 0] += 10 * torch.arange(4.0)[:, None]
        assert table.similarity is not None
        table.similarity[:, 2] = 0.0 if table.split == "gate" else 1.0
    given = inputs_of(splits)
    few = {name: None if of is None else of[:4] for name, of in given.encode_flops.items()}
    quarters = [d.action for d in METHODS["arr_coc"].decisions(replace(given, encode_flops=few), "test")]
    # image 2: one of four shows less, two stand out less, every question was less like it
    relevance = 0.3 * 0.25 + 0.3 * 0.5 + 0.4 * 1.0
    assert relevance == pytest.approx(0.625)
    names = [splits["test"].actions.names[int(action[2 * 3])] for action in quarters]
    # above .3 and not .8; of 2.5 times as many images above .5
    assert names == ["glance", "glance", "1", "1", "0", "0"]


def test_attention_keeps_levels_until_their_share_is_reached() -> None:
    pyramid = Pyramid(64, 3, 8, (2, 1, 1))
    actions = ActionSet.by_level(pyramid)
    # best tiles: .2, .1 and 0, so e^2, e^1 and 1 of their sum: .665, .245, .090; then the glance the most
    similarity = torch.tensor([[-0.5, 0.2, 0.1, 0.0, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0, float("-inf"), 0.3]])
    weight = exp(2) / (exp(2) + exp(1) + 1)
    assert weight == pytest.approx(0.665, abs=1e-3)

    def kept(share: float) -> list[str]:
        return [actions.names[a] for a in attended_actions(similarity, actions, pyramid, share).tolist()]

    assert kept(0.5) == ["0", "glance"]
    assert kept(0.7) == ["0,1", "glance"]
    assert kept(0.96) == ["0,1", "0"]


def test_asking_goes_to_where_it_gains_most() -> None:
    # least sure first: .2 and .2 gain 2 - 1 together, .5 loses, .7 gains more than that, .9 loses
    sure = torch.tensor([0.9, 0.2, 0.5, 0.2, 0.7])
    assert threshold(sure, torch.tensor([-1.0, 2.0, -0.5, -1.0, 0.25])) == pytest.approx(0.2)
    assert threshold(sure, torch.tensor([-1.0, 2.0, -0.5, -1.0, 0.75])) == pytest.approx(0.7)
    assert threshold(sure, -torch.ones(5)) == NEVER


def test_no_other_threshold_gains_more() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sure = torch.randint(6, (30,), generator=generator) / 6
        gain = torch.randn(30, generator=generator)
        best = max([0.0, *(float(gain[sure <= t].sum()) for t in sure)])
        assert float(gain[sure <= threshold(sure, gain)].sum()) == pytest.approx(best, abs=1e-5)


def two_questions() -> Inputs:
    """Three questions on each of two pictures; the first of each is answered unsurely."""
    splits = {name: synthetic_table(name, 2, seed=1) for name in ("gate", "val", "test")}
    for table in splits.values():
        table.score.zero_()
        table.score[:, table.column("0")] = 1.0  # all is seen at full resolution alone
        table.signals["question"]["answer_stats"][:, 0] = torch.tensor([0.1, 0.8, 0.9] * 2)
        table.score[1::3, table.column("glance")] = 1.0
        table.score[2::3, table.column("glance")] = 1.0
    of = replace(inputs_of(splits), gates={}, prices=(0.1, 100.0))
    return replace(
        of, encode_flops={name: flops[:2] for name, flops in of.encode_flops.items() if flops is not None}
    )


def test_both_turns_are_paid_and_what_both_keep_is_encoded_once() -> None:
    inputs = two_questions()
    asked, never = METHODS["visionthink"].decisions(inputs, "test")
    table = inputs.tables["test"]
    low, high = table.column("glance"), table.column("0")
    assert asked.action.tolist() == [high, low, low] * 2
    assert asked.first is not None and asked.first.tolist() == [low, -1, -1] * 2
    assert never.action.tolist() == [low] * 6  # too dear
    found = {p.row.price: p.row for p in frontier(inputs).select("visionthink", "test")}
    # a glance of 4 tokens and 16 x 16 px; level 0 has 64 tokens and 64 x 64 px beside it
    first, second = 4 * 5_000 + 256 * 100, (64 + 4) * 5_000 + (4_096 + 256) * 100
    assert found[0.1].flops == pytest.approx((first + second - 256 * 100) / 3 + first * 2 / 3)
    assert found[0.1].tokens == pytest.approx((4 + 68) / 3 + 4 * 2 / 3)
    assert found[0.1].kv_bytes == pytest.approx(64 * (68 / 3 + 4 * 2 / 3))  # of the last turn
    assert found[0.1].accuracy == 1.0
    assert found[100.0].flops == pytest.approx(first)


def test_two_turns_cost_what_is_measured() -> None:
    model, batch = tiny_model(), tiny_batch((1,))
    size, capacity = batch.size, every_tile(model, batch)
    low, high = capacity * torch.tensor([0, 0, 1]), capacity * torch.tensor([1, 0, 1])
    written: list[int] = []

    def turns() -> None:
        features = encode_glance(model, batch)
        for asked in (low, high):
            with patch.object(model.language, "decode", wraps=model.language.decode) as decode:
                features = model.look(batch, features, asked)
                model.write(batch, features, asked)
            written.append(decode.call_count)

    measured, counted = measured_flops(turns), 0.0
    for asked, steps in zip((low, high), written, strict=True):
        model.config = replace(model.config, cost=CostConfig(answer_tokens=steps))
        cost = model.cost(model.realise(asked, size), size, model.prompt_tokens(batch))
        counted += float(cost.flops)
    table = synthetic_table("test", 1)
    inputs = replace(two_questions(), tables={"test": table}, encode_flops={"test": model.encode_flops(size)})
    columns = [torch.full((3,), table.column(name)) for name in ("glance", "0")]
    assert measured == counted - float(inputs.encoded_twice("test", *columns)[0])


def test_two_turns_take_as_long_as_both() -> None:
    names = ("glance", "1", "0", "0,1")
    encode = dict(zip(names, (1.0, 3.0, 5.0, 8.0), strict=True)) | {"reference": 4.0, "question_only": 0.0}
    encode |= {"gated:" + name: encode[name] + 0.5 for name in names}
    clock = Clock(encode, {name: ms + 10 for name, ms in encode.items()}, {})
    found = frontier(replace(two_questions(), timing=Timing(clock, clock)))
    row = found.select("visionthink", "test", 0.1)[0].row
    # alone: 1 and 10; then 5 in two passes, and the answer's 10 once more
    assert row.encode_ms == pytest.approx(5.5 / 3 + 1.0 * 2 / 3)
    assert row.total_ms == pytest.approx((15.5 + 10) / 3 + 11 * 2 / 3)


def test_a_second_turn_looks_at_what_the_gate_chose_and_never_at_nothing_more() -> None:
    inputs = computed().inputs
    table = inputs.tables["test"]
    for decisions in METHODS["adaptvision"].decisions(inputs, "test"):
        assert decisions.first is not None and decisions.price is not None and decisions.seed is not None
        number = inputs.prices.index(decisions.price)
        own = inputs.decided("gate", decisions.seed, "test")[number]
        asks = decisions.first >= 0
        assert decisions.action[asks].equal(own[asks]) and bool((own[asks] != 0).all())
        assert bool((decisions.action[~asks] == table.column("glance")).all())


def test_a_gate_behind_a_first_turn_does_not_pay_for_reading_the_glance_again() -> None:
    dear = replace(computed().inputs, prices=(100.0,))
    row = frontier(dear).select("adaptvision", "test", 100.0, 0)[0].row
    glance = computed().select("fixed:glance", "test")[0].row
    assert row.flops == pytest.approx(glance.flops + 5_000)


def test_a_router_learns_which_pictures_need_a_level_whatever_is_asked() -> None:
    table = synthetic_table("gate", 40)
    glance = table.signals["image"]["glance"]
    glance[:, 0] = torch.where(torch.arange(40) % 4 == 0, 1.0, -1.0)[:, None, None]
    needs = glance[table.image_of, 0, 0, 0]
    # what level 0 is worth is in the picture, level 1 is worth the same everywhere
    ratio = torch.stack([needs, torch.zeros_like(needs)], dim=-1)
    fitted = router.fit(table, ratio)
    kept = fitted.keeps(router.sight(table), 0.25)
    assert kept[:, 0].equal(torch.arange(40) % 4 == 0)
    alone = fitted.keeps(router.sight(table)[3:4], 0.25)
    assert alone.equal(kept[3:4])  # of no batch


def test_a_router_asks_for_the_actions_without_one_tile() -> None:
    plain = ActionSet.by_level(synthetic_pyramid(4))
    without = router.one_less(plain)
    assert without is not None
    assert [plain.names[a] for a in without.tolist()] == ["1,2", "0,2", "0,1"]
    rungs = ActionSet.rungs(synthetic_pyramid(3), (0, 64, 144, 256))
    without = router.one_less(rungs)
    assert without is not None
    assert [rungs.names[a] for a in without.tolist()] == ["0:64,1", "0,1:64"]


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_a_router_leaves_a_tile_whole_at_its_rate(rate: float) -> None:
    table = synthetic_table("gate", 40)
    ratio = torch.randn(len(table), 2, generator=torch.Generator().manual_seed(0))
    kept = router.fit(table, ratio).keeps(router.sight(table), rate)
    assert kept.sum(0).tolist() == [round(40 * rate)] * 2


def test_a_routed_decision_pays_for_every_encoder() -> None:
    points = computed().select("vir", "test")
    every = 100.0 * (4_096 + 1_024 + 256)
    assert len(points) == 5
    for point in points:
        assert point.row.flops == pytest.approx(every + 5_000 * point.row.tokens)


def test_a_prefix_takes_coarser_levels_first_and_pays_for_every_encoder_but_no_projection() -> None:
    assert prefixes(ActionSet.by_level(synthetic_pyramid(4)), 4) == ["glance", "2", "1,2", "0,1,2"]
    ladder = (0, 64, 144, 256)
    rungs = ["glance", "1:64", "1:144", "1", "0:64,1", "0:144,1", "0,1"]
    assert prefixes(ActionSet.rungs(synthetic_pyramid(3), ladder), 3) == rungs
    assert len(of_rungs().select("prefix", "test")) == 7
    inputs = computed().inputs
    dear = {name: None if of is None else 2 * of for name, of in inputs.tile_flops.items()}
    rows = [p.row for p in frontier(replace(inputs, tile_flops=dear)).select("prefix", "test")]
    assert [row.tokens for row in rows] == [4, 20, 84]
    every = 100.0 * (4_096 + 1_024 + 256)
    assert [row.flops for row in rows] == pytest.approx([every + 5_000 * n for n in (4, 20, 84)])


def test_none_looks_at_the_answers_of_what_it_decides_on() -> None:
    splits = tables(False)
    test = splits["test"]
    assert test.probability is not None
    hidden = replace(test, score=1 - test.score, probability=1 - test.probability)
    again = frontier(inputs_of(splits | {"test": hidden}))

    def decided(of: Frontier, method: str) -> list[list[int]]:
        return [p.action.tolist() for p in of.select(method, "test") if p.action is not None]

    for method in PEERS:
        assert decided(computed(), method) and decided(computed(), method) == decided(again, method)


@pytest.mark.parametrize("lost", ["similarity", "probability"])
def test_what_a_table_does_not_hold_leaves_its_methods_out(lost: str) -> None:
    splits = tables(False)
    less: dict[str, RolloutTable] = {name: replace(of, **{lost: None}) for name, of in splits.items()}  # type: ignore[arg-type]
    given = replace(inputs_of(splits), tables=less, gates={})
    found = {r.method for r in frontier(given).rows}
    without = {"similarity": {"arr_coc", "attention"}, "probability": {"vir"}}[lost]
    assert not found & without and {"entropy", "variance", "prefix", "visionthink"} <= found


def test_a_model_that_tells_neither_its_surety_nor_its_costs_has_no_such_methods() -> None:
    splits = tables(False)
    for table in splits.values():
        table.signals["question"].clear()  # type: ignore[attr-defined]
    served = replace(inputs_of(splits), gates={}, encode_flops={})
    assert not {r.method for r in frontier(served).rows} & set(PEERS) - {"attention"}
