"""Signals: the named inputs of gates, alike wherever they come from; and `answer_stats`, how sure the model
is after the glance alone."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrskip.budget import BudgetRule
from pyrskip.config import Config
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.evaluation.inputs import Inputs, decide
from pyrskip.evaluation.methods import METHODS
from pyrskip.gated import Gated, encode_glance
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.models.native import NativeModel
from pyrskip.models.vlm.served import AnswererConfig, ServedModel
from pyrskip.observation import Layout
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import ModelEnvironment, TableEnvironment
from pyrskip.rollouts.rollout import RolloutModule
from pyrskip.rollouts.table import RolloutTable
from pyrskip.sample import Batch
from pyrskip.signals import SIGNALS, Signal, read, shapes_of, signals_of
from pyrskip.stages.gate import methods_of
from pyrskip.training.module import OptimizerConfig
from pyrskip.training.rules import RULES, rule_config
from tests.exports import UNIT
from tests.models import taught_model, tiny_batch, tiny_model
from tests.toys import PYRAMID, batches, toy_table

WHOLE = BudgetRule()


class Brightness(Signal):
    """brightness [B, 3]: the mean of each colour over the glance's own pixels."""

    per, source = "image", "pixels"
    shapes = {"brightness": (3,)}  # noqa: RUF012

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        pixels, mask = source
        return ((pixels * mask[:, None]).sum((2, 3)) / mask.sum((1, 2))[:, None],)


class Words(Signal):
    """words [B, 1]: how many the question has."""

    per, source = "text", "question"
    shapes = {"words": (1,)}  # noqa: RUF012

    def forward(self, *source: Tensor) -> tuple[Tensor, ...]:
        return (source[1].sum(-1, keepdim=True).float(),)


TOYS: dict[str, type[Signal]] = {"brightness": Brightness, "words": Words}
names = pytest.mark.parametrize("name", [*SIGNALS, *TOYS])


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SIGNALS, "_entries", {**SIGNALS, **TOYS})


def roll_out(model: NativeModel, batches: list[Batch]) -> list[RolloutTable]:
    module = RolloutModule(model, ActionSet.by_level(model.pyramid), WHOLE, "val")
    return [part for i, b in enumerate(batches) if (part := module.predict_step(b, i)) is not None]


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[NativeModel, Batch, RolloutTable]]:
    model, batch = tiny_model(), tiny_batch()
    asked = {"what colour is it?": "what colour is it on the left?"}  # a side is to be named
    questions = tuple(replace(q, text=asked.get(q.text, q.text)) for q in batch.questions)
    batch = replace(batch, questions=questions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SIGNALS, "_entries", {**SIGNALS, **TOYS})
        yield model, batch, roll_out(model, [batch])[0]


def of_table(table: RolloutTable, model: NativeModel, name: str) -> dict[str, Tensor]:
    """The signal's tensors for every question of a table."""
    environment = TableEnvironment(table, model.pyramid, WHOLE, 1.0)
    seen = environment.observe(torch.arange(len(table)), torch.zeros(len(table)))
    return {key: seen[key] for key in shapes_of(signals_of(model, [name]))}


def filled(value: Tensor, shape: list[int]) -> Tensor:
    """With zeros behind what is there."""
    whole = value.new_zeros(shape)
    whole[tuple(slice(n) for n in value.shape)] = value
    return whole


def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two signals are the same where they are something: behind a question's words, and outside of
    the glance's cells, anything may stand."""
    for name, value in one.items():
        a, b = value.float(), other[name].float()
        mask = one.get(f"{name}_mask")
        if mask is not None:
            assert mask.any()
            a = a * mask.unsqueeze(-1 if name == "query" else 1)
            b = b * other[f"{name}_mask"].unsqueeze(-1 if name == "query" else 1)
        longest = [max(sizes) for sizes in zip(a.shape, b.shape, strict=True)]
        if not torch.allclose(filled(a, longest), filled(b, longest), atol=1e-5):
            return False
    return True


@names
def test_a_signal_is_the_same_online_and_in_a_table_saved_and_joined_of_parts(
    name: str, world: tuple[NativeModel, Batch, RolloutTable], tmp_path: Path
) -> None:
    model, batch, table = world
    online = ModelEnvironment(model, table.actions, WHOLE, 1.0, [name])
    seen = online.observe(batch, torch.zeros(len(batch)))
    assert seen.signals.keys() == online.layout.signals.keys() == of_table(table, model, name).keys()
    assert alike(dict(seen.signals), of_table(table, model, name))
    for key, shape in online.layout.signals.items():
        assert all(n in (None, m) for n, m in zip(shape, seen[key].shape[1:], strict=True))
        assert seen[key].float().std() > 0

    table.save(tmp_path)
    again = RolloutTable.load(tmp_path)
    assert {per: of.keys() for per, of in again.signals.items()} == {
        per: of.keys() for per, of in table.signals.items()
    }
    for key, value in of_table(again, model, name).items():
        assert value.equal(of_table(table, model, name)[key])

    # the parts' longest questions differ and so do their texts
    parts = roll_out(model, [batch.rows(list(rows)) for rows in (range(3), range(3, 6), range(6, 9))])
    joined = RolloutTable.concatenate(parts)
    assert alike(of_table(joined, model, name), of_table(table, model, name))


