"""Claims about what is installed: a wheel trains on its own, and several ranks run every stage."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

import pyrskip
from pyrskip.gates.gate import Gate
from pyrskip.models.native import NativeModel
from tests.configs import REPOSITORY, TWO_STEPS

TINY = ["experiment=easy_vqa", *TWO_STEPS]


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_trains(tmp_path: Path) -> None:
    built = run(
        sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(REPOSITORY), cwd=tmp_path
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    elsewhere = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", str(elsewhere), cwd=tmp_path).returncode == 0
    (packages,) = elsewhere.glob("lib/python*/site-packages")
    # the dependencies of this environment, but not the checkout that is installed in it: nested .pth files
    # are not read
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(elsewhere / "bin/python"),
        "install",
        "-q",
        "--no-deps",
        str(wheel),
    ]
    assert run(*install, cwd=tmp_path).returncode == 0
    where = run(str(elsewhere / "bin/python"), "-c", "import pyrskip; print(pyrskip.__file__)", cwd=tmp_path)
    assert str(packages) in where.stdout
    trained = run(str(elsewhere / "bin/pyrskip"), "train", *TINY, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "runs/easy_vqa/frontier.json").read_text())


@pytest.mark.slow
def test_base_dependencies_and_onnxruntime_run_an_export(
    exported: tuple[Path, NativeModel, Gate], tmp_path: Path
) -> None:
    """In an environment of its own, without torch: the same answers."""
    built = run(
        sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(REPOSITORY), cwd=tmp_path
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    elsewhere = tmp_path / "venv"
    assert run(sys.executable, "-m", "venv", str(elsewhere), cwd=tmp_path).returncode == 0
    python = str(elsewhere / "bin/python")
    constraints = str(REPOSITORY / "constraints.txt")
    installed = run(python, "-m", "pip", "install", "-q", "-c", constraints, f"{wheel}[onnx]", cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    assert run(python, "-c", "import torch", cwd=tmp_path).returncode != 0
    Image.effect_noise((40, 30), 80).convert("RGB").save(tmp_path / "a.png")
    asked = [f"input={tmp_path / 'a.png'}", "question=how many?", f"out={tmp_path / 'out.jsonl'}"]
    answered = run(str(elsewhere / "bin/pyrskip"), "predict", f"model={exported[0]}", *asked, cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
    told = json.loads((tmp_path / "out.jsonl").read_text())
    wanted = pyrskip.load(exported[0], "torch").answer(tmp_path / "a.png", "how many?")
    assert (told["answer"], told["tiles"]) == (wanted.text, list(wanted.selection.tiles))


@pytest.mark.slow
def test_two_ranks_run_every_stage(tmp_path: Path) -> None:
    script = [sys.executable, str(REPOSITORY / "train.py"), *TINY, "trainer=ddp", "trainer.accelerator=cpu"]
    trained = run(*script, "loader.batch_images=1", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((tmp_path / "runs/easy_vqa/frontier.json").read_text())


@pytest.mark.slow
def test_a_sweep_borrows_what_is_trained(tmp_path: Path) -> None:
    script = [sys.executable, str(REPOSITORY / "train.py")]
    assert run(*script, *TINY, cwd=tmp_path).returncode == 0
    sweep = ["-m", "from=runs/easy_vqa", "name=sweep", "gate=joint,predictor", "ablations=[]", "seed=0,5"]
    swept = run(*script, *TINY, *sweep, cwd=tmp_path)
    assert swept.returncode == 0, swept.stderr
    found = sorted(p.parent.name for p in tmp_path.glob("runs/sweep/*/frontier.json"))
    assert found == [f"gate={gate},seed={seed}" for gate in ("joint", "predictor") for seed in (0, 5)]


@pytest.mark.slow
def test_a_sweep_over_ranks_that_replay_it_is_refused(tmp_path: Path) -> None:
    script = [
        sys.executable,
        str(REPOSITORY / "train.py"),
        "-m",
        *TINY,
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "seed=0,1",
    ]
    refused = run(*script, cwd=tmp_path)
    assert refused.returncode == 2
    assert "would sweep anew on every rank" in refused.stderr
