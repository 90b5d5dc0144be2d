"""What is played at each price so that a gate is never worse than fixed selections: the gate where it was
found to be above them, and the best of them elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Safe:
    """gate: ranges of prices, both ends included, at which the gate decides. fixed: the first price, and the
    listed action that is played from there on at all others; ascending, from 0 on."""

    gate: tuple[tuple[float, float], ...]
    fixed: tuple[tuple[float, str], ...]

    def __post_init__(self) -> None:
        first = [price for price, _ in self.fixed]
        if not first or first[0] != 0 or first != sorted(first):
            raise ValueError(f"prices: safe selections start at {first}, not at 0 and ascending")

    def at(self, price: float) -> str | None:
        """The listed action that is played at a price of at least 0; None: the gate decides."""
        if any(low <= price <= high for low, high in self.gate):
            return None
        return next(action for first, action in reversed(self.fixed) if first <= price)

    @classmethod
    def parse(cls, plain: Mapping[str, Sequence[Sequence[Any]]]) -> "Safe":
        """Of what `dataclasses.asdict` gives. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            tuple((float(low), float(high)) for low, high in plain["gate"]),
            tuple((float(price), str(action)) for price, action in plain["fixed"]),
        )
