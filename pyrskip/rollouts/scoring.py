"""Score several decisions on each question of a batch, in as few runs of the model
as can be.

Axes: B questions, K decisions a question, T tiles.
"""

from collections.abc import Sequence
from math import nan

import torch
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.metrics import score as score_of
from pyrskip.models.native import NativeModel
from pyrskip.models.tiers import Features, RefusedError
from pyrskip.models.vlm.hf import HfVlm
from pyrskip.models.vlm.served import ServedModel
from pyrskip.sample import Batch


@torch.no_grad()
def score_native(
    model: NativeModel, batch: Batch, features: Features, asked: Tensor
) -> tuple[Tensor, Tensor]:
    """asked [B, K, T], its tiles encoded -> score and probability of the first accepted answer, [B, K]
    each."""
    scores, chances = [], []
    for one in asked.unbind(1):
        forced = model.forced(batch, features, one)
        scores.append(model.score(batch, features, one, forced=forced))
        chances.append(forced.loglik.exp())
    return torch.stack(scores, dim=1), torch.stack(chances, dim=1)


@torch.no_grad()
def score_served(
    model: ServedModel | HfVlm, batch: Batch, asked: Tensor
) -> tuple[Tensor, Tensor | None, dict[str, str]]:
    """asked [B, K, T] -> score and probability of the first accepted answer, [B, K] each, None where the
    model does not tell; and the keys of images with a question that the model refuses, each with the reason.
    A refused question's score is NaN, and so is a probability that is not told.

    Decisions that realise the same tokens for a question are answered once. An image's questions and
    decisions are asked one behind the other, so that the model encodes each of its tiles once.
    """
    image_size, image_of = batch.on_cpu
    size = image_size[image_of]
    realised = model.realise(asked, size[:, None].expand(-1, asked.shape[1], -1))
    question = torch.arange(len(batch), device=asked.device)[:, None, None].expand(-1, asked.shape[1], 1)
    distinct, of = torch.unique(
        torch.cat([question, realised], dim=-1).flatten(0, 1), dim=0, return_inverse=True
    )
    first = torch.full((len(distinct),), len(of), device=of.device)
    first = first.scatter_reduce(0, of, torch.arange(len(of), device=of.device), "amin")
    decisions = asked.flatten(0, 1)[first]
    scores: list[float] = []
    logliks: list[Tensor] = []
    refused: dict[str, str] = {}
    for part in torch.arange(len(distinct)).split(model.at_once):
        some = batch.rows(distinct[part, 0].tolist())
        answers: Sequence[str | UserError]
        try:
            answers = model.answer(some, decisions[part])
        except RefusedError as error:
            answers = error.answers
        for a, q, image in zip(answers, some.questions, some.image_of.tolist(), strict=True):
            if isinstance(a, UserError):
                refused[some.image_keys[image]] = str(a)
            scores.append(nan if isinstance(a, UserError) else score_of(a, q.answers, q.metric, q.text))
        loglik = model.loglik(some, decisions[part])
        if loglik is not None:
            logliks.append(loglik)
            for image in some.image_of[loglik.isnan()].tolist():
                refused.setdefault(some.image_keys[image], "the server gave no probability of an answer")
    score = torch.tensor(scores, device=asked.device)[of].view(asked.shape[:2])
    chance = torch.cat(logliks).exp()[of].view(asked.shape[:2]) if logliks else None
    return score, chance, refused
