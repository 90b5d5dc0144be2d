"""Claims about configs: what is shipped composes, and what is wrong is refused in one sentence that says what
is allowed."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from pyrskip.config import Config, read, to_plain
from pyrskip.errors import UserError
from pyrskip.identity import unread
from pyrskip.launch import conf_directory
from pyrskip.models.native import NativeModel
from pyrskip.rollouts.table import RolloutTable
from pyrskip.tracking.loggers import Job, loggers
from pyrskip.training.trainer import TrainerConfig, check_readable, check_trainer
from tests.models import tiny_model
from tests.tables import synthetic_table

CONF = conf_directory()
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("[!_]*.yaml"))]


def composed(*overrides: str) -> Config:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return read(compose(config_name="train", overrides=list(overrides)))[0]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_composes_and_states_every_key_of_its_dataclass_and_no_other(
    group: str, option: str
) -> None:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose(config_name="train", overrides=[f"{group}={option}", "lent=false"])  # nobody lends
    config = read(cfg)[0]
    if group not in ("experiment", "logger"):
        own = getattr(config, group)
        assert set(cfg[group]) == {f.name for f in fields(own)} - unread(own)


def test_eval_takes_every_evaluation_key() -> None:
    stated = OmegaConf.to_container(OmegaConf.load(CONF / "eval.yaml"))
    assert isinstance(stated, dict)
    assert stated["evaluation"].keys() == to_plain(Config().evaluation).keys()


def test_the_policy_follows_the_rule() -> None:
    assert composed("rule=supervised").gate.policy == "utility"
    assert composed("rule=gumbel").gate.policy == "bernoulli"
    assert composed("rule=gumbel", "gate.policy=categorical").gate.policy == "categorical"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gate.width=wide", "gate.width='wide' .*int"),
        ("gate.policy=greedy", "gate.policy='greedy' .*utility"),
        ("rule.name=magic", "rule.name='magic' .*gumbel, ratio, reinforce, supervised"),
        ("data.gate_fraction=1.5", "data.gate_fraction=1.5 .*< 1"),
        ("data.val_fraction=0", "data.val_fraction=0.0 .*0 < val_fraction"),
        ("reward.low=2", "reward.low=2.* low < high"),
        ("reward.price=[0.1,0.2]", "reward.price=.0.1, 0.2. is not allowed: .*float"),
        ("stages=[data,fly]", "stages='fly' .*data, flex"),
        ("trainer.devices=0", "trainer.devices=0: at least 1"),
        ("trainer.strategy=nope", "trainer.strategy.*nope.*allowed: auto, ddp, ddp_fork, ddp_spawn, fsdp"),
        ("flex.budget=lavish", "'lavish' .*tokenflex"),
        ("text.name=gpt", "text.name='gpt' .*minilm"),
        ("budget.total=-4", "total=-4"),
        ("evaluation.prices=[]", "evaluation.prices=.*at least|evaluation.prices=.*one or more"),
        ("ablations=[psychic]", "ablations=.'psychic'.* glance, predictor"),
        ("ablations=[joint]", "ablations=.'joint'.* glance, predictor"),
        ("ablations=[glance,glance]", "each once"),
        ("stages=[]", "stages=.* leaves nothing to run"),
        ("name=.", "name='.' is no directory"),
        ("pyramid.levels=1", "pyramid.levels=1 .*at least 2"),
        ("evaluation.prices=[0.1,nan]", "evaluation.prices=.*nan.* finite"),
        ("flex.optimizer.lr=inf", "flex.optimizer.lr=inf .*finite"),
        ("evaluation.retentions=[-1]", "evaluation.retentions=.-1.0.*1.5"),
        ("evaluation.retentions=[]", "evaluation.retentions=.*one or more"),
        ("evaluation.confidence=1", "evaluation.confidence=1.0: allowed: above 0 and below 1"),
        ("evaluation.confidence=0", "evaluation.confidence=0.0: allowed"),
        ("trainer.gradient_clip=0", "trainer.gradient_clip=0.0 .*null"),
        ("name=../elsewhere", "name='../elsewhere'"),
        ("+flex.budgte=fixed", "flex.budgte is unknown; allowed here: .*budget"),
        ("cost.unit=joules", "cost.unit='joules'.*flops, macs"),
        ("cost.count=all", "cost.count='all' is unknown; allowed: fastv, ptp, run"),
        ("language.heads=5", "language.heads=5"),
        ("+logger.x._target_=os.system", "logger.x._target_='os.system' may not be built"),
        (
            "+logger.x={_target_:pytorch_lightning.loggers.CSVLogger,name:{_target_:os.a}}",
            "logger.x may not have _target_",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_allowed(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        composed(override)
    assert "\n" not in str(caught.value)


def test_a_config_survives_json(tmp_path: Path) -> None:
    config = composed("experiment=easy_vqa", "budget=proportional", "pyramid.grid=[2,1,1]")
    plain = OmegaConf.create(to_plain(config))
    assert read(plain)[0] == config


def test_prices_outside_of_what_a_gate_is_trained_on_are_refused_unless_the_price_is_arithmetic() -> None:
    with pytest.raises(
        UserError, match=r"evaluation\.prices=2\.0 is outside .*allowed: 0\.001 to 1\.0 \(reward\.low"
    ):
        composed("rule=gumbel", "evaluation.prices=[0.1,2.0]")
    assert composed("rule=supervised", "evaluation.prices=[0.1,2.0]").evaluation.prices == (0.1, 2.0)


def test_tile_wise_gates_are_refused_on_a_grid() -> None:
    grid = ("rule=gumbel", "pyramid.grid=[2,1,1]")
    with pytest.raises(
        UserError, match=r"gate.policy=bernoulli with pyramid.grid=\[2, 1, 1\].*gate.policy=categorical"
    ):
        composed(*grid)
    assert composed(*grid, "gate.policy=categorical").gate.policy == "categorical"


@pytest.mark.parametrize("policy", ["bernoulli", "autoregressive", "sequential"])
def test_policies_that_decide_tile_by_tile_need_every_selection(policy: str) -> None:
    wanted = ("rule=reinforce", f"gate.policy={policy}", "pyramid.grid=[2,1,1]")
    assert composed(*wanted, "actions=tiles").gate.policy == policy
    for lists in ("actions=levels", "actions=sampled"):
        with pytest.raises(
            UserError, match=rf"gate.policy={policy} .* needs all 32 selections .*actions.unit=tile without a"
        ):
            composed(*wanted, lists)


def test_a_gate_that_looks_is_refused_where_a_table_must_be_played() -> None:
    looks = ("rule=actor_critic", "gate.looks=true", "rule.online=true", "stages=[data,flex,rollouts,gate]")
    assert composed(*looks).gate.looks
    for other in ("rule.online=false", "stages=[rollouts,gate,frontier]", "reward.target=0.4"):
        with pytest.raises(UserError, match="gate.looks=true .*allowed: rule.online=true"):
            composed(*looks, other)


def test_a_quadtree_that_looks_is_refused_without_a_model_and_played_by_the_frontier() -> None:
    looks = (
        "gate=region",
        "rule=reinforce",
        "gate.policy=quadtree",
        "gate.looks=true",
        "pyramid.grid=[4,2,1]",
    )
    assert composed(*looks, "rule.online=true").gate.looks
    for other in (
        ("rule.online=false", "actions=tiles", "pyramid.grid=[2,1,1]"),
        ("rule.online=true", "reward.target=0.4"),
    ):
        says = "gate.looks=true .*allowed: rule.online=true, and reward.target=null"
        with pytest.raises(UserError, match=says):
            composed(*looks, *other)


def test_a_saved_config_keeps_what_it_borrows() -> None:
    config = composed("from=runs/lender")
    assert read(OmegaConf.create(to_plain(config)))[0].borrow == "runs/lender"
    assert read(OmegaConf.create(to_plain(config) | {"from": "runs/other"}))[0].borrow == "runs/other"


@pytest.mark.parametrize(
    ("config", "steps", "said"),
    [
        (TrainerConfig(precision="99"), (), "precision=99.* cannot run here"),
        (TrainerConfig(accelerator="tpu"), (), "accelerator=tpu.* cannot run here"),
        (TrainerConfig(devices=2, strategy="fsdp", precision="16-mixed"), (), "devices=2.*fsdp"),
        (TrainerConfig(accumulate=4), (8, 6), "trainer.accumulate=4 does not divide optimizer.steps=6"),
    ],
)
def test_an_impossible_trainer_is_refused(config: TrainerConfig, steps: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        check_trainer(config, steps)
    assert "\n" not in str(caught.value)
    check_trainer(TrainerConfig(accumulate=2), (2, 4))


@pytest.mark.parametrize(
    ("names", "config"),
    [
        ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, TrainerConfig()),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, TrainerConfig(devices=2)),
        ({"SLURM_NTASKS": "2"}, TrainerConfig(nodes=2)),
        ({}, TrainerConfig(devices=2, nodes=2)),
    ],
)
def test_other_ranks_than_were_started_are_refused(
    names: dict[str, str], config: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"trainer.nodes = \d, and torchrun or srun has started \d; allowed: as many of both"
    ):
        check_trainer(config, ())


@pytest.mark.parametrize(
    "names", [{"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_NTASKS": "4"}], ids=str
)
def test_a_process_of_a_job_may_start_its_ranks(
    names: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    check_trainer(TrainerConfig(devices=2), ())


def test_a_checkpoint_must_be_a_trainings_and_the_modules(tmp_path: Path) -> None:
    path, module = tmp_path / "last.ckpt", nn.Linear(2, 3)
    torch.save({"state_dict": module.state_dict(), "pytorch-lightning_version": "2"}, path)
    check_readable(path, module)
    with pytest.raises(UserError, match=r"of another model: bias is \(3,\) there and \(4,\) here; delete it"):
        check_readable(path, nn.Linear(2, 4))
    others: tuple[object, ...] = ([1], {"state_dict": {}})
    for other in others:
        torch.save(other, path)
        with pytest.raises(UserError, match="is no checkpoint of a training"):
            check_readable(path, module)


@pytest.mark.parametrize(
    ("logger", "argument", "said"),
    [
        ("CSVLogger", {"colour": "red"}, "logger.x cannot be built: .*colour"),
        ("TensorBoardLogger", {"colour": "red"}, "logger.x cannot be built: .*colour"),
        ("WandbLogger", {"colour": "red", "offline": True}, "logger.x cannot be built: .*colour"),
    ],
)
def test_a_logger_that_cannot_be_built_is_named(
    logger: str, argument: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip({"WandbLogger": "wandb", "TensorBoardLogger": "tensorboard"}.get(logger, "torch"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    nodes = {"x": {"_target_": f"pytorch_lightning.loggers.{logger}", **argument}}
    with pytest.raises(UserError, match=said) as caught, loggers(nodes, tmp_path, Job("run", "flex", (), {})):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["types", "keys", "texts", "image_keys", "actions"])
def test_a_table_whose_lengths_disagree_is_refused(name: str, tmp_path: Path) -> None:
    table = synthetic_table(images=3)
    table.save(tmp_path)
    assert RolloutTable.load(tmp_path).keys == table.keys
    lists = json.loads((tmp_path / "table.json").read_text())
    lists[name] = lists[name][:-1]
    (tmp_path / "table.json").write_text(json.dumps(lists))
    with pytest.raises(UserError, match="holds no rollout table that can be read"):
        RolloutTable.load(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.save(tmp_path)
    state = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("text.")}
    first = next(iter(state))
    safetensors.torch.save_file(state | {first: torch.zeros(7)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds no model that can be read") as caught:
        NativeModel.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_experiment_with_a_published_model_has_nothing_left_to_fill_in() -> None:
    own, published = composed("experiment=your_vlm"), composed("experiment=qwen2_5_vl_7b")
    assert not own.model.hf.path and published.model.hf.path == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert published.data.files.path.startswith("hf://") and published.data.files.metric == "relaxed"
    assert published.pyramid == own.pyramid and published.data.gate_fraction == own.data.gate_fraction
