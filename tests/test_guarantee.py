"""Guaranteed retentions: what they promise, what they cost in images, and that a leak breaks the promise."""

from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from pyrskip.evaluation.guarantee import by_image, guarantee, images_needed, largest, passes, said

Floats = NDArray[np.float64]
LOST = np.array([0.0, 0.004, 0.012, 0.018, 0.0204, 0.03, 0.08])
"""Of what full gets right, the share that each price of a planted dial loses: all but three keep 98 %."""
HARD = np.array([0.0201])
"""A dial whose only price is just too dear: every guarantee of 98 % that it is given is false."""


def planted(
    rng: np.random.Generator, images: int, lost: Floats = LOST, gained: float = 0.0, questions: int = 4
) -> tuple[Floats, Floats]:
    """Mean score on each image of a dial's prices [P, M] and of full [M]; an image's questions go together.

    Full is right with probability .8. A price loses `lost` of that, in expectation, and gains `gained` of
    what full gets wrong.
    """
    ease = rng.beta(8, 2, images)  # the questions of a hard image are lost together
    right = rng.random((images, questions)) < ease[:, None]
    luck = rng.random((len(lost), images, questions))
    kept = np.where(right, luck >= lost[:, None, None], luck < gained)
    return kept.mean(-1), right.mean(-1)


def broken(images: int, rounds: int, lost: Floats = LOST, confidence: float = 0.95) -> float:
    """How often the promise of 98 % is false: the share of rounds whose guaranteed price keeps less."""
    rng, false = np.random.default_rng(images), 0
    for _ in range(rounds):
        score, full = planted(rng, images, lost, questions=1 if lost is HARD else 4)
        chosen, found = guarantee(score, full, range(len(lost), 0, -1), 0.98, confidence)
        false += found.guaranteed and 1 - lost[chosen] < 0.98
    return false / rounds


def test_a_guarantee_is_false_at_most_as_often_as_it_says() -> None:
    # three standard errors of 5 % in 300 rounds
    assert broken(400, 300) <= 0.05 + 0.038


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "lost", "confidence"),
    [(300, HARD, 0.95), (2000, HARD, 0.95), (300, HARD, 0.9), (2000, LOST, 0.95)],
)
def test_the_coverage_of_planted_truths_is_what_was_stated(
    images: int, lost: Floats, confidence: float
) -> None:
    found = broken(images, 1500, lost, confidence)
    print(f"{images} images, {len(lost)} prices, {confidence:.0%} stated: {1 - found:.2%} true")
    assert 1 - found >= confidence - 0.01


@pytest.mark.parametrize("images", [40, 300])
def test_a_mean_of_0_passes_as_seldom_as_was_stated(images: int) -> None:
    rng = np.random.default_rng(3)
    # losses as large as can be, and seldom: where intervals of a normal approximation are wrong
    null = [np.where(rng.random(images) < 0.02, -0.98, 0.02) for _ in range(2000)]
    assert sum(passes(margin, 0.98, 0.95) for margin in null) / 2000 <= 0.05 + 0.015


def test_images_that_training_saw_break_the_guarantee() -> None:
    rng = np.random.default_rng(0)
    known, new = 0.0, 0.06
    false = {True: 0, False: 0}
    for leaked in false:
        for _ in range(100):
            # a gate that knows its training images by heart loses nothing there, and 6 % anywhere else
            score, full = planted(rng, 400, np.array([known if leaked else new]))
            _, found = guarantee(score, full, [1.0], 0.98, 0.95)
            false[leaked] += found.guaranteed and 1 - new < 0.98
    assert false[False] <= 5
    assert false[True] > 50


def test_the_point_estimate_of_few_images_promises_too_much_where_the_guarantee_does_not() -> None:
    rng, estimated = np.random.default_rng(1), 0
    for _ in range(200):
        score, full = planted(rng, 75)
        kept = score.sum(-1) / full.sum()
        estimated += 1 - LOST[np.flatnonzero(kept >= 0.98).max(initial=0)] < 0.98
    assert estimated > 100
    assert broken(75, 200) <= 0.05


