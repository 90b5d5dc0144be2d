"""Policies: distributions over decisions, on one interface, registered by name.

Axes: B batch, T tiles, S actions, D hidden width. Inference runs `mode` of the distribution that was trained.

A policy class owns its head (what the gate's last layer outputs, and where it starts), its constraints on the
config and the action set, and its arithmetic, which is float32 on every device, under autocast too: Gumbel
noise does not survive bfloat16, and inference knows no autocast.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pyrskip.budget import BudgetRule
from pyrskip.decision import ActionConfig, Candidates, Decision, power
from pyrskip.errors import UserError
from pyrskip.observation import Layout, Observation
from pyrskip.registry import Registry

POLICIES: "Registry[type[Policy]]" = Registry("gate.policy")

DEVICES = ("cpu", "cuda", "mps")
"""Where gates are trained, as autocast names them."""

T = TypeVar("T")

Limit = int | Tensor | None
"""Most tokens of a decision: of every row, int64 [B] of each, or None. A number is checked, a tensor is not,
so that a graph can be traced."""


@dataclass(frozen=True)
class Relaxed:
    """A straight-through sample. keep [B, T]: gate of each tile; weight [B, S]: of each listed action, None
    where the actions do not list every selection."""

    keep: Tensor
    weight: Tensor | None


@dataclass(frozen=True)
class PolicyConfig:
    """policy: a registered policy. width: hidden units. Options, each of the policies that read it:
    temperature, of `utility`, in score; open_bias, of those that choose tile by tile: how much every tile's
    keep logit starts above 0; looks, of `sequential` and `quadtree`: whether it sees the encoded features of
    what it has kept; share, of `topk`: of the tiles beside the glance those that it keeps, null:
    what it learns of each question and price.
    """

    policy: str = "utility"
    width: int = 128
    temperature: float = 0.05
    open_bias: float = 2.0
    looks: bool = False
    share: float | None = None

    def __post_init__(self) -> None:
        kind = POLICIES[self.policy]
        for name in ("temperature", "open_bias", "looks", "share"):
            given, default = getattr(self, name), PolicyConfig.__dataclass_fields__[name].default
            if given != default and name not in kind.options:
                readers = ", ".join(p for p in POLICIES if name in POLICIES[p].options)
                raise UserError(
                    f"gate.{name}={given} with gate.policy={self.policy}, which does not read it; allowed: "
                    f"{'null' if default is None else default}, or a policy that does: {readers}"
                )
        if self.width < 1 or self.temperature <= 0:
            raise UserError(
                f"gate.width={self.width}, temperature={self.temperature}: allowed: width at least 1, "
                "temperature above 0"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise UserError(f"gate.share={self.share}: allowed: above 0 and below 1, or null")


class Deciding(Protocol):
    """A gate, as its policy sees it. tilt []: moves the trained policy along the cost axis; calibration sets
    it."""

    @property
    def config(self) -> PolicyConfig: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def head(self) -> nn.Module: ...
    @property
    def tilt(self) -> Tensor: ...


class Policy(ABC):
    """A distribution over the decisions of a batch, made by `of` from a gate's outputs.

    options: of PolicyConfig's that it reads. dial: whether the gate is given the price; else the price is in
    the policy's arithmetic. by_tile: it decides tile by tile and needs an action set that lists every
    combination of choices. per_tile: its outputs are a number a tile. relaxed: rules may differentiate its
    `rsample`, from a table; relaxed_online: and where a sample weighs each tile's tokens. episodic: it may
    look at a tile before it decides on the next, and has `steps` and a critic."""

    options: ClassVar[tuple[str, ...]] = ()
    dial: ClassVar[bool] = True
    by_tile: ClassVar[bool] = False
    per_tile: ClassVar[bool] = False
    relaxed: ClassVar[bool] = True
    relaxed_online: ClassVar[bool] = True
    episodic: ClassVar[bool] = False

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        for name, member in list(vars(cls).items()):
            if isinstance(member, classmethod | staticmethod):
                setattr(cls, name, type(member)(in_float32(member.__func__)))
            elif isinstance(member, property) and member.fget is not None:
                setattr(cls, name, property(in_float32(member.fget)))
            elif isinstance(member, cached_property):
                member.func = in_float32(member.func)
            elif isinstance(member, FunctionType):
                setattr(cls, name, in_float32(member))

    @classmethod
    def check(
        cls,
        config: PolicyConfig,
        actions: ActionConfig,
        budget: BudgetRule,
        grid: tuple[int, ...],
        listless: bool = False,
    ) -> None:
        """Refuse, before any work, what it cannot decide between. grid: tiles a side of each level, finest
        first; listless: whether it is taught by a model that answers under any selection."""
        tiles, free = sum(g * g for g in grid), listless and cls.per_tile
        if cls.by_tile and not free and (actions.sample or (tiles > len(grid) and actions.unit != "tile")):
            choices = len(budget.rungs or (0, 1))
            raise UserError(
                f"gate.policy={config.policy} with pyramid.grid={list(grid)} decides on single tiles and "
                f"needs all {power(choices, tiles - 1)} selections of them; actions.unit={actions.unit}, "
                f"sample={actions.sample} lists others; allowed: gate.policy=categorical, actions.unit=tile "
                "without a sample, or pyramid.grid=[1]"
            )

    @classmethod
    def memory(cls, tiles: int) -> int:
        """Bytes that it holds of a row at least while a rule learns, beside what the gate does."""
        return 0

    @classmethod
    @abstractmethod
    def start(cls, config: PolicyConfig, layout: Layout) -> Tensor:
        """The head's outputs before training, one float each."""

    @classmethod
    def build_head(cls, config: PolicyConfig, layout: Layout) -> nn.Module:
        """From the trunk's hidden vector [B, D] to outputs [B, ...]: a linear layer that starts at `start`
        for any input."""
        start = cls.start(config, layout)
        head = nn.Linear(config.width, len(start))
        nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(start)
        return head

    @classmethod
    def build_tile_head(cls, config: PolicyConfig, layout: Layout) -> nn.Module:
        """The same of a policy that is `per_tile`, from a vector a tile [B, T, D] to outputs [B, T]."""
        return TileHead(config.width, cls.start(config, layout))

    @classmethod
    @abstractmethod
    def of(cls, outputs: Tensor, seen: Observation, gate: Deciding) -> "Policy":
        """The distribution at the observation's price. outputs: of the head, float32."""

    @abstractmethod
    def sample(self) -> Decision:
        """A random decision."""

    @abstractmethod
    def rsample(self, temperature: float) -> Relaxed:
        """A random selection with a straight-through gradient."""

    @abstractmethod
    def log_prob(self, decision: Decision) -> Tensor:
        """Log-probability of a decision, [B]; -inf for one that it never takes."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """[B], nats."""

    @abstractmethod
    def marginals(self) -> Tensor:
        """Probability that each tile is kept, [B, T]."""

    @property
    @abstractmethod
    def probs(self) -> Tensor | None:
        """Probability of each listed action, [B, S], where the actions list every selection."""

    @abstractmethod
    def mode(self, max_tokens: Limit = None) -> Decision:
        """The decision that inference runs, of at most max_tokens tokens a row where that is given. It must
        be traceable by torch.export for a batch of any size, with a tensor for max_tokens."""

    @abstractmethod
    def margin(self, decision: Decision, max_tokens: Limit = None) -> Tensor:
        """By how much the mode's logits may move before it is another decision, [B]; inf where there is no
        other."""


class TileHead(nn.Linear):
    """From a vector a tile [B, T, D] to a number a tile [B, T], all by the same weights; it begins at start
    [T]."""

    def __init__(self, width: int, start: Tensor) -> None:
        super().__init__(width, 1, bias=False)
        nn.init.zeros_(self.weight)
        self.start = nn.Parameter(start)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden).squeeze(-1) + self.start


def in_float32(method: Callable[..., T]) -> Callable[..., T]:
    """A method, run without autocast."""

    @functools.wraps(method)
    def guarded(*arguments: Any, **named: Any) -> T:
        devices = [device for device in DEVICES if torch.is_autocast_enabled(device)]
        if not devices:
            return method(*arguments, **named)
        with ExitStack() as without:
            for device in devices:
                without.enter_context(torch.autocast(device, enabled=False))
            return method(*arguments, **named)

    return guarded


def listed(seen: Observation, layout: Layout) -> Candidates:
    """The listed decisions for the rows of an observation."""
    return seen.candidates or Candidates(layout.actions.tokens(seen.capacity, layout.budget))


def limit_of(max_tokens: int | Tensor, tokens: Tensor) -> Tensor:
    """Most tokens [B] of each row of tokens [B, ...]. Raises UserError for a number below 1."""
    if isinstance(max_tokens, int) and max_tokens < 1:
        raise UserError(f"max_tokens={max_tokens}: at least 1 is needed, for the glance")
    return torch.as_tensor(max_tokens, device=tokens.device).expand(tokens.shape[:1])


def clip(decision: Decision, limit: Tensor) -> Decision:
    """Take from the end of the row, the glance, what is over the limit [B]: it is then pooled further."""
    over = (decision.tokens.sum(-1) - limit).clamp(min=0)
    tokens = torch.cat([decision.tokens[:, :-1], decision.tokens[:, -1:] - over[:, None]], dim=1)
    return Decision(tokens, decision.action)
