"""Claims about docs/concepts.md: it explains the code's words, each before it is used, and a script draws its
picture."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

from pyrskip.cost import Cost
from pyrskip.decision import ActionSet, Decision
from pyrskip.evaluation.frontier import Frontier
from pyrskip.gates.gate import Gate
from pyrskip.policies import Policy
from pyrskip.pyramid import Pyramid
from pyrskip.reward import Price
from pyrskip.rollouts.environments import Environment
from pyrskip.rollouts.table import RolloutTable
from pyrskip.signals import Signal
from tests.configs import REPOSITORY

DOCS = REPOSITORY / "docs"
CLASSES = (
    ActionSet,
    Cost,
    Decision,
    Environment,
    Frontier,
    Gate,
    Policy,
    Price,
    Pyramid,
    RolloutTable,
    Signal,
)


def page() -> str:
    """The text of the page without its picture."""
    return re.sub(r"!\[.*?\]\(.*?\)", "", (DOCS / "concepts.md").read_text())


def explained() -> list[str]:
    """The words that the page explains, in its order: they are in bold there."""
    return [word.lower() for word in re.findall(r"\*\*(.+?)\*\*", page())]


def occurrences(word: str) -> re.Pattern[str]:
    """A word of the page, also as a plural, with spaces, hyphens or underscores between its parts."""
    stem = word.removesuffix("s").removesuffix("y")
    ending = "(?:y|ies)" if word.endswith("y") else "s?"
    return re.compile(rf"\b{stem.replace(' ', '[ _-]')}{ending}\b", re.IGNORECASE)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_the_names_of_the_codes_classes_are_explained(kind: type) -> None:
    assert re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower() in explained()


def test_every_word_that_is_explained_is_one_of_the_codes() -> None:
    code = "\n".join(path.read_text() for path in sorted((REPOSITORY / "pyrskip").rglob("*.py")))
    unused = {word for word in explained() if not occurrences(word).search(code)}
    assert not unused


@pytest.mark.parametrize("word", explained())
def test_every_word_is_explained_before_it_is_used(word: str) -> None:
    first = occurrences(word).search(page())
    assert first is not None
    assert page()[: first.start()].endswith("**"), page()[first.start() - 60 : first.end() + 20]


def test_the_page_is_short_and_other_pages_lead_to_it() -> None:
    assert len(page().split()) <= 1000
    assert "](docs/concepts.md)" in (REPOSITORY / "README.md").read_text()
    assert "](concepts.md)" in (DOCS / "design.md").read_text()


def test_the_script_draws_the_picture(tmp_path: Path) -> None:
    assert "`docs/concepts.py`" in page()
    drawn = tmp_path / "concepts.png"
    runpy.run_path(str(DOCS / "concepts.py"))["draw"](drawn)
    with Image.open(drawn) as new, Image.open(DOCS / "concepts.png") as kept:
        assert new.format == kept.format == "PNG"
        assert new.size == kept.size
        assert new.size[0] >= 1800
    assert max(path.stat().st_size for path in (drawn, DOCS / "concepts.png")) <= 250_000
