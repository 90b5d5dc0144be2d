"""A tiny LLaVA and a tiny sentence encoder with random weights, built from configs: nothing is fetched."""

from pathlib import Path
from typing import Any

import torch

VOCABULARY = "USER : ASSISTANT what colour is the car dog ? red blue green a b c d e f"
WORDS = VOCABULARY.split()
TEMPLATE = (
    "{% for message in messages %}USER : {% for c in message['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} "
    "ASSISTANT :"
)
# one image token a patch of the 24 / 8 x 24 / 8 grid
TOKENS = 9


def processor(side: int = 24, template: str | None = TEMPLATE) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<image>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(special + WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<image>"],
    )
    pixels = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        pixels,
        fast,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def llava(**text: Any) -> Any:
    return vlm_of("llava", **text)


def vlm_of(family: str, **text: Any) -> Any:
    """A LLaVA under the name of a family, with random weights. text: of its language model's config."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    tower = sizes | {"initializer_factor": 5.0, "image_size": 24, "patch_size": 8}
    # weights this large make the answer depend on every token and its position
    own = {
        "num_key_value_heads": 2,
        "vocab_size": 4 + len(WORDS),
        "initializer_range": 0.3,
        "eos_token_id": 2,
    }
    config = AutoConfig.for_model(
        family,
        vision_config=AutoConfig.for_model("clip_vision_model", **tower),
        text_config=AutoConfig.for_model("llama", **sizes | own | text),
        image_token_index=3,
        image_seq_length=TOKENS,
    )
    return AutoModelForImageTextToText.from_config(config)


def save_llava(directory: Path) -> Path:
    """A folder in the Hugging Face format, as someone who serves the model has it."""
    llava().save_pretrained(directory)
    processor().save_pretrained(directory)
    return directory


def save_qwen(directory: Path) -> Path:
    """The same of a Qwen2.5-VL, with the limits of the published ones: tokens follow pixels."""
    from tests.families import qwen2_5_vl

    model, own = qwen2_5_vl()
    own.image_processor.size = {"shortest_edge": 3136, "longest_edge": 12_845_056}
    model.save_pretrained(directory)
    own.save_pretrained(directory)
    return directory


def save_text_encoder(directory: Path, texts: list[str]) -> Path:
    """A BERT that knows the words of these texts, as a folder in the Hugging Face format."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted(
        {
            word
            for text in texts
            for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text.lower())
        }
    )
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        directory
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, vocab_size=len(vocabulary), initializer_range=0.5)).save_pretrained(
        directory
    )
    return directory
