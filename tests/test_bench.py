"""Claims about `pyrskip bench`: what it times is what runs, beside what that costs."""

import json
from pathlib import Path

import pytest

from pyrskip.cli import main
from pyrskip.evaluation.bench import PHASES, SIZES


def test_a_runs_decisions_are_timed_at_every_batch_size(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    main(["bench", f"run={finished_run}", "seconds=0.1", f"out={out}"])
    rows = json.loads(out.read_text())["rows"]
    assert [row["questions"] for row in rows] == [size for size in SIZES for _ in range(4)]
    for row in rows:
        assert row["total"] > 0 and row["total_p90"] >= row["total"] and row["memory"] is None
        assert (row["gate"] > 0) == (row["decision"] == "gate")
        assert all(row[phase] > 0 for phase in PHASES if phase != "gate")
    of = {row["decision"]: row["flops"] for row in rows[:4]}
    assert (
        of["full"] == 1 and of["glance alone"] < of["level 0 alone"] < 1 and of["gate"] > of["glance alone"]
    )
    shown = capsys.readouterr().out
    assert "milliseconds a question" in shown and "MiB" not in shown


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["device=tpu"], "device=tpu is not here; allowed: cpu"),
        (["seconds=0"], "seconds=0: allowed: above 0"),
        (["seed=7"], "seed=7 was not trained; allowed: 0"),
        (["sed=7"], "sed= is unknown; allowed: run, device, precision, seconds, price, seed, out"),
        (["precision=fp8"], "precision='fp8' is unknown; allowed: 32-true, bf16-mixed"),
    ],
)
def test_what_cannot_be_timed_is_one_sentence(
    finished_run: Path, capsys: pytest.CaptureFixture[str], keys: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        main(["bench", f"run={finished_run}", *keys])
    assert said in capsys.readouterr().err
