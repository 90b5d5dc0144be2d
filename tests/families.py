"""Tiny models of many families with random weights, and their real processors at small sizes, built from
configs: nothing is fetched."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# weights this large make an answer depend on every token and its position
VISION = SIZES | {"initializer_range": 0.2}
LANGUAGE = SIZES | {
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "max_position_embeddings": 8192,
}


def tokenizer(*extra: str, bos: bool = False, **named: str) -> Any:
    """Bytes, and these special tokens. named: as a tokenizer's config names them."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    special = list(dict.fromkeys([*SPECIAL, *extra, *named.values()]))
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    made.add_special_tokens(special)
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if bos:
        made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=named or None,
    )


def template(image: str, turn: str = "USER: ", answer: str = " ASSISTANT:", begin: str = "") -> str:
    return (
        begin + "{% for m in messages %}" + turn + "{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        f"{image}{{% else %}}{{{{ c['text'] }}}}{{% endif %}}{{% endfor %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


def chatml(image: str) -> str:
    return template(image, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")


def built(model: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return model(config).eval()


def llava() -> Any:
    import transformers as t

    words = tokenizer(bos=True, image_token="<image>")
    pixels = t.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = t.LlavaProcessor(
        pixels,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )
    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**SIZES, image_size=28, patch_size=14, initializer_factor=5.0),
        text_config=t.LlamaConfig(**LANGUAGE, vocab_size=len(words)),
        image_token_index=words.image_token_id,
        image_seq_length=4,
    )
    return built(t.LlavaForConditionalGeneration, config), processor


def llava_next() -> Any:
    import transformers as t

    words = tokenizer(bos=True, image_token="<image>")
    points = [[28, 56], [56, 28], [56, 56]]
    pixels = t.LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=points
    )
    processor = t.LlavaNextProcessor(
        pixels,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )
    config = t.LlavaNextConfig(
        vision_config=t.CLIPVisionConfig(**SIZES, image_size=28, patch_size=14, initializer_factor=5.0),
        text_config=t.LlamaConfig(**LANGUAGE, vocab_size=len(words)),
        image_token_index=words.image_token_id,
        image_grid_pinpoints=points,
    )
    return built(t.LlavaNextForConditionalGeneration, config), processor


def llava_onevision() -> Any:
    import transformers as t

    words = tokenizer(image_token="<image>", video_token="<video>")
    points = [[28, 28], [28, 56], [56, 28], [56, 56]]
    pixels = t.LlavaOnevisionImageProcessor(size={"height": 28, "width": 28}, image_grid_pinpoints=points)
    processor = t.LlavaOnevisionProcessor(
        pixels,
        words,
        t.LlavaOnevisionVideoProcessor(),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=chatml("<image>"),
    )
    config = t.LlavaOnevisionConfig(
        vision_config=t.SiglipVisionConfig(**SIZES, image_size=28, patch_size=14, vision_use_head=False),
        text_config=t.Qwen2Config(**LANGUAGE, vocab_size=len(words)),
        image_token_index=words.image_token_id,
        video_token_index=words.video_token_id,
        image_grid_pinpoints=points,
    )
    return built(t.LlavaOnevisionForConditionalGeneration, config), processor


QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def qwen_ids(words: Any) -> dict[str, int]:
    named = {"vision_start": 0, "vision_end": 1, "image": 2, "video": 3}
    return {f"{name}_token_id": words.convert_tokens_to_ids(QWEN[i]) for name, i in named.items()}


def qwen_text(words: Any, sections: Sequence[int] = (1, 1, 2), **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections)}
    return LANGUAGE | {"vocab_size": len(words), "rope_parameters": rope} | more


QWEN_TEMPLATE = chatml("<|vision_start|><|image_pad|><|vision_end|>")


def qwen2_vl() -> Any:
    import transformers as t

    words = tokenizer(*QWEN)
    pixels = t.Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 28 * 28 * 64})
    processor = t.Qwen2VLProcessor(pixels, words, t.Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    vision = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_ratio": 2,
        "hidden_size": 32,
        "patch_size": 14,
    }
    config = t.Qwen2VLConfig(text_config=qwen_text(words), vision_config=vision, **qwen_ids(words))
    return built(t.Qwen2VLForConditionalGeneration, config), processor


