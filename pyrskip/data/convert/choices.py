"""Multiple choice: options in columns of their own, and answers that name one by its letter, its number from
0 or its text.

Columns are A, B, ... (MMBench), choice_a, ... (SEED-Bench), or a list in `options` (AI2D, MMMU) or `choices`
(ScienceQA). How a file's answers name options is told by the rows in which that is clear.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyrskip.data.convert.answers import list_in, missing, ordered, text_of

LISTS = ("options", "choices")
LETTER = re.compile(r"([A-Z])|(?i:choice|option)[_ ]?([A-Ja-j])")
NAMED = re.compile(r"(?:(?i:option)\s+)?\(?([A-Z])[).:]?(?:\s+(\S.*))?", re.DOTALL)
LETTERED = re.compile(r"\(?([A-Z])[).:]\s*(\S.*)", re.DOTALL)


class Later(Exception):  # noqa: N818
    """A row that only the rest of its file explains."""


class Choices:
    """The options of a file's rows. names: its columns; metric: how its answers are scored."""

    def __init__(self, names: Iterable[str], metric: str) -> None:
        found = {name: LETTER.fullmatch(name) for name in names}
        self._letters = {name: (m[1] or m[2]).upper() for name, m in found.items() if m}
        self._lists = [] if self._letters else [name for name in LISTS if name in found]
        self._metric = metric
        self._clear: set[str] = set()

    @property
    def columns(self) -> list[str]:
        return [*self._letters, *self._lists]

    def options(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Letter -> text; {} where the row has none. Raises ValueError where they cannot be read."""
        if self._lists:
            return _of_list(next((row[n] for n in self._lists if not missing(row.get(n))), None))
        if not self._letters:
            return {}
        found = {letter: text_of(row.get(name)) for name, letter in self._letters.items()}
        return {letter: found[letter] for letter in sorted(found) if found[letter]}

    def answers(self, values: Sequence[object], options: Mapping[str, str], last: bool) -> tuple[str, ...]:
        """As `ordered`; what names an option by a letter or a number is its letter.

        last: all rows of the file have been here. Raises Later where it is not and a row can be meant in
        several ways; ValueError where an answer is no option.
        """
        if not options:
            return ordered(values)
        return ordered(self._named(text, options, last) for value in values if (text := text_of(value)))

    def _named(self, text: str, options: Mapping[str, str], last: bool) -> str:
        ways = _ways(text, options)
        if not ways:
            if self._metric == "choice" or text.isdecimal():
                raise ValueError(f"the answer {text!r} is none of the options {', '.join(options)}")
            return text
        if len(ways) == 1:
            self._clear.add(*ways)
        if len(set(ways.values())) > 1:
            way = self._way(ways, text, last)
        else:
            way = "text" if "text" in ways and "letter" not in ways else "letter"
        return text if way == "text" else ways.get(way) or next(iter(ways.values()))

    def _way(self, ways: Mapping[str, str], text: str, last: bool) -> str:
        if "letter" in ways and self._letters:
            return "letter"
        if not last:
            raise Later
        clear = self._clear & ways.keys()
        if len(clear) == 1:
            return clear.pop()
        if "letter" in ways:
            return "letter"
        raise ValueError(f"the answer {text!r} is the number of one option and the text of another")


def with_options(text: str, options: Mapping[str, str], hint: object = None) -> str:
    """A question with its hint above it and its options below, a line 'A. text' each, as VLMEvalKit's prompts
    have them; without those that it has already."""
    if not options and hint is None:
        return text
    lines = [f"{letter}. {option}" for letter, option in options.items()]
    lines = [] if all(line in text for line in lines) else lines
    return "\n".join([*([] if missing(hint) else [str(hint).strip()]), text, *lines])


def _ways(text: str, options: Mapping[str, str]) -> dict[str, str]:
    """How an answer may be meant -> the letter that it means."""
    ways: dict[str, str] = {}
    named = NAMED.fullmatch(text) or NAMED.fullmatch(text.upper() if len(text) == 1 else "")
    if named and named[1] in options and named[2] in (None, options[named[1]]):
        ways["letter"] = named[1]
    if re.fullmatch(r"\d{1,2}(\.0)?", text) and (letter := chr(65 + int(float(text)))) in options:
        ways["number"] = letter
    same = [letter for letter, option in options.items() if option.lower() == text.lower()]
    if same:
        ways["text"] = same[0]
    return ways


def _of_list(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        value = _list(value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list):  # {"label": [...], "text": [...]}
        value = value["text"]
    if isinstance(value, Mapping):
        found = {str(name): text_of(option) for name, option in value.items()}
    else:
        found = {chr(65 + i): text_of(option) for i, option in enumerate(value or [])}
    if not all(re.fullmatch("[A-Z]", letter) for letter in found):
        raise ValueError(f"options={value!r} has other letters than A to Z")
    found = {letter: option for letter, option in found.items() if option}
    own = {letter: LETTERED.fullmatch(option) for letter, option in found.items()}
    if all(m and m[1] == letter for letter, m in own.items()):
        return {letter: m[2] for letter, m in own.items() if m}
    return found


def _list(text: str) -> Any:
    found: Any = list_in(text)
    if found is None and text.lstrip().startswith("{"):
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found = None
    if found is None and len(lines := text.strip().splitlines()) > 1:
        found = lines
    if not isinstance(found, list | Mapping):
        raise ValueError(f"options={text!r} is no list")
    return found
