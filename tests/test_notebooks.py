"""Claims about the notebooks: they hold no outputs, and run on small data from beginning to end."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.configs import REPOSITORY, TWO_STEPS

NOTEBOOKS = REPOSITORY / "notebooks"


def notebook(name: str) -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_no_notebook_holds_outputs() -> None:
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = [cell for cell in notebook(path.stem).cells if cell.cell_type == "code"]
        assert all(not cell.outputs and cell.execution_count is None for cell in cells), path.name


@pytest.mark.slow
def test_the_notebooks_run_one_behind_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first, inside = notebook("first_gate"), notebook("inside_a_gate")
    keys = next(cell for cell in first.cells if cell.source.startswith("keys = "))
    keys.source = f"keys = {['experiment=easy_vqa', 'ablations=[]', *TWO_STEPS]}"
    for book in (first, inside):
        nbclient.NotebookClient(
            book, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
        ).execute()
    said = "".join(out.get("text", "") for cell in first.cells for out in cell.get("outputs", []))
    assert "full pyramid" in said and "price 0.01: " in said
    shown = [out.data for cell in inside.cells for out in cell.get("outputs", []) if "data" in out]
    assert any("image/png" in data for data in shown)
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown)
