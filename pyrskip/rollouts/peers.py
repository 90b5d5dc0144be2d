"""Pruners that a run is held against: which, and at what ratios."""

from dataclasses import dataclass

from pyrskip.errors import UserError
from pyrskip.pruners import PRUNERS, PrunerConfig, pruner_config


@dataclass(frozen=True)
class PeersConfig:
    """pruners: registered ones, each with its defaults. ratios: shares of a question's visual tokens that
    each of them leaves of the full pyramid, in (0, 1); the first is tried behind the gate's decisions as
    well. The run itself prunes nothing then."""

    pruners: tuple[str, ...] = ()
    ratios: tuple[float, ...] = (0.5, 0.25)

    def __post_init__(self) -> None:
        if not set(self.pruners) <= set(PRUNERS) or len(set(self.pruners)) < len(self.pruners):
            raise UserError(
                f"peers.pruners={list(self.pruners)}: allowed: each once, {', '.join(sorted(PRUNERS))}"
            )
        ratios = self.ratios
        if not ratios or len(set(ratios)) < len(ratios) or not all(0 < ratio < 1 for ratio in ratios):
            raise UserError(
                f"peers.ratios={list(ratios)}: allowed: one or more different numbers above 0 and below 1"
            )

    def configs(self) -> list[PrunerConfig]:
        """Every pruner at every ratio."""
        return [pruner_config(name)(name, ratio) for name in self.pruners for ratio in self.ratios]
