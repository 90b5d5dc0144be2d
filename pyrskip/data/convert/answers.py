"""Answers as files have them, and as texts: what is missing, numbers, and lists that were written as text."""

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import numpy as np

NOTHING = frozenset(("", "nan", "NaN", "<NA>"))
"""What tables write where nothing is."""
ARRAY = re.compile(r"""\[\s*((?:'[^']*'|"[^"]*")\s+)+(?:'[^']*'|"[^"]*")\s*\]""")
"""How numpy writes an array of texts: without commas."""


def missing(value: object) -> bool:
    """None, NaN, and what tables write for them."""
    if isinstance(value, str):
        return value.strip() in NOTHING
    return value is None or (isinstance(value, float) and math.isnan(value))


def listed(value: object) -> list[Any]:
    """'a', ['a', 'b'], "['a', 'b']" or [{'answer': 'a'}, ...] -> a list. The text of a list is that list, as
    VLMEvalKit's process_line has it."""
    if isinstance(value, str) and (found := list_in(value)) is not None:
        value = found
    values = value if isinstance(value, list) else [value]
    return [v["answer"] if isinstance(v, dict) else v for v in values]


def list_in(text: str) -> list[Any] | None:
    """The list that a text is, as Python, JSON or numpy writes one, or None."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if ARRAY.fullmatch(text):
        return [ast.literal_eval(one) for one in re.findall(r"""'[^']*'|"[^"]*\"""", text)]
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _python(text)
    return found if isinstance(found, list) else None


def _python(text: str) -> Any:
    """A list that Python wrote, in which nan and null are None; or None."""
    try:
        body = ast.parse(text, mode="eval").body
        if not isinstance(body, ast.List):
            return None
        return [None if isinstance(one, ast.Name) else ast.literal_eval(one) for one in body.elts]
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def ordered(answers: Iterable[object]) -> tuple[str, ...]:
    """Answers as text, repeats included, the most frequent first: what comes first is what a model learns to
    write.

    Raises ValueError where there is none, or one is no text or number.
    """
    texts = [text for answer in answers if (text := text_of(answer))]
    if not texts:
        raise ValueError("there is no answer")
    if len(texts) == 1:
        return (texts[0],)
    counts = Counter(texts)
    return tuple(sorted(texts, key=lambda text: -counts[text]))


def text_of(value: object) -> str:
    """'' where it is missing; a whole number without a point, another with the digits that it was written
    with, in 32 bits too. Raises ValueError for what is no text or number."""
    if isinstance(value, str):
        text = value.strip()
        return "" if text in NOTHING else text
    if missing(value):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no answer")
    if value == int(value):
        return str(int(value))
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    short = np.float32(value)
    return str(short if float(short) == value else value)
