"""Claims about runs: stages are skipped, resumed, refused and borrowed as their fingerprints say."""

import errno
import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir

from pyrskip.artifacts import ROLLED
from pyrskip.compare import CompareConfig
from pyrskip.config import STAGES, Config, read
from pyrskip.data.shards import whole_file
from pyrskip.errors import UserError
from pyrskip.evaluation.comparison import Entry
from pyrskip.launch import conf_directory
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages import run_stages
from pyrskip.training import RULES, checkpoint, valid_pairs
from pyrskip.training.flex import FlexModule
from tests.own_data import write_llava

EXPERIMENTS = sorted(path.stem for path in (conf_directory() / "experiment").glob("*.yaml"))
TWO_STEPS = [
    "data.limit=12",
    "data.samples_per_shard=6",
    "language.width=32",
    "language.mlp=32",
    "language.layers=1",
    "gate.width=8",
    "flex.optimizer.steps=2",
    "rule.optimizer.steps=2",
    "rule.batch=16",
    "seeds=1",
    "loader.batch_images=2",
    "evaluation.resamples=20",
    "evaluation.timing_repeats=1",
    "evaluation.prices=[0.05,0.5]",
    "evaluation.images=4",
    "trainer.checkpoint_every=1",
    "compare.optimizer.steps=2",
    "compare.seeds=1",
    "compare.checks=1",
    "compare.workers=0",
    "trainer.quiet=true",
]


def own_data(folder: Path) -> list[str]:
    """A small set in LLaVA's format, and the keys that name it."""
    path = write_llava(folder, images=60)
    return [f"data.files.path={path}", f"data.files.images={folder / 'images'}", "data.files.workers=0", "language.heads=4"]


