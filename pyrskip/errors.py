"""Errors that a user can mend. The command line prints them as one sentence and exits with 2."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what is allowed."""


def unknown_name(what: str, name: object, allowed: object) -> UserError:
    """The error for a name that is none of `allowed`, an iterable of names."""
    names = ", ".join(sorted(str(a) for a in allowed))  # type: ignore[attr-defined]
    return UserError(f"{what}={name!r} is unknown; allowed: {names}")
