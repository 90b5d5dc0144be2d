"""Claims about a gate in front of lmms-eval's models, in the environment of make test-lmms-eval. The harness
ends well whatever happens: its samples are read."""

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pyrskip.errors import UserError
from pyrskip.evaluation.harness import points, read_samples
from pyrskip.inference import GateAlone, load
from tests.models import TEXTS
from tests.server import Server, content, serve

lmms_eval = pytest.importorskip("lmms_eval", reason="make test-lmms-eval has an environment of its own")
pytestmark = pytest.mark.slow

TASK = """\
task: shapes
dataset_path: json
dataset_kwargs: {{data_files: {{test: {documents}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
process_results: !function utils.results
generation_kwargs: {{max_new_tokens: 4, temperature: 0}}
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """\
from PIL import Image


def visual(doc):
    return [Image.open(doc["picture"]).convert("RGB")]


def results(doc, answers):
    return {"right": float(answers[0] == doc["answer"])}
"""
DOCUMENTS = 6


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.exports import alone_export, tiny_served

    directory = tmp_path_factory.mktemp("alone")
    alone_export(directory / "bundle", *tiny_served(directory / "text"))
    return directory / "bundle"


@pytest.fixture
def server() -> Iterator[Server]:
    """It answers by every pixel that it is shown."""

    def reply(text: str, pictures: list[bytes]) -> str:
        pixels = b"".join(Image.open(io.BytesIO(picture)).tobytes() for picture in pictures)
        return hashlib.sha256(text.encode() + pixels).hexdigest()[:1]

    with serve(reply) as running:
        yield running


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory with a task of a few pictures, as lmms-eval has them."""
    rows = []
    for number in range(DOCUMENTS):
        path = tmp_path / f"{number}.png"
        Image.effect_noise((64, 40 + number), 90).convert("RGB").save(path)
        rows.append({"picture": str(path), "question": TEXTS[number % len(TEXTS)], "answer": str(number)})
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/utils.py").write_text(UTILS)
    (tmp_path / "tasks/shapes.yaml").write_text(TASK.format(documents=documents))
    return tmp_path / "tasks"


def evaluated(tasks: Path, name: str, model: str, url: str, **given: Any) -> Path:
    """The samples of a run."""
    out = tasks.parent / name
    given = {
        "model": "tiny",
        "base_url": url,
        "api_key": "none",
        "num_concurrent": 2,
        "max_retries": 1,
    } | given
    words = ["eval", "--model", model, "--model_args", ",".join(f"{k}={v}" for k, v in given.items())]
    words += ["--tasks", "shapes", "--include_path", str(tasks), "--batch_size", "1"]
    words += ["--output_path", str(out), "--log_samples"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tasks.parent / "hub")}
    run = subprocess.run(
        [str(Path(sys.executable).parent / "lmms-eval"), *words],
        env=os.environ | offline | {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    found = list(out.rglob("*_samples_shapes.jsonl"))
    assert len(found) == 1, run.stdout + run.stderr
    return found[0]


def lines(samples: Path) -> dict[int, tuple[Any, Any]]:
    """Of each document its answer and what was counted."""
    read = map(json.loads, samples.read_text().splitlines())
    return {one["doc_id"]: (one["filtered_resps"], one["token_counts"]) for one in read}


def test_a_gate_before_a_model_is_the_gateway_before_it_and_becomes_a_point_of_a_frontier(
    tasks: Path, server: Server, bundle: Path
) -> None:
    from pyrskip.serving.gateway import GatewayConfig, create_app
    from pyrskip.serving.limits import Limits
    from pyrskip.serving.rewriting import Dial
    from tests.upstream import running

    whole = evaluated(tasks, "whole", "openai", server.url)
    assert server.pictures() == [1] * DOCUMENTS
    gated = evaluated(tasks, "gated", "pyrskip", server.url, bundle=bundle, price=0.3)
    gate = load(bundle, "onnx")
    assert isinstance(gate, GateAlone)
    app = create_app(gate, GatewayConfig(server.url, Dial(price=0.3)), Limits())
    with running(app) as address:
        behind = evaluated(tasks, "behind", "openai", f"{address}/v1")
    assert lines(gated) == lines(behind) != lines(whole)
    for counts in (counts for _, counts in lines(gated).values()):
        assert len(counts) == 1 and counts[0]["input_tokens"] > 0
    before, after = read_samples(whole, "right"), read_samples(gated, "right")
    full, point = points(before, [after])
    assert (full.kept, point.documents) == (1.0, DOCUMENTS)
    assert point.kept == sum(after.tokens.values()) / sum(before.tokens.values()) != 1.0


def test_a_run_that_failed_ends_well_and_its_samples_are_refused(
    tasks: Path, server: Server, bundle: Path
) -> None:
    server.fate = lambda n: "500"
    failed = evaluated(tasks, "failed", "pyrskip", server.url, bundle=bundle, retry_backoff_s=0)
    with pytest.raises(UserError, match="the request failed"):
        read_samples(failed, "right")


def test_every_round_of_a_request_is_counted(server: Server, bundle: Path) -> None:
    from lmms_eval.api.instance import Instance

    from pyrskip.serving.lmms_eval import Gated

    picture = Image.effect_noise((64, 40), 90).convert("RGB")

    def turn(question: str) -> list[dict[str, Any]]:
        content = [{"type": "image", "url": picture}, {"type": "text", "text": question}]
        return [{"role": "user", "content": content}]

    def messages(doc: dict[str, Any], **told: Any) -> Any:
        if not told:
            return turn(doc["question"])
        ended = told["round_idx"] == doc["rounds"]
        return (None if ended else turn(f"{doc['question']} {told['previous_output'][-1]}"), ended, [], None)

    model = Gated(str(bundle), price=0.3, model="tiny", base_url=server.url, api_key="none", max_retries=1)
    docs = [{"question": TEXTS[0], "rounds": 1}, {"question": TEXTS[1], "rounds": 3}]
    model.task_dict["shapes"] = {"test": docs}
    requests = [
        Instance(
            "generate_until_multi_round",
            (doc["question"], messages, {"max_new_tokens": 4}, number, "shapes", "test"),
            0,
            {"task": "shapes", "doc_id": number, "repeats": 1},
        )
        for number, doc in enumerate(docs)
    ]
    found = model.generate_until_multi_round(requests)
    assert [len(of.text) for of in found] == [1, 3]
    asked = [server.count(*content(request)) for request in server.requests]
    assert len(asked) == 4
    assert sum(of.token_counts.input_tokens for of in found) == sum(asked)
    assert found[1].token_counts.input_tokens > found[0].token_counts.input_tokens
    assert model.pictures == {"replaced": 4}
    model.generate_until([request_without_text(requests[0], picture)])
    assert [*model.pictures] == [
        "replaced",
        "unchanged (the question is empty; allowed: one with at least a word)",
    ]


def request_without_text(request: Any, picture: Image.Image) -> Any:
    only = [{"role": "user", "content": [{"type": "image", "url": picture}]}]
    return replace(request, arguments=("", lambda doc: only, *request.args[2:]))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"price": -1.0}, "price=-1.0 is out of this gate's range"),
        ({"inner": "idefics2"}, "inner=idefics2 is one of lmms-eval's simple models"),
    ],
)
def test_what_the_gate_does_not_take_is_refused(bundle: Path, given: dict[str, Any], says: str) -> None:
    from pyrskip.serving.lmms_eval import Gated

    with pytest.raises(UserError, match=says):
        Gated(str(bundle), **given)