def qwen2_5_vl(width: int = 32) -> Any:
    """width: a multiple of 32."""
    import transformers as t

    words = tokenizer(*QWEN)
    pixels = t.Qwen2VLImageProcessor(size={"shortest_edge": 3136, "longest_edge": 28 * 28 * 64})
    processor = t.Qwen2_5_VLProcessor(pixels, words, t.Qwen2VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    vision = VISION | {"depth": 2, "num_heads": 4, "hidden_size": width, "out_hidden_size": width}
    vision |= {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    unit = width // 32
    text = qwen_text(words, (unit, unit, 2 * unit), hidden_size=width)
    config = t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **qwen_ids(words))
    return built(t.Qwen2_5_VLForConditionalGeneration, config), processor


def _qwen3(kind: str, **text: Any) -> Any:
    import transformers as t

    words = tokenizer(*QWEN)
    pixels = t.Qwen2VLImageProcessor(
        patch_size=16, size={"shortest_edge": 4096, "longest_edge": 32 * 32 * 64}, image_mean=[0.5] * 3
    )
    processor = t.Qwen3VLProcessor(pixels, words, t.Qwen3VLVideoProcessor(), chat_template=QWEN_TEMPLATE)
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    vision = VISION | {"depth": 2, "num_heads": 4, "out_hidden_size": 32, "patch_size": 16}
    config = getattr(t, f"{kind}Config")(
        text_config=qwen_text(words, head_dim=16, rope_parameters=rope, **text),
        vision_config=vision | {"deepstack_visual_indexes": [0, 1]},
        **qwen_ids(words),
    )
    return built(getattr(t, f"{kind}ForConditionalGeneration"), config), processor


def qwen3_vl() -> Any:
    return _qwen3("Qwen3VL")


def qwen3_vl_moe() -> Any:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return _qwen3("Qwen3VLMoe", **experts, decoder_sparse_step=1, mlp_only_layers=[])


def internvl() -> Any:
    import transformers as t

    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    pixels = t.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True)
    processor = t.InternVLProcessor(
        pixels, words, t.InternVLVideoProcessor(), image_seq_length=4, chat_template=chatml("<IMG_CONTEXT>\n")
    )
    config = t.InternVLConfig(
        vision_config=VISION | {"image_size": [56, 56], "patch_size": [14, 14], "use_qk_norm": False},
        text_config=t.Qwen2Config(**LANGUAGE, vocab_size=len(words)),
        image_token_id=words.context_image_token_id,
        image_seq_length=4,
    )
    return built(t.InternVLForConditionalGeneration, config), processor


def _idefics(kind: str) -> Any:
    import transformers as t

    places = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    around = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    words = tokenizer(*around, *places, image_token="<image>")
    pixels = getattr(t, f"{kind}ImageProcessor")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    video = (t.SmolVLMVideoProcessor(),) if kind == "SmolVLM" else ()
    processor = getattr(t, f"{kind}Processor")(
        pixels,
        words,
        *video,
        image_seq_len=4,
        chat_template=template("<image>", "<|im_start|>User:", "<end_of_utterance>\nAssistant:"),
    )
    config = getattr(t, f"{kind}Config")(
        vision_config=VISION | {"image_size": 32, "patch_size": 8},
        text_config=t.LlamaConfig(**LANGUAGE, vocab_size=len(processor.tokenizer)),
        image_token_id=processor.tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=3,
    )
    return built(getattr(t, f"{kind}ForConditionalGeneration"), config), processor


def idefics3() -> Any:
    return _idefics("Idefics3")


def smolvlm() -> Any:
    return _idefics("SmolVLM")


