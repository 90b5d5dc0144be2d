"""Stage peers: rollouts behind pruners that the run is held against, of the splits that a frontier is drawn
on."""

from pyrskip.pruners import PrunerConfig
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages.model import model_of
from pyrskip.stages.pruner import pruner_of
from pyrskip.stages.rollouts import ROLLOUTS, roll_out_into, tables_in
from pyrskip.stages.run import Run, Stage

DRAWN = ("val", "test")
"""Splits that a frontier is drawn on."""


def roll_out_peers(run: Run) -> None:
    model = model_of(run)
    for pruner in run.config.peers.configs():
        model.pruner = pruner_of(run, pruner)
        run.say(f"  {pruner}")
        roll_out_into(run, model, DRAWN, run.root / PEERS.name / _folder(pruner), pruner)


def peers_of(run: Run) -> dict[PrunerConfig, dict[str, RolloutTable]]:
    """The rollouts behind each pruner by split, their rows as those of the run's own. Raises UserError where
    they are not what this run would roll out."""
    root = run.directory(PEERS)
    return {
        pruner: tables_in(run, DRAWN, root / _folder(pruner), pruner) for pruner in run.config.peers.configs()
    }


def _folder(pruner: PrunerConfig) -> str:
    return f"{pruner.name}-{pruner.ratio:g}"


PEERS = Stage(
    "peers",
    roll_out_peers,
    after=ROLLOUTS,
    keys=("peers",),
    passes=True,  # gates are trained on what no pruner has seen
    applies=lambda config: bool(config.peers.pruners),
    once=True,
    reads=DRAWN,
)
