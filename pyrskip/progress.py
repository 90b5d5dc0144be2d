"""How far a piece of work is: a bar on a terminal; elsewhere a line now and then, with the rate and the time
left."""

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

EVERY = 30.0
"""Seconds after which a line comes at the latest, however long a step takes."""
FIRST = 10
"""Steps after which a line says how long all of it will take, if that is LONG seconds more."""
LONG = 10.0
WINDOW = 100
"""Steps that a rate is the mean of, the last ones: they may take longer and longer."""
BRIEF = 1.0
"""Seconds that work has taken at least where its end is worth a line."""
_SHOWN = ContextVar("shown", default=True)
T = TypeVar("T")


class Work:
    """total: steps in all. done: of these. unit: the name of one. told: what else is said, such as a loss."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = self.calls = 0
        self.detail = ""
        self.changed: Callable[[], None] = lambda: None
        self.began = self._looked = monotonic()
        self._marks: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def reach(self, done: int, tell: Callable[[], str] | None = None) -> None:
        """Say that so many steps are done. tell gives what else is said; it is called once a second at most,
        since what it looks at may have to be waited for."""
        now = monotonic()
        self.done, self.calls = done, self.calls + 1
        self._marks.append((now, done))  # the first step, which sets up what all use, is over
        if tell is not None and (now - self._looked >= 1 or done == self.total):
            self.detail, self._looked = tell(), now
        self.changed()

    def advance(self) -> None:
        self.reach(self.done + 1)

    @property
    def rate(self) -> float | None:
        """Steps a second; None before the second one."""
        if len(self._marks) < 2 or self._marks[-1][0] == self._marks[0][0]:
            return None
        (then, before), (now, done) = self._marks[0], self._marks[-1]
        return (done - before) / (now - then)

    @property
    def passed(self) -> float:
        """Seconds since it began."""
        return monotonic() - self.began

    def state(self) -> str:
        """Where it is, how fast, and how long the rest will take."""
        rate = self.rate
        if self.total == 1:
            return f"{duration(self.passed)} so far"
        if not rate:
            return f"{self._counted()} after {duration(self.passed)}{self._more()}"
        left = duration((self.total - self.done) / rate)
        return f"{self._counted()}, {paced(rate, self.unit)}, {left} left{self._more()}"

    def forecast(self, rate: float) -> str:
        """How long all of it will take."""
        whole = duration(self.passed + (self.total - self.done) / rate)
        return f"{self._counted()}, {paced(rate, self.unit)}: about {whole} in all"

    def ended(self) -> str:
        counted = "" if self.total == 1 else f"{self._counted()} in "
        return f"{counted}{duration(self.passed)}{self._more()}"

    def _counted(self) -> str:
        done = "" if self.done == self.total else f"{self.done} of "
        return f"{done}{self.total} {plural(self.unit)}"

    def _more(self) -> str:
        return f"  {self.detail}" if self.detail else ""


@contextmanager
def shown(wanted: bool) -> Iterator[None]:
    """Within, progress is shown or not."""
    token = _SHOWN.set(wanted)
    try:
        yield
    finally:
        _SHOWN.reset(token)


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Work]:
    """Show on stderr how far a piece of work is while it goes on."""
    work = Work(title, total, unit)
    showing = (_bar if sys.stderr.isatty() else _lines)(work) if _SHOWN.get() and total else nullcontext()
    with showing:
        yield work


def each(steps: Collection[T], title: str, unit: str) -> Iterator[T]:
    """The steps, one after another, with their progress."""
    with progress(title, len(steps), unit) as work:
        for step in steps:
            yield step
            work.advance()


@contextmanager
def _bar(work: Work) -> Iterator[None]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    title, state = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[state]"))
    columns = (title, BarColumn(bar_width=20), TimeElapsedColumn(), state)
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bar:
        # of a single step nothing is known before its end: the bar moves to and fro, and the clock runs
        one = work.total == 1
        task = bar.add_task(work.title, total=None if one else work.total, state="" if one else work.state())
        work.changed = lambda: bar.update(task, completed=work.done, state=work.state())
        yield
        bar.update(task, state=work.ended())


@contextmanager
def _lines(work: Work) -> Iterator[None]:
    ended, last = Event(), [monotonic()]

    def say(line: str) -> None:
        last[0] = monotonic()
        print(f"  {work.title}: {line}", file=sys.stderr, flush=True)

    def changed() -> None:
        if work.calls == FIRST and work.rate and (work.total - work.done) / work.rate >= LONG:
            say(work.forecast(work.rate))

    def now_and_then() -> None:
        while not ended.wait(max(last[0] + EVERY - monotonic(), 0.01)):
            if monotonic() >= last[0] + EVERY:
                say(work.state())

    work.changed = changed
    # a thread of its own: a step may take longer than a line may be awaited
    teller = Thread(target=now_and_then, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
    if work.passed >= BRIEF:
        say(work.ended())


def duration(seconds: float) -> str:
    """In words: 8 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def paced(rate: float, unit: str) -> str:
    """In words: 12.0 steps/s, 1.4 s a step."""
    if rate < 1:
        return f"{1 / rate:.3g} s a {unit}"
    return f"{rate:.{0 if rate >= 100 else 1}f} {plural(unit)}/s"


def plural(unit: str) -> str:
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"
