"""The rollout table: the score of every action for every question, and what it cost.

Axes: N questions, M images, U distinct question texts, S listed actions, T tiles, K selections of a
question's own.

The columns of `score`, `probability` and `cost` are the listed actions in the action set's order, after them
the decisions outside of it (OUTSIDE): the model as used without pyrskip, and no image at all, and last what
was tried of each question alone, selections of single tiles that are too many to be listed. A table
knows its origin: what it was rolled out with, and what would give other numbers if it were another.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from pyrskip.cost import Cost
from pyrskip.decision import ActionSet
from pyrskip.errors import UserError
from pyrskip.files import whole_path, write_whole, writing
from pyrskip.signals import PER, Per

OUTSIDE = ("reference", "question_only")
COSTS = ("tokens", "flops", "kv_bytes")
TABLE = "table.safetensors"


@dataclass(frozen=True)
class RolloutTable:
    """score [N, S + 2 + K] in [0, 1]; probability, of the first accepted answer, and cost, without a gate's,
    likewise; drawn [N, K, T] bool: the selections of the last K columns, None where there are none.

    signals: what gates read, 'question', 'text' or 'image' -> name of a tensor -> [N, ...], [U, ...] or [M,
    ...]. similarity [N, T]: cosine of the question with each tile's mean token; agreement [M, T]: of each
    tile's features with those of the next coarser level; image_of [N] and query_of [N]: rows of the images
    and texts; size [M, 2] rows and columns of the image; types, keys: N; texts: U; image_keys: M; origin: see
    `check_origin`. probability, similarity and agreement are None where the model shows too little of itself.
    shown [M, T, C]: what the tile above each one shows at its place, for gates that look; None until a model
    was asked.
    """

    actions: ActionSet
    score: Tensor
    probability: Tensor | None
    cost: Cost
    similarity: Tensor | None
    signals: Mapping[Per, Mapping[str, Tensor]]
    image_of: Tensor
    query_of: Tensor
    size: Tensor
    types: tuple[str, ...]
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    image_keys: tuple[str, ...]
    split: str
    origin: Mapping[str, str] = field(default_factory=dict)
    drawn: Tensor | None = None
    agreement: Tensor | None = None
    shown: Tensor | None = None

    def __len__(self) -> int:
        return len(self.score)

    def column(self, name: str) -> int:
        """The column of a listed action or of a decision outside the set."""
        return (*self.actions.names, *OUTSIDE).index(name)

    @property
    def first_drawn(self) -> int:
        """The column of each question's first own selection."""
        return len(self.actions) + len(OUTSIDE)

    def steps(self, rows: Tensor, column: Tensor) -> Tensor:
        """What a listed action, or a selection of a question's own, asks of each tile, as an index of its
        choices. rows, column [n] int64 -> [n, T] int64."""
        listed = self.actions.steps[column.clamp(max=len(self.actions) - 1)]
        if self.drawn is None:
            return listed
        own = self.drawn[rows, (column - self.first_drawn).clamp(min=0)].long()
        return own.where(column[:, None] >= self.first_drawn, listed)

    @property
    def mean_full_flops(self) -> float:
        """What relative cost is relative to, on the training split."""
        return float(self.cost.flops[:, self.actions.full].mean())

    def to(self, device: torch.device) -> "RolloutTable":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()
        }
        moved["cost"] = Cost(*(getattr(self.cost, n).to(device) for n in COSTS))
        moved["signals"] = {
            per: {name: value.to(device) for name, value in of.items()} for per, of in self.signals.items()
        }
        rung = None if self.actions.rung is None else self.actions.rung.to(device)
        moved["actions"] = replace(self.actions, selection=self.actions.selection.to(device), rung=rung)
        return RolloutTable(**moved)

    def take(self, rows: Tensor) -> "RolloutTable":
        """Some of its questions, [n] int64; images and texts stay as they are."""
        at = rows.tolist()
        return replace(
            self,
            score=self.score[rows],
            probability=None if self.probability is None else self.probability[rows],
            cost=Cost(*(getattr(self.cost, name)[rows] for name in COSTS)),
            similarity=None if self.similarity is None else self.similarity[rows],
            drawn=None if self.drawn is None else self.drawn[rows],
            signals={
                per: {name: value[rows] if per == "question" else value for name, value in of.items()}
                for per, of in self.signals.items()
            },
            image_of=self.image_of[rows],
            query_of=self.query_of[rows],
            types=tuple(self.types[i] for i in at),
            keys=tuple(self.keys[i] for i in at),
        )

    def save(self, directory: Path) -> None:
        tensors = {name: getattr(self.cost, name) for name in COSTS}
        tensors |= {
            f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        tensors |= {f"{per}.{name}": value for per, of in self.signals.items() for name, value in of.items()}
        tensors["selection"] = self.actions.selection
        if self.actions.rung is not None:
            tensors["rung"] = self.actions.rung
        lists = {
            name: getattr(self, name) for name in ("types", "keys", "texts", "image_keys", "split", "origin")
        }
        lists["actions"], lists["ladder"] = self.actions.names, self.actions.ladder
        path = directory / TABLE
        with writing(path), whole_path(path) as temporary:
            try:  # not by way of bytes: a table is too large to be held twice more
                safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, temporary)
            except SafetensorError as error:
                raise UserError(f"{path} cannot be written: {error}") from error
        write_whole(directory / "table.json", json.dumps(lists))

    @classmethod
    def load(cls, directory: Path) -> "RolloutTable":
        """Raises UserError where the directory holds no whole table."""
        try:
            tensors = safetensors.torch.load_file(directory / TABLE)
            lists = json.loads((directory / "table.json").read_text())
            cost = Cost(*(tensors.pop(name) for name in COSTS))
            names, ladder = tuple(lists.pop("actions")), tuple(lists.pop("ladder"))
            actions = ActionSet(tensors.pop("selection"), names, ladder, tensors.pop("rung", None))
            split, origin = lists.pop("split"), dict(lists.pop("origin"))
            signals: dict[Per, dict[str, Tensor]] = {per: {} for per in PER}
            for per in PER:
                for key in [key for key in tensors if key.startswith(f"{per}.")]:
                    signals[per][key.removeprefix(f"{per}.")] = tensors.pop(key)
            unknown: dict[str, Any] = dict.fromkeys(("probability", "similarity", "drawn", "agreement"))
            members: dict[str, Any] = {**unknown, **tensors, **{k: tuple(v) for k, v in lists.items()}}
            table = cls(actions=actions, cost=cost, signals=signals, split=split, origin=origin, **members)
            table._check_lengths()
            return table
        except (
            OSError,
            SafetensorError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
        ) as error:
            raise UserError(
                f"{directory} holds no rollout table that can be read ({error}); run the rollouts stage"
            ) from error

    def _check_lengths(self) -> None:
        """Raises ValueError where two members disagree on N, M, U, S or T."""
        rows, listed = len(self.score), len(self.actions.names)
        own = 0 if self.drawn is None else self.drawn.shape[1]
        width = listed + len(OUTSIDE) + own
        columns = {name: getattr(self.cost, name) for name in COSTS}
        columns |= {"score": self.score} | (
            {} if self.probability is None else {"probability": self.probability}
        )
        for name, tensor in columns.items():
            if tensor.shape != (rows, width):
                raise ValueError(f"{name} is {list(tensor.shape)}, not {[rows, width]}")
        if len(self.actions.selection) != listed:
            raise ValueError(f"selection is {list(self.actions.selection.shape)}, for {listed} actions")
        tiles = self.actions.selection.shape[1]
        if self.drawn is not None and self.drawn.shape != (rows, own, tiles):
            raise ValueError(f"drawn is {list(self.drawn.shape)}, not {[rows, own, tiles]}")
        if self.similarity is not None and self.similarity.shape != (rows, self.actions.selection.shape[1]):
            raise ValueError(
                f"similarity is {list(self.similarity.shape)}, not {[rows, self.actions.selection.shape[1]]}"
            )
        if self.agreement is not None and self.agreement.shape != (len(self.image_keys), tiles):
            raise ValueError(
                f"agreement is {list(self.agreement.shape)}, not {[len(self.image_keys), tiles]}"
            )
        lengths = {"question": rows, "text": len(self.texts), "image": len(self.image_keys)}
        beside = {"question": ("types", "keys", "image_of", "query_of"), "text": (), "image": ("size",)}
        for per in PER:
            count = lengths[per]
            members = {**self.signals[per], **{name: getattr(self, name) for name in beside[per]}}
            for name, member in members.items():
                if len(member) != count:
                    raise ValueError(f"{name} has {len(member)} rows, for {count} of {per}s")
        for name, count in (("image_of", len(self.image_keys)), ("query_of", len(self.texts))):
            of = getattr(self, name)
            if len(of) and not 0 <= int(of.min()) <= int(of.max()) < count:
                raise ValueError(f"{name} points outside of its {count} rows")

    @classmethod
    def concatenate(cls, parts: "list[RolloutTable]") -> "RolloutTable":
        """One table of parts that different ranks or batches made; rows keep the order of the parts."""
        first = parts[0]
        texts = tuple(dict.fromkeys(t for part in parts for t in part.texts))
        where = {t: i for i, t in enumerate(texts)}
        images = torch.tensor([0] + [len(part.image_keys) for part in parts]).cumsum(0).tolist()
        rows = [torch.tensor([where[t] for t in part.texts]) for part in parts]

        def joined(name: str) -> Any:
            members = [getattr(part, name) for part in parts]
            return None if members[0] is None else torch.cat(members)

        def signal(per: Per, name: str) -> Tensor:
            members = torch.cat(_padded([part.signals[per][name] for part in parts]))
            if per != "text":
                return members
            return torch.zeros_like(members[: len(texts)]).index_copy(0, torch.cat(rows), members)

        return cls(
            actions=first.actions,
            score=joined("score"),
            probability=joined("probability"),
            cost=Cost(*(torch.cat([getattr(p.cost, n) for p in parts]) for n in COSTS)),
            similarity=joined("similarity"),
            signals={per: {name: signal(per, name) for name in first.signals[per]} for per in PER},
            image_of=torch.cat(
                [part.image_of + start for part, start in zip(parts, images[:-1], strict=True)]
            ),
            query_of=torch.cat([of[part.query_of] for part, of in zip(parts, rows, strict=True)]),
            size=joined("size"),
            types=tuple(t for part in parts for t in part.types),
            keys=tuple(k for part in parts for k in part.keys),
            texts=texts,
            image_keys=tuple(k for part in parts for k in part.image_keys),
            split=first.split,
            origin=first.origin,
            drawn=joined("drawn"),
            agreement=joined("agreement"),
        )


