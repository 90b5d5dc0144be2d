"""What a served model gives and costs, measured into plain data that an export of a gate alone holds.

Axes: B questions, N sizes, T tiles.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pyrskip.errors import UserError
from pyrskip.inference.outside import BySize, Outside, Prompt
from pyrskip.models.tiers import BlackBox
from pyrskip.models.vlm.counts import ServerTokens
from pyrskip.models.vlm.hf import HfVlm
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.sample import Batch, Sample

PROBES = 500
FEW = 40
"""In place of PROBES, where a server is asked about every size."""
STEP = 1024
"""Between the lengths of a prompt that FLOPs are measured at: a power of two, so that what is computed of
them is exact."""
PER_TOKEN = 4
"""Bytes, where a question's tokens are counted by them."""
CLOSE = 1e-6
"""Of FLOPs, which a model may compute in float32."""
NEAR = 0.01
"""Of a decision's FLOPs: what stands around a picture may differ by its size."""

Ints = NDArray[np.int64]
Measure = Callable[[Ints], NDArray[np.float64]]


def outside_of(
    box: BlackBox, name: str, batch: Batch, say: Callable[[str], None]
) -> tuple[Outside, Tokenizer | None]:
    """What is known of the model; and its tokenizer, where that is what counts a question's tokens.

    batch: questions that the count of a prompt's tokens is fitted to. Raises UserError for a model whose cost
    is no function of its tiles' sizes and of how many tokens it reads.
    """
    pyramid = box.pyramid
    tile = max(range(pyramid.tiles), key=lambda tile: pyramid.places[tile].side)
    level, side = pyramid.places[tile].level, pyramid.places[tile].side
    context, beside = _quadratic(box), _beside(box, side)

    def seen(size: Ints) -> tuple[torch.Tensor, torch.Tensor]:
        """Images [N, 2] whose tile has this size, and what a decision for it alone gives [N, T]."""
        images = torch.from_numpy(size << level)
        asked = torch.zeros(len(size), pyramid.tiles, dtype=torch.int64)
        asked[:, tile] = pyramid.capacity(images)[:, tile]
        return images, box.realise(asked, images)

    def tokens(size: Ints) -> NDArray[np.float64]:
        return seen(size)[1][:, tile].double().numpy()

    def encode(size: Ints) -> NDArray[np.float64]:
        images, realised = seen(size)
        total = box.cost(realised, images, torch.ones(len(size), dtype=torch.int64)).flops.double().numpy()
        return np.round(total - _at(context, 1 + beside + realised[:, tile].double().numpy()))

    # of every length there is, or two rules may fit those that there are by chance
    longer = [replace(batch.questions[0], text=batch.texts[0] + "s" * more) for more in range(PER_TOKEN)]
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    probes = Batch.collate([Sample("probe", image, tuple(longer))], pyramid.size)
    counted = [*box.prompt_tokens(batch).tolist(), *box.prompt_tokens(probes).tolist()]
    prompt, tokenizer, right = prompt_of(counted, [*batch.texts, *probes.texts], _tokenizer(box))
    if right < len(counted):
        say(f"the tokens of {len(counted) - right} of {len(counted)} prompts are not counted exactly")
    ask = FEW if isinstance(box, RemoteModel) and isinstance(box.counts, ServerTokens) else PROBES
    outside = Outside(name, by_size(tokens, side, ask), by_size(encode, side, ask), context, prompt, beside)
    _check(box, outside, ask)
    return outside, tokenizer


def by_size(measure: Measure, side: int, probes: int = PROBES) -> BySize:
    """The rule behind a number of every picture of up to `side` pixels a side: the shortest that gives it for
    all squares and at `probes` random sizes, else the table of all sizes.

    measure: sizes [N, 2] -> [N] above 0; it may raise UserError or ValueError for a size that the model does
    not take. Raises UserError in place of a table where there are FEW probes.
    """
    squares = np.repeat(np.arange(1, side + 1)[:, None], 2, axis=1)
    found = _measured(measure, squares)
    rule = BySize("fixed", more=float(found[-1]))
    changed = np.flatnonzero(found != found[0])
    if len(changed):
        # from one square of pixels to four
        each = float(found[changed[0]] - found[0]) / 3
        rule = BySize("pixels", more=float(found[0]) - each, each=each, side=int(changed[0]))
    random = np.random.default_rng(0).integers(1, side + 1, (probes, 2))
    wanted = np.concatenate([found, _measured(measure, random)])
    if np.allclose(rule(np.concatenate([squares, random])), wanted, rtol=CLOSE, atol=0):
        return rule
    if probes == FEW:
        raise UserError(
            "model.remote.processor='': the tokens that the server counts follow no rule, and it would have "
            f"to be asked about {side**2} sizes of pictures; allowed: a folder with the model's processor"
        )
    columns = np.arange(1, side + 1)
    rows = [_measured(measure, np.stack([np.full_like(columns, row), columns], axis=1)) for row in columns]
    return BySize.table(np.stack(rows))


