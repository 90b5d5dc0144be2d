"""A third-party vision-language model of the transformers library, as a black box.

Axes: B questions, I images, T tiles, N prompt tokens, A answer tokens.

Works for the families of pyrskip.models.vlm.families; any other is refused. Needs the extra 'hf'.

How it carries out a decision:

- A kept tile is one picture for the model's own processor, with the pixels of its mipmap level, under the
  settings of its family's row: the family's own tiling off, and no least size. How many tokens that gives is
  counted in what the processor writes; that is what `realise` says and what `cost` charges.
- The model's chat template is rendered with the pictures of all kept tiles, coarse to fine and row by row
  within a level, and then the question: the glance comes first, and a causal model reads a detail after what
  it is a detail of.
- The prompt goes to the model's own `generate` and `forward`. A tile is encoded once for all decisions and
  questions of an image where the model takes what its tower made of it, else once in each prompt.
- A skipped tile reaches neither the processor nor the model.
- Behind a pruner, visual tokens leave the prompt before the language model reads it, or between its layers.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from pyrskip.cost import Cost, Transformer, measured_flops
from pyrskip.decision import one_picture
from pyrskip.errors import UserError, unknown_name
from pyrskip.files import folder_digest
from pyrskip.identity import HOW
from pyrskip.models.native import CostConfig, NativeModel
from pyrskip.models.tiles import crops
from pyrskip.models.vlm.layout import check_pyramid, check_room
from pyrskip.models.vlm.measured import (
    LENGTHS,
    LanguageCost,
    LayerCost,
    cached_values,
    measure_language,
    measure_layers,
    prompt_flops,
)
from pyrskip.models.vlm.passes import Passes, Row
from pyrskip.models.vlm.prompts import Look, Prompts, length, parts
from pyrskip.models.vlm.pruned import check_pruned, layers_of
from pyrskip.models.vlm.towers import encode, encodes_once
from pyrskip.pruners import InsidePruner, Pruner, PrunerConfig
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class HfConfig:
    """path: a folder or a hub id. max_answer: tokens of an answer, its end included. instruction: a line
    after every question, such as 'Answer in one word.'. dtype: of the weights, 'auto' as they are stored.
    at_once: questions in a pass.

    prunable: what pruners may read beside visual tokens, of which a family may have less; probability: of
    given answers is told.
    """

    prunable: ClassVar[frozenset[str] | None] = NativeModel.prunable
    probability: ClassVar[bool] = True
    path: str = ""
    max_answer: int = 16
    instruction: str = ""
    dtype: str = "auto"
    at_once: int = field(default=16, metadata=HOW)

    def __post_init__(self) -> None:
        if self.max_answer < 2 or self.at_once < 1:
            raise UserError(
                f"model.hf.max_answer={self.max_answer}, at_once={self.at_once}: allowed: at least 2 and 1"
            )
        if self.dtype not in DTYPES:
            raise unknown_name("model.hf.dtype", self.dtype, DTYPES)

    def check(self) -> None:
        """Raises UserError unless a model is named."""
        if not self.path:
            raise UserError(
                "model.hf.path is missing; allowed: a folder in the Hugging Face format, or a hub id"
            )

    def identity(self) -> str:
        """What tells its model from another: the weights' digest where they are files, else its name."""
        kinds, folder = (".safetensors", ".json", ".jinja"), Path(self.path)
        weights = folder_digest(folder, kinds) if folder.is_dir() else self.path
        return f"hf {weights} {self.dtype}, {self.instruction!r}"


