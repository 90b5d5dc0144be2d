"""Gates that are told how sure the model is after the glance alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyrskip.evaluation.answering import gate_flops

from pyrskip.budget import BudgetRule
from pyrskip.config import Config
from pyrskip.errors import UserError
from pyrskip.evaluation.inputs import Inputs, decide
from pyrskip.evaluation.methods import METHODS
from pyrskip.export.export import _check_gate
from pyrskip.gates import build_gate
from pyrskip.gates.gate import Gate, GateConfig
from pyrskip.models.vlm.served import AnswererConfig
from pyrskip.observation import Layout
from pyrskip.reward import RewardConfig
from pyrskip.rollouts.environments import TableEnvironment
from pyrskip.rollouts.table import RolloutTable
from pyrskip.stages.gate import methods_of
from pyrskip.training.gate import RuleConfig
from pyrskip.training.module import OptimizerConfig
from pyrskip.training.rules import RULES
from tests.exports import tiny_gate
from tests.models import taught_model, tiny_batch, tiny_model
from tests.toys import PYRAMID, toy_table, train_by_lightning

POLICIES = ("utility", "bernoulli", "categorical", "autoregressive", "sequential")


def sure_gate(layout: Layout, policy: str = "utility", confidence: bool = True) -> Gate:
    torch.manual_seed(0)
    gate = build_gate(GateConfig(name="joint", policy=policy, width=16, confidence=confidence), layout)
    torch.nn.init.normal_(gate.head.weight)
    return gate.eval()


def blurred_table() -> RolloutTable:
    """The toy's questions under one text: nothing but confidence tells the hard ones."""
    table = toy_table()
    sure = torch.tensor([[0.9, 0.05, 0.3], [0.4, 0.3, 1.5]])
    return replace(table, query=table.query[:1].expand(2, -1, -1).clone(), confidence=sure[table.query_of])


def test_it_is_what_the_model_says_first_after_the_glance_alone() -> None:
    batch = tiny_batch()
    model = taught_model(batch, steps=20).eval()
    keep = torch.arange(model.pyramid.tiles) == model.pyramid.glance
    everything = torch.ones(len(batch), model.pyramid.tiles, dtype=torch.bool)
    asked = model.pyramid.capacity(batch.size)[batch.image_of] * keep
    features = model.encode(batch, keep.expand(len(batch), -1))
    visual, _ = model.visual(batch, features, asked)
    answers = model.language.tokenize_answers(["no"] * len(batch))[0]
    first = model.language.logits(visual, None, model.language.tokenize(batch.texts), answers)[:, 0].softmax(
        -1
    )
    ranked = first.sort(-1, descending=True).values
    told = model.confidence(batch, features)
    assert torch.allclose(told[:, :2], ranked[:, :2], atol=1e-5)
    assert torch.allclose(told[:, 2], torch.distributions.Categorical(first).entropy(), atol=1e-4)
    assert told[:, 0].std() > 1e-3
    # finer tiles that are encoded too tell nothing, and training's precision changes nothing
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(model.confidence(batch, model.encode(batch, everything)), told, atol=2e-2)
        assert model.confidence(batch, features).equal(told)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_reads_it_and_none_does_without(policy: str) -> None:
    table = blurred_table()
    environment = TableEnvironment(table, PYRAMID, BudgetRule(), table.mean_full_flops)
    seen = environment.observe(torch.arange(4), torch.full((4,), 0.1))
    assert seen.confidence is not None
    other = replace(seen, confidence=seen.confidence.flip(0))
    gate, plain = (
        sure_gate(environment.layout, policy),
        sure_gate(environment.layout, policy, confidence=False),
    )
    assert not torch.allclose(gate(seen), gate(other))
    assert plain(seen).equal(plain(other))
    with pytest.raises(UserError, match=r"gate\.confidence=true asks the model how sure it is"):
        gate(replace(seen, confidence=None))


def decided(table: RolloutTable, gate: Gate) -> torch.Tensor:
    return decide(gate, table, PYRAMID, BudgetRule(), table.mean_full_flops, [0.3])[0]


def trained_gate(table: RolloutTable, confidence: bool) -> Gate:
    environment = TableEnvironment(table, PYRAMID, BudgetRule(), table.mean_full_flops)
    gate = sure_gate(environment.layout, confidence=confidence)
    config = RuleConfig("supervised", optimizer=OptimizerConfig(steps=250, lr=3e-3, warmup=10))
    train_by_lightning(RULES["supervised"](config, gate, environment, RewardConfig(0.3), 0))
    return gate


