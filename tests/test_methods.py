"""Methods of the frontier: one from outside the package is everywhere, and none holds more than it needs."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from pyrskip.cli import main
from pyrskip.evaluation import bootstrap, frontier
from pyrskip.evaluation.bootstrap import Bootstrap
from pyrskip.evaluation.methods import METHODS, Decisions, style_of
from pyrskip.evaluation.style import Style
from pyrskip.registry import load_plugins
from pyrskip.report.figures import frontier_figure
from pyrskip.report.frontier import print_methods
from pyrskip.report.plots import plot_frontier
from tests.runs import write_run
from tests.tables import TYPES
from tests.test_frontier import inputs_of, of_rungs, tables
from tests.test_report import data_of

TOY = '''"""The last action that is listed, always."""

from collections.abc import Iterator

import torch

from pyrskip.evaluation.inputs import Inputs
from pyrskip.evaluation.methods import METHODS, Decisions, Method
from pyrskip.evaluation.style import GREEN, Style


def last(inputs: Inputs, split: str) -> Iterator[Decisions]:
    table = inputs.tables[split]
    yield Decisions(torch.full((len(table),), len(table.actions) - 1))


METHODS.register("toy", Method(last, Style(GREEN, "-", "*")))
'''


@cache
def with_toy() -> frontier.Frontier:
    return frontier.frontier(inputs_of(tables(False)))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[frontier.Frontier]:
    """A frontier that was computed beside a module of another package."""
    (tmp_path / "toy_method.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    load_plugins(["toy_method"])
    yield with_toy()
    del sys.modules["toy_method"], METHODS._entries["toy"], METHODS._places["toy"]


def test_a_method_from_outside_is_in_every_file_and_command(
    toy: frontier.Frontier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", frontier=toy)
    written = [row for row in json.loads((run / "frontier.json").read_text()) if row["method"] == "toy"]
    assert [row["split"] for row in written] == ["val", "test"]
    full = toy.select("full", "test")[0].row
    assert written[1]["accuracy"] == full.accuracy and written[1]["flops"] == full.flops
    main(["report", str(run), f"out={tmp_path / 'report.html'}"])
    parts = {part.get("title"): part for part in data_of(tmp_path / "report.html")["sections"]}
    assert "toy" in {row[0] for row in parts["Every method"]["rows"]}
    assert "toy" in {trace["name"] for trace in parts["Frontier"]["plots"][0]["data"]}
    main(["plot", "frontier", str(run), "method=toy", f"out={tmp_path / 'toy.svg'}"])
    capsys.readouterr()
    main(["equal", str(run), "method=toy,full", f"out={tmp_path / 'equal.json'}"])
    assert "toy" in capsys.readouterr().out
    main(["above", str(run)])
    assert "toy" not in capsys.readouterr().out  # it does not say that it is a candidate


def test_a_method_from_outside_is_drawn_and_printed_as_it_says(
    toy: frontier.Frontier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    legends: list[str] = []
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, path, **_: legends.extend(text.get_text() for text in figure.legends[0].texts),
    )
    plot_frontier(toy.rows, tmp_path / "frontier.png")
    assert "toy" in legends
    (trace,) = (trace for trace in frontier_figure(toy.rows).data if trace.name == "toy")
    assert trace.line.color == "#009E73" and trace.marker.symbol == "star"
    console = Console(width=120, file=StringIO())
    print_methods(toy.rows, console)
    lines = [line for line in cast(StringIO, console.file).getvalue().splitlines() if "│" in line]
    assert " toy " in lines[-1]  # behind all sections that have a name


def test_a_row_whose_method_is_not_registered_is_drawn_all_the_same(
    toy: frontier.Frontier, tmp_path: Path
) -> None:
    strange = [replace(row, method="gate:other") if row.method == "toy" else row for row in toy.rows]
    assert style_of("gate:other") == Style() and style_of("fixed:0,1").kind == "selections"
    plot_frontier(strange, tmp_path / "frontier.png")
    assert "gate:other" in {trace.name for trace in frontier_figure(strange).data}


def test_rows_stand_as_methods_are_registered_and_what_is_random_behind_its_gate(
    toy: frontier.Frontier,
) -> None:
    named = [(row.method.partition(":")[0], row.seed) for row in toy.rows if row.split == "test"]
    found = list(dict.fromkeys(named))
    assert found[:5] == [(name, None) for name in ("full", "reference", "question_only", "fixed", "hull")]
    of_gates = ("gate", "random", "adaptvision")
    assert found[5:14] == [(name, seed) for seed in (0, 1, 2) for name in of_gates]
    unlearned = ("random", "heuristic", "cosine", "entropy", "variance", "arr_coc", "attention")
    rest = (*unlearned, "oracle", "visionthink", "vir", "prefix", "toy")
    assert found[14:] == [(name, None) for name in rest]
    oracles = [(row.price, row.method) for row in toy.rows if "oracle" in row.method and row.split == "test"]
    assert oracles == sorted(oracles, key=lambda pair: (pair[0], pair[1] == "oracle:sample"))


def test_a_mix_is_the_mean_of_its_decisions() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(50, 7, generator=generator)
    action = torch.randint(7, (3, 50), generator=generator)
    share = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    mix, parts = Decisions(action, share), [Decisions(one) for one in action]
    assert mix.certain is None and parts[0].certain is not None
    expected = sum(p * part.mean(values) for p, part in zip(share, parts, strict=True))
    assert torch.allclose(mix.mean(values), cast(torch.Tensor, expected), rtol=1e-12)
    weight = torch.zeros(50, 7, dtype=torch.float64).scatter_add(1, action.T, share.expand(50, -1))
    assert torch.allclose(mix.mean(values), (weight * values).sum(-1), rtol=1e-12)
    assert torch.allclose(mix.columns(7), weight.mean(0), rtol=1e-12)
    assert parts[0].columns(7).sum() == 1


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, list | tuple) else (made,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_measuring_a_method_makes_nothing_as_large_as_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = replace(of_rungs().inputs, resamples=2)
    names = ("full", "reference", "question_only", "fixed", "hull", "random:bernoulli", "heuristic")
    monkeypatch.setattr(frontier, "METHODS", {name: METHODS[name] for name in names})
    questions, columns = inputs.tables["test"].score.shape
    assert columns == 18
    with Largest() as largest:
        frontier.frontier(replace(inputs, gates={}))
    # numerators and denominators of the intervals over all questions and of each type
    assert largest.elements == 2 * (1 + len(TYPES)) * questions < columns * questions
    inputs.decided("gate", 0, "test")  # what a gate does inside is its own affair
    with Largest() as largest:
        for decisions in METHODS["random"].decisions(inputs, "test"):
            decisions.mean(inputs.tables["test"].score)
    assert largest.elements == 21 * questions  # permutations and what makes up their cost, of any table


def test_resamples_are_drawn_in_blocks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    image_of, values = torch.arange(300) // 3, torch.rand(4, 300, generator=generator)
    whole = Bootstrap(image_of, resamples=500)
    monkeypatch.setattr(bootstrap, "BLOCK", 4096)
    with Largest() as largest:
        parts = Bootstrap(image_of, resamples=500)
        intervals, chances = parts.intervals(values), parts.chances_of_none(values - 0.5)
        ratios = parts.intervals_of_ratios(values, values + 1)
    assert largest.elements <= 4096 < 500 * 100
    for one, other in zip(intervals, whole.intervals(values), strict=True):
        assert one == pytest.approx(other, rel=1e-12)
    assert chances == whole.chances_of_none(values - 0.5)
    assert [r for pair in ratios for r in pair] == pytest.approx(
        [r for pair in whole.intervals_of_ratios(values, values + 1) for r in pair], rel=1e-12
    )
    # together as one by one
    assert intervals == [pytest.approx(parts.interval(row), rel=1e-12) for row in values]
