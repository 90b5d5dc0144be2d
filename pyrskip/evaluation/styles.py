"""How methods look in every picture: colours that are told apart with any colour vision, and the same ones
everywhere."""

# Okabe-Ito: told apart with any colour vision
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#8C8C8C"
LINES = {
    "gate": (BLUE, "-", "o"),
    "gate:joint": (BLUE, "--", "x"),
    "gate:query_only": (ORANGE, "-", "s"),
    "gate:glance_only": (GREEN, "-", "^"),
    "gate:shuffled_query": (PURPLE, ":", "v"),
    "random": (GREY, "-", "."),
    "random:bernoulli": (GREY, "--", "x"),
    "hull": (BLACK, "--", ""),
    "oracle:type": (RED, "-.", "1"),
    "oracle:sample": (RED, ":", "2"),
    "oracle:cross": (RED, "--", "3"),
    "cosine": (SKY, "--", "P"),
    "budget:capacity": (ORANGE, "--", "<"),
    "budget:learned": (ORANGE, "-.", ">"),
    "strategy": (SKY, ":", "X"),
}
"""Method -> colour, line, marker of a curve over prices (or over vertices, probabilities, levels)."""
POINTS = {"full": (BLACK, "*", 190), "reference": (RED, "D", 60), "heuristic": (SKY, "X", 90)}
"""Method -> colour, marker, area of a single point."""
PANELS = {
    "The gate and the fixed selections": (
        *(
            "hull",
            "budget:capacity",
            "budget:learned",
            "oracle:sample",
            "oracle:cross",
            "oracle:type",
            "gate",
            "full",
        ),
        "reference",
    ),
    "What the decision is worth": (
        *(
            "hull",
            "random",
            "random:bernoulli",
            "cosine",
            "gate:shuffled_query",
            "gate:glance_only",
            "gate:query_only",
        ),
        *("gate:joint", "gate", "heuristic", "strategy", "full", "reference"),
    ),
}
ORDER = (
    *(
        "full",
        "reference",
        "question_only",
        "fixed",
        "hull",
        "budget:capacity",
        "budget:learned",
        "heuristic",
    ),
    *("strategy", "cosine", "random:bernoulli", "random"),
    *("gate:shuffled_query", "gate:glance_only", "gate:query_only", "gate:joint", "gate"),
    *("oracle:type", "oracle:cross", "oracle:sample"),
)
RULES = {"supervised": BLUE, "gumbel": ORANGE, "reinforce": GREEN, "actor_critic": PURPLE, "exact": RED}
"""Rule -> colour, where runs are compared that differ in their rule."""
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
"""Matplotlib's lines -> plotly's."""
SYMBOLS = {
    **{
        "o": "circle",
        "s": "square",
        "^": "triangle-up",
        "v": "triangle-down",
        ".": "circle-open",
        "x": "x-thin-open",
    },
    **{
        "1": "y-down-open",
        "2": "y-up-open",
        "3": "y-left-open",
        "P": "cross",
        "*": "star",
        "D": "diamond",
        "X": "x",
        "<": "triangle-left",
        ">": "triangle-right",
    },
}
"""Matplotlib's markers -> plotly's."""


def line_of(method: str) -> tuple[str, str, str]:
    """Colour, line and marker of a method's curve; grey and dotted where the table does not name it."""
    return LINES.get(method, (GREY, ":", "."))
