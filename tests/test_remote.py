"""A model behind a server as a black box: what is sent, what it costs, and what goes wrong on the way."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyrskip.cost import Transformer, decode_flops, prefill_flops
from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.models.vlm.remote import RemoteConfig, RemoteModel
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch, Question, Sample
from tests.server import Server, content, serve

pytest.importorskip("httpx")

PYRAMID = Pyramid(size=64, levels=3, stride=8, grid=(2, 1, 1))
SIZES: dict[str, Any] = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 100,
    "encoder_flops": 1e6, "token_pixels": 8,
}  # fmt: skip
# tiles finest first: four of the finest level, the middle level, the glance
ASKED = torch.tensor([[5, 0, 0, 7, 0, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0], [4, 4, 4, 4, 0, 4]])


def count_pictures(text: str, pictures: list[bytes]) -> str:
    return f" {len(pictures)} for {text.splitlines()[0]} "


@pytest.fixture
def server() -> Iterator[Server]:
    with serve(count_pictures) as running:
        yield running


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Three questions on a square image and one on an image that is 40 x 24: it leaves two finest tiles
    empty."""
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        for size in ((3, 64, 64), (3, 40, 24))
    ]
    questions = tuple(
        Question(text, ("red",)) for text in ("colour ?", "how many red balls are there ?", "what ?")
    )
    return Batch.collate(
        [Sample("0", images[0], questions), Sample("1", images[1], questions[:1])], PYRAMID.size
    )


def remote(server: Server, **given: Any) -> RemoteModel:
    return RemoteModel(
        RemoteConfig(**{"url": server.url, "model": "tiny", "retries": 1} | SIZES | given), PYRAMID
    )


def test_it_answers_each_question_from_its_kept_tiles(server: Server, batch: Batch) -> None:
    assert remote(server, parallel=3).answer(batch, ASKED) == [
        "3 for colour ?",
        "1 for how many red balls are there ?",
        "0 for what ?",
        "3 for colour ?",  # two of its tiles are padding
    ]
    for request in server.requests:
        assert (request["model"], request["temperature"], request["max_tokens"]) == ("tiny", 0, 16)


def test_pictures_are_the_pixels_of_their_levels_coarse_to_fine(server: Server, batch: Batch) -> None:
    one = batch.rows([3])
    remote(server).answer(one, ASKED[3:])
    _, pictures = content(server.requests[0])
    drawn = [torch.from_numpy(np.array(Image.open(io.BytesIO(p)))).permute(2, 0, 1) for p in pictures]
    assert [tuple(d.shape) for d in drawn] == [(3, 10, 6), (3, 32, 24), (3, 8, 24)]
    assert drawn[1].equal(one.image[0, :, :32, :24]) and drawn[2].equal(one.image[0, :, 32:40, :24])
    mean = one.image[0, :, :40, :24].float().unflatten(1, (10, 4)).unflatten(3, (6, 4)).mean((2, 4))
    assert (drawn[0].float() - mean).abs().max() <= 0.5


def test_a_skipped_tile_is_neither_drawn_nor_sent(server: Server, batch: Batch) -> None:
    model = remote(server)
    model.answer(batch, ASKED)
    assert sorted(server.pictures()) == [0, 1, 3, 3]
    # tiles 0, 3 and 5 of the one image, whose glance two questions share, and three of the other
    assert model.encoded == 6


@pytest.mark.parametrize("given", [{}, {"image_tokens": 9, "token_pixels": None}])
def test_tokens_are_those_of_a_tiles_size_or_of_any_picture(
    server: Server, batch: Batch, given: dict[str, Any]
) -> None:
    realised = remote(server, **given).realise(ASKED, batch.size[batch.image_of])
    sizes = [[16, 0, 0, 16, 0, 4], [0, 0, 0, 0, 0, 4], [0] * 6, [12, 0, 3, 0, 0, 2]]
    wanted = torch.tensor(sizes)
    assert realised.equal(wanted if not given else (wanted > 0) * 9)


