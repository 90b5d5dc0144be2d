"""A third-party vision-language model of the transformers library, as a black box.

Axes: B questions, I images, T tiles, U encoded tiles, N prompt tokens, A answer tokens, D width, V
vocabulary.

Works for the families of pyrskip.models.vlm.families, such as LLaVA (LlavaForConditionalGeneration) with a
CLIP or SigLIP tower of fixed size and a Llama, Mistral or Qwen2 language model: LLaVA-1.5, BakLLaVA,
llava-interleave. Any other is refused. Needs the extra 'hf'.

How it carries out a decision:

- A kept tile is one image for the model's own processor, with the pixels of its mipmap level. What is not
  square is padded below and to the right with the processor's mean colour, so that a centre crop loses
  nothing. The processor then resizes it to the tower's fixed size, so every kept tile gives the same number
  of tokens, be that less or more than was asked for. That is what `realise` says and what `cost` charges.
- The model's chat template is rendered with one image and then the question. The place of that image holds
  the tokens of all kept tiles, with no words between them, coarse to fine and row by row within a level: the
  glance comes first, and a causal model reads a detail after what it is a detail of. With one tile kept the
  prompt is the model's own.
- A skipped tile reaches neither the processor nor the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pyrskip.cost import Cost, Transformer, decode_flops, kv_bytes, measured_flops, prefill_flops
from pyrskip.decision import one_picture
from pyrskip.errors import UserError, unknown_name
from pyrskip.identity import HOW
from pyrskip.models.native import CostConfig
from pyrskip.models.tiles import crops
from pyrskip.models.vlm.families import FAMILIES, Family
from pyrskip.pyramid import Pyramid
from pyrskip.registry import load_plugins
from pyrskip.sample import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

DTYPES = ("auto", "float32", "bfloat16", "float16")


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


class HfVlm(nn.Module):
    """A black-box model (pyrskip.models.tiers). `encoded` counts the tiles that have gone through the vision
    tower.

    Always in evaluation mode, and without gradients. Raises UserError for another family, for a processor
    that does not fit the model, and for a pyramid with more tiles than the language model has positions for.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        processor: "ProcessorMixin",
        pyramid: Pyramid,
        config: HfConfig | None = None,
        cost: CostConfig | None = None,
    ) -> None:
        super().__init__()
        self.family = check_family(model.config)
        self.model, self.processor, self.pyramid, self.config = (
            model,
            processor,
            pyramid,
            config or HfConfig(),
        )
        self.counting = cost or CostConfig()
        self.convention = self.counting.convention
        self.at_once = self.config.at_once
        self.reference = one_picture(pyramid)
        self.order = sorted(range(pyramid.tiles), key=lambda tile: (-int(pyramid.tile_level[tile]), tile))
        self.ends = _ends(model, processor)
        self.requires_grad_(False)
        self.eval()
        self.image_tokens = self._tokens_of_an_image()
        self.encoded = 0

    @classmethod
    def from_pretrained(cls, config: HfConfig, pyramid: Pyramid, cost: CostConfig | None = None) -> "HfVlm":
        """Load from the config's folder or hub id: safetensors alone, and no code of the repository is run.

        Raises UserError where nothing of the kind can be loaded.
        """
        name = config.path
        try:
            from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise UserError(
                "models of the transformers library need the extra: pip install 'pyrskip[hf]'"
            ) from error
        load_plugins()  # a model type of theirs is then known to the library
        try:
            # the family is read first, so that a wrong one is refused before its weights are fetched
            check_family(AutoConfig.from_pretrained(name, trust_remote_code=False))
            processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                name, trust_remote_code=False, use_safetensors=True, dtype=config.dtype
            )
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f"{name!r} holds no model in safetensors that can be loaded: {error}") from error
        return cls(model, processor, pyramid, config, cost)

    def train(self, mode: bool = True) -> "HfVlm":
        return super().train(False)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        """asked [..., T], size [..., 2] image rows and columns -> realised tokens [..., T].

        A fixed number for every tile that is asked for and not padding, whatever the number asked.
        """
        pixels = self.pyramid.pixels(size.reshape(-1, 2)).view(*size.shape[:-1], self.pyramid.tiles, 2)
        return ((asked > 0) & (pixels[..., 0] > 0)).long() * self.image_tokens

    def prompt_tokens(self, batch: Batch) -> Tensor:
        """Tokens of the chat template and the question, [B]; the same under any decision."""
        return torch.tensor([len(ids) - 1 for ids in self._ids(batch.texts)], device=batch.size.device)

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        """realised [B, ..., T], size [B, 2], prompt_tokens [B] -> tokens, FLOPs and KV bytes, [B, ...] each;
        without a gate's.

        Every kept tile costs a run of the whole tower and projector at the processor's fixed size, measured.
        """
        tokens = realised.sum(-1)
        context = tokens + prompt_tokens.view(-1, *[1] * (realised.ndim - 2))
        spec, c = self.transformer, self.counting
        per_image = self.image_flops / 2 if self.convention.unit == "macs" else float(self.image_flops)
        flops = (
            prefill_flops(spec, context, convention=self.convention)
            + decode_flops(spec, context, c.answer_tokens, convention=self.convention)
            + per_image * (realised > 0).sum(-1)
        )
        return Cost(tokens, flops, kv_bytes(spec, context + c.answer_tokens, c.bytes_per_value))

    @property
    def transformer(self) -> Transformer:
        c = self.model.config.text_config
        return Transformer(
            layers=c.num_hidden_layers,
            width=c.hidden_size,
            heads=c.num_attention_heads,
            kv_heads=c.num_key_value_heads or c.num_attention_heads,
            mlp=c.intermediate_size,
            gated=True,
            vocab=c.vocab_size,
        )

    @cached_property
    def image_flops(self) -> int:
        """Measured FLOPs of the vision tower and the projector on one image."""
        return measured_flops(self._features, self._pixels([_blank(self.pyramid.size)]))

    @torch.no_grad()
    def answer(self, batch: Batch, asked: Tensor) -> list[str]:
        """Greedy answers; only tiles that are asked for are encoded, each once however many questions ask for
        it."""
        prompt, real = self._prompt(batch, asked)
        written = self.model.generate(
            inputs_embeds=prompt,
            attention_mask=real.long(),
            max_new_tokens=self.config.max_answer,
            do_sample=False,
            num_beams=1,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
        )
        return [
            text.strip() for text in self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
        ]

    @torch.no_grad()
    def loglik(self, batch: Batch, asked: Tensor) -> Tensor:
        """Log-likelihood of each question's first accepted answer and its end, [B] <= 0; teacher-forced."""
        prompt, real = self._prompt(batch, asked)
        texts = [q.answers[0] for q in batch.questions]
        cut = self.config.max_answer - 1
        rows = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        answers = [torch.tensor([*row[:cut], self.ends[0]], device=prompt.device) for row in rows]
        ids = pad_sequence(answers, batch_first=True)
        written = pad_sequence([torch.ones_like(a, dtype=torch.bool) for a in answers], batch_first=True)
        mask = torch.cat([real, written], dim=1)
        # prompts are padded on the left and answers on the right, so that all answers start in the same
        # column
        logits = self.model(
            inputs_embeds=torch.cat([prompt, self.model.get_input_embeddings()(ids)], dim=1),
            attention_mask=mask.long(),
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            logits_to_keep=ids.shape[1] + 1,
            use_cache=False,
        ).logits
        chosen: Tensor = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        return (chosen * written).sum(-1).to(asked.device)

    def _prompt(self, batch: Batch, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of the prompts, padded on the left: [B, N, D], and which of them are real [B, N]
        bool."""
        keep = self.realise(asked, batch.size[batch.image_of]) > 0
        features, number = self._encode(batch, keep)
        embed = self.model.get_input_embeddings()
        rows = []
        for row, ids in enumerate(self._ids(batch.texts)):
            kept = [tile for tile in self.order if keep[row, tile]]
            visual = features[number[batch.image_of[row], kept]].flatten(0, 1)
            at = ids.index(self.processor.image_token_id)
            before, after = embed(torch.tensor(ids, device=self.device)).split([at, len(ids) - at])
            rows.append(torch.cat([before, visual.to(before.dtype), after[1:]]))
        real = [torch.ones(len(row), dtype=torch.bool, device=self.device) for row in rows]
        return pad_sequence(rows, True, padding_side="left"), pad_sequence(real, True, padding_side="left")

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each question's prompt, with one image token where the kept tiles go."""
        tokenizer, token = self.processor.tokenizer, self.processor.image_token
        prompts = []
        for text in texts:
            words = "\n".join(filter(None, (text.replace(token, " "), self.config.instruction)))
            content = [{"type": "image"}, {"type": "text", "text": words}]
            turn = [{"role": "user", "content": content}]
            prompts.append(
                self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            )
        # a template that writes the first token itself must not get a second one
        begun = tokenizer.bos_token is not None and prompts[0].startswith(tokenizer.bos_token)
        ids: list[list[int]] = tokenizer(prompts, add_special_tokens=not begun)["input_ids"]
        return ids

    def _encode(self, batch: Batch, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the tiles that any question of an image keeps.

        keep [B, T] -> features [U, image_tokens, D] and the place of each tile among them [I, T], which
        means nothing where it is not encoded.
        """
        wanted = batch.of_images(keep)
        number = (wanted.flatten().cumsum(0) - 1).view_as(wanted)
        pictures = self._pictures(batch, wanted)
        if not pictures:
            width = self.model.config.text_config.hidden_size
            return torch.zeros(0, self.image_tokens, width, device=self.device), number
        self.encoded += len(pictures)
        return self._features(self._pixels(pictures)), number

    def _pictures(self, batch: Batch, wanted: Tensor) -> list[Image.Image]:
        """The wanted tiles [I, T] bool, from the pixels of their levels."""
        mean = getattr(self.processor.image_processor, "image_mean", None) or [0.5] * 3
        background = (torch.tensor(mean) * 255)[:, None, None]
        pictures = []
        for _, _, crop in crops(self.pyramid, batch, wanted):
            _, rows, columns = crop.shape
            square = background.repeat(1, max(rows, columns), max(rows, columns))
            square[:, :rows, :columns] = crop
            pictures.append(Image.fromarray(square.round().byte().permute(1, 2, 0).numpy()))
        return pictures

    def _pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """What the processor makes of them: [U, 3, H, W] on the model's device, in its number format."""
        out = self.processor.image_processor(images=list(pictures), return_tensors="pt")
        pixels: Tensor = out["pixel_values"].to(self.device, self.model.dtype)
        return pixels

    def _features(self, pixels: Tensor) -> Tensor:
        """[U, 3, H, W] -> projected tokens [U, image_tokens, D]."""
        return self.family.features(self.model, pixels)

    @torch.no_grad()
    def _tokens_of_an_image(self) -> int:
        """Tokens that the processor and the model give a picture; UserError unless they agree, for any size
        of it."""
        processor = self.processor
        if not processor.chat_template:
            raise UserError(
                "the processor has no chat template, so nothing says how a question is put to this model"
            )
        if self.model.config.image_token_id != processor.image_token_id:
            raise UserError(
                f"the processor's image token is {processor.image_token_id} and the model's "
                f"{self.model.config.image_token_id}: they belong to different models"
            )
        places = self._ids([""])[0].count(processor.image_token_id)
        if places != 1:
            raise UserError(f"the chat template gives one image {places} places in the prompt; allowed: 1")
        shapes = {
            tuple(self._pixels([_blank(side)]).shape)
            for side in (1, self.pyramid.size, 2 * self.pyramid.size)
        }
        if len(shapes) > 1 or processor.patch_size is None:
            raise UserError(
                "the processor must resize every image to one size and know the tower's patch_size"
            )
        picture = _blank(self.pyramid.size)
        ids: list[int] = processor(images=[picture], text=[processor.image_token])["input_ids"][0]
        tokens = list(ids).count(processor.image_token_id)
        try:
            given = self._features(self._pixels([picture])).shape[1]
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the vision tower cannot take what the processor gives: {error}") from error
        if given != tokens:
            raise UserError(
                f"an image has {tokens} tokens for the processor and {given} for the model; they must agree"
            )
        room = self.model.config.text_config.max_position_embeddings - self.config.max_answer
        if self.pyramid.tiles * tokens > room:
            raise UserError(
                f"{self.pyramid.tiles} tiles of {tokens} tokens do not fit the language model; "
                f"allowed: {room // tokens} tiles, by fewer levels or a smaller grid"
            )
        return tokens


def check_family(config: "PreTrainedConfig") -> Family:
    """The family of a model of this config. Raises UserError unless HfVlm can run and cost it."""
    family = FAMILIES[config.model_type]
    if config.vision_config.model_type not in family.towers:
        raise unknown_name("vision tower", config.vision_config.model_type, family.towers)
    text = config.text_config
    if text.model_type not in family.languages:
        raise unknown_name("language model", text.model_type, family.languages)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if head * text.num_attention_heads != text.hidden_size:
        raise UserError(
            f"the language model's head_dim={head} times {text.num_attention_heads} heads must be its "
            f"hidden_size={text.hidden_size}, or its cost is not known"
        )
    return family


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


def _blank(side: int) -> Image.Image:
    return Image.new("RGB", (side, side))
