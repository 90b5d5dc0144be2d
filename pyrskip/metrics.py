"""Scores of answers, in [0, 1]: each as the script of the benchmark that it comes from defines it.

A metric takes an answer, the accepted answers, and the question as it was asked (which lists the options of a
choice).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from pyrskip.errors import unknown_name
from pyrskip.multiple_choice import inferred, options, plain, right_labels, text_behind

Metric = Callable[[str, Sequence[str], str], float]

ANLS_THRESHOLD = 0.5
RELATIVE_CHANGE = 0.05
ANNOTATORS = 3
"""As many others must have given an answer for it to count whole."""


def exact(answer: str, accepted: Sequence[str], question: str = "") -> float:
    """1 where the answer is one of the accepted ones, letter case and outer white space apart."""
    return float(answer.strip().lower() in {a.strip().lower() for a in accepted})


def vqa(answer: str, accepted: Sequence[str], question: str = "") -> float:
    """VQA's soft accuracy (VQA v2's vqaEval.py; VQA, TextVQA, OK-VQA, VizWiz). accepted: of every annotator,
    repeats included.

    The mean over annotators of min(1, others who gave that answer / 3). Texts are normalised where annotators
    disagree; where all agree they are compared as they are, letter case included. With a single annotator
    nothing can agree, and the script gives 0: here normalised texts are compared.
    """
    given, answer = [_one_line(a) for a in accepted], _one_line(answer)
    if len(given) == 1 or len(set(given)) > 1:
        given, answer = [normalise_vqa(a) for a in given], normalise_vqa(answer)
    return _agreement(answer, given)


def vqa_normalised(answer: str, accepted: Sequence[str], question: str = "") -> float:
    """`vqa`, as lmms-eval (vqav2_process_results) and VLMEvalKit (process_line) have it: texts are normalised
    where annotators agree, too."""
    given = [normalise_vqa(_one_line(a)) for a in accepted]
    return _agreement(normalise_vqa(_one_line(answer)), given)


def anls(answer: str, accepted: Sequence[str], question: str = "") -> float:
    """Average normalised Levenshtein similarity (DocVQA, InfographicVQA; the Robust Reading Competition's
    script).

    The best over accepted answers of 1 - distance / the longer one's length, 0 below 0.5; letter case and
    runs of white space do not count.
    """
    best = 1 - min(_distance(answer, a) for a in accepted)
    return best if best >= ANLS_THRESHOLD else 0.0


def relaxed(answer: str, accepted: Sequence[str], question: str = "") -> float:
    """ChartQA's relaxed accuracy (pix2struct's relaxed_correctness): numbers may be 5% off, the rest must be
    equal but for letter case.

    '12%' is 0.12. A target of 0 is compared as text, as it is there.
    """
    return float(any(_close(answer.strip(), a.strip()) for a in accepted))


def choice(answer: str, accepted: Sequence[str], question: str = "") -> float:
    """Whether an answer means an option that is accepted, as VLMEvalKit infers it (see `inferred`).

    Options are those that the question lists; accepted: a label in any form ('B', '(b)', 'B. dog', 'Option
    B'), or an option's text. An accepted answer, word for word, is right whatever it is. Where no options are
    listed, labels are A to E.
    """
    if plain(answer) in {plain(a) for a in accepted}:
        return 1.0
    listed, right = _listed(question), set()
    known = {**(listed or dict.fromkeys("ABCDE", ""))}
    for of in accepted:
        labels, labelled = right_labels(of, listed), text_behind(of)
        if not labels and labelled:  # one that the question does not list
            known[labelled[0]], labels = labelled[1], {labelled[0]}
        right |= labels
    return float(inferred(answer, known) in right)


METRICS: dict[str, Metric] = {
    "exact": exact,
    "vqa": vqa,
    "vqa_normalised": vqa_normalised,
    "anls": anls,
    "relaxed": relaxed,
    "choice": choice,
}
"""Name -> metric, as a question of a shard names it."""


def score(answer: str, accepted: Sequence[str], metric: str, question: str = "") -> float:
    """Raises UserError for a metric that is none of METRICS."""
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    return METRICS[metric](answer, accepted, question)


PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(value) for value, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")


def normalise_vqa(text: str) -> str:
    """processPunctuation and processDigitArticle of vqaEval.py: lower case, no articles, digits for words,
    apostrophes back."""
    stripped = text
    for mark in PUNCTUATION:
        alone = f"{mark} " in text or f" {mark}" in text or re.search(r"\d,\d", text)
        stripped = stripped.replace(mark, "" if alone else " ")
    # the script means to keep decimal points, and its pattern keeps those that a digit follows; its
    # re.UNICODE stands where a count does
    stripped = re.sub(r"\.(?!\d)", "", stripped, count=int(re.UNICODE))
    words = [DIGITS.get(word, word) for word in stripped.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(4096)
def _listed(question: str) -> Mapping[str, str]:
    """Label -> text of the options of a question, which is asked of many decisions."""
    return {option.label: option.text for option in options(question)}


def _agreement(answer: str, given: Sequence[str]) -> float:
    """The mean over annotators of min(1, others who gave this answer / 3); of one annotator, whether it is
    theirs."""
    if len(given) == 1:
        return float(answer == given[0])
    same = [a == answer for a in given]
    return sum(min(1.0, (sum(same) - own) / ANNOTATORS) for own in same) / len(same)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _distance(answer: str, target: str) -> float:
    """Levenshtein distance over the longer one's length, as they were given; 0 of nothing to nothing."""
    a, b = (" ".join(text.strip().lower().split()) for text in (answer, target))
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    length = max(len(answer), len(target))
    return row[-1] / length if length else 0.0


def _close(answer: str, target: str) -> bool:
    number, wanted = _number(answer), _number(target)
    if number is not None and wanted:
        return abs(number - wanted) / abs(wanted) <= RELATIVE_CHANGE
    return answer.lower() == target.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


# vqaEval.py's table of contractions: a word without one of its apostrophes gets it back. Its upper case
# entries are left out: words are in lower case by then fmt: off
_WHOLE = (
    "ain't",
    "aren't",
    "can't",
    "could've",
    "couldn't",
    "didn't",
    "doesn't",
    "don't",
    "hadn't",
    "hasn't",
    "haven't",
    "he'd",
    "he's",
    "how'd",
    "how'll",
    "how's",
    "isn't",
    "it'd",
    "it'll",
    "ma'am",
    "mightn't",
    "might've",
    "mustn't",
    "must've",
    "needn't",
    "not've",
    "o'clock",
    "oughtn't",
    "shan't",
    "should've",
    "shouldn't",
    "somebody'll",
    "somebody's",
    "someone'd",
    "someone'll",
    "someone's",
    "something'd",
    "something'll",
    "that's",
    "there'd",
    "there're",
    "there's",
    "they'd",
    "they'll",
    "they're",
    "they've",
    "wasn't",
    "we've",
    "weren't",
    "what'll",
    "what're",
    "what's",
    "what've",
    "when's",
    "where'd",
    "where's",
    "where've",
    "who'd",
    "who'll",
    "who's",
    "who've",
    "why'll",
    "why're",
    "why's",
    "won't",
    "would've",
    "wouldn't",
    "y'all",
    "you'd",
    "you'll",
    "you're",
    "you've",
)
_TWICE = (
    "couldn't've",
    "hadn't've",
    "he'd've",
    "it'd've",
    "mightn't've",
    "she'd've",
    "shouldn't've",
    "somebody'd've",
    "someone'd've",
    "something'd've",
    "there'd've",
    "they'd've",
    "we'd've",
    "who'd've",
    "wouldn't've",
    "y'all'd've",
    "you'd've",
)
# fmt: on
CONTRACTIONS = (
    {word.replace("'", ""): word for word in _WHOLE}
    | {word.replace("'", "", 1): word for word in _TWICE}
    | {"".join(word.rsplit("'", 1)): word for word in _TWICE}
    # what the script has beside them, as it has it
    | {
        "somebody'd": "somebodyd",
        "twas": "'twas",
        "yall'll": "y'all'll",
        "y'allll": "y'all'll",
        "y'alld've": "y'all'd've",
    }
    | {"ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at"}
)
