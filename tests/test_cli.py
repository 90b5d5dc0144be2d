"""Claims about the command line: help helps, and bad input is one sentence on stderr with exit code 2, before
any work."""

import json
import logging
import re
import sys
from pathlib import Path

import pytest

from pyrskip.cli import main
from pyrskip.config import Config, to_plain
from pyrskip.launch import quiet


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What stderr says of a command line that is refused."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert said[0].startswith("error: ")
    return said[0]


@pytest.mark.parametrize("arguments", [(), ("--help",), ("train", "--help")])
def test_help_lists_commands_and_what_can_be_chosen(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    said = capsys.readouterr().out
    for word in (
        "train",
        "eval",
        "data",
        "rollouts",
        "easy_vqa",
        "remote",
        "joint",
        "gumbel",
        "wandb_offline",
        "from=",
    ):
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fly",), "'fly' is no command of pyrskip; allowed: train, eval, data"),
        (("train", "experiment=nope"), "experiment/nope.*allowed: .*easy_vqa"),
        (("train", "gate=psychic"), "gate/psychic.*allowed: .*joint"),
        (("train", "gaet=joint"), "gaet"),
        (("train", "flex.budgte=fixed"), "flex.budgte"),
        (("train", "flex.budget=lavish"), "'lavish'.*tokenflex"),
        (("train", "trainer.precision"), "trainer.precision"),
        (("train", "-m", "gate=joint,predictor", "seed=-1"), "seed=-1"),
        (("train", "-m", "gate=joint,predictor", "seed=0,-1"), "seed=-1"),
        (("train", "-m", "seed=range(0,400)", "trainer.devices=1,0"), "trainer.devices=0"),
        (("train", "-m", "gate=joint,predictor", "gate.policy=auto,greedy"), "gate.policy='greedy'"),
        (("train", "-m", "trainer.strategy=auto,ddp", "trainer.devices=2"), "would sweep anew on every rank"),
        (("train", "gate=joint,predictor"), "gate=joint,predictor.*--multirun"),
        (("train", "gate=null"), "string"),
        (("train", "--frobnicate"), "'--frobnicate' is no flag.*--multirun"),
        (("eval",), "run= is missing"),
        (("data", "inspect"), "takes one directory"),
        (("data", "inspect", "nowhere"), "nowhere"),
        (("data", "reshard", "nowhere"), "takes two directories"),
        (("data", "reshard", "nowhere", "new", "samples_per_shard=many"), "samples_per_shard=<number>"),
        (("data", "reshard", "nowhere", "new"), "nowhere holds no index.json"),
        (("data", "data=llava", "data.files.metric=bleu"), "data.files.metric='bleu'.*anls"),
        (("data", "data=shards", "data.shards.paths=[]"), r"data.shards.paths=\[\]"),
        (("train", "loader.order=random"), "loader.order='random'.*samples, shards"),
        (("train", "data.max_bad_fraction=1"), "data.max_bad_fraction=1.0.*below 1"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(said, refused(capsys, *arguments))


def test_a_directory_that_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"run={tmp_path} is no run" in refused(capsys, "eval", f"run={tmp_path}")


@pytest.mark.parametrize("content", ["[]", "{}", '{"evaluation": 3}', "{"])
def test_a_config_that_is_no_runs_is_named(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert "run=. is no run" in refused(capsys, "eval", "run=.")


def test_a_run_may_be_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(to_plain(Config())))
    monkeypatch.chdir(tmp_path)
    assert f"needs {tmp_path}/data, which is not finished" in refused(capsys, "eval", "run=.")


def test_what_lightning_says_at_every_start_is_not_heard() -> None:
    from lightning_fabric.utilities import distributed
    from pytorch_lightning.accelerators import cuda
    from pytorch_lightning.trainer.connectors import checkpoint_connector

    quiet()
    assert not any(
        log.isEnabledFor(logging.INFO) for log in (cuda._log, checkpoint_connector.log, distributed.log)
    )


@pytest.mark.parametrize("by_lightning", [False, True])
def test_an_interruption_is_one_line(
    by_lightning: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if by_lightning:
                sys.exit(1)
            raise

    monkeypatch.setattr("pyrskip.stages.run_stages", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(["train"])
    assert exit_.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


def test_levels_that_do_not_fit_are_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(
        capsys, "train", "experiment=easy_vqa", f"root={tmp_path}", "pyramid.size=60", "data.limit=2"
    )
    assert "pyramid.size=60 cannot hold level" in said
    assert "allowed: multiples of" in said
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert f"{tmp_path}/file/easy_vqa cannot be written: Not a directory" in refused(
        capsys, "train", "experiment=easy_vqa", f"root={tmp_path}/file", "data.limit=2"
    )


def test_reshard_counts_what_it_wrote(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "reshard", str(tiny_data), str(tmp_path / "new"), "samples_per_shard=5"])
    assert "train: 24 images" in (said := capsys.readouterr().out) and "in 5 shards" in said


def test_inspect_counts_and_draws(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["data", "inspect", str(tiny_data), f"sheet={tmp_path / 'sheet.png'}"])
    said = capsys.readouterr().out
    assert "yesno_shape" in said
    assert "broken  0" in said
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
