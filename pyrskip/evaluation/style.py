"""How a method looks wherever it is shown, as data: `pyrskip.report` draws by it."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

# Okabe-Ito: distinct to any colour vision
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"


class Section(IntEnum):
    """Parts of the tables, from top to bottom."""

    REFERENCES = 0
    FIXED = 1
    HEURISTICS = 2
    RANDOM = 3
    GATES = 4
    PEERS = 5
    ORACLES = 6
    OTHERS = 7


@dataclass(frozen=True)
class Style:
    """How a method looks. line and marker: matplotlib's.

    kind: a curve over prices (or vertices, probabilities, levels), single points, the ringed and named fixed
    selections, or a floor that no axis needs to reach. area: of a single point, in square points. panels:
    where papers' plots draw it: beside the fixed selections ('gate'), beside what explains the gate
    ('explained'), behind the curves of several runs ('runs'). section, place: in the tables, the lower place
    first. first: shown from the start in the interactive figure. band: drawn bold, with its interval.
    by_type: listed in the page's table by question type.
    """

    colour: str = GREY
    line: str = ":"
    marker: str = "."
    kind: Literal["curve", "point", "selections", "floor"] = "curve"
    area: int = 60
    panels: tuple[Literal["gate", "explained", "runs"], ...] = ("explained",)
    section: Section = Section.OTHERS
    place: int = 0
    first: bool = False
    band: bool = False
    by_type: bool = False
