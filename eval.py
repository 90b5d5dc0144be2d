"""python eval.py run=<directory> [evaluation.<key>=value ...]: the same as `pyrskip eval`."""

import sys

from pyrskip.cli import evaluate

if __name__ == "__main__":
    evaluate(sys.argv[1:])
