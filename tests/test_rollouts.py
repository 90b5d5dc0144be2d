"""Claims about the rollouts stage: it goes on where it was, refuses what was rolled out with something else,
and takes sampled actions where there are too many to list."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrskip.cli import main
from pyrskip.config import Config
from pyrskip.errors import UserError
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.rollouts.table import OUTSIDE, RolloutTable
from pyrskip.stages import run_stages
from tests.configs import TWO_STEPS, tiny

UNTRAINED = "stages=[data,flex,rollouts]"


@pytest.fixture(scope="module")
def lender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose data, model and rollouts are there. Not to be written to."""
    return run_stages(tiny(tmp_path_factory.mktemp("runs"), "name=done", UNTRAINED), {})


@pytest.fixture
def copied(lender: Path, tmp_path: Path) -> Path:
    """A root directory with a copy of that run."""
    shutil.copytree(lender, tmp_path / "done")
    return tmp_path


def borrowing(root: Path, lender: Path, *overrides: str) -> Config:
    return tiny(root, "name=other", f"from={lender}", "ablations=[]", *overrides)


def same(a: RolloutTable, b: RolloutTable) -> bool:
    assert a.probability is not None and b.probability is not None
    glances = (table.signals["image"]["glance"] for table in (a, b))
    close = torch.allclose(a.probability, b.probability, atol=1e-5) and torch.allclose(*glances, atol=1e-5)
    return (
        close
        and a.keys == b.keys
        and a.score.equal(b.score)
        and a.image_of.equal(b.image_of)
        and a.origin == b.origin
    )


def test_a_killed_rollout_loses_at_most_a_chunk(
    lender: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "done"
    shutil.copytree(lender, run)
    shutil.rmtree(run / "rollouts")
    given = tiny(tmp_path, "name=done", UNTRAINED, "loader.rollout_images=2", "loader.chunk_images=5")
    step, calls = RolloutModule.predict_step, 0

    def counted(self: RolloutModule, *batch: Any) -> RolloutTable | None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise RuntimeError("killed")
        return step(self, *batch)

    monkeypatch.setattr(RolloutModule, "predict_step", counted)
    with pytest.raises(RuntimeError, match="killed"):
        run_stages(given, {})
    # the first chunk is 2 + 2 + 1 images, and the kill came in the second pass of the next
    gate = run / "rollouts" / "gate"
    assert [p.name for p in gate.iterdir()] == ["chunk-00000000-00000005"]
    # half of a chunk that was being written is none
    (gate / "chunk-00000005-00000010").mkdir()
    (gate / "chunk-00000005-00000010" / "table.safetensors").write_bytes(b"half")
    calls = 10
    run_stages(given, {})
    assert calls - 10 == (7 - 3) + 7 + 7
    for split in ("gate", "val", "test"):
        assert same(
            RolloutTable.load(run / "rollouts" / split), RolloutTable.load(lender / "rollouts" / split)
        )
        assert sorted(p.name for p in (run / "rollouts" / split).iterdir()) == [
            "table.json",
            "table.safetensors",
        ]


def test_a_chunk_of_another_model_is_not_gone_on_with(copied: Path) -> None:
    gate = copied / "done" / "rollouts" / "gate"
    shutil.copytree(gate, gate / "chunk-00000000-00000012")
    (gate / "table.json").unlink()
    state = copied / "done" / "rollouts" / "stage.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"done": False}))
    run_stages(tiny(copied, "name=done", UNTRAINED), {})  # its own is taken
    shutil.copytree(gate, gate / "chunk-00000000-00000012")
    (gate / "table.json").unlink()
    state.write_text(json.dumps(json.loads(state.read_text()) | {"done": False}))
    weights = copied / "done" / "flex" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(
        UserError, match=r"chunk-00000000-00000012 holds rollouts of another model: native .*delete it"
    ):
        run_stages(tiny(copied, "name=done", UNTRAINED), {})


def test_broken_images_of_a_whole_pass_cost_no_other(copied: Path) -> None:
    data = copied / "done" / "data"
    shard = data / "gate-000000.tar"
    content = bytearray(shard.read_bytes())
    at = content.index(b"\x89PNG")
    content[at : at + 8] = bytes(8)
    shard.write_bytes(bytes(content))
    shutil.rmtree(copied / "done" / "rollouts")
    run_stages(
        tiny(
            copied,
            "name=done",
            UNTRAINED,
            "loader.rollout_images=1",
            "loader.chunk_images=1",
            "data.max_bad_fraction=0.2",
        ),
        {},
    )
    assert len(RolloutTable.load(copied / "done" / "rollouts" / "gate").image_keys) == 11


def test_a_chunk_that_is_gone_is_not_left_out_in_silence(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollouts = copied / "done" / "rollouts"
    shutil.rmtree(rollouts)
    save, saved = RolloutTable.save, 0

    def clears(self: RolloutTable, directory: Path) -> None:
        """What another process does that ends while this one runs."""
        nonlocal saved
        saved += 1
        if saved == 2:
            shutil.rmtree(rollouts / "gate" / "chunk-00000000-00000005")
        save(self, directory)

    monkeypatch.setattr(RolloutTable, "save", clears)
    with pytest.raises(
        UserError, match="chunk-00000000-00000005 is gone, so another run may have written here"
    ):
        run_stages(tiny(copied, "name=done", UNTRAINED, "loader.chunk_images=5"), {})
    assert not (rollouts / "gate" / "table.json").exists()


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "data",
        "split",
        "layout",
        "action set",
        "budget",
        "cost",
        "metric",
        "decoding",
        "sight of the gate",
    ],
)
def test_rollouts_of_something_else_are_refused(name: str, copied: Path) -> None:
    path = copied / "done" / "rollouts" / "val" / "table.json"
    lists = json.loads(path.read_text())
    assert name in lists["origin"]
    path.write_text(json.dumps(lists | {"origin": lists["origin"] | {name: "something else"}}))
    with pytest.raises(
        UserError, match=f"rollouts/val holds rollouts of another {name}: something else, this run has "
    ):
        run_stages(tiny(copied, "name=done"), {})


