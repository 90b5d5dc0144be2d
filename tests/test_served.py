"""A gate for a model that somebody else trained: rollouts, offline training and the frontier, from end to
end."""

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import pyrskip
from pyrskip.cli import main
from pyrskip.config import Config
from pyrskip.data.reader import ShardDataset
from pyrskip.data.shards import DataConfig, prepare
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.gated import Gated
from pyrskip.gates import load_gate
from pyrskip.inference import GateAlone
from pyrskip.models.tiers import GatedModel
from pyrskip.models.tiles import crops
from pyrskip.models.vlm.hf import HfConfig, HfVlm
from pyrskip.models.vlm.remote import RemoteModel, _png
from pyrskip.models.vlm.served import build_served
from pyrskip.pyramid import Pyramid
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.rollouts.scoring import score_served
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch, Sample
from pyrskip.stages import run_stages
from tests.configs import tiny
from tests.server import Server, content, count, serve

pytest.importorskip("transformers")
pytest.importorskip("httpx")

from tests.families import TINY
from tests.vlm import save_llava, save_text_encoder

PYRAMID = Pyramid(size=64, levels=3, stride=8)
QUARTERS = Pyramid(size=64, levels=2, stride=8, grid=(2,))
"""For a model that gives every picture the same number of tokens."""
IMAGES = 8
SIZES = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp": 48, "vocab": 100, "encoder_flops": 1e6}

SIZED = tuple(f"model.remote.{name}={value}" for name, value in SIZES.items())


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Sample]]:
    """The images that a run with data.limit=IMAGES sees, by split."""
    directory = tmp_path_factory.mktemp("data")
    prepare(DataConfig(limit=IMAGES), directory)
    splits = {split: ShardDataset(directory, split, PYRAMID.size) for split in ("gate", "val", "test")}
    return {
        split: [s for s in (data[i] for i in range(len(data))) if s is not None]
        for split, data in splits.items()
    }


