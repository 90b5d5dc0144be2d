"""The Lightning Trainer of every stage that trains, and its resumption."""

import atexit
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from pyrskip.data.datamodule import StepData
from pyrskip.errors import UserError, unknown_name
from pyrskip.identity import HOW
from pyrskip.training.checkpoint import BetweenSteps, PatientIO
from pyrskip.training.clock import Clock
from pyrskip.training.preemption import Stop, after_the_step, answer_signals
from pyrskip.training.progress import ShowProgress

CHECKPOINT = "last.ckpt"
# how each starts its ranks: `popen` runs the same command again
STARTS = {"auto": "popen", "ddp": "popen", "ddp_fork": "fork", "ddp_spawn": "spawn", "fsdp": "popen"}
STRATEGIES = tuple(STARTS)


@dataclass(frozen=True)
class TrainerConfig:
    """Lightning's own words. checkpoint_every: steps that a kill can cost at most. quiet: no progress.

    strategy: auto (one process, or ddp where there are several), ddp, ddp_fork or ddp_spawn (on one machine,
    from one process), fsdp (flex alone: its language model in parts, gates by ddp). timeout: seconds that a
    rank waits for another.
    """

    accelerator: str = field(default="cpu", metadata=HOW)
    devices: int = field(default=1, metadata=HOW)
    nodes: int = field(default=1, metadata=HOW)
    strategy: str = field(default="auto", metadata=HOW)
    precision: str = "32-true"
    accumulate: int = 1
    gradient_clip: float | None = 1.0
    checkpoint_every: int = field(default=200, metadata=HOW)
    log_every: int = field(default=20, metadata=HOW)
    timeout: int = field(default=1800, metadata=HOW)
    quiet: bool = field(default=False, metadata=HOW)

    def __post_init__(self) -> None:
        for name in ("devices", "nodes", "accumulate", "checkpoint_every", "log_every", "timeout"):
            if getattr(self, name) < 1:
                raise UserError(f"trainer.{name}={getattr(self, name)}: at least 1 is needed")
        if self.accelerator not in ("cpu", "gpu", "cuda", "mps", "tpu", "auto"):
            raise UserError(
                f"trainer.accelerator={self.accelerator!r} is unknown; allowed: auto, cpu, cuda, gpu, mps, "
                "tpu"
            )
        if self.strategy not in STRATEGIES:
            raise unknown_name("trainer.strategy", self.strategy, STRATEGIES)
        if self.gradient_clip is not None and not 0 < self.gradient_clip < float("inf"):
            raise UserError(
                f"trainer.gradient_clip={self.gradient_clip} clips nothing; allowed: null, or more than 0"
            )


