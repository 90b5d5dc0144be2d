"""Claims about a search: what it asks for, and how it goes on."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pyrskip.errors import UserError
from pyrskip.sweeps.search import Outcome, search
from pyrskip.sweeps.space import distribution


def space(*overrides: str) -> dict[str, Any]:
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {o.get_key_element(): distribution(o) for o in parsed}


SPACE = ("gate=joint,predictor", "gate.width=range(4,12)", "rule.optimizer.lr=tag(log,interval(0.001,0.1))")


def outcomes(batch: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [Outcome("done", (values["gate.width"] / 12, values["rule.optimizer.lr"])) for values in batch]


def test_a_search_stays_in_its_ranges_and_comes_to_its_number_of_jobs(tmp_path: Path) -> None:
    asked: list[Mapping[str, Any]] = []
    search(tmp_path, space(*SPACE), 10, 4, 0, lambda batch: [asked.extend(batch), *outcomes(batch)][1:])
    assert len(asked) == 10
    assert {values["gate"] for values in asked} == {"joint", "predictor"}
    assert {values["gate.width"] for values in asked} <= set(range(4, 12))
    assert all(0.001 <= values["rule.optimizer.lr"] <= 0.1 for values in asked)


def test_a_search_that_was_killed_goes_on_with_the_jobs_it_had_asked_for(tmp_path: Path) -> None:
    batches: list[Sequence[Mapping[str, Any]]] = []

    def killed(batch: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        batches.append(batch)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return outcomes(batch)

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, space(*SPACE), 7, 2, 0, killed)
    search(tmp_path, space(*SPACE), 7, 2, 0, killed)
    assert batches[2] == batches[1]
    assert sum(map(len, batches)) - len(batches[1]) == 7
    distinct = {json.dumps(dict(values)) for batch in batches for values in batch}
    assert len(distinct) == 7
    search(tmp_path, space(*SPACE), 7, 2, 0, lambda batch: pytest.fail("nothing is left to ask"))


def test_a_search_goes_on_past_jobs_that_fail_or_are_given_up(tmp_path: Path) -> None:
    states = iter(("failed", "pruned", "running", "done", "done"))

    def launch(batch: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        return [
            Outcome(state, (0.5, 0.5) if state == "done" else None)
            for _, state in zip(batch, states, strict=False)
        ]

    search(tmp_path, space(*SPACE), 5, 1, 0, launch)
    assert next(states, None) is None


def test_another_search_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    search(tmp_path, space(*SPACE), 1, 1, 0, outcomes)
    with pytest.raises(UserError, match="in other ranges"):
        search(tmp_path, space("gate.width=range(4,20)"), 2, 1, 0, outcomes)
