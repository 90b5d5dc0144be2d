"""key=value arguments of commands that do without Hydra."""

from collections.abc import Mapping, Sequence
from typing import overload

from pyrskip.errors import UserError


class Keys:
    """Typed access to given keys. Raises UserError for a key that is not known, missing, or of another
    type."""

    def __init__(self, given: Mapping[str, str], known: Sequence[str]) -> None:
        for key in given:
            if key not in known:
                raise UserError(f"{key}= is unknown; allowed: {', '.join(known)}")
        self.given = given

    def text(self, key: str, default: str | None = None) -> str:
        if not self.given.get(key) and default is None:
            raise UserError(f"{key}= is missing; --help shows an example")
        return self.given.get(key) or str(default)

    @overload
    def whole(self, key: str, least: int = 1, default: None = None) -> int | None: ...

    @overload
    def whole(self, key: str, least: int = 1, *, default: int) -> int: ...

    def whole(self, key: str, least: int = 1, default: int | None = None) -> int | None:
        """An integer of at least `least`, or the default where nothing is given."""
        if key not in self.given:
            return default
        try:
            value = int(self.given[key])
        except ValueError:
            value = least - 1
        if value < least:
            raise UserError(f"{key}={self.given[key]}: allowed: whole numbers of at least {least}")
        return value

    @overload
    def number(self, key: str, default: None = None) -> float | None: ...

    @overload
    def number(self, key: str, default: float) -> float: ...

    def number(self, key: str, default: float | None = None) -> float | None:
        if key not in self.given:
            return default
        try:
            return float(self.given[key])
        except ValueError as error:
            raise UserError(f"{key}={self.given[key]}: allowed: a number") from error

    def flag(self, key: str, default: bool) -> bool:
        value = self.given.get(key, str(default)).lower()
        if value not in ("true", "false"):
            raise UserError(f"{key}={self.given[key]}: allowed: true, false")
        return value == "true"