def build_trainer(
    config: TrainerConfig,
    directory: Path,
    loggers: Sequence[Logger] = (),
    title: str = "",
    callbacks: Sequence[Callback] = (),
    sharded: bool = False,
) -> pl.Trainer:
    """A Trainer whose one epoch is the whole run and whose checkpoints go to `directory`/last.ckpt.

    title: of its progress. sharded: whether trainer.strategy=fsdp may share out the module's
    weights.
    """
    progress: list[Callback] = [] if config.quiet else [ShowProgress(title)]
    checkpoint = BetweenSteps(
        dirpath=directory,
        filename=Path(CHECKPOINT).stem,
        every_n_train_steps=config.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    return _trainer(
        config,
        sharded,
        logger=list(loggers),
        callbacks=[Clock(), *callbacks, checkpoint, Stop(directory / CHECKPOINT), Leave(), *progress],
        enable_progress_bar=False,
    )


class Leave(Callback):
    """Leaves the process group before the interpreter ends: threads of gloo may still hold tensors, and to
    free one in an interpreter that ends aborts the process."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            atexit.register(_leave)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_trainer(config: TrainerConfig, steps: Iterable[int]) -> None:
    """Refuse a Trainer that cannot be here, and steps of optimizers that accumulation does not divide. Starts
    nothing."""
    for count in steps:
        if count % config.accumulate:
            raise UserError(
                f"trainer.accumulate={config.accumulate} does not divide optimizer.steps={count}; "
                "allowed: a divisor of every trained stage's steps"
            )
    _trainer(
        config, config.strategy == "fsdp", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )


def _own_ranks(config: TrainerConfig) -> list[LightningEnvironment]:
    """The environment of ranks that are started here, or none where a launcher has started them. Refuses
    another number than that: they would wait for each other, or each train alone."""
    wanted, torchrun = config.devices * config.nodes, TorchElasticEnvironment.detect()
    started = int(os.environ["WORLD_SIZE"] if torchrun else os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if not torchrun and started == 1 and (config.nodes == 1 or "NODE_RANK" in os.environ):
        return [
            LightningEnvironment()
        ]  # in a job of SLURM too, of which Lightning would take every process for a task
    if started != wanted:
        raise UserError(
            f"trainer.devices x trainer.nodes = {wanted}, and torchrun or srun has started {started}; "
            "allowed: as many of both"
        )
    return []


def _strategy(config: TrainerConfig, sharded: bool) -> Strategy | str:
    ranks, limit = config.devices * config.nodes, timedelta(seconds=config.timeout)
    if config.strategy == "fsdp" and sharded:
        return ModelParallelStrategy(ranks, 1, save_distributed_checkpoint=False, timeout=limit)
    if config.strategy == "auto" and ranks == 1:
        return "auto"
    start: Any = STARTS[config.strategy]
    return DDPStrategy(start_method=start, timeout=limit)


def _trainer(config: TrainerConfig, sharded: bool, **rest: Any) -> pl.Trainer:
    try:
        trainer = pl.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=_strategy(config, sharded),
            precision=config.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=config.gradient_clip,
            max_epochs=1,
            max_steps=-1,
            log_every_n_steps=config.log_every,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            plugins=[PatientIO(), *_own_ranks(config)],
            **rest,
        )
    except (ValueError, TypeError, RuntimeError, ImportError, MisconfigurationException) as error:
        raise UserError(
            f"trainer.accelerator={config.accelerator}, devices={config.devices}, nodes={config.nodes}, "
            f"strategy={config.strategy}, precision={config.precision} cannot run here: "
            f"{' '.join(str(error).split())}"
        ) from error
    answer_signals(trainer)
    return trainer


def fit(
    trainer: pl.Trainer, module: pl.LightningModule, data: StepData, directory: Path
) -> dict[str, Tensor]:
    """Train to the end, from the directory's checkpoint where there is one. Returns the module's state, on
    the first rank whole, though it may be in parts."""
    path = directory / CHECKPOINT
    if path.exists():
        check_readable(path, module)
    try:
        with after_the_step(), _ahead_of(trainer.strategy.root_device):
            trainer.fit(module, data, ckpt_path=path if path.exists() else None, weights_only=True)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"a step of {directory.name} does not fit the accelerator's memory "
            f"({' '.join(str(error).split())[:120]}); smaller: loader.batch_images with a larger "
            "trainer.accumulate, rule.batch, pyramid.size; the same command goes on from the last checkpoint"
        ) from error
    return trainer.strategy.lightning_module_state_dict()


@contextmanager
def _ahead_of(device: torch.device) -> Iterator[None]:
    """Within, nothing slows the CPU down that hands work to a GPU: no thread is woken for what little it
    computes itself, and cuDNN's attention is off, which plans anew for every shape, while numbers of words
    and of visual tokens differ from step to step."""
    if device.type != "cuda":
        yield
        return
    threads, plans = torch.get_num_threads(), torch.backends.cuda.cudnn_sdp_enabled()
    torch.set_num_threads(1)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.enable_cudnn_sdp(plans)


@contextmanager
def rank_failures_as_user_errors(config: TrainerConfig) -> Iterator[None]:
    """Within, a rank that is gone, or refuses what it was given, is one sentence. Raises UserError."""
    gone = (
        f"another rank is gone, or was silent for trainer.timeout={config.timeout} s; the same command "
        "goes on"
    )
    try:
        yield
    except ProcessRaisedException as error:  # with the traceback of a rank that was forked or spawned
        kind, _, said = str(error).strip().splitlines()[-1].partition(": ")
        if kind != "pyrskip.errors.UserError":
            raise
        raise UserError(said) from error
    except ProcessExitedException as error:
        raise UserError(f"{gone} from the last checkpoint ({error})") from error
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise UserError(f"{gone} from the last checkpoint ({' '.join(str(error).split())})") from error


def check_readable(path: Path, module: torch.nn.Module | None = None) -> None:
    """Refuse what is no whole checkpoint of Lightning's, or one of another module than `module`."""
    mend = "delete it to train this stage from its start"
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(f"{path} is no whole checkpoint ({type(error).__name__}); {mend}") from error
    if not isinstance(saved, dict) or not {"state_dict", "pytorch-lightning_version"} <= saved.keys():
        raise UserError(f"{path} is no checkpoint of a training; {mend}")
    if module is not None:
        there = {
            name: tuple(getattr(value, "shape", ())) for name, value in dict(saved["state_dict"]).items()
        }
        wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        wrong = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
        if wrong:
            raise UserError(
                f"{path} is the checkpoint of another model: {wrong[0]} is {there.get(wrong[0], 'missing')} "
                f"there and {wanted.get(wrong[0], 'missing')} here; {mend}"
            )
