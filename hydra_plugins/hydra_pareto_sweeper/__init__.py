"""hydra/sweeper=pareto. Hydra imports its plugins at every start, so that all else is elsewhere."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ParetoSweeper(Sweeper):
    """trials: jobs in all, of earlier calls too; at_once: of them side by side; seed: of the sampler; prune:
    whether gates that fall behind are given up, which the jobs read."""

    launcher: Launcher

    def __init__(self, trials: int, at_once: int, seed: int, prune: bool) -> None:
        self.trials, self.at_once, self.seed = trials, at_once, seed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from pyrskip.sweeps.jobs import Job, name_of, plan, read_job
        from pyrskip.sweeps.overview import point_of
        from pyrskip.sweeps.search import Outcome, search
        from pyrskip.sweeps.space import as_override, distribution

        assert self.hydra_context is not None
        assert self.config is not None
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(arguments)
        fixed = tuple(str(o.input_line) for o in parsed if not o.is_sweep_override())
        space = {o.get_key_element(): distribution(o) for o in parsed if o.is_sweep_override()}
        directory, started = Path(self.config.hydra.sweep.dir), 0

        def launch(batch: Sequence[Mapping[str, Any]]) -> list[Outcome]:
            nonlocal started
            varied = [tuple(as_override(key, values[key]) for key in space) for values in batch]
            jobs = [Job(directory / name_of(of), fixed, of) for of in varied]
            for job in jobs:
                plan(job)
            # values may be chosen twice
            new = {job.name: job for job in jobs if read_job(job.directory).state == "waiting"}
            try:
                asked = [[*fixed, *job.varied] for job in new.values()]
                for returned in self.launcher.launch(asked, initial_job_idx=started) if asked else ():
                    _ = returned.return_value  # raises what kept the job from starting
            except Exception:  # of a job that died; the others' results are on the disk
                if all(read_job(job.directory).state == "waiting" for job in new.values()):
                    raise
            started += len(new)
            ended = [read_job(job.directory) for job in jobs]
            return [Outcome(job.state, point_of(job)) for job in ended]

        search(directory, space, self.trials, self.at_once, self.seed, launch)
