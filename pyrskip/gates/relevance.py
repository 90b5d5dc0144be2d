"""The relevance gate: three scores of every tile, before any fine pixel is encoded, which the question mixes;
and three tensions, which say how much is kept, how sure that is, and how closely together.

Information is what a tile shows by itself, salience what stands out in it, coupling what the question finds
in it: propositional, perspectival and participatory knowing of ARR-COC, whose public code cannot learn, since
it takes indices of the 200 highest scores. Here a score is part of a logit.

Axes: B batch, W words, C channels, N cells of the glance, T tiles, K scores, D hidden width, L levels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyrskip.gates.gate import GATES, Gate, GateConfig
from pyrskip.gates.predictor import WordPool
from pyrskip.gates.region import cells_of, overlap, placed
from pyrskip.observation import Layout, Observation
from pyrskip.policies.policy import in_float32

ARCHETYPES = 8
"""Learned kinds of thing that stand out."""
CENTRE = (0.5, 0.1, 0.1, 0.25)
"""Where MEASURES of usual pictures lie; they differ by a tenth or so."""
LEAST = 0.3
"""Share of the weight that is spread evenly over the scores: one without weight learns nothing."""
EXPLORE, FOCUS = 0.02, 8.0
"""Where tensions start: a coin judges a tile in fifty, and a tile that is more relevant than another by a
quarter has a logit that is higher by two."""


@dataclass(frozen=True)
class Read:
    """cells [B, N, D] of the glance; question [B, D]; weighed [B, N, D]: cells as the question weighs them;
    found [B, D]: what it finds anywhere; share [B, T, N]: of a tile's place, in each cell."""

    cells: Tensor
    question: Tensor
    weighed: Tensor
    found: Tensor
    share: Tensor


