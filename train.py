"""python train.py experiment=<name> [key=value ...]: the same as `pyrskip train`."""

import sys

from pyrskip.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