def test_rollouts_of_another_split_are_refused(copied: Path) -> None:
    rollouts = copied / "done" / "rollouts"
    shutil.rmtree(rollouts / "val")
    shutil.copytree(rollouts / "test", rollouts / "val")
    with pytest.raises(UserError, match="rollouts/val holds rollouts of another data"):
        run_stages(tiny(copied, "name=done"), {})


def test_a_model_that_was_trained_again_has_other_rollouts(copied: Path) -> None:
    weights = copied / "done" / "flex" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="rollouts/gate holds rollouts of another model"):
        run_stages(tiny(copied, "name=done"), {})


@pytest.mark.parametrize(
    "override", ["budget=proportional", "actions=tiles", "cost.unit=macs", "budget=rungs"]
)
def test_what_rollouts_depend_on_may_not_change(override: str, copied: Path) -> None:
    with pytest.raises(UserError, match=rf"done/rollouts was made with {override.split('=')[0]}"):
        run_stages(tiny(copied, "name=done", override), {})


@pytest.mark.parametrize(
    "override",
    ["reward.price=0.2", "reward.target=0.4", "rule=gumbel", "gate.width=9", "evaluation.prices=[1]"],
)
def test_price_reward_and_rule_leave_rollouts_as_they_are(override: str, copied: Path) -> None:
    before = (copied / "done" / "rollouts" / "gate" / "table.safetensors").stat().st_mtime_ns
    run_stages(tiny(copied, "name=done", override, "stages=[rollouts]"), {})
    assert (copied / "done" / "rollouts" / "gate" / "table.safetensors").stat().st_mtime_ns == before


