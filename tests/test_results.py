"""Claims about results: what pages say of a run is what its files hold."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyrskip.cli import main
from pyrskip.errors import UserError
from pyrskip.evaluation.results import Record, read_record, record
from pyrskip.evaluation.runs import load_runs
from pyrskip.report.conclusion import table
from pyrskip.report.results import page, section
from tests.configs import REPOSITORY
from tests.runs import write_run

DOCS = REPOSITORY / "docs"
RECORDS = sorted((DOCS / "results").glob("*.json"))
README = (REPOSITORY / "README.md").read_text()
RELEASED = "easy_vqa"
"""The run that the README's figures are of."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one")


def cells(text: str) -> list[list[str]]:
    """The rows of a page's tables, without the lines below their headings."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"(?m)^\|.*\|$", text)
    ]
    return [row for row in rows if set("".join(row)) - set(":- ")]


def test_a_record_holds_what_the_run_found(run: Path) -> None:
    found, rows = record(load_runs(run)[0]), load_runs(run)[0].rows
    summary = json.loads((run / "summary.json").read_text())
    at = summary["targets"][str(found.target)]
    assert found.line("full").accuracy == summary["full"]["accuracy"]
    assert found.line("reference").of_reference == 1
    assert found.line("fixed").of_full == at["fixed"]["relative_flops"]
    assert found.line("gate").accuracy == pytest.approx(at["gate"]["accuracy"]["mean"])
    assert found.line("gate").of_reference == pytest.approx(at["gate"]["flops_of_reference"]["mean"])
    assert found.line("random").of_full == pytest.approx(found.line("gate").of_full)
    (full,) = [row for row in rows if row.method == "full" and row.split == "test"]
    assert (found.line("full").tokens, found.line("full").flops) == (full.tokens, full.flops)
    assert found.questions == sum(of["n"] for of in full.by_type.values())
    assert found.seeds == 3
    prices = {row.price for row in rows if row.method == "gate"}
    assert len(found.curves["gate"]) == len(prices)


def test_the_command_keeps_records_and_makes_the_page_of_all_that_are_there(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["results", str(run), f"out={tmp_path / 'kept'}"])
    kept = read_record(tmp_path / "kept/one.json")
    assert kept == record(load_runs(run)[0])
    assert section(kept) in capsys.readouterr().out
    write_run(tmp_path / "two")
    main(["results", str(tmp_path / "two"), f"out={tmp_path / 'kept'}"])
    assert re.findall(r"(?m)^## (\w+)", (tmp_path / "kept.md").read_text()) == ["one", "two"]


@pytest.mark.parametrize("broken", ["{", "[]", '{"lines": []}'])
def test_what_is_no_record_is_named(broken: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(broken)
    with pytest.raises(UserError, match=r"a\.json is no record of a run"):
        read_record(tmp_path / "a.json")


def test_the_page_of_results_is_made_of_the_records() -> None:
    assert RECORDS
    assert (DOCS / "results.md").read_text() == page([read_record(path) for path in RECORDS])


def released() -> Record:
    return read_record(DOCS / "results" / f"{RELEASED}.json")


def test_every_number_of_the_readmes_table_is_the_released_runs() -> None:
    headings, *rows = cells(section(released()))
    stated = [row for row in cells(README) if row[0] in {row[0] for row in rows}]
    assert [row[0] for row in stated] == [row[0] for row in rows]
    (own,) = [row for row in cells(README) if row[0] == "" and row[1:] and set(row) <= set(headings)]
    for row, of in zip(stated, rows, strict=True):
        assert row == [of[headings.index(heading)] for heading in own]


def test_every_other_figure_of_the_readme_is_the_released_runs() -> None:
    known = {word for row in cells(section(released())) for cell in row for word in cell.split()}
    others = {"0.05", "3.11", "3.13", "2.0"}  # a price, versions of Python and of the licence
    assert set(re.findall(r"\d+\.\d+%?", README)) - others <= known


def test_the_tutorial_shows_what_the_released_run_printed() -> None:
    tutorial = (DOCS / "train-your-gate.md").read_text()
    assert all(f"    {line}" in tutorial for line in table(released()))
    assert released().worth in tutorial


def test_the_readme_uses_no_word_before_it_is_said() -> None:
    prose = re.sub(r"```.*?```|\]\(.*?\)", "", README, flags=re.DOTALL)
    for word in ("glance", "flex", "rung", "hull", "pyramid", "rollout", "selection"):
        assert not re.search(rf"\b{word}", prose, flags=re.IGNORECASE), word
    for word, said in (("gate", "**gate**"), ("price", "`price`"), ("level", "`levels`")):
        (first,) = re.findall(rf"\S*\b{word}s?\b\S*", prose)[:1]
        assert first.strip(",") == said
    assert README.index("docs/first.png") < README.index("| accuracy |") < README.index("```sh")


def test_the_script_draws_the_readmes_picture(tmp_path: Path) -> None:
    runpy.run_path(str(DOCS / "first.py"))["draw"](tmp_path / "first.png")
    with Image.open(tmp_path / "first.png") as drawn, Image.open(DOCS / "first.png") as kept:
        difference = np.abs(np.asarray(drawn, dtype=float) - np.asarray(kept, dtype=float))
    assert drawn.size == kept.size
    assert difference.mean() < 2  # of 255: fonts may differ by a pixel
