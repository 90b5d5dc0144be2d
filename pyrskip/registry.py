"""Things by name: one table a kind, which modules outside the package add to as its own do."""

import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from threading import RLock
from typing import Any, Generic, TypeVar, overload

from pyrskip.errors import UserError

GROUP = "pyrskip"
"""The entry-point group of packages that add to registries."""

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries of one kind by name, in the order of their registration.

    kind: as a config's key or a sentence names it; page: the docs page that says how to add one. Looking
    anything up loads the entry points first. An unknown name raises UserError, as does a second registration
    of a name.
    """

    def __init__(self, kind: str, page: str = "docs/extending.md") -> None:
        self.kind, self.page = kind, page
        self._entries: dict[str, T] = {}
        self._places: dict[str, str] = {}

    @overload
    def register(self, name: str) -> Callable[[T], T]: ...
    @overload
    def register(self, name: str, entry: T) -> T: ...
    def register(self, name: str, entry: T | None = None) -> T | Callable[[T], T]:
        """`@register(name)` above a class or function, or `register(name, entry)`; returns the entry."""
        caller = sys._getframe(1)
        place = f"{caller.f_globals.get('__name__')}, line {caller.f_lineno}"

        def add(entry: T) -> T:
            if name in self._entries:
                raise UserError(
                    f"{self.kind}={name!r} is registered twice: in {self._places[name]} and in {place}; "
                    "allowed: one entry a name"
                )
            self._entries[name], self._places[name] = entry, place
            return entry

        return add if entry is None else add(entry)

    def __getitem__(self, name: str) -> T:
        load_plugins()
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def unknown(self, name: str, beside: Iterable[str] = ()) -> UserError:
        """The error for a name that is none of the entries. beside: other names that are allowed there."""
        names = sorted({*self, *beside})
        return UserError(
            f"{self.kind}={name!r} is unknown; allowed: {', '.join(names)} "
            f"({self.page} says how to register another)"
        )

    def get(self, name: str, default: Any = None) -> Any:
        load_plugins()
        return self._entries.get(name, default)

    def __contains__(self, name: object) -> bool:
        load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


def import_modules(package: str) -> None:
    """Import every module of a package, in the order of their names, so that they register what they hold."""
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        importlib.import_module(f"{package}.{module.name}")


def load_plugins(modules: Sequence[str] = ()) -> None:
    """Import the named modules, which may lie in the working directory, and, once a process, what the entry
    points of GROUP name.

    Raises UserError, with the name and the error, for one that raises at import; failed entry points raise it
    at every call.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in modules:
        _load(f"plug-in module {name}", partial(importlib.import_module, name))
    _ENTRY_POINTS.load()


class _EntryPoints:
    """Loads them once; threads that come meanwhile wait, and a plug-in's own lookups see what there is."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._began = False
        self._failure: UserError | None = None

    def load(self) -> None:
        with self._lock:
            if not self._began:
                self._began = True
                try:
                    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
                        _load(f"plug-in {point.name} ({_source(point)})", point.load)
                except UserError as error:
                    self._failure = error
            if self._failure is not None:
                raise self._failure


_ENTRY_POINTS = _EntryPoints()


def _load(what: str, load: Callable[[], object]) -> None:
    try:
        load()
    except Exception as error:
        raise UserError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error


def _source(point: EntryPoint) -> str:
    return f"{point.value} of {point.dist.name}" if point.dist is not None else point.value
