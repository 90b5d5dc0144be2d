"""Registries: names, places, and what plug-ins bring."""

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from pyrskip import registry
from pyrskip.errors import UserError
from pyrskip.registry import Registry, import_modules, load_plugins


@pytest.fixture(autouse=True)
def no_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose modules can be imported, and are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def offer(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> list[str]:
    """Let these be the installed entry points; the list grows by a group at each time that they are read."""
    read: list[str] = []

    def entry_points(group: str) -> tuple[EntryPoint, ...]:
        read.append(group)
        return points

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_ENTRY_POINTS", registry._EntryPoints())
    return read


def test_entries_are_found_by_name_in_the_order_of_their_registration() -> None:
    things: Registry[object] = Registry("thing", "docs/things.md")

    @things.register("z")
    def z() -> None: ...

    assert things.register("a", 3) == 3
    assert (things["z"], things["a"]) == (z, 3)
    assert list(things) == ["z", "a"] and list(things.items()) == [("z", z), ("a", 3)]
    assert "a" in things and "b" not in things and len(things) == 2
    assert things.get("b", 4) == 4 and things.get("a") == 3


def test_an_unknown_name_is_told_what_is_registered_and_where_to_read_on() -> None:
    things: Registry[int] = Registry("thing", "docs/things.md")
    things.register("two", 2)
    things.register("one", 1)
    with pytest.raises(UserError, match=r"thing='three' is unknown; allowed: one, two .*docs/things\.md"):
        things["three"]


def test_a_name_registered_twice_is_refused_with_both_places() -> None:
    things: Registry[int] = Registry("thing", "docs/things.md")
    things.register("one", 1)
    with pytest.raises(UserError, match=r"'one' is registered twice") as refused:
        things.register("one", 1)
    first, second = (int(part.split()[0].rstrip(";")) for part in str(refused.value).split("line ")[1:])
    assert second == first + 2 and str(refused.value).count(__name__) == 2
    assert things["one"] == 1


def test_every_module_of_a_package_is_imported_by_the_order_of_names(folder: Path) -> None:
    package = folder / "toys_of_registry"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from pyrskip.registry import Registry, import_modules\n"
        "TOYS = Registry('toy', 'docs/toys.md')\n"
        "import_modules(__name__)\n"
    )
    for name in ("b", "a"):
        (package / f"{name}.py").write_text(
            f"from toys_of_registry import TOYS\nTOYS.register({name!r}, {name!r})\n"
        )
    import toys_of_registry  # type: ignore[import-not-found]

    assert list(toys_of_registry.TOYS) == ["a", "b"]
    import_modules("toys_of_registry")  # a second time imports nothing again
    assert list(toys_of_registry.TOYS) == ["a", "b"]


def test_the_first_lookup_loads_the_entry_points_and_no_later_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    things: Registry[int] = Registry("thing", "docs/things.md")
    monkeypatch.setattr(registry, "THINGS", things, raising=False)
    (folder / "plug_of_registry.py").write_text(
        "from pyrskip import registry\n"
        "assert 'plugged' not in registry.THINGS\n"  # a plug-in may look up while it is loaded
        "registry.THINGS.register('plugged', 7)\n"
    )
    read = offer(monkeypatch, EntryPoint("plug", "plug_of_registry", "pyrskip"))
    assert things.register("own", 1) == 1 and read == []
    assert list(things) == ["own", "plugged"] and things["plugged"] == 7
    assert read == ["pyrskip"]


def test_named_modules_are_imported_before_entry_points_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first_of_registry", "second_of_registry"):
        (folder / f"{name}.py").write_text("")
    offer(monkeypatch, EntryPoint("plug", "second_of_registry", "pyrskip"))
    load_plugins(["first_of_registry"])
    assert [name for name in sys.modules if name.endswith("_of_registry")] == [
        "first_of_registry",
        "second_of_registry",
    ]


def test_a_plug_in_that_raises_at_import_is_named_with_its_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "broken_of_registry.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"module broken_of_registry .*ZeroDivisionError: division by zero"):
        load_plugins(["broken_of_registry"])
    with pytest.raises(UserError, match=r"module no_such_plug .*ModuleNotFoundError"):
        load_plugins(["no_such_plug"])
    offer(monkeypatch, EntryPoint("plug", "broken_of_registry", "pyrskip"))
    things: Registry[int] = Registry("thing", "docs/things.md")
    for _ in range(2):  # it is not forgotten after the first lookup
        with pytest.raises(UserError, match=r"plug-in plug \(broken_of_registry\) .*ZeroDivisionError"):
            list(things)