@pytest.mark.parametrize("confidence", [True, False])
def test_it_tells_a_gate_what_question_and_glance_do_not(confidence: bool) -> None:
    table = blurred_table()
    best = torch.tensor([0, table.actions.full])[table.query_of]
    assert bool((decided(table, trained_gate(table, confidence)) == best).all()) == confidence


def test_its_cost_is_the_glances_answer_without_encoding_or_decoding() -> None:
    model, batch = tiny_model(), tiny_batch()
    size = batch.size[batch.image_of]
    keep = torch.arange(model.pyramid.tiles) == model.pyramid.glance
    realised = model.realise(model.pyramid.capacity(size) * keep, size)
    model.config = replace(model.config, cost=replace(model.config.cost, answer_tokens=0))
    encoding = model.encode_flops(size)[:, model.pyramid.glance]
    whole = model.cost(realised, size, model.prompt_tokens(batch)).flops
    own = model.confidence_flops(batch.texts, size)
    assert torch.allclose(own, whole - encoding) and (own > 0).all()


def test_a_gate_pays_for_it() -> None:
    model, batch = tiny_model(), tiny_batch()
    layout = tiny_gate(model).layout
    asked = float(model.confidence_flops(batch.texts, batch.size[batch.image_of]).mean())
    with_it, without = (gate_flops(model, sure_gate(layout, confidence=c), batch, 1.0) for c in (True, False))
    assert with_it == pytest.approx(
        without + asked + 3 * 16 * 2
    )  # three inputs more of the trunk's first layer


def test_others_questions_bring_their_own_confidence() -> None:
    """gate:shuffled_query: a gate that reads nothing but confidence must not profit from the sample's own."""
    table = blurred_table()
    gate, tables = trained_gate(table, True), dict.fromkeys(("gate", "val", "test"), table)
    given = Inputs(tables, PYRAMID, BudgetRule(), {"gate": [gate]}, [0], [0.3], {"gate": 0.0}, {})
    (found,) = METHODS["gate:shuffled_query"].decisions(given, "test")
    wrong = found.action != decided(table, gate)
    assert 0.3 < wrong.float().mean() < 0.7


def test_what_cannot_have_it_is_refused_in_one_sentence() -> None:
    for name in ("predictor", "glance"):
        with pytest.raises(
            UserError, match=rf"gate\.confidence=true with gate\.name={name}, .*allowed: gate\.name=joint"
        ):
            Config(gate=GateConfig(name, confidence=True))
    with pytest.raises(UserError, match=r"gate\.confidence=true with model\.name=remote"):
        Config(gate=GateConfig(confidence=True), model=AnswererConfig("remote"))
    model = tiny_model()
    layout = tiny_gate(model).layout
    with pytest.raises(
        UserError, match=r"gate\.confidence=true asks the model .* which an export does not hold yet"
    ):
        _check_gate(sure_gate(layout))


def test_the_joint_gate_without_it_is_an_ablation() -> None:
    config = Config(gate=GateConfig(confidence=True), ablations=("predictor", "joint"))
    gates = methods_of(config)
    assert list(gates) == ["gate", "gate:query_only", "gate:joint"]
    assert gates["gate"].confidence and not (
        gates["gate:query_only"].confidence or gates["gate:joint"].confidence
    )
    with pytest.raises(
        UserError, match=r"ablations=\['predictor', 'joint'\]: allowed: each once, glance, predictor$"
    ):
        replace(config, gate=GateConfig())


def test_a_table_keeps_it_and_one_made_before_has_none(tmp_path: Path) -> None:
    table = blurred_table()
    table.save(tmp_path / "with")
    replace(table, confidence=None).save(tmp_path / "without")
    read, old = RolloutTable.load(tmp_path / "with"), RolloutTable.load(tmp_path / "without")
    assert (
        read.confidence is not None
        and table.confidence is not None
        and read.confidence.equal(table.confidence)
    )
    assert old.confidence is None and RolloutTable.concatenate([old, old]).confidence is None
    replace(table, confidence=table.confidence[:, :2]).save(tmp_path / "short")
    with pytest.raises(UserError, match="confidence is"):
        RolloutTable.load(tmp_path / "short")
