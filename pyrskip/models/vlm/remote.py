"""A vision-language model behind an OpenAI-style server (vLLM, SGLang, llama.cpp, a hosted one), as a black
box.

Axes: B questions, I images, T tiles.

A request holds one question: the kept tiles as PNG pictures, coarse to fine and row by row within a level,
then the text. A skipped tile is neither drawn nor sent. What a picture costs is what the model's processor
writes for one of its size, or what the server counts (pyrskip.models.vlm.counts), separators included; FLOPs
are those of the language model's sizes on that many tokens. Needs the extra 'remote'.
"""

import base64
import io
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from pyrskip.cost import Cost, decode_flops, kv_bytes, prefill_flops
from pyrskip.decision import one_picture
from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.models.tiers import RefusedError
from pyrskip.models.tiles import crops
from pyrskip.models.vlm.client import Client, Reply, Request
from pyrskip.models.vlm.counts import PROBE, Counts, counts_of
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.models.vlm.tokens import ProcessorTokens, Size
from pyrskip.pruners import Pruner
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch


class RemoteModel:
    """A black-box model (pyrskip.models.tiers). `encoded` counts the tiles that have been drawn for requests.

    counted: prompt tokens that the server has counted so far; taken: what costs take them for; unlike: how
    many of `compared` replies say another number than that. pruner: none prunes behind a server; as_run: the
    model as its users run it is `reference`, a selection.
    """

    pruner: Pruner | None = None
    as_run: None = None

    def __init__(self, config: RemoteConfig, pyramid: Pyramid, cost: CostConfig | None = None) -> None:
        config.check()
        self.config, self.pyramid, self.counting = config, pyramid, cost or CostConfig()
        self.transformer = config.transformer
        self.convention, self.reference, self.at_once = (
            self.counting.convention,
            one_picture(pyramid),
            8 * config.parallel,
        )
        self.order = sorted(range(pyramid.tiles), key=lambda tile: (-int(pyramid.tile_level[tile]), tile))
        self.client = Client(
            config.url, config.key, config.parallel, config.timeout, config.retries,
            config.body((), PROBE, most=1),
        )  # fmt: skip
        self.heard: dict[str, int] = {}
        self.lengths: dict[str, int] = {}
        self.encoded = self.counted = self.taken = self.unlike = self.compared = 0

    @cached_property
    def counts(self) -> Counts:
        """Of tokens, by the processor or the server. The first use asks the server whether they are right.

        Raises UserError where they are not, where nothing counts, and where there is no server.
        """
        processor = ProcessorTokens.of(self.config.processor) if self.config.processor else None
        pixels = self.pyramid.pixels(torch.tensor([[self.pyramid.size] * 2]))[0]
        coarse, fine = ((int(pixels[t, 0]), int(pixels[t, 1])) for t in (self.pyramid.glance, 0))
        counts = counts_of(self.client, self._blank, processor, (coarse, fine), self.heard)
        if self.config.probability:
            _ = self.ending  # asks whether the server has them
        return counts

    @cached_property
    def ending(self) -> int:
        """Tokens that the chat template writes behind an answer. Raises UserError where the server gives no
        log-probabilities of a prompt."""
        lengths = []
        for ended in (False, True):
            body = self._scored((), PROBE, "yes", ended)
            (reply,) = self.client.ask([Request(body, scored=1)])
            if isinstance(reply, UserError) or reply.tokens is None:
                raise UserError(
                    f"model.remote.probability=true needs prompt_logprobs, which this server does not give: "
                    f"{reply}; allowed: false"
                )
            lengths.append(reply.tokens)
        return lengths[1] - lengths[0]

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        """asked [..., T], size [..., 2] image rows and columns -> realised tokens [..., T]: a tile's own
        number, whatever the number asked."""
        pixels = self.pyramid.pixels(size.reshape(-1, 2)).view(*size.shape[:-1], self.pyramid.tiles, 2)
        kept = (asked > 0) & (pixels[..., 0] > 0)
        tokens = torch.zeros_like(asked)
        if bool(kept.any()):
            sizes, of = torch.unique(pixels[kept].cpu(), dim=0, return_inverse=True)
            counts = self.counts.pictures([(int(rows), int(columns)) for rows, columns in sizes])
            # a size that cannot be counted is one that the server refuses: its request says why
            tokens[kept] = torch.tensor([max(count, 1) for count in counts])[of].to(tokens)
        return tokens

    def prompt_tokens(self, batch: Batch) -> Tensor:
        """Of the template, the question and the instruction, [B]."""
        counts = self.counts.texts([self.config.words(text) for text in batch.texts])
        return torch.tensor(counts, device=batch.size.device)

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        """realised [B, ..., T], size [B, 2], prompt_tokens [B] -> tokens, FLOPs, KV bytes, [B, ...] each;
        without a gate's."""
        tokens = realised.sum(-1)
        context = tokens + prompt_tokens.view(-1, *[1] * (realised.ndim - 2))
        spec, c = self.transformer, self.counting
        assert self.config.encoder_flops is not None
        flops = (
            prefill_flops(spec, context, convention=self.convention)
            + decode_flops(spec, context, c.answer_tokens, convention=self.convention)
            + self.config.encoder_flops * self.convention.per_mac / 2 * tokens
        )
        return Cost(tokens, flops, kv_bytes(spec, context + c.answer_tokens, c.bytes_per_value))

    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        """Greedy answers, one request a question, `parallel` at a time. Raises RefusedError, with the other
        answers, where the server refuses some questions."""
        realised = self._kept(batch, asked)
        self.encoded += int(batch.of_images(realised > 0).sum())
        requests = [
            Request(
                self.config.body(pictures, self.config.words(text)),
                tuple((realised[row] > 0).nonzero()[:, 0].tolist()),
            )
            for row, (pictures, text) in enumerate(
                zip(self._drawn(batch, realised), batch.texts, strict=True)
            )
        ]
        replies = self.client.ask(requests)
        self._compare(batch, realised, replies)
        texts = [reply if isinstance(reply, UserError) else reply.text or "" for reply in replies]
        answers = [text for text in texts if isinstance(text, str)]
        if len(answers) < len(texts):
            raise RefusedError(texts)
        return answers

    def loglik(self, batch: Batch, asked: Tensor) -> Tensor | None:
        """Of each question's first accepted answer and the token that ends it, [B] <= 0; NaN where the server
        does not tell; None unless config.probability."""
        if not self.config.probability:
            return None
        realised = self._kept(batch, asked)
        shown, ending = self._drawn(batch, realised), self.ending
        answers = [question.answers[0] for question in batch.questions]
        behind = self._behind(answers)
        requests = [
            Request(self._scored(pictures, self.config.words(text), answer), scored=behind[answer])
            for pictures, text, answer in zip(shown, batch.texts, answers, strict=True)
        ]
        loglik = torch.full((len(batch),), torch.nan)
        for row, reply in enumerate(self.client.ask(requests)):
            if isinstance(reply, Reply) and reply.logprobs:
                # what a template writes behind the token that ends an answer is no part of it
                loglik[row] = sum(reply.logprobs[: len(reply.logprobs) - max(ending - 1, 0)])
        return loglik.to(asked.device)

    def _behind(self, answers: Sequence[str]) -> dict[str, int]:
        """Tokens of a prompt from each answer's first on."""
        new = sorted(set(answers) - self.lengths.keys())
        replies = self.client.ask([Request(self._scored((), PROBE, answer), scored=1) for answer in new])
        (words,) = self.counts.texts([PROBE])
        for answer, reply in zip(new, replies, strict=True):
            if isinstance(reply, UserError) or reply.tokens is None:
                raise UserError(f"the server does not count an answer's tokens: {reply}")
            self.lengths[answer] = reply.tokens - words
        return self.lengths

    def _kept(self, batch: Batch, asked: Tensor) -> Tensor:
        """Realised tokens [B, T], on the CPU."""
        size, image_of = batch.on_cpu
        return self.realise(asked.cpu(), size[image_of])

    def _drawn(self, batch: Batch, realised: Tensor) -> list[list[str]]:
        """The pictures of each question's kept tiles, realised [B, T], as data URLs."""
        wanted = batch.of_images(realised > 0)
        pictures = {(image, tile): _png(crop) for image, tile, crop in crops(self.pyramid, batch, wanted)}
        return [
            [pictures[image, tile] for tile in self.order if realised[row, tile] > 0]
            for row, image in enumerate(batch.image_of.tolist())
        ]

    def _blank(self, sizes: Sequence[Size], words: str) -> Request:
        """Grey pictures, to be counted. Without a picture it is the request of that question's own answer."""
        if not sizes and words != PROBE:
            return Request(self.config.body((), words), kept=())
        grey = [_png(torch.full((3, rows, columns), 128.0)) for rows, columns in sizes]
        return Request(self.config.body(grey, words, most=1))

    def _scored(self, pictures: Sequence[str], words: str, answer: str, ended: bool = True) -> dict[str, Any]:
        """A prompt that ends in a given answer; ended: and in what the template writes behind it."""
        body = self.config.body(pictures, words, most=1)
        return body | {
            "messages": [*body["messages"], {"role": "assistant", "content": answer}],
            "add_generation_prompt": False,
            "continue_final_message": not ended,
            "prompt_logprobs": 0,
        }

    def _compare(self, batch: Batch, realised: Tensor, replies: Sequence[Reply | UserError]) -> None:
        """The server's count of each prompt with what the cost takes it for, where its text's is known."""
        counted: dict[int, int] = {}
        for row, (reply, visual) in enumerate(zip(replies, realised.sum(-1).tolist(), strict=True)):
            if isinstance(reply, Reply) and reply.tokens is not None:
                counted[row] = reply.tokens - visual
                if not visual:
                    self.heard[self.config.words(batch.texts[row])] = reply.tokens
        for row, tokens in counted.items():
            words = self.config.words(batch.texts[row])
            if self.config.processor or words in self.heard:
                (taken,) = self.counts.texts([words])
                visual = int(realised[row].sum())
                self.counted, self.taken = self.counted + tokens + visual, self.taken + taken + visual
                self.compared, self.unlike = self.compared + 1, self.unlike + (tokens != taken)


def _png(crop: Tensor) -> str:
    """[3, h, w] 0..255 -> a data URL."""
    file = io.BytesIO()
    Image.fromarray(crop.round().byte().permute(1, 2, 0).numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
