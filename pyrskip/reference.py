"""Every key of a configuration: its default, what is allowed, and what it means.

Defaults are those of conf/. What is allowed is what a refusal of an impossible value says. A meaning is what
the dataclass's docstring says behind the key's name, else the comment beside the key in conf/.
docs/configs.md is this table, and a test holds it to it.
"""

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pyrskip.config import Config
from pyrskip.errors import UserError, unknown_name
from pyrskip.launch import conf_directory
from pyrskip.pruners import PRUNERS, pruner_config
from pyrskip.training.rules import RULES, rule_config

IMPOSSIBLE: dict[type, tuple[Any, ...]] = {
    int: (-1, 0, -(10**9), 10**9),
    float: (-1.0, 0.0, 1.0, 1.5, -1e9, 1e9),
    str: ("?",),
}
"""Values by which a range is asked for, the likeliest first."""
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true, false"}
HEAD = """# Configuration

Every key, as `pyrskip keys` prints it; `pyrskip keys flex` prints those of a group. A key is set on the
command line (`flex.dropout=0.1`) or in a file of `conf/`. Defaults are those without an experiment. What is
allowed is what a refusal says; where it names several keys, they are refused together. A heading such as
`rule.gumbel` has the keys that `rule=gumbel` has beside those of `rule`. This page is made by
`pyrskip keys --markdown`.
"""


@dataclass(frozen=True)
class Key:
    """name: dotted, as on the command line. default: as YAML has it. allowed, meaning: in words."""

    name: str
    default: str
    allowed: str
    meaning: str


def keys_of(group: str) -> list[Key]:
    """The keys of a group, by its name in `groups`."""
    return list(_keys(_groups()[group][0], group))


def groups() -> list[str]:
    """'run' for keys of no group, the config's groups, and of those whose keys depend on their name what each
    name adds: 'rule.gumbel', 'pruner.ptp'."""
    return list(_groups())


