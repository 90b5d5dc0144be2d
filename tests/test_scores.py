"""What a frontier scored question by question: methods at equal cost, and what is above the full pyramid."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pyrskip.cli import main
from pyrskip.errors import UserError
from pyrskip.evaluation.above import above_full, holm
from pyrskip.evaluation.equal import at_equal_cost, score_at
from pyrskip.evaluation.runs import load_runs
from pyrskip.evaluation.scores import FILE, Scored, load_scores, save_scores
from pyrskip.report.compared import print_above
from tests.runs import write_run
from tests.test_frontier import computed, row

KEYS = tuple(f"image-{i // 4}/{i % 4}" for i in range(800))
TYPES = ("count", "object") * 400


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("scores") / "a")


def scored(*points: tuple[str, float | None, int | None, float, Tensor], label: str = "run") -> Scored:
    """A run of 800 questions. points: method, price, seed, relative cost, scores; full costs 100."""
    rows = [
        replace(row("full"), method=method, price=price, seed=seed, relative_flops=cost, flops=100 * cost)
        for method, price, seed, cost, _ in points
    ]
    return Scored(label, rows, torch.stack([score.double() for *_, score in points]), KEYS, TYPES)


def right(share: float, seed: int = 0) -> Tensor:
    return (torch.rand(800, generator=torch.Generator().manual_seed(seed)) < share).double()


def test_scores_come_back_row_by_row_with_their_questions(run: Path) -> None:
    (back,) = load_scores(load_runs(run))
    assert back.keys == computed().inputs.tables["test"].keys
    points = [p for p in computed().points if p.row.split == "test"]
    assert [r.method for r in back.rows] == [p.row.method for p in points]
    for found, point in zip(back.score, points, strict=True):
        assert torch.allclose(found, computed().score(point), atol=5e-4)


def test_questions_are_put_in_the_first_runs_order_and_others_are_refused(run: Path, tmp_path: Path) -> None:
    (one,) = load_runs(write_run(tmp_path / "b"))
    frontier = computed()
    table = frontier.inputs.tables["test"]
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    dealt = replace(table, score=table.score[order], keys=tuple(table.keys[i] for i in order.tolist()))
    tables = {**frontier.inputs.tables, "test": dealt}
    points = tuple(
        replace(
            p,
            action=None if p.action is None else p.action[order],
            score=None if p.score is None else p.score[order],
        )
        for p in frontier.points
        if p.row.split == "test"
    )
    save_scores(
        replace(frontier, points=points, inputs=replace(frontier.inputs, tables=tables)),
        tmp_path / "b" / FILE,
    )
    first, second = load_scores([*load_runs(run), one])
    assert second.keys == first.keys and second.score.equal(first.score)
    strange = replace(table, keys=tuple(f"x{key}" for key in table.keys))
    save_scores(
        replace(frontier, inputs=replace(frontier.inputs, tables={**tables, "test": strange})),
        tmp_path / "b" / FILE,
    )
    with pytest.raises(
        UserError, match=r"/b was tested on other questions than .*/a; allowed: runs on the same data"
    ):
        load_scores([*load_runs(run), one])


@pytest.mark.parametrize("cost", [{"count": "ptp"}, {"unit": "macs"}, {}], ids=str)
def test_runs_that_count_costs_differently_are_not_compared(run: Path, cost: dict[str, str]) -> None:
    (one,) = load_runs(run)
    # of a run that was made before the key was there, nobody knows what it counts
    counted = {**one.config["cost"], **cost} if cost else {"attention": "full"}
    other = replace(one, directory=run.parent / "b", config={**one.config, "cost": counted})
    with pytest.raises(UserError, match=r"/b counts costs by cost=.*/a by cost=.*; allowed: runs that count"):
        load_scores([one, other])


def test_a_run_without_scores_is_named(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "old")
    (directory / FILE).unlink()
    with pytest.raises(
        UserError, match=r"old holds no scores of its frontier .*; draw it again with pyrskip eval run="
    ):
        load_scores(load_runs(directory))


def test_between_two_points_a_method_plays_their_mix_and_seeds_are_averaged() -> None:
    low, high, other = right(0.5, 1), right(0.9, 2), right(0.7, 3)
    one = scored(
        ("gate", 0.1, 0, 0.8, high),
        ("gate", 0.5, 0, 0.2, low),
        ("gate", 0.1, 1, 0.2, other),
        ("full", None, None, 1.0, high),
    )
    at = score_at(one, "gate", 35.0)
    assert at is not None and torch.allclose(at, (0.75 * low + 0.25 * high + other) / 2)
    for cost, expected in ((20.0, (low + other) / 2), (80.0, (high + other) / 2), (95.0, (high + other) / 2)):
        found = score_at(one, "gate", cost)
        assert found is not None and torch.allclose(found, expected)
    assert score_at(one, "gate", 19.9) is None and score_at(one, "hull", 50.0) is None


def test_gains_at_equal_cost_are_paired_and_in_the_first_runs_unit() -> None:
    low, high = right(0.5, 1), right(0.9, 2)
    better = (high + 0.05).clamp(max=1.05)
    points = [("full", None, None, 1.0, high), ("gate", 0.1, 0, 0.6, high), ("gate", 0.5, 0, 0.2, low)]
    one, two = (
        scored(*points),
        scored(points[0], ("gate", 0.1, 0, 0.6, better), ("gate", 0.5, 0, 0.2, low + 0.05), label="two"),
    )
    # a budget of half the tokens: its own full pyramid costs half
    two = replace(two, rows=[replace(r, relative_flops=2 * r.relative_flops) for r in two.rows])
    found = at_equal_cost([one, two], ["gate"], (0.1, 0.4))
    assert [(e.run, e.relative_flops) for e in found] == [("run", 0.4), ("two", 0.4)]
    first, second = found
    assert first.gain is None and first.accuracy == pytest.approx(float((low + high).mean() / 2))
    assert second.gain == pytest.approx(0.05)
    # the same 5 points on every question: paired, they have no spread, though each accuracy has
    assert second.gain_ci95 == pytest.approx((0.05, 0.05), abs=1e-9)
    assert first.accuracy_ci95[1] - first.accuracy_ci95[0] > 0.02
    with pytest.raises(UserError, match=r"method=magic: no run has it; allowed: full, gate"):
        at_equal_cost([one], ["magic"])


def test_questions_of_one_type_are_compared_at_what_they_cost() -> None:
    low, high = right(0.5, 1), right(0.9, 2)
    one = scored(("full", None, None, 1.0, high), ("gate", 0.1, 0, 0.6, high), ("gate", 0.5, 0, 0.2, low))
    dear = [
        {"count": {"relative_flops": cost}, "object": {"relative_flops": 2 * cost}}
        for cost in (0.5, 0.3, 0.1)
    ]
    objects = replace(one, rows=[replace(r, by_type=t) for r, t in zip(one.rows, dear, strict=True)]).of_type(
        "object"
    )
    assert objects.keys == KEYS[1::2] and set(objects.types) == {"object"}
    (only,) = at_equal_cost([objects], ["gate"], (0.1, 0.4))
    assert only.accuracy == pytest.approx(float((low + high)[1::2].mean() / 2))
    with pytest.raises(UserError, match=r"type.*magic.*allowed: count, object"):
        one.of_type("magic")


def test_holm_steps_down() -> None:
    # 4 x .01, 3 x .02, then never less than before
    assert holm([0.02, 0.01, 0.5, 0.03]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def of_seed(seed: int, gain: float) -> Scored:
    """full is right on 70 %, 'fixed:1' on as many others; 'fixed:0' on what full is, and on `gain` of the
    rest."""
    full, chance = right(0.7, seed), right(0.7, seed + 100)
    better = torch.maximum(full, right(gain, seed + 200))
    return scored(
        ("full", None, None, 1.0, full),
        ("fixed:1", None, None, 0.3, chance),
        ("fixed:0", None, None, 0.7, better),
    )


def test_what_is_above_full_in_every_run_is_told_and_luck_is_not() -> None:
    best, luck = above_full([of_seed(seed, 0.1) for seed in (3, 4, 5)])
    assert (best.method, luck.method) == ("fixed:0", "fixed:1")
    assert best.significant and best.p < 0.001 and min(best.gain_of_runs) > 0
    assert best.gain == pytest.approx(sum(best.gain_of_runs) / 3) and best.gain_ci95[0] > 0
    assert not luck.significant and luck.p > 0.05


def test_a_gain_that_one_run_does_not_have_is_not_significant(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [of_seed(0, 0.3), of_seed(1, 0.3), of_seed(2, 0.0)]
    best = above_full(runs)[0]
    assert best.p_holm < 0.05 and not best.significant
    print_above([best])
    assert "none of 1 significantly above full" in capsys.readouterr().out


def test_of_many_that_are_as_good_as_full_some_look_better_and_none_is_called_so() -> None:
    lucky, called = 0, 0
    for trial in range(4):
        points = [("full", None, None, 1.0, right(0.7, 1000 * trial))]
        points += [(f"fixed:{i}", None, None, 0.5, right(0.7, 1000 * trial + i)) for i in range(1, 21)]
        candidates = above_full([scored(*points)])
        lucky += sum(c.p < 0.05 for c in candidates)
        called += sum(c.significant for c in candidates)
    assert lucky >= 2 and called == 0


def test_gates_count_by_price_and_only_what_all_runs_have() -> None:
    full = right(0.7)
    one = scored(
        ("full", None, None, 1.0, full),
        ("gate", 0.1, 0, 0.5, full),
        ("gate", 0.1, 1, 0.3, full),
        ("gate", 0.2, 0, 0.2, full),
    )
    two = scored(("full", None, None, 1.0, full), ("gate", 0.1, 0, 0.4, full), ("random", 0.1, 0, 0.4, full))
    (only,) = above_full([one, two])
    assert (only.method, only.price, only.gain, only.p) == ("gate", 0.1, 0.0, 1.0)
    with pytest.raises(UserError, match=r"no fixed selection or gate is in every run"):
        above_full([scored(("full", None, None, 1.0, full)), two])


def test_equal_and_above_are_commands(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["equal", str(run), "method=gate,hull,full", f"out={tmp_path / 'equal.json'}"])
    out = capsys.readouterr().out
    # a method that is always dearer has a column all the same
    assert "Accuracy % at equal FLOPs" in out and all(name in out for name in ("gate", "hull", "full"))
    told = json.loads((tmp_path / "equal.json").read_text())
    assert {e["method"] for e in told} == {"gate", "hull"}
    main(["above", str(run), f"out={tmp_path / 'above.json'}"])
    assert "of 20 significantly above full" in capsys.readouterr().out
    candidates = json.loads((tmp_path / "above.json").read_text())
    assert {c["method"] for c in candidates} >= {"gate", "fixed:glance"}
    for command, said in (("equal", "method=<value>, type=<value>, out=<value>"), ("above", "out=<value>")):
        with pytest.raises(SystemExit):
            main([command])
        assert (
            f"pyrskip {command} takes one or more directories; allowed beside them: {said}"
            in capsys.readouterr().err
        )
