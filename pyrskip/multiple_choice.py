"""Multiple choice: the options that a question lists, and which of them a text means.

A label is a capital letter or a number, as text, however the question writes it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_OPEN, _CLOSE = r"\*{0,2}[(\[\uff08]?", r"(?:[)\].:\uff09\uff0e\uff1a\u3001]+\*{0,2}|\*\*[.:]?)"
_LINE = re.compile(
    rf"^[ \t]*(?:[-*•][ \t]+)?(?:(?:option|choice)[ \t]+)?{_OPEN}([a-z]|\d\d?)"
    rf"(?:{_CLOSE}|[ \t]+[-\u2013|](?=[ \t]))[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
# within a line a small letter or a number is one with its bracket alone
_WITHIN = re.compile(
    rf"(?:(?<![\w.'])|(?=[(\[\uff08]))(?:{_OPEN}([A-Z]){_CLOSE}|[(\[\uff08]?([a-z]|\d\d?)[)\]\uff09])[ \t]*"
)
_BARE = re.compile(r"^[ \t]*([A-Z])[ \t]+(?=\S)", re.MULTILINE)
_INSTRUCTION = re.compile(
    r"(?:^|\s)(?:Answer(?=:|\s(?:with|the|using|by)\b)"
    r"|(?:Please|Choose|Select|Respond)\s(?:answer|choose|select|respond|the|one|with|an?)\b)"
)

_BETWEEN = " ,;/|?"

_APART = str.maketrans(dict.fromkeys(".()[],:;!*#{}\u3001\u3002\uff0c\uff1a\uff08\uff09", " "))
_LAST = 4
_TAG = re.compile(r"</\w+>|<\|?\w{2,}\|?>|<s>")
_CHOSEN = r"(?:\u7b54\u6848|(?<!\u4e0d)\u9009\u62e9?)[\u662f\u4e3a]?[\W_]*"
"""'The answer is' and 'choose', in Chinese."""
_SAID = re.compile(rf"(?:(?i:answer\s+is)\s+\**|{_CHOSEN})([A-Z]|\d\d?)(?!\w)")
_LABELLED = re.compile(
    r"[\W_]*(?:(?:the\s+)?(?:(?:correct|right|best|final)\s+)?(?:answer|option|choice)(?:\s+is)?[\W_]+)*"
    rf"(?:(?:\u6b63\u786e)?{_CHOSEN})?([a-z]|\d\d?)(?:(?:\s+is\s+(?:the\s+)?(?:correct|right|best)"
    r"(?:\s+(?:answer|option|choice))?)?[\W_]*$|\s*[)\].:*]+\s+|\s+[-\u2013]\s+"
    r"|[\u3001\uff0e\uff1a](?!\s*[a-z](?!\w)))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Option:
    """start, stop: where it stands in the question, with its label, in characters."""

    label: str
    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Mark:
    label: str
    start: int
    stop: int

    @property
    def kind(self) -> int:
        return 2 if self.label.isdigit() else int(self.label.islower())

    @property
    def place(self) -> int:
        return int(self.label) if self.label.isdigit() else ord(self.label.upper()) - ord("A") + 1


def options(question: str) -> tuple[Option, ...]:
    """The options that a question lists: two or more, from A, a or 1 on, on lines of their own ('A. text',
    '(a) text', 'Option A: text', 'A text') or within one. None where it lists none."""
    lines, within = _listed(question, _LINE, gaps=True), _listed(question, _WITHIN)
    if lines and (len(lines) >= len(within) or len(lines) == _Mark(lines[-1].label, 0, 0).place):
        return _spread(question, lines)
    # two of them may stand on each line
    return _spread(question, within or _listed(question, _BARE))


def right_labels(accepted: str, listed: Mapping[str, str]) -> set[str]:
    """Labels of the options that an accepted answer names: by its label, its text, or both. listed: label ->
    text. A capital letter is a label before it is another option's text."""
    found = _labelled(accepted)
    label, whole = (found[1].upper(), found.end() == len(found.string)) if found else ("", False)
    if found and whole and found[1] in listed:
        return {label}
    same = {of for of, text in listed.items() if plain(text) == plain(accepted)}
    if same or label in listed:
        return same or {label}
    named = _named_by(accepted, listed)
    return {named} if named else set()


