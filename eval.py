"""python eval.py run=<directory> [evaluation.<key>=value ...]: the same as `pyrskip eval`."""

import sys

from pyrskip.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])
