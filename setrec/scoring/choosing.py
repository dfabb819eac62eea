"""Which weights of the score are best on validation, without ranking the catalogue once for every weighting.

A weighting is good if a target stands among the first k items. For that, one number counts: how many items score higher than the
target. The items that can do so are few, and they are found once for all weightings:

1. The score is linear in each weight, so the score under any weighting of the grid is a mean of the scores at the corners of
   the box of weights around it, with shares that add up to 1 (multilinear interpolation).
2. The m best items of every corner are the candidates. An item that is no candidate scores, at each corner, at most as high as the
   corner's m-th best item. So under any weighting it scores at most the mean of these numbers: the bound. The graphs touch
   few items, so the rest of the catalogue is ranked for the corners of beta and recency only.
3. Candidates are scored under every weighting by one matrix product. A target with k or more candidates above it is a miss. A
   target above the bound with fewer is a hit. The few that are neither are counted over the whole catalogue.

So every hit is exact, up to the rounding of sums. tests/test_choosing.py compares with ranking everything.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from setrec.schemas import PAD, mask_of
from setrec.scoring.topk import mask_seen
from setrec.scoring.weights import GRAPHS, Weights, factors

CANDIDATES = 50  # m, best items of a corner
STRONGEST = 32  # candidates that are looked at first
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
    values = _by_group(
        whole.gather(2, ids.clamp(min=0)[:, None, :].expand(-1, len(parts), -1)), by_text[ids]
    )  # (B,2P,U)
    mean = (factors_of(at.weights, parts, device).mean(dim=0) @ values).masked_fill_(
        ~mask_of(ids), -torch.inf
    )  # (B, U)
    order = mean.argsort(dim=1, descending=True)  # (B, U): the strongest candidates first, padding at the end
    ids, values = ids.gather(1, order), values.gather(2, order[:, None, :].expand_as(values))  # (B, U), (B, 2 P, U)
    slack = 1e-5 * edges.abs().amax()  # (): sums of another order are rounded otherwise
    bound = edges @ at.share.T.to(device) + slack  # (B, V)
    hits = torch.zeros(len(target), len(grid), dtype=torch.int64, device=device)  # (B, V)
    user, column = mask_of(target).nonzero(as_tuple=True)  # (T,), (T,): every target of the batch
    allowed = ~(target[user, column, None] == seen[user]).any(dim=1)  # (T,): a seen item is no hit
    user, wanted = user[allowed], target[user, column][allowed]  # (T,), (T,)
    for few in (STRONGEST, ids.shape[1]):  # most targets are missed under every weighting: a few candidates show it
        step, kept = max(1, CHUNK // (len(grid) * few)), []
        for start in range(0, len(user), step):
            u, item = user[start : start + step], wanted[start : start + step]  # (t,), (t,)
            place = (ids[u] == item[:, None]).long().argmax(dim=1)  # (t,): a target is among its candidates
            mine = by_part @ values[u, :, place][:, :, None]  # (t, V, 1)
            above = _count_above(by_part @ values[u, :, :few], mine, ids[u, :few], item)  # (t, V)
            if few == STRONGEST < ids.shape[1]:
                kept.append((above < k).any(dim=1))  # (t,)
                continue
            unsure = (above < k) & (mine.squeeze(2) <= bound[u])  # (t, V): an item outside may stand above it
            for t in unsure.any(dim=1).nonzero().flatten().tolist():
                for v in unsure[t].nonzero().flatten().split(max(1, CHUNK // n_items)):  # (v,)
                    above[t, v] = _above(whole[u[t]], by_text, by_part[v], seen[u[t]], item[t])
            hits.index_add_(0, u, (above < k).long())
        if not kept:
            break
        user, wanted = user[torch.cat(kept)], wanted[torch.cat(kept)]  # (T',), (T',)
    return hits


def _candidates(
    parts: Mapping[str, Tensor], by_text: Tensor, seen: Tensor, target: Tensor, weights: Sequence[Weights]
) -> tuple[Tensor, Tensor]:
    """The best items of every corner, each once, (B, U) int64, padded; and a bound of all others at each corner, (B, C)."""
    touched = torch.zeros_like(next(iter(parts.values())), dtype=torch.bool)  # (B, N)
    for name in GRAPHS & parts.keys():
        touched |= parts[name] > 0
    few = _places(touched)  # (B, T), padded
    seen_few = (few[:, :, None] == seen[:, None, :]).any(dim=2) | ~mask_of(few)  # (B, T)
    at_few = {name: part.expand(len(few), -1).gather(1, few.clamp(min=0)) for name, part in parts.items()}  # of (B, T)
    dense = {name: part for name, part in parts.items() if name not in GRAPHS}  # of (B, N)
    found, edges, known = [target], [], {}
    for w in weights:
        key = tuple((factors(name).warm(w), factors(name).cold(w)) for name in dense)
        if key not in known:  # the items that no graph touches
            scores = mask_seen(_weighed(dense, by_text, w), seen).masked_fill_(touched, -torch.inf)  # (B, N)
            best = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)  # (B, m)
            found.append(best.indices)
            known[key] = best.values[:, -1]  # (B,)
        edge = known[key]  # (B,)
        if few.shape[1]:
            scores = _weighed(at_few, by_text[few.clamp(min=0)], w).masked_fill_(seen_few, -torch.inf)  # (B, T)
            best = scores.topk(min(CANDIDATES, few.shape[1]), dim=1)  # (B, m)
            found.append(few.gather(1, best.indices))
            edge = edge.maximum(best.values[:, -1])  # (B,)
        edges.append(edge)
    ids = torch.cat(found, dim=1).sort(dim=1).values  # (B, any)
    repeated = torch.zeros_like(ids, dtype=torch.bool)  # (B, any)
    repeated[:, 1:] = ids[:, 1:] == ids[:, :-1]
    gone = (ids[:, :, None] == seen[:, None, :]).any(dim=2)  # (B, any)
    ids = ids.masked_fill(repeated | gone, PAD).sort(dim=1, descending=True).values  # padding at the end
    used = int(mask_of(ids).sum(dim=1).amax())
    return ids[:, : max(used, 1)], torch.stack(edges, dim=1)  # (B, U), (B, C)


def _weighed(parts: Mapping[str, Tensor], by_text: Tensor, w: Weights) -> Tensor:
    """The weighted sum of parts, (B, n) each; by_text: (n,) or (B, n) bool."""
    scores = torch.zeros_like(next(iter(parts.values())))  # (B, n)
    for name, part in parts.items():
        warm, cold = factors(name).warm(w), factors(name).cold(w)
        if warm == cold:
            scores.add_(part, alpha=warm)  # (B, n)
        else:
            scores += part * torch.where(by_text, cold, warm)  # (B, n)
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


def _count_above(scores: Tensor, mine: Tensor, ids: Tensor, item: Tensor) -> Tensor:
    """How many candidates stand above a target, (t, V) int32.

    scores: (t, V, U) float, changed; mine: (t, V, 1) float, the target's; ids: (t, U) int64, padded; item: (t,) int64.
    """
    gone = ~mask_of(ids) | (ids == item[:, None])  # (t, U)
    scores.masked_fill_(gone[:, None, :], -torch.inf)  # (t, V, U)
    above = (scores > mine).sum(dim=2, dtype=torch.int32)  # (t, V); into int64 it takes seven times as long
    tied = (scores == mine).logical_and_((ids < item[:, None])[:, None, :])  # (t, V, U)
    return above + tied.sum(dim=2, dtype=torch.int32)


def _above(parts: Tensor, by_text: Tensor, by_part: Tensor, seen: Tensor, item: Tensor) -> Tensor:
    """How many items stand above one in the whole catalogue: (P, N), (N,), (v, 2 P), (any,), () -> (v,) int32."""
    everything = torch.arange(parts.shape[1], device=parts.device)  # (N,)
    scores = by_part @ _by_group(parts[None], by_text[None])[0]  # (v, N)
    scores = mask_seen(scores, seen.expand(len(scores), -1))  # (v, N)
    mine = scores[:, item, None]  # (v, 1)
    return ((scores > mine) | ((scores == mine) & (everything < item))).sum(dim=1, dtype=torch.int32)
