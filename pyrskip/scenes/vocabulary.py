"""What scenes are made of and answered with: icons, colours, words, numbers. Names are plain and meant to be
unambiguous."""

ICONS: dict[str, str] = {
    "anchor": "\uf13d",
    "apple": "\uf5d1",
    "bell": "\uf0f3",
    "bicycle": "\uf206",
    "boat": "\ue445",
    "camera": "\uf030",
    "car": "\uf5e4",
    "chair": "\uf6c0",
    "cloud": "\uf0c2",
    "crown": "\uf521",
    "dog": "\uf6d3",
    "fish": "\uf578",
    "flag": "\uf024",
    "guitar": "\uf7a6",
    "heart": "\uf004",
    "house": "\uf015",
    "key": "\uf084",
    "moon": "\uf186",
    "plane": "\uf072",
    "shirt": "\uf553",
    "spider": "\uf717",
    "star": "\uf005",
    "tree": "\uf1bb",
    "umbrella": "\uf0e9",
}
"""Name -> code point in Font Awesome 6 Free Solid, of the icons that are asked about."""

DISTRACTORS: dict[str, str] = {
    "bolt": "\uf0e7",
    "burger": "\uf805",
    "clover": "\ue139",
    "cube": "\uf1b2",
    "drum": "\uf569",
    "fan": "\uf863",
    "gear": "\uf013",
    "ghost": "\uf6e2",
    "gift": "\uf06b",
    "glasses": "\uf530",
    "globe": "\uf0ac",
    "hand": "\uf256",
    "hourglass": "\uf254",
    "leaf": "\uf06c",
    "lock": "\uf023",
    "magnet": "\uf076",
    "mitten": "\uf7b5",
    "robot": "\uf544",
    "scissors": "\uf0c4",
    "snowflake": "\uf2dc",
    "trophy": "\uf091",
    "wrench": "\uf0ad",
}
"""Likewise, of icons that are there but never asked about."""

PLURALS = {"fish": "fish"}
"""Plurals of icons that do not end in s."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "orange": (245, 130, 20),
    "yellow": (252, 220, 40),
    "green": (30, 150, 65),
    "blue": (30, 80, 215),
    "purple": (125, 45, 165),
    "pink": (248, 130, 190),
    "black": (22, 22, 25),
    "white": (250, 250, 250),
}
"""Colours of objects."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (172, 66, 62),
    "yellow": (228, 208, 125),
    "green": (108, 162, 108),
    "blue": (102, 150, 208),
    "purple": (142, 106, 178),
    "gray": (142, 142, 142),
    "pink": (236, 176, 196),
    "brown": (116, 82, 58),
}
"""Softer, so that every object's colour but the same one stands out."""

WORDS = [
    "bank",
    "beach",
    "bike",
    "book",
    "bread",
    "bus",
    "cafe",
    "dance",
    "door",
    "east",
    "exit",
    "farm",
    "fire",
    "food",
    "gift",
    "gold",
    "gym",
    "hill",
    "home",
    "hotel",
    "jazz",
    "juice",
    "lake",
    "lift",
    "lunch",
    "map",
    "menu",
    "milk",
    "music",
    "north",
    "open",
    "park",
    "pizza",
    "pool",
    "pull",
    "push",
    "quiet",
    "sale",
    "shop",
    "slow",
    "south",
    "stop",
    "taxi",
    "tea",
    "water",
    "west",
    "wood",
    "zoo",
]
"""What word signs show, in capitals."""

NUMBERS = [str(n) for n in range(10, 60)]
"""What number signs show."""

SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
"""Side of the canvas, or of another object -> axis (x 0, y 1) and the sign of the offset from its middle
along it."""


def plural(icon: str) -> str:
    return PLURALS.get(icon, f"{icon}s")