@GATES.register("relevance")
class RelevanceGate(Gate):
    """A tile's logit: that of its level, from the question and what it finds, and its relevance, a mean of
    scores in 0..1, over that of its level's other tiles (of a lone one, over one half), times `focus`.

    Tensions, each a parameter. particularise: is added to every tile's logit, so that more is kept, and
    compression loses. focus: through its exponential, how much relevance counts, so that what is spent goes
    to fewer tiles, and diversity loses. explore, of policies that sample while they learn: the chance,
    through a sigmoid, that a coin judges a tile and not its scores, so that an unpromising tile is tried; the
    mode stays. With `evidence` the rollouts have tried (actions.drawn), and a chance that every tile shows
    the answer would be learned in place of the scores. The glance is always kept, and none moves its logit.
    """

    needs = ("query", "glance", "statistics")
    regional = True
    scores = ("information", "salience", "coupling")

    def __init__(self, config: GateConfig, layout: Layout) -> None:
        level, box = placed(config, layout)
        super().__init__(config, layout)
        width = config.width
        self.mixed = tuple(name for name in self.scores if name not in config.without)
        self.words = WordPool(layout.width("query"), width)
        self.norm = nn.LayerNorm(layout.width("glance", 0))
        self.cells = nn.Linear(layout.width("glance", 0) + 2, width)
        self.ask = nn.Linear(width, width)
        self.level = nn.Embedding(len(layout.grid), width)
        if "information" in self.mixed:
            self.information = nn.Linear(2, 1)
        if "salience" in self.mixed:
            self.archetypes = nn.Parameter(torch.randn(ARCHETYPES, width))
            self.salience = nn.Linear(3, 1)
        if "coupling" in self.mixed:
            self.coupling = nn.Sequential(
                nn.Linear(4 * width, width),
                nn.GELU(),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Linear(width, 1),
            )
        self.balance = nn.Linear(width + 2 * len(self.mixed), len(self.mixed))
        nn.init.zeros_(self.balance.weight)
        nn.init.zeros_(self.balance.bias)
        self.particularise = nn.Parameter(torch.zeros(()))
        if self.dial:
            self.explore = nn.Parameter(torch.tensor(EXPLORE).logit())
        self.focus = nn.Parameter(torch.tensor(FOCUS).log())
        self.tile_level: Tensor
        self.register_buffer("tile_level", level, persistent=False)
        self.tile_box: Tensor
        self.register_buffer("tile_box", box, persistent=False)
        self.peers: Tensor  # [T, T] bool: of the same level
        self.register_buffer("peers", level[:, None] == level, persistent=False)

    def build(self) -> None:
        super().build()
        # where a tile starts is fixed: how much is kept is a tension
        self.start: Tensor
        self.register_buffer("start", self.kind.start(self.config, self.layout), persistent=False)
        self.head = nn.Linear(self.config.width, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def inputs(self) -> int:
        return 3 * self.config.width

    def look(self, seen: Observation) -> Tensor:
        return self._context(self._read(seen))

    @in_float32
    def forward(self, seen: Observation) -> Tensor:
        read = self._read(seen)
        score = self._scores(read, seen)
        relevance = (self._weights(read, score, seen) * score).sum(-1)
        real = (seen.capacity > 0).float()
        others = self.peers * real[:, None]
        usual = (others @ relevance[..., None]).squeeze(-1) / others.sum(-1).clamp(min=1)
        # what is common to a level's tiles is the level's: scores that push all tiles of many images down at
        # once would be certain before they have learned to tell them apart
        relevance = relevance - usual.where(others.sum(-1) > 1, 0.5)
        logit = self.weigh(self._context(read), seen).squeeze(-1) + self.start
        promise = logit + self.particularise + self.focus.exp() * relevance
        if self.dial:
            tried = self.explore.sigmoid()
            chance = (1 - tried) * promise.sigmoid() + tried / 2
            promise = chance.log() - (-chance).log1p()
        last = torch.arange(self.layout.tiles, device=logit.device) == self.layout.tiles - 1
        return torch.where(last, logit, promise)

    @torch.no_grad()
    def reported(self, seen: Observation) -> dict[str, Tensor]:
        """The tensions, and the mean weight of each score."""
        read = self._read(seen)
        weight = self._weights(read, self._scores(read, seen), seen).mean((0, 1))
        tensions = {"tension/particularise": self.particularise, "tension/focus": self.focus.exp()}
        if self.dial:
            tensions["tension/explore"] = self.explore.sigmoid()
        return tensions | {f"weight/{name}": weight[i] for i, name in enumerate(self.mixed)}

    @torch.no_grad()
    def heat(self, seen: Observation) -> dict[str, Tensor]:
        """Each score, and their mix as `relevance`."""
        read = self._read(seen)
        score = self._scores(read, seen)
        mixed = (self._weights(read, score, seen) * score).sum(-1)
        return {name: score[..., i] for i, name in enumerate(self.mixed)} | {"relevance": mixed}

    def _read(self, seen: Observation) -> Read:
        glance, mask = seen["glance"], seen["glance_mask"]
        question = self.words(seen["query"], seen["query_mask"])
        cells = F.gelu(self.cells(cells_of(self.norm, glance)))
        weighed = cells * self.ask(question)[:, None]
        attention = weighed.sum(-1) * cells.shape[-1] ** -0.5
        attention = attention.masked_fill(~mask.flatten(1), float("-inf")).softmax(-1)
        share = overlap(self.tile_box, *glance.shape[-2:]) * mask.flatten(1)[:, None]
        share = share / share.sum(-1, keepdim=True).clamp(min=1e-6)
        return Read(cells, question, weighed, (attention[:, None] @ cells).squeeze(1), share)

    def _context(self, read: Read) -> Tensor:
        """What the level of a tile is judged by, [B, T, inputs]: nothing of it tells one tile of a level from
        another."""
        whole = torch.cat([read.found, read.question], dim=-1)[:, None].expand(-1, self.layout.tiles, -1)
        level = self.level(self.tile_level).expand(whole.shape[0], -1, -1)
        return torch.cat([whole, level], dim=-1)

    def _scores(self, read: Read, seen: Observation) -> Tensor:
        """[B, T, K] in 0..1, each a function of its own sort of evidence."""
        statistics = (seen["statistics"].float() - seen["statistics"].new_tensor(CENTRE)) / 0.1
        logits = []
        if "information" in self.mixed:
            logits.append(self.information(statistics[..., :2]))
        if "salience" in self.mixed:
            like = F.normalize(read.cells, dim=-1) @ F.normalize(self.archetypes, dim=-1).T
            kind = read.share @ like.amax(-1, keepdim=True)
            logits.append(self.salience(torch.cat([statistics[..., 2:], kind], dim=-1)))
        if "coupling" in self.mixed:
            own = torch.cat([read.share @ read.weighed, read.share @ read.cells], dim=-1)
            question = read.question[:, None].expand(-1, own.shape[1], -1)
            level = self.level(self.tile_level).expand(own.shape[0], -1, -1)
            logits.append(self.coupling(torch.cat([own, question, level], dim=-1)))
        return torch.cat(logits, dim=-1).sigmoid()

    def _weights(self, read: Read, score: Tensor, seen: Observation) -> Tensor:
        """What each score counts, [B, 1, K], from the question and scores' means and maxima over tiles."""
        real = (seen.capacity > 0)[..., None]
        mean = (score * real).sum(1) / real.sum(1).clamp(min=1)
        peak = (score * real).amax(1)
        mixed = self.balance(torch.cat([read.question, mean, peak], dim=-1)).softmax(-1)
        weight: Tensor = LEAST / len(self.mixed) + (1 - LEAST) * mixed
        return weight[:, None]
