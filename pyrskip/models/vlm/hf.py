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
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pyrskip.cost import Cost, measured_flops
from pyrskip.decision import one_picture
from pyrskip.errors import UserError, unknown_name
from pyrskip.identity import HOW
from pyrskip.models.native import CostConfig
from pyrskip.models.tiles import crops
from pyrskip.models.vlm.measured import (
    LENGTHS,
    LanguageCost,
    cached_values,
    last_logits,
    measure_language,
    prompt_flops,
)
from pyrskip.models.vlm.prompts import Look, Prompts, check_pyramid, check_room, length, parts
from pyrskip.models.vlm.towers import encode, encodes_once, given
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

DTYPES = ("auto", "float32", "bfloat16", "float16")
SAME = 1e-4
"""How far log-likelihoods of the same question may be apart in float32; in 16 bits, ROUNDED of its steps."""
ROUNDED = 16


@dataclass(frozen=True)
class HfConfig:
    """path: a folder or a hub id. max_answer: tokens of an answer, its end included. instruction: a line
    after every question, such as 'Answer in one word.'. dtype: of the weights, 'auto' as they are stored.
    at_once: questions in a pass."""

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


class _Row(NamedTuple):
    """A question with its pictures. image: a digest of the image that they are of; tiles: their numbers."""

    image: bytes
    tiles: tuple[int, ...]
    pictures: tuple[Image.Image, ...]
    text: str


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
        self.ends = _ends(model, processor)
        self.once = encodes_once(model) and self.family.additive
        self.encoded = 0
        self._made: dict[tuple[bytes, int], Any] = {}
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
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def tile_tokens(self, size: tuple[int, int]) -> list[int]:
        """Visual tokens that every tile of an image of so many rows and columns gives when it is kept, [T]; 0
        for padding. Where a family counts a lone picture otherwise, beside others."""
        pixels = self.pyramid.pixels(torch.tensor([size]))[0].tolist()
        return [self.prompts.look((r, c), lone=False).tokens if r else 0 for r, c in pixels]

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
        beside = self._of_looks(kept, sizes, lambda look, *_: look.beside).long().sum(-1)
        context = prompt_tokens.view(-1, *inner) + beside + (0 if self.family.cross else tokens)
        answer = self.counting.answer_tokens
        flops = self._of_looks(kept, sizes, self._picture_flops).sum(-1) * self.convention.per_mac / 2
        flops = flops + self.language.flops(context, pictures, answer, self.convention)
        cache = self.language.cache(context + answer, pictures)
        return Cost(tokens, flops, cache * self.counting.bytes_per_value)

    @cached_property
    def language(self) -> LanguageCost:
        """What the language model costs, measured."""
        (token,) = self.prompts.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        own = measure_language(self.model, token)
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
        return self._on_device(self.prompts.inputs([([blank] * pictures, words)]))

    def _picture_flops(self, look: Look, size: tuple[int, int], lone: bool) -> float:
        """Measured FLOPs of the tower and the projector on a picture, once for all pictures alike."""
        if look.shapes not in self._flops:
            inputs, copies = self.prompts.blank(size, lone)
            inputs = self._on_device(inputs)
            if encodes_once(self.model):
                flops = float(measured_flops(lambda: encode(self.model, inputs)))
            else:
                tokens = length(inputs)
                flops = prompt_flops(self.model, inputs) - _plain(self.language, tokens)
                flops -= (self.language.cross_layers + copies * self.language.cross_picture) * tokens
            self._flops[look.shapes] = flops / copies
        return self._flops[look.shapes]

    def _of_looks(
        self, kept: Tensor, size: Tensor, value: Callable[[Look, tuple[int, int], bool], float]
    ) -> Tensor:
        """value(look, rows and columns, lone) of every kept tile. kept [..., T] bool, size [..., 2] -> [...,
        T] float64, 0 where none is kept or the tile is padding."""
        pixels = self.pyramid.pixels(size.reshape(-1, 2)).view(*kept.shape, 2)
        kept = kept & (pixels[..., 0] > 0)
        lone = (kept.sum(-1, keepdim=True) == 1).expand(kept.shape)
        keys = torch.cat([pixels, lone[..., None]], dim=-1)[kept]
        unique, of = torch.unique(keys, dim=0, return_inverse=True)
        values = [
            value(self.prompts.look((rows, columns), bool(alone)), (rows, columns), bool(alone))
            for rows, columns, alone in unique.tolist()
        ]
        out = torch.zeros(kept.shape, dtype=torch.float64, device=kept.device)
        out[kept] = torch.tensor(values, dtype=torch.float64, device=kept.device)[of]
        return out

    @torch.no_grad()
    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        """Greedy answers; only tiles that are asked for are encoded, each once however many questions ask for
        it where the model allows that (`once`)."""
        rows = self._rows(batch, asked)
        answers = [""] * len(rows)
        for part, inputs in self._passes(rows):
            written = self.model.generate(
                **inputs,
                max_new_tokens=self.config.max_answer,
                do_sample=False,
                num_beams=1,
                eos_token_id=self.ends,
                pad_token_id=self.prompts.tokenizer.pad_token_id,
            )[:, inputs["input_ids"].shape[1] :]
            texts = self.prompts.tokenizer.batch_decode(written, skip_special_tokens=True)
            for row, text in zip(part, texts, strict=True):
                answers[row] = text.strip()
        return answers

    @torch.no_grad()
    def loglik(self, batch: Batch, asked: Tensor) -> Tensor:
        """Log-likelihood of each question's first accepted answer and its end, [B] <= 0; teacher-forced."""
        rows = self._rows(batch, asked)
        loglik = torch.zeros(len(rows), device=asked.device)
        for part, inputs in self._passes(rows):
            answers = [batch.questions[row].answers[0] for row in part]
            loglik[part] = self._forced(inputs, answers).to(loglik)
        return loglik

    def _forced(self, inputs: dict[str, Any], answers: Sequence[str]) -> Tensor:
        """Log-likelihood of the answers behind these prompts, [B]: answers are appended on the right, and
        whatever has one value a token grows with them."""
        ids = [torch.tensor(self._answer_ids(answer), device=self.device) for answer in answers]
        tail = pad_sequence(ids, batch_first=True, padding_value=self.prompts.tokenizer.pad_token_id)
        real = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
        shape, width = inputs["input_ids"].shape, tail.shape[1]
        grown = dict(inputs)
        for name, value in inputs.items():
            if not isinstance(value, Tensor) or value.shape[:2] != shape or name.startswith("pixel_"):
                continue
            if name == "cross_attention_mask":  # as the prompt's last token
                more = value[:, -1:].expand(-1, width, *value.shape[2:])
            else:
                types = torch.full_like(tail, self.family.written)
                more = {"input_ids": tail, "attention_mask": real}.get(name, types)
            grown[name] = torch.cat([value, more.to(value)], dim=1)
        logits = last_logits(self.model, grown, width + 1)().logits
        logits = logits[:, -width - 1 : -1]
        chosen: Tensor = logits.float().log_softmax(-1).gather(-1, tail[..., None])[..., 0]
        return (chosen * real).sum(-1)

    def _answer_ids(self, answer: str) -> list[int]:
        """Tokens of an answer, cut to what may be written, and its end."""
        ids: list[int] = self.prompts.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*ids[: self.config.max_answer - 1], self.ends[0]]

    def _rows(self, batch: Batch, asked: Tensor) -> list[_Row]:
        """The questions with the pictures of their kept tiles, in the order in which the model reads them."""
        keep = self.realise(asked, batch.size[batch.image_of]) > 0
        wanted = batch.of_images(keep)
        pictures = {
            (image, tile): self.prompts.picture(crop)
            for image, tile, crop in crops(self.pyramid, batch, wanted)
        }
        digests = [
            hashlib.sha256(image[:, :rows, :columns].cpu().numpy().tobytes() + repr((rows, columns)).encode())
            for image, (rows, columns) in zip(batch.image, batch.size.tolist(), strict=True)
        ]
        rows = []
        for row, (image, text) in enumerate(zip(batch.image_of.tolist(), batch.texts, strict=True)):
            tiles = tuple(tile for tile in self.order if keep[row, tile])
            shown = tuple(pictures[image, tile] for tile in tiles)
            rows.append(_Row(digests[image].digest(), tiles, shown, text))
        return rows

    def _passes(self, rows: Sequence[_Row]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Numbers of the rows of each pass through the model, and its inputs.

        What the tower made of an image is kept until a pass with none of its questions, unless the image
        comes again in the same call.
        """
        groups: dict[object, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(self._company(row, number), []).append(number)
        parts = [
            numbers[start : start + self.at_once]
            for numbers in groups.values()
            for start in range(0, len(numbers), self.at_once)
        ]
        for place, part in enumerate(parts):
            needed = {rows[number].image for later in parts[place:] for number in later}
            self._made = {key: made for key, made in self._made.items() if key[0] in needed}
            yield part, self._inputs([rows[number] for number in part])

    def _inputs(self, rows: Sequence[_Row]) -> dict[str, Any]:
        """The model's inputs for these rows; pictures that it has not seen go through its tower first."""
        inputs = self._on_device(self.prompts.inputs([(row.pictures, row.text) for row in rows]))
        if not self.once:
            self.encoded += sum(len(row.pictures) for row in rows)
            return inputs
        made = []
        for row in rows:
            for tile, picture in zip(row.tiles, row.pictures, strict=True):
                key = row.image, tile
                if key not in self._made:
                    one = self._on_device(self.prompts.inputs([([picture], "")]))
                    self._made[key] = encode(self.model, one)
                    self.encoded += 1
                made.append(self._made[key])
        return given(inputs, made)

    def _on_device(self, inputs: dict[str, Any]) -> dict[str, Any]:
        def place(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return value.to(self.device, self.model.dtype if value.is_floating_point() else None)

        return {name: place(value) for name, value in inputs.items()}

    def _company(self, row: _Row, number: int) -> object:
        """Equal for rows that may share a pass."""
        if self.mixing == "alone":
            return number
        if self.mixing == "alike":
            return tuple(picture.size for picture in row.pictures), self.prompts.words(row.text)
        return bool(row.pictures)

    @cached_property
    def mixing(self) -> str:
        """Which rows share a pass, so that none depends on the others: 'any', those that are 'alike' in their
        pictures' sizes and their length, or each 'alone'. Found by a trial: a batch answers as single rows
        do."""
        side, seen = self.pyramid.side(self.pyramid.levels - 1), torch.Generator().manual_seed(0)
        noise = [
            Image.fromarray(torch.randint(256, (side, side, 3), generator=seen, dtype=torch.uint8).numpy())
            for _ in range(2)
        ]
        one, other = (_Row(bytes([i]), (i,), (noise[i],), "What?") for i in (0, 1))
        both = _Row(b"2", (0, 1), tuple(noise), "What is it, and what is it for?")
        trials = (("any", [one, both]), ("alike", [one, other]))
        encoded = self.encoded
        found = next((how for how, rows in trials if self._holds(rows)), "alone")
        self.encoded, self._made = encoded, {}
        return found

    @torch.no_grad()
    def _holds(self, rows: Sequence[_Row]) -> bool:
        """Whether two rows together score as each alone. Raises UserError where the model cannot take what
        its processor gives."""
        answers = ("yes", "no, it is not")
        try:
            together = self._forced(self._inputs(rows), answers)
            each = [self._forced(self._inputs([r]), [a]) for r, a in zip(rows, answers, strict=True)]
        except (RuntimeError, ValueError) as error:
            if len(rows) > 1 and self._fails_alone(rows[0]):
                raise UserError(f"the model cannot take what its processor gives: {error}") from error
            return False
        step = torch.finfo(self.model.dtype).eps
        return bool(((together - torch.cat(each)).abs() <= max(SAME, ROUNDED * step)).all())

    def _fails_alone(self, row: _Row) -> bool:
        try:
            self._forced(self._inputs([row]), ["yes"])
        except (RuntimeError, ValueError):
            return True
        return False


def check_layout(config: HfConfig, pyramid: Pyramid) -> None:
    """Refuse a pyramid that makes no sense for a model, from its config and processor alone.

    Raises UserError where a level costs no less than a finer one, and where tiles or the model as its users
    run it do not fit the language model.
    """
    prompts = Prompts.from_pretrained(config.path, config.instruction)
    check_pyramid(prompts, pyramid, config.max_answer)
    check_room(prompts.own(), _whole(pyramid), config.max_answer)


def _whole(pyramid: Pyramid) -> Pyramid:
    """The same images as one tile."""
    return Pyramid(pyramid.size, 1, pyramid.stride)


def _plain(cost: LanguageCost, tokens: int) -> float:
    """FLOPs of a prompt without a picture that cross-attention reads."""
    return cost.fixed + cost.token * tokens + cost.pair * tokens**2


def _ends(model: Any, processor: Any) -> list[int]:
    """Tokens that end an answer, the one to learn or score first."""
    own = model.generation_config.eos_token_id
    ends = [own] if isinstance(own, int) else list(own or [])
    preferred = processor.tokenizer.eos_token_id
    if preferred is not None and (preferred in ends or not ends):
        ends = [preferred, *(e for e in ends if e != preferred)]
    if not ends:
        raise UserError(
            "neither the model's generation config nor its tokenizer names a token that ends an answer"
        )
    return ends
