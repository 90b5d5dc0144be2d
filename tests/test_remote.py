"""A model behind a server as a black box: what is sent, what it costs, and what goes wrong on the way."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pyrskip.cost import Transformer, decode_flops, prefill_flops
from pyrskip.errors import UserError
from pyrskip.models.native import CostConfig
from pyrskip.models.tiers import RefusedError
from pyrskip.models.vlm.client import Reply, Request
from pyrskip.models.vlm.journal import FILES, Journal, by_decision
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.pyramid import Pyramid
from pyrskip.sample import Batch, Question, Sample
from tests.server import Server, content, count, prompt_logprobs, serve

pytest.importorskip("httpx")

PYRAMID = Pyramid(size=64, levels=3, stride=8, grid=(2, 1, 1))
SIZES: dict[str, Any] = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 100,
    "encoder_flops": 1e6,
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


def test_tokens_are_what_the_server_counts(server: Server, batch: Batch) -> None:
    model = remote(server)
    sizes = [[16, 0, 0, 16, 0, 4], [0, 0, 0, 0, 0, 4], [0] * 6, [12, 0, 3, 0, 0, 2]]
    for _ in range(2):
        assert model.realise(ASKED, batch.size[batch.image_of]).equal(torch.tensor(sizes))
    # a text, the glance, a finest tile, both; then what is new: 32 x 24, 8 x 24 and 10 x 6; no size twice
    assert [len(content(probe)[1]) for probe in server.probes].count(1) == 2 + 3
    assert not server.requests


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
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", waits.append)
    server.statuses = [503, 429]
    assert remote(server, retries=2).answer(batch.rows([2]), ASKED[2:3]) == ["0 for what ?"]
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        ([503, 503], r"gave no answer in 2 tries \(status 503: .*busy"),
        ([400, 400], r"refused a request with status 400: .*busy"),
    ],
)
def test_a_question_that_is_not_answered_is_refused_with_the_reason(
    statuses: list[int], said: str, server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)
    model = remote(server, parallel=1)
    model.answer(batch.rows([1]), ASKED[1:2])
    server.statuses = statuses
    with pytest.raises(RefusedError, match=said) as refused:
        model.answer(batch, ASKED)
    assert [type(answer) for answer in refused.value.answers] == [UserError, str, str, str]


@pytest.mark.parametrize(
    ("after", "waits"),
    [("0.25", [0.25, 0.25]), ("soon", [0.5, 1.0]), ("90", [30.0, 30.0]), ("nan", [0.5, 1.0])],
)
def test_a_server_says_how_long_to_wait(
    after: str, waits: list[float], server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", waited.append)
    server.statuses, server.after = [429, 429], after
    remote(server, retries=2).answer(batch.rows([2]), ASKED[2:3])
    assert waited == waits


def test_no_server_is_a_sentence(server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)
    nobody = RemoteModel(replace(remote(server).config, url="http://127.0.0.1:1/v1"), PYRAMID)
    with pytest.raises(
        UserError, match=r"127\.0\.0\.1:1/v1/chat/completions gave no answer in 2 tries \(ConnectError"
    ):
        nobody.answer(batch.rows([2]), ASKED[2:3])


@pytest.mark.parametrize(
    "raw", [b"<html>", b"[]", b"{}", json.dumps({"choices": [{"message": {"content": None}}]}).encode()]
)
def test_another_form_of_answer_costs_its_question(
    raw: bytes, server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)
    server.raw = raw
    with pytest.raises(RefusedError, match="another form than OpenAI's chat completions"):
        remote(server).answer(batch.rows([2]), ASKED[2:3])
    assert len(server.requests) == 2


def test_what_a_server_does_wrong_for_a_while_changes_no_answer(
    server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)
    expected = remote(server).answer(batch, ASKED)
    fates = ["429", "garbage", "ok", "close", "null", "500", "ok", "400"]
    server.fate, server.after = lambda n: fates[n % len(fates)], "0.1"
    assert remote(server, parallel=1, retries=5).answer(batch, ASKED) == expected


def test_answers_may_come_piece_by_piece(server: Server, batch: Batch) -> None:
    expected = remote(server).answer(batch, ASKED)
    server.streams = True
    model = remote(server)
    assert model.answer(batch, ASKED) == expected
    (reply,) = model.client.ask([Request(server.requests[0], kept=(0,))])
    assert isinstance(reply, Reply) and reply.first is not None and 0 < reply.first <= reply.total


def test_costs_are_held_against_the_servers_count_of_every_prompt(server: Server, batch: Batch) -> None:
    model = remote(server)
    model.prompt_tokens(batch)
    model.answer(batch, ASKED)
    assert (model.counted, model.taken, model.unlike) == (94 + 36 + 4 + 17, 94 + 36 + 4 + 17, 0)
    server.count = lambda text, pictures: count(text, pictures) + (len(pictures) == 3)
    model.answer(batch, ASKED)
    assert model.counted == model.taken + 2 and (model.unlike, model.compared) == (2, 8)


def test_pictures_that_do_not_add_up_are_refused_with_the_numbers(server: Server, batch: Batch) -> None:
    server.count = lambda text, pictures: count(text, pictures[:1])
    with pytest.raises(UserError, match="16 x 16 and 32 x 32 have 4 and 16 tokens alone and 4 together"):
        remote(server).realise(ASKED, batch.size[batch.image_of])


def test_a_server_that_counts_nothing_is_refused_without_a_processor(server: Server, batch: Batch) -> None:
    server.count = lambda text, pictures: None
    with pytest.raises(UserError, match=r"does not count prompt tokens .*allowed: model\.remote\.processor"):
        remote(server).realise(ASKED, batch.size[batch.image_of])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    from tests.vlm import save_llava

    return save_llava(tmp_path_factory.mktemp("llava"))


def test_a_processors_folder_says_tokens_and_sizes(server: Server, batch: Batch, folder: Path) -> None:
    model = remote(server, processor=str(folder), **dict.fromkeys(SIZES, None) | {"encoder_flops": 1e6})
    assert model.transformer == Transformer(2, 32, 4, 2, 48, True, 23)
    server.count = lambda text, pictures: None
    assert model.realise(ASKED, batch.size[batch.image_of])[0].tolist() == [9, 0, 0, 9, 0, 9]
    # <s> USER : colour ? ASSISTANT :
    assert model.prompt_tokens(batch)[0] == 7 and not server.requests


def test_a_server_that_counts_other_tokens_than_the_processor_is_refused(
    server: Server, batch: Batch, folder: Path
) -> None:
    model = remote(server, processor=str(folder))
    with pytest.raises(
        UserError, match="processor writes 9, 9 and 18 tokens, and the server counts 4, 16 and 20"
    ):
        model.realise(ASKED, batch.size[batch.image_of])


def test_a_mistyped_folder_is_no_network_error(server: Server) -> None:
    with pytest.raises(UserError, match=r"model\.remote\.processor=no-such is no folder"):
        remote(server, processor="no-such")


def test_fields_of_requests_and_pictures_are_the_users(server: Server, batch: Batch) -> None:
    given: dict[str, Any] = {
        "extra": {"seed": None, "mm_processor_kwargs": {"max_pixels": 784}},
        "picture": {"detail": "low"},
        "tokens_key": "max_completion_tokens",
    }
    remote(server, **given).answer(batch.rows([1]), ASKED[1:2])
    (request,) = server.requests
    assert request["mm_processor_kwargs"] == {"max_pixels": 784} and request["max_completion_tokens"] == 16
    assert not {"seed", "max_tokens"} & request.keys()
    assert request["messages"][0]["content"][0]["image_url"]["detail"] == "low"


def test_a_journal_answers_what_was_answered_before_it_broke_off(
    server: Server, batch: Batch, tmp_path: Path
) -> None:
    first = remote(server)
    first.client.journal = Journal(tmp_path)
    answers = first.answer(batch.rows([0, 1]), ASKED[:2])
    first.client.journal.close()
    (path,) = tmp_path.glob(FILES)
    lines = path.read_text().splitlines()
    last = max(i for i, line in enumerate(lines) if '"kept": [0' in line)
    path.write_text("\n".join([*lines[:last], *lines[last + 1 :], lines[last][:-9]]))
    server.requests.clear()
    again = remote(server, url=server.url + "/")
    again.client.journal = Journal(tmp_path)
    assert again.answer(batch, ASKED) == [*answers, "0 for what ?", "3 for colour ?"]
    # the first's line broke off; the second and the first's sizes are there
    assert sorted(len(content(request)[1]) for request in server.requests) == [0, 3, 3]
    again.client.journal.close()
    assert {kept: of["requests"] for kept, of in by_decision(tmp_path).items()} == {
        (): 1, (0, 2, 5): 1, (0, 3, 5): 1, (5,): 1,
    }  # fmt: skip
    assert by_decision(tmp_path)[5,]["prompt_tokens"] == 32


def test_the_probability_of_an_answer_is_that_of_its_tokens_and_its_end(server: Server, batch: Batch) -> None:
    server.scores = True
    model = remote(server, probability=True)
    loglik = model.loglik(batch, ASKED)
    assert loglik is not None
    for row, told in enumerate(loglik.tolist()):
        model.answer(batch.rows([row]), ASKED[row : row + 1])
        said = [*server.requests[-1]["messages"], {"content": "red"}]
        body = server.requests[-1] | {"messages": said, "continue_final_message": False}
        *_, r, e, d, end, _ = prompt_logprobs(body, 1)
        assert told == pytest.approx(sum(entry["2"]["logprob"] for entry in (r, e, d, end) if entry))
    assert len(set(loglik.tolist())) == 4


def test_a_server_without_probabilities_says_so_before_it_is_asked_questions(
    server: Server, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)
    assert remote(server).loglik(batch, ASKED) is None
    with pytest.raises(UserError, match=r"probability=true needs prompt_logprobs.* 422: .*allowed: false"):
        remote(server, probability=True).answer(batch, ASKED)
    assert not server.requests


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "localhost:8000"}, r"model\.remote\.url='localhost:8000' is no address"),
        ({"model": ""}, r"model\.remote\.model is missing"),
        ({"layers": None}, r"model\.remote\.layers is missing"),
        ({"encoder_flops": None}, r"model\.remote\.encoder_flops is missing"),
        ({"tokens_key": "most"}, r"tokens_key='most' is unknown; allowed: max_completion_tokens, max_tokens"),
        ({"extra": {"max_tokens": 4}}, r"model\.remote\.extra\.max_tokens is set by pyrskip"),
        ({"parallel": 0}, r"parallel=0"),
        ({"heads": 5}, r"transformer\.heads=5"),
    ],
)
def test_a_config_that_cannot_work_is_refused(given: dict[str, Any], said: str, server: Server) -> None:
    with pytest.raises(UserError, match=said):
        remote(server, **given)
