"""Which weights of the score are best on validation, without ranking the catalogue once for every weighting.

A weighting is good if a target stands among the first k items. For that, one number counts: how many items score higher than the
target. The items that can do so are few, and they are found once for all weightings:

1. The score is linear in each weight, so the score under any weighting of the grid is a mean of the scores at the corners of
   the box of weights around it, with shares that add up to 1 (multilinear interpolation).
2. The m best items of every corner are the candidates, of warm and of cold items: each group knows some of the weights only, so
   many corners are one to it. An item that is no candidate scores, at each corner, at most as high as the m-th best item of its
   group. So under any weighting it scores at most the mean of the larger of these numbers: the bound. The graphs touch few
   items, so the rest of the catalogue is ranked for the corners of beta and recency only.
3. Most targets have k candidates above them whatever the weighting: the strongest candidates show it. The candidates of the
   others are scored under every weighting by one matrix product. A target with k or more of them above it is a miss. A target
   above the bound with fewer is a hit. The few that are neither are counted over the whole catalogue.

So every hit is exact, up to the rounding of sums. tests/test_choosing.py compares with ranking everything.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from setrec.schemas import PAD, mask_of
from setrec.scoring.topk import mask_seen
from setrec.scoring.weights import GRAPHS, Weights, factors

CANDIDATES = 50  # m, best items of a corner
STRONGEST = (32, 128)  # candidates that are looked at first
CHUNK = 1 << 20  # scores held at once: they stay in the processor's cache


class Corners(NamedTuple):
    """The corners of a grid of weightings, and how each weighting lies between them."""

    weights: list[Weights]  # C corners
    share: Tensor  # (V, C) float: every row adds up to 1


def corners(grid: Sequence[Weights], betas: int = 3) -> Corners:
    """The corners that enclose a grid.

    Args:
        grid: V weightings.
        betas: values of beta that corners are placed at, spread evenly; more corners make a tighter bound.
    """
    axes: dict[str, list[float]] = {}
    rows = [w.plain() for w in grid]
    for name in rows[0]:
        low, high = min(row[name] for row in rows), max(row[name] for row in rows)
        n = betas if name == "beta" else 2
        axes[name] = [low] if low == high else [low + (high - low) * i / (n - 1) for i in range(n)]
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    share = torch.ones(len(grid), len(points), dtype=torch.float64)  # (V, C)
    for name, axis in axes.items():
        places = torch.tensor([axis.index(point[name]) for point in points])  # (C,)
        hats = torch.tensor([_hats(row[name], axis) for row in rows])  # (V, points of the axis)
        share *= hats[:, places]  # (V, C)
    return Corners([Weights.of(point) for point in points], share.float())


def _hats(value: float, axis: list[float]) -> list[float]:
    """Shares of the points of an axis in a value between two of them: linear interpolation."""
    shares = [0.0] * len(axis)
    right = next((i for i, point in enumerate(axis) if point >= value - 1e-9), len(axis) - 1)
    if right == 0:
        shares[0] = 1.0
        return shares
    t = (value - axis[right - 1]) / (axis[right] - axis[right - 1])
    shares[right - 1], shares[right] = 1 - t, t
    return shares


def factors_of(grid: Sequence[Weights], parts: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """(V, 2 P) float32: what each part is multiplied by under each weighting, for warm items, then for cold ones."""
    rows = [[factors(name).warm(w) for name in parts] + [factors(name).cold(w) for name in parts] for w in grid]
    return torch.tensor(rows, device=device)  # (V, 2 P)


def hits_of_weightings(
    parts: Mapping[str, Tensor],
    cold: Tensor,
    seen: Tensor,
    target: Tensor,
    grid: Sequence[Weights],
    at: Corners,
    k: int = 10,
) -> Tensor:
    """Targets of each user among the first k items, under every weighting.

    Args:
        parts: of the score before they are weighed, (B, N) or (N,) float each, see `Scorer.parts`.
        cold: (cold,) int64, the items that are scored by the factors of cold items.
        seen: (B, any) int64, items that are no candidates, padded.
        target: (B, R) int64, each user's distinct targets, padded.
        grid: V weightings.
        at: their corners.
        k: length of the list.

    Returns:
        (B, V) int64.
    """
    device, n_items = target.device, next(iter(parts.values())).shape[1]
    by_text = torch.zeros(n_items, dtype=torch.bool, device=device)  # (N,)
    by_text[cold] = True
    by_part = factors_of(grid, parts, device)  # (V, 2 P)
    ids, edges = _candidates(parts, by_text, seen, target, at.weights)  # (B, U), (B, C)
    whole = torch.stack([part.expand(len(target), -1) for part in parts.values()], dim=1)  # (B, P, N)
    at_ids = whole.gather(2, ids.clamp(min=0)[:, None, :].expand(-1, len(parts), -1))  # (B, P, U)
    values = _by_group(at_ids, by_text[ids])  # (B, 2 P, U)
    mean = factors_of(at.weights, parts, device).mean(dim=0) @ values  # (B, U)
    order = mean.masked_fill_(~mask_of(ids), -torch.inf).argsort(dim=1, descending=True)  # (B, U): padding at the end
    ids, values = ids.gather(1, order), values.gather(2, order[:, None, :].expand_as(values))  # (B, U), (B, 2 P, U)
    slack = 1e-5 * edges.abs().amax()  # (): sums of another order are rounded otherwise
    bound = edges @ at.share.T.to(device) + slack  # (B, V)
    hits = torch.zeros(len(target), len(grid), dtype=torch.int64, device=device)  # (B, V)
    user, column = mask_of(target).nonzero(as_tuple=True)  # (T,), (T,): every target of the batch
    allowed = ~(target[user, column, None] == seen[user]).any(dim=1)  # (T,): a seen item is no hit
    user, wanted = user[allowed], target[user, column][allowed]  # (T,), (T,)

    # Most targets are missed under every weighting, and the strongest candidates show it. Warm ones alone are enough for a warm
    # target, and their weightings are fewer: those that differ in the factors of cold items are one.
    of_warm = by_part[:, : len(parts)].unique(dim=0)  # (v, P)
    warm_ids = ids.masked_fill(by_text[ids], PAD)  # (B, U)
    for few in STRONGEST:
        for of_cold, rows, some in ((False, of_warm, warm_ids), (True, by_part, ids)):
            kept = [(user[by_text[wanted] != of_cold], wanted[by_text[wanted] != of_cold])]  # those of the other group
            for u, item in _in_steps(user, wanted, by_text[wanted] == of_cold, len(rows) * few):  # (t,), (t,)
                mine = rows @ _values_of(item, ids[u], values[u])[:, : rows.shape[1]]  # (t, v, 1)
                above = _count_above(rows, values[u, : rows.shape[1], :few], mine, some[u, :few], item)  # (t, v)
                may = (above < k).any(dim=1)  # (t,)
                kept.append((u[may], item[may]))
            user, wanted = (torch.cat(one) for one in zip(*kept, strict=True))  # (T',), (T',)
    for u, item in _in_steps(user, wanted, mask_of(wanted), len(grid) * ids.shape[1]):  # (t,), (t,)
        mine = by_part @ _values_of(item, ids[u], values[u])  # (t, V, 1)
        above = _count_above(by_part, values[u], mine, ids[u], item)  # (t, V)
        unsure = (above < k) & (mine.squeeze(2) <= bound[u])  # (t, V): an item outside may stand above it
        for t in unsure.any(dim=1).nonzero().flatten().tolist():
            for v in unsure[t].nonzero().flatten().split(max(1, CHUNK // n_items)):  # (v,)
                above[t, v] = _above(whole[u[t]], by_text, by_part[v], seen[u[t]], item[t])
        hits.index_add_(0, u, (above < k).long())
    return hits


def _in_steps(user: Tensor, item: Tensor, chosen: Tensor, scores: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The chosen targets, some at a time. user, item: (T,) int64; chosen: (T,) bool; scores: held for a target."""
    user, item = user[chosen], item[chosen]  # (t,), (t,)
    step = max(1, CHUNK // scores)
    for start in range(0, len(user), step):
        yield user[start : start + step], item[start : start + step]


def _values_of(item: Tensor, ids: Tensor, values: Tensor) -> Tensor:
    """The parts of targets, which are among their candidates: (t,), (t, U), (t, 2 P, U) -> (t, 2 P, 1)."""
    place = (ids == item[:, None]).long().argmax(dim=1)  # (t,)
    return values.gather(2, place[:, None, None].expand(-1, values.shape[1], 1))  # (t, 2 P, 1)


def _candidates(
    parts: Mapping[str, Tensor], by_text: Tensor, seen: Tensor, target: Tensor, weights: Sequence[Weights]
) -> tuple[Tensor, Tensor]:
    """The best items of every corner, each once, (B, U) int64, padded; and a bound of all others at each corner, (B, C)."""
    like = next(iter(parts.values()))  # (B, N)
    touched = torch.zeros_like(like, dtype=torch.bool)  # (B, N)
    for name in GRAPHS & parts.keys():
        touched |= parts[name] > 0
    gone = mask_seen(torch.zeros_like(like), seen) < 0  # (B, N)
    found, edges = [target], like.new_full((len(target), len(weights)), -torch.inf)  # [(B, any)], (B, C)
    for cold in (False, True):  # the factors of each group have fewer values than those of both
        columns = (by_text == cold).nonzero().flatten()  # (n,)
        few = _places(touched & (by_text == cold))  # (B, T), padded
        gone_few = gone.gather(1, few.clamp(min=0)) | ~mask_of(few)  # (B, T)
        rest = (gone | touched)[:, columns]  # (B, n)
        of_rest = {name: part[..., columns] for name, part in parts.items() if name not in GRAPHS}  # of (B, n) or (n,)
        of_few = {
            name: part.expand(len(few), -1).gather(1, few.clamp(min=0)) for name, part in parts.items()
        }  # of (B, T)
        known: dict[tuple[float, ...], Tensor] = {}
        for c, w in enumerate(weights):
            factor = {name: factors(name).cold(w) if cold else factors(name).warm(w) for name in parts}
            edge = edges[:, c]  # (B,)
            for of, without, items in ((of_rest, rest, columns), (of_few, gone_few, few)):
                if not without.shape[1]:
                    continue
                key = (len(of), *(factor[name] for name in of))
                if key not in known:
                    scores = _sum(of, factor, without.shape).masked_fill_(without, -torch.inf)  # (B, n) or (B, T)
                    best = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)  # (B, m)
                    found.append(items.expand(len(target), -1).gather(1, best.indices))
                    known[key] = best.values[:, -1]  # (B,)
                edge = edge.maximum(known[key])  # (B,)
            edges[:, c] = edge
    ids = torch.cat(found, dim=1).sort(dim=1).values  # (B, any)
    repeated = torch.zeros_like(ids, dtype=torch.bool)  # (B, any)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    gone = (ids[:, :, None] == seen[:, None, :]).any(dim=2)  # (B, any)
    ids = ids.masked_fill(repeated | gone, PAD).sort(dim=1, descending=True).values  # padding at the end
    used = int(mask_of(ids).sum(dim=1).amax())
    return ids[:, : max(used, 1)], edges  # (B, U), (B, C)


