"""Claims about resuming: a run that is stopped anywhere sees the same samples and ends with the same
weights."""

import os
import random
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from pyrskip.data.datamodule import LoaderConfig, StepData
from pyrskip.data.reader import Filled, ShardDataset, collate
from pyrskip.data.sampler import Parts
from pyrskip.data.shards import DataConfig, prepare
from pyrskip.errors import UserError
from pyrskip.sample import Batch

STEPS = 8


class Numbers(Dataset[int]):
    """0 to 10."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> int:
        return index


class Killed(RuntimeError):
    pass


class Recorder(pl.LightningModule):
    """Learns from the numbers it sees, in an order-dependent way, and remembers them. fail_at: batch whose
    step raises."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.seen: list[list[int]] = []
        self._fail_at = fail_at

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self._fail_at:
            raise Killed
        self.seen.append(batch.tolist())
        return (
            self.weight * batch.float().mean().add(1).pow(torch.arange(3))
        ).sum().tanh() + self.weight.pow(2).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([self.weight], 0.1)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}
        ]


class SaveIn(Callback):
    """Saves in one hook at batch `at`, then kills the run."""

    def __init__(self, hook: str, at: int, path: Path) -> None:
        def save(trainer: pl.Trainer, *_: Any) -> None:
            if hook == "on_exception":
                trainer.save_checkpoint(path)
            elif trainer.fit_loop.batch_idx == at and not trainer.sanity_checking:
                trainer.save_checkpoint(path)
                raise Killed

        setattr(self, hook, save)


def data(workers: int = 0, batch: int = 2, seed: int = 5, steps: int = STEPS) -> StepData:
    return StepData(Numbers(), torch.tensor, batch, steps, seed, workers)


