"""Claims about the docs: every command in them runs, on small data, in the order it is read."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.configs import REPOSITORY, TWO_STEPS
from tests.forked import run
from tests.own_data import embedded, picture, write_llava, write_parquet
from tests.server import serve

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
SCENES = ["data.scenes.size=256", "pyramid.size=256", "pyramid.levels=3"]
OWN = ["language.heads=4", "data.files.workers=0"]
GATES = ("gate.", "rule.", "evaluation.", "trainer.")
SMALL = [override for override in TWO_STEPS if not override.startswith(("seeds=", "evaluation.prices="))]
EASY = "python train.py experiment=easy_vqa"
SHARED = {
    EASY: "runs/easy_vqa",
    "python train.py experiment=regions": "runs/regions",
    "python train.py experiment=scenes": "runs/scenes",
    "pyrskip export run=runs/easy_vqa out=exports/easy_vqa": "exports/easy_vqa",
}
"""Commands of several pages, which run once, and what they make."""
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
# make targets are what continuous integration and people run; they build an environment of their own
RUNNERS = ("python train.py", "python eval.py", "pyrskip ")


def commands(page: Path) -> list[str]:
    """The commands of a page's sh blocks, a line each."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def code(page: Path) -> str:
    """The Python of a page, all of its blocks."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))


def test_every_command_is_of_a_known_kind() -> None:
    for page in PAGES:
        for command in commands(page):
            assert command.startswith((*RUNNERS, "make ", "pip install ", "git clone ", "cd ")), (
                page.name,
                command,
            )


def test_every_make_target_that_is_named_exists() -> None:
    targets = re.findall(r"(?m)^([a-z-]+):", (REPOSITORY / "Makefile").read_text())
    for page in PAGES:
        for command in commands(page):
            if command.startswith("make "):
                assert command.split()[1] in targets, (page.name, command)


class Shared:
    """Makes what SHARED's commands make, at `root`, each when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "train.py").symlink_to(REPOSITORY / "train.py")

    def made(self, line: str) -> Path:
        place = self.root / SHARED[line]
        if not place.exists():
            if "run=runs/easy_vqa" in line:
                self.made(EASY)
            small = SMALL if line.startswith("python") else []
            if line.endswith("=scenes"):
                small = small + SCENES
            done = run([*shlex.split(line), *small], self.root, ENVIRONMENT, 1800)
            assert done.returncode == 0, f"{line}\n{done.stderr[-4000:]}"
        return place


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory.mktemp("shared"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if any(c.startswith(RUNNERS) for c in commands(p)) or code(p)],
    ids=lambda p: p.name,
)
def test_every_command_and_block_of_the_page_runs(page: Path, shared: Shared, tmp_path: Path) -> None:
    environment, small = ENVIRONMENT, list(SMALL)
    for name in ("train.py", "eval.py"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    if page.name == "extending.md":
        shutil.copytree(REPOSITORY / "tests/toys_outside", tmp_path, dirs_exist_ok=True)
    if page.name in ("scenes.md", "sweeps.md"):
        small += SCENES
    if page.name == "sweeps.md":
        small.append("ablations=[]")
    if page.name in ("README.md", "your-data.md"):
        write_llava(tmp_path, images=60)
    if page.name == "your-data.md":
        rows = [
            {"question": f"q{i}?", "answers": ["a"] * 10, "image": embedded(picture(i))} for i in range(60)
        ]
        (tmp_path / "textvqa").mkdir()
        write_parquet(tmp_path / "textvqa" / "train-0.parquet", rows)
    lines = [c for c in commands(page) if c.startswith(RUNNERS)]
    common = set(SHARED) & set(lines)
    if page.name == "peers.md":
        common.remove(EASY)
        small.remove("language.layers=1")  # some prune between layers
        small.append("peers.ratios=[0.5]")  # of three
    elif any("runs/easy_vqa" in line for line in lines):
        common.add(EASY)
    for line in common:
        shutil.copytree(shared.made(line), tmp_path / SHARED[line])
    lines = [line for line in lines if line not in common]
    if any("my-vlm" in line for line in lines):
        pytest.importorskip("transformers")
        from tests.vlm import save_llava, save_qwen

        if page.name == "your-own-vlm.md":
            save_qwen(tmp_path / "my-vlm")
            write_llava(tmp_path, images=60)
        else:
            save_llava(tmp_path / "my-vlm")
    with serve(lambda text, pictures: "yes") as server:
        server.count = lambda text, pictures: 9 * len(pictures) + len(text.split())  # as my-vlm's processor
        for line in lines:
            line = line.replace("pyramid.size=1024 pyramid.levels=4", "pyramid.size=128 pyramid.levels=2")
            line = re.sub(r"'pair=glob[^']*'", "pair=exact-categorical,supervised-utility", line)  # of dozens
            line = line.replace(",0.1 seed=0,1,2", " seed=0,1")  # tests/test_example_sweep.py has all 18
            words = shlex.split(line.replace("http://localhost:8000/v1", server.url))
            if line.startswith(("pyrskip serve ", "pyrskip gateway ")):
                serve_and_stop(words, tmp_path, environment)
                continue
            given = {word.split("=")[0] for word in words}
            if "data=shards" in line:
                given |= {"data.limit", "data.files.workers"}
            composes = {"train", "train.py", "data", "rollouts"} & set(words) and not {
                "inspect",
                "reshard",
            } & set(words)
            if composes:
                lent = {"experiment=compare_rules", "experiment=peers"} & set(words)
                own = (*GATES, "peers.") if lent else ""  # the rest is the lender's
                mine = OWN if "experiment=your_data" in words else []
                words += [o for o in small + mine if o.split("=")[0] not in given and o.startswith(own)]
            done = run(words, tmp_path, environment, 1800)
            assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    ran = subprocess.run(
        [sys.executable, "-c", code(page)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


def serve_and_stop(words: list[str], directory: Path, environment: dict[str, str]) -> None:
    """A service of the docs starts, says that it is well, and ends well."""
    (port,) = (word.split("=")[1] for word in words if word.startswith("port="))
    process = subprocess.Popen(words, cwd=directory, env=environment)
    try:
        for _ in range(1500):  # one of them exports first
            try:
                assert urlopen(f"http://127.0.0.1:{port}/health").status == 200
                break
            except URLError:
                assert process.poll() is None, "the service ended"
                time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