def gemma3() -> Any:
    import transformers as t

    words = tokenizer(
        bos=True, image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    processor = t.Gemma3Processor(
        t.Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        words,
        image_seq_length=4,
        chat_template=template(
            "<start_of_image>", "<|im_start|>user\n", "<|im_end|>\n", begin="{{ bos_token }}"
        ),
    )
    text = t.Gemma3TextConfig(
        **LANGUAGE, vocab_size=len(words), head_dim=16, sliding_window=512, query_pre_attn_scalar=16
    )
    config = t.Gemma3Config(
        text_config=text,
        vision_config=SIZES | {"image_size": 56, "patch_size": 14, "vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_id=words.image_token_id,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
    )
    model = built(t.Gemma3ForConditionalGeneration, config)
    # zero at first
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    return model, processor


def gemma4() -> Any:
    import transformers as t

    words = tokenizer(
        image_token="<|image|>",
        boi_token="<|image>",
        eoi_token="<image|>",
        audio_token="<|audio|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
    )
    processor = t.Gemma4Processor(
        t.Gemma4AudioFeatureExtractor(),
        t.Gemma4ImageProcessor(max_soft_tokens=70),
        words,
        t.Gemma4VideoProcessor(),
        chat_template=template("<|image|>"),
    )
    text = LANGUAGE | {
        "vocab_size": len(words),
        "head_dim": 16,
        "global_head_dim": 16,
        "sliding_window": 512,
        "layer_types": ["sliding_attention", "full_attention"],
        "vocab_size_per_layer_input": len(words),
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "enable_moe_block": False,
    }
    vision = SIZES | {"head_dim": 8, "num_key_value_heads": 4, "patch_size": 16, "pooling_kernel_size": 3}
    config = t.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=words.image_token_id,
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        video_token_id=processor.video_token_id,
        audio_token_id=words.audio_token_id,
    )
    return built(t.Gemma4ForConditionalGeneration, config), processor


def paligemma() -> Any:
    import transformers as t

    words = tokenizer(bos=True, image_token="<image>")
    pixels = t.SiglipImageProcessor(size={"height": 28, "width": 28})
    pixels.image_seq_length = 4
    processor = t.PaliGemmaProcessor(pixels, words)
    text = t.Gemma2Config(**LANGUAGE, vocab_size=len(words), head_dim=16, query_pre_attn_scalar=16)
    vision = SIZES | {"image_size": 28, "patch_size": 14, "vision_use_head": False, "projection_dim": 32}
    config = t.PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=32, image_token_index=processor.image_token_id
    )
    return built(t.PaliGemmaForConditionalGeneration, config), processor


def mllama() -> Any:
    import transformers as t

    words = tokenizer("<|python_tag|>", bos=True, image_token="<|image|>")
    processor = t.MllamaProcessor(
        t.MllamaImageProcessor(size={"height": 28, "width": 28}, max_image_tiles=4),
        words,
        chat_template=template("<|image|>", begin="{{ bos_token }}"),
    )
    vision = {k: v for k, v in SIZES.items() if k != "num_attention_heads"} | {
        "attention_heads": 4,
        "num_global_layers": 1,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0, 1],
        "vision_output_dim": 96,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    }
    text = LANGUAGE | {
        "num_hidden_layers": 3,
        "vocab_size": len(words),
        "cross_attention_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
    config = t.MllamaConfig(vision_config=vision, text_config=text, image_token_index=words.image_token_id)
    model = built(t.MllamaForConditionalGeneration, config)
    with torch.no_grad():  # gates of the cross-attention start at 0, and pictures would do nothing
        for name, weight in model.named_parameters():
            if weight.numel() == 1 and "gate" in name:
                weight.fill_(1.0)
    return model, processor


def llama4() -> Any:
    import transformers as t

    around = ("<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
    words = tokenizer(*around, "<|image|>", bos=True)
    processor = t.Llama4Processor(
        t.Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4),
        words,
        patch_size=14,
        chat_template=template("<|image|>", begin="{{ bos_token }}"),
    )
    text = LANGUAGE | {
        "vocab_size": len(words),
        "intermediate_size_mlp": 48,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "moe_layers": [1],
        "attention_chunk_size": 8192,
        "no_rope_layers": [1, 0],
    }
    vision = SIZES | {"image_size": 56, "patch_size": 14, "vision_output_dim": 32}
    vision |= {"projector_input_dim": 32, "projector_output_dim": 32, "intermediate_size": 128}
    config = t.Llama4Config(
        vision_config=vision,
        text_config=text,
        image_token_index=words.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=words.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=words.convert_tokens_to_ids("<|image_end|>"),
    )
    return built(t.Llama4ForConditionalGeneration, config), processor


EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}


