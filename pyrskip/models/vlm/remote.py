"""A vision-language model behind an OpenAI-style server (vLLM, SGLang, llama.cpp, a hosted one), as a black
box.

Axes: B questions, I images, T tiles.

A request holds one question: the kept tiles as PNG pictures, coarse to fine and row by row within a level,
then the text. A skipped tile is neither drawn nor sent. The server does not say what an answer costs it, so
the cost is computed from sizes that the config gives, as for every other model. Needs the extra 'remote'.
"""

import base64
import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from pyrskip.cost import Cost, Transformer, decode_flops, kv_bytes, prefill_flops
from pyrskip.decision import one_picture
from pyrskip.errors import UserError
from pyrskip.identity import HOW
from pyrskip.models.native import CostConfig
from pyrskip.models.tiers import RefusedError
from pyrskip.models.tiles import crops
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch

if TYPE_CHECKING:
    import httpx

# too many requests, and a server that is starting, restarting or behind a proxy that is
TRY_AGAIN = (408, 429, 500, 502, 503, 504)
REFUSES_ALL = (401, 403, 404)
"""A wrong key or address. Another 4xx is of one request, such as a picture that the server cannot take."""
LONGEST_WAIT = 30.0
BYTES_A_TOKEN = 4
"""Of English text, for tokenizers with vocabularies of 32,000 and more: a rule of thumb."""
SIZES = ("layers", "width", "heads", "kv_heads", "mlp", "vocab")


@dataclass(frozen=True)
class RemoteConfig:
    """url: up to and with /v1. model: its name there. key: the environment variable that holds the API key,
    '' for none.

    max_answer: tokens of an answer. instruction: a line after every question. parallel: requests at a time;
    timeout: seconds of one; retries: of one that the server could not take, after ever longer waits.

    What the cost is computed from: image_tokens, of every picture, or token_pixels, the side of the square of
    pixels behind a token where their number follows the picture's size; encoder_flops, of the image encoder
    for a visual token; layers, width, heads, kv_heads, mlp, gated (three MLP matrices) and vocab, of the
    language model; template_tokens, of a prompt beside the pictures and the question.
    """

    url: str = field(default="", metadata=HOW)
    model: str = ""
    key: str = field(default="", metadata=HOW)
    max_answer: int = 16
    instruction: str = ""
    parallel: int = field(default=8, metadata=HOW)
    timeout: float = field(default=120.0, metadata=HOW)
    retries: int = field(default=5, metadata=HOW)
    image_tokens: int | None = None
    token_pixels: int | None = None
    encoder_flops: float | None = None
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    mlp: int | None = None
    gated: bool = True
    vocab: int | None = None
    template_tokens: int = 20

    def __post_init__(self) -> None:
        if (
            min(self.max_answer, self.parallel) < 1
            or self.timeout <= 0
            or min(self.retries, self.template_tokens) < 0
        ):
            raise UserError(
                f"model.remote.max_answer={self.max_answer}, parallel={self.parallel}, "
                f"timeout={self.timeout}, retries={self.retries}, template_tokens={self.template_tokens}: "
                "allowed: at least 1, 1, above 0, 0 and 0"
            )

    def check(self) -> None:
        """Raises UserError unless everything is there that a request and its cost need."""
        if not self.url.startswith(("http://", "https://")):
            raise UserError(
                f"model.remote.url={self.url!r} is no address; allowed: http://<host>:<port>/v1, or https://"
            )
        for name in ("model", "encoder_flops", *SIZES):
            if getattr(self, name) in (None, ""):
                raise UserError(
                    f"model.remote.{name} is missing; allowed: what the served model's card or config.json "
                    "says"
                )
        if (self.image_tokens is None) == (self.token_pixels is None) or min(
            self.image_tokens or 1, self.token_pixels or 1
        ) < 1:
            raise UserError(
                f"model.remote.image_tokens={self.image_tokens}, token_pixels={self.token_pixels}: allowed: "
                "one of them, at least 1"
            )
        if self.key and not os.environ.get(self.key):
            raise UserError(
                f"model.remote.key={self.key} is no environment variable that is set; allowed: one with the "
                "API key"
            )
        _ = self.transformer

    @property
    def transformer(self) -> Transformer:
        sizes = {name: int(getattr(self, name)) for name in SIZES}
        return Transformer(**sizes, gated=self.gated, cross=False, lean=False)


