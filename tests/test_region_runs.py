"""Claims about whole runs of a region gate: what it decides is in no list, so that the model is asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrskip.config import Config
from pyrskip.evaluation.unlisted import answer_unlisted
from pyrskip.gates import load_gate
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.table import COSTS, RolloutTable
from pyrskip.stages import run_stages
from tests.configs import tiny

pytestmark = pytest.mark.slow
PRICES = (0.05, 0.5)
GRID = ("pyramid.grid=[2,2,1]", "gate=region", "actions.drawn=3", "ablations=[]", "data.limit=5")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_stages(tiny(tmp_path_factory.mktemp("regions"), "name=regions", *GRID), {})


@pytest.fixture(scope="module")
def parts(run: Path) -> tuple[NativeModel, Gate, dict[str, RolloutTable]]:
    """The model, its gate with weights of chance, and the rollouts."""
    gate = load_gate(run / "gate" / "gate" / "seed-0")
    torch.manual_seed(0)
    torch.nn.init.normal_(gate.head.weight, std=2.0)
    tables = {split: RolloutTable.load(run / "rollouts" / split) for split in ("gate", "val", "test")}
    return NativeModel.load(run / "flex"), gate, tables


def test_a_region_gate_goes_through_all_stages(run: Path) -> None:
    rows = json.loads((run / "frontier.json").read_text())
    methods = {row["method"] for row in rows}
    assert {"full", "gate", "random", "random:tiles", "gate:shuffled_query", "oracle:type"} <= methods
    assert {row["price"] for row in rows if row["method"] == "random:tiles"} == set(PRICES)
    told = json.loads((run / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0
    assert told["tiles_encoded"] == told["tiles_asked_for"]
    gallery = json.loads((run / "frontier" / "gallery" / "gallery.json").read_text())
    assert gallery["selections"]["names"] == ["glance", "1", "0", "0,1"]
    assert all(sum(of) == pytest.approx(1) for of in gallery["selections"]["shares"].values())


def test_rollouts_to_learn_from_hold_selections_of_each_questions_own(run: Path, parts: Any) -> None:
    _, _, tables = parts
    for split in ("gate", "val"):
        drawn = tables[split].drawn
        assert drawn is not None and drawn.shape == (len(tables[split]), 3, 9) and drawn[..., -1].all()
        assert len(torch.unique(drawn.flatten(1), dim=0)) > 2
    assert tables["test"].drawn is None


def test_what_is_played_is_what_the_model_answers_and_costs(parts: Any, run: Path) -> None:
    model, gate, tables = parts
    budget, test = gate.layout.budget, tables["test"]
    extended, columns = answer_unlisted(model, tables, {"gate": [gate]}, [0], PRICES, run / "data", budget)
    table = extended["test"]
    assert table.drawn is not None and extended["gate"] is tables["gate"]
    unit, rows = tables["gate"].mean_full_flops, torch.arange(len(test))
    environment = TableEnvironment(table, model.pyramid, budget, unit)
    kept = {}
    for name in ("gate", "random", "random:tiles", "gate:shuffled_query"):
        own = columns[name, 0, "test"]
        kept[name] = torch.stack([table.steps(rows, column) > 0 for column in own])
        assert own.shape == (2, len(test)) and kept[name][..., -1].all()
    for price, of in zip(PRICES, kept["gate"], strict=True):
        seen = environment.observe(rows, torch.full((len(rows),), price))
        mode = gate.policy(seen).mode()
        assert mode.selection.equal(of)
        # the table finds what it was asked about, and adds up what it was not
        alone = TableEnvironment(test, model.pyramid, budget, unit)
        told = environment.relative_of_column[rows, environment.column(rows, mode)]
        assert torch.allclose(alone.cost(rows, mode), told, rtol=0.1)
    assert len(torch.unique(kept["gate"].flatten(0, 1), dim=0)) > 3, "the decisions are to differ"
    level = model.pyramid.tile_level
    for number in range(2):
        tiles = level == number
        assert kept["random:tiles"][..., tiles].sum(-1).equal(kept["gate"][..., tiles].sum(-1))
    assert kept["random"].sum().item() == pytest.approx(kept["gate"].sum().item(), rel=0.2)
    # listed actions are told as before, and a played one that is listed is told alike
    for name in (*COSTS, "score"):
        of, had = (getattr(t if name == "score" else t.cost, name) for t in (table, test))
        assert of[:, : had.shape[1]].equal(had)
        for action in range(len(test.actions)):
            same = (table.drawn == test.actions.selection[action]).all(-1)
            assert torch.allclose(of[:, had.shape[1] :][same], had[:, [action]].expand_as(same)[same])


@pytest.mark.parametrize(
    ("rule", "policy"),
    [("gumbel", "auto"), ("reinforce", "auto"), ("gumbel", "quadtree"), ("reinforce", "topk")],
)
def test_a_region_gate_learns_online_what_no_table_lists(rule: str, policy: str, run: Path) -> None:
    more = (f"rule={rule}", "rule.online=true", f"gate.policy={policy}", f"from={run}")
    stages = "stages=[gate,frontier]"
    root = run_stages(tiny(run.parent, f"name={rule}-{policy}", *GRID, *more, stages), {})
    gate = load_gate(root / "gate" / "gate" / "seed-0")
    own = "bernoulli" if policy == "auto" else policy
    assert (gate.config.name, gate.config.policy) == ("region", own)
    told = json.loads((root / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0


def test_a_quadtree_that_looks_learns_and_is_played_as_it_answers(run: Path) -> None:
    looks = ("gate.policy=quadtree", "gate.looks=true", "rule=reinforce", "rule.online=true")
    # of all tiles, so that every level is decided on
    more = ("gate.open_bias=3", "rule.optimizer.lr=0.1", f"from={run}", "stages=[gate,frontier]")
    root = run_stages(tiny(run.parent, "name=looks", *GRID, *looks, *more), {})
    gate = load_gate(root / "gate" / "gate" / "seed-0")
    assert gate.config.looks and gate.head.get_submodule("out").weight.ne(0).any()
    told = json.loads((root / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0
    assert told["tiles_encoded"] == told["tiles_asked_for"]
    methods = {row["method"] for row in json.loads((root / "frontier.json").read_text())}
    assert {"gate", "random:tiles", "gate:shuffled_query"} <= methods


def test_listed_decisions_are_not_played(parts: Any, run: Path, tmp_path: Path) -> None:
    model, _, tables = parts
    config: Config = tiny(tmp_path, "pyramid.grid=[2,2,1]")
    extended, columns = answer_unlisted(model, tables, {"gate": []}, [], PRICES, run / "data", config.budget)
    assert not columns and all(extended[split] is tables[split] for split in tables)