def inferred(answer: str, listed: Mapping[str, str]) -> str | None:
    """The label of the option that an answer means, as VLMEvalKit's can_infer finds it: the one label that
    is a word of it, among its last four; none where Z is one; or 'answer is B'; or the one option whose text
    it holds, where it is at most twice as long as all of them. listed: label -> text.

    Where can_infer leaves the rest to a language model, an option's text alone is that option (though it
    holds another's), and so is a label alone or at the front, in either case, also in Chinese; tags of chat
    templates do not count. Not taken over: the refusals of
    APIs that it knows; 'the answer is dog', which is D there.
    """
    bare = _TAG.sub(" ", answer)
    words = bare.translate(_APART).split()
    named = [label for label in listed if label in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - _LAST:
        return named[0]
    same = [label for label, text in listed.items() if plain(text) == plain(answer)]
    if not named and "Z" in words and not same:
        return None
    said = _SAID.search(bare)
    if said and said[1] in listed:
        return said[1]
    if len(answer) <= 2 * sum(map(len, listed.values())) and (label := _named_by(answer, listed)):
        return label
    found = _labelled(answer)
    if not same and found and {*named, found[1].upper()} <= {found[1].upper()} & set(listed):
        same = [found[1].upper()]
    return same[0] if len(same) == 1 else None


def text_behind(answer: str) -> tuple[str, str] | None:
    """The label that an answer begins with, and the text behind it; None where it begins with none."""
    found = _labelled(answer)
    return (found[1].upper(), found.string[found.end() :]) if found else None


def plain(text: str) -> str:
    """Letter case, white space and the end of a sentence apart."""
    return " ".join(text.lower().split()).rstrip(".?!")


def _labelled(answer: str) -> re.Match[str] | None:
    return _LABELLED.match(_TAG.sub(" ", answer))


def _named_by(answer: str, listed: Mapping[str, str]) -> str | None:
    """The one option whose text is within an answer."""
    answer = " ".join(answer.lower().split())
    named = [label for label, text in listed.items() if text and text.lower() in answer]
    return named[0] if len(named) == 1 else None


def _listed(question: str, pattern: re.Pattern[str], gaps: bool = False) -> list[_Mark]:
    """The longest row of marks whose labels follow each other, the last of several; capitals before small
    letters and numbers. gaps: labels may be left out."""
    found = (_Mark(m[m.lastindex or 1], m.start(), m.end()) for m in pattern.finditer(question))
    # text must follow: on the same line, where marks stand within one
    end = len(question.rstrip())
    marks = [m for m in found if m.stop < end and (gaps or not question[m.stop].isspace())]
    for kind in range(3):
        row = _longest(question, [mark for mark in marks if mark.kind == kind], gaps)
        if len(row) > 1:
            return row
    return []


def _longest(question: str, marks: Iterable[_Mark], gaps: bool) -> list[_Mark]:
    behind: dict[int, list[_Mark]] = {}  # place -> marks further on, the nearest last
    follows: dict[_Mark, _Mark] = {}
    length: dict[_Mark, int] = {}
    best: _Mark | None = None
    for mark in reversed(list(marks)):
        later = {
            place: next((m for m in of[:-3:-1] if question[mark.stop : m.start].strip()), None)
            for place, of in behind.items()
            if place == mark.place + 1 or (gaps and place > mark.place)
        }
        near = [m for m in later.values() if m]
        after = later.get(mark.place + 1) or min(near, key=lambda m: m.start, default=None)
        length[mark] = 1 + (length[after] if after else 0)
        if after:
            follows[mark] = after
        behind.setdefault(mark.place, []).append(mark)
        if mark.place == 1 and (best is None or length[mark] > length[best]):
            best = mark
    row = [best] if best else []
    while row and row[-1] in follows:
        row.append(follows[row[-1]])
    return row


def _spread(question: str, marks: list[_Mark]) -> tuple[Option, ...]:
    """Marks -> options, each to the next one's mark, the last to the end of its line or an instruction."""
    found = []
    for number, mark in enumerate(marks):
        if number + 1 < len(marks):
            stop = marks[number + 1].start
        else:
            begin = len(question) - len(question[mark.stop :].lstrip())
            line = question.find("\n", begin)
            stop = len(question) if line < 0 else line
            instruction = _INSTRUCTION.search(question[begin:stop])
            stop = begin + instruction.start() if instruction else stop
        text = " ".join(question[mark.stop : stop].split()).strip("*").rstrip(_BETWEEN)
        for word in (" or", " and"):
            text = text.removesuffix(word).rstrip(_BETWEEN)
        found.append(Option(mark.label.upper(), text, mark.start, stop))
    return tuple(found)