def _sum(parts: Mapping[str, Tensor], factor: Mapping[str, float], shape: torch.Size) -> Tensor:
    """The weighted sum of parts, which fit the shape: (B, n)."""
    scores = next(iter(parts.values())).new_zeros(shape)  # (B, n)
    for name, part in parts.items():
        scores.add_(part, alpha=factor[name])  # (B, n)
    return scores


def _places(chosen: Tensor) -> Tensor:
    """The columns that are true in each row, in order: (B, N) bool -> (B, most) int64, padded."""
    row, column = chosen.nonzero(as_tuple=True)  # (all,), (all,)
    count = chosen.sum(dim=1)  # (B,)
    places = column.new_full((len(chosen), int(count.amax()) if len(count) else 0), PAD)  # (B, most)
    first = count.cumsum(0) - count  # (B,)
    places[row, torch.arange(len(row), device=row.device) - first[row]] = column
    return places


def _by_group(values: Tensor, cold: Tensor) -> Tensor:
    """Parts that stand in the first half of the rows for warm items, in the second for cold ones.

    values: (any, P, n) float; cold: (any, n) bool; returns (any, 2 P, n).
    """
    cold = cold[:, None, :]  # (any, 1, n)
    return torch.cat([values.masked_fill(cold, 0), values.masked_fill(~cold, 0)], dim=1)  # (any, 2 P, n)


