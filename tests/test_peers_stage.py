"""Pruners as peers of a run: rolled out for the frontier alone, paid for, and drawn beside the gate."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyrskip.errors import UserError
from pyrskip.evaluation.runs import load_runs
from pyrskip.rollouts.peers import PeersConfig
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages import run_stages
from tests.configs import tiny

PEERS = ["peers.pruners=[average,visionzip]", "peers.ratios=[0.5,0.25]"]


@pytest.fixture(scope="module")
def held_against(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = (f"from={finished_run}", "stages=[peers,gate,frontier]", "name=peers", *PEERS)
    return run_stages(tiny(tmp_path_factory.mktemp("peers"), *given), {})


@pytest.mark.slow
def test_every_pruner_is_drawn_at_every_ratio_and_behind_the_gate_at_the_first(held_against: Path) -> None:
    rows = [r for r in load_runs(held_against)[0].rows if r.split == "test"]
    full = next(r for r in rows if r.method == "full")
    gate = {(r.price, r.seed): r for r in rows if r.method == "gate"}
    for name in ("average", "visionzip"):
        half, quarter = (r for r in rows if r.method == f"pruned:{name}")
        assert quarter.flops < half.flops < full.flops and quarter.kv_bytes < half.kv_bytes < full.kv_bytes
        assert quarter.tokens == half.tokens == full.tokens  # all are encoded
        assert half.encode_ms is not None and half.total_ms is not None and half.total_ms > half.encode_ms
        behind = [r for r in rows if r.method == f"gate+pruned:{name}"]
        assert {(r.price, r.seed) for r in behind} == gate.keys()
        for row in behind:
            assert row.flops < gate[row.price, row.seed].flops and row.total_ms is None
    assert (held_against / "peers.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_peer_is_the_run_that_prunes_so(held_against: Path, finished_run: Path, tmp_path: Path) -> None:
    """The same answers and costs as rollouts under that pruner."""
    given = (
        f"from={finished_run}",
        "stages=[rollouts]",
        "name=pruned",
        "pruner.name=average",
        "pruner.ratio=0.5",
    )
    root = run_stages(tiny(tmp_path, *given), {})
    own, peer = (
        RolloutTable.load(place / "test") for place in (root / "rollouts", held_against / "peers/average-0.5")
    )
    assert own.score.equal(peer.score) and own.cost.flops.equal(peer.cost.flops) and own.keys == peer.keys
    assert own.origin == peer.origin and own.origin["pruner"] == "average 0.5"


@pytest.mark.slow
def test_a_run_without_peers_knows_of_none(held_against: Path, finished_run: Path) -> None:
    def made(run: Path, stage: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((run / stage / "stage.json").read_text())["fingerprint"]
        return found

    assert made(held_against, "frontier")["peers.ratios"] == [0.5, 0.25]
    assert "peers.ratios" not in made(finished_run, "frontier")
    assert made(held_against, "gate") == made(finished_run, "gate")


ONE = "peers.pruners=[average]"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("peers.pruners=[average,average]",), r"=\['average', 'average'\]: allowed: each once, average"),
        (("peers.pruners=[psychic]",), "allowed: each once, average, cdpruner"),
        ((ONE, "peers.ratios=[1.0]"), r"peers.ratios=\[1.0\]: allowed: one or more different"),
        ((ONE, "actions=regions"), "actions.drawn=16: rollouts behind a pruner hold listed decisions alone"),
        ((ONE, "pruner=random"), "peers are held against a run that prunes nothing"),
        (("peers.pruners=[fastv]",), "fastv prunes between layers, and the language model has 1; allowed"),
        (
            (ONE, "model=remote", "text=minilm"),
            "pruner.name=average with model.name=remote, whose visual tok",
        ),
        (
            ("peers.pruners=[visionselector]", "model=hf", "text=minilm"),
            "visionselector learns through the native model, and model.name=hf is none; allowed: another",
        ),
        (
            ("pruner.name=fastv", "language.layers=2", "rule=gumbel", "rule.online=true"),
            "rule.online=true with pruner.name=fastv, which prunes between layers",
        ),
    ],
)
def test_peers_that_cannot_be_are_refused(given: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        tiny(tmp_path, *given)


def test_no_peers_are_no_work() -> None:
    assert PeersConfig().configs() == []
