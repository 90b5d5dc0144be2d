"""Stage flex: the native model, trained so that any decision works."""

from functools import partial

import torch
from tokenizers import Tokenizer

from pyrskip.data.datamodule import StepData
from pyrskip.data.reader import Filled, Joined, Samples, ShardDataset, collate
from pyrskip.data.sampler import check_shards
from pyrskip.data.shards import read_index
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.models.language import train_tokenizer
from pyrskip.models.native import NativeModel
from pyrskip.models.vision import VisionEncoder
from pyrskip.stages.cache import CACHE, encoder_of, inputs_of, statistics
from pyrskip.stages.data import DATA, report_faults
from pyrskip.stages.run import Run, Stage
from pyrskip.tracking.guard import first_rank
from pyrskip.tracking.loggers import loggers
from pyrskip.training.flex import FlexModule
from pyrskip.training.trainer import build_trainer, fit
from pyrskip.words import LongOptionsError, encoded, read


def train_flex(run: Run) -> None:
    config, directory, of = run.config, run.root / FLEX.name, run.config.loader
    vision = encoder_of(run)
    train = inputs_of(run, "train", vision)
    data = _with_closeups(run, train, vision) if config.flex.close_steps else train
    if of.order == "shards":
        ranks = config.trainer.devices * config.trainer.nodes
        check_shards(train.parts, ranks, of.workers, str(run.directory(DATA)))
    tokenizer = train_tokenizer(texts_of(data), config.language.vocabulary)
    check_questions(run, tokenizer)
    torch.manual_seed(config.flex.seed)
    model = NativeModel(config.native, tokenizer)
    model.vision.load_state_dict(vision.state_dict())
    module = FlexModule(config.flex, model, ActionSet.by_level(model.pyramid))
    model.whiten(statistics(train, of.rollout_images, config.pyramid.size))
    batches = StepData(
        Filled(data),
        partial(collate, side=config.pyramid.size),
        of.batch_images,
        module.optimizer_config.steps,
        module.seed,
        of.workers,
        of.order,
        of.replan,
        config.flex.close_steps,
    )
    with loggers(run.nodes, directory, run.job(FLEX.name)) as built:
        trainer = build_trainer(config.trainer, directory, built, FLEX.name, sharded=True)
        state = fit(trainer, module, batches, directory)
    report_faults(run, "train")
    if first_rank():
        whole = NativeModel(config.native, tokenizer)
        whole.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        whole.save(directory)


def _with_closeups(run: Run, data: Samples, vision: VisionEncoder) -> Joined:
    close, share = inputs_of(run, "close", vision), run.config.flex.close_share
    if not len(close):
        raise UserError(
            f"flex.close_share={share}: {run.directory(DATA)} holds no close-ups; allowed: 0, or "
            "data.scenes.closeups of at least 1"
        )
    if run.config.loader.order == "shards":
        raise UserError(
            f"flex.close_share={share} needs loader.order=samples; allowed: that, or flex.close_share=0"
        )
    return Joined(close, data)


def texts_of(data: Samples) -> list[str]:
    return [text for questions in data.questions() for q in questions or () for text in (q.text, *q.answers)]


def check_questions(run: Run, tokenizer: Tokenizer) -> None:
    """Say how many questions are cut. Raises UserError where options would have to be."""
    most, directory, size = run.config.language.max_words, run.directory(DATA), run.config.pyramid.size
    asked = cut = refused = needed = 0
    for split, shards in read_index(directory).splits.items():
        for questions in ShardDataset(directory, split, size).questions() if shards else ():
            texts = [q.text for q in questions or ()]
            asked += len(texts)
            # a token is a byte or more
            longer = [text for text in texts if len(text.encode()) >= most]
            for text, tokens in zip(longer, encoded(longer, tokenizer), strict=True):
                cut += len(tokens) > most
                try:
                    read(text, tokens, most)
                except LongOptionsError as error:
                    refused, needed = refused + 1, max(needed, error.tokens)
    if refused:
        raise UserError(
            f"language.max_words={most}: {refused} of {asked} questions have options of more tokens; "
            f"allowed: {needed} or more"
        )
    if cut:
        run.say(
            f"{cut} of {asked} questions have more than language.max_words={most} tokens and are cut at "
            "their beginning, options never"
        )


FLEX = Stage(
    "flex",
    train_flex,
    after=CACHE,
    keys=("pyramid", "vision", "text", "language", "flex", "loader", "trainer"),
    applies=lambda config: not config.model.served,
    once=True,
    replans=True,
    reads=("train",),
)
