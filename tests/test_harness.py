"""Claims about samples of evaluation harnesses: read back as a frontier, as lmms-eval writes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyrskip.cli import main
from pyrskip.errors import UserError
from pyrskip.evaluation.harness import FAILED, points, read_samples
from pyrskip.gates.gate import Gate
from pyrskip.inference.bundle import read_bundle
from pyrskip.inference.outside import Outside
from pyrskip.models.vlm.served import ServedModel

ANSWERED = {"resps": ["red"], "filtered_resps": "red", "target": "red", "input": "what?"}


def sample(number: int, score: float, *tokens: int | None, **more: Any) -> dict[str, Any]:
    """A line of lmms-eval 0.7's samples. tokens: of each request's prompt; None where nothing counted."""
    counts = [None if n is None else {"input_tokens": n, "output_tokens": 3} for n in tokens]
    return (
        {"doc_id": number, "doc_hash": "74234e98afe7", "relaxed_overall": score}
        | ANSWERED
        | {"token_counts": counts, **more}
    )


def written(path: Path, *samples: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in samples))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Without a gate; and behind one, in another order, where the second document took two turns."""
    whole = written(tmp_path / "full.jsonl", sample(0, 1.0, 1000), sample(1, 1.0, 1000), sample(2, 0.0, 2000))
    gated = written(
        tmp_path / "gated.jsonl", sample(2, 1.0, 500), sample(0, 1.0, 100), sample(1, 0.0, 100, 300)
    )
    return whole, gated


def test_samples_become_points_of_a_frontier(files: tuple[Path, Path]) -> None:
    whole, gated = (read_samples(path, "relaxed_overall") for path in files)
    full, behind = points(whole, [gated])
    assert (full.score, full.kept, full.retention, full.documents) == (2 / 3, 1.0, 1.0, 3)
    assert (behind.score, behind.retention) == (2 / 3, 1.0)
    assert behind.kept == 1000 / 4000, "every turn is counted"
    assert behind.kept_ci95[0] <= behind.kept <= behind.kept_ci95[1] and full.kept_ci95 == (1.0, 1.0)
    paid = points(whole, [gated], own=20.0)[1]
    assert paid.kept == (1000 + 3 * 20) / 4000, "the gate costs every document"


def test_the_command_counts_the_gates_own_cost_as_tokens(
    files: tuple[Path, Path],
    alone: tuple[Path, ServedModel, Gate],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "points.json"
    main(["harness", *map(str, files), "metric=relaxed_overall", f"bundle={alone[0]}", f"out={out}"])
    spec = read_bundle(alone[0])
    assert isinstance(spec.answerer, Outside)
    own = spec.costs.gate / spec.answerer.context[1]
    assert json.loads(out.read_text())[1]["kept"] == pytest.approx((1000 + 3 * own) / 4000)
    assert "gated.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (sample(0, 1.0, 10, filtered_resps=f"{FAILED} after 5 retries] refused"), "the request failed"),
        (sample(0, 1.0, None), r"says no token_counts\.input_tokens"),
        (sample(0, 1.0, 10, relaxed_overall={"score": 1}), r"metric=relaxed_overall is .*allowed: none"),
        (sample(0, 1.0, 10, target="blue"), "is of other documents than .*: 2 are in one of both"),
        ({"doc_id": 0}, r"is no sample of lmms-eval .*--log_samples"),
    ],
)
def test_samples_that_say_nothing_are_refused(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    whole = read_samples(written(tmp_path / "full.jsonl", sample(0, 1.0, 10)), "relaxed_overall")
    with pytest.raises(UserError, match=says):
        points(whole, [read_samples(written(tmp_path / "gated.jsonl", changed), "relaxed_overall")])


def test_a_document_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 2: document 0 is there twice"):
        read_samples(
            written(tmp_path / "twice.jsonl", sample(0, 1.0, 10), sample(0, 0.0, 10)), "relaxed_overall"
        )
