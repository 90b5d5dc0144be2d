"""How closely must one look? The coarsest pyramid level on which something is still so many pixels large.

The thresholds were measured: a probe on EfficientNet-lite0's frozen stride-16 maps that is told where to look
(2,000 crops to learn from, 600 to test) names what is drawn right above its threshold almost always, one
level coarser much more rarely:

    icon, one of 24       17 to 23 px  .98    8 to 12 px  .66
    word, one of 48       10 to 13 px  .98    5 to 7 px   .31
    number, one of 50     17 to 23 px  .96    8 to 12 px  .43
"""

import math

ICON = 14.0
"""Longer side of an icon that can be named. Font Awesome's icons are designed for 16 px, so their details are
that coarse."""

COLOR = 6.0
"""Side of a patch whose colour can be named: at least 4 px of it do not mix with what lies around when a
level is halved."""

WORD = 8.0
"""Height of a word's capitals: its length and outline tell a known word before its letters can be read."""

NUMBER = 14.0
"""Height of a number's digits, each of which must be read."""

GLANCE = 64
"""Side of the coarsest level that is counted, at least: below it there is nothing to see."""

CLEAR = (1.2, 1.65)
"""Sizes are drawn in this range of their level's threshold, so that none is on the brink of the next level (1
or 2)."""

LARGE = (2.1, 2.6)
"""Likewise of large objects: no level is coarser, so they may well be larger."""


def levels(size: int) -> int:
    """L of a pyramid on a canvas of this side: the coarsest level has GLANCE to 2 GLANCE pixels."""
    return int(math.log2(size / GLANCE)) + 1


def needed_level(pixels: float, threshold: float, size: int) -> int:
    """The coarsest level on which `pixels` of level 0 are at least `threshold`, 0..L-1; pixels >=
    threshold."""
    assert pixels >= threshold, (pixels, threshold)
    return min(int(math.log2(pixels / threshold)), levels(size) - 1)
