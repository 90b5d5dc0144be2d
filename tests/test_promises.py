"""Claims about what docs say of promises kept: images are dealt out whole, to choose on or to test on."""

from collections import Counter

from benchmarks.promises import below, deal, retention
from tests.test_frontier import inputs_of, tables


def test_no_image_is_both_chosen_on_and_tested_on() -> None:
    inputs = inputs_of(tables(False))
    dealt, rows = deal(inputs, 20, 0)
    images = {split: set(dealt.tables[split].image_of.tolist()) for split in ("val", "test")}
    assert len(images["val"]) == 20
    assert images["val"] | images["test"] == set(inputs.tables["test"].image_of.tolist())
    assert not images["val"] & images["test"]
    for split, of in rows.items():
        assert dealt.decided("gate", 1, split).equal(inputs.decided("gate", 1, "test")[:, of])
    assert deal(inputs, 20, 0)[1]["val"].equal(rows["val"])
    assert not deal(inputs, 20, 1)[1]["val"].equal(rows["val"])


def test_a_promise_that_cannot_be_given_is_not_counted_as_kept() -> None:
    dealt, _ = deal(inputs_of(tables(False)), 20, 0)
    count: Counter[str] = Counter()
    retention(dealt, 0, 0.999, 0.95, count)
    assert (count["asked"], count["guaranteed"], count["guaranteed and kept"]) == (1, 0, 0)
    retention(dealt, 0, 0.5, 0.95, count)
    assert (count["asked"], count["guaranteed"], count["guaranteed and kept"]) == (2, 1, 1)
    worse: Counter[str] = Counter()
    assert len(below(dealt, 0, worse)) == worse["prices"] == 4
    assert worse["safe below"] == 0
