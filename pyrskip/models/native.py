"""The native model: vision encoder, projector and language model over the tiles of a pyramid.

Axes: B questions, I images, T tiles, N visual tokens, A answer tokens, C channels, D width; where more than
three are in play, a tensor's name ends in its axes.

Training under any decision and inference under one are the same function of (image, question, decision): a
tile is encoded alone from its own pixels and only where it is asked for; its tokens know where they look;
what is skipped is no key.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from pyrskip.cost import Attention, Convention, Cost, Counted, Unit, answer_flops, kv_bytes, layered_flops
from pyrskip.decision import realise, reference
from pyrskip.errors import UserError
from pyrskip.files import write_json, write_whole
from pyrskip.metrics import score
from pyrskip.models.cross import CrossDecoder
from pyrskip.models.language import Decoder, LanguageConfig, Visual
from pyrskip.models.packing import Packing, pack
from pyrskip.models.projector import Projector
from pyrskip.models.text import TextConfig, build_text
from pyrskip.models.tiers import Features
from pyrskip.models.tiles import encode_flops, encode_more, encode_tiles, moments
from pyrskip.models.vision import VisionConfig, VisionEncoder
from pyrskip.pruners import InsidePruner, Narrowing, Prunable, Pruner
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch

DECODERS: dict[str, type[Decoder]] = {"decoder": Decoder, "cross": CrossDecoder}


@dataclass(frozen=True)
class PyramidConfig:
    """size: canvas side, pixels. levels: L. grid: tiles a side of each level (one number: of all but the
    glance). halo: cells of the encoder's map around a tile that are encoded with it."""

    size: int = 64
    levels: int = 3
    grid: tuple[int, ...] = (1,)
    halo: int = 0

    @property
    def tiles(self) -> int:
        """T, the glance included."""
        return sum(g * g for g in self.whole_grid)

    @property
    def whole_grid(self) -> tuple[int, ...]:
        """Tiles a side of every level, finest first."""
        return (*self.grid * (self.levels - 1), 1) if len(self.grid) == 1 else (*self.grid[:-1], 1)


@dataclass(frozen=True)
class CostConfig:
    """attention: 'full' counts all n^2 pairs, 'causal' half of them. unit: 'flops' (2 a multiply-add) or
    'macs'. count: of the language model 'run', what inference runs, or the formula of 'ptp' or 'fastv'.

    answer_tokens: decoded after the prefill, per answer. bytes_per_value: of the KV cache.
    """

    attention: str = "full"
    unit: str = "flops"
    count: str = "run"
    answer_tokens: int = 1
    bytes_per_value: int = 2

    def __post_init__(self) -> None:
        if self.answer_tokens < 0 or self.bytes_per_value < 1:
            raise UserError(
                f"cost.answer_tokens={self.answer_tokens}, bytes_per_value={self.bytes_per_value}: at least "
                "0 and 1"
            )
        _ = self.convention

    @property
    def convention(self) -> Convention:
        return Convention(cast(Attention, self.attention), cast(Unit, self.unit), cast(Counted, self.count))


@dataclass(frozen=True)
class ModelConfig:
    pyramid: PyramidConfig
    vision: VisionConfig
    text: TextConfig
    language: LanguageConfig
    cost: CostConfig


@dataclass(frozen=True)
class Forced:
    """Teacher-forced first accepted answers. loglik [B] <= 0; greedy [B] bool: greedy decoding writes just
    that answer."""

    loglik: Tensor
    greedy: Tensor


