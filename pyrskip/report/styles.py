"""Looks that no method has of its own: runs beside each other, and matplotlib's names as plotly's."""

from collections.abc import Iterable

from pyrskip.evaluation.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY

CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
"""Matplotlib's lines -> plotly's."""
SYMBOLS = {
    **{"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left"},
    **{">": "triangle-right", ".": "circle-open", "x": "x-thin-open", "1": "y-down-open"},
    **{"2": "y-up-open", "3": "y-left-open", "P": "cross", "*": "star", "D": "diamond", "X": "x"},
}
"""Matplotlib's markers -> plotly's."""


def in_turn(names: Iterable[str]) -> dict[str, str]:
    """Name -> colour, in the order of their first mention; after the last colour comes the first."""
    return {name: CYCLE[i % len(CYCLE)] for i, name in enumerate(dict.fromkeys(names))}
