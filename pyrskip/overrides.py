"""What is typed as key=value, as Hydra's command line takes it, which keeps some characters for itself."""

import re
import shlex
from collections.abc import Sequence
from typing import Any, get_type_hints

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from pyrskip.errors import UserError

TEXTS = ("from", "run")
"""Keys of conf/ that are texts, beside those of Config that are."""


def literal(arguments: Sequence[str], sweep: bool) -> list[str]:
    """The arguments, with what is typed for a key that takes a text put in quotes where Hydra would read it
    as something else: a path may have any character.

    sweep: whether several values of a key are a job each, and not a text with commas. Raises UserError, which
    shows how to quote, where Hydra cannot read the value of another key.
    """
    parser, result = OverridesParser.create(), []
    for argument in arguments:
        typed = re.fullmatch(r"(\+{0,2}([\w.]+)=)(.*)", argument, re.DOTALL)
        if typed is None:
            result.append(argument)
            continue
        start, key, value = typed.groups()
        override: Override | None
        try:
            override = parser.parse_override(argument)
            override.value()
        except HydraException:
            override = None
        if not _takes_text(key):
            if override is None:
                raise UserError(
                    f"{argument} has a character that the command line keeps for itself; allowed: texts in "
                    f"quotes, such as {shlex.quote(start + _in_quotes(value))}"
                )
        elif override is None or not _is_text(override, value, sweep):
            argument = start + _quoted(value)
        result.append(argument)
    return result


def _is_text(override: Override, typed: str, sweep: bool) -> bool:
    """Whether Hydra reads it as what was typed, as what is in quotes, or as the values of a sweep."""
    if override.is_sweep_override():
        return sweep
    value: Any = override.value()
    return value is None or str(value) == typed or typed[:1] + typed[-1:] in ("''", '""', "")


def _takes_text(key: str) -> bool:
    from pyrskip.config import Config

    if key in TEXTS:
        return True
    hint: Any = Config
    for name in key.split("."):
        if not hasattr(hint, "__dataclass_fields__") or name not in (hints := get_type_hints(hint)):
            return False
        hint = hints[name]
    return hint in (str, str | None)


def _in_quotes(value: str) -> str:
    """A list or a dictionary with each of its texts in quotes, or a text."""
    parts = [part.strip() for part in value[1:-1].split(",")]
    if value[:1] + value[-1:] == "[]":
        return f"[{','.join(map(_quoted, parts))}]"
    if value[:1] + value[-1:] == "{}":
        pairs = [part.partition(":")[::2] for part in parts]
        return f"{{{','.join(f'{name}: {_quoted(text.strip())}' for name, text in pairs)}}}"
    return _quoted(value)


def _quoted(text: str) -> str:
    """Backslashes stand for themselves but before a quote."""
    mark = '"' if "'" in text or '"' not in text else "'"
    escaped = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", text)
    return mark + re.sub(r"(\\+)$", r"\1\1", escaped) + mark
