"""Claims about benchmarks/borders.py: every way to encode kept tiles takes each of their cells once."""

import pytest

from benchmarks.borders import WAYS, connected, kinds


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize(("g", "side"), [(3, 4), (4, 4), (2, 6)])
def test_every_kept_cell_is_taken_once_from_a_window_that_holds_it(name: str, g: int, side: int) -> None:
    for sets in connected(g):
        for kept in sets:
            taken = []
            for (top, left, bottom, right), own in WAYS[name](kept, g, side):
                assert 0 <= top <= own[0] < own[2] <= bottom <= g * side
                assert 0 <= left <= own[1] < own[3] <= right <= g * side
                taken += [(r, c) for r in range(own[0], own[2]) for c in range(own[1], own[3])]
            inside = {(r, c) for r, c in taken if (r // side, c // side) in kept}
            assert len(inside) == len(kept) * side**2
            if name != "rectangle around all":
                assert sorted(inside) == sorted(taken)
            parts = kinds(kept, g, side)
            assert sum(int(part.sum()) for part in parts) == len(inside)


def test_all_connected_sets_of_two_to_four_tiles_are_kept() -> None:
    # of 2 x 2: four pairs, four corners left out, the whole; of 3 x 3: twelve pairs, twenty-two triples
    assert [len(sets) for sets in connected(2)] == [4, 4, 1]
    assert [len(sets) for sets in connected(3)][:2] == [12, 22]


def test_merging_encodes_no_more_than_what_is_kept_and_an_l_is_two_rectangles() -> None:
    kept = frozenset([(0, 0), (1, 0), (1, 1)])
    boxes = [box for box, _ in WAYS["merged"](kept, 3, 4)]
    assert sorted((b - t) * (r - left) for t, left, b, r in boxes) == [16, 32]
    assert [box for box, _ in WAYS["merged, halo 1"](frozenset([(0, 0), (0, 1)]), 3, 4)] == [(0, 0, 5, 9)]