def _padded(members: Sequence[Tensor]) -> list[Tensor]:
    """Tensors whose axes behind the first are as long as the longest, zero where they were shorter."""
    longest = [max(sizes) for sizes in zip(*(m.shape[1:] for m in members), strict=True)]
    return [
        F.pad(
            m, [n for size, most in zip(m.shape[:0:-1], longest[::-1], strict=True) for n in (0, most - size)]
        )
        for m in members
    ]


def stored_signals(directory: Path) -> set[str]:
    """Names of the tensors that a saved table keeps for gates. Raises UserError where there is no table."""
    try:
        with safetensors.safe_open(directory / TABLE, "pt") as file:
            keys = file.keys()
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{directory} holds no rollout table that can be read ({error}); run the rollouts stage"
        ) from error
    return {name for per, _, name in (key.partition(".") for key in keys) if per in PER}


def check_origin(table: RolloutTable, wanted: Mapping[str, str], where: Path) -> None:
    """Refuse a table that was rolled out with another model, data, split, layout, budget, decoding or action
    set.

    wanted: what this run would roll out with, by the same names as the table's origin.
    """
    for name in sorted(wanted.keys() | table.origin.keys()):
        old, new = table.origin.get(name), wanted.get(name)
        if old != new:
            raise UserError(
                f"{where} holds rollouts of another {name}: {old}, this run has {new}; delete it to roll out "
                "anew, or start another run with name=<other>"
            )
