"""The benchmark of stochastic budgets: what it compares, and that it goes on where it was."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import tokenflex
from benchmarks.tokenflex import BUDGETS, Fixed, Scores, gained, rows

IMAGES = torch.arange(6) // 2


def scored(*right: int) -> Scores:
    """So many of six questions right at each budget."""
    return Scores((torch.arange(6) < torch.tensor(right)[:, None]).float(), IMAGES)


def test_gains_are_means_over_seeds_of_the_same_questions() -> None:
    found = {
        ("stochastic", 0): scored(3, 6, 6),
        ("stochastic", 1): scored(5, 6, 6),
        ("64", 0): scored(2, 6, 6),
        ("64", 1): scored(4, 6, 6),
    }
    points, (low, high), spread = gained(found, ("stochastic", 64), ("64", 64))
    assert (points, spread) == pytest.approx((100 / 6, 0.0))  # one more of six, with either seed
    assert low <= points <= high
    assert gained(found, ("stochastic", 144), ("64", 144)) == (0.0, (0.0, 0.0), 0.0)
    # three and five of six less six and six: half, and a sixth
    points, _, spread = gained(found, ("stochastic", 64), ("64", 144))
    assert (points, spread) == pytest.approx((-100 / 3, 100 / 3 / 2**0.5))
    assert rows(found)[:3] == [
        ("stochastic", 0, used, 6, r) for used, r in zip(BUDGETS, (0.5, 1, 1), strict=True)
    ]


def test_a_fixed_budget_is_the_same_share_at_every_step() -> None:
    assert {Fixed(0.25).fractions(step) for step in range(50)} == {(0.25,)}


@pytest.mark.slow
def test_what_is_trained_is_not_trained_again(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"run={finished_run}", f"out={tmp_path}", "steps=2", "images=2", "test=4"]
    monkeypatch.setattr(sys, "argv", ["tokenflex.py", *given, "seeds=1"])
    tokenflex.main()
    with (tmp_path / "tokenflex.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    assert [(row["trained"], row["used"]) for row in kept] == [
        (trained, str(used)) for trained in ("stochastic", "64", "144", "256") for used in BUDGETS
    ]
    assert (tmp_path / "tokenflex.png").stat().st_size > 5_000
    first = capsys.readouterr().out
    assert "stochastic over fixed at 64" in first and "over the reverse" in first
    monkeypatch.delattr(tokenflex, "train")
    tokenflex.main()
    assert capsys.readouterr().out == first
