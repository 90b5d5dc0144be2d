"""Claims about questions that a server refuses: their images are left out and named, and rollouts go on."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pyrskip.budget import BudgetRule
from pyrskip.data.faults import FaultLog
from pyrskip.data.reader import ShardDataset
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.models.text import MiniLmText
from pyrskip.models.tiers import RefusedError
from pyrskip.models.vision import VisionEncoder
from pyrskip.models.vlm.remote import RemoteModel
from pyrskip.models.vlm.remote_config import RemoteConfig
from pyrskip.models.vlm.served import ServedModel
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.rollout import RolloutModule, roll_out
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch, Question, Sample
from pyrskip.training.trainer import TrainerConfig, build_trainer
from tests.models import BACKBONE
from tests.server import Server, serve
from tests.shards import png, tar, write_data
from tests.vlm import save_text_encoder

pytest.importorskip("httpx")

PYRAMID = Pyramid(size=64, levels=2, stride=8)
SIZES: dict[str, Any] = {
    "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 100,
    "encoder_flops": 1e6,
}  # fmt: skip
SHADES = (0, 50, 100, 150, 200, 250)
TEXTS = ("how red ?", "why ?")


class Refuses:
    """Says the shade of red in a picture, but refuses some shades, or every request."""

    def __init__(self) -> None:
        self.shades: dict[int, int] = {}
        self.everything = 0

    def __call__(self, text: str, pictures: list[bytes]) -> str | int:
        if not pictures:
            return self.everything or "?"
        return self.everything or self.shades.get(shade(pictures), str(shade(pictures)))


def shade(pictures: list[bytes]) -> int:
    pixel = Image.open(io.BytesIO(pictures[0])).convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


@pytest.fixture
def refuses() -> Refuses:
    return Refuses()


@pytest.fixture
def server(refuses: Refuses) -> Iterator[Server]:
    with serve(refuses) as running:
        yield running


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> MiniLmText:
    return MiniLmText(str(save_text_encoder(tmp_path_factory.mktemp("text"), list(TEXTS))))


def box(server: Server, retries: int = 1) -> RemoteModel:
    return RemoteModel(RemoteConfig(server.url, "tiny", retries=retries, **SIZES), PYRAMID)


class Rollouts:
    """Rollouts of six images with two questions each, in chunks of two images."""

    def __init__(
        self, server: Server, text: MiniLmText, directory: Path, allowed: float, retries: int = 1
    ) -> None:
        questions = [{"text": words, "answers": ["50"]} for words in TEXTS]
        content = json.dumps({"questions": questions}).encode()
        members = [
            member
            for shade in SHADES
            for member in ((f"{shade:03}.json", content), (f"{shade:03}.png", png(shade, 64)))
        ]
        self.directory = directory
        data = write_data(directory, tar(*members))
        self.log = FaultLog(directory / "faults", len(SHADES), allowed)
        self.data = ShardDataset(data, "train", PYRAMID.size, self.log)
        self.model = ServedModel(box(server, retries), VisionEncoder(BACKBONE), text)

    def run(self) -> RolloutTable:
        trainer = build_trainer(TrainerConfig(quiet=True), self.directory)
        module = RolloutModule(self.model, ActionSet.by_level(PYRAMID), BudgetRule(), "train")
        roll_out(trainer, module, self.data, 2, 2, self.directory / "rollouts")
        return RolloutTable.load(self.directory / "rollouts")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_an_image_that_is_refused_is_left_out_and_named(
    status: int, refuses: Refuses, server: Server, text: MiniLmText, tmp_path: Path
) -> None:
    # one beside an image that is answered, and both of a chunk
    refuses.shades = {50: status, 200: status, 250: status}
    rollouts = Rollouts(server, text, tmp_path, allowed=0.5)
    table = rollouts.run()
    assert table.image_keys == ("000", "100", "150") and len(table) == 6
    assert table.score.isfinite().all()
    faults = rollouts.log.read()
    assert [fault.key for fault in faults] == ["050", "200", "250"]
    assert {fault.shard for fault in faults} == {"train-000000.tar"}
    assert all(f"refused a request with status {status}" in fault.reason for fault in faults)


def test_what_remains_is_as_if_nothing_had_been_refused(
    refuses: Refuses, server: Server, text: MiniLmText, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "refused").mkdir()
    whole = Rollouts(server, text, tmp_path / "whole", allowed=0.5).run()
    refuses.shades = {0: 400}
    left = Rollouts(server, text, tmp_path / "refused", allowed=0.5).run()
    assert left.keys == whole.keys[2:]
    assert left.score.equal(whole.score[2:]) and left.cost.flops.equal(whole.cost.flops[2:])
    assert whole.score[2:4].sum() > 0


def test_a_server_that_stumbles_gives_the_table_of_one_that_does_not(
    server: Server, text: MiniLmText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)
    for name in ("well", "strict"):
        (tmp_path / name).mkdir()
    whole = Rollouts(server, text, tmp_path / "well", allowed=0.0).run()
    chance = random.Random(0)
    kinds = ["429", "500", "503", "close", "garbage", "null", *["ok"] * 7]
    server.fate, server.after, server.seen = lambda n: chance.choice(kinds), "0.2", 0
    strict = Rollouts(server, text, tmp_path / "strict", allowed=0.0, retries=20).run()
    assert server.seen > 1.3 * len(whole) * 4
    assert strict.keys == whole.keys and strict.score.equal(whole.score)
    assert strict.cost.tokens.equal(whole.cost.tokens) and strict.cost.flops.equal(whole.cost.flops)


@pytest.mark.parametrize("fate", ["500", "close", "garbage", "null"])
def test_a_question_that_is_never_answered_is_left_out_while_others_are(
    fate: str,
    refuses: Refuses,
    server: Server,
    text: MiniLmText,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pyrskip.models.vlm.client.time.sleep", lambda _: None)
    server.doomed = lambda shown: fate if shown and shade(shown) == 100 else "ok"
    rollouts = Rollouts(server, text, tmp_path, allowed=0.5)
    table = rollouts.run()
    assert table.image_keys == ("000", "050", "150", "200", "250")
    (fault,) = rollouts.log.read()
    assert fault.key == "100" and "gave no answer in 2 tries" in fault.reason


def test_more_refusals_than_may_be_broken_end_the_rollouts(
    refuses: Refuses, server: Server, text: MiniLmText, tmp_path: Path
) -> None:
    refuses.shades = {50: 400}
    with pytest.raises(UserError, match=r"more than data.max_bad_fraction=0.1: .*050: .*status 400"):
        Rollouts(server, text, tmp_path, allowed=0.1).run()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_address_ends_the_rollouts_at_once(
    status: int, refuses: Refuses, server: Server, text: MiniLmText, tmp_path: Path
) -> None:
    refuses.everything = status
    rollouts = Rollouts(server, text, tmp_path, allowed=0.99)
    with pytest.raises(UserError, match=rf"chat/completions refused a request with status {status}"):
        rollouts.run()
    assert not rollouts.log.read()
    # no more than the first pass: two images' questions under their distinct decisions; what is sent again
    # where a connection broke is the same request
    assert len({json.dumps(request) for request in server.requests}) <= 2 * 2 * 4


def test_the_other_questions_of_a_call_are_answered(refuses: Refuses, server: Server) -> None:
    refuses.shades = {50: 400}
    samples = [
        Sample(str(s), torch.full((3, 64, 64), s, dtype=torch.uint8), (Question("how red ?", ("50",)),))
        for s in SHADES[:3]
    ]
    batch = Batch.collate(samples, PYRAMID.size)
    server.statuses = [503]  # is asked again
    with pytest.raises(RefusedError, match="status 400") as caught:
        box(server).answer(batch, torch.ones(3, PYRAMID.tiles, dtype=torch.int64))
    first, second, third = caught.value.answers
    assert (first, third) == ("0", "100") and isinstance(second, UserError)