def markdown() -> str:
    """docs/configs.md."""
    parts = [HEAD]
    for group in groups():
        rows = [
            f"| `{key.name}` | `{key.default}` | {_escaped(key.allowed)} | {_escaped(key.meaning)} |"
            for key in keys_of(group)
        ]
        table = ["| key | default | allowed | meaning |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {group}\n", *table]))
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def plain(group: str) -> str:
    """The keys of a group for a terminal."""
    lines = []
    for key in keys_of(group):
        lines.append(f"{key.name}={key.default}")
        for name, text in (("", key.meaning), ("allowed: ", key.allowed)):
            lines += textwrap.wrap(f"{name}{text}", 100, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def print_keys(arguments: Sequence[str]) -> None:
    """Print the keys of groups, of all where none is named; with --markdown docs/configs.md."""
    if list(arguments) == ["--markdown"]:
        print(markdown(), end="")
        return
    for name in arguments:
        if name not in groups():
            raise unknown_name("group", name, groups())
    print("\n\n".join(plain(group) for group in arguments or groups()))


@cache
def _groups() -> dict[str, tuple[Any, str]]:
    """Group -> its config, and the file or folder in conf/ that holds its keys."""
    whole = Config()
    parts = {f.name: getattr(whole, f.name) for f in fields(Config)}
    found: dict[str, tuple[Any, str]] = {
        name: (part, name) for name, part in parts.items() if is_dataclass(part)
    }
    found["peers"] = whole.peers, "train.yaml"
    variants: dict[str, tuple[Any, str]] = {
        f"rule.{name}": (rule_config(name)(name=name), f"rule/{name}.yaml") for name in sorted(RULES)
    }
    variants |= {f"pruner.{name}": (pruner_config(name)(name=name), "pruner") for name in sorted(PRUNERS)}
    found |= {name: own for name, own in variants.items() if _further(name, own[0])}
    return {"run": (whole, "train.yaml"), **found}


def _further(group: str, config: Any) -> set[str]:
    """The fields that a group of one name has beside those of every name: of 'rule.gumbel' what 'rule' has
    not."""
    kind, _, name = group.partition(".")
    common = {f.name for f in fields(getattr(Config(), kind))} if name else set()
    return {f.name for f in fields(config)} - common


def _keys(config: Any, group: str, path: str = "") -> Iterator[Key]:
    """Keys of a dataclass and of those in it. path: what comes before its keys within the group."""
    place = _groups()[group][1]
    described, hints = _entries(type(config)), get_type_hints(type(config))
    prefix = "" if group == "run" else f"{group.partition('.')[0]}."
    for f in fields(config):
        value, inner = getattr(config, f.name), path + {"borrow": "from"}.get(f.name, f.name)
        if not path and f.name not in _further(group, config):
            continue
        if is_dataclass(value):
            if group != "run":  # there they are groups of their own
                yield from _keys(value, group, f"{inner}.")
            continue
        name = prefix + inner
        comment = _comments(place).get(name if place == "train.yaml" else inner, "")
        meaning = described.get(f.name) or comment or _clause(type(config), f.name)
        default = OmegaConf.select(_composed(group), name, default=value)
        yield Key(name, _yaml(default), _allowed(config, f.name, hints[f.name]), meaning)


def _documented(config: type) -> Iterator[str]:
    """The paragraphs of the docstrings of a dataclass and of those that it extends, each as a line."""
    for of in config.__mro__:
        if is_dataclass(of):
            yield from (" ".join(paragraph.split()) for paragraph in (of.__doc__ or "").split("\n\n"))


def _entries(config: type) -> dict[str, str]:
    """What a docstring says behind the names of keys: 'floor, cap: least and most tokens of a kept tile.'"""
    names = {f.name for f in fields(config)}
    found: dict[str, str] = {}
    for text in _documented(config):
        marks = [
            match
            for match in re.finditer(r"(?:^|(?<=[.;)] ))(\w+(?:, \w+)*)(?: >= 0)?: ", text)
            if set(match[1].split(", ")) <= names
        ]
        for match, end in zip(marks, [*(m.start() for m in marks[1:]), len(text)], strict=False):
            own = match[1].split(", ")
            first, *rest = re.split(r"(?<=\w[a-z)])\. (?=[A-Z])", text[match.end() : end])
            others = names - set(own)  # what is said of them is none of this key's
            for sentence in rest:
                if others & set(re.findall(r"\w+", sentence)) or sentence.startswith("Raises"):
                    break
                first += f". {sentence}"
            if " " in first.strip(" .;"):  # else it is a letter that code uses
                found |= {name: first.strip(" .;") for name in own if name not in found}
    return found


def _clause(config: type, name: str) -> str:
    """The part of a docstring that mentions a key."""
    for text in _documented(config):
        for part in re.split(r"(?<=[a-z)`])[.;] ", text):
            if re.search(rf"\b{name}\b", part):
                return part.strip(" .;")
    return ""


@cache
def _comments(place: str) -> dict[str, str]:
    """Key -> the comment behind it in a file of conf/, or in the first of a folder's that has one."""
    path = conf_directory() / place
    found: dict[str, str] = {}
    for file in [path] if path.is_file() else sorted(path.glob("*.yaml")):
        text = file.read_text()
        lines = text.splitlines()
        for name, line in _places(yaml.compose(text), ""):
            comment = re.search(r"\s#\s+(.*)$", lines[line])
            if comment and re.search(r"[a-z]{2}", comment[1]):
                found.setdefault(name, comment[1].strip())
    return found


def _places(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    """The dotted keys of a YAML node that have a line of their own, and which."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        for key, value in node.value:
            yield prefix + key.value, key.start_mark.line
            yield from _places(value, f"{prefix}{key.value}.")


def _composed(group: str) -> Any:
    """The config without an experiment, with the rule or pruner that a group names."""
    kind, _, name = group.partition(".")
    there = bool(name) and (conf_directory() / kind / f"{name}.yaml").is_file()
    return _compose(f"{kind}={name}" if there else "")


@cache
def _compose(override: str) -> Any:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_directory())):
        return compose("train", overrides=[override] if override else [])


def _allowed(config: Any, name: str, hint: Any) -> str:
    """What a refusal of an impossible value says, else what kind of value it is."""
    optional = type(None) in get_args(hint)
    kind = next(of for of in get_args(hint) if of is not type(None)) if optional else hint
    listed = get_origin(kind) is tuple
    item = get_args(kind)[0] if listed else get_origin(kind) or kind
    words = f"{'a list, each ' * listed}{WORDS.get(item, 'keys and values')}"
    for value in IMPOSSIBLE.get(item, ()):
        try:
            made = replace(config, **{name: (value,) if listed else value})
            if hasattr(made, "check"):  # of sources of data, that of the one that is read
                made.check()
        except UserError as error:
            if re.search(rf"\b{name}\b", str(error)):
                words = _range(str(error)) or words
                break
    return f"{words}, or null" if optional and "null" not in words else words


def _range(said: str) -> str:
    """What is allowed, of a refusal; of one that names several keys, with them."""
    mark = next((mark for mark in ("allowed: ", " must be ", ": ") if mark in said), ": ")
    given, _, words = said.partition(mark)
    words = re.sub(r" (is|are) needed$| \(docs/\S+ says how to register another\)$", "", words)
    keys = list(dict.fromkeys(re.findall(r"(\w+)=", given)))
    return f"{', '.join(keys)}: {words}" if len(keys) > 1 and words else words


def _yaml(value: Any) -> str:
    """As it is written on the command line."""
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    value = list(value) if isinstance(value, tuple) else value
    return str(yaml.safe_dump(value, default_flow_style=True, width=10_000)).removesuffix("...\n").strip()


def _escaped(text: str) -> str:
    """As Markdown shows it in a table."""
    return re.sub(r"([|*<])", r"\\\1", text)
