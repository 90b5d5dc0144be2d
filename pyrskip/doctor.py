"""`pyrskip doctor`: what is installed, what is missing and for what, which device there is, and whether it
all works."""

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from pyrskip.errors import UserError

USES = {
    "train": "train, eval, data, rollouts, bench, and all that looks at runs",
    "easy-vqa": "experiment=easy_vqa: its pictures, and the image encoder's weights",
    "scenes": "experiment=scenes, data=scenes: generated pictures",
    "convert": "data=parquet",
    "export": "pyrskip export",
    "onnx": "exports without torch: predict, pyrskip.load(backend='onnx')",
    "torch": "exports with torch: pyrskip.load(backend='torch')",
    "serve": "pyrskip serve, pyrskip gateway",
    "hub": "exports from and to the Hugging Face hub",
    "minilm": "text=minilm",
    "hf": "model=hf, pyrskip vlm",
    "remote": "model=remote, pyrskip data label",
    "wandb": "logger=wandb, pyrskip dashboard",
    "tensorboard": "logger=tensorboard",
    "mlflow": "logger=mlflow",
    "sweep": "hydra/launcher=joblib: a sweep's jobs side by side",
    "cluster": "hydra/launcher=slurm, and sweeps that search",
    "ray": "hydra/launcher=ray",
    "docs": "make docs-site: the docs as a site",
    "notebooks": "notebooks/",
    "lmms-eval": "lmms-eval's --model pyrskip",
    "dev": "the tests and checks of pyrskip itself",
}
"""Extra -> what needs it."""


@dataclass(frozen=True)
class Extra:
    """lacks: what is not there, and what is there in another version than wanted, in words."""

    name: str
    lacks: tuple[str, ...]

    def __str__(self) -> str:
        if not self.lacks:
            return f"  {self.name:12} installed"
        return f"  {self.name:12} missing: {', '.join(self.lacks)}; needed for {USES[self.name]}"


def doctor(arguments: Sequence[str]) -> None:
    """Print all of it. Exits with 1 where the self-test finds something wrong."""
    if arguments:
        raise UserError(f"{arguments[0]!r} is nothing that pyrskip doctor takes; allowed: no argument")
    print(f"pyrskip {_version('pyrskip')}, Python {platform.python_version()}, {platform.platform()}")
    print(f"{os.cpu_count()} CPU cores", end="")
    torch = _version("torch")
    print(f", torch {torch}, {accelerator()[1]}\n" if torch else ", no torch\n")
    print("extras, each installed with pip install 'pyrskip[<name>]':")
    for extra in extras():
        print(extra)
    lacking = next(extra.lacks for extra in extras() if extra.name == "torch")
    if lacking:
        print("\nno self-test: it needs the torch extra")
        return
    device = accelerator()[0]
    print(f"\nself-test on {device}, about ten seconds:")
    if not tested(device):
        sys.exit(1)


def extras() -> list[Extra]:
    """Raises UserError where pyrskip itself is not installed."""
    return [Extra(name, tuple(_lacking(name))) for name in USES]


def accelerator() -> tuple[str, str]:
    """The device that torch would train on, and what is known of it."""
    import torch

    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        more = f" (the first of {torch.cuda.device_count()})" if torch.cuda.device_count() > 1 else ""
        memory, driver = about.total_memory / 2**30, torch.version.cuda
        return "cuda", f"{about.name}{more}, {memory:.0f} GiB, CUDA {driver}: trainer=gpu"
    return "cpu", f"no CUDA GPU, {torch.get_num_threads()} threads"


def tested(device: str) -> bool:
    """Run the self-test, a line a claim; whether all of them hold."""
    import torch

    from pyrskip.selftest import selftest

    torch.set_num_threads(1)  # a model this small gains nothing by more
    good = True
    for check in selftest(device):
        good = good and not check.wrong
        print(f"  {'WRONG' if check.wrong else 'ok':6} {check.claim} ({check.seconds:.1f} s)", flush=True)
        if check.wrong:
            print(f"         {check.wrong}")
    return good


def _lacking(extra: str) -> Iterator[str]:
    """Requirements of an extra that are not met, in words."""
    for wanted in _requirements(extra):
        found = _version(wanted.name)
        if not found:
            yield wanted.name
        elif not wanted.specifier.contains(found, prereleases=True):
            yield f"{wanted.name} {wanted.specifier} (there is {found})"


def _requirements(extra: str) -> Iterator[Requirement]:
    """Requirements of an extra and of those that it includes."""
    try:
        listed = [Requirement(line) for line in requires("pyrskip") or ()]
    except PackageNotFoundError as error:
        raise UserError("pyrskip is not installed; in a checkout: pip install -e .") from error
    for wanted in listed:
        if wanted.marker is None or not wanted.marker.evaluate({"extra": extra}):
            continue
        if wanted.name != "pyrskip":
            yield wanted
        for inner in sorted(wanted.extras) if wanted.name == "pyrskip" else ():
            yield from _requirements(inner)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