class HfVlm(nn.Module):
    """A black-box model (pyrskip.models.tiers). `encoded` counts the tiles that have gone through the vision
    tower.

    Always in evaluation mode, and without gradients. prompts: of the model, with another use of its processor
    than that of tiles. Raises UserError for another family, for a processor that does not fit the model, for
    a pyramid whose tiles the language model has no positions for, and for a published formula as its cost.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        pyramid: Pyramid,
        config: HfConfig | None = None,
        cost: CostConfig | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        super().__init__()
        self.model, self.processor, self.pyramid = model, processor, pyramid
        self.config, self.counting = config or HfConfig(), cost or CostConfig()
        self.convention = self.counting.convention
        if self.convention.count != "run":
            raise UserError(
                f"cost.count={self.convention.count} is a formula of one kind of decoder, and what model=hf "
                "costs is measured; allowed: run"
            )
        self.prompts = prompts or Prompts(model.config, processor, self.config.instruction)
        check_room(self.prompts, pyramid, self.config.max_answer)
        self.family = self.prompts.family
        self.at_once = self.config.at_once
        self.reference = one_picture(pyramid)
        self.order = sorted(range(pyramid.tiles), key=lambda tile: (-int(pyramid.tile_level[tile]), tile))
        side = pyramid.side(pyramid.levels - 1)
        self.passes = Passes(model, self.prompts, self.at_once, self.config.max_answer, side)
        self._flops: dict[tuple[Any, ...], float] = {}
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_pretrained(cls, config: HfConfig, pyramid: Pyramid, cost: CostConfig | None = None) -> "HfVlm":
        """Load from the config's folder or hub id: safetensors alone, and no code of the repository is run.

        Raises UserError where nothing of the kind can be loaded.
        """
        own, processor = parts(config.path)
        # what does not fit is refused before weights are fetched
        check_room(Prompts(own, processor, config.instruction), pyramid, config.max_answer)
        from transformers import AutoModelForImageTextToText

        try:
            model = AutoModelForImageTextToText.from_pretrained(
                config.path, trust_remote_code=False, use_safetensors=True, dtype=config.dtype
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"{config.path!r} holds no model in safetensors that can be loaded: {error}"
            ) from error
        return cls(model, processor, pyramid, config, cost)

    @cached_property
    def as_run(self) -> "HfVlm":
        """The model as its users run it: a box whose only tile is the whole image, which goes through the
        processor with its own settings."""
        own, whole = self.prompts.own(), _whole(self.pyramid)
        return HfVlm(self.model, self.processor, whole, self.config, self.counting, own)

    def train(self, mode: bool = True) -> "HfVlm":
        return super().train(False)

    @property
    def pruner(self) -> Pruner | None:
        """What leaves visual tokens out; of the model `as_run` nothing does. Set, raises UserError where it
        reads or does what the model does not show or allow."""
        return self.passes.pruner

    @pruner.setter
    def pruner(self, pruner: Pruner | None) -> None:
        if pruner is not None:
            check_pruned(pruner.config, self.model.config, self.family.cross)
        if isinstance(pruner, InsidePruner):
            _ = self.layers
        self.passes.prune_by(pruner)

    @property
    def device(self) -> torch.device:
        return self.passes.device

    @property
    def encoded(self) -> int:
        return self.passes.encoded

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        """asked [..., T], size [..., 2] image rows and columns -> realised tokens [..., T].

        What the processor writes for every tile that is asked for and not padding, whatever the number asked.
        """
        return self._of_looks(asked > 0, size, lambda look, *_: look.tokens).long()

    def prompt_tokens(self, batch: Batch) -> Tensor:
        """Tokens of the chat template and the question, [B], without a picture and what stands around it."""
        return torch.tensor([self.prompts.words(text) for text in batch.texts], device=batch.size.device)

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        """realised [B, ..., T], size [B, 2], prompt_tokens [B] -> visual tokens, FLOPs and KV bytes, [B, ...]
        each; without a gate's.

        Every kept tile costs a run of the tower and the projector, measured, and its tokens and what stands
        around them a place in the prompt.
        """
        inner = [1] * (realised.ndim - 2)
        kept, sizes = realised > 0, size.view(len(size), *inner, 2).expand(*realised.shape[:-1], 2)
        tokens, pictures = realised.sum(-1), kept.sum(-1)
        places = self._of_looks(kept, sizes, lambda look, *_: self.prompts.place(look)).long().sum(-1)
        context = prompt_tokens.to(realised.device).view(-1, *inner) + places
        answer = self.counting.answer_tokens
        flops = self._of_looks(kept, sizes, self._picture_flops).sum(-1)
        if self.pruner is None:
            flops = flops + self.language.flops(context, pictures, answer, self.convention)
            cache = self.language.cache(context + answer, pictures)
        else:
            words = self.prompts.asked(prompt_tokens).to(context.device).view(-1, *inner)
            more, cache = self._pruned(self.pruner, tokens, words, context - tokens, pictures)
            flops = flops + more
        return Cost(tokens, flops, cache * self.counting.bytes_per_value)

    def _pruned(
        self, pruner: Pruner, tokens: Tensor, words: Tensor, beside: Tensor, pictures: Tensor
    ) -> tuple[Tensor, Tensor]:
        """FLOPs of pruning so many visual tokens, reading what stays of them and so many tokens beside, and
        answering; and values of the cache. [...] each."""
        depth, how, answer = (
            len(layers_of(self.model.get_decoder())),
            self.convention,
            self.counting.answer_tokens,
        )
        width = self.model.config.get_text_config(decoder=True).hidden_size
        spec = Transformer(depth, width, 1, 1, 1, gated=False)
        first, *later = pruner.read(tokens, depth)
        own = pruner.flops(tokens, words, spec)
        flops = self.language.flops(first + beside, pictures, answer, how)
        cache = self.language.cache(first + beside + answer, pictures)
        if isinstance(pruner, InsidePruner):
            of_queries = self.layers[0].queries
            own = own - pruner.attended(tokens, words, words + 1, depth, width)
            own = own + pruner.attended(tokens, words, beside, depth, of_queries)
            for layer, read in zip(self.layers[1:], later, strict=True):
                flops = (
                    flops - layer.flops(first + beside, answer, how) + layer.flops(read + beside, answer, how)
                )
                cache = cache - layer.values_token * (first - read)
        return flops + own * how.per_mac / 2, cache

    @cached_property
    def layers(self) -> list[LayerCost]:
        """What each layer of the language model costs, measured."""
        return measure_layers(self.model, layers_of(self.model.get_decoder()), self._token)

    @property
    def _token(self) -> int:
        """Of ordinary text."""
        (token,) = self.prompts.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        return int(token)

    @cached_property
    def language(self) -> LanguageCost:
        """What the language model costs, measured."""
        own = measure_language(self.model, self._token)
        if not self.family.cross:
            return own
        # two prompts around one picture, and around two, say what a token that reads them costs
        slopes = []
        for pictures in (1, 2):
            near, far = (self._blank_prompt(pictures, words) for words in ("a", "a " * LENGTHS[-1]))
            beside = [prompt_flops(self.model, i) - _plain(own, length(i)) for i in (near, far)]
            slopes.append((beside[1] - beside[0]) / (length(far) - length(near)))
        near = self._blank_prompt(1, "a")
        values = cached_values(self.model, near) - own.values - own.values_token * length(near)
        each = slopes[1] - slopes[0]
        return replace(own, cross_layers=slopes[0] - each, cross_picture=each, cross_values=values)

    def _blank_prompt(self, pictures: int, words: str) -> dict[str, Any]:
        blank = Image.new("RGB", (self.pyramid.size,) * 2)
        return self.passes.on_device(self.prompts.inputs([([blank] * pictures, words)]))

    def picture_flops(self, size: tuple[int, int], lone: bool = True) -> float:
        """FLOPs of encoding a picture; lone: as of `Prompts.look`."""
        return self._picture_flops(self.prompts.look(size, lone), size, lone)

    def _picture_flops(self, look: Look, size: tuple[int, int], lone: bool) -> float:
        """Measured FLOPs of the tower and the projector on a picture, once for all pictures alike."""
        salience = self.passes.salience
        key = look.shapes, salience is None
        if key not in self._flops:
            inputs, copies = self.prompts.blank(size, lone)
            inputs = self.passes.on_device(inputs)
            if salience is not None:
                shown = self.prompts.shown(size)
                salience.prepare(shown, inputs)
                flops = float(measured_flops(salience.encode, shown, inputs))
            elif encodes_once(self.model):
                flops = float(measured_flops(lambda: encode(self.model, inputs)))
            else:
                tokens = length(inputs)
                flops = prompt_flops(self.model, inputs) - _plain(self.language, tokens)
                flops -= (self.language.cross_layers + copies * self.language.cross_picture) * tokens
            self._flops[key] = flops / copies
        return self._flops[key] * self.convention.per_mac / 2

    def _of_looks(
        self, kept: Tensor, size: Tensor, value: Callable[[Look, tuple[int, int], bool], float]
    ) -> Tensor:
        """value(look, rows and columns, lone) of every kept tile. kept [..., T] bool, size [..., 2] -> [...,
        T] float64, 0 where none is kept or the tile is padding."""
        device, kept = kept.device, kept.cpu()
        pixels = self.pyramid.pixels(size.cpu().reshape(-1, 2)).view(*kept.shape, 2)
        kept = kept & (pixels[..., 0] > 0)
        lone = (kept.sum(-1, keepdim=True) == 1).expand(kept.shape)
        keys = torch.cat([pixels, lone[..., None]], dim=-1)[kept]
        unique, of = torch.unique(keys, dim=0, return_inverse=True)
        values = [
            value(self.prompts.look((rows, columns), bool(alone)), (rows, columns), bool(alone))
            for rows, columns, alone in unique.tolist()
        ]
        out = torch.zeros(kept.shape, dtype=torch.float64)
        out[kept] = torch.tensor(values, dtype=torch.float64)[of]
        return out.to(device)

    @torch.no_grad()
    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        """Greedy answers; only tiles that are asked for are encoded, each once however many questions ask for
        it where the model allows that (`passes.once`)."""
        rows = self._rows(batch, asked)
        answers = [""] * len(rows)
        for part, inputs in self.passes.of(rows):
            for row, text in zip(part, self.passes.write(inputs), strict=True):
                answers[row] = text
        return answers

    @torch.no_grad()
    def loglik(self, batch: Batch, asked: Tensor) -> Tensor:
        """Log-likelihood of each question's first accepted answer and its end, [B] <= 0; teacher-forced."""
        rows = self._rows(batch, asked)
        loglik = torch.zeros(len(rows), device=asked.device)
        for part, inputs in self.passes.of(rows):
            answers = [batch.questions[row].answers[0] for row in part]
            loglik[part] = self.passes.score(inputs, answers).to(loglik)
        return loglik

    def _rows(self, batch: Batch, asked: Tensor) -> list[Row]:
        """The questions with the pictures of their kept tiles, in the order in which the model reads them."""
        size, image_of = batch.on_cpu
        keep = self.realise(asked.cpu(), size[image_of]) > 0
        wanted = batch.of_images(keep)
        pictures = {
            (image, tile): self.prompts.picture(crop)
            for image, tile, crop in crops(self.pyramid, batch, wanted)
        }
        digests = [
            hashlib.sha256(image[:, :rows, :columns].cpu().numpy().tobytes() + repr((rows, columns)).encode())
            for image, (rows, columns) in zip(batch.image, size.tolist(), strict=True)
        ]
        rows = []
        for row, (image, text) in enumerate(zip(image_of.tolist(), batch.texts, strict=True)):
            tiles = tuple(tile for tile in self.order if keep[row, tile])
            shown = tuple(pictures[image, tile] for tile in tiles)
            rows.append(Row(digests[image].digest(), tiles, shown, text))
        return rows


def check_layout(config: HfConfig, pyramid: Pyramid, pruners: Sequence[PrunerConfig] = ()) -> None:
    """Refuse a pyramid and pruners that make no sense for a model, from its config and processor alone.

    Raises UserError where a level costs no less than a finer one, where tiles or the model as its users run
    it do not fit the language model, and where its family does not allow what a pruner does.
    """
    prompts = Prompts.from_pretrained(config.path, config.instruction)
    for pruner in pruners:
        check_pruned(pruner, prompts.config, prompts.family.cross)
    check_pyramid(prompts, pyramid, config.max_answer)
    check_room(prompts.own(), _whole(pyramid), config.max_answer)


def _whole(pyramid: Pyramid) -> Pyramid:
    """The same images as one tile."""
    return Pyramid(pyramid.size, 1, pyramid.stride)


def _plain(cost: LanguageCost, tokens: int) -> float:
    """FLOPs of a prompt without a picture that cross-attention reads."""
    return cost.fixed + cost.token * tokens + cost.pair * tokens**2
