"""Claims about decisions inside a graph: what is traced and run in onnxruntime is what training computes."""

from math import isqrt
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from pyrskip.budget import BudgetRule
from pyrskip.cost import Convention, Transformer, answer_flops
from pyrskip.decision import ActionSet, realise
from pyrskip.export.graphs import to_onnx
from pyrskip.pyramid import Pyramid

PYRAMID = Pyramid(64, 3, 8, (2, 1, 1))
# constants of float64 arithmetic that float32 does not hold
CAUSAL = Transformer(27, 4097, 1, 1, 8191, True, vocab=128_257)
CROSS = Transformer(2, 32, 2, 2, 48, True, vocab=321, cross=True, lean=True)
# full and proportional budgets and rungs are in tests/test_exported_gates.py
BUDGETS = {
    "capped": BudgetRule(cap=9),
    "weighted": BudgetRule(total=33, floor=3, cap=13, weights=(1.0, 0.3, 0.0, 5.0, 2.0, 1e-290)),
}


class Actions(nn.Module):
    """Of every listed action: tokens asked, realised rows and columns, and FLOPs."""

    def __init__(self, budget: BudgetRule) -> None:
        super().__init__()
        self.budget, self.actions = budget, ActionSet.of(PYRAMID, budget)

    def forward(self, cells: Tensor, words: Tensor, encode: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        asked = self.actions.tokens(cells.prod(-1), self.budget)
        pooled = realise(asked, cells[:, None])
        tokens = pooled.prod(-1)
        read = [
            answer_flops(spec, tokens.sum(-1), words[:, None], 3, convention=Convention("causal", "macs"))
            for spec in (CAUSAL, CROSS)
        ]
        return asked, pooled, read[0] + 0.1 * read[1] + ((tokens > 0) * encode[:, None]).sum(-1)


def inputs(rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return {
        "cells": PYRAMID.cells(torch.randint(1, 65, (rows, 2), generator=generator)),
        "words": torch.randint(1, 20, (rows,), generator=generator),
        "encode": 1e6 * torch.rand(rows, PYRAMID.tiles, generator=generator).double(),
    }


@pytest.mark.parametrize("name", BUDGETS)
def test_budgets_realised_tokens_and_flops_are_the_same_in_a_graph(name: str, tmp_path: Path) -> None:
    module, batch = Actions(BUDGETS[name]), Dim("batch")
    varying = {key: {0: batch} for key in inputs(3)}
    program = torch.export.export(module, (), kwargs=inputs(3), dynamic_shapes=varying)
    to_onnx(program, ("asked", "pooled", "flops")).save(tmp_path / "actions.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "actions.onnx")
    for rows in (1, 2, 300):
        wanted = module(**inputs(rows))
        got = session.run(None, {key: value.numpy() for key, value in inputs(rows).items()})
        assert len(np.unique(got[0])) > 2
        np.testing.assert_array_equal(got[0], wanted[0].numpy())
        np.testing.assert_array_equal(got[1], wanted[1].numpy())
        np.testing.assert_allclose(got[2], wanted[2].numpy(), rtol=1e-14)


@given(asked=st.integers(1, 5000), rows=st.integers(1, 64), columns=st.integers(1, 64))
def test_realised_sides_are_those_of_whole_number_arithmetic(asked: int, rows: int, columns: int) -> None:
    tall = min(max(isqrt(asked * rows // columns), 1), rows, asked)
    wide = min(max(isqrt(asked * columns // rows), 1), columns, asked)
    ways = [(tall, min(columns, asked // tall)), (min(rows, asked // wide), wide)]
    wanted = max(ways, key=lambda way: way[0] * way[1])
    assert tuple(realise(torch.tensor(asked), torch.tensor([rows, columns])).tolist()) == wanted