@names
def test_a_table_keeps_a_signal_once_for_what_it_is_a_function_of(
    name: str, world: tuple[NativeModel, Batch, RolloutTable]
) -> None:
    _, _, table = world
    rows = {"question": len(table), "text": len(table.texts), "image": len(table.image_keys)}
    assert len(set(rows.values())) == 3
    per = SIGNALS[name].per
    assert len(table.signals[per][name]) == rows[per]
    assert all(name not in of for other, of in table.signals.items() if other != per)


@names
def test_a_signal_of_a_row_does_not_depend_on_its_batch_mates(
    name: str, world: tuple[NativeModel, Batch, RolloutTable]
) -> None:
    model, batch, _ = world
    signals = signals_of(model, [name])
    every = read(signals, model, batch, encode_glance(model, batch))
    for row in range(len(batch)):
        alone = batch.rows([row])
        found = read(signals, model, alone, encode_glance(model, alone))
        assert alike(found, {key: value[row : row + 1] for key, value in every.items()}), row


def test_pixels_of_cached_maps_are_refused_in_one_sentence(
    world: tuple[NativeModel, Batch, RolloutTable],
) -> None:
    model, batch, _ = world
    everything = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    cached = replace(batch, maps=model.encode(batch, everything).maps)
    features = encode_glance(model, cached)
    assert read(signals_of(model, ["glance"]), model, cached, features)["glance"].isfinite().all()
    with pytest.raises(UserError, match=r"reads pixels, .*allowed: data\.cache=null") as caught:
        read(signals_of(model, ["brightness"]), model, cached, features)
    assert "\n" not in str(caught.value)


def test_a_table_whose_signal_has_too_few_rows_is_refused(tmp_path: Path) -> None:
    table = blurred_table()
    short: Any = {
        **table.signals,
        "question": {"answer_stats": table.signals["question"]["answer_stats"][1:]},
    }
    replace(table, signals=short).save(tmp_path)
    with pytest.raises(UserError, match=r"answer_stats has 199 rows, for 200 of questions"):
        RolloutTable.load(tmp_path)


def test_what_a_gate_cannot_read_is_refused_with_what_it_can() -> None:
    with pytest.raises(
        UserError, match=r"signal='luck' is unknown; allowed: answer_stats, .*extending-models\.md"
    ):
        Config(gate=GateConfig(signals=("luck",)))
    for signals in (("answer_stats", "answer_stats"), ("glance",)):
        with pytest.raises(UserError, match=r"gate\.signals=.*each once, .* reads anyway \(query, glance\)"):
            GateConfig(signals=signals)
    with pytest.raises(
        UserError,
        match=r"gate\.signals=\['answer_stats'\] with model\.name=remote, .*first_token.*allowed: .*glance",
    ):
        Config(gate=GateConfig(signals=("answer_stats",)), model=AnswererConfig("remote"))
    shows: Any = SimpleNamespace(sources=ServedModel.sources)
    with pytest.raises(
        UserError, match=r"signal 'answer_stats' is computed from first_token, which this model"
    ):
        signals_of(shows, ["answer_stats"])


# answer_stats


def sure_gate(layout: Layout, *signals: str) -> Gate:
    torch.manual_seed(0)
    gate = build_gate(GateConfig(width=16, signals=signals), layout)
    torch.nn.init.normal_(gate.head.weight)
    return gate.eval()


def blurred_table() -> RolloutTable:
    """The toy's questions under one text: nothing but answer_stats tells the hard ones."""
    table = toy_table()
    sure = torch.tensor([[0.9, 0.05, 0.3], [0.4, 0.3, 1.5]])
    text = {**table.signals["text"], "query": table.signals["text"]["query"][:1].repeat(2, 1, 1)}
    own = {"answer_stats": sure[table.query_of]}
    return replace(table, signals={**table.signals, "text": text, "question": own})


