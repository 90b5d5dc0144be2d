"""Looks that no method has of its own: runs beside each other, and matplotlib's names as plotly's."""

from pyrskip.evaluation.style import BLUE, GREEN, ORANGE, PURPLE, RED, SKY

RULES = {"supervised": BLUE, "gumbel": ORANGE, "reinforce": GREEN, "actor_critic": PURPLE, "exact": RED}
"""Rule -> colour, where runs are compared that differ in their rule."""
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
"""Matplotlib's lines -> plotly's."""
SYMBOLS = {
    **{"o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left"},
    **{">": "triangle-right", ".": "circle-open", "x": "x-thin-open", "1": "y-down-open"},
    **{"2": "y-up-open", "3": "y-left-open", "P": "cross", "*": "star", "D": "diamond", "X": "x"},
}
"""Matplotlib's markers -> plotly's."""
