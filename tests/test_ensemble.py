"""Several gates as one: trained one by one, they decide by the mean of what they say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pyrskip.data.reader import ShardDataset
from pyrskip.errors import UserError
from pyrskip.gates import build_gate, load_gate, save_gate
from pyrskip.gates.ensemble import Ensemble
from pyrskip.gates.gate import GateConfig
from pyrskip.models.native import NativeModel
from pyrskip.stages import run_stages
from pyrskip.training import trainer
from tests.configs import tiny
from tests.exports import tiny_gate, with_gate
from tests.test_exported_gates import compare, engines
from tests.test_gates import LAYOUT, gate_of, observation


def members(policy: str = "utility", count: int = 3) -> list[Any]:
    gates = [gate_of(policy=policy) for _ in range(count)]
    for seed, gate in enumerate(gates):
        torch.nn.init.normal_(gate.head.weight, generator=torch.Generator().manual_seed(seed))
    return gates


@pytest.mark.parametrize("policy", ["utility", "bernoulli"])
def test_an_ensemble_says_the_mean_of_what_its_members_say(policy: str, tmp_path: Path) -> None:
    gates, seen = members(policy), observation()
    gates[0].price.fill_(0.2)
    together = Ensemble.of(GateConfig(policy=policy, width=16, members=3), gates)
    wanted = (gates[0](seen) + gates[1](seen) + gates[2](seen)) / 3
    assert torch.allclose(together(seen), wanted, atol=1e-6)
    assert not torch.allclose(gates[0](seen), wanted, atol=1e-2)
    assert together.prices(()) == [pytest.approx(0.2)]
    assert together.flops(seen) == 3 * gates[0].flops(seen)
    save_gate(together, tmp_path)
    assert load_gate(tmp_path)(seen).equal(together(seen))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("gate.members=0",), r"gate.members=0 with gate.policy=utility: allowed: at least 1"),
        (("gate=sequential", "gate.members=2"), "1 for a policy that decides step by step"),
        (
            ("rule=gumbel", "gate.members=2", "reward.target=0.5"),
            "allowed: gate.members=1, or reward.target=null",
        ),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(keys: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        tiny(tmp_path, *keys)


def test_members_are_trained_one_by_one_and_none_twice(
    copied_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = (f"from={copied_run / 'done'}", "name=three", "gate.members=3", "ablations=[]", "stages=[gate]")
    fit, trained = trainer.fit, []

    def spy(*arguments: Any) -> None:
        trained.append(arguments[-1])
        if len(trained) == 3:
            raise KeyboardInterrupt
        fit(*arguments)

    monkeypatch.setattr("pyrskip.stages.gate.fit", spy)
    with pytest.raises(KeyboardInterrupt):
        run_stages(tiny(copied_run, *keys), {})
    run = run_stages(tiny(copied_run, *keys), {}) / "gate/gate/seed-0"
    assert [path.name for path in trained] == ["member-0", "member-1", "member-2", "member-2"]
    gate, alone = load_gate(run), [load_gate(run / f"member-{i}") for i in range(3)]
    assert isinstance(gate, Ensemble)
    for own, other in zip(gate.gates, alone, strict=True):
        assert all(value.equal(other.state_dict()[name]) for name, value in own.state_dict().items())
    heads = [member.mlp[0].weight for member in alone]
    assert not heads[0].equal(heads[1]) and not heads[1].equal(heads[2])


@pytest.mark.parametrize(
    "backends", [("torch",), pytest.param(("torch", "onnx"), marks=pytest.mark.slow)], ids=len
)
def test_an_ensemble_is_exported_as_one_gate(
    backends: tuple[str, ...], exported: tuple[Path, NativeModel, Any], tiny_data: Path, tmp_path: Path
) -> None:
    base, model, _ = exported
    alone = [tiny_gate(model, seed=seed) for seed in range(2)]
    gate = Ensemble.of(replace(alone[0].config, members=2), alone)
    loaded = engines(with_gate(tmp_path, model, gate, base, traced="onnx" in backends), *backends)
    compare(model, gate, loaded, ShardDataset(tiny_data, "test", 64))


def test_one_member_is_a_gate_of_its_own_kind() -> None:
    assert not isinstance(build_gate(GateConfig(), LAYOUT), Ensemble)
