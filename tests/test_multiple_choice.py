"""Claims about multiple choice: what a question lists, and what an answer means; right values are those of
VLMEvalKit's can_infer (vlmeval/utils/matching_util.py) but where a test says otherwise."""

from itertools import pairwise, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrskip.metrics import choice
from pyrskip.multiple_choice import inferred, options

LISTED = {"A": "cat", "B": "dog", "C": "red fish", "D": "fish"}
FORMS = (
    "{0}",
    "{0}.",
    "({0})",
    "{0})",
    "[{0}]",
    "{0}:",
    "{0}: {1}",
    "{0}. {1}",
    "({0}) {1}",
    "**{0}**",
    "{1}",
)
SPOKEN = (
    "Option {0}",
    "option ({0})",
    "Answer: {0}",
    "The answer is {0}.",
    "the correct answer is ({0}) {1}",
    "{0} is correct",
    "option {0} is the right answer.",
    "{0}</s>",
    "<answer>{0}</answer>",
    "\u9009{0}",
    "\u6b63\u786e\u7b54\u6848\u662f\uff1a{0}\u3002",
    "{0}\u3001{1}",
)


@pytest.mark.parametrize(
    "question",
    [
        "which?\nA. cat\nB. dog\nC. fish",
        "which?\nA) cat\nB) dog\nC) fish",
        "which?\n(a) cat\n(b) dog\n(c) fish\nAnswer with the option's letter from the choices.",
        "which?\nA: cat\nB: dog\nC: fish",
        "which?\n**A.** cat\n**B.** dog\n**C.** fish",
        "which?\n- A. cat\n- B. dog\n- C. fish",
        "which?\nOption A: cat\nOption B: dog\nOption C: fish",
        "which?\nA - cat\nB - dog\nC - fish",
        "which?\nA cat\nB dog\nC fish",
        "which?\nA\uff0ecat\nB\uff0edog\nC\uff0efish",
        "which? A. cat B. dog C. fish",
        "which? (A) cat (B) dog (C) fish",
        "which?(A)cat(B)dog(C)fish",
        "which? a) cat b) dog c) fish",
        "Options: A. cat, B. dog, or C. fish?",
        "Options: A. cat\nB. dog\nC. fish",
        "A. cat  B. dog\nC. fish",
        "A. cat B. dog C. fish Answer with a letter.",
        "hint\nA. an aim\nB. a method\nwhich?\nA. cat\nB. dog\nC. fish",
        "Is A. right, or B.?\nA. cat\nB. dog\nC. fish",
    ],
)
def test_options_are_found_on_lines_and_within_one(question: str) -> None:
    assert {o.label: o.text for o in options(question)} == {"A": "cat", "B": "dog", "C": "fish"}
    for accepted, said in (("B", "B"), ("dog", "B"), ("B", "a dog"), ("(b)", "B"), ("B. dog", "dog")):
        assert choice(said, [accepted], question) == 1
    assert choice("C", ["B"], question) == choice("fish", ["B"], question) == 0


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("which?\nA. cat\nB. dog\nD. fish", {"A": "cat", "B": "dog", "D": "fish"}),  # a table without C
        ("which?\n1. cat\n2. dog", {"1": "cat", "2": "dog"}),
        ("A. vitamin A. B. vitamin B. C. none", {"A": "vitamin A.", "B": "vitamin B.", "C": "none"}),
        ("A. one\ntwo\nB. three", {"A": "one two", "B": "three"}),
        ("A. see B. below\nB. dog", {"A": "see B. below", "B": "dog"}),
        ("I. M. Pei built what?", {}),
        ("what is at 3 p.m. in the U.S.A.?", {}),
        ("A. only one", {}),
        ("", {}),
    ],
)
def test_what_lists_no_options_has_none(question: str, found: dict[str, str]) -> None:
    assert {o.label: o.text for o in options(question)} == found


@pytest.mark.parametrize("form", [*FORMS, *SPOKEN])
@pytest.mark.parametrize("listed", ["\nA. cat\nB. dog\nC. red fish\nD. fish", " A. cat B. dog", ""])
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_an_accepted_answer_is_right_in_every_form(form: str, listed: str, case: type[str]) -> None:
    accepted = form.format(case("B"), "dog")
    assert choice(accepted, [accepted], f"which?{listed}") == 1
    assert choice(accepted, ["B"], f"which?{listed}") == (form != "{1}" or bool(listed))
    assert choice("B", [accepted], f"which?{listed}") == (form != "{1}" or bool(listed))
    for wrong in ("A", "(A)", "a.", "A. cat", "no idea", ""):
        assert choice(wrong, [accepted], f"which?{listed}") == 0


def test_options_that_are_letters_are_known_by_their_labels() -> None:
    for labels in permutations("ABCD"):
        question = "\n".join(["which?", *(f"{of}. {text}" for of, text in zip("ABCD", labels, strict=True))])
        for right in "ABCD":
            for said in "ABCD":
                assert choice(said, [right], question) == (said == right)
    assert choice("F", ["A"], "which?\nA. F\nB. E") == 1  # the text of one is no label
    assert choice("E", ["A"], "which?\nA. F\nB. E") == 0


@pytest.mark.parametrize(
    ("answer", "means"),
    [
        ("B", "B"),
        ("Answer: C", "C"),
        ("The correct answer is **B**. Here's why: the animal on the picture barks", "B"),
        ("it is most likely to be B", "B"),
        ("B is what this animal is most likely to be", None),  # not among the last four words
        ("B or C", None),
        ("a cat", "A"),
        ("A cat", "A"),
        ("A dog", "A"),  # the letter goes first
        ("a cat or a dog", None),
        ("Z", None),
        ("Z, a dog", None),  # Z is none of them
        ("the dog that is to the left of the big old tree behind the house", None),  # too long for its text
        ("", None),
    ],
)
def test_an_answer_means_what_can_infer_says(answer: str, means: str | None) -> None:
    assert inferred(answer, LISTED) == means


@pytest.mark.parametrize(
    ("answer", "means"),
    [
        ("red fish", "C"),
        ("Red fish.", "C"),
        ("b", "B"),
        ("(b)", "B"),
        ("option b", "B"),
        ("B. because this is an animal that barks at night", "B"),
        ("b) because this is an animal that barks at night", "B"),
        ("A. cat B. dog", None),
        ("\u4e0d\u9009B", None),  # not B
        ("A\u3001B", None),
        ("The answer is dog", "B"),  # can_infer: D, its first letter
        ("The answer is a dog", "B"),  # can_infer: A
    ],
)
def test_where_vlmevalkit_asks_a_language_model_plain_forms_count(answer: str, means: str | None) -> None:
    assert inferred(answer, LISTED) == means


@given(text=st.text(max_size=30), answer=st.text(alphabet="ABab.() dogcatZ1", max_size=12))
def test_any_text_lists_labels_in_order_and_an_answer_means_one_of_them(text: str, answer: str) -> None:
    found = options(f"{text}\nA. {answer}\nB. {text}")
    assert all(one.stop <= other.start for one, other in pairwise(found))
    listed = {option.label: option.text for option in found}
    assert len(listed) == len(found) != 1
    assert inferred(answer, listed) in {None, *listed}


def test_a_long_question_is_searched_in_no_time() -> None:
    for piece in ("A. ", "A. B. ", "(a) ", "1) x ", "\nA. x", " ,;", "**"):
        options(piece * 5_000)
