"""Stage frontier: every method's accuracy against its cost, on the rollouts."""

from typing import Any

from pyrskip.config import Config
from pyrskip.data.shards import SPLITS
from pyrskip.evaluation.evaluate import evaluate
from pyrskip.evaluation.runs import load_runs
from pyrskip.progress import shown
from pyrskip.report.frontier import draw
from pyrskip.stages.data import DATA, fault_log
from pyrskip.stages.gate import GATE, gates_of, kept_in
from pyrskip.stages.model import model_of
from pyrskip.stages.peers import PEERS, peers_of
from pyrskip.stages.pruner import pruner_of
from pyrskip.stages.rollouts import ROLLED, other_tables, tables_of
from pyrskip.stages.run import Run, Stage, select
from pyrskip.tracking.frontier import frontier_media, frontier_metrics
from pyrskip.tracking.guard import first_rank
from pyrskip.tracking.loggers import loggers
from pyrskip.tracking.media import send


def draw_frontier(run: Run) -> None:
    config = run.config
    gates: dict[str, list[Any]] = {}
    for method, _, _, directory in gates_of(run):
        gates.setdefault(method, []).append(directory)
    tables, cross, peers = tables_of(run, ROLLED), config.evaluation.cross, peers_of(run)
    evaluation = evaluate(
        config.evaluation,
        model_of(run),
        tables,
        gates,
        list(range(config.seed, config.seed + config.seeds)),
        run.directory(DATA),
        run.root,
        None if cross is None else other_tables(tables, cross, "evaluation.cross"),
        {split: log.summary() for split in SPLITS if (log := fault_log(run, split)).read()},
        {method: [kept_in(directory) for directory in of] for method, of in gates.items()},
        peers,
        {str(peer): pruner_of(run, peer) for peer in peers},
    )
    draw(evaluation, run.root)
    with loggers(run.nodes, run.root / FRONTIER.name, run.job(FRONTIER.name)) as built:
        drawn = load_runs(run.root)[0]
        for guard in built:
            guard.log_metrics(frontier_metrics(drawn.summary), 0)
            guard.save()
        if len(built) > 1:  # media are costly, and CSV takes none
            send(built, frontier_media(drawn), 0)


def evaluate_again(config: Config, nodes: dict[str, Any]) -> None:
    """Draw the frontier of a run whose gates are trained, whatever its frontier was drawn with. Raises
    UserError where another process is at the run."""
    run = Run(config, nodes)
    with run.lock(), shown(not config.trainer.quiet):
        run.check_before(FRONTIER)
        run.mark(FRONTIER, done=False)
        if first_rank():
            draw_frontier(run)
        run.mark(FRONTIER, done=True)
        run.keep_config()


FRONTIER = Stage(
    "frontier",
    draw_frontier,
    after=GATE,
    keys=("evaluation",),
    more=lambda run: select(run.config, "peers") if PEERS.applies(run.config) else {},
    alone=True,
    borrowed=False,
)
