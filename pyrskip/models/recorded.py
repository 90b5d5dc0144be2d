"""CUDA graphs of single questions: what a GPU does for shapes that come again is recorded once and replayed,
for at batch 1 Python takes longer to launch kernels than they run.

A shape is recorded when it comes for the second time. Replays are of the thread that records. Memory between
kernels is shared by all recordings: what one leaves behind is read before another runs.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

KEPT = 64
"""Recordings of one kind that are kept."""
FREE = 0.25
"""Of a GPU's memory, that is left for other things: with less, nothing more is recorded."""

T = TypeVar("T")


class Recording:
    """One recorded run of a function of tensors that stay where they are: `replay` runs it anew and gives
    what it gave, in place. tries: how often it runs first, since libraries plan, and allocate for
    themselves; 0 where it has run before."""

    def __init__(self, function: Callable[[], Tensor], pool: Any = None, tries: int = 2) -> None:
        self.function = function  # with all that it reads: a replay knows addresses alone
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _uncached():
            for _ in range(tries):
                function()
            self.graph = torch.cuda.CUDAGraph()
            # other threads may pin memory meanwhile
            self.graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                self.output = function()
            finally:
                self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self) -> Tensor:
        self.graph.replay()
        return self.output


class Recordings(Generic[T]):
    """Recordings of a module's work by shape, the latest KEPT of them. A copy begins with none."""

    def __init__(self) -> None:
        self.by_shape: OrderedDict[Hashable, T | None] = OrderedDict()
        self.parameters: list[nn.Parameter] = []
        self.state: Hashable = None
        self.weights: dict[nn.Linear, Tensor] = {}
        self._pool: Any = None

    def __deepcopy__(self, memo: Any) -> "Recordings[T]":
        return Recordings()

    def __reduce__(self) -> tuple[Any, ...]:
        return Recordings, ()

    @property
    def pool(self) -> Any:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def of(self, module: nn.Module, shape: Hashable, record: Callable[[], T]) -> T | None:
        """The recording of a shape, which is made where it comes for the second time; None at the first. All
        are forgotten when the module's weights, or autocast's number format, are others."""
        self._refresh(module)
        if shape not in self.by_shape:
            self.by_shape[shape] = None
        elif self.by_shape[shape] is None and _has_room():
            with self.half(module):
                self.by_shape[shape] = record()
        self.by_shape.move_to_end(shape)
        while len(self.by_shape) > KEPT:
            self.by_shape.popitem(last=False)
        return self.by_shape[shape]

    def _refresh(self, module: nn.Module) -> None:
        self.parameters = self.parameters or list(module.parameters())
        form = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        state = form, [(p.data_ptr(), p._version) for p in self.parameters]
        if state != self.state:
            self.by_shape.clear()
            self.weights = {}
            self.state = state

    @contextmanager
    def half(self, module: nn.Module) -> Iterator[None]:
        """Within, linear layers hold their weights in autocast's number format, if it is on: a recording
        would cast them anew at every replay."""
        self._refresh(module)
        if torch.is_autocast_enabled("cuda") and not self.weights:
            dtype = torch.get_autocast_dtype("cuda")
            linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
            self.weights = {linear: linear.weight.detach().to(dtype) for linear in linears}
        whole = {linear: linear._parameters["weight"] for linear in self.weights}
        for linear, weight in self.weights.items():
            linear._parameters["weight"] = weight  # type: ignore[assignment]
        try:
            yield
        finally:
            for linear, parameter in whole.items():
                linear._parameters["weight"] = parameter


class Replayed:
    """A function of one tensor, under which a single row is recorded by its shape."""

    def __init__(self) -> None:
        self.recordings: Recordings[tuple[Tensor, Recording]] = Recordings()

    def __call__(self, module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function(x) of x [1, ...], a function of x and the module's weights."""
        found = self.recordings.of(module, (x.shape, x.dtype), lambda: self._record(function, x))
        if found is None:
            return function(x)
        buffer, recording = found
        buffer.copy_(x)
        return recording.replay().clone()

    def _record(self, function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Recording]:
        buffer = x.clone()
        return buffer, Recording(partial(function, buffer), self.recordings.pool)


def _has_room() -> bool:
    if not torch.cuda.is_available():
        return True
    free, total = torch.cuda.mem_get_info()
    return free > FREE * total


def can_record(x: Tensor) -> bool:
    """Whether what is computed from a tensor may be recorded: of a single row, on a GPU, without gradients,
    and not inside of another recording."""
    return (
        x.device.type == "cuda"
        and len(x) == 1
        and not torch.is_grad_enabled()
        and not torch.cuda.is_current_stream_capturing()
    )


@contextmanager
def _uncached() -> Iterator[None]:
    """Autocast as it is, without its memory of weights that were cast: it forgets them before a replay."""
    on, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with torch.autocast("cuda", dtype, enabled=on, cache_enabled=False):
        yield
