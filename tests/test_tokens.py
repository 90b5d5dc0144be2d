"""Tokens of pictures, counted from what a processor writes, against the families' own arithmetic."""

from typing import Any

import pytest

from pyrskip.errors import UserError
from pyrskip.models.vlm.tokens import ProcessorTokens, image_token_of

pytest.importorskip("transformers")

from tests.vlm import processor

TEMPLATE = (
    "{% for m in messages %}<user> {% for c in m['content'] %}{% if c['type'] == 'image' %}PICTURE"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def tokenizer(*words: str, **named: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    every = ["<unk>", "<user>", "?", "what", *words, *named.values()]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<unk>", extra_special_tokens=named or list(words)
    )


def qwen2_5_vl() -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    words = tokenizer("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
    pixels = Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 12845056})
    shown = TEMPLATE.replace("PICTURE", "<|vision_start|><|image_pad|><|vision_end|>")
    return Qwen2_5_VLProcessor(pixels, words, Qwen2VLVideoProcessor(), chat_template=shown)


def internvl() -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    pixels = GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True)
    return InternVLProcessor(
        pixels,
        words,
        InternVLVideoProcessor(),
        image_seq_length=256,
        chat_template=TEMPLATE.replace("PICTURE", "<IMG_CONTEXT>"),
    )


@pytest.mark.parametrize(
    ("made", "visual"),
    [
        # squares of 28 pixels, sides rounded to whole ones
        pytest.param(
            qwen2_5_vl,
            {(224, 224): 64, (336, 336): 144, (480, 640): 391, (512, 512): 324},
            marks=pytest.mark.slow,
        ),
        # 256 a tile of 448 pixels, and a thumbnail where there are several
        pytest.param(internvl, {(224, 224): 256, (512, 512): 256, (480, 640): 3328}, marks=pytest.mark.slow),
        (processor, {(24, 24): 9, (48, 10): 9}),
    ],
    ids=["qwen2_5_vl", "internvl", "llava"],
)
def test_image_tokens_are_those_of_the_familys_rule(made: Any, visual: dict[tuple[int, int], int]) -> None:
    tokens = ProcessorTokens(made())
    assert {size: tokens.visual(size) for size in visual} == visual
    # all else that pictures add, such as where each begins and ends
    separators = {tokens.pictures([size])[0] - count for size, count in visual.items()}
    assert len(separators) == 1 and 0 <= separators.pop() <= 2
    first, *others = visual
    assert tokens.together([first, others[-1]]) == sum(tokens.pictures([first, others[-1]]))


@pytest.mark.slow
def test_a_picture_that_a_family_refuses_has_no_tokens() -> None:
    tokens = ProcessorTokens(qwen2_5_vl())
    assert tokens.pictures([(2, 500), (56, 56)]) == [0, 4 + 2]
    with pytest.raises(ValueError, match="aspect ratio"):
        tokens.visual((2, 500))


def test_a_size_and_a_text_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, asked = ProcessorTokens(processor()), []
    written = tokens._ids
    monkeypatch.setattr(
        tokens, "_ids", lambda text, sizes: asked.append((text, sizes)) or written(text, sizes)
    )
    for _ in range(3):
        assert tokens.pictures([(24, 24), (9, 9), (24, 24)]) == [9, 9, 9]
        # <s> USER : what ? ASSISTANT :
        assert tokens.texts(["what ?", "what ?"]) == [7, 7]
    assert len(asked) == 4


def test_a_processor_that_names_no_image_token_is_refused() -> None:
    with pytest.raises(UserError, match="names no image token"):
        image_token_of(tokenizer())
