"""A real server: `transformers serve` with a tiny random model, asked as any other is."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrskip.errors import UserError
from pyrskip.models.vlm.hf import HfConfig, HfVlm
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch, Question, Sample
from tests.started import started
from tests.vlm import save_llava

for needed in ("httpx", "openai", "accelerate", "fastapi"):
    pytest.importorskip(needed)

PYRAMID = Pyramid(size=64, levels=3, stride=8)
PATIENCE = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    command = [Path(sys.executable).parent / "transformers", "serve", folder]
    command += ["--device", "cpu", "--dtype", "float32"]
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    with started(command, {"HF_HUB_OFFLINE": "1"}, log, PATIENCE) as url:
        yield url


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Two questions each on a square and on a flat image."""
    generator = torch.Generator().manual_seed(0)
    questions = tuple(
        Question(text, ("red",)) for text in ("what colour is the car ?", "what colour is the dog ?")
    )
    images = [
        torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        for size in ((3, 64, 64), (3, 40, 64))
    ]
    return Batch.collate([Sample(str(i), image, questions) for i, image in enumerate(images)], PYRAMID.size)


def remote(url: str, folder: Path, **given: Any) -> RemoteModel:
    config = RemoteConfig(url, str(folder), encoder_flops=1e6, retries=1, max_answer=4, **given)
    return RemoteModel(config, PYRAMID)


@pytest.mark.slow
def test_a_servers_answers_and_tokens_are_those_of_the_same_folder(
    url: str, folder: Path, batch: Batch
) -> None:
    model = remote(url, folder, processor=str(folder))
    own = HfVlm.from_pretrained(HfConfig(str(folder), max_answer=4), PYRAMID)
    for kept in ([0, 0, 1], [0, 1, 1], [1, 1, 1], [1, 0, 0]):
        asked = torch.tensor([kept] * len(batch))
        realised = model.realise(asked, batch.size[batch.image_of])
        assert realised.equal(own.realise(asked, batch.size[batch.image_of]))
        # hf pads a picture to a square before the processor cuts one out
        squares = batch.rows([0, 1])
        assert model.answer(squares, asked[:2]) == own.answer(squares, asked[:2])
    assert model.prompt_tokens(batch).equal(own.prompt_tokens(batch))
    assert model.unlike == 0 < model.compared


@pytest.mark.slow
def test_a_server_counts_what_the_processor_writes(url: str, folder: Path, batch: Batch) -> None:
    sizes = {name: 1 for name in ("layers", "width", "heads", "kv_heads", "mlp", "vocab")}
    by_server, by_processor = remote(url, folder, **sizes), remote(url, folder, processor=str(folder))
    asked, size = torch.ones(len(batch), PYRAMID.tiles, dtype=torch.int64), batch.size[batch.image_of]
    assert by_server.realise(asked, size).equal(by_processor.realise(asked, size))
    assert by_server.prompt_tokens(batch).equal(by_processor.prompt_tokens(batch))
    (reply,) = by_server.client.ask([by_server._blank((), "what is the dog ?")])
    assert not isinstance(reply, UserError) and reply.first is not None and 0 < reply.first <= reply.total


@pytest.mark.slow
def test_a_server_without_probabilities_of_prompts_says_so(url: str, folder: Path, batch: Batch) -> None:
    with pytest.raises(UserError, match=r"probability=true needs prompt_logprobs.*Unexpected fields"):
        remote(url, folder, processor=str(folder), probability=True).answer(batch, torch.ones(4, 3).long())
