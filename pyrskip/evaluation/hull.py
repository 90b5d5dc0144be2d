"""The upper hull of points of cost and value: what mixing the best of them reaches at every cost."""

from collections.abc import Sequence
from itertools import pairwise


def upper_hull(cost: Sequence[float], value: Sequence[float]) -> list[int]:
    """Vertices of the concave, rising upper hull of points, cheapest first: mixing two neighbours beats all
    between."""
    vertices: list[int] = []
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -value[i])):
        if vertices and value[i] <= value[vertices[-1]]:
            continue
        while len(vertices) > 1 and not _turns_down(*((cost[j], value[j]) for j in (*vertices[-2:], i))):
            vertices.pop()
        vertices.append(i)
    return vertices


def value_at(hull: Sequence[tuple[float, float]], cost: float) -> float | None:
    """Value of the mix of two neighbours of a hull that costs this much. hull: (cost, value), cheapest first.

    None below the cheapest; the dearest vertex's value above it.
    """
    if not hull or cost < hull[0][0]:
        return None
    for (low, below), (high, above) in pairwise(hull):
        if cost < high:
            return below + (above - below) * (cost - low) / (high - low)
    return hull[-1][1]


def cost_at(hull: Sequence[tuple[float, float]], value: float) -> float | None:
    """Cost of the cheapest mix of two neighbours of a hull that is worth this much. hull: as of `value_at`.

    The cheapest vertex's below its value; None above the value of all.
    """
    if hull and value <= hull[0][1]:
        return hull[0][0]
    for (low, below), (high, above) in pairwise(hull):
        if value <= above:
            return low + (high - low) * (value - below) / (above - below)
    return None


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """The slope from b to c is less than that from a to b. Costs rise strictly from a to c."""
    return (c[1] - b[1]) * (b[0] - a[0]) < (b[1] - a[1]) * (c[0] - b[0])
