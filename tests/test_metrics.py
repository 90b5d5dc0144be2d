"""Claims about scores: each metric gives what its benchmark's own script, or its paper, gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrskip.errors import UserError
from pyrskip.metrics import METRICS, anls, choice, exact, normalise_vqa, relaxed, score, vqa, vqa_normalised

TEXT = st.text(alphabet="abc ABC.,12%'", max_size=8)


@pytest.mark.parametrize("name", METRICS)
@given(answer=TEXT, accepted=st.lists(TEXT, min_size=1, max_size=10))
def test_a_score_is_between_0_and_1(name: str, answer: str, accepted: list[str]) -> None:
    assert 0 <= score(answer, accepted, name, "which?\nA. a\nB. b") <= 1


@pytest.mark.parametrize("name", METRICS)
@given(answer=st.sampled_from(["red", "2", "a b", "B"]))
def test_an_accepted_answer_scores_1(name: str, answer: str) -> None:
    assert score(answer, [answer] * 10, name) == 1


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UserError, match="metric='bleu'.*anls"):
        score("a", ["a"], "bleu")


def test_exact_ignores_case_and_outer_space() -> None:
    assert exact(" Yes ", ["yes", "oui"]) == 1
    assert exact("yes.", ["yes"]) == 0


@pytest.mark.parametrize(
    ("given_by", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_leaves_each_annotator_out_in_turn(given_by: int, expected: float) -> None:
    # the figures of visualqa.org/evaluation.html: min(1, #others / 3), averaged over the 10 choose 9 sets
    accepted = ["red"] * given_by + [f"other {i}" for i in range(10 - given_by)]
    assert vqa("red", accepted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The Two dogs", "2 dogs"),
        ("none", "0"),
        ("an apple, a pear", "apple pear"),
        ("dont know", "don't know"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("it's", "it's"),
        ("couldnt've", "couldn't've"),
        ("wheres it?", "where's it"),
        ("1. 2.", "1 2"),
        ("x" + "." * 40, "x" + "." * 8),  # the script's re.UNICODE is a count of 32
    ],
)
def test_vqa_normalises_as_its_script_does(text: str, normalised: str) -> None:
    assert normalise_vqa(text) == normalised


@pytest.mark.parametrize(
    ("answer", "accepted", "script", "always"),
    [
        ("a red", ["red"] * 10, 0, 1),
        ("a red", ["red"] * 9 + ["blue"], 1, 1),
        ("Yes", ["yes"] * 10, 0, 1),
        ("yes", ["Yes"] * 10, 0, 1),
        ("Yes", ["Yes"] * 10, 1, 1),
        ("yes", [" yes\n"] * 10, 1, 1),
        ("Yes", ["yes"] * 9 + ["no"], 1, 1),
        ("yes", ["yes"] * 9 + ["Yes"], 1, 1),
        ("two", ["2"] * 10, 0, 1),
        ("yes", ["yes", "no", "maybe"], 2 / 9, 2 / 9),
        ("yes", ["yes", "yes"], 1 / 3, 1 / 3),
        ("yes", ["Yes", "Yes"], 0, 1 / 3),
        ("Yes", ["yes"], 1, 1),  # the script: 0, whatever is answered
    ],
)
def test_vqa_is_vqaeval_and_normalised_lmms_evals_and_vlmevalkits(
    answer: str, accepted: list[str], script: float, always: float
) -> None:
    # vqaEval.py (GT-Vision-Lab/VQA) normalises where annotators disagree; vqav2_process_results of lmms-eval
    # and process_line of VLMEvalKit always
    assert vqa(answer, accepted) == pytest.approx(script)
    assert vqa_normalised(answer, accepted) == pytest.approx(always)


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("0.28", ["0.28"], 1.0),
        ("moon light", ["Moon  Light"], 1.0 - 0 / 11),
        ("hello worle", ["hello world"], 1 - 1 / 11),
        ("hello", ["hello world", "help"], 1 - 2 / 5),
        ("cat", ["dog"], 0.0),
        ("abcd", ["abxy"], 0.5),
        ("abc", ["axy"], 0.0),
        ("", ["a"], 0.0),
    ],
)
def test_anls_is_the_best_similarity_and_nothing_below_a_half(
    answer: str, accepted: list[str], expected: float
) -> None:
    assert anls(answer, accepted) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-95", "-100", 1),
        ("12%", "0.12", 1),
        ("12%", "12", 0),
        ("12.5%", "12%", 1),
        ("Yes", "yes", 1),
        ("Yes!", "yes", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),
        ("2014", "1980", 1),
        ("1,000", "1000", 0),
    ],
)
def test_relaxed_takes_numbers_within_a_twentieth(answer: str, accepted: str, expected: int) -> None:
    assert relaxed(answer, [accepted]) == expected


OPTIONS = "What is it?\nA. teddy bear\nB. rabbit\nC. cat\nD. dog"


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("A", "A", 1),
        ("A.", "A", 1),
        ("(B) rabbit", "B", 1),
        ("Answer: C", "C", 1),
        ("a cute teddy bear", "A", 1),
        ("a rabbit or a cat", "B", 0),
        ("B or C", "B", 0),
        ("Spider", "A", 0),
        ("B", "rabbit", 1),
        ("E", "A", 0),
    ],
)
def test_choice_infers_the_option_as_vlmevalkit_does(answer: str, accepted: str, expected: int) -> None:
    assert choice(answer, [accepted], OPTIONS) == expected


def test_choice_without_options_in_the_question_reads_letters_or_the_text() -> None:
    assert choice("B.", ["B"], "which?") == 1
    assert choice("C", ["B"], "which?") == 0
    assert choice("Paris", ["paris"], "which?") == 1
