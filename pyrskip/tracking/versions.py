"""Which code made a run."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("pyrskip", "torch", "timm", "pytorch-lightning", "transformers")


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of what decides results, and the commit of a checkout, marked where it was
    edited."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _git("rev-parse", "--short=12", "HEAD")
    if commit:
        found["commit"] = commit + (
            " and uncommitted changes" if _git("status", "--porcelain", "-uno") else ""
        )
    return found


def _git(*arguments: str) -> str:
    """What git says of the checkout that this file is in; nothing where it is in none."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    # a package installed below somebody else's checkout is not that checkout's
    tracked = done.returncode == 0 and (here.parents[1] / ".git").exists()
    return done.stdout.strip() if tracked else ""