class NativeModel(nn.Module):
    """A white-box model (pyrskip.models.tiers). pruner: what leaves visual tokens out behind the projector or
    between layers, None while it trains; prunable: what pruners may read beside the tokens. Where its encoder
    has no attention, the size of a token's features, before they are projected, stands for salience."""

    sources = frozenset({"question", "glance", "pixels", "first_token"})
    prunable = frozenset({"text", "salience", "attention"})

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        p = config.pyramid
        self.pyramid = Pyramid(p.size, p.levels, self.vision.stride, tuple(p.grid), p.halo)
        self.reference = reference(self.pyramid)
        self.language = DECODERS[config.language.name](config.language, tokenizer)
        self.projector = Projector(self.vision.channels, self.language.width, p.levels)
        self.text = build_text(config.text, self.language)
        self.convention = config.cost.convention
        self.pruner: Pruner | None = None

    def save(self, directory: Path) -> None:
        """Weights, config and tokenizer, as files that run no code. Frozen question encoders are named, not
        copied."""
        state = {
            name: t.contiguous() for name, t in self.state_dict().items() if not name.startswith("text.")
        }
        write_whole(directory / "model.safetensors", safetensors.torch.save(state))
        write_whole(directory / "tokenizer.json", self.language.tokenizer.to_str())
        write_json(directory / "model.json", asdict(self.config))

    @classmethod
    def load(cls, directory: Path, cost: CostConfig | None = None) -> "NativeModel":
        """A saved model, with another way to count costs if one is given. Raises UserError where there is no
        whole one."""
        parts = (PyramidConfig, VisionConfig, TextConfig, LanguageConfig, CostConfig)
        try:
            plain = json.loads((directory / "model.json").read_text())
            plain["pyramid"]["grid"] = tuple(plain["pyramid"]["grid"])
            plain["vision"]["weights"] = "none"
            saved = ModelConfig(
                *(part(**plain[f.name]) for part, f in zip(parts, fields(ModelConfig), strict=True))
            )
            tokenizer = Tokenizer.from_str((directory / "tokenizer.json").read_text())
            state = safetensors.torch.load_file(directory / "model.safetensors")
            model = cls(replace(saved, cost=cost or saved.cost), tokenizer)
            missing, unexpected = model.load_state_dict(state, strict=False)
        except UserError:
            raise
        except Exception as error:  # the tokenizer's own errors are no narrower
            reason = " ".join(str(error).split())
            raise UserError(
                f"{directory} holds no model that can be read ({reason}); run the flex stage"
            ) from error
        if unexpected or any(not name.startswith("text.") for name in missing):
            raise UserError(f"{directory}/model.safetensors is not the model that model.json describes")
        return model.eval()

    @property
    def device(self) -> torch.device:
        return self.language.embed.weight.device

    @property
    def encoded(self) -> int:
        """Tiles that have been encoded."""
        return self.vision.encoded

    @torch.no_grad()
    def look(self, batch: Batch, features: Features, tokens: Tensor) -> Features:
        return encode_more(self.vision, self.pyramid, batch, features, tokens > 0)

    def encode(self, batch: Batch, keep: Tensor) -> Features:
        """Encode the tiles that any question of an image keeps, or read their maps from the cache. keep [B,
        T] bool."""
        return encode_tiles(self.vision, self.pyramid, batch, keep)

    def whiten(self, batches: Iterable[Batch]) -> None:
        """Fit the projector's whitening to the maps of these images."""
        self.projector.fit_whitening(*moments(self.vision, self.pyramid, batches))

    def project(self, batch: Batch, features: Features, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens of a decision, packed: a row's real tokens come first, finest level first, glance last.

        asked [B, T] -> tokens [B, N, D], real [B, N] bool, tile [B, N] int64; no pruner has seen them.
        """
        visual, packing, _ = self._projected(batch, features, asked)
        return visual.tokens.index_select(0, visual.at), visual.real[visual.at], packing.tile[visual.at]

    def visual(self, batch: Batch, features: Features, asked: Tensor) -> tuple[Visual, Tensor]:
        """The tokens that the language model's first layer reads, those of `project` that the pruner leaves,
        once for all questions that see the same; and their tiles [U, N] int64."""
        visual, packing, cells = self._projected(batch, features, asked)
        tile = packing.tile
        if self.pruner is not None:
            salience = self._salience(self.pruner, features, packing, cells)
            visual, tile = self._pruned(self.pruner, batch, visual, tile, salience)
        return replace(visual, words=self.language.words_of(batch.texts)), tile

    def _salience(self, pruner: Pruner, features: Features, packing: Packing, cells: Tensor) -> Tensor:
        """How much of the encoder's attention each token's cells receive on average, [U, N]; where the
        encoder has none, the size of its features, cells [V, C]."""
        found = cells.detach().norm(dim=-1)
        if self.vision.attends and "salience" in pruner.needs and packing.shares:
            if not features.received:
                raise UserError(
                    f"pruner.name={pruner.config.name} reads the encoder's attention, and cached maps hold "
                    "none; allowed: data.cache=null"
                )
            found = packing.cells([of[:, None] for of in features.received])[:, 0]
        return F.pad(found, (1, 0))[packing.source]

    def _pruned(
        self, pruner: Pruner, batch: Batch, visual: Visual, tile: Tensor, salience: Tensor
    ) -> tuple[Visual, Tensor]:
        if not visual.tokens.shape[1]:
            return visual, tile
        ids, mask = self.language.tokenize(batch.texts)
        beside: dict[str, tuple[Tensor, ...]] = {"text": (self.language.embed(ids), mask)}
        inside = isinstance(pruner, InsidePruner)
        if inside or "text" in pruner.needs:  # each question has tokens of its own then
            at = visual.at
            visual, tile, salience = _each(visual), tile[at], salience[at]
        seen = Prunable(visual.tokens, visual.real, tile, beside | {"salience": (salience,)})
        kept, whole = pruner.prune(seen), visual.real.sum(-1)
        count, stays = kept.real.sum(-1), pruner.read(whole, len(self.language.blocks))[0]
        if not count.equal(stays):
            raise UserError(
                f"{type(pruner).__name__}.prune leaves {count.tolist()} tokens; allowed: as many as its "
                "stays says, for so many are paid for"
            )
        tile, narrowing = tile.gather(1, kept.place), None
        if isinstance(pruner, InsidePruner):
            steps = pruner.steps(len(self.language.blocks))
            narrowing = Narrowing(pruner, steps, tile, whole, pruner.begin(seen))
        return Visual(kept.tokens, kept.real, visual.of, narrowing=narrowing), tile

    def _projected(self, batch: Batch, features: Features, asked: Tensor) -> tuple[Visual, Packing, Tensor]:
        """The tokens of `project`, once for all questions that ask the same of an image, and the cells [V, C]
        that they are made of."""
        packing, projector = pack(self.pyramid, batch, asked.cpu(), self.device), self.projector
        if packing.shares:
            cells = packing.cells(features.maps)
            projected = projector(cells, packing.centre, packing.extent, packing.level)
        else:
            cells = features.maps[0].new_zeros(0, self.vision.channels)
            projected = cells.new_zeros(0, self.language.width, dtype=projector.down.weight.dtype)
        tokens = F.embedding(packing.source, F.pad(projected, (0, 0, 1, 0)))
        return Visual(tokens, packing.real, packing.of, packing.whole), packing, cells

    def forced(self, batch: Batch, features: Features, asked: Tensor, gates: Tensor | None = None) -> Forced:
        """Teacher-force each question's first accepted answer. gates [B, T] in [0, 1] weigh each tile's
        tokens."""
        if gates is not None and self.pruner is not None:
            if isinstance(self.pruner, InsidePruner):
                raise UserError(
                    f"pruner.name={self.pruner.config.name} prunes between layers, where tokens "
                    "cannot be weighed by gates; allowed: rule.online=false"
                )
            visual, tile = self._weighed(batch, features, asked, gates)
        else:
            visual, tile = self.visual(batch, features, asked)
        weight = None if gates is None else gates.gather(1, tile[visual.at])
        ids, mask = self.language.tokenize_answers([q.answers[0] for q in batch.questions])
        logits = self.language.logits(visual, weight, self.language.tokenize(batch.texts), ids)
        nll = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view_as(ids)
        greedy = ((logits.argmax(-1) == ids) | ~mask).all(-1)
        return Forced(-(nll * mask).sum(-1), greedy)

    def _weighed(
        self, batch: Batch, features: Features, asked: Tensor, gates: Tensor
    ) -> tuple[Visual, Tensor]:
        """`visual` of what gates keep and of what they skip, each pruned on its own: a token that weighs
        nothing must not take the place of another."""
        parts = [self.visual(batch, features, asked * side) for side in (gates > 0, gates <= 0)]
        tokens = torch.cat([visual.tokens.index_select(0, visual.at) for visual, _ in parts], dim=1)
        real = torch.cat([visual.real[visual.at] for visual, _ in parts], dim=1)
        tile = torch.cat([tile[visual.at] for visual, tile in parts], dim=1)
        return Visual(tokens, real, torch.arange(len(batch)), words=parts[0][0].words), tile

    def loss(self, batch: Batch, features: Features, asked: Tensor, gates: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of the first accepted answer, [B]."""
        return -self.forced(batch, features, asked, gates).loglik

    @torch.no_grad()
    def loglik(self, batch: Batch, asked: Tensor) -> Tensor:
        return self.forced(batch, self.encode(batch, asked > 0), asked).loglik

    @torch.no_grad()
    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        """Greedy answers; only the tiles that are asked for are encoded."""
        return self.write(batch, self.encode(batch, asked > 0), asked)

    @torch.no_grad()
    def write(self, batch: Batch, features: Features, asked: Tensor) -> list[str]:
        """Greedy answers from features that are there already."""
        visual, _ = self.visual(batch, features, asked)
        return self.language.generate(visual, self.language.tokenize(batch.texts))

    @torch.no_grad()
    def score(self, batch: Batch, features: Features, asked: Tensor, forced: Forced | None = None) -> Tensor:
        """The score of each question's greedy answer by its own metric, [B] in [0, 1].

        Where one answer alone is right, one teacher-forced pass (`forced`, if it has been run) tells whether
        greedy decoding would write it; the other questions' answers are written.
        """
        plain = [
            q.metric == "exact" and len(q.answers) == 1 and self._plain(q.answers[0]) for q in batch.questions
        ]
        if all(plain):
            return (forced or self.forced(batch, features, asked)).greedy.float()
        scores = torch.zeros(len(batch), device=self.device)
        if any(plain):
            rows = [i for i, tells in enumerate(plain) if tells]
            greedy = (forced or self.forced(batch, features, asked)).greedy
            scores[rows] = greedy[rows].float()
        rows = [i for i, tells in enumerate(plain) if not tells]
        questions = tuple(batch.questions[i] for i in rows)
        # with every image, for that is what features are of
        size, image_of = batch.on_cpu
        known = size, image_of[rows]
        some = replace(batch, image_of=batch.image_of[rows], questions=questions, known=known)
        answers = self.write(some, features, asked[rows])
        for i, answer, q in zip(rows, answers, questions, strict=True):
            scores[i] = score(answer, q.answers, q.metric, q.text)
        return scores

    def _plain(self, answer: str) -> bool:
        """Whether the answer's tokens are the only ones that `exact` takes for it, and no longer than what is
        written."""
        return answer == answer.strip().lower() and self.language.can_write(answer)

    @torch.no_grad()
    def first_token(self, batch: Batch, features: Features) -> Tensor:
        """Logits [B, V] of the answer's first token after the glance alone, which is encoded."""
        maps = list(features.maps)
        maps[self.pyramid.glance] = maps[self.pyramid.glance].to(self.projector.down.weight.dtype)
        # in the weights' own precision, whatever training's is: a gate decides on small differences
        with torch.autocast(self.device.type, enabled=False):
            seen = replace(features, maps=tuple(maps))
            visual, _ = self.visual(batch, seen, self._glance(batch.size[batch.image_of]))
            logits: Tensor = self.language.prefill(visual, self.language.tokenize(batch.texts))[0]
        return logits

    def first_token_flops(self, texts: Sequence[str], size: Tensor) -> Tensor:
        """FLOPs of `first_token`, in the cost model's unit: projecting the glance and reading it with the
        question. size [B, 2] of each text's image -> [B] float64."""
        words = (self.language.words_of(texts).sum(-1) + 1).to(size.device)
        return self._reading_flops(self.realise(self._glance(size), size).sum(-1), words, 0)

    def _glance(self, size: Tensor) -> Tensor:
        """The decision that keeps the glance alone, whole. size [B, 2] -> [B, T]."""
        return self.pyramid.capacity(size) * (
            torch.arange(self.pyramid.tiles, device=size.device) == self.pyramid.glance
        )

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        """asked [..., T], size [..., 2] image rows and columns -> realised tokens [..., T]."""
        cells = self.pyramid.cells(size.reshape(-1, 2)).view(*size.shape[:-1], self.pyramid.tiles, 2)
        return realise(asked, cells).prod(-1)

    def prompt_tokens(self, batch: Batch) -> Tensor:
        """Question words and the mark that starts the answer, [B], on the CPU."""
        return self.language.words_of(batch.texts).sum(-1) + 1

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        """realised [B, ..., T], size [B, 2], prompt_tokens [B] -> [B, ...] each, on the device of what is
        realised; without a gate and what encodes its query."""
        tokens, c, prompt_tokens = realised.sum(-1), self.config.cost, prompt_tokens.to(realised.device)
        words = prompt_tokens.view(-1, *[1] * (realised.ndim - 2))
        layer, read = replace(self.language.transformer, layers=1), self._read(tokens)
        cached = sum(read[1:], read[0]) + len(read) * (words + c.answer_tokens)
        bytes_read = kv_bytes(layer, cached, c.bytes_per_value)
        encode = self.encode_flops(size).to(realised.device)
        return Cost(tokens, self.flops_of(realised, encode, prompt_tokens), bytes_read)

    def flops_of(self, realised: Tensor, encode: Tensor, prompt_tokens: Tensor) -> Tensor:
        """`cost`'s FLOPs by arithmetic alone, so that they can be traced. encode [B, T]: `encode_flops`."""
        batch = (encode.shape[0], *[1] * (realised.ndim - 2))
        words, encode = prompt_tokens.view(batch), encode.view(*batch, -1)
        reading = self._reading_flops(realised.sum(-1), words, self.config.cost.answer_tokens)
        return reading + self._share(1) * ((realised > 0) * encode).sum(-1)

    def _read(self, tokens: Tensor) -> list[Tensor]:
        """How many of so many visual tokens each layer of the language model reads."""
        layers = len(self.language.blocks)
        return [tokens] * layers if self.pruner is None else self.pruner.read(tokens, layers)

    def _reading_flops(self, tokens: Tensor, words: Tensor, answer_tokens: int) -> Tensor:
        """FLOPs of projecting and pruning visual tokens, reading what stays and the prompt, and writing the
        answer's tokens."""
        language = self.language.transformer
        read, how = self._read(tokens), self.convention
        if isinstance(self.pruner, InsidePruner):
            flops = layered_flops(language, read, words, answer_tokens, convention=how)
        else:
            flops = answer_flops(language, read[0], words, answer_tokens, convention=how)
        flops = flops + self._share(self.projector.flops_per_token()) * tokens
        if self.pruner is not None:
            # the mark that starts the answer is no word of the question
            flops = flops + self.pruner.flops(tokens, words - 1, language) * self._share(1)
        return flops

    def encode_flops(self, size: Tensor) -> Tensor:
        """Measured FLOPs of encoding every tile. size [B, 2] -> [B, T] float64."""
        return encode_flops(self.vision, self.pyramid, size)

    def glance_flops(self, size: Tensor) -> Tensor:
        """None: the gate looks at what is encoded for the answer anyway. size [B, 2] -> [B] float64."""
        return torch.zeros(len(size), dtype=torch.float64, device=size.device)

    def _share(self, flops: int) -> float:
        return flops / 2 if self.convention.unit == "macs" else float(flops)


def _each(visual: Visual) -> Visual:
    """The same, a row for each question."""
    every = torch.arange(len(visual.of))
    return Visual(visual.tokens.index_select(0, visual.at), visual.real[visual.at], every, visual.whole)