GRID = "pyramid.grid=[2,2,1]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "listed"),
    [
        (("actions=sampled", "actions.sample=9", GRID), 9),
        (("actions=tiles", "pyramid.grid=[2,1,1]", "rule=gumbel"), 32),  # a Bernoulli gate on single tiles
        (
            ("actions=sampled", "actions.sample=9", "budget=rungs", "rule=gumbel", "gate.policy=categorical"),
            9,
        ),
    ],
)
def test_sampled_and_single_tiles_train_and_evaluate(
    overrides: tuple[str, ...], listed: int, tmp_path: Path
) -> None:
    if "budget=rungs" in overrides:
        overrides = (*overrides, "stages=[data,flex,rollouts]")
    root = run_stages(tiny(tmp_path, "data.limit=4", "ablations=[]", *overrides), {})
    table = RolloutTable.load(root / "rollouts" / "gate")
    assert len(table.actions) == listed == table.score.shape[1] - len(OUTSIDE)
    assert {"glance", "0", "1", "0,1"} <= set(table.actions.names)
    assert (table.actions.rung is not None) == ("budget=rungs" in overrides)
    if "budget=rungs" not in overrides:
        rows = json.loads((root / "frontier.json").read_text())
        assert len([r for r in rows if r["method"].startswith("fixed:") and r["split"] == "test"]) == listed
        assert json.loads((root / "summary.json").read_text())["real_inference"]["decisions_that_differ"] == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ("pyramid.grid=[4]", "actions=tiles"),
            r"pyramid\.grid=\[4, 4, 1\] gives 4294967296 selections; at most 4096 can be ",
        ),
        (
            ("pyramid.grid=[4]", "actions.unit=tile", "actions.sample=3"),
            r"actions\.sample=3 has no room for the 4 selections",
        ),
    ],
)
def test_an_action_set_that_is_too_large_says_how_large(
    overrides: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_stages(tiny(tmp_path, *overrides), {})
    assert not list(tmp_path.iterdir())


def test_a_rule_that_needs_every_action_is_refused_a_sample_with_their_number(tmp_path: Path) -> None:
    said = r"gate\.policy=bernoulli with pyramid\.grid=\[4, 4, 1\] .* needs all 4294967296 selections"
    with pytest.raises(UserError, match=said):
        tiny(tmp_path, "pyramid.grid=[4]", "actions=sampled", "rule=gumbel")


def test_a_gate_for_other_actions_is_refused(copied: Path) -> None:
    root = run_stages(borrowing(copied, copied / "done", "stages=[gate]"), {})
    path = root / "gate" / "gate" / "seed-0" / "gate.json"
    described = json.loads(path.read_text())
    described["actions"]["names"][1] = "2"
    path.write_text(json.dumps(described))
    with pytest.raises(
        UserError,
        match="seed-0 holds a gate for another action set than the rollouts'; run the gate stage again",
    ):
        run_stages(borrowing(copied, copied / "done"), {})


def test_the_command_rolls_out_and_says_what_every_action_is_worth(
    lender: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            "rollouts",
            "experiment=easy_vqa",
            *TWO_STEPS,
            f"root={tmp_path}",
            "name=rolled",
            f"from={lender}",
            "ablations=[]",
        ]
    )
    said = capsys.readouterr().out
    for word in ("glance", "0,1", "question_only", "oracle:type, price 0.1", "4 actions", "test: 12 images"):
        assert word in said
    # everything was there to borrow
    assert sorted(p.name for p in (tmp_path / "rolled").glob("[!.]*")) == ["config.json", "versions.json"]


@pytest.mark.slow
def test_an_oracle_chosen_on_another_flex_seed_is_drawn(lender: Path, tmp_path: Path) -> None:
    other = run_stages(tiny(tmp_path, "name=second", "flex.seed=1", UNTRAINED), {})
    root = run_stages(borrowing(tmp_path, lender, f"evaluation.cross={other}"), {})
    rows = json.loads((root / "frontier.json").read_text())
    drawn, bound = ([r for r in rows if r["method"] == f"oracle:{name}"] for name in ("cross", "sample"))
    assert {r["split"] for r in drawn} == {"val", "test"} and len(drawn) == len(bound)
    for one, best in zip(drawn, bound, strict=True):
        assert (
            one["accuracy"] - one["price"] * one["relative_flops"]
            <= best["accuracy"] - best["price"] * best["relative_flops"] + 1e-9
        )
    with pytest.raises(UserError, match=r"evaluation\.cross=.* holds rollouts of this run's own model"):
        run_stages(borrowing(tmp_path, lender, f"evaluation.cross={lender}", "name=own"), {})
    with pytest.raises(UserError, match="holds no rollout table that can be read"):
        run_stages(borrowing(tmp_path, lender, f"evaluation.cross={tmp_path}", "name=nothing"), {})
