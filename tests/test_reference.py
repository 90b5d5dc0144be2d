"""Claims about the reference of configurations: every key is in it, with its default, its range and a
meaning, and docs/configs.md is what is printed."""

from typing import Any

import pytest

from pyrskip.cli import main
from pyrskip.config import Config, to_plain
from pyrskip.reference import Key, groups, keys_of, markdown
from tests.configs import REPOSITORY
from tests.test_cli import refused

# before any test registers more
KEYS = {key.name: key for group in groups() for key in keys_of(group)}
PAGE = markdown()


def flat(value: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a plain config."""
    if isinstance(value, dict) and value:
        return [name for key, inner in value.items() for name in flat(inner, f"{prefix}{key}.")]
    return [prefix.removesuffix(".")]


def test_every_key_of_a_run_is_in_the_reference() -> None:
    named = {key.replace("borrow", "from") for key in flat(to_plain(Config()))}
    assert named <= KEYS.keys()


def test_every_key_has_a_range_and_a_meaning() -> None:
    assert not [key for key in KEYS.values() if not key.allowed or " " not in key.meaning]


@pytest.mark.parametrize(
    "key",
    [
        Key("language.max_answer", "16", "", ""),
        Key("flex.dropout", "0.0", "at least 0 and below 1", ""),
        Key("gate.policy", "auto", "", "a registered policy"),
        Key("budget.cap", "null", "at least 1, or null", "least and most tokens of a kept tile"),
        Key("trainer.devices", "1", "at least 1", "ranks on each machine"),
        Key("flex.optimizer.lr", "0.002", "", ""),
        Key("data.scenes.size", "512", "multiples of 64 from 256 to 2048", "side of the square images"),
        Key("rule.samples", "4", "samples, baseline: at least 2", "decisions of a question and step"),
        Key("pruner.alpha", "0.5", "0 to 1", ""),
        Key("stages", "[data, cache, flex, pruner, rollouts, peers, gate, frontier]", "", ""),
    ],
    ids=lambda key: key.name,
)
def test_a_key_is_told_as_conf_and_its_dataclass_have_it(key: Key) -> None:
    found = KEYS[key.name]
    assert found.default == key.default
    assert key.allowed in found.allowed
    assert key.meaning in found.meaning


def test_a_group_of_one_name_holds_what_the_others_have_not() -> None:
    assert [key.name for key in keys_of("rule.cares")] == ["rule.enough", "rule.margin", "rule.smoothing"]
    assert "rule.exact" in groups() and "rule.supervised" not in groups()


def test_the_page_is_what_is_printed() -> None:
    assert (REPOSITORY / "docs" / "configs.md").read_text() == PAGE, (
        "pyrskip keys --markdown > docs/configs.md"
    )


def test_a_group_is_printed_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    main(["keys", "loader"])
    said = capsys.readouterr().out
    assert "loader.workers=0\n    processes that load samples, 0 for none\n    allowed: at least 0" in said
    assert "flex." not in said
    assert "group='lodaer' is unknown; allowed: actions, budget" in refused(capsys, "keys", "lodaer")