@pytest.fixture(scope="module")
def encoder(samples: dict[str, list[Sample]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [q.text for split in samples.values() for s in split for q in s.questions]
    return save_text_encoder(tmp_path_factory.mktemp("text"), texts)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


class Looker:
    """Knows every image by any of its pictures. Colours it sees in one picture, everything else in two, or in
    the finest."""

    def __init__(self, samples: dict[str, list[Sample]]) -> None:
        self.image: dict[str, str] = {}
        self.answers: dict[tuple[str, str], tuple[str, str]] = {}
        self.finest: set[str] = set()
        every = torch.ones(1, PYRAMID.tiles, dtype=torch.bool)
        for sample in (s for split in samples.values() for s in split):
            batch = Batch.collate([sample], PYRAMID.size)
            for _, tile, crop in crops(PYRAMID, batch, every):
                picture = _png(crop)
                self.image[picture] = sample.key
                if tile == 0:
                    self.finest.add(picture)
            self.answers |= {(sample.key, q.text): (q.type, q.answers[0]) for q in sample.questions}

    def __call__(self, text: str, pictures: list[bytes]) -> str:
        urls = ["data:image/png;base64," + base64.b64encode(p).decode() for p in pictures]
        if not urls:
            return "?"
        kind, answer = self.answers[self.image[urls[0]], text.splitlines()[0]]
        return answer if kind == "color" or len(urls) > 1 or urls[0] in self.finest else "?"


@pytest.fixture(scope="module")
def server(samples: dict[str, list[Sample]]) -> Iterator[Server]:
    with serve(Looker(samples)) as running:
        yield running


def config(root: Path, encoder: Path, *overrides: str) -> Config:
    return tiny(
        root,
        f"data.limit={IMAGES}",
        "text=minilm",
        f"text.path={encoder}",
        "ablations=[predictor]",
        *overrides,
    )


def remote(root: Path, encoder: Path, server: Server, *overrides: str) -> Config:
    keys = (f"model.remote.url={server.url}", "model.remote.model=looker", *SIZED)
    return config(root, encoder, "model=remote", *keys, *overrides)


def hf(folder: Path) -> tuple[str, ...]:
    return (
        *("model=hf", f"model.hf.path={folder}", "actions=tiles"),
        *("pyramid.levels=2", "pyramid.grid=[2]"),
    )


def rows_of(root: Path, method: str, split: str = "test") -> list[dict[str, Any]]:
    rows = json.loads((root / "frontier.json").read_text())
    return [row for row in rows if row["method"] == method and row["split"] == split]


LEARNING = (
    "name=asked",
    "rule.optimizer.steps=200",
    "rule.batch=64",
    "gate.width=32",
    "rule.optimizer.lr=0.01",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def rolled(runs: Path, encoder: Path, server: Server) -> list[int]:
    """How many pictures each request of the rollouts on the server held."""
    run_stages(remote(runs, encoder, server, *LEARNING, "stages=[data,rollouts]"), {})
    return server.pictures()


@pytest.fixture(scope="module")
def asked(runs: Path, encoder: Path, server: Server, rolled: list[int]) -> Path:
    """The directory of a finished run on the server."""
    return run_stages(remote(runs, encoder, server, *LEARNING), {})


@pytest.mark.slow
def test_a_gate_learns_what_a_server_needs_to_see(asked: Path) -> None:
    table = RolloutTable.load(asked / "rollouts" / "test")
    colour = torch.tensor([kind == "color" for kind in table.types])
    glance, finer = table.column("glance"), table.column("1")
    assert table.score[colour].eq(1)[:, :-1].all() and table.score[:, finer].eq(1).all()
    assert table.score[~colour, glance].eq(0).all() and table.score[:, -1].eq(0).all()
    assert table.probability is None and table.similarity is None
    best = max(rows_of(asked, "gate"), key=lambda row: row["accuracy"] - row["relative_flops"])
    full, fixed = rows_of(asked, "full")[0], rows_of(asked, "fixed:1")[0]
    assert (
        best["accuracy"] > 0.95
        and best["relative_flops"] < fixed["relative_flops"] < 0.5 * full["relative_flops"]
    )
    assert not (asked / "flex").exists() and not rows_of(asked, "cosine")
    told = json.loads((asked / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0
    assert told["tiles_encoded"] == told["tiles_asked_for"]


@pytest.mark.slow
def test_the_gate_of_a_served_model_pays_for_its_own_look_at_the_glance(
    asked: Path, encoder: Path, server: Server, samples: dict[str, list[Sample]]
) -> None:
    given = remote(asked.parent, encoder, server)
    model = build_served(given.model, given.pyramid, given.vision, given.text, given.cost)
    batch = Batch.collate(samples["test"], PYRAMID.size)
    look, words = model.vision.flops(16, 16), model.text.tokenize(batch.texts)[1].sum(-1)
    for method, looks in (("gate", 1), ("gate-query_only", 0)):
        gated = Gated(model, load_gate(asked / "gate" / method / "seed-0"), 1.0)
        seen = gated.observe(batch, gated.glance(batch))
        own = gated.gate.flops(seen) + float(model.text.flops(words).mean())
        assert gated.gate_flops(batch) == pytest.approx(own + looks * look)


@pytest.mark.slow
def test_every_distinct_decision_is_asked_of_a_server_once(
    rolled: list[int], samples: dict[str, list[Sample]]
) -> None:
    questions = sum(len(s.questions) for split in samples.values() for s in split)
    # glance, 1, 0, both; level 0 alone
    assert sorted(number for number in rolled if number) == sorted([1, 2, 2, 3, 1] * questions)
    # no picture: the same of questions on several images
    texts = {q.text for split in samples.values() for s in split for q in s.questions}
    assert len(texts) <= rolled.count(0) <= questions


@pytest.mark.slow
def test_the_gate_of_a_served_model_is_exported_alone(
    asked: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = len(server.requests)
    main(["export", f"run={asked}", f"out={tmp_path / 'out'}"])
    assert "0 differ" in capsys.readouterr().err
    assert not any(server.pictures()[requests:]), "what is asked about pictures is how many tokens they have"
    gate = pyrskip.load(tmp_path / "out", "onnx")
    assert isinstance(gate, GateAlone)
    data = ShardDataset(asked / "data", "test", PYRAMID.size)
    sample = data[0]
    assert sample is not None
    sent = gate.decide(Image.fromarray(sample.image.permute(1, 2, 0).numpy()), sample.questions[0].text)
    assert sent.pictures[0].size == (16, 16) and sent.selection.tokens == sum(sent.selection.tiles)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "gate = pyrskip.load" in card and "remote looker" in card and "{" not in card.split("```json")[0]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert [p["backend"] for p in metrics["parity"]] == ["onnx", "torch"]
    with pytest.raises(SystemExit):
        main(["export", f"run={asked}", f"out={tmp_path / 'native'}", "native=true"])
    assert "a gate alone has no compiled code" in capsys.readouterr().err


# an image's questions and decisions are one call
HALF_WAY = (
    "stages=[data,rollouts]",
    "loader.rollout_images=1",
    "loader.chunk_images=2",
    "model.remote.parallel=16",
)


@pytest.mark.slow
def test_a_server_that_fails_half_way_costs_a_chunk(
    asked: Path,
    encoder: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer, calls = RemoteModel.answer, 0

    def fails(self: RemoteModel, batch: Batch, decided: Tensor) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise UserError("gone")
        return answer(self, batch, decided)

    given = remote(tmp_path, encoder, server, *HALF_WAY)
    monkeypatch.setattr(RemoteModel, "answer", fails)
    with pytest.raises(UserError, match="gone"):
        run_stages(given, {})
    kept = sorted((tmp_path / "easy_vqa" / "rollouts" / "gate").glob("chunk-*/table.json"))
    assert [path.parent.name for path in kept] == ["chunk-00000000-00000002", "chunk-00000002-00000004"]
    monkeypatch.setattr(RemoteModel, "answer", answer)
    monkeypatch.setattr(server, "count", lambda text, pictures: count(text, pictures) + (len(pictures) > 2))
    run_stages(replace(given, trainer=replace(given.trainer, quiet=False)), {})
    said = capsys.readouterr().err
    assert re.search(
        r"the server counted \d+ prompt tokens, costs are computed from \d+: \d+ of \d+ requests", said
    )
    whole, parts = (RolloutTable.load(root / "rollouts" / "gate") for root in (asked, tmp_path / "easy_vqa"))
    assert (
        whole.keys == parts.keys
        and whole.score.equal(parts.score)
        and whole.signals["image"]["glance"].equal(parts.signals["image"]["glance"])
    )
    assert not list((tmp_path / "easy_vqa" / "rollouts" / "gate").glob("chunk-*"))


@pytest.mark.slow
def test_a_run_that_is_killed_repeats_the_requests_that_were_on_their_way(
    encoder: Path, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    looker, parallel = Looker(samples), 3

    def slowly(text: str, pictures: list[bytes]) -> str:
        time.sleep(0.02)
        return looker(text, pictures)

    def shown(server: Server) -> list[str]:
        return [json.dumps(r, sort_keys=True) for r in server.requests if content(r)[1]]

    keys = ["data.limit=2", "stages=[data,rollouts]", f"model.remote.parallel={parallel}"]
    with serve(looker) as server:
        run_stages(remote(tmp_path / "whole", encoder, server, *keys), {})
        wanted = shown(server)
    with serve(slowly) as server:
        keys += [f"model.remote.url={server.url}", "model.remote.model=looker", "model=remote", *SIZED]
        keys += ["text=minilm", f"text.path={encoder}", "ablations=[predictor]"]
        start = (
            "from pathlib import Path; from pyrskip.stages import run_stages; "
            "from tests.configs import tiny; "
            f"run_stages(tiny(Path({str(tmp_path / 'killed')!r}), *{keys!r}), {{}})"
        )
        command = [sys.executable, "-c", start]
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(server.requests) < len(wanted) // 2:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        time.sleep(0.2)  # what is on its way arrives
        assert len(server.requests) < len(wanted) * 3 // 4
        subprocess.run(command, check=True, capture_output=True)
        asked = shown(server)
    assert set(asked) == set(wanted) and len(asked) - len(wanted) <= parallel
    for split in ("gate", "val", "test"):
        whole, again = (tmp_path / name / "easy_vqa" / "rollouts" / split for name in ("whole", "killed"))
        table, resumed = RolloutTable.load(whole), RolloutTable.load(again)
        assert table.keys == resumed.keys and table.score.equal(resumed.score)
        assert table.cost.tokens.equal(resumed.cost.tokens)
        told = json.loads((again / "server.json").read_text())
        # a prompt without pictures may be that of several questions
        assert 0 < told.pop("question_only")["requests"] <= len(table)
        assert {name: of["requests"] for name, of in told.items()} == dict.fromkeys(
            ("glance", "0", "1", "0,1", "reference"), len(table)
        )
        assert all(of["seconds"] >= 0.02 for of in told.values())
    assert not list(tmp_path.rglob("requests-*"))


@pytest.mark.slow
def test_another_model_on_the_server_is_not_what_was_rolled_out(
    asked: Path, encoder: Path, server: Server, tmp_path: Path
) -> None:
    shutil.copytree(asked, tmp_path / "asked")
    moved = ("model.remote.url=http://elsewhere/v1", "model.remote.parallel=2")
    run_stages(remote(tmp_path, encoder, server, *LEARNING, *moved), {})
    with pytest.raises(
        UserError, match=r"rollouts was made with model\.remote\.model=looker, this config has .*=another"
    ):
        run_stages(remote(tmp_path, encoder, server, *LEARNING, "model.remote.model=another"), {})


@pytest.mark.slow
def test_a_gate_is_trained_for_a_transformers_model(llava: Path, encoder: Path, tmp_path: Path) -> None:
    given = config(tmp_path, encoder, *hf(llava), "data.limit=3", "model.hf.max_answer=4")
    root = run_stages(given, {})
    table = RolloutTable.load(root / "rollouts" / "val")
    model = build_served(given.model, given.pyramid, given.vision, given.text, given.cost)
    data = ShardDataset(root / "data", "val", PYRAMID.size)
    batch = Batch.collate([s for s in (data[i] for i in range(len(data))) if s is not None], PYRAMID.size)
    assert batch.keys == table.keys and table.probability is not None
    capacity = QUARTERS.capacity(batch.size)[batch.image_of]
    for action in range(len(table.actions)):
        decided = capacity * table.actions.selection[action]
        loglik = model.loglik(batch, decided)
        assert loglik is not None
        torch.testing.assert_close(table.probability[:, action], loglik.exp(), rtol=1e-4, atol=1e-6)
        right = [
            a.lower() in q.answers for a, q in zip(model.answer(batch, decided), batch.questions, strict=True)
        ]
        assert table.score[:, action].tolist() == [float(r) for r in right]
    assert table.probability.std(1).min() > 0
    told = json.loads((root / "summary.json").read_text())["real_inference"]
    assert told["scores_that_differ"] == told["decisions_that_differ"] == 0
    assert told["tiles_encoded"] == told["tiles_asked_for"]
    assert rows_of(root, "gate") and rows_of(root, "reference")[0]["relative_flops"] < 0.5
    # the reference is the model as its users run it, on the whole image
    assert isinstance(model.box, HfVlm)
    whole = torch.ones(len(batch), 1, dtype=torch.int64)
    loglik = model.box.as_run.loglik(batch, whole)
    at = table.column("reference")
    torch.testing.assert_close(table.probability[:, at], loglik.exp(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_pruners_of_a_transformers_model_are_on_the_frontier(
    llava: Path, encoder: Path, tmp_path: Path
) -> None:
    """As peers, and as the run's own: the same answers at the same cost, under another origin."""
    given = (*hf(llava), "data.limit=3", "model.hf.max_answer=4", "ablations=[]")
    peers = ("peers.pruners=[average,visionzip,fastv]", "peers.ratios=[0.5]")
    root = run_stages(config(tmp_path, encoder, *given, *peers, "name=held"), {})
    full = rows_of(root, "full")[0]
    for name in ("average", "visionzip", "fastv"):
        (row,) = rows_of(root, f"pruned:{name}")
        assert row["flops"] < full["flops"] and row["kv_bytes"] < full["kv_bytes"]
        assert row["tokens"] == full["tokens"] and rows_of(root, f"gate+pruned:{name}")
    own = ("stages=[rollouts]", f"from={root}", "pruner.ratio=0.5")
    run_stages(config(tmp_path, encoder, *given, *own, "name=own", "pruner.name=fastv"), {})
    tables = [
        RolloutTable.load(tmp_path / place / "test") for place in ("own/rollouts", "held/peers/fastv-0.5")
    ]
    assert tables[0].cost.flops.equal(tables[1].cost.flops) and tables[0].score.equal(tables[1].score)
    assert tables[0].probability is not None and tables[1].probability is not None
    torch.testing.assert_close(tables[0].probability, tables[1].probability, rtol=1e-4, atol=1e-6)
    assert tables[0].origin == tables[1].origin and tables[0].origin["pruner"] == "fastv 0.5"
    with pytest.raises(
        UserError, match="rollouts was made with pruner.name=fastv, this config has .*=average"
    ):
        run_stages(config(tmp_path, encoder, *given, *own, "name=own", "pruner.name=average"), {})


@pytest.mark.slow
def test_a_pruner_that_a_family_does_not_allow_is_refused_before_data_is_converted(
    encoder: Path, tmp_path: Path
) -> None:
    model, own = TINY["gemma3"]()
    model.save_pretrained(tmp_path / "gemma")
    own.save_pretrained(tmp_path / "gemma")
    for more in (("pruner.name=fastv", "pruner.ratio=0.5"), ("peers.pruners=[average,fastv]",)):
        with pytest.raises(UserError, match="pruner.name=fastv with model family 'gemma3' prunes between"):
            run_stages(config(tmp_path, encoder, *hf(tmp_path / "gemma"), *more), {})
    assert [path.name for path in tmp_path.iterdir()] == ["gemma"]


def test_a_served_model_is_a_gated_model(
    llava: Path, encoder: Path, samples: dict[str, list[Sample]], tmp_path: Path
) -> None:
    given = config(tmp_path, encoder, "model=hf", f"model.hf.path={llava}")
    model = build_served(given.model, given.pyramid, given.vision, given.text, given.cost)
    gated: GatedModel = model
    batch = Batch.collate(samples["val"][:2], PYRAMID.size)
    glance = torch.arange(PYRAMID.tiles) == PYRAMID.glance
    gated.encode(batch, glance.expand(len(batch), -1))
    assert model.vision.encoded == 2 and model.box.encoded == 0
    assert not any(p.requires_grad for p in model.parameters()) and not model.training


def test_decisions_that_give_the_same_are_answered_once(
    llava: Path, samples: dict[str, list[Sample]], encoder: Path, tmp_path: Path
) -> None:
    given = config(tmp_path, encoder, "model=hf", f"model.hf.path={llava}", "model.hf.at_once=7")
    model = build_served(given.model, given.pyramid, given.vision, given.text, given.cost)
    batch = Batch.collate(samples["val"][:2], PYRAMID.size)
    asked_rows: list[int] = []
    answer = model.answer

    def spy(rows: Batch, decided: Tensor) -> list[str]:
        asked_rows.append(len(rows))
        return answer(rows, decided)

    model.answer = spy  # type: ignore[method-assign]
    # the second asks for fewer tokens of the same tiles, the fourth for nothing
    decisions = torch.tensor([[64, 0, 4], [9, 0, 1], [0, 16, 4], [0, 0, 0]]).expand(len(batch), -1, -1)
    score, chance, refused = score_served(model, batch, decisions)
    assert chance is not None and not refused and score.shape == chance.shape == (len(batch), 4)
    assert sum(asked_rows) == 3 * len(batch) and max(asked_rows) == 7
    assert chance[:, 0].equal(chance[:, 1]) and not chance[:, 0].equal(chance[:, 2])
    alone = model.loglik(batch, decisions[:, 2])
    assert alone is not None
    torch.testing.assert_close(chance[:, 2], alone.exp(), rtol=1e-4, atol=1e-6)


def test_other_weights_in_the_same_folder_are_another_model(
    llava: Path, tmp_path: Path, encoder: Path
) -> None:
    folder = tmp_path / "llava"
    shutil.copytree(llava, folder)
    answerer = config(tmp_path, encoder, "model=hf", f"model.hf.path={folder}").model
    before = answerer.own.identity()
    assert before == config(tmp_path, encoder, "model=hf", f"model.hf.path={llava}").model.own.identity()
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert answerer.own.identity() != before
    whole, size = torch.ones(1, 3, dtype=torch.int64), torch.tensor([[64, 64]])
    assert HfVlm.from_pretrained(HfConfig(str(folder)), PYRAMID).realise(whole, size).tolist() == [[9, 9, 9]]


def test_rollouts_encode_each_tile_once(
    llava: Path, samples: dict[str, list[Sample]], encoder: Path, tmp_path: Path
) -> None:
    """18 decisions, one of them the model as its users run it, on three questions about five tiles."""
    given = config(tmp_path, encoder, *hf(llava), "model.hf.at_once=7", "model.hf.max_answer=3")
    model = build_served(given.model, given.pyramid, given.vision, given.text, given.cost)
    assert isinstance(model.box, HfVlm)
    actions = ActionSet.of(model.pyramid, given.budget, given.actions)
    module = RolloutModule(model, actions, given.budget, "val")
    batch = Batch.collate(samples["val"][:1], QUARTERS.size).rows([0, 1, 2])
    table = module.predict_step(batch, 0)
    assert table is not None and table.score.shape == (3, 18) and table.probability is not None
    assert model.box.encoded == 5 and model.box.as_run.encoded == 1
    whole = torch.ones(3, 1, dtype=torch.int64)
    at, own = table.column("reference"), model.box.as_run
    torch.testing.assert_close(table.probability[:, at], own.loglik(batch, whole).exp(), rtol=1e-4, atol=1e-6)
    size = batch.size[batch.image_of]
    cost = own.cost(own.realise(whole, size), size, model.prompt_tokens(batch))
    assert table.cost.flops[:, at].equal(cost.flops) and table.cost.tokens[:, at].tolist() == [9, 9, 9]


def test_a_pyramid_whose_levels_cost_the_same_is_refused_before_data_is_converted(
    llava: Path, encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="level 1 costs this model no less than level 0"):
        run_stages(config(tmp_path, encoder, "model=hf", f"model.hf.path={llava}"), {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=hf",), r"model\.hf\.path is missing"),
        (
            ("model=hf", "model.hf.path=x", "text=embedding"),
            r"text\.name=embedding .*model\.name=hf .*allowed: text=minilm",
        ),
        (
            ("model=hf", "model.hf.path=x", "vision.weights=none"),
            r"vision\.weights=none, frozen=True: .*allowed: pretrained weights",
        ),
        (("model=hf", "model.hf.path=x", "vision.frozen=false"), r"frozen=False"),
        (
            ("model=hf", "model.hf.path=x", "budget=proportional"),
            r"model\.name=hf gives a tile its own number .*budget=full",
        ),
        (
            ("model=hf", "model.hf.path=x", "rule=gumbel", "rule.online=true"),
            r"rule\.online=true .*model\.name=hf",
        ),
        (
            ("model=remote", "model.remote.model=x", *SIZED, "rule.target=probability"),
            r"rule\.target=probability is not given by model\.name=remote",
        ),
        (("model=remote",), r"model\.remote\.model is missing"),
    ],
)
def test_what_a_served_model_cannot_do_is_refused_before_any_work(
    overrides: tuple[str, ...], said: str, encoder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        run_stages(config(tmp_path, encoder, *overrides), {})
    assert not list(tmp_path.iterdir())
