"""Claims about questions of more tokens than a model reads: options stay, and so does the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrskip.errors import UserError
from pyrskip.models.language import train_tokenizer
from pyrskip.multiple_choice import options
from pyrskip.words import encoded, read

HINT, ASKED, LISTED = "the passage tells of many things " * 20, "which colour?", "A. red\nB. green"
TOKENIZER = train_tokenizer([HINT, ASKED, LISTED] * 3, 320)


def kept(question: str, most: int) -> str:
    [tokens] = encoded([question], TOKENIZER)
    ids = read(question, tokens, most)
    assert len(ids) == min(most, len(tokens))
    return str(TOKENIZER.decode(ids))


@pytest.mark.parametrize(
    ("question", "holds"),
    [
        (f"{HINT}\n{ASKED}\n{LISTED}", [ASKED, LISTED]),
        (f"{LISTED}\n{HINT}\n{ASKED}", [LISTED, ASKED]),
        (f"{LISTED}\n{HINT}", [LISTED]),
        (f"{HINT}\n{ASKED} A. red B. green", [ASKED, "A. red B. green"]),
        (f"{HINT}\n{ASKED}", [ASKED]),
        (
            f"\u00e9\u4e2d{HINT}\u00e9\n{ASKED}\nA. \u4e2d\nB. \u00e9\u00e9",
            [ASKED, "A. \u4e2d\nB. \u00e9\u00e9"],
        ),
    ],
    ids=["behind", "before", "alone", "on a line", "none", "no ascii"],
)
def test_options_and_the_end_are_what_is_read(question: str, holds: list[str]) -> None:
    read_of = kept(question, 48)
    assert all(part in read_of for part in holds)
    assert len(read_of) < len(question)


def test_options_that_are_too_many_are_refused() -> None:
    listed = "\n".join(f"{letter}. {HINT}" for letter in "AB")
    with pytest.raises(UserError, match="options have .* tokens; allowed: 48"):
        kept(f"{ASKED}\n{listed}", 48)


@given(hint=st.text(max_size=80), behind=st.text(alphabet="ab \n.", max_size=40), most=st.integers(24, 60))
def test_whatever_stands_around_them_options_are_read(hint: str, behind: str, most: int) -> None:
    question = f"{hint}\n{LISTED}\n{behind}"
    found = options(question)
    assert question[found[0].start : found[-1].stop] in kept(question, most)