class RemoteModel:
    """A black-box model (pyrskip.models.tiers). `encoded` counts the tiles that have been drawn for requests.

    counted: prompt tokens that the server has counted so far, 0 where it gives none; taken: what `cost` takes
    them for.
    """

    def __init__(self, config: RemoteConfig, pyramid: Pyramid, cost: CostConfig | None = None) -> None:
        config.check()
        self.config, self.pyramid, self.counting = config, pyramid, cost or CostConfig()
        self.convention, self.reference, self.at_once = (
            self.counting.convention,
            one_picture(pyramid),
            8 * config.parallel,
        )
        self.order = sorted(range(pyramid.tiles), key=lambda tile: (-int(pyramid.tile_level[tile]), tile))
        self.encoded = self.counted = self.taken = 0

    @cached_property
    def client(self) -> "httpx.Client":
        try:
            import httpx
        except ImportError as error:
            raise UserError("model=remote needs the extra: pip install 'pyrskip[remote]'") from error
        headers = {"Authorization": f"Bearer {os.environ[self.config.key]}"} if self.config.key else {}
        limits = httpx.Limits(max_connections=self.config.parallel)
        return httpx.Client(timeout=self.config.timeout, headers=headers, limits=limits)

    def realise(self, asked: Tensor, size: Tensor) -> Tensor:
        """asked [..., T], size [..., 2] image rows and columns -> realised tokens [..., T]: a tile's own
        number, whatever the number asked."""
        pixels = self.pyramid.pixels(size.reshape(-1, 2)).view(*size.shape[:-1], self.pyramid.tiles, 2)
        if self.config.image_tokens is not None:
            tokens = torch.full_like(asked, self.config.image_tokens)
        else:
            assert self.config.token_pixels is not None
            tokens = (-(-pixels // self.config.token_pixels)).prod(-1)
        return ((asked > 0) & (pixels[..., 0] > 0)).long() * tokens

    def prompt_tokens(self, batch: Batch) -> Tensor:
        """About as many as the template, the question and the instruction have, [B]."""
        count = [len(self._words(text).encode()) for text in batch.texts]
        return torch.tensor(
            [self.config.template_tokens - -n // BYTES_A_TOKEN for n in count], device=batch.size.device
        )

    def cost(self, realised: Tensor, size: Tensor, prompt_tokens: Tensor) -> Cost:
        """realised [B, ..., T], size [B, 2], prompt_tokens [B] -> tokens, FLOPs, KV bytes, [B, ...] each;
        without a gate's."""
        tokens = realised.sum(-1)
        context = tokens + prompt_tokens.view(-1, *[1] * (realised.ndim - 2))
        spec, c = self.config.transformer, self.counting
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
        realised = self.realise(asked, batch.size[batch.image_of])
        wanted = batch.of_images(realised > 0)
        pictures = {(image, tile): _png(crop) for image, tile, crop in crops(self.pyramid, batch, wanted)}
        self.encoded += len(pictures)
        requests = []
        for row, text in enumerate(batch.texts):
            image = int(batch.image_of[row])
            kept = [pictures[image, tile] for tile in self.order if realised[row, tile] > 0]
            requests.append(self._request(kept, text))
        client = self.client
        with ThreadPoolExecutor(self.config.parallel) as pool:
            replies = list(pool.map(lambda request: self._send(client, request), requests))
        taken = (realised.sum(-1) + self.prompt_tokens(batch)).tolist()
        for (_, counted), tokens in zip(replies, taken, strict=True):
            if counted:
                self.counted, self.taken = self.counted + counted, self.taken + tokens
        texts = [text for text, _ in replies]
        answers = [text for text in texts if isinstance(text, str)]
        if len(answers) < len(texts):
            raise RefusedError(texts)
        return answers

    def loglik(self, batch: Batch, asked: Tensor) -> None:
        """Servers tell the probability of what they write, not of a given answer."""
        return None

    def _words(self, text: str) -> str:
        return "\n".join(filter(None, (text, self.config.instruction)))

    def _request(self, pictures: Sequence[str], text: str) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
        content.append({"type": "text", "text": self._words(text)})
        return {
            "model": self.config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.config.max_answer,
            "temperature": 0,
            "seed": 0,
        }

    def _send(self, client: "httpx.Client", request: dict[str, Any]) -> tuple[str | UserError, int]:
        """The answer, or why this request is refused; and how many prompt tokens the server counted, 0 where
        it does not say."""
        import httpx

        address = f"{self.config.url.rstrip('/')}/chat/completions"
        for attempt in range(self.config.retries + 1):
            wait = min(LONGEST_WAIT, 0.5 * 2**attempt)
            try:
                reply = client.post(address, json=request)
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                if reply.status_code not in TRY_AGAIN:
                    return _read(address, reply)
                fault = f"status {reply.status_code}"
                after = reply.headers.get("retry-after", "")
                wait = min(LONGEST_WAIT, float(after)) if after.isdigit() else wait
            if attempt < self.config.retries:
                time.sleep(wait)
        raise UserError(
            f"model.remote.url: {address} gave no answer in {self.config.retries + 1} tries ({fault}); "
            "chunks that are rolled out are kept, so run the same command again once the server is up"
        )


def _read(address: str, reply: "httpx.Response") -> tuple[str | UserError, int]:
    status = reply.status_code
    if status != 200:
        reason = " ".join(reply.text.split())[:300]
        refused = UserError(f"{address} refused a request with status {status}: {reason}")
        if status in REFUSES_ALL or not 400 <= status < 500:
            raise refused
        return refused, 0
    try:
        content = reply.json()
        text = content["choices"][0]["message"]["content"]
        counted = (content.get("usage") or {}).get("prompt_tokens") or 0
        if not isinstance(text, str):
            raise TypeError("the answer is no text")
        return text.strip(), int(counted)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{address} answers in another form than OpenAI's chat completions ({type(error).__name__}: "
            f"{error})"
        ) from error


def _png(crop: Tensor) -> str:
    """[3, h, w] 0..255 -> a data URL."""
    file = io.BytesIO()
    Image.fromarray(crop.round().byte().permute(1, 2, 0).numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
