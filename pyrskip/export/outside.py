"""What a served model gives and costs, measured into plain data that an export of a gate alone holds.

Axes: B questions, N sizes, T tiles.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from pyrskip.errors import UserError
from pyrskip.export.sizes import FEW, PROBES, Floats, Ints, Kinds, Measure, by_lines, by_size, every
from pyrskip.inference.outside import Outside, Pictures, Prompt
from pyrskip.models.tiers import BlackBox
from pyrskip.models.vlm.counts import ServerTokens
from pyrskip.models.vlm.hf import HfVlm
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.sample import Batch, Sample

STEP = 1024
"""Between the lengths of a prompt that FLOPs are measured at: a power of two, so that what is computed of
them is exact."""
PER_TOKEN = 4
"""Bytes, where a question's tokens are counted by them."""
MANY = 64
"""Pictures of more numbers of tokens than these are not all encoded, where a formula gives what so many of
them cost."""
SLIGHT = 0.001
"""How far such a formula may be off: towers that look through windows count those at a picture's edge."""
NEAR = 0.01
"""How far a decision's FLOPs may be off, with all of that."""


def outside_of(
    box: BlackBox, name: str, batch: Batch, say: Callable[[str], None]
) -> tuple[Outside, Tokenizer | None]:
    """What is known of the model; and its tokenizer, where that is what counts a question's tokens.

    batch: questions that the count of a prompt's tokens is fitted to. Raises UserError for a model whose cost
    is no function of its tiles' sizes and of how many tokens it reads.
    """
    ask = FEW if isinstance(box, RemoteModel) and isinstance(box.counts, ServerTokens) else PROBES
    lone = None
    if isinstance(box, HfVlm) and not box.family.additive:
        lone = _pictures(box, ask, say, lone=True)
    of = _pictures(box, ask, say, lone=False)
    # of every length there is, or two rules may fit those that there are by chance
    longer = [replace(batch.questions[0], text=batch.texts[0] + "s" * more) for more in range(PER_TOKEN)]
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    probes = Batch.collate([Sample("probe", image, tuple(longer))], box.pyramid.size)
    counted = [*box.prompt_tokens(batch).tolist(), *box.prompt_tokens(probes).tolist()]
    prompt, tokenizer, right = prompt_of(counted, [*batch.texts, *probes.texts], _tokenizer(box))
    if right < len(counted):
        say(f"the tokens of {len(counted) - right} of {len(counted)} prompts are not counted exactly")
    outside = Outside(name, of.tokens, of.encode, _quadratic(box), prompt, of.places, _cross(box), lone)
    _check(box, outside, ask)
    return outside, tokenizer


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


def _pictures(box: BlackBox, ask: int, say: Callable[[str], None], lone: bool) -> Pictures:
    """What pictures of every size are to the model, up to its largest tile. lone: each in a prompt of its
    own, where that differs."""
    tile = max(range(box.pyramid.tiles), key=lambda tile: box.pyramid.places[tile].side)
    side = box.pyramid.places[tile].side
    tokens, places, measured = _looks(box, lone) if isinstance(box, HfVlm) else _answers(box, tile)

    def encode(size: Ints) -> Floats:
        n = tokens(size)
        if len(np.unique(n)) <= MANY:
            return measured(size)
        some = np.argsort(n)[np.linspace(0, len(n) - 1, MANY).round().astype(int)]
        found = measured(size[some])
        formula = np.polynomial.Polynomial.fit(n[some], found, 2)
        if np.allclose(formula(n[some]), found, rtol=SLIGHT, atol=0):
            return np.round(formula(n))
        return measured(size)

    kinds = _kinds(box, side, tokens, places, lone, say)
    given = by_size(tokens, side, ask, kinds)
    in_prompt = given if places is tokens else by_size(places, side, ask, kinds)
    return Pictures(given, in_prompt, by_size(encode, side, ask, kinds, 2 * SLIGHT))


def _looks(box: HfVlm, lone: bool) -> tuple[Measure, Measure, Measure]:
    """Visual tokens, tokens of the prompt and FLOPs of pictures, as the model's own processor takes them."""
    prompts = box.prompts

    def of(value: Callable[[tuple[int, int]], float]) -> Measure:
        return lambda size: np.array([float(value((rows, columns))) for rows, columns in size.tolist()])

    return (
        of(lambda size: prompts.look(size, lone).tokens),
        of(lambda size: prompts.place(prompts.look(size, lone))),
        of(lambda size: round(box.picture_flops(size, lone))),
    )