def _glm(kind: str, parts: str = "Glm4v", **text: Any) -> Any:
    """parts: whose processor it has."""
    import transformers as t

    names = ("image_start", "image_end", "video_start", "video_end", "image", "video")
    words = tokenizer(*(f"<|{name}|>" for name in names))
    limits = {"shortest_edge": 2 * 3136, "longest_edge": 2 * 28 * 28 * 64}
    processor = getattr(t, f"{parts}Processor")(
        getattr(t, f"{parts}ImageProcessor")(size=limits),
        words,
        getattr(t, f"{parts}VideoProcessor")(),
        chat_template=template("<|image_start|><|image|><|image_end|>", "<|im_start|>user\n", "<|im_end|>\n"),
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}
    vision = VISION | {"depth": 2, "num_heads": 4, "out_hidden_size": 32, "patch_size": 14, "image_size": 336}
    config = getattr(t, f"{kind}Config")(
        text_config=qwen_text(words, rope_parameters=rope | {"partial_rotary_factor": 0.5}, **text),
        vision_config=vision,
        **{f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}|>") for name in names},
    )
    return built(getattr(t, f"{kind}ForConditionalGeneration"), config), processor


def glm4v() -> Any:
    return _glm("Glm4v")


def glm4v_moe() -> Any:
    return _glm("Glm4vMoe", **EXPERTS)


def glm46v() -> Any:
    return _glm("Glm46V", "Glm46V")


