"""Claims about runs: stages are skipped, resumed, refused and borrowed as their fingerprints say."""

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from pyrskip.errors import UserError
from pyrskip.files import whole_file
from pyrskip.gates import load_gate
from pyrskip.models.language import train_tokenizer
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.held_out import held_out
from pyrskip.rollouts.table import RolloutTable
from pyrskip.scenes.config import EDITION
from pyrskip.stages import run_stages
from pyrskip.stages.data import DATA
from pyrskip.stages.flex import check_questions
from pyrskip.stages.rollouts import ROLLED
from pyrskip.stages.run import Run
from pyrskip.tracking.watch import Watch
from pyrskip.training import checkpoint
from pyrskip.training.best import Best
from pyrskip.training.flex import FlexModule
from pyrskip.training.gate import GateModule
from tests.configs import same, tiny, weights
from tests.own_data import encoded, picture, write_llava, write_tsv


def test_a_price_at_which_the_glance_is_best_is_told_before_gates_are_trained(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dear = ("reward.price=50", "stages=[gate]", "ablations=[]", "trainer.quiet=false", "name=dear")
    run_stages(tiny(copied_run, f"from={copied_run / 'done'}", *dear), {})
    told = capsys.readouterr().err
    assert (
        "warning: at price 50 the glance alone is best for every question type" in told and "for 50 x" in told
    )


def test_no_gate_is_validated_or_calibrated_on_a_held_out_image(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: list[RolloutTable] = []

    def spied(of: Any, name: str) -> None:
        original = getattr(of, name)

        def spy(self: Any, environment: TableEnvironment, *rest: Any) -> Any:
            tables.append(environment.table)
            return original(self, environment, *rest)

        monkeypatch.setattr(of, name, spy)

    spied(Best, "__init__")
    spied(Watch, "__init__")
    spied(GateModule, "calibrate")
    keys = ("rule=gumbel", "reward.target=0.6", "ablations=[]", "stages=[gate]", "name=other")
    run_stages(tiny(copied_run, f"from={copied_run / 'done'}", *keys), {})
    val = RolloutTable.load(copied_run / "done" / "rollouts" / "val")
    hidden = {val.image_keys[image] for image in held_out(val)}
    assert len(tables) >= 3 and hidden
    for table in tables:
        assert not hidden & {key.rpartition("/")[0] for key in table.keys}


def test_a_target_below_the_glances_cost_is_refused_before_gates_are_trained(copied_run: Path) -> None:
    target = ("rule=gumbel", "reward.target=0.001", "ablations=[]")
    with pytest.raises(
        UserError, match=r"reward.target=0.001: the glance alone costs 0\.\d+; allowed: from there to 1"
    ):
        run_stages(tiny(copied_run, "name=other", f"from={copied_run / 'done'}", *target), {})


@pytest.mark.parametrize(
    ("images", "empty"), [(5, "val and test"), (3, "val and test"), (2, "gate and val and test")]
)
def test_a_split_without_images_is_refused_before_training(images: int, empty: str, tmp_path: Path) -> None:
    path = write_llava(tmp_path, images=images)
    files = (f"data.files.path={path}", f"data.files.images={tmp_path}/images", "data.files.workers=0")
    keys = ("data=llava", *files, "data.val_fraction=0.05", "name=few", "data.limit=null")
    with pytest.raises(UserError, match=rf"few/data has no image for {empty} \(train: \d+.*test_fraction"):
        run_stages(tiny(tmp_path, *keys), {})
    assert not (tmp_path / "few" / "flex").exists()
    run_stages(tiny(tmp_path, *keys, "stages=[data,flex]"), {})


def damage(root: Path) -> None:
    """Break the first of 12 samples of every split, and leave the data stage alone."""
    for shard in (root / "data").glob("*-000000.tar"):
        shard.write_bytes(b"\xff" * 3000 + shard.read_bytes()[3000:])
    for stage in ("flex", "rollouts", "gate", "frontier"):
        shutil.rmtree(root / stage)


@pytest.mark.slow
def test_what_is_broken_is_said_and_summed_up_and_loses_no_other_sample(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied_run / "done"
    damage(root)
    run_stages(
        tiny(copied_run, "name=done", "trainer.quiet=false", "data.max_bad_fraction=0.2", "loader.workers=1"),
        {},
    )
    said = capsys.readouterr().err
    assert "broken, left out: train-000000.tar" in said
    assert "train: 1 of 12 images lost" in said
    told = json.loads((root / "summary.json").read_text())["broken"]
    assert {split: (found["lost"], found["images"]) for split, found in told.items()} == dict.fromkeys(
        ("train", "gate", "val", "test"), (1, 12)
    )
    assert len(RolloutTable.load(root / "rollouts" / "test").image_keys) == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_more_that_is_broken_than_allowed_stops_the_run_with_the_list(workers: int, copied_run: Path) -> None:
    damage(copied_run / "done")
    with pytest.raises(
        UserError,
        match=r"^train: 1 of 12 images are broken, more than data.max_bad_fraction=0.05: train-000000",
    ):
        run_stages(tiny(copied_run, "name=done", f"loader.workers={workers}"), {})


def test_a_rollout_pass_of_which_nothing_can_be_read_loses_no_other(copied_run: Path) -> None:
    damage(copied_run / "done")
    only = ("stages=[data,flex,rollouts]", "loader.rollout_images=1", "data.max_bad_fraction=0.2")
    root = run_stages(tiny(copied_run, "name=done", *only), {})
    assert [len(RolloutTable.load(root / "rollouts" / split).image_keys) for split in ROLLED] == [11] * 3


def test_shards_that_are_written_are_trained_on_where_they_are(copied_run: Path) -> None:
    where = [
        "data=shards",
        f"data.shards.paths=[{copied_run / 'done/data'}]",
        "data.limit=null",
        "name=elsewhere",
    ]
    root = run_stages(tiny(copied_run, *where, "stages=[data,flex]"), {})
    assert same(root / "flex/model.safetensors", copied_run / "done/flex/model.safetensors")
    with pytest.raises(UserError, match="nowhere holds no index.json"):
        run_stages(
            tiny(copied_run, *where[:1], "data.shards.paths=[nowhere]", "data.limit=null", "name=not"), {}
        )
    assert not (copied_run / "not").exists()


def test_files_that_are_not_there_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.files.images='nowhere' is no folder"):
        run_stages(tiny(tmp_path, "data.files.images=nowhere", "name=own", experiment="your_data"), {})
    assert not (tmp_path / "own").exists()


def test_too_few_shards_for_readers_of_their_own_are_refused_before_training(tmp_path: Path) -> None:
    of_own = ["loader.order=shards", "loader.workers=3", "name=own", "stages=[data,flex]"]
    with pytest.raises(
        UserError, match=r"pyrskip data reshard .*own/data <new directory> samples_per_shard=1"
    ):
        run_stages(tiny(tmp_path, *of_own), {})
    assert not list(tmp_path.rglob("*.ckpt"))


def test_readers_of_own_shards_train(tmp_path: Path) -> None:
    only = ["loader.workers=2", "name=own", "stages=[data,flex]"]
    root = run_stages(tiny(tmp_path, "loader.order=shards", *only), {})
    assert (root / "flex/model.safetensors").exists()
    with pytest.raises(
        UserError, match="flex was made with loader.order=shards, this config has loader.order=samples"
    ):
        run_stages(tiny(tmp_path, *only), {})


def test_a_finished_run_is_not_run_again(copied_run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (copied_run / "done").rglob("*.safetensors")}
    run_stages(tiny(copied_run, "name=done"), {})
    assert before == {p: p.stat().st_mtime_ns for p in (copied_run / "done").rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "flex.optimizer.steps=3",
            r"done/flex was made with flex.optimizer.steps=2, this config has flex.optimizer.steps=3",
        ),
        ("data.seed=1", r"done/data was made with data.seed=0"),
        ("gate.width=9", r"done/gate was made with gate.width=8.*name=<other>"),
        ("evaluation.resamples=21", r"done/frontier was made with evaluation.resamples=20"),
    ],
)
def test_a_changed_config_over_an_old_run_is_refused_with_the_key(
    override: str, said: str, copied_run: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_stages(tiny(copied_run, "name=done", override), {})


def test_what_only_says_where_a_run_runs_may_change(copied_run: Path) -> None:
    run_stages(tiny(copied_run, "name=done", "trainer.log_every=7", "loader.workers=1"), {})


def test_earlier_stages_are_borrowed_and_never_written(copied_run: Path) -> None:
    lender = copied_run / "done"
    before = {p: p.stat().st_mtime_ns for p in lender.rglob("*")}
    root = run_stages(tiny(copied_run, "name=other", f"from={lender}", "gate=predictor", "ablations=[]"), {})
    assert before == {p: p.stat().st_mtime_ns for p in lender.rglob("*")}
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == ["frontier", "gate"]
    assert json.loads((root / "frontier.json").read_text())


def test_a_borrowed_stage_of_another_config_is_refused(copied_run: Path) -> None:
    said = (
        r"done/flex was made with language.layers=1, this config has language.layers=2; keep 1, or have this "
        r"run do it with "
    )
    with pytest.raises(UserError, match=said + r"stages=\[flex,pruner,rollouts,peers,gate,frontier\]$"):
        run_stages(tiny(copied_run, "name=other", f"from={copied_run / 'done'}", "language.layers=2"), {})
    with pytest.raises(
        UserError, match=r"done/data was made with data.seed=0, .*; keep 0, or leave out from=$"
    ):
        run_stages(tiny(copied_run, "name=other", f"from={copied_run / 'done'}", "data.seed=1"), {})


def test_scenes_that_another_edition_drew_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny(tmp_path, "name=drawn", "data=scenes"), {})
    run.mark(DATA, True)
    assert run.done(DATA)
    monkeypatch.setattr("pyrskip.stages.data.EDITION", EDITION + 1)
    said = (
        rf"drawn/data was made with another scenes' edition \({EDITION}, now {EDITION + 1}\); "
        r"allowed: start another run"
    )
    with pytest.raises(UserError, match=said):
        run.done(DATA)


@pytest.mark.slow
def test_a_run_that_lists_where_it_begins_to_differ_borrows_what_is_before(copied_run: Path) -> None:
    begins = (
        "budget=rungs",
        "rule=exact",
        "gate.policy=categorical",
        "ablations=[]",
        "stages=[rollouts,gate,frontier]",
    )
    root = run_stages(tiny(copied_run, f"from={copied_run / 'done'}", "name=rungs", *begins), {})
    assert not (root / "flex").exists() and not (root / "data").exists()
    model = RolloutTable.load(copied_run / "done/rollouts/test").origin["model"]
    table = RolloutTable.load(root / "rollouts/test")
    assert table.origin["model"] == model and table.actions.ladder == (0, 64, 144, 256)
    assert json.loads((root / "summary.json").read_text())["budget_weights"] is not None
    assert {"budget:capacity", "budget:learned", "strategy"} <= {
        r["method"] for r in json.loads((root / "frontier.json").read_text())
    }
    # what is as it was is borrowed still
    same = tiny(copied_run, f"from={copied_run / 'done'}", "name=same", "stages=[rollouts]")
    assert not (run_stages(same, {}) / "rollouts").exists()


def test_borrowing_from_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run: it holds no config.json"):
        run_stages(tiny(tmp_path, f"from={tmp_path}"), {})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("budget.weights=[1,2]", "budget.weights has 2 numbers; allowed: one for each of 3 tiles"),
        ("pyramid.size=40", "pyramid.size=40 cannot hold level 1 .*allowed: multiples of 32"),
        ("pyramid.levels=5", "pyramid.size=64 cannot hold level 4"),
        ("vision.out_index=9", "vision.backbone=.* with out_index=9 cannot be built"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    override: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_stages(tiny(tmp_path, override), {})
    assert not list(tmp_path.iterdir())


def test_a_stage_whose_inputs_are_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="stage gate needs .*add data to stages, or borrow"):
        run_stages(tiny(tmp_path, "stages=[gate]"), {})
    with pytest.raises(UserError, match="stage gate needs .*add flex to stages"):
        run_stages(tiny(tmp_path, "stages=[gate,data]"), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["{}", "[1]", "cut {"])
def test_a_stage_file_that_cannot_be_read_is_named(content: str, copied_run: Path) -> None:
    (copied_run / "done" / "flex" / "stage.json").write_text(content)
    with pytest.raises(UserError, match=r"flex/stage.json cannot be read .*delete"):
        run_stages(tiny(copied_run, "name=done"), {})


def test_a_missing_shard_is_named(copied_run: Path) -> None:
    (copied_run / "done" / "data" / "train-000001.tar").unlink()
    shutil.rmtree(copied_run / "done" / "flex")
    with pytest.raises(UserError, match="train-000001.tar"):
        run_stages(tiny(copied_run, "name=done"), {})


@pytest.mark.parametrize("stage", ["flex", "gate"])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    stage: str, copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = {"flex": "flex.optimizer.steps=5", "gate": "rule.optimizer.steps=5"}[stage]
    lender = [] if stage == "flex" else [f"from={copied_run / 'done'}"]
    overrides = [
        steps,
        "ablations=[]",
        "seed=3",
        f"stages=[data,flex{',rollouts,gate' if stage == 'gate' else ''}]",
        *lender,
    ]
    expected = run_stages(tiny(copied_run, "name=whole", *overrides), {})

    from pyrskip.training.rules.supervised import SupervisedModule

    module: Any = FlexModule if stage == "flex" else SupervisedModule
    step = module.training_step

    def dies(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 3:
            raise RuntimeError("killed")
        result: torch.Tensor = step(self, batch, batch_idx)
        return result

    monkeypatch.setattr(module, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        run_stages(tiny(copied_run, "name=resumed", *overrides), {})
    monkeypatch.setattr(module, "training_step", step)
    resumed = run_stages(tiny(copied_run, "name=resumed", *overrides), {})
    file = {"flex": "flex/model.safetensors", "gate": "gate/gate/seed-3/gate.safetensors"}[stage]
    assert same(resumed / file, expected / file)
    assert not same(resumed / file, copied_run / "done" / file.replace("seed-3", "seed-0"))


def test_a_run_says_which_weights_of_a_gate_it_keeps(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = copied_run / "done"
    told = json.loads((done / "gate/gate/seed-0/kept.json").read_text())
    assert json.loads((done / "summary.json").read_text())["kept"]["gate"] == [told]
    lent = (f"from={done}", "ablations=[]", "stages=[gate]", "rule.optimizer.steps=4", "rule.patience=1")
    run = run_stages(tiny(copied_run, "name=kept", "trainer.quiet=false", *lent), {})
    kept = json.loads((run / "gate/gate/seed-0/kept.json").read_text())
    ended = "of 4" if kept["steps"] == 4 else f"stopped at {kept['steps']} of 4"
    figure = f"reward {kept['reward']:.4f} on validation"
    said = capsys.readouterr().err
    assert f"gate/seed-0: keeps the weights of step {kept['step']} ({figure}), {ended}\n" in said


@pytest.mark.slow
def test_a_gate_that_looks_keeps_its_last_weights_and_the_run_says_so(
    copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lent = (f"from={copied_run / 'done'}", "ablations=[]", "stages=[gate]", "trainer.quiet=false")
    looks = ("rule=actor_critic", "gate=sequential", "rule.online=true", "gate.looks=true")
    run_stages(tiny(copied_run, "name=looks", *lent, *looks), {})
    said = capsys.readouterr().err
    assert "gate/seed-0: keeps its last weights: validation rollouts tell nothing of it\n" in said


@pytest.mark.parametrize(
    ("torn", "start"), [("gate.json", "its checkpoint"), ("gate.safetensors", "its start")]
)
def test_a_gate_that_cannot_be_read_is_trained_again_and_ends_with_the_same_weights(
    torn: str, start: str, copied_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = copied_run / "done" / "gate" / "gate" / "seed-0"
    whole = {name: tensor.clone() for name, tensor in weights(gate / "gate.safetensors").items()}
    (gate / torn).write_bytes((gate / torn).read_bytes()[:50])
    if start == "its start":
        (gate / "last.ckpt").unlink()
    with pytest.raises(UserError, match="stage frontier needs .*/gate, which is not finished; add gate"):
        run_stages(tiny(copied_run, "name=done", "stages=[frontier]"), {})
    run_stages(tiny(copied_run, "name=done", "trainer.quiet=false"), {})
    said = [line for line in capsys.readouterr().err.splitlines() if "holds no gate that can be read" in line]
    assert said == [f"{gate} holds no gate that can be read; it is trained again from {start}"]
    assert load_gate(gate) and all(weights(gate / "gate.safetensors")[k].equal(v) for k, v in whole.items())


def test_a_finished_run_goes_on_without_its_cache(copied_run: Path) -> None:
    again = "name=more", f"from={copied_run / 'done'}", "stages=[gate]"
    with pytest.raises(
        UserError, match="more/cache, which is not finished; .*, or do without: data.cache=null"
    ):
        run_stages(tiny(copied_run, *again, "data.cache=run"), {})
    run_stages(tiny(copied_run, *again, "data.cache=null"), {})


def test_a_truncated_checkpoint_is_named(copied_run: Path) -> None:
    run = copied_run / "done"
    state = json.loads((run / "flex" / "stage.json").read_text())
    (run / "flex" / "stage.json").write_text(json.dumps(state | {"done": False}))
    checkpoint = run / "flex" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last.ckpt is no whole checkpoint .*delete it"):
        run_stages(tiny(copied_run, "name=done"), {})


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_no_training(
    copied_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1, 1, 0, 1]

    def fill(path: Path) -> AbstractContextManager[BinaryIO]:
        if not (left.pop(0) if left else 1):
            raise UserError(f"{path} cannot be written: No space left on device")
        return whole_file(path)

    run = ("stages=[data,flex]", "flex.optimizer.steps=4", "data.limit=12")
    whole = run_stages(tiny(copied_run, "name=whole", *run), {})
    monkeypatch.setattr(checkpoint, "whole_file", fill)
    short = run_stages(tiny(copied_run, "name=short", *run), {})
    assert not left and same(whole / "flex" / "model.safetensors", short / "flex" / "model.safetensors")
    said = capsys.readouterr().err
    assert said.count("No space left on device; training goes on") == 1


@pytest.mark.parametrize(
    ("most", "says"),
    [
        (200, ""),
        (48, "30 of 60 questions have more than language.max_words=48 tokens and are cut at their beginning"),
        (4, r"language.max_words=4: 60 of 60 questions have options of more tokens; allowed: \d+ or more"),
    ],
)
def test_questions_that_are_cut_are_counted_and_options_that_would_be_refused(
    most: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"hint": "one " * 60 * (i % 2), "question": "which?", "A": "red", "B": "green", "answer": "A"}
        | {"image": encoded(picture(i))}
        for i in range(60)
    ]
    path = write_tsv(tmp_path / "t.tsv", rows)
    keys = (f"data.files.path={path}", "data.files.workers=0", f"language.max_words={most}")
    config = tiny(tmp_path, "data=tsv", *keys, "data.limit=null", "trainer.quiet=false", "stages=[data]")
    run_stages(config, {})
    capsys.readouterr()
    tokenizer = train_tokenizer(["one which? red green"] * 3, 300)
    with pytest.raises(UserError, match=says) if most == 4 else nullcontext():
        check_questions(Run(config, {}), tokenizer)
    said = capsys.readouterr().err
    assert said == "" if most != 48 else says in said
