"""Each pruner against results worked out by hand, and against a second implementation that is written from
its paper's description, question by question and token by token, on random tensors."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from pyrskip.cost import Transformer
from pyrskip.errors import UserError
from pyrskip.pruners import PRUNERS, InsidePruner, Kept, Narrowing, Prunable, Pruner
from pyrskip.pruners.average import apportioned
from pyrskip.pruners.fastv import FastV
from pyrskip.pruners.inside import InsideConfig
from pyrskip.pruners.ptp import tile_budgets
from pyrskip.pruners.sparsevlm import SparseVlm, density_peaks, raters

Rows = Sequence[Sequence[float]]
LENGTHS = (40, 23, 7, 1, 0)


def build(name: str, ratio: float = 1.0, tokens: int = 0, **own: object) -> Pruner:
    return PRUNERS[name](PRUNERS[name].config_class(name, ratio, tokens, **own))


def one(tokens: Rows, tile: Sequence[int] | None = None, **beside: tuple[Tensor, ...]) -> Prunable:
    """A row of tokens, all real."""
    of = torch.tensor(tile or [0] * len(tokens))
    return Prunable(
        torch.tensor(tokens)[None], torch.ones(1, len(tokens), dtype=torch.bool), of[None], beside
    )


def left(kept: Kept) -> list[list[float]]:
    """The tokens that stay of the only row."""
    return [[round(x, 5) for x in token] for token in kept.tokens[0, kept.real[0]].tolist()]


def stepped(name: str, number: int, seen: Prunable, ratio: float = 1.0, tokens: int = 0) -> Kept:
    pruner = build(name, ratio, tokens)
    assert isinstance(pruner, InsidePruner)
    begun = {**seen.beside, **pruner.begin(seen)}
    seen = Prunable(seen.tokens, seen.real, seen.tile, begun)
    return pruner.step(number, seen, seen.real.sum(-1))


def attended(*rows: Sequence[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor([rows]), torch.ones(1, len(rows), dtype=torch.bool)


LINE = [[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]
PLANE = [[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]]


def test_uniform_takes_the_middles_of_runs_of_equal_length() -> None:
    assert left(build("uniform", 0.5).prune(one(LINE))) == [[2.0], [4.0], [6.0]]
    assert left(build("uniform", tokens=1).prune(one(LINE))) == [[4.0]]
    assert left(build("uniform", tokens=4).prune(one(LINE))) == [[1.0], [3.0], [4.0], [6.0]]


def test_average_pools_neighbours_of_a_tile_in_shares_of_the_budget() -> None:
    assert left(build("average", 0.5).prune(one(LINE))) == [[1.5], [3.5], [5.5]]
    kept = build("average", 0.5).prune(one(LINE, [0, 0, 0, 0, 1, 1]))
    assert left(kept) == [[1.5], [3.5], [5.5]] and kept.place.tolist() == [[0, 2, 4]]
    # 2 of 6: 4/3 and 2/3, of which the larger remainder is rounded up
    assert left(build("average", tokens=2).prune(one(LINE, [0, 0, 0, 0, 1, 1]))) == [[2.5], [5.5]]
    assert apportioned(torch.tensor([1.0, 1.0, 1.0]), 4).tolist() == [2, 1, 1]


def test_fastv_keeps_what_the_last_token_attends_to_most() -> None:
    seen = one(LINE, attention=attended([0.1, 0.3, 0.05, 0.2, 0.3, 0.05]))
    assert left(stepped("fastv", 0, seen, 0.5)) == [[2.0], [4.0], [5.0]]


def test_pyramid_drop_leaves_half_a_quarter_and_an_eighth() -> None:
    pruner = build("pyramid_drop", 0.125)
    assert isinstance(pruner, InsidePruner)
    assert pruner.steps(32) == {8: 0, 16: 1, 24: 2}
    assert [int(n[0]) for n in pruner.read(torch.tensor([576]), 32)] == [576] * 8 + [288] * 8 + [144] * 8 + [
        72
    ] * 8
    budget = build("pyramid_drop", tokens=72).read(torch.tensor([576]), 32)
    assert [int(n[0]) for n in budget[::8]] == [576, 288, 144, 72]
    # steps that a shallow model has behind the same layer: the last one counts
    assert [int(n[0]) for n in pruner.read(torch.tensor([576]), 3)] == [576, 288, 72]


def test_sparsevlm_leaves_what_its_table_has_and_a_mean_of_each_cluster_of_what_it_recycles() -> None:
    pruner = build("sparsevlm", tokens=192)
    assert isinstance(pruner, InsidePruner) and pruner.steps(32) == {2: 0, 6: 1, 15: 2}
    # 276 leave, 82 of them are recycled into 9; of 309 then 109 leave, 32 into 4; of 204 94 leave, 28 into 3
    read = [int(n[0]) for n in pruner.read(torch.tensor([576]), 32)]
    assert read == [576] * 2 + [300 + 9] * 4 + [200 + 4] * 9 + [110 + 3] * 17
    for tokens, table in ((128, [303, 110, 36]), (64, [66, 30, 17])):
        budget = build("sparsevlm", tokens=tokens)
        assert isinstance(budget, SparseVlm)
        assert [int(budget.kept(step, torch.tensor([576]))) for step in range(3)] == table


def test_sparsevlms_raters_are_the_words_above_the_mean() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    words = torch.tensor([[[math.log(4.0), 0.0], [0.0, 9.0], [0.0, 0.0]]])
    # the first token shares out 4/6, 1/6, 1/6, the second 1/3 each; of padding nothing
    real, mask = torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    assert raters(tokens, real, words, mask).tolist() == [[True, False, False]]


def test_density_peaks_finds_two_heaps() -> None:
    heaps = [0.0, 0.1, 0.2, 0.26, 0.4, 0.5, 9.0, 9.1, 9.2, 9.25, 9.3, 9.4, 9.6]
    # squares to the five nearest: 0.174 of 0.26, 0.184 of 0.2; 0.1025 of 9.2, 0.1125 of 9.25
    centres, of = density_peaks(torch.tensor(heaps, dtype=torch.float64)[:, None], 2)
    assert centres.tolist() == [3, 8] and of.tolist() == [3] * 6 + [8] * 7


def test_visionzip_joins_what_is_not_salient_to_what_it_is_most_like() -> None:
    # of 7 that stay one is contextual: the first of the two least salient, joined by the other
    tokens = [[float(i), 1.0] for i in range(8)]
    salience = torch.tensor([[5.0, 0.1, 6.0, 7.0, 8.0, 9.0, 0.2, 9.5]])
    kept = build("visionzip", tokens=7).prune(one(tokens, salience=(salience,)))
    assert left(kept) == [[0, 1], [3.5, 1], [2, 1], [3, 1], [4, 1], [5, 1], [7, 1]]
    # of fewer than seven none is
    kept = build("visionzip", tokens=2).prune(one(tokens, salience=(salience,)))
    assert left(kept) == [[5, 1], [7, 1]]


def test_divprune_takes_the_token_that_is_farthest_from_those_taken() -> None:
    # nearest others: 0.2, 0.2, 0.4 and 1 away; then -1,0 has 1,0 at 2; then 0,1 is 1 from both
    assert left(build("divprune", tokens=1).prune(one(PLANE))) == [[-1, 0]]
    assert left(build("divprune", tokens=2).prune(one(PLANE))) == [[1, 0], [-1, 0]]
    assert left(build("divprune", tokens=3).prune(one(PLANE))) == [[1, 0], [0, 1], [-1, 0]]


def test_cdpruner_weighs_diversity_by_relevance() -> None:
    words = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
    # relevance 1, 0.9, 0.5, 0: the first is taken; of the others' r^2 (1 - cos^2) 0.9^2 0.36 > 0.5^2
    assert left(build("cdpruner", tokens=2).prune(one(PLANE, text=words))) == [[1, 0], [0.8, 0.6]]
    # two dimensions are spanned then: what is left adds nothing, and the more relevant follows
    assert left(build("cdpruner", tokens=3).prune(one(PLANE, text=words))) == [[1, 0], [0.8, 0.6], [0, 1]]


def test_holov_gives_runs_their_share_and_what_overflows_to_the_others() -> None:
    # runs of two: cosines 1 and 1, no variance; shares by attention, 8 to 2 of three tokens
    salience = torch.tensor([[4.0, 4.0, 0.5, 1.5]])
    pruner = build("holov", tokens=3, runs=2)
    kept = pruner.prune(one([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]], salience=(salience,)))
    assert left(kept) == [[1, 0], [2, 0], [4, 0]]


def test_ptps_tiles_have_budgets_by_salience_at_least_one_and_the_rest_goes_to_the_most_salient() -> None:
    seen = one([[0.0]] * 9, [0, 0, 0, 0, 1, 1, 1, 1, 2])
    salience = torch.tensor([[6.0, 6, 6, 6, 3, 3, 3, 3, 1.0]])
    # of 5: 3, 1.5 and 0.5; floors 3, 1 and at least 1
    assert tile_budgets(salience, seen, torch.tensor([5])).tolist() == [[3, 1, 1]]
    # of 6: 3.6, 1.8, 0.6: 3, 1 and 1, and one to the most salient
    assert tile_budgets(salience, seen, torch.tensor([6])).tolist() == [[4, 1, 1]]
    # of 7: 4.2, 2.1, 0.7; the first has room for 4, and the last is full
    assert tile_budgets(salience, seen, torch.tensor([7])).tolist() == [[4, 2, 1]]
    assert tile_budgets(salience, seen, torch.tensor([9])).tolist() == [[4, 4, 1]]
    assert tile_budgets(salience, seen, torch.tensor([2])).tolist() == [[1, 1, 0]]


def test_ptp_fuses_what_encoder_and_question_attend_to() -> None:
    salience = torch.tensor([[1.0, 3.0, 2.0, 5.0]])
    attention = attended([0.9, 0.0, 0.0, 0.1], [0.0, 0.2, 0.3, 0.3])
    seen = one(LINE[:4], salience=(salience,), attention=attention)
    # bottom up 0, 0.5, 0.25, 1; top down 0.9, 0.2, 0.3, 0.3
    assert left(stepped("ptp", 0, seen, tokens=2)) == [[1.0], [4.0]]


def test_prunesid_keeps_the_salient_ones_of_what_is_alike() -> None:
    # one component, so one group; of the pairs of equal tokens the less salient one falls
    tokens = torch.eye(8)[[0, 0, 1, 1, 2, 2, 3, 3]]
    salience = torch.tensor([[1.0, 2, 4, 3, 5, 6, 8, 7]])
    numbered = torch.cat([tokens, 1e-9 * torch.arange(8.0)[:, None]], dim=1).double()
    kept = build("prunesid", tokens=4).prune(one(numbered.tolist(), salience=(salience,)))
    assert (kept.tokens[0, :, -1] * 1e9).round().tolist() == [1, 2, 5, 6]


# second implementations: a row's tokens, what stands beside them, how many stay -> the tokens that stay


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def top(scores: Sequence[float], count: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:count])


def second_uniform(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    return x[[int((i + 0.5) * len(x) / count + 1e-9) for i in range(count)]]


def second_average(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    tile = seen.tile[row, : len(x)].tolist()
    parts = [[i for i, of in enumerate(tile) if of == t] for t in sorted(set(tile))]
    exact = [count * len(part) / len(x) for part in parts]
    share = [math.floor(e + 1e-9) for e in exact]
    for i in sorted(range(len(parts)), key=lambda i: -(exact[i] - share[i]))[: count - sum(share)]:
        share[i] += 1
    means = []
    for part, k in zip(parts, share, strict=True):
        n = len(part)
        means += [x[part[i * n // k : -(-(i + 1) * n // k)]].mean(0) for i in range(k)]
    return torch.stack(means)


def second_divprune(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    n = len(x)
    far = [[1 - cosine(x[i], x[j]) for j in range(n)] for i in range(n)]
    taken = [max(range(n), key=lambda i: min((far[i][j] for j in range(n) if j != i), default=0.0))]
    while len(taken) < count:
        rest = [i for i in range(n) if i not in taken]
        taken.append(max(rest, key=lambda i: min(far[i][j] for j in taken)))
    return x[sorted(taken)]


def second_cdpruner(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    """Greedy by determinants themselves."""
    words, mask = (of[row] for of in seen.beside["text"])
    mean = [sum(cosine(t, w) for w in words[mask]) / int(mask.sum()) for t in x]
    spread = max(mean) - min(mean)
    r = torch.tensor([(m - min(mean)) / spread if spread else 0.0 for m in mean], dtype=torch.float64)
    kernel = r[:, None] * torch.tensor([[cosine(a, b) for b in x] for a in x], dtype=torch.float64) * r
    taken: list[int] = []
    while len(taken) < count:
        rest = [i for i in range(len(x)) if i not in taken]
        gains = [float(torch.linalg.det(kernel[[*taken, i]][:, [*taken, i]])) for i in rest]
        if max(gains) <= 1e-12:  # what is left is not relevant at all
            gains = [float(r[i]) for i in rest]
        taken.append(rest[gains.index(max(gains))])
    return x[sorted(taken)]


def second_visionzip(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    salience = seen.beside["salience"][0][row, : len(x)].tolist()
    contextual = count * 5 // 32
    dominant = top(salience, count - contextual)
    rest = [i for i in range(len(x)) if i not in dominant]
    targets = rest[:: len(rest) // contextual][:contextual] if contextual else []
    members = {t: [x[t]] for t in targets}
    for i in rest:
        if targets and i not in targets:
            members[max(targets, key=lambda t: cosine(x[i], x[t]))].append(x[i])
    return torch.stack(
        [torch.stack(members[i]).mean(0) if i in members else x[i] for i in sorted([*dominant, *targets])]
    )


def second_holov(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    salience, n = seen.beside["salience"][0][row, : len(x)].double(), len(x)
    attention = 1000 * salience / salience.sum()
    runs = [list(range(i * n // 8, (i + 1) * n // 8)) for i in range(8)]
    runs = [run for run in runs if run]
    weights = []
    for run in runs:
        score = attention[run]
        if len(run) > 1:
            others = [[cosine(x[i], x[j]) for j in run if j != i] for i in run]
            variance = torch.tensor([torch.tensor(o, dtype=torch.float64).var(correction=0) for o in others])
            if float(variance.mean()) > 1e-12:
                score = score + 0.09 * variance * attention[run].mean() / variance.mean()
        weights.append(float(score.mean()))
    share = [0] * len(runs)
    while sum(share) < count:
        room = [len(run) - k for run, k in zip(runs, share, strict=True)]
        free = [w if space else 0.0 for w, space in zip(weights, room, strict=True)]
        left = count - sum(share)
        exact = [left * w / sum(free) for w in free]
        more = [math.floor(e + 1e-9) for e in exact]
        for i in sorted(range(len(runs)), key=lambda i: -(exact[i] - more[i]))[: left - sum(more)]:
            more[i] += 1
        share = [k + min(m, space) for k, m, space in zip(share, more, room, strict=True)]
    kept = [run[i] for run, k in zip(runs, share, strict=True) for i in top(salience[run].tolist(), k)]
    return x[sorted(kept)]


def second_prunesid(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    salience, n = seen.beside["salience"][0][row, : len(x)].tolist(), len(x)
    features = x.sigmoid().T
    features = features - features.mean(0)
    components = max(min(count // 4, x.shape[1] - 1), 1)
    loadings = torch.linalg.svd(features, full_matrices=False).Vh[:components].abs()
    group = loadings.argmax(0).tolist()
    pairs = [cosine(x[i], x[j]) for i in range(n) for j in range(n) if i != j]
    threshold = count / 32 * (sum(pairs) / len(pairs) if pairs else 0.0)
    order = sorted(range(n), key=lambda i: -salience[i])
    alive: list[int] = []
    for i in order:
        if not any(group[i] == group[j] and cosine(x[i], x[j]) > threshold for j in alive):
            alive.append(i)
    kinds = sorted(set(group))
    sizes = {kind: group.count(kind) for kind in kinds}
    live = {kind: [i for i in alive if group[i] == kind] for kind in kinds}
    extra, before, run = max(count - len(kinds), 0), 0, 0
    taken: list[int] = []
    for kind in kinds:
        run += len(live[kind])
        upto = round(run * extra / len(alive))
        share = min(1 + upto - before, 5 * math.ceil(count / 64), sizes[kind], len(live[kind]))
        before = upto
        taken += live[kind][:share]
    best = [i for i in order if i in taken and i in alive]
    best += [i for i in order if i in alive and i not in best]
    best += [i for i in order if i not in best]
    return x[sorted(best[:count])]


SECOND: dict[str, Callable[[Tensor, Prunable, int, int], Tensor]] = {
    "uniform": second_uniform,
    "average": second_average,
    "divprune": second_divprune,
    "cdpruner": second_cdpruner,
    "visionzip": second_visionzip,
    "holov": second_holov,
    "prunesid": second_prunesid,
}


def drawn(seed: int, width: int = 12, words: int = 5) -> Prunable:
    """Rows of LENGTHS tokens of three tiles, questions of one to five words, and what pruners may read."""
    g = torch.Generator().manual_seed(seed)
    rows, most = len(LENGTHS), max(LENGTHS)
    real = torch.arange(most) < torch.tensor(LENGTHS)[:, None]
    tile = torch.stack([torch.arange(most) * 3 // max(n, 1) for n in LENGTHS]).clamp(max=2)
    mask = torch.arange(words) < torch.tensor([5, 1, 3, 2, 4])[:, None]
    attention = torch.rand(rows, words, most, generator=g).double()
    beside = {
        "text": (torch.randn(rows, words, width, generator=g).double(), mask),
        "salience": (torch.rand(rows, most, generator=g).double(),),
        "attention": (attention, mask),
    }
    return Prunable(torch.randn(rows, most, width, generator=g).double(), real, tile * real, beside)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("ratio", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("name", SECOND)
def test_a_pruner_is_what_its_paper_says(name: str, ratio: float, seed: int) -> None:
    seen = drawn(seed)
    kept = build(name, ratio).prune(seen)
    for row, length in enumerate(LENGTHS):
        count = math.ceil(ratio * length - 1e-6)
        assert int(kept.real[row].sum()) == count and kept.real[row, :count].all()
        if count:
            wanted = SECOND[name](seen.tokens[row, :length], seen, row, count)
            assert torch.allclose(kept.tokens[row, :count], wanted, rtol=0, atol=1e-9)


def second_ptp(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    salience = seen.beside["salience"][0][row, : len(x)].tolist()
    attention, mask = (of[row] for of in seen.beside["attention"])
    tile = seen.tile[row, : len(x)].tolist()
    parts = {t: [i for i in range(len(x)) if tile[i] == t] for t in sorted(set(tile))}
    mean = {t: sum(salience[i] for i in part) / len(part) for t, part in parts.items()}
    budget = {
        t: min(max(1, math.floor(count * mean[t] / sum(mean.values()) + 1e-9)), len(part))
        for t, part in parts.items()
    }
    order = sorted(parts, key=lambda t: -mean[t])
    while sum(budget.values()) < count:
        for t in order:
            if budget[t] < len(parts[t]) and sum(budget.values()) < count:
                budget[t] += 1
    while sum(budget.values()) > count:
        bound = 1 if max(budget.values()) > 1 else 0
        for t in reversed(order):
            if budget[t] > bound and sum(budget.values()) > count:
                budget[t] -= 1
    low, high = min(salience), max(salience)
    up = [(s - low) / (high - low) if high > low else 0.0 for s in salience]
    score = [0.5 * up[i] + 0.5 * max(float(a[i]) for a in attention[mask]) for i in range(len(x))]
    kept = [part[i] for t, part in parts.items() for i in top([score[j] for j in part], budget[t])]
    return x[sorted(kept)]


def second_sparsevlm(x: Tensor, seen: Prunable, row: int, count: int) -> Tensor:
    words, mask = (of[row] for of in seen.beside["text"])
    attention = seen.beside["attention"][0][row]
    rates = torch.stack([(words[mask] @ token).softmax(0) for token in x]).mean(0)
    rating = [i for i in range(len(rates)) if rates[i] > rates.mean()]
    score = [sum(float(attention[i, j]) for i in rating) / max(len(rating), 1) for j in range(len(x))]
    order = sorted(range(len(x)), key=lambda j: -score[j])
    stays, rest = order[:count], order[count:]
    again = sorted(rest[: math.floor(0.3 * len(rest) + 1e-6)])
    merged = {}
    if again:
        n = len(again)
        far = [[float((x[i] - x[j]).norm()) / math.sqrt(x.shape[1]) for j in again] for i in again]
        near = [sorted(far[i][j] for j in range(n) if j != i)[:5] for i in range(n)]
        dense = [math.exp(-sum(d * d for d in of) / len(of)) if of else 1.0 for of in near]
        most = max(max(of) for of in far)
        apart = [min((far[i][j] for j in range(n) if dense[j] > dense[i]), default=most) for i in range(n)]
        centres = top([d * a for d, a in zip(dense, apart, strict=True)], n // 10 + 1)
        of_centre = [i if i in centres else min(centres, key=lambda c: far[i][c]) for i in range(n)]
        for c in centres:
            members = [x[again[i]] for i in range(n) if of_centre[i] == c]
            merged[again[c]] = torch.stack(members).mean(0)
    return torch.stack([merged.get(i, x[i]) for i in sorted([*stays, *merged])])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["ptp", "sparsevlm", "fastv", "pyramid_drop"])
def test_a_step_between_layers_is_what_its_paper_says(name: str, seed: int) -> None:
    seen = drawn(seed)
    if name in ("fastv", "pyramid_drop"):  # the last token's attention alone
        one_row = seen.beside["attention"][0][:, -1:], torch.ones(len(LENGTHS), 1, dtype=torch.bool)
        seen = Prunable(seen.tokens, seen.real, seen.tile, {"attention": one_row})
    ratio = 0.3
    kept = stepped(name, 0, seen, ratio)
    for row, length in enumerate(LENGTHS):
        x = seen.tokens[row, :length]
        if name == "sparsevlm":
            # between 128 and 192 of 576
            share = (303 + (300 - 303) * (ratio * 576 - 128) / 64) / 576
            wanted = second_sparsevlm(x, seen, row, math.ceil(share * length - 1e-6)) if length else x
        else:
            count = math.ceil((ratio if name != "pyramid_drop" else ratio ** (1 / 3)) * length - 1e-6)
            if name == "ptp":
                wanted = second_ptp(x, seen, row, count) if length else x
            else:
                wanted = x[top(seen.beside["attention"][0][row, -1, :length].tolist(), count)]
        assert int(kept.real[row].sum()) == len(wanted)
        assert torch.allclose(kept.tokens[row, : len(wanted)], wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", PRUNERS)
def test_padding_is_never_kept_and_never_looked_at(name: str) -> None:
    seen, row, pruner = drawn(0), 2, build(name, 0.5)

    def cut(of: Tensor) -> Tensor:
        """The row alone, without padding."""
        return of[[row], : LENGTHS[row]]

    text, (attention, rows) = seen.beside["text"], seen.beside["attention"]
    beside = {
        "text": (text[0][[row]], text[1][[row]]),
        "salience": (cut(seen.beside["salience"][0]),),
        "attention": (attention[[row], :, : LENGTHS[row]], rows[[row]]),
    }
    alone = Prunable(cut(seen.tokens), cut(seen.real), cut(seen.tile), beside)
    whole, part = (
        stepped(name, 0, of, 0.5) if isinstance(pruner, InsidePruner) else pruner.prune(of)
        for of in (seen, alone)
    )
    assert whole.tokens[row, whole.real[row]].equal(part.tokens[0, part.real[0]])
    assert whole.place[row, whole.real[row]].equal(part.place[0, part.real[0]])
    assert not whole.real[LENGTHS.index(0)].any()


@pytest.mark.parametrize(
    ("name", "given", "layers", "message"),
    [
        ("fastv", (3,), 3, r"pruner.layers=\[3\] with a language model of 3 layers: allowed: null, or"),
        ("fastv", (1, 2), 3, "allowed: null, or 1 from 1 to 2, in order"),
        ("sparsevlm", (3, 2, 1), 8, "allowed: null, or 3 from 1 to 7, in order"),
        ("fastv", None, 1, "prunes between layers, and the language model has 1; allowed: at least 2"),
    ],
)
def test_layers_that_a_language_model_does_not_have_are_refused(
    name: str, given: tuple[int, ...] | None, layers: int, message: str
) -> None:
    config = PRUNERS[name].config_class(name, 0.5, layers=given)  # type: ignore[call-arg]
    with pytest.raises(UserError, match=message):
        PRUNERS[name].check(config, layers)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ptp", {"alpha": 1.5}, "pruner.alpha=1.5: allowed: 0 to 1"),
        ("cdpruner", {"theta": 1.0}, "pruner.theta=1.0: allowed: above 0 and below 1, or null"),
        ("holov", {"runs": 0}, "pruner.runs=0: allowed: at least 1"),
        ("fastv", {"tokens": -1}, "pruner.tokens=-1 with pruner.ratio=1: allowed: at least 1"),
        ("fastv", {"tokens": 4, "ratio": 0.5}, "pruner.tokens=4 with pruner.ratio=0.5: allowed"),
    ],
)
def test_a_pruners_own_keys_are_checked(name: str, given: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PRUNERS[name].config_class(name, **given)  # type: ignore[arg-type]


def test_more_relevance_counts_more_by_theta() -> None:
    words = torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, dtype=torch.bool)
    # exp(alpha r) with alpha = 0.5: 1.65, 1.57, 1.28, 1; 1.57^2 0.36 < 1.28^2, of the token at right angles
    assert left(build("cdpruner", tokens=2, theta=0.5).prune(one(PLANE, text=words))) == [[1, 0], [0, 1]]


def test_what_a_step_leaves_is_held_to_what_is_paid_for() -> None:
    class All(FastV):
        def step(self, number: int, seen: Prunable, whole: Tensor) -> Kept:
            return Kept.of(seen, seen.real)

    seen = one(LINE)
    pruner = All(InsideConfig("fastv", 0.5))
    narrowing = Narrowing(pruner, {1: 0}, seen.tile, torch.tensor([6]), {})
    with pytest.raises(UserError, match="All.step leaves .6. tokens; allowed: as many as its left says"):
        narrowing.after(1, seen.tokens, seen.real, torch.zeros(1, 1, 6), torch.ones(1, 1, dtype=torch.bool))


def test_work_is_counted_for_the_words_and_layers_that_there_are() -> None:
    language = Transformer(layers=4, width=8, heads=2, kv_heads=2, mlp=16, gated=True)
    tokens, words = torch.tensor([100]), torch.tensor([6])
    # one row, against 100 visual tokens, 6 words and the mark
    assert float(build("fastv", 0.5).flops(tokens, words, language)) == 2 * 8 * 107
    # behind layers 1, 2 and 3 of 4: 100, 50 and 25 of them are there
    dropped = build("pyramid_drop", 0.125).flops(tokens, words, language)
    assert float(dropped) == 2 * 8 * (107 + 57 + 32)
    assert float(build("ptp", 0.5).flops(tokens, words, language)) == 2 * 8 * 6 * 107