def _answers(box: BlackBox, tile: int) -> tuple[Measure, Measure, Measure]:
    """The same of a model that takes a picture alike wherever it is, by decisions for a tile alone."""
    pyramid = box.pyramid
    level = pyramid.places[tile].level

    def seen(size: Ints) -> tuple[Tensor, Tensor]:
        """Images [N, 2] whose tile has this size, and what a decision for it alone gives [N, T]."""
        images = torch.from_numpy(size << level)
        asked = torch.zeros(len(size), pyramid.tiles, dtype=torch.int64)
        asked[:, tile] = pyramid.capacity(images)[:, tile]
        return images, box.realise(asked, images)

    def tokens(size: Ints) -> Floats:
        return seen(size)[1][:, tile].double().numpy()

    def measured(size: Ints) -> Floats:
        images, realised = seen(size)
        read = 1 + realised.sum(-1)
        encoded = box.cost(realised, images, torch.ones_like(read)).flops
        return np.round((encoded - box.cost(0 * realised, images, read).flops).double().numpy())

    return tokens, tokens, measured


def _quadratic(box: BlackBox) -> tuple[float, float, float]:
    """a, b, c of the FLOPs a + b n + c n^2 of a prompt of n tokens and its answer, from three of them."""
    at = torch.tensor([1, 1 + STEP, 1 + 2 * STEP])
    nothing = torch.zeros(len(at), box.pyramid.tiles, dtype=torch.int64)
    size = torch.full((len(at), 2), box.pyramid.size)
    first, second, third = box.cost(nothing, size, at).flops.double().tolist()
    c = (third - 2 * second + first) / (2 * STEP**2)
    b = (second - first) / STEP - c * (2 + STEP)
    return first - b - c, b, c


def _kinds(
    box: BlackBox, side: int, tokens: Measure, places: Measure, lone: bool, say: Callable[[str], None]
) -> Sequence[Kinds]:
    """Ways to tell which pictures are alike to the model: by the patches that its image processor says it
    makes of them, and their rows and columns, by two lines alone, and by looking at every one."""
    counts = box.counts if isinstance(box, RemoteModel) else None
    processor = getattr(counts or box, "processor", None)
    says = getattr(getattr(processor, "image_processor", None), "get_number_of_image_patches", None)
    ways: list[Kinds] = []
    if says is not None:
        patches = cache(lambda: _patches(box, processor, side))

        def grids() -> Ints:  # as many patches may lie in other rows and columns
            in_all = patches()
            alike = by_lines(lambda size: in_all[size[:, 0] - 1, size[:, 1] - 1].astype(float), side)
            return in_all * side**2 + alike

        ways += [patches, cache(grids)]
    if not isinstance(box, HfVlm):
        return [*ways, cache(lambda: by_lines(tokens, side))]
    look = box.prompts.look

    def looked_at() -> Ints:
        say(f"each of {side**2} sizes of pictures is looked at, since nothing shorter tells their tokens")
        numbers: dict[object, int] = {}
        found = [
            numbers.setdefault(look((rows, columns), lone), len(numbers))
            for rows, columns in every(side).tolist()
        ]
        return np.array(found).reshape(side, side)

    return [*ways, cache(lambda: by_lines(places, side)), cache(looked_at)]


def _patches(box: BlackBox, processor: Any, side: int) -> Ints:
    """How many patches an image processor says that it makes of a picture of every size; -1 of one that it
    refuses. Servers count by it, and some processors read limits by other names there."""
    kwargs = dict(box.prompts.images_kwargs) if isinstance(box, HfVlm) else {}
    size = kwargs.get("size", {})
    for name, limit in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if limit in size:
            kwargs[name] = size[limit]
    found = np.full(side**2, -1)
    for number, (rows, columns) in enumerate(every(side).tolist()):
        shown = box.prompts.shown((rows, columns)) if isinstance(box, HfVlm) else (rows, columns)
        with suppress(ValueError):
            found[number] = processor.image_processor.get_number_of_image_patches(*shown, kwargs)
    return found.reshape(side, side)


def _cross(box: BlackBox) -> tuple[float, float, float] | None:
    """What cross-attention to pictures costs; None of a model that reads them in its prompt."""
    if not isinstance(box, HfVlm) or not box.family.cross:
        return None
    of, share = box.language, box.convention.per_mac / 2
    return of.cross_layers * share, of.cross_picture * share, float(box.counting.answer_tokens)


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
    tokens = outside.visual(pixels, keep.numpy())
    flops = outside.flops(pixels, keep.numpy(), words.numpy())
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
