"""Errors that a user can mend. The command line prints them as one sentence and exits with 2."""

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what is allowed."""


def unknown_name(what: str, name: object, allowed: object) -> UserError:
    """The error for a name that is none of `allowed`, an iterable of names."""
    names = ", ".join(sorted(str(a) for a in allowed))  # type: ignore[attr-defined]
    return UserError(f"{what}={name!r} is unknown; allowed: {names}")


def unknown_key(key: str, allowed: Iterable[str], name: object) -> UserError:
    """The error for a config key whose group holds other keys. name: the group's own key `name`, of what it
    configures, or None."""
    group = key.rpartition(".")[0]
    of = f", with {group}.name={name}" if group and isinstance(name, str) else ""
    keys = ", ".join(sorted(allowed)) or f"none, since {group} is a value"
    return UserError(f"config key {key} is unknown; allowed here{of}: {keys}")
