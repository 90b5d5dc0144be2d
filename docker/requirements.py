"""python requirements.py <pyproject.toml> <extra,extra,...>: what they need, a line each.

An image's layer of dependencies is made from this list, so that it is rebuilt when the list changes, and not
with every line of code.
"""

import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

OWN = "pyrskip["


def requirements(project: Path, extras: Sequence[str]) -> Iterator[str]:
    """The base dependencies and those of the extras; of extras that name extras, theirs."""
    told = tomllib.loads(project.read_text())["project"]
    yield from told["dependencies"]
    for extra in extras:
        for line in told["optional-dependencies"][extra]:
            if line.startswith(OWN):
                yield from requirements(project, line.removeprefix(OWN).rstrip("]").split(","))
            else:
                yield line


if __name__ == "__main__":
    print("\n".join(dict.fromkeys(requirements(Path(sys.argv[1]), sys.argv[2].split(",")))))
