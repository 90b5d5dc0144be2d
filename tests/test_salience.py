"""Salience: what pruners read of the encoder's attention, where it has any."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from pyrskip.cost import measured_flops
from pyrskip.errors import UserError
from pyrskip.evaluation.runs import load_runs
from pyrskip.models.native import CostConfig, NativeModel
from pyrskip.models.vision import VisionConfig
from pyrskip.pruners import PRUNERS, Kept, Prunable
from pyrskip.sample import Batch
from pyrskip.stages import run_stages
from tests.configs import tiny
from tests.models import every_tile, mixed_decisions, tiny_batch, tiny_model

READS = [name for name, pruner in PRUNERS.items() if "salience" in pruner.needs]


@pytest.fixture(scope="module")
def transformer() -> NativeModel:
    vision = VisionConfig("test_vit", 1, kwargs={"dynamic_img_size": True})
    return tiny_model(vision=vision, levels=2, layers=3)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return tiny_batch((2, 1, 1))


def seen_by(model: NativeModel, batch: Batch, asked: torch.Tensor) -> Prunable:
    """What a pruner is shown of a decision whose glance is encoded before the rest."""
    pruner = PRUNERS["visionzip"](PRUNERS["visionzip"].config_class("visionzip", 0.5))
    seen: list[Prunable] = []

    def prune(given: Prunable) -> Kept:
        seen.append(given)
        return type(pruner).prune(pruner, given)

    with patch.object(pruner, "prune", prune), patch.object(model, "pruner", pruner):
        glance = torch.arange(model.pyramid.tiles) == model.pyramid.glance
        features = model.encode(batch, glance.expand(len(batch), -1))
        model.visual(batch, model.look(batch, features, asked), asked)
    return seen[0]


@torch.no_grad()
def test_salience_is_the_attention_that_a_tokens_cells_receive(
    transformer: NativeModel, batch: Batch
) -> None:
    asked = every_tile(transformer, batch)
    features = transformer.encode(batch, asked > 0)
    seen = seen_by(transformer, batch, asked)
    # the first image fills the canvas: level 0, then the glance, both whole
    own = torch.cat([of[0].flatten() for of in features.received])
    view = next(row for row in range(len(seen.real)) if int(seen.real[row].sum()) == len(own))
    assert torch.allclose(seen.beside["salience"][0][view, : len(own)], own, atol=1e-6)
    assert own.min() > 0 and own.std() > 0


@torch.no_grad()
def test_pooled_tokens_have_the_mean_of_their_cells(transformer: NativeModel, batch: Batch) -> None:
    alone = batch.rows([0])
    whole = every_tile(transformer, alone)
    quarter = whole * torch.tensor([[1, 0]]) // 4
    found = seen_by(transformer, alone, quarter).beside["salience"][0][0]
    map_ = transformer.encode(alone, whole > 0).received[0]
    wanted = torch.nn.functional.avg_pool2d(map_, 2).flatten()
    assert torch.allclose(found[: len(wanted)], wanted, atol=1e-6)


@pytest.mark.parametrize("name", READS)
def test_what_is_counted_of_a_transformer_is_measured(
    transformer: NativeModel, batch: Batch, name: str
) -> None:
    alone, asked = batch.rows([3]), every_tile(transformer, batch)[[3]]
    transformer.pruner = PRUNERS[name](PRUNERS[name].config_class(name, 0.5))
    with patch.object(transformer.language, "decode", wraps=transformer.language.decode) as decode:
        flops = measured_flops(partial(transformer.answer, alone, asked))
    transformer.config = replace(transformer.config, cost=CostConfig(answer_tokens=decode.call_count))
    size = alone.size[alone.image_of]
    counted = transformer.cost(transformer.realise(asked, size), size, transformer.prompt_tokens(alone))
    transformer.pruner = None
    assert flops == float(counted.flops)


@pytest.mark.parametrize("name", READS)
def test_an_answer_depends_on_no_batch_mate(transformer: NativeModel, batch: Batch, name: str) -> None:
    asked = mixed_decisions(transformer, batch, 1)
    transformer.pruner = PRUNERS[name](PRUNERS[name].config_class(name, 0.5))
    together = transformer.loglik(batch, asked)
    for row in range(len(batch)):
        alone = transformer.loglik(batch.rows([row]), asked[[row]])
        assert torch.allclose(alone[0], together[row], atol=1e-4)
    transformer.pruner = None


def test_cached_maps_have_no_attention_and_pruners_that_read_it_say_so(
    transformer: NativeModel, batch: Batch
) -> None:
    asked = every_tile(transformer, batch)
    cached = replace(transformer.encode(batch, asked > 0), received=())
    transformer.pruner = PRUNERS["visionzip"](PRUNERS["visionzip"].config_class("visionzip", 0.5))
    with pytest.raises(UserError, match="pruner.name=visionzip reads the encoder's attention"):
        transformer.visual(batch, cached, asked)
    transformer.pruner = PRUNERS["average"](PRUNERS["average"].config_class("average", 0.5))
    transformer.visual(batch, cached, asked)
    transformer.pruner = None


@pytest.mark.slow
def test_a_run_with_a_transformer_is_held_against_pruners_that_read_its_attention(tmp_path: Path) -> None:
    vision = ("vision.backbone=test_vit", "vision.out_index=1", "vision.weights=none", "vision.frozen=false")
    own = (*vision, "+vision.kwargs.dynamic_img_size=true", "language.layers=2", "ablations=[]")
    root = run_stages(tiny(tmp_path, *own, f"peers.pruners=[{','.join(READS)}]", "peers.ratios=[0.5]"), {})
    rows = [row for row in load_runs(root)[0].rows if row.split == "test"]
    assert {f"pruned:{name}" for name in READS} <= {row.method for row in rows}
    times = [row.total_ms for row in rows if row.method.startswith("pruned:")]
    assert all(time is not None and time > 0 for time in times)
