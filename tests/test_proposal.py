"""Claims about the pyramid that is proposed for pictures."""

from pathlib import Path

import pytest

from pyrskip.data.conversion import convert
from pyrskip.data.proposal import GLANCE, STRIDE, longer_sides, propose, said
from pyrskip.data.reader import ShardDataset
from tests.conversions import config
from tests.own_data import write_llava


@pytest.mark.parametrize(
    ("sides", "largest", "wanted"),
    [
        ([768] * 5, 512, (512, 4)),
        ([768] * 5, 1024, (768, 4)),
        ([4000] * 5, 1024, (1024, 5)),
        ([224, 224, 2000], 512, (224, 2)),
        ([300, 500, 640], 512, (448, 3)),
        ([20], 512, (128, 2)),
    ],
)
def test_a_pyramid_is_as_large_as_half_of_the_pictures(
    sides: list[int], largest: int, wanted: tuple[int, int]
) -> None:
    assert propose(sides, largest) == wanted


def test_a_glance_is_worth_a_look_and_every_level_has_whole_cells() -> None:
    for side in range(1, 3000, 7):
        size, levels = propose([side], 2048)
        glance = size >> (levels - 1)
        assert GLANCE <= glance < 2 * GLANCE and glance % STRIDE == 0
        assert glance << (levels - 1) == size <= max(side, 2 * GLANCE)
        assert levels >= 2


def test_pictures_are_measured_by_their_headers(tmp_path: Path) -> None:
    convert(
        config("llava", write_llava(tmp_path, images=60), images=str(tmp_path / "images")), tmp_path / "out"
    )
    data = ShardDataset(tmp_path / "out", "train", 128)
    known = [max(sample.image.shape[1:]) for i in range(len(data)) if (sample := data[i]) is not None]
    assert longer_sides(data) == known
    assert longer_sides(data, 10) == known[:: -(-len(known) // 10)]


def test_a_proposal_can_be_copied() -> None:
    assert said([640, 800, 801]) == (
        "half of the pictures have a longer side of 800 px or more; proposed, for two cores: "
        "pyramid.size=512 pyramid.levels=4"
    )