def test_answer_stats_are_of_what_the_model_says_first_after_the_glance_alone() -> None:
    batch = tiny_batch()
    model = taught_model(batch, steps=20).eval()
    keep = torch.arange(model.pyramid.tiles) == model.pyramid.glance
    everything = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    asked = model.pyramid.capacity(batch.size)[batch.image_of] * keep
    features = encode_glance(model, batch)
    visual, _ = model.visual(batch, features, asked)
    answers = model.language.tokenize_answers(["no"] * len(batch))[0]
    logits = model.language.logits(visual, None, model.language.tokenize(batch.texts), answers)[:, 0]
    first = logits.softmax(-1)
    ranked = first.sort(-1, descending=True).values
    signals = signals_of(model, ["answer_stats"])
    found = read(signals, model, batch, features)["answer_stats"]
    assert torch.allclose(found[:, :2], ranked[:, :2], atol=1e-5)
    assert torch.allclose(found[:, 2], torch.distributions.Categorical(first).entropy(), atol=1e-4)
    assert found[:, 0].std() > 1e-3
    # finer tiles that are encoded too change nothing, nor does training's precision
    more = read(signals, model, batch, model.encode(batch, everything))["answer_stats"]
    assert torch.allclose(more, found, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert read(signals, model, batch, features)["answer_stats"].equal(found)


def decided(table: RolloutTable, gate: Gate) -> Tensor:
    return decide(gate, table, PYRAMID, WHOLE, table.mean_full_flops, [0.3])[0]


@cache
def trained_gate(*signals: str) -> Gate:
    """Trained on the blurred table."""
    table = blurred_table()
    environment = TableEnvironment(table, PYRAMID, WHOLE, table.mean_full_flops)
    config = rule_config("supervised")(optimizer=OptimizerConfig(steps=250, lr=3e-3, warmup=10))
    gate = sure_gate(environment.layout, *signals)
    module = RULES["supervised"](config, gate, environment, RewardConfig(0.3), 0)
    module.log_every = 0
    optimizer = module.build_optimizer()
    for step, rows in enumerate(batches(module)):
        optimizer.zero_grad()
        loss = module.training_step(rows, step)
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
    return gate


@pytest.mark.parametrize("signals", [("answer_stats",), ()], ids=str)
def test_answer_stats_tell_a_gate_what_question_and_glance_do_not(signals: tuple[str, ...]) -> None:
    table = blurred_table()
    best = torch.tensor([0, table.actions.full])[table.query_of]
    assert bool((decided(table, trained_gate(*signals)) == best).all()) == bool(signals)


def test_others_questions_bring_their_own_answer_stats() -> None:
    """gate:shuffled_query: a gate that reads nothing but answer_stats must not profit from its own."""
    table = blurred_table()
    gate, tables = trained_gate("answer_stats"), dict.fromkeys(("gate", "val", "test"), table)
    given = Inputs(tables, PYRAMID, WHOLE, {"gate": [gate]}, [0], [0.3], {"gate": 0.0}, {})
    (found,) = METHODS["gate:shuffled_query"].decisions(given, "test")
    wrong = found.action != decided(table, gate)
    assert 0.3 < wrong.float().mean() < 0.7


def test_answer_stats_cost_the_glances_answer_without_encoding_or_decoding_and_the_gate_pays() -> None:
    model, batch = tiny_model(), tiny_batch()
    size = batch.size[batch.image_of]
    model.config = replace(model.config, cost=replace(model.config.cost, answer_tokens=0))
    keep = torch.arange(model.pyramid.tiles) == model.pyramid.glance
    realised = model.realise(model.pyramid.capacity(size) * keep, size)
    encoding = model.encode_flops(size)[:, model.pyramid.glance]
    whole = model.cost(realised, size, model.prompt_tokens(batch)).flops
    own = SIGNALS["answer_stats"](model).flops(model, batch.texts, size)
    assert torch.allclose(own, whole - encoding) and (own > 0).all()

    layout = Layout(
        shapes_of(signals_of(model)), model.pyramid.tiles, ActionSet.by_level(model.pyramid), WHOLE
    )
    with_it, without = (
        Gated(model, sure_gate(layout, *signals), UNIT).gate_flops(batch)
        for signals in (("answer_stats",), ())
    )
    # three inputs more of the trunk's first layer
    assert with_it == pytest.approx(without + float(own.mean()) + 3 * 16 * 2)
    behind_a_turn = Gated(model, sure_gate(layout, "answer_stats"), UNIT).gate_flops(batch, {"first_token"})
    assert behind_a_turn == pytest.approx(without + 3 * 16 * 2)


def test_the_gate_without_its_signals_is_an_ablation() -> None:
    config = Config(gate=GateConfig(signals=("answer_stats",)), ablations=("predictor", "joint"))
    gates = methods_of(config)
    assert list(gates) == ["gate", "gate:query_only", "gate:joint"]
    assert gates["gate"].signals and not (gates["gate:query_only"].signals or gates["gate:joint"].signals)
    allowed = "each once, glance, predictor, region, relevance$"
    with pytest.raises(UserError, match=rf"ablations=\['predictor', 'joint'\]: allowed: {allowed}"):
        replace(config, gate=GateConfig())