def mistral3() -> Any:
    import transformers as t

    words = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]", bos=True)
    processor = t.PixtralProcessor(
        t.PixtralImageProcessor(size={"longest_edge": 224}, patch_size=14),
        words,
        patch_size=14,
        spatial_merge_size=2,
        chat_template=template("[IMG]", "[INST]", "[/INST]", begin="{{ bos_token }}"),
    )
    config = t.Mistral3Config(
        vision_config=SIZES | {"image_size": 224, "patch_size": 14, "head_dim": 8},
        text_config=t.MistralConfig(**LANGUAGE, vocab_size=len(words), sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
    )
    return built(t.Mistral3ForConditionalGeneration, config), processor


def lfm2_vl() -> Any:
    import transformers as t

    places = [f"<|img_row_{i}_col_{j}|>" for i in range(1, 11) for j in range(1, 11)]
    words = tokenizer(
        "<|img_thumbnail|>",
        *places,
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
    )
    processor = t.Lfm2VlProcessor(t.Lfm2VlImageProcessor(), words, chat_template=chatml("<image>"))
    text = LANGUAGE | {"layer_types": ["conv", "full_attention"], "vocab_size": len(words)}
    config = t.Lfm2VlConfig(
        vision_config=t.Siglip2VisionConfig(**SIZES, patch_size=16, num_patches=256, vision_use_head=False),
        text_config=t.Lfm2Config(**text, block_ff_dim=48, block_auto_adjust_ff_dim=False),
        image_token_id=words.image_token_id,
        projector_hidden_size=32,
    )
    return built(t.Lfm2VlForConditionalGeneration, config), processor


def aya_vision() -> Any:
    import transformers as t

    around = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    words = tokenizer("<image>", *around, "TILE", "TILE_GLOBAL")
    processor = t.AyaVisionProcessor(
        t.GotOcr2ImageProcessor(size={"height": 56, "width": 56}, crop_to_patches=True),
        words,
        patch_size=14,
        img_size=56,
        downsample_factor=2,
        chat_template=template("<image>"),
    )
    vision = {
        "model_type": "siglip_vision_model",
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    }
    config = t.AyaVisionConfig(
        vision_config=SIZES | vision,
        text_config=t.CohereConfig(**LANGUAGE, vocab_size=len(words)),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
    )
    return built(t.AyaVisionForConditionalGeneration, config), processor


def deepseek_vl() -> Any:
    import transformers as t

    words = tokenizer(bos=True, image_token="<image_placeholder>")
    processor = t.DeepseekVLProcessor(
        t.DeepseekVLImageProcessor(size={"height": 32, "width": 32}),
        words,
        num_image_tokens=4,
        chat_template=template("<image_placeholder>"),
    )
    config = t.DeepseekVLConfig(
        vision_config=SIZES | {"image_size": 32, "patch_size": 16, "vision_use_head": False},
        text_config=t.LlamaConfig(**LANGUAGE, vocab_size=len(words)),
        image_token_id=words.image_token_id,
    )
    return built(t.DeepseekVLForConditionalGeneration, config), processor


def kimi_k25() -> Any:
    import transformers as t

    around = ("<|media_begin|>", "<|media_content|>", "<|media_end|>")
    words = tokenizer("<|media_pad|>", *around, "<|kimi_k25_video_placeholder|>")
    processor = t.Kimi_K25Processor(
        t.Kimi_K25ImageProcessor(),
        words,
        t.Kimi_K25VideoProcessor(),
        chat_template=chatml("<|media_begin|>image<|media_content|><|media_pad|><|media_end|>"),
    )
    text = t.DeepseekV3Config(
        **(LANGUAGE | {"num_key_value_heads": 4, "vocab_size": len(words)}),
        **EXPERTS,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        v_head_dim=8,
        qk_nope_head_dim=8,
    )
    config = t.Kimi_K25Config(
        text_config=text,
        vision_config=SIZES | {"patch_size": 14},
        image_token_id=words.convert_tokens_to_ids("<|media_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|kimi_k25_video_placeholder|>"),
        projection_hidden_size=32,
    )
    return built(t.Kimi_K25ForConditionalGeneration, config), processor


def minicpmv4_6() -> Any:
    import transformers as t

    words = tokenizer(
        image_token="<unk_img>",
        video_token="<unk_vid>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )
    processor = t.MiniCPMV4_6Processor(
        t.MiniCPMV4_6ImageProcessor(scale_resolution=112),
        t.MiniCPMV4_6VideoProcessor(),
        words,
        chat_template=chatml("<unk_img>"),
    )
    config = t.MiniCPMV4_6Config(
        text_config=t.Qwen3Config(**LANGUAGE, vocab_size=len(words), head_dim=8),
        vision_config=SIZES | {"image_size": 224, "patch_size": 14},
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        insert_layer_id=0,
    )
    return built(t.MiniCPMV4_6ForConditionalGeneration, config), processor


def fast_vlm() -> Any:
    import transformers as t

    words = tokenizer(image_token="<image>")
    pixels = t.CLIPImageProcessor(
        size={"shortest_edge": 128},
        crop_size={"height": 128, "width": 128},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    processor = t.LlavaProcessor(
        pixels,
        words,
        patch_size=64,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=chatml("<image>\n"),
    )
    tower = {"inference_mode": True, "layers": [1] * 5, "embed_dims": [8, 16, 32, 64, 128]}
    config = t.FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "fastvit_mci3",
            "do_pooling": True,
            "global_pool": "avg",
            "hidden_size": 256,
            "model_args": tower,
        },
        text_config=t.Qwen2Config(**LANGUAGE, vocab_size=len(words)),
        image_token_index=words.image_token_id,
        image_seq_length=4,
    )
    model = built(t.FastVlmForConditionalGeneration, config)
    for layer in model.model.vision_tower.modules():  # without norms, what they begin with fades away
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
    for layer in model.model.multi_modal_projector.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.normal_(layer.weight, std=3.0)
    return model, processor


TINY: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        *(llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, internvl),
        *(idefics3, smolvlm, gemma3, gemma4, paligemma, mllama, llama4, glm4v, glm4v_moe, glm46v),
        *(mistral3, lfm2_vl, aya_vision, deepseek_vl, kimi_k25, minicpmv4_6, fast_vlm),
    )
}
"""family -> its tiny model and processor."""