def test_more_images_carry_a_dearer_saving_up_to_the_dearest_that_is_true() -> None:
    rng = np.random.default_rng(2)
    chosen = []
    for images in (100, 400, 4000, 40_000):
        score, full = planted(rng, images)
        chosen.append(guarantee(score, full, range(len(LOST), 0, -1), 0.98, 0.95)[0])
    assert chosen == sorted(chosen)
    assert chosen[-1] == 3


def test_a_price_behind_one_that_fails_is_not_tried() -> None:
    score, full = planted(np.random.default_rng(0), 4000, np.array([0.0, 0.1, 0.0]))
    chosen, found = guarantee(score, full, [3.0, 2.0, 1.0], 0.98, 0.95)
    assert (chosen, found.guaranteed) == (0, True)


def test_of_the_prices_that_hold_the_cheapest_is_taken() -> None:
    score, full = planted(np.random.default_rng(0), 4000, np.array([0.0, 0.0, 0.001]))
    assert guarantee(score, full, [3.0, 1.0, 2.0], 0.98, 0.95)[0] == 1


def test_images_that_cannot_carry_it_say_how_many_would_and_the_safest_price_is_taken() -> None:
    rng = np.random.default_rng(4)
    score, full = planted(rng, 40)
    chosen, found = guarantee(score, full, range(len(LOST), 0, -1), 0.98, 0.95)
    assert (chosen, found.guaranteed, found.images) == (0, False, 40)
    needed = found.images_needed
    assert needed is not None
    score, full = planted(rng, round(1.1 * needed))
    assert guarantee(score, full, range(len(LOST), 0, -1), 0.98, 0.95)[1].guaranteed
    score, full = planted(rng, round(0.8 * needed))
    assert not guarantee(score, full, range(len(LOST), 0, -1), 0.98, 0.95)[1].guaranteed
    assert found.largest < 0.98
    assert f"it would take about {needed}" in said([asdict(found)])
    assert f"carry {found.largest:.2%} where every answer is full's" in said([asdict(found)])


def test_the_largest_retention_is_the_largest_that_a_gate_like_full_gets() -> None:
    full = planted(np.random.default_rng(0), 150)[1]
    most = largest(full, 0.95)
    assert 0.9 < most < 1
    for asked, holds in ((most, True), (most + 0.0002, False)):
        assert guarantee(full[None], full, [1.0], asked, 0.95)[1].guaranteed == holds
    assert largest(planted(np.random.default_rng(0), 600)[1], 0.95) > most
    assert largest(full, 0.99) < most


def test_no_number_of_images_carries_what_the_safest_price_does_not_keep() -> None:
    score, full = planted(np.random.default_rng(0), 300, np.array([0.1]))
    found = guarantee(score, full, [1.0], 0.98, 0.95)[1]
    assert (found.guaranteed, found.images_needed) == (False, None)
    assert "more would not help" in said([asdict(found)])
    assert images_needed(np.zeros(10), 0.98, 0.95) is None


def test_more_than_full_is_guaranteed_where_it_is_true() -> None:
    score, full = planted(np.random.default_rng(0), 2000, np.array([0.0]), gained=0.4)
    assert guarantee(score, full, [1.0], 1.02, 0.95)[1].guaranteed
    assert not guarantee(full[None], full, [1.0], 1.0, 0.95)[1].guaranteed


@pytest.mark.parametrize("images", [0, 1])
def test_next_to_no_images_carry_nothing(images: int) -> None:
    full = np.ones(images)
    found = guarantee(full[None], full, [1.0], 0.98, 0.95)[1]
    assert (found.guaranteed, found.images) == (False, images)
    assert "not guaranteed" in said([asdict(found)])


def test_seeds_that_hold_are_counted() -> None:
    score, full = planted(np.random.default_rng(0), 1000, np.array([0.0, 0.1]))
    both = [asdict(guarantee(of[None], full, [1.0], 0.98, 0.95)[1]) for of in score]
    assert said(both[:1]) == "guaranteed with 95 % confidence by 1000 held-out images"
    assert said(both).endswith("for 1 of 2 seeds, the others take their safest price")


def test_an_image_counts_once_however_many_its_questions() -> None:
    score, image_of = [[1.0, 0.0, 0.0, 0.5, 1.0]], [2, 0, 0, 2, 3]
    assert by_image(score, image_of, [3, 2, 0]).tolist() == [[1.0, 0.75, 0.0]]