def trainer(*callbacks: Callback, **options: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "use_distributed_sampler": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Trainer(**(defaults | options), callbacks=list(callbacks))


def uninterrupted(**options: Any) -> Recorder:
    model = Recorder()
    trainer(**options).fit(model, data())
    assert len(model.seen) == STEPS
    return model


def check_resumed(path: Path, learnt: int, workers: int = 0, **options: Any) -> None:
    """The run that resumes after `learnt` batches ends as the one that was never stopped."""
    model, whole, resumed = Recorder(), uninterrupted(**options), trainer(**options)
    resumed.fit(model, data(workers), ckpt_path=str(path))
    assert model.seen == whole.seen[learnt:]
    assert torch.equal(model.weight, whole.weight)
    assert resumed.global_step == STEPS // options.get("accumulate_grad_batches", 1)
    assert resumed.fit_loop.batch_idx == STEPS - 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("killed", [2, 3, 5, 7])
def test_a_run_that_raises_resumes_from_its_last_checkpoint(
    tmp_path: Path, killed: int, accumulate: int, workers: int
) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    with pytest.raises(Killed):
        trainer(saver, accumulate_grad_batches=accumulate).fit(Recorder(fail_at=killed), data(workers))
    learnt = killed - killed % accumulate
    check_resumed(Path(saver.best_model_path), learnt, workers, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("max_steps", [1, 3])
def test_a_run_that_max_steps_ended_goes_on(tmp_path: Path, max_steps: int, accumulate: int) -> None:
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    trainer(saver, accumulate_grad_batches=accumulate, max_steps=max_steps).fit(Recorder(), data())
    check_resumed(Path(saver.best_model_path), max_steps * accumulate, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", range(STEPS))
def test_a_checkpoint_saved_after_any_batch_is_exact(tmp_path: Path, at: int, accumulate: int) -> None:
    path = tmp_path / "saved.ckpt"
    with pytest.raises(Killed):
        trainer(SaveIn("on_train_batch_end", at, path), accumulate_grad_batches=accumulate).fit(
            Recorder(), data()
        )
    check_resumed(path, at + 1 - (at + 1) % accumulate, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("at", [0, 1, 4, 5])
def test_a_checkpoint_saved_as_a_step_raises_is_exact(tmp_path: Path, at: int, accumulate: int) -> None:
    path = tmp_path / "saved.ckpt"
    with pytest.raises(Killed):
        trainer(SaveIn("on_exception", at, path), accumulate_grad_batches=accumulate).fit(
            Recorder(at), data()
        )
    check_resumed(path, at - at % accumulate, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_end"])
@pytest.mark.parametrize("at", [3, 7])
def test_a_checkpoint_saved_around_validation_is_exact(
    tmp_path: Path, hook: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepData, "val_dataloader", lambda self: DataLoader(Numbers()), raising=False)
    path, options = tmp_path / "saved.ckpt", {"val_check_interval": 4, "accumulate_grad_batches": 2}
    with pytest.raises(Killed):
        trainer(SaveIn(hook, at, path), **options).fit(Recorder(), data())
    check_resumed(path, at + 1, **options)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    model, first = Recorder(), trainer()
    first.fit(model, data())
    first.save_checkpoint(tmp_path / "end.ckpt")
    check_resumed(tmp_path / "end.ckpt", STEPS)


def test_a_run_can_be_resumed_twice(tmp_path: Path) -> None:
    for at, start in ((2, None), (5, str(tmp_path / "2.ckpt"))):
        with pytest.raises(Killed):
            trainer(SaveIn("on_train_batch_end", at, tmp_path / f"{at}.ckpt")).fit(
                Recorder(), data(), ckpt_path=start
            )
    check_resumed(tmp_path / "5.ckpt", 6)


def test_loading_leaves_the_global_random_state_alone() -> None:
    for workers in (0, 2):
        torch.manual_seed(0)
        expected = torch.random.get_rng_state()
        trainer().fit(Recorder(), data(workers, steps=2))
        assert torch.equal(torch.random.get_rng_state(), expected)


def test_lightning_is_told_the_length_of_the_whole_run(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        trainer(SaveIn("on_train_batch_end", 4, tmp_path / "saved.ckpt")).fit(Recorder(), data())
    resumed = trainer()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed.fit(Recorder(), data(), ckpt_path=str(tmp_path / "saved.ckpt"))
    assert resumed.num_training_batches == STEPS
    assert not [w for w in caught if "not resumable" in str(w.message)]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda: data(batch=4), "batch x ranks = 2, this run has 4"),
        (lambda: data(seed=6), "seed = 5, this run has 6"),
        (
            lambda: StepData(Subset(Numbers(), range(5)), torch.tensor, 2, STEPS, 5),
            "images = 11, this run has 5",
        ),
    ],
    ids=["batch", "seed", "images"],
)
def test_another_order_of_samples_is_refused(
    tmp_path: Path, changed: Callable[[], StepData], says: str
) -> None:
    with pytest.raises(Killed):
        trainer(SaveIn("on_train_batch_end", 3, tmp_path / "saved.ckpt")).fit(Recorder(), data())
    with pytest.raises(UserError, match=says):
        trainer().fit(Recorder(), changed(), ckpt_path=str(tmp_path / "saved.ckpt"))


class SeenByRank(Callback):
    """Writes what each rank has seen, and its weights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Recorder)
        torch.save(
            (pl_module.seen, pl_module.weight.detach()), self._folder / f"rank-{trainer.global_rank}.pt"
        )


def test_another_batch_times_ranks_goes_on_at_the_next_sample_if_told_to(tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    with pytest.raises(Killed):
        trainer(SaveIn("on_train_batch_end", 2, path)).fit(Recorder(), data())
    with pytest.raises(UserError, match="batch x ranks = 2, this run has 3; allowed: 2, loader.replan=true"):
        trainer().fit(Recorder(), data(batch=3), ckpt_path=str(path))
    order = [i for batch in uninterrupted().seen for i in batch]

    def resumed(start: Path, batch: int, at: int | None = None) -> list[int]:
        model, replanned = Recorder(), StepData(Numbers(), torch.tensor, batch, STEPS, 5, replan=True)
        saver = [] if at is None else [SaveIn("on_train_batch_end", at, tmp_path / "again.ckpt")]
        with suppress(Killed):
            trainer(*saver).fit(model, replanned, ckpt_path=str(start))
        return [i for batch in model.seen for i in batch]

    assert resumed(path, 3)[:10] == order[6:16]
    # and once more from a checkpoint of the replanned run
    assert resumed(path, 3, at=3) == order[6:9]
    assert resumed(tmp_path / "again.ckpt", 1) == order[9:13]


class Shards(Numbers):
    parts = Parts(((3, 4, 2, 2),))


@pytest.mark.parametrize("killed", [2, 3, 5])
def test_readers_of_own_shards_resume_exactly(tmp_path: Path, killed: int) -> None:
    def own(workers: int = 2) -> StepData:
        return StepData(Shards(), torch.tensor, 2, STEPS, 5, workers, order="shards")

    whole, model = Recorder(), Recorder()
    trainer().fit(whole, own())
    with pytest.raises(Killed):
        trainer(SaveIn("on_train_batch_end", killed, tmp_path / "saved.ckpt")).fit(Recorder(), own())
    trainer().fit(model, own(), ckpt_path=str(tmp_path / "saved.ckpt"))
    assert model.seen == whole.seen[killed + 1 :]
    assert torch.equal(model.weight, whole.weight)
    for other, says in (
        (own(1), "workers = 2, this run has 1; allowed: 2, or a new run"),
        (data(), "order = shards"),
    ):
        with pytest.raises(UserError, match=says):
            trainer().fit(Recorder(), other, ckpt_path=str(tmp_path / "saved.ckpt"))


def test_a_workers_refusal_is_one_sentence() -> None:
    class Bad(Numbers):
        def __getitem__(self, index: int) -> int:
            raise UserError("too much is broken")

    for workers in (0, 1):
        with pytest.raises(UserError) as caught:
            trainer().fit(Recorder(), StepData(Bad(), torch.tensor, 2, STEPS, workers=workers))
        assert str(caught.value) == "too much is broken"


@pytest.mark.slow
def test_two_ranks_with_two_workers_resume_exactly(tmp_path: Path) -> None:
    def run(
        name: str, max_steps: int = -1, start: Path | None = None
    ) -> list[tuple[list[list[int]], Tensor]]:
        (tmp_path / name).mkdir()
        saver = ModelCheckpoint(tmp_path / name, filename="saved", every_n_train_steps=1)
        fit = trainer(saver, SeenByRank(tmp_path / name), strategy="ddp_fork", devices=2, max_steps=max_steps)
        fit.fit(Recorder(), data(workers=2), ckpt_path=None if start is None else str(start))
        return [torch.load(tmp_path / name / f"rank-{rank}.pt") for rank in (0, 1)]

    whole, stopped = run("whole"), run("stopped", max_steps=3)
    resumed = run("resumed", start=tmp_path / "stopped" / "saved.ckpt")
    alone = Recorder()
    trainer().fit(alone, data(batch=4))
    for rank in (0, 1):
        assert stopped[rank][0] + resumed[rank][0] == whole[rank][0]
        assert torch.equal(resumed[rank][1], whole[rank][1])
    assert [a + b for a, b in zip(whole[0][0], whole[1][0], strict=True)] == alone.seen


class OfImages(pl.LightningModule):
    """Learns from the images and keys that it sees, notes the keys, and at step `die` kills its own
    process."""

    def __init__(self, notes: Path, die: int | None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(12, 3)
        self._notes, self._die = notes, die

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx == self._die:
            self.trainer.strategy.barrier()  # both ranks have come so far
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self._notes / f"rank-{self.global_rank}", "a") as file:
            file.write(f"{batch_idx} {' '.join(batch.image_keys)}\n")
        pixels = torch.nn.functional.adaptive_avg_pool2d(batch.image.float() / 255, 2).flatten(1)
        return (self.layer(pixels) - len(batch)).pow(2).mean()

    def on_train_end(self) -> None:
        content = b"".join(p.detach().numpy().tobytes() for p in self.parameters())
        (self._notes / f"hash-{self.global_rank}").write_text(sha256(content).hexdigest())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["samples", "shards"])
def test_a_run_killed_at_ten_random_steps_sees_the_same_samples_and_ends_with_the_same_weights(
    order: str, tmp_path: Path
) -> None:
    """2 ranks x 2 workers on shards, one image of them broken, killed by signal 9; the two orders make it
    twenty steps."""
    steps = 24
    prepare(DataConfig(limit=40, samples_per_shard=5), tmp_path / "shards")
    shard = tmp_path / "shards/train-000001.tar"
    content = bytearray(shard.read_bytes())
    start, length = ShardDataset(tmp_path / "shards", "train", 64)._spans[6, :2].tolist()
    content[start : start + length] = bytes(length)
    shard.write_bytes(content)

    def run(name: str, die: int | None = None) -> None:
        notes = tmp_path / name
        notes.mkdir(exist_ok=True)
        # a killed rank's workers, who live on for a moment, hold its port
        os.environ.pop("MASTER_PORT", None)
        torch.manual_seed(0)
        images = Filled(ShardDataset(tmp_path / "shards", "train", 64))
        shards = StepData(images, partial(collate, side=64), 2, steps, 3, workers=2, order=order)
        saver = ModelCheckpoint(notes, filename="last", every_n_train_steps=1, enable_version_counter=False)
        fit = trainer(saver, strategy="ddp_fork", devices=2)
        last = notes / "last.ckpt"
        fit.fit(
            OfImages(notes, die), shards, ckpt_path=str(last) if last.exists() else None, weights_only=True
        )

    def seen(name: str, rank: int) -> dict[int, list[str]]:
        """Step -> keys. What a step saw twice, before a kill and after, must be the same."""
        found: dict[int, list[str]] = {}
        for line in (tmp_path / name / f"rank-{rank}").read_text().splitlines():
            step, *keys = line.split()
            assert found.setdefault(int(step), keys) == keys
        return found

    run("whole")
    kills = sorted(random.Random(order).sample(range(1, steps), 10))
    for die in kills:
        with pytest.raises(Exception, match=r"(?i)signal|terminated|exit"):
            run("killed", die)
        assert max(seen("killed", 0)) == max(seen("killed", 1)) == die - 1
    run("killed")
    for rank in (0, 1):
        assert seen("killed", rank) == seen("whole", rank)
        assert sorted(seen("whole", rank)) == list(range(steps))
        for name in ("killed", "whole"):
            hashes = {(tmp_path / name / f"hash-{r}").read_text() for r in (0, 1)}
            assert len(hashes) == 1
        assert (tmp_path / "killed" / f"hash-{rank}").read_text() == (
            tmp_path / "whole" / f"hash-{rank}"
        ).read_text()
    # the first epoch of both ranks together, as far as both have come: nothing twice, and the broken image
    # never
    keys = [key for step in range(steps // 3) for rank in (0, 1) for key in seen("whole", rank)[step]]
    assert len(set(keys)) == len(keys)
    assert ShardDataset(tmp_path / "shards", "train", 64).image_keys[6] not in keys


def test_a_run_that_ends_within_an_accumulated_batch_is_refused() -> None:
    with pytest.raises(UserError, match="steps=8.*multiples of accumulate_grad_batches=3"):
        trainer(accumulate_grad_batches=3).fit(Recorder(), data())


@pytest.mark.parametrize(
    ("bad", "says"), [({"batch_images": 0}, "loader.batch_images=0"), ({"workers": -1}, "workers=-1")]
)
def test_a_wrong_loader_config_is_refused(bad: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LoaderConfig(**bad)