def _count_above(rows: Tensor, values: Tensor, mine: Tensor, ids: Tensor, item: Tensor) -> Tensor:
    """How many candidates stand above a target under each weighting, (t, v) int32; of equals the one with the lower item id.

    rows: (v, Q) float, factors; values: (t, Q, U) float, parts of the candidates; mine: (t, v, 1) float, the target's score;
    ids: (t, U) int64, padded; item: (t,) int64.
    """
    gone = ~mask_of(ids) | (ids == item[:, None])  # (t, U)
    barred = values.new_zeros(gone.shape).masked_fill_(gone, -torch.inf)  # (t, U): one more part, with factor 1
    ones = rows.new_ones(len(rows), 1)  # (v, 1)
    scores = torch.cat([rows, ones], dim=1) @ torch.cat([values, barred[:, None, :]], dim=1)  # (t, v, U)
    above = (scores > mine).sum(dim=2, dtype=torch.int32)  # (t, v); into int64 it takes seven times as long
    tied = (scores >= mine).sum(dim=2, dtype=torch.int32) > above  # (t, v)
    for t in tied.any(dim=1).nonzero().flatten().tolist():
        lower = ids[t] < item[t]  # (U,)
        above[t] += (scores[t] == mine[t]).logical_and_(lower).sum(dim=1, dtype=torch.int32)  # (v,)
    return above


def _above(parts: Tensor, by_text: Tensor, by_part: Tensor, seen: Tensor, item: Tensor) -> Tensor:
    """How many items stand above one in the whole catalogue: (P, N), (N,), (v, 2 P), (any,), () -> (v,) int32."""
    everything = torch.arange(parts.shape[1], device=parts.device)  # (N,)
    scores = by_part @ _by_group(parts[None], by_text[None])[0]  # (v, N)
    scores = mask_seen(scores, seen.expand(len(scores), -1))  # (v, N)
    mine = scores[:, item, None]  # (v, 1)
    return ((scores > mine) | ((scores == mine) & (everything < item))).sum(dim=1, dtype=torch.int32)
