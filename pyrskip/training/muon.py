"""Muon on a GPU: its step is hundreds of small kernels, which Python takes longer to launch than they run."""

from collections.abc import Callable
from typing import Any

import timm.optim.muon
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pyrskip.models.recorded import Recording

LAUNCHED = 2
"""Steps with every gradient before one is recorded: what a recorded step sets up would be set up anew at
every replay."""


class Muon(timm.optim.muon.Muon):  # type: ignore[misc]
    """timm's, whose step is recorded on a GPU and replayed. Learning rates stay numbers for who schedules and
    saves them; a recording reads them from tensors."""

    def __init__(self, groups: list[dict[str, Any]], **options: Any) -> None:
        devices = {p.device.type for group in groups for p in group["params"]}
        parts = any(isinstance(p, DTensor) for group in groups for p in group["params"])
        self.records = devices == {"cuda"} and not parts
        super().__init__(groups, capturable=self.records, **options)
        self._warned_capturable_if_run_uncaptured = True  # it is, at first
        device = next(p.device for group in groups for p in group["params"])
        self.rates = [torch.zeros((), device=device) for _ in self.param_groups]
        self._forget()

    def _forget(self) -> None:
        self.launched = 0
        self.gradients: list[Tensor] = []
        self.recording: Recording | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # it may come from another device
        groups = [group | {"capturable": self.records} for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})
        self._forget()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.records:
            super().step()
            return loss
        parameters = [p for group in self.param_groups for p in group["params"]]
        found = [p.grad for p in parameters]
        gradients = [of for of in found if of is not None]
        for rate, group in zip(self.rates, self.param_groups, strict=True):
            rate.fill_(group["lr"])
        whole = len(gradients) == len(found)
        if not whole or self.launched < LAUNCHED:
            self._launch()
            self.launched += whole
            return loss
        if self.recording is None:
            self._record(parameters, gradients)
        torch._foreach_copy_(self.gradients, gradients)
        assert self.recording is not None
        self.recording.replay()
        return loss

    def _record(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        self.gradients = [torch.empty_like(of) for of in gradients]
        self._hold(parameters, self.gradients)
        self.recording = Recording(self._launch, tries=0)
        self._hold(parameters, gradients)

    def _hold(self, parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient

    def _launch(self) -> Tensor:
        """A step with the rates that are in tensors; gives the first of them."""
        numbers = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, self.rates, strict=True):
            group["lr"] = rate
        super().step()
        for group, number in zip(self.param_groups, numbers, strict=True):
            group["lr"] = number
        return self.rates[0]
