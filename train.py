"""python train.py experiment=<name> [key=value ...]: the same as `pyrskip train`."""

import sys

from pyrskip.cli import train

if __name__ == "__main__":
    train(sys.argv[1:])
