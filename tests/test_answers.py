"""Claims about the benchmark of answers: it times what runs."""

from dataclasses import fields

import pytest

from benchmarks import answers


def test_every_part_of_an_answer_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WARM", 1)
    monkeypatch.setattr(answers, "ROUNDS", 1)
    monkeypatch.setattr(answers, "TOKENS", 3)
    model = answers.build(small=True)
    full, glance = answers.measure(model, 2)
    assert (full.decision, glance.decision) == ("full", "glance alone")
    assert all(getattr(row, f.name) > 0 for row in (full, glance) for f in fields(row)[2:])
    # what is skipped is not encoded: 336 patches against 16, with the same encoder
    before = model.encoded
    answers.measure(model, 2)
    assert model.encoded - before == 2 * 2 * 2 * (3 + 1)
