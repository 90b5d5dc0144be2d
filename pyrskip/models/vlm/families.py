"""Families of vision-language models of the transformers library: one row each.

A row says what a model's config and processor do not: under which settings of its processor a picture is one
look of the tower, so that tiles are cut by pyrskip alone, and what is odd about the family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyrskip.registry import Registry


@dataclass(frozen=True)
class Family:
    """What is to be known of models of one `model_type` beside their config and their processor.

    one: image processor -> the images_kwargs of a tile: the family's own tiling off, its smallest picture as
    small as can be. square: a picture is padded to a square first, so that a centre crop loses nothing.
    additive: several pictures give the tokens that each gives alone. cross: visual tokens are no part of the
    sequence, and cross-attention reads them. wordless: a question without a picture is no prompt for the
    processor, so its tokenizer alone writes it. written: token type of an answer. least: pixels that the
    longer side of a picture is padded to, where the library's own code fails on a smaller one.
    """

    one: Callable[[Any], dict[str, Any]] = lambda _: {}
    square: bool = False
    additive: bool = True
    cross: bool = False
    wordless: bool = False
    written: int = 0
    least: int = 1


FAMILIES: Registry[Family] = Registry("model family", "docs/extending-models.md")


def fixed(**images_kwargs: Any) -> Callable[[Any], dict[str, Any]]:
    """The same settings for every model of a family."""
    return lambda _: images_kwargs


def from_one_token(processor: Any) -> dict[str, Any]:
    """A picture may be as small as one token; the largest is the processor's own."""
    unit = (processor.patch_size * processor.merge_size) ** 2
    return {"size": {"shortest_edge": unit, "longest_edge": processor.size["longest_edge"]}}


def from_one_frame(processor: Any) -> dict[str, Any]:
    """The same where the limits count pixels of all frames of a patch in time."""
    unit = processor.temporal_patch_size * (processor.patch_size * processor.merge_size) ** 2
    return {"size": {"shortest_edge": unit, "longest_edge": processor.size["longest_edge"]}}


for name in ("llava", "fast_vlm"):
    FAMILIES.register(name, Family(square=True))
FAMILIES.register("llava_onevision", Family(additive=False))
for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"):
    FAMILIES.register(name, Family(from_one_token))
for name in ("glm4v", "glm4v_moe", "glm46v"):
    FAMILIES.register(name, Family(from_one_frame))
for name in ("internvl", "aya_vision"):
    FAMILIES.register(name, Family(fixed(crop_to_patches=False)))
for name in ("idefics3", "smolvlm"):
    FAMILIES.register(name, Family(fixed(do_image_splitting=False)))
FAMILIES.register("lfm2_vl", Family(fixed(do_image_splitting=False, min_image_tokens=4)))
FAMILIES.register("minicpmv4_6", Family(fixed(slice_mode=False)))
FAMILIES.register("llama4", Family(fixed(max_patches=1)))
FAMILIES.register("paligemma", Family(wordless=True, written=1))
FAMILIES.register("mllama", Family(cross=True))
FAMILIES.register("mistral3", Family(least=29))  # one token is 28 px, and loses an axis where it is alone
for name in ("llava_next", "gemma3", "gemma4", "deepseek_vl", "kimi_k25"):
    FAMILIES.register(name, Family())