def prompt_of(
    counted: Sequence[int], texts: Sequence[str], tokenizer: Tokenizer | None
) -> tuple[Prompt, Tokenizer | None, int]:
    """The rule that counts the most prompts as the model does; the tokenizer, where it is what counts; and
    how many it counts right. counted [B]: tokens of the prompts of these texts."""
    rules = [Prompt("bytes", 0, more, PER_TOKEN) for more in range(PER_TOKEN)]
    rules += [Prompt("tokenizer", 0)] if tokenizer is not None else []
    best, right = rules[0], -1
    for rule in rules:
        pairs = zip(counted, texts, strict=True)
        [(beside, times)] = Counter(n - rule(text, tokenizer) for n, text in pairs).most_common(1)
        if times > right:
            best, right = Prompt(rule.counted, beside, rule.more, rule.per_token), times
    return best, tokenizer if best.tokenized else None, right


def _measured(measure: Measure, size: Ints) -> NDArray[np.float64]:
    """Of sizes [N, 2]; 0 for one that the model does not take."""
    try:
        return measure(size)
    except (UserError, ValueError):
        if len(size) == 1:
            return np.zeros(1)
        half = len(size) // 2
        return np.concatenate([_measured(measure, size[:half]), _measured(measure, size[half:])])


def _quadratic(box: BlackBox) -> tuple[float, float, float]:
    """a, b, c of the FLOPs a + b n + c n^2 of a prompt of n tokens and its answer, from three of them."""
    at = torch.tensor([1, 1 + STEP, 1 + 2 * STEP])
    nothing = torch.zeros(len(at), box.pyramid.tiles, dtype=torch.int64)
    size = torch.full((len(at), 2), box.pyramid.size)
    first, second, third = box.cost(nothing, size, at).flops.double().tolist()
    c = (third - 2 * second + first) / (2 * STEP**2)
    b = (second - first) / STEP - c * (2 + STEP)
    return first - b - c, b, c


def _beside(box: BlackBox, side: int) -> int:
    """Tokens around a picture that the model reads and `realise` does not count."""
    if not isinstance(box, HfVlm):
        return 0
    look = box.prompts.look((side, side))
    return box.prompts.place(look) - look.tokens


def _at(context: tuple[float, float, float], n: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = context
    return a + b * n + c * n * n


def _check(box: BlackBox, outside: Outside, probes: int) -> None:
    """Raises UserError unless random decisions on random images give and cost what the rules say."""
    generator, pyramid = torch.Generator().manual_seed(0), box.pyramid
    size = torch.randint(8, pyramid.size + 1, (probes, 2), generator=generator)
    keep = torch.rand(probes, pyramid.tiles, generator=generator) < 0.5
    words = torch.randint(1, 200, (probes,), generator=generator)
    pixels = pyramid.pixels(size).numpy()
    try:
        realised = box.realise(pyramid.capacity(size) * keep, size)
    except (UserError, ValueError):
        return  # of pictures that the model does not take; the check on the test split sees those that are
    tokens, encode = outside.tokens(pixels) * keep.numpy(), outside.encode(pixels) * keep.numpy()
    read = (tokens + outside.beside * (tokens > 0)).sum(-1) + words.numpy()
    flops = _at(outside.context, read) + encode.sum(-1)
    wanted = box.cost(realised, size, words).flops.double().numpy()
    if (tokens != realised.numpy()).any() or not np.allclose(flops, wanted, rtol=NEAR, atol=0):
        raise UserError(
            "the model's tokens and FLOPs do not follow from the sizes of its pictures and the number of "
            "tokens that it reads, so that a gate alone cannot know them; allowed: models where they do"
        )


def _tokenizer(box: BlackBox) -> Tokenizer | None:
    """The model's own, without what a batch of it is padded and cut to; None where it shows none."""
    counts = box.counts if isinstance(box, RemoteModel) else box
    own = getattr(getattr(getattr(counts, "processor", None), "tokenizer", None), "backend_tokenizer", None)
    if own is None:
        return None
    tokenizer = Tokenizer.from_str(own.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
