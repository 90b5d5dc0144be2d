"""A real server: vLLM on a CPU with a tiny random Qwen2.5-VL, asked as any other is, in the environment of
make test-vllm. VLLM names its command."""

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

import pyrskip
from pyrskip.gates.gate import Gate
from pyrskip.inference import GateAlone
from pyrskip.inference.processor import data_url
from pyrskip.models.vlm.hf import HfConfig, HfVlm
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.models.vlm.served import ServedModel
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch, Question, Sample
from pyrskip.serving.gateway import CHAT, GatewayConfig, create_app
from pyrskip.serving.limits import Limits
from tests.families import qwen2_5_vl
from tests.started import started
from tests.upstream import running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("VLLM" not in os.environ, reason="make test-vllm has an environment of its own"),
]

PYRAMID = Pyramid(size=224, levels=2, stride=8)
DECISIONS = ([0, 1], [1, 1], [1, 0])
PATIENCE = 600
AROUND = 2
"""Tokens: where a picture begins and ends."""
WIDTH = 128
"""Heads of 32, the least that vLLM's attention has on a CPU."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its answers end as its template's turns do."""
    model, processor = qwen2_5_vl(WIDTH)
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.text_config.eos_token_id = model.generation_config.eos_token_id = end
    processor.tokenizer.eos_token, processor.chat_template = "<|im_end|>", TEMPLATE
    directory = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [os.environ["VLLM"], "serve", str(folder), "--served-model-name", "tiny"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "4096"]
    command += ["--max-num-seqs", "4", "--limit-mm-per-prompt", '{"image": 4}']
    own = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    with started(command, own, tmp_path_factory.mktemp("log") / "vllm.txt", PATIENCE) as url:
        yield url


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two questions each on a square and on a flat image."""
    generator = torch.Generator().manual_seed(0)
    questions = tuple(
        Question(text, ("red",)) for text in ("what colour is the car?", "how many dogs are there?")
    )
    images = [
        torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        for size in ((3, 224, 224), (3, 168, 224))
    ]
    return Batch.collate([Sample(str(i), image, questions) for i, image in enumerate(images)], PYRAMID.size)


def remote(url: str, folder: Path, **given: Any) -> RemoteModel:
    config = RemoteConfig(
        url, "tiny", encoder_flops=1e6, retries=1, max_answer=4, processor=str(folder), **given
    )
    return RemoteModel(config, PYRAMID)


@pytest.fixture(scope="module")
def own(folder: Path) -> HfVlm:
    return HfVlm.from_pretrained(HfConfig(str(folder), max_answer=4), PYRAMID)


def asked_of(batch: Batch, kept: list[int]) -> torch.Tensor:
    return torch.tensor([kept] * len(batch))


def test_answers_and_tokens_are_those_of_the_same_folder(
    url: str, folder: Path, batch: Batch, own: HfVlm
) -> None:
    model = remote(url, folder)
    said = set()
    for kept in DECISIONS:
        asked, size = asked_of(batch, kept), batch.size[batch.image_of]
        # behind a server a picture's tokens are what it adds to the prompt, with what stands around it
        assert model.realise(asked, size).equal(own.realise(asked, size) + AROUND * asked)
        answers = model.answer(batch, asked)
        # of a character whose bytes the answer ends in the middle of, the server tells nothing
        assert [a.rstrip("\ufffd") for a in answers] == [a.rstrip("\ufffd") for a in own.answer(batch, asked)]
        said |= set(answers)
    assert model.prompt_tokens(batch).equal(own.prompt_tokens(batch))
    assert model.unlike == 0 < model.compared
    assert len(said) > 1, "answers depend on what is seen"


def test_the_server_counts_what_the_processor_writes(url: str, folder: Path, batch: Batch) -> None:
    sizes = {name: 1 for name in ("layers", "width", "heads", "kv_heads", "mlp", "vocab")}
    config = RemoteConfig(url, "tiny", encoder_flops=1e6, retries=1, **sizes)
    by_server, by_processor = RemoteModel(config, PYRAMID), remote(url, folder)
    asked, size = asked_of(batch, [1, 1]), batch.size[batch.image_of]
    assert by_server.realise(asked, size).equal(by_processor.realise(asked, size))
    assert by_server.prompt_tokens(batch).equal(by_processor.prompt_tokens(batch))


def test_an_accepted_answers_probability_is_that_of_the_same_folder(
    url: str, folder: Path, batch: Batch, own: HfVlm
) -> None:
    model = remote(url, folder, probability=True)
    for kept in DECISIONS:
        asked = asked_of(batch, kept)
        told = model.loglik(batch, asked)
        assert told is not None and len(set(told.tolist())) == len(batch)
        torch.testing.assert_close(told, own.loglik(batch, asked).to(told), atol=1e-3, rtol=0)


def test_a_reply_through_the_gateway_is_that_to_what_the_gate_keeps(
    url: str, folder: Path, alone: tuple[Path, ServedModel, Gate]
) -> None:
    gate = pyrskip.load(alone[0], "torch")
    assert isinstance(gate, GateAlone)
    file = io.BytesIO()
    Image.effect_noise((300, 200), 90).convert("RGB").save(file, "PNG")
    question = "what colour is the car?"
    kept = gate.decide(file.getvalue(), question)
    config = RemoteConfig(url, "tiny", encoder_flops=1e6, processor=str(folder))
    asked = config.body([data_url(picture) for picture in kept.pictures], question, most=4)
    wanted = httpx.post(f"{url}/chat/completions", json=asked, timeout=120).json()
    whole = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    with running(create_app(gate, GatewayConfig(url), Limits(timeout=600.0))) as address:
        body = config.body([whole], question, most=4)
        reply = httpx.post(address + CHAT, json=body, timeout=120)
    got = reply.json()
    assert reply.headers["x-pyrskip-decision"] == ",".join(map(str, kept.selection.levels))
    assert got["choices"][0]["message"]["content"] == wanted["choices"][0]["message"]["content"]
    assert got["usage"]["prompt_tokens"] == wanted["usage"]["prompt_tokens"]
