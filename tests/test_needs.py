"""Claims about what is told of each type of question."""

import re
from collections import Counter
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from pyrskip.evaluation.needs import Need, doubt, lists_levels, needs_of
from pyrskip.report.rollouts import print_needs, verdicts
from tests.tables import TYPES, synthetic_table

ANSWERS = {kind: Counter({"a": 3, "b": 7}) for kind in TYPES}


@pytest.mark.parametrize(
    ("full", "floors", "says"),
    [
        (0.0, (0.0, 0.0), "right on 0.00% .* near 0"),
        (0.005, (0.0, 0.0), "near 0"),
        (0.4, (0.5, 0.1), "below the question's floor .question_only"),
        (0.4, (0.1, 0.5), "below the question's floor .lookup_accuracy"),
        (0.4, (0.4, 0.3), None),
    ],
)
def test_a_full_pyramid_that_is_no_better_than_no_image_is_doubted(
    full: float, floors: tuple[float, float], says: str | None
) -> None:
    found = doubt(full, dict(zip(("question_only", "lookup_accuracy"), floors, strict=True)))
    assert found is None if says is None else found and re.search(says, found)


def test_types_lose_what_they_need() -> None:
    needs = {need.type: need for need in needs_of(synthetic_table(images=400), ANSWERS)}
    assert needs.keys() == set(TYPES)
    for kind, level in (("count", 0), ("shape", 1)):
        need = needs[kind]
        assert need.full > 0.9 and need.glance < 0.6 and need.question_only < 0.4
        assert need.without[level] < 0.6 or level == 1  # a shape is seen on level 0 as well
    assert needs["color"].glance > 0.9
    assert all(need.majority == 0.7 and need.questions == 400 for need in needs.values())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, "types that lose at least 20 points without level 0: t"),
        ({"without": {0: 0.75, 1: 0.9}}, "types that lose at least 20 points without level 0: none"),
        ({"glance": 0.88}, "types that lose less than 3 points at the glance alone: t"),
        ({"question_only": 0.3}, "more than the most frequent answer to: no type"),
        ({"question_only": 0.4}, "more than the most frequent answer to: t"),
    ],
)
def test_verdicts_count_types(change: dict[str, object], line: str) -> None:
    need = Need("t", 100, full=0.9, without={0: 0.6, 1: 0.9}, glance=0.5, question_only=0.25, majority=0.26)
    assert any(told.endswith(line) for told in verdicts([replace(need, **change)]))  # type: ignore[arg-type]


def test_the_table_of_needs_has_a_line_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=120, file=StringIO())
    print_needs(needs_of(synthetic_table(), ANSWERS), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(kind in text for kind in TYPES) and "mean over types" in text
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_only_lists_of_whole_levels_are_told_of() -> None:
    actions = synthetic_table().actions
    assert lists_levels(actions)
    assert not lists_levels(replace(actions, names=actions.names[:-1], selection=actions.selection[:-1]))