def test_the_cost_is_the_transformers_and_the_encoders(server: Server, batch: Batch) -> None:
    model, size = remote(server), batch.size[batch.image_of]
    words = model.prompt_tokens(batch)
    assert words.tolist() == [20 + 2, 20 + 8, 20 + 2, 20 + 2]
    realised = model.realise(ASKED, size)
    cost = model.cost(realised, size, words)
    spec = Transformer(2, 32, 4, 2, 48, True, 100)
    context = realised.sum(-1) + words
    expected = (
        prefill_flops(spec, context)
        + decode_flops(spec, context, CostConfig().answer_tokens)
        + 1e6 * cost.tokens
    )
    torch.testing.assert_close(cost.flops, expected)
    many = model.cost(realised[:, None].expand(-1, 3, -1), size, words)
    assert many.flops.equal(cost.flops[:, None].expand(-1, 3))
    macs = RemoteModel(model.config, PYRAMID, CostConfig(unit="macs")).cost(realised, size, words)
    torch.testing.assert_close(2 * macs.flops, cost.flops)


def test_what_it_is_used_as_without_a_gate_is_one_picture(server: Server) -> None:
    assert remote(server).reference.tolist() == [False] * 4 + [True, False]


def test_an_instruction_follows_the_question(server: Server, batch: Batch) -> None:
    remote(server, instruction="One word.").answer(batch.rows([2]), ASKED[2:3])
    assert content(server.requests[0])[0] == "what ?\nOne word."


def test_a_key_is_read_from_the_environment(
    server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "secret")
    remote(server, key="A_KEY").answer(batch.rows([2]), ASKED[2:3])
    assert server.headers["Authorization"] == "Bearer secret"
    monkeypatch.delenv("A_KEY")
    with pytest.raises(UserError, match=r"model\.remote\.key=A_KEY is no environment variable that is set"):
        remote(server, key="A_KEY")


def test_a_busy_server_is_asked_again(server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("pyrskip.models.vlm.remote.time.sleep", waits.append)
    server.statuses = [503, 429]
    assert remote(server, retries=2).answer(batch.rows([2]), ASKED[2:3]) == ["0 for what ?"]
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([503, 503], r"gave no answer in 2 tries \(status 503\)"),
        ([400], r"refused a request with status 400: .*busy"),
    ],
)
def test_a_server_that_does_not_answer_is_named(
    statuses: list[int], said: str, server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.remote.time.sleep", lambda _: None)
    server.statuses = statuses
    with pytest.raises(UserError, match=said):
        remote(server).answer(batch.rows([2]), ASKED[2:3])


def test_no_server_is_a_sentence(server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.remote.time.sleep", lambda _: None)
    nobody = RemoteModel(replace(remote(server).config, url="http://127.0.0.1:1/v1"), PYRAMID)
    with pytest.raises(
        UserError, match=r"127\.0\.0\.1:1/v1/chat/completions gave no answer in 2 tries \(ConnectError"
    ):
        nobody.answer(batch.rows([2]), ASKED[2:3])


@pytest.mark.parametrize(
    "raw", [b"<html>", b"[]", b"{}", json.dumps({"choices": [{"message": {"content": None}}]}).encode()]
)
def test_another_form_of_answer_is_refused(raw: bytes, server: Server, batch: Batch) -> None:
    server.raw = raw
    with pytest.raises(UserError, match="answers in another form than OpenAI's chat completions"):
        remote(server).answer(batch.rows([2]), ASKED[2:3])


def test_the_servers_own_count_of_tokens_is_kept_beside_the_costs(server: Server, batch: Batch) -> None:
    server.usage = 50
    model = remote(server)
    model.answer(batch, ASKED)
    assert (model.counted, model.taken) == (200, 22 + 28 + 22 + 22 + 36 + 4 + 0 + 17)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "localhost:8000"}, r"model\.remote\.url='localhost:8000' is no address"),
        ({"model": ""}, r"model\.remote\.model is missing"),
        ({"layers": None}, r"model\.remote\.layers is missing"),
        ({"encoder_flops": None}, r"model\.remote\.encoder_flops is missing"),
        ({"image_tokens": 9}, r"image_tokens=9, token_pixels=8: allowed: one of them"),
        ({"token_pixels": None}, r"image_tokens=None, token_pixels=None: allowed: one of them"),
        ({"parallel": 0}, r"parallel=0"),
        ({"heads": 5}, r"transformer\.heads=5"),
    ],
)
def test_a_config_that_cannot_work_is_refused(given: dict[str, Any], said: str, server: Server) -> None:
    with pytest.raises(UserError, match=said):
        remote(server, **given)
