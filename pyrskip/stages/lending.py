"""lent=true: a run takes over the config of what it borrows, so that one experiment goes with any run."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from pyrskip.config import read, read_saved, to_plain
from pyrskip.errors import UserError
from pyrskip.identity import RANKS
from pyrskip.stages import STAGES
from pyrskip.stages.run import select


def lend(cfg: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """A composed config; with lent=true every group that the borrowed stages depend on is as the run in from=
    has it, but for keys that are among the overrides.

    Of a group that the run's own stages depend on as well (trainer), how and where things run stays its own;
    a batch is then as large over all ranks as the lender's. Raises UserError without from=, or where that is
    no run.
    """
    if not cfg.get("lent"):
        return cfg
    place = cfg.get("from")
    if place is None:
        raise UserError("lent=true takes the config of a run, and from= names none; allowed: from=<run>")
    saved = read_saved(place, "from")
    try:
        lender, _ = read(OmegaConf.create(saved))
    except UserError as error:
        raise UserError(f"from={place} has a config that cannot be lent: {error}") from error
    borrowed = _keys(s.name for s in STAGES if s.borrowed and s.name not in cfg.stages)
    kept = [override.split("=")[0].lstrip("+") for override in overrides]
    kept += [f"{key}.{name}" for key in borrowed & _keys(cfg.stages) for name in _how(getattr(lender, key))]
    own = {key: OmegaConf.select(cfg, key) for key in kept if key.split(".")[0] in borrowed}
    ranks = cfg.trainer.devices * cfg.trainer.nodes
    totals = {key: value for key, value in select(lender, *borrowed).items() if key.endswith(RANKS)}
    lent = {key: to_plain(getattr(lender, key)) for key in borrowed}
    lent |= {key.removesuffix(RANKS): total // ranks for key, total in totals.items() if total % ranks == 0}
    with open_dict(cfg):
        for key, value in (*lent.items(), *own.items()):
            OmegaConf.update(cfg, key, value, merge=False)
        cfg.plugins = list(dict.fromkeys((*lender.plugins, *cfg.plugins)))
        cfg.lent = False
    return cfg


def _keys(stages: Iterable[str]) -> set[str]:
    """What these stages depend on."""
    named = set(stages)
    return {key for stage in STAGES if stage.name in named for key in stage.keys}


def _how(group: Any) -> list[str]:
    return [f.name for f in fields(group) if f.metadata.get("identity") == "how"]
