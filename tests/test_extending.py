"""Claims about doors: one file outside the package adds a thing of any kind, and with no other file changed
it trains and is on the frontier."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from hydra.core.config_store import ConfigStore
from PIL import Image

import pyrskip
from pyrskip import registry
from pyrskip.cli import main
from pyrskip.data.convert import FORMATS
from pyrskip.evaluation.methods import METHODS
from pyrskip.gates.gate import GATES
from pyrskip.policies import POLICIES
from pyrskip.pruners import PRUNERS
from pyrskip.registry import Registry
from pyrskip.signals import SIGNALS
from pyrskip.training.estimators import BASELINES
from pyrskip.training.rules import RULES, RuleConfig
from tests.configs import REPOSITORY, TWO_STEPS
from tests.own_data import picture
from tests.test_cli import refused

SMALL = [*TWO_STEPS, "ablations=[]", "evaluation.timing_seconds=0", "evaluation.images=1"]
TOYS = Path(__file__).parent / "toys_outside"
REGISTRIES: tuple[Registry[Any], ...] = (
    *(GATES, POLICIES, RULES, BASELINES),
    *(SIGNALS, PRUNERS, FORMATS, METHODS),
)


@dataclass
class Outside:
    """A working directory of somebody's, with a toy in it and nothing else; `fresh` is another process to
    come: it knows no plug-in."""

    folder: Path
    lender: Path
    fresh: Callable[[], None]

    def put(self, toy: str) -> None:
        shutil.copy(TOYS / f"{toy}.py", self.folder)

    def train(self, name: str, *overrides: str) -> Path:
        main(["train", "experiment=easy_vqa", f"name={name}", *SMALL, *overrides])
        return self.folder / "runs" / name

    def borrow(self, name: str, *overrides: str, stages: str = "[gate,frontier]") -> Path:
        return self.train(name, f"from={self.lender}", f"stages={stages}", *overrides)


@pytest.fixture
def outside(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outside]:
    folder = tmp_path / "outside"
    folder.mkdir()
    monkeypatch.chdir(folder)
    known = [(r, dict(r._entries), dict(r._places)) for r in REGISTRIES]
    modules, path, store = set(sys.modules), list(sys.path), ConfigStore.instance()
    groups = deepcopy(store.repo)

    def fresh() -> None:
        for kind, entries, places in known:
            kind._entries, kind._places = dict(entries), dict(places)
        for name in set(sys.modules) - modules:
            if name.startswith("toy_"):
                del sys.modules[name]
        sys.path[:], store.repo = path, deepcopy(groups)
        registry._ENTRY_POINTS = registry._EntryPoints()

    yield Outside(folder, finished_run, fresh)
    fresh()


def gate_of(run: Path, method: str = "gate") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"gate/{method}/seed-0/gate.json").read_text())
    return found


def methods_of(run: Path) -> set[str]:
    return {row["method"] for row in json.loads((run / "frontier.json").read_text())}


# what is given beside plugins=[<toy>]; the pages say the same
GATE = ("gate=toy_gate",)
POLICY = ("gate.policy=toy_policy", "rule=reinforce")
RULE = ("rule=toy_rule", "rule.smoothing=0.2")
BASELINE = ("rule=reinforce", "rule.baseline=toy_baseline")
SIGNAL = ("gate.signals=[toy_signal]",)
PRUNER = ("pruner=toy_pruner", "pruner.ratio=0.25")
FORMAT = ("data=toy_format", "data.files.path=my_data.txt", "data.files.images=pictures")
ANEW = "[rollouts,gate,frontier]"


@pytest.mark.slow
def test_a_gate_from_an_installed_package_trains_beside_the_runs_own(outside: Outside) -> None:
    outside.put("toy_gate")
    (outside.folder / "toy_gate-1.0.dist-info").mkdir()
    (outside.folder / "toy_gate-1.0.dist-info/METADATA").write_text("Name: toy_gate\nVersion: 1.0\n")
    points = "[pyrskip]\nmine = toy_gate\n"
    (outside.folder / "toy_gate-1.0.dist-info/entry_points.txt").write_text(points)
    outside.fresh()
    sys.path.insert(0, str(outside.folder))  # as a site-packages is
    run = outside.borrow("own", "ablations=[toy_gate]")
    assert gate_of(run, "ablation-toy_gate")["gate"]["name"] == "toy_gate"
    assert {"gate", "ablation:toy_gate"} <= methods_of(run)


@pytest.mark.parametrize(
    ("toy", "given", "key", "value"),
    [
        ("toy_gate", GATE, "name", "toy_gate"),
        ("toy_policy", POLICY, "policy", "toy_policy"),
        ("toy_rule", RULE, "policy", "categorical"),
        ("toy_baseline", BASELINE, "policy", "bernoulli"),
    ],
)
def test_one_file_adds_what_trains_and_decides(
    outside: Outside, toy: str, given: tuple[str, ...], key: str, value: str
) -> None:
    outside.put(toy)
    run = outside.borrow("own", f"plugins=[{toy}]", *given)
    assert gate_of(run)["gate"][key] == value and "gate" in methods_of(run)
    config = json.loads((run / "config.json").read_text())
    assert config["plugins"] == [toy]
    if toy == "toy_rule":
        assert (
            config["rule"].keys() == {"smoothing", *RuleConfig.__dataclass_fields__}
            and config["rule"]["smoothing"] == 0.2
        )


def test_one_file_adds_a_signal_that_tables_and_gates_carry(
    outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    outside.put("toy_signal")
    given = ("plugins=[toy_signal]", *SIGNAL)
    with pytest.raises(SystemExit):
        outside.train("borrows", f"from={outside.lender}", *given)
    said = capsys.readouterr().err
    assert "was made without the signals toy_signal, which gates read; allowed: have this run do it" in said
    run = outside.borrow("own", *given, stages=ANEW)
    table = safetensors.torch.load_file(run / "rollouts/test/table.safetensors")
    colour = table["image.toy_signal"]
    assert colour.shape == (len(table["size"]), 3) and colour.min() >= 0 and colour.max() <= 1
    assert colour.std(0).min() > 0
    assert gate_of(run)["signals"]["toy_signal"] == [3] and "gate" in methods_of(run)


def test_one_file_adds_a_pruner_that_rollouts_and_costs_see(outside: Outside) -> None:
    outside.put("toy_pruner")
    run = outside.borrow("own", "plugins=[toy_pruner]", *PRUNER, stages=ANEW)
    assert json.loads((run / "rollouts/test/table.json").read_text())["origin"]["pruner"] == "toy_pruner 0.25"
    own, whole = (
        safetensors.torch.load_file(root / "rollouts/test/table.safetensors")
        for root in (run, outside.lender)
    )
    assert (own["flops"][:, :-1] < whole["flops"][:, :-1]).all()
    assert not own["probability"].equal(whole["probability"])
    # the model as a server runs it is pruned as well
    real = json.loads((run / "summary.json").read_text())["real_inference"]
    assert real["scores_that_differ"] == real["decisions_that_differ"] == 0
    assert {"full", "gate"} <= methods_of(run)


def test_one_file_adds_a_format_of_data(outside: Outside) -> None:
    outside.put("toy_format")
    (outside.folder / "pictures").mkdir()
    lines = []
    for number in range(60):
        (outside.folder / f"pictures/{number}.png").write_bytes(picture(number))
        lines.append(f"{number}.png\twhat number is it?\t{number % 3}\n")
    (outside.folder / "my_data.txt").write_text("".join(lines))
    run = outside.train("own", "plugins=[toy_format]", *FORMAT, "data.files.workers=0")
    assert json.loads((run / "data/index.json").read_text())["source"] == "toy_format"
    assert json.loads((run / "data/conversion.json").read_text())["rows"] == 60
    # the files are part of what the data is
    made = json.loads((run / "data/stage.json").read_text())["fingerprint"]
    assert made["data.files.path"] == "my_data.txt"
    assert {"full", "gate"} <= methods_of(run)


def test_one_file_adds_a_method_that_eval_and_report_find_by_the_runs_own_plugins(outside: Outside) -> None:
    outside.put("toy_method")
    run = outside.borrow("own", "plugins=[toy_method]")
    assert {"full", "toy_method"} <= methods_of(run)
    (run / "frontier.json").unlink()
    outside.fresh()
    main(["eval", f"run={run}", "evaluation.prices=[0.1]", "trainer.quiet=true"])
    assert "toy_method" in methods_of(run) and "toy_method" in METHODS
    outside.fresh()
    (outside.folder / "toy_method.py").unlink()
    main(["report", str(run), "out=report.html"])  # of somebody who does not have the plug-in
    assert "toy_method" in (outside.folder / "report.html").read_text()


def test_a_sweep_varies_what_a_plugin_adds(outside: Outside) -> None:
    outside.put("toy_gate")
    main(
        [
            *("train", "-m", "experiment=easy_vqa", "name=sweep", *SMALL),
            *(f"from={outside.lender}", "stages=[gate]", "plugins=[toy_gate]", "gate=toy_gate,predictor"),
        ]
    )
    runs = sorted(p.parent for p in (outside.folder / "runs/sweep").glob("*/config.json"))
    assert [gate_of(run)["gate"]["name"] for run in runs] == ["predictor", "toy_gate"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("toy", "given", "stages"),
    [
        ("toy_gate", GATE, "[gate,frontier]"),
        ("toy_policy", POLICY, "[gate,frontier]"),
        ("toy_rule", RULE, "[gate,frontier]"),
        ("toy_baseline", BASELINE, "[gate,frontier]"),
        ("toy_signal", SIGNAL, ANEW),
    ],
)
def test_what_one_file_adds_is_exported_and_served_without_it(
    outside: Outside, toy: str, given: tuple[str, ...], stages: str
) -> None:
    pytest.importorskip("onnxscript")
    outside.put(toy)
    run = outside.borrow("own", f"plugins=[{toy}]", *given, stages=stages)
    outside.fresh()
    main(["export", f"run={run}", "out=exported"])  # refused where it decides or answers otherwise
    outside.fresh()
    (outside.folder / f"{toy}.py").unlink()  # graphs hold what it does
    answer = pyrskip.load("exported", "onnx").answer(Image.new("RGB", (64, 64)), "what is it?")
    assert isinstance(answer.text, str) and answer.selection


# what the pages say


def said_by_the_pages() -> str:
    return "\n".join(
        (REPOSITORY / f"docs/{page}.md").read_text() for page in ("extending", "extending-models")
    )


def test_the_pages_show_the_toys_and_what_each_adds() -> None:
    pages = said_by_the_pages()
    toys = {path.name: path.read_text() for path in TOYS.glob("*.py")}
    # that of a family of models needs the transformers library, and is run where there is one
    families = (REPOSITORY / "tests/test_families.py").read_text()
    toys["toy_family.py"] = families.split('TOY = """\n')[1].split('"""')[0]
    blocks = re.findall(r"```python\n(.*?)```\n\n`(\S+) \| (\d+) (\++)`", pages, re.DOTALL)
    assert {name: text for text, name, *_ in blocks} == toys
    assert len(toys) == len(REGISTRIES) + 1
    for text, _, lines, added in blocks:
        assert int(lines) == len(added) == len(text.splitlines())


def test_the_pages_say_how_to_run_each_toy() -> None:
    pages = said_by_the_pages()
    for given in (GATE, POLICY, RULE, BASELINE, SIGNAL, PRUNER, FORMAT):
        assert f"`{' '.join(given)}`" in pages
    assert f"`stages={ANEW}`" in pages


# what is refused


def test_a_name_that_two_plugins_register_is_refused_with_both_places(
    outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    outside.put("toy_gate")
    shutil.copy(TOYS / "toy_gate.py", outside.folder / "toy_twin.py")
    said = refused(capsys, "train", "plugins=[toy_gate,toy_twin]", "gate=toy_gate")
    line = (TOYS / "toy_gate.py").read_text().splitlines().index('@GATES.register("toy_gate")') + 1
    assert f"gate.name='toy_gate' is registered twice: in toy_gate, line {line} and in toy_twin" in said
    assert not (outside.folder / "runs").exists()


def test_a_plugin_that_raises_at_import_is_named_before_any_work(
    outside: Outside, capsys: pytest.CaptureFixture[str]
) -> None:
    (outside.folder / "toy_broken.py").write_text("raise RuntimeError('no licence')\n")
    said = refused(capsys, "train", "plugins=[toy_broken]")
    assert "plug-in module toy_broken cannot be imported: RuntimeError: no licence" in said
    assert "toy_absent" in refused(capsys, "train", "plugins=[toy_absent]")
    assert not (outside.folder / "runs").exists()


@pytest.mark.parametrize(
    ("overrides", "names", "page"),
    [
        (("gate=psychic",), "glance, joint, predictor, region", "extending"),
        (("gate.name=psychic",), "glance, joint, predictor, region", "extending"),
        (("gate.policy=psychic",), "autoregressive, bernoulli", "extending"),
        (("rule=psychic",), "actor_critic, awares, cares", "extending"),
        (("rule.name=psychic",), "actor_critic, awares, cares", "extending"),
        (("rule=reinforce", "rule.baseline=psychic"), "group, group_deviation, leave_one_out", "extending"),
        (("gate.signals=[psychic]",), "answer_stats, glance, query", "extending-models"),
        (("pruner=psychic",), "average, cdpruner, divprune", "extending-models"),
        (("pruner.name=psychic",), "average, cdpruner, divprune", "extending-models"),
        (("data=psychic",), "easy_vqa, llava, parquet, scenes, shards, tsv", "extending-models"),
        (("data.source=psychic",), "easy_vqa, llava, parquet, scenes, shards, tsv", "extending-models"),
    ],
    ids=str,
)
def test_an_unknown_name_is_told_what_is_registered_and_where_to_read_on(
    overrides: tuple[str, ...], names: str, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "train", *overrides)
    assert "psychic" in said and names in said and f"(docs/{page}.md says" in said


def test_an_unknown_method_is_told_what_the_run_has_and_where_to_read_on(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"out={tmp_path / 'out.png'}"
    for command in (("plot", "frontier"), ("equal",)):
        said = refused(capsys, *command, str(finished_run), "method=psychic", *[out][: command[0] == "plot"])
        assert "psychic" in said and "gate, " in said and "docs/extending.md" in said