def tiny(root: Path, *overrides: str, experiment: str = "easy_vqa") -> Config:
    if experiment == "your_data":
        overrides = (*own_data(root), *overrides)
    if experiment == "scenes":
        overrides = ("data.scenes.size=256", "pyramid.size=256", "pyramid.levels=3", "data.limit=6", *overrides)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        cfg = compose("train", overrides=[f"experiment={experiment}", f"root={root}", *TWO_STEPS, *overrides])
    return read(cfg)[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with every stage done."""
    return run_stages(tiny(tmp_path_factory.mktemp("runs"), "name=done"), {})


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A root directory with a copy of that run."""
    shutil.copytree(finished, tmp_path / "done")
    return tmp_path


def test_a_comparison_trains_and_evaluates_every_valid_pair(copied: Path) -> None:
    config = tiny(copied, f"from={copied / 'done'}", experiment="compare_rules")
    root = run_stages(config, {})
    entries = json.loads((root / "compare/comparison.json").read_text())
    asked = {"rule", "policy", "price", "seed", "accuracy", "retention", "relative_flops", "regret", "seconds"}
    assert all(asked <= entry.keys() for entry in entries)
    # without a ladder rungs would be bernoulli over again
    pairs = [pair for pair in valid_pairs(online=False) if pair[1] != "rungs"]
    assert [(e["rule"], e["policy"], e["price"]) for e in entries] == [
        (*pair, p) for pair in pairs for p in config.compare.prices
    ]
    assert (root / "compare/comparison.png").stat().st_size > 10_000
    # what is there is not trained again
    part = root / "compare/parts/flex-0-exact-bernoulli-0.json"
    before = part.stat().st_mtime_ns
    (root / "compare/stage.json").unlink()
    run_stages(config, {})
    assert part.stat().st_mtime_ns == before


def test_a_comparison_of_any_run_takes_its_data_and_model_from_there_and_goes_over_flex_seeds(copied: Path) -> None:
    other = run_stages(tiny(copied, "name=second", f"from={copied / 'done'}", "flex.seed=1", "stages=[flex,rollouts]"), {})
    borrowed = (f"from={copied / 'done'}", "pyramid.levels=2", "data=scenes", "compare.prices=[0.05,0.5]")
    config = tiny(copied, *borrowed, f"compare.others=[{other}]", "compare.workers=2", experiment="compare_rules")
    assert (config.pyramid.levels, config.data.source) == (3, "easy_vqa")
    root = run_stages(config, {})
    entries = [Entry(**line) for line in json.loads((root / "compare/comparison.json").read_text())]
    pairs = [pair for pair in valid_pairs(online=False) if pair[1] != "rungs"]
    assert {(e.flex_seed, e.rule, e.policy) for e in entries} == {(seed, *pair) for seed in (0, 1) for pair in pairs}
    # gates of each flex seed are measured on its own test rollouts
    for seed, run in ((0, copied / "done"), (1, other)):
        table = RolloutTable.load(run / "rollouts/test")
        full = float(table.score[:, table.actions.full].double().mean())
        assert all(e.accuracy == pytest.approx(e.retention * full) for e in entries if e.flex_seed == seed)


def test_a_price_at_which_the_glance_is_best_is_told_before_gates_are_trained(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dear = ("reward.price=50", "stages=[gate]", "ablations=[]", "trainer.quiet=false", "name=dear")
    run_stages(tiny(copied, f"from={copied / 'done'}", *dear), {})
    told = capsys.readouterr().err
    assert "warning: at price 50 the glance alone is best for every question type" in told and "for 50 x" in told


def test_a_comparison_refuses_prices_and_rewards_that_not_all_of_its_gates_can_learn(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"compare\.prices=3\.0 is outside of what is trained on; allowed: 0\.001 to 1\.0"):
        tiny(tmp_path, "compare.prices=[0.1,3.0]", experiment="compare_rules")
    with pytest.raises(UserError, match=r"reward\.price=None, target=None, form=bonus: allowed in a comparison: .*form=linear"):
        tiny(tmp_path, "rule=exact", "reward.form=bonus", experiment="compare_rules")


def test_a_comparison_refuses_runs_that_are_no_other_flex_seeds(copied: Path) -> None:
    def compared(*places: Path | str) -> None:
        given = (f"from={copied / 'done'}", f"compare.others=[{','.join(map(str, places))}]")
        run_stages(tiny(copied, *given, experiment="compare_rules"), {})

    other = run_stages(tiny(copied, "name=second", f"from={copied / 'done'}", "flex.seed=1", "stages=[flex,rollouts]"), {})
    with pytest.raises(UserError, match=r"compare\.others=nowhere is no run"):
        compared("nowhere")
    for twice in ((copied / "done",), (other, other)):
        with pytest.raises(UserError, match=r"compare\.others=.*: another run of flex\.seed=[01]; allowed: one run of each"):
            compared(*twice)
    assert not (copied / "compare_rules").exists()
    shutil.copy(copied / "done/rollouts/test/table.json", other / "rollouts/test/table.json")
    with pytest.raises(UserError, match=r"compare\.others=.*/second holds rollouts of this run's own model"):
        compared(other)
    with pytest.raises(UserError, match=r"from=nowhere is no run"):
        tiny(copied, "from=nowhere", experiment="compare_rules")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(path)


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("experiment", [name for name in EXPERIMENTS if name not in ("compare_rules", "scenes_long")])
@pytest.mark.parametrize("rule", ["supervised", "gumbel"])
def test_every_experiment_runs_two_steps_through_all_stages(experiment: str, rule: str, tmp_path: Path) -> None:
    root = run_stages(tiny(tmp_path, f"rule={rule}", *TWO_STEPS, experiment=experiment), {})
    cached = experiment == "scenes"
    made = [stage for stage in STAGES if stage != "compare" and (cached or stage != "cache")]
    assert [json.loads((root / stage / "stage.json").read_text())["done"] for stage in made] == [True] * len(made)
    assert (root / "cache").exists() == cached and not (root / "compare").exists()
    rows = json.loads((root / "frontier.json").read_text())
    assert {"full", "reference", "gate", "gate:query_only", "random", "oracle:type"} <= {row["method"] for row in rows}
    for picture in ("frontier.png", "selections.png"):
        assert (root / picture).stat().st_size > 10_000
    told = json.loads((root / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0
    assert told["tiles_encoded"] == told["tiles_asked_for"]


def test_gates_that_choose_rungs_train_two_steps_through_all_stages(tmp_path: Path) -> None:
    every = f"stages=[{','.join(stage for stage in STAGES if stage != 'cache')}]"
    rungs = ("budget=rungs", "rule=reinforce", "gate.policy=rungs", "ablations=[]", "compare.prices=[0.1]", "data.limit=6")
    root = run_stages(tiny(tmp_path, every, *rungs), {})
    assert RolloutTable.load(root / "rollouts" / "val").actions.ladder == (0, 64, 144, 256)
    rows = json.loads((root / "frontier.json").read_text())
    assert {"full", "gate", "random", "oracle:type"} <= {row["method"] for row in rows}
    told = json.loads((root / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0
    compared = {(e["rule"], e["policy"]) for e in json.loads((root / "compare/comparison.json").read_text())}
    # keep or skip says nothing of rungs
    assert compared == {pair for pair in valid_pairs(online=False) if pair[1] != "bernoulli"}


def test_a_gate_that_decides_step_by_step_runs_through_all_stages_on_single_tiles(tmp_path: Path) -> None:
    tiles = (
        "pyramid.grid=[2,1,1]",
        "actions=tiles",
        "gate.policy=sequential",
        "rule=actor_critic",
        "ablations=[]",
        "data.limit=4",
    )
    root = run_stages(tiny(tmp_path, *tiles), {})
    assert len(RolloutTable.load(root / "rollouts" / "val").actions) == 2**5
    told = json.loads((root / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0


def test_a_comparison_gives_each_rule_the_entropy_of_its_own_options() -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        compared = compose("train").compare.entropy
        own = {rule: compose("train", overrides=[f"rule={rule}"]).rule.entropy for rule in RULES}
    assert dict(compared) == own == CompareConfig().entropy
    with pytest.raises(UserError, match=r"compare\.entropy names exact; allowed: each of supervised"):
        CompareConfig(entropy={"exact": 0.1})


def test_a_gate_reads_sentence_embeddings_and_pays_for_them(finished: Path, tmp_path: Path) -> None:
    root = run_stages(tiny(tmp_path, "text=minilm", "ablations=[glance]"), {})
    found = [{row["method"]: row["flops"] for row in json.loads((r / "frontier.json").read_text())} for r in (root, finished)]
    dear, cheap = found
    assert dear["gate"] > cheap["gate"] + 1e7
    for free in ("full", "reference", "question_only", "gate:glance_only"):
        assert dear[free] < cheap[free] + 1e6


@pytest.mark.parametrize("budget", ["budget=proportional", "pyramid.grid=[2,1,1]"])
def test_gates_train_online_under_any_budget_and_grid(budget: str, tmp_path: Path) -> None:
    policy = "gate.policy=categorical"
    root = run_stages(tiny(tmp_path, "rule=gumbel", "rule.online=true", "ablations=[]", "data.limit=4", policy, budget), {})
    assert json.loads((root / "frontier.json").read_text())


def test_a_target_cost_is_trained_and_calibrated(tmp_path: Path) -> None:
    config = tiny(tmp_path, "rule=gumbel", "reward.target=0.6", "ablations=[]")
    rows = json.loads((run_stages(config, {}) / "frontier.json").read_text())
    played = [row for row in rows if row["method"] == "gate" and row["split"] == "val"]
    assert len(played) == 1  # at its own price alone
    # as near as whole decisions come: a tiny gate decides alike for many questions
    assert abs(played[0]["relative_flops"] - 0.6) < 0.35


def test_a_target_below_the_glances_cost_is_refused_before_gates_are_trained(copied: Path) -> None:
    target = ("rule=gumbel", "reward.target=0.001", "ablations=[]")
    with pytest.raises(UserError, match=r"reward.target=0.001: the glance alone costs 0\.\d+; allowed: from there to 1"):
        run_stages(tiny(copied, "name=other", f"from={copied / 'done'}", *target), {})


def damage(root: Path) -> None:
    """Break the first of 12 samples of every split, and leave the data stage alone."""
    for shard in (root / "data").glob("*-000000.tar"):
        shard.write_bytes(b"\xff" * 3000 + shard.read_bytes()[3000:])
    for stage in ("flex", "rollouts", "gate", "frontier"):
        shutil.rmtree(root / stage)


def test_what_is_broken_is_said_and_summed_up_and_loses_no_other_sample(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copied / "done"
    damage(root)
    run_stages(tiny(copied, "name=done", "trainer.quiet=false", "data.max_bad_fraction=0.2", "loader.workers=1"), {})
    said = capsys.readouterr().err
    assert "broken, left out: train-000000.tar" in said
    assert "train: 1 of 12 images lost" in said
    told = json.loads((root / "summary.json").read_text())["broken"]
    assert {split: (found["lost"], found["images"]) for split, found in told.items()} == dict.fromkeys(
        ("train", "gate", "val", "test"), (1, 12)
    )
    assert len(RolloutTable.load(root / "rollouts" / "test").image_keys) == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_more_that_is_broken_than_allowed_stops_the_run_with_the_list(workers: int, copied: Path) -> None:
    damage(copied / "done")
    with pytest.raises(
        UserError, match=r"^train: 1 of 12 images are broken, more than data.max_bad_fraction=0.05: train-000000"
    ):
        run_stages(tiny(copied, "name=done", f"loader.workers={workers}"), {})


def test_a_rollout_pass_of_which_nothing_can_be_read_loses_no_other(copied: Path) -> None:
    damage(copied / "done")
    only = ("stages=[data,flex,rollouts]", "loader.rollout_images=1", "data.max_bad_fraction=0.2")
    root = run_stages(tiny(copied, "name=done", *only), {})
    assert [len(RolloutTable.load(root / "rollouts" / split).image_keys) for split in ROLLED] == [11] * 3


def test_shards_that_are_written_are_trained_on_where_they_are(copied: Path) -> None:
    where = ["data=shards", f"data.shards.paths=[{copied / 'done/data'}]", "data.limit=null", "name=elsewhere"]
    root = run_stages(tiny(copied, *where, "stages=[data,flex]"), {})
    assert same(root / "flex/model.safetensors", copied / "done/flex/model.safetensors")
    with pytest.raises(UserError, match="nowhere holds no index.json"):
        run_stages(tiny(copied, *where[:1], "data.shards.paths=[nowhere]", "data.limit=null", "name=not"), {})
    assert not (copied / "not").exists()


def test_files_that_are_not_there_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.files.images='nowhere' is no folder"):
        run_stages(tiny(tmp_path, "data.files.images=nowhere", "name=own", experiment="your_data"), {})
    assert not (tmp_path / "own").exists()


def test_too_few_shards_for_readers_of_their_own_are_refused_before_training(tmp_path: Path) -> None:
    of_own = ["loader.order=shards", "loader.workers=3", "name=own", "stages=[data,flex]"]
    with pytest.raises(UserError, match=r"pyrskip data reshard .*own/data <new directory> samples_per_shard=1"):
        run_stages(tiny(tmp_path, *of_own), {})
    assert not list(tmp_path.rglob("*.ckpt"))


def test_readers_of_own_shards_train(tmp_path: Path) -> None:
    only = ["loader.workers=2", "name=own", "stages=[data,flex]"]
    root = run_stages(tiny(tmp_path, "loader.order=shards", *only), {})
    assert (root / "flex/model.safetensors").exists()
    with pytest.raises(UserError, match="flex was made with loader.order=shards, this config has loader.order=samples"):
        run_stages(tiny(tmp_path, *only), {})


def test_a_finished_run_is_not_run_again(copied: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (copied / "done").rglob("*.safetensors")}
    run_stages(tiny(copied, "name=done"), {})
    assert before == {p: p.stat().st_mtime_ns for p in (copied / "done").rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("flex.optimizer.steps=3", r"done/flex was made with flex.optimizer.steps=2, this config has flex.optimizer.steps=3"),
        ("data.seed=1", r"done/data was made with data.seed=0"),
        ("gate.width=9", r"done/gate was made with gate.width=8.*name=<other>"),
        ("evaluation.resamples=21", r"done/frontier was made with evaluation.resamples=20"),
    ],
)
def test_a_changed_config_over_an_old_run_is_refused_with_the_key(override: str, said: str, copied: Path) -> None:
    with pytest.raises(UserError, match=said):
        run_stages(tiny(copied, "name=done", override), {})


def test_what_only_says_where_a_run_runs_may_change(copied: Path) -> None:
    run_stages(tiny(copied, "name=done", "trainer.log_every=7", "loader.workers=1"), {})


def test_earlier_stages_are_borrowed_and_never_written(copied: Path) -> None:
    lender = copied / "done"
    before = {p: p.stat().st_mtime_ns for p in lender.rglob("*")}
    root = run_stages(tiny(copied, "name=other", f"from={lender}", "gate=predictor", "ablations=[]"), {})
    assert before == {p: p.stat().st_mtime_ns for p in lender.rglob("*")}
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == ["frontier", "gate"]
    assert json.loads((root / "frontier.json").read_text())


def test_a_borrowed_stage_of_another_config_is_refused(copied: Path) -> None:
    with pytest.raises(UserError, match="done/flex was made with language.layers=1, this config has language.layers=2"):
        run_stages(tiny(copied, "name=other", f"from={copied / 'done'}", "language.layers=2"), {})


def test_a_run_that_lists_where_it_begins_to_differ_borrows_what_is_before(copied: Path) -> None:
    begins = ("budget=rungs", "rule=exact", "gate.policy=categorical", "ablations=[]", "stages=[rollouts,gate,frontier]")
    root = run_stages(tiny(copied, f"from={copied / 'done'}", "name=rungs", *begins), {})
    assert not (root / "flex").exists() and not (root / "data").exists()
    model = RolloutTable.load(copied / "done/rollouts/test").origin["model"]
    table = RolloutTable.load(root / "rollouts/test")
    assert table.origin["model"] == model and table.actions.ladder == (0, 64, 144, 256)
    assert json.loads((root / "summary.json").read_text())["budget_weights"] is not None
    assert {"budget:capacity", "budget:learned", "strategy"} <= {
        r["method"] for r in json.loads((root / "frontier.json").read_text())
    }
    # what is as it was is borrowed still
    same = tiny(copied, f"from={copied / 'done'}", "name=same", "stages=[rollouts]")
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
def test_what_cannot_work_is_refused_before_anything_is_written(override: str, said: str, tmp_path: Path) -> None:
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
def test_a_stage_file_that_cannot_be_read_is_named(content: str, copied: Path) -> None:
    (copied / "done" / "flex" / "stage.json").write_text(content)
    with pytest.raises(UserError, match=r"flex/stage.json cannot be read .*delete"):
        run_stages(tiny(copied, "name=done"), {})


def test_a_missing_shard_is_named(copied: Path) -> None:
    (copied / "done" / "data" / "train-000001.tar").unlink()
    shutil.rmtree(copied / "done" / "flex")
    with pytest.raises(UserError, match="train-000001.tar"):
        run_stages(tiny(copied, "name=done"), {})


@pytest.mark.parametrize("stage", ["flex", "gate"])
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(stage: str, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"flex": "flex.optimizer.steps=5", "gate": "rule.optimizer.steps=5"}[stage]
    lender = [] if stage == "flex" else [f"from={copied / 'done'}"]
    overrides = [steps, "ablations=[]", "seed=3", f"stages=[data,flex{',rollouts,gate' if stage == 'gate' else ''}]", *lender]
    expected = run_stages(tiny(copied, "name=whole", *overrides), {})

    from pyrskip.training.supervised import SupervisedModule

    module: Any = FlexModule if stage == "flex" else SupervisedModule
    step = module.training_step

    def dies(self: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 3:
            raise RuntimeError("killed")
        result: torch.Tensor = step(self, batch, batch_idx)
        return result

    monkeypatch.setattr(module, "training_step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        run_stages(tiny(copied, "name=resumed", *overrides), {})
    monkeypatch.setattr(module, "training_step", step)
    resumed = run_stages(tiny(copied, "name=resumed", *overrides), {})
    file = {"flex": "flex/model.safetensors", "gate": "gate/gate/seed-3/gate.safetensors"}[stage]
    assert same(resumed / file, expected / file)
    assert not same(resumed / file, copied / "done" / file.replace("seed-3", "seed-0"))


def test_a_truncated_checkpoint_is_named(copied: Path) -> None:
    run = copied / "done"
    state = json.loads((run / "flex" / "stage.json").read_text())
    (run / "flex" / "stage.json").write_text(json.dumps(state | {"done": False}))
    checkpoint = run / "flex" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"last.ckpt is no whole checkpoint .*delete it"):
        run_stages(tiny(copied, "name=done"), {})


def test_a_run_trains_and_decides_on_cached_maps_as_on_pixels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    short = ("trainer.quiet=false", "stages=[data,cache,flex,rollouts]")
    first = run_stages(tiny(tmp_path, "name=cached", "data.cache=run", *short), {})
    maps = weights(first / "cache" / "gate-000000.safetensors")
    assert maps["size"].shape == (12, 2) and maps["tile_0"].dtype == torch.float16
    plain = run_stages(tiny(tmp_path, "name=plain", *short), {})
    for part in ("flex/model", "rollouts/gate/table"):
        a, b = (weights(root / f"{part}.safetensors") for root in (first, plain))
        assert a.keys() == b.keys()
        for name in a:
            assert torch.allclose(a[name].double(), b[name].double(), rtol=0.02, atol=0.02), name
    for stage in ("flex", "rollouts"):
        shutil.rmtree(first / stage)
    capfd.readouterr()
    later = run_stages(tiny(tmp_path, "name=later", f"from={first}", "data.cache=run", "flex.seed=2", *short), {})
    assert f"cache: done before, in {first}/cache" in capfd.readouterr().err and not (later / "cache").exists()
    other = run_stages(tiny(tmp_path, "name=other", f"data.cache={first}/cache", "flex.seed=2", *short), {})
    assert same(later / "flex" / "model.safetensors", other / "flex" / "model.safetensors")


def test_cached_maps_are_float32s_whatever_the_run_computes_in(tmp_path: Path) -> None:
    short = ("data.cache=run", "stages=[data,cache]", "data.limit=6")
    plain = run_stages(tiny(tmp_path, "name=plain", *short), {})
    low = run_stages(tiny(tmp_path, "name=low", "trainer.precision=bf16-mixed", *short), {})
    assert same(plain / "cache" / "gate-000000.safetensors", low / "cache" / "gate-000000.safetensors")


def test_a_stale_cache_is_refused_before_any_work(tmp_path: Path) -> None:
    first = run_stages(tiny(tmp_path, "name=cached", "data.cache=run", "stages=[data,cache]"), {})
    wrong = tiny(tmp_path, "name=other", f"data.cache={first}/cache", "vision.out_index=1", "pyramid.levels=2")
    with pytest.raises(UserError, match="is stale: made with vision.out_index=2, this run has 1"):
        run_stages(wrong, {})
    with pytest.raises(UserError, match="holds no cache.json"):
        run_stages(tiny(tmp_path, "name=other", f"data.cache={tmp_path}/none"), {})
    assert not (tmp_path / "other").exists()


def test_maps_of_an_encoder_that_trains_are_not_cached(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="data.cache=run with vision.frozen=false: maps would change"):
        tiny(tmp_path, "data.cache=run", "vision.frozen=false")


def test_a_disk_that_is_full_for_a_while_costs_no_training(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [1, 1, 0, 1]

    def fill(path: Path) -> AbstractContextManager[BinaryIO]:
        if not (left.pop(0) if left else 1):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole_file(path)

    run = ("stages=[data,flex]", "flex.optimizer.steps=4", "data.limit=12")
    whole = run_stages(tiny(copied, "name=whole", *run), {})
    monkeypatch.setattr(checkpoint, "whole_file", fill)
    short = run_stages(tiny(copied, "name=short", *run), {})
    assert not left and same(whole / "flex" / "model.safetensors", short / "flex" / "model.safetensors")
    said = capsys.readouterr().err
    assert said.count("No space left on device; training goes on") == 1
