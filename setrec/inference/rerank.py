"""Re-ranking: boosts of some items, diversity, and caps, on top of the model's score.

    value = score + sum of (add x spread) over the boosts whose filter admits the item
                  - diversity x spread x similarity to the most similar item that stands higher

The spread is how far the best score lies above the 100th (or the last), of the items that may be recommended to this user. So
`add: 1` brings an item from place 100 to the top, and with diversity 1 an item like one above it loses as much. The similarity is
the cosine of the text vectors (of the CF vectors in a model without text), 0 at least.

The list is made from the top (greedily, as maximal marginal relevance is): the item with the highest value comes next, of equals
the lower item id, but no item whose value of a capped column has been taken as often as its cap allows. It is made of the
`SHORTLIST` items that are best by score and boosts, or of more if those do not fill it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.inference.attributes import Attributes
from setrec.inference.options import RecommendOptions
from setrec.layers.grounding import UserVector
from setrec.schemas import PAD, Batch
from setrec.scoring.retrieval import Found

SPREAD = 100  # place down to which the spread of scores is taken
SHORTLIST = 1024
_GROWTH = 4  # of the shortlist, where caps leave too little of it
_NAMED = 5  # most items that are said to be left out before another one
Top = Callable[[Batch, int, Tensor | None, UserVector], Found]  # the best items of a batch among some, by the score


class Cap(NamedTuple):
    """At most so many items for each value of a column."""

    column: str
    value: np.ndarray  # (N,) int64, a number for every value; -1: missing, which is not capped
    most: int


class Boosts(NamedTuple):
    """What boosts add, in units of the spread. Items with the same boosts form a group."""

    names: list[str]  # of the parts of the explanation
    group: np.ndarray  # (N,) int64
    rows: list[Tensor | None]  # for each group, the item ids that may be recommended, ascending; None: all
    adds: np.ndarray  # (groups, boosts) float64


class Rules(NamedTuple):
    """How a list is made."""

    boosts: Boosts
    caps: list[Cap]
    diversity: float
    vectors: Tensor  # (N, any), of which the similarity is taken


class Choice(NamedTuple):
    """An item of a re-ranked list."""

    item: int  # item id
    score: float  # the value by which it was chosen
    added: dict[str, float]  # what the boosts and the diversity add to the model's score
    like: tuple[int, float] | None  # the most similar item above it and the similarity, with diversity
    left_out: list[tuple[int, str]]  # items of a higher value that a cap left out here, each with the column


class _Pool(NamedTuple):
    item: np.ndarray  # (n,) int64, ascending
    score: np.ndarray  # (n,) float64, of the model
    adds: np.ndarray  # (n, boosts) float64, in units of the spread
    spread: float
    whole: bool  # nothing else may be recommended


def make_rules(
    options: RecommendOptions, attributes: Attributes, allowed: Tensor | None, vectors: Tensor
) -> Rules | None:
    """The rules that options ask for; None where the model's score alone decides.

    Args:
        options: boosts, caps and diversity.
        attributes: of the catalogue.
        allowed: (N,) bool, the items that may be recommended; None: all.
        vectors: see `Rules`.

    Raises:
        ConfigError: a filter or a column is wrong.
    """
    if not (options.boosts or options.caps or options.diversity):
        return None
    boosts = options.boosts or []
    n_items = len(attributes.table)
    admitted = [attributes.mask(boost.filter).numpy() for boost in boosts]  # of (N,)
    pattern = np.stack([*admitted, np.zeros(n_items, bool)], axis=1)  # (N, boosts + 1)
    there = np.ones(n_items, bool) if allowed is None else allowed.cpu().numpy()  # (N,)
    groups, group = np.unique(pattern[there], axis=0, return_inverse=True)  # (groups, boosts + 1), (items,)
    of = np.full(n_items, -1)  # (N,)
    of[there] = group.reshape(-1)
    rows: list[Tensor | None] = [
        torch.from_numpy(np.flatnonzero(of == number)).to(vectors.device) for number in range(len(groups))
    ]
    if allowed is None and len(groups) == 1:
        rows = [None]
    adds = groups[:, :-1] * np.array([boost.add for boost in boosts])  # (groups, boosts)
    names = [boost.part for boost in boosts]
    caps = [Cap(name, attributes.values(name).numpy(), most) for name, most in (options.caps or {}).items()]
    return Rules(Boosts(names, of, rows, adds), caps, options.diversity, vectors)


def reranked(top: Top, batch: Batch, user: UserVector, rules: Rules, k: int) -> list[list[Choice]]:
    """Make the list of every user of a batch: B lists of at most k.

    Args:
        top: finds the best items by the model's score, in the order of `Search.top`.
        batch: B histories.
        user: their user vectors.
        rules: how the lists are made.
        k: the most items of a list.
    """
    size = max(SHORTLIST, 2 * k)
    found = []
    for place, pool in enumerate(_pools(top, batch, user, rules, size)):
        one = slice(place, place + 1)
        mine = batch._replace(history=batch.history[one], seen=batch.seen[one])
        row = UserVector({name: part[one] for name, part in user.parts.items()})
        choices, more = _chosen(pool, rules, k), size
        while len(choices) < k and not pool.whole:
            more *= _GROWTH
            (pool,) = _pools(top, mine, row, rules, more)
            choices = _chosen(pool, rules, k)
        found.append(choices)
    return found


def _pools(top: Top, batch: Batch, user: UserVector, rules: Rules, size: int) -> list[_Pool]:
    """The `size` best items of every user by score and boosts.

    Within a group all items have the same boosts, so the best of a group by score are its best. The best of all are among them.
    """
    n_items = len(rules.vectors)
    size = min(size, n_items)
    lists = [top(batch, size, rows, user) for rows in rules.boosts.rows]  # of (B, size)
    items = torch.cat([found.item for found in lists], dim=1).cpu().numpy() if lists else None  # (B, groups * size)
    scores = torch.cat([found.score for found in lists], dim=1).double().cpu().numpy() if lists else None
    pools = []
    for b in range(len(batch.history)):
        if items is None or scores is None:  # no item may be recommended
            pools.append(_Pool(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, len(rules.boosts.names))), 0.0, True))
            continue
        real = items[b] != PAD  # (groups * size,)
        item, score = items[b][real], scores[b][real]  # (n,), (n,)
        there = [n_items if rows is None else len(rows) for rows in rules.boosts.rows]
        whole = all(n <= size or int((f.item[b] != PAD).sum()) < size for n, f in zip(there, lists, strict=True))
        ranked = np.sort(score)[::-1]  # (n,)
        spread = float(ranked[0] - ranked[min(SPREAD, len(ranked)) - 1]) if len(ranked) else 0.0
        adds = rules.boosts.adds[rules.boosts.group[item]]  # (n, boosts)
        best = np.lexsort((item, -(score + spread * adds.sum(axis=1))))[:size]  # (up to size,)
        keep = np.sort(item[best])  # (up to size,)
        order = best[np.argsort(item[best], kind="stable")]  # (up to size,)
        pools.append(_Pool(keep, score[order], adds[order], spread, whole and len(item) <= size))
    return pools


def _chosen(pool: _Pool, rules: Rules, k: int) -> list[Choice]:
    """Take the best item again and again, up to k times."""
    base = pool.score + pool.spread * pool.adds.sum(axis=1)  # (n,)
    vectors = unit_rows(rules.vectors, pool.item) if rules.diversity and len(pool.item) else None  # (n, any)
    nearest = np.zeros(len(base))  # (n,) similarity to the most similar item taken
    like = np.full(len(base), -1)  # (n,) its place in `taken`
    taken = np.zeros(len(base), bool)  # (n,)
    blocked = np.full(len(base), -1)  # (n,) the cap that leaves an item out
    told = np.zeros(len(base), bool)  # (n,)
    count = [np.zeros(int(cap.value.max(initial=-1)) + 2, np.int64) for cap in rules.caps]
    values = [cap.value[pool.item] for cap in rules.caps]  # of (n,)
    choices: list[Choice] = []
    while len(choices) < k:
        penalty = rules.diversity * pool.spread * nearest  # (n,)
        value = base - penalty  # (n,)
        free = np.where(taken | (blocked >= 0), -np.inf, value)  # (n,)
        best = int(free.argmax()) if len(free) else -1
        if best < 0 or free[best] == -np.inf:
            break
        passed = np.flatnonzero((blocked >= 0) & ~told & (value > value[best]))  # (any,)
        told[passed] = True
        passed = passed[np.argsort(-value[passed], kind="stable")][:_NAMED]
        added = dict(zip(rules.boosts.names, (pool.spread * pool.adds[best]).tolist(), strict=True))
        if rules.diversity:
            added["diversity"] = -float(penalty[best]) if penalty[best] else 0.0
        above = (choices[like[best]].item, float(nearest[best])) if like[best] >= 0 else None
        left_out = [(int(pool.item[j]), rules.caps[blocked[j]].column) for j in passed]
        choices.append(Choice(int(pool.item[best]), float(value[best]), added, above, left_out))
        taken[best] = True
        if vectors is not None:
            cosine = vectors @ vectors[best]  # (n,)
            like[cosine > nearest] = len(choices) - 1
            nearest = np.maximum(nearest, cosine)  # (n,)
        for number, (cap, mine) in enumerate(zip(rules.caps, values, strict=True)):
            which = mine[best]
            if which >= 0:
                count[number][which] += 1
                if count[number][which] >= cap.most:
                    blocked[(mine == which) & ~taken & (blocked < 0)] = number
    return choices


def unit_rows(table: Tensor, items: Sequence[int] | np.ndarray) -> np.ndarray:
    """Rows of a table, (N, any), with length 1, or 0 where they are 0: (n, any) float32."""
    rows = table[torch.as_tensor(items, device=table.device)].float()  # (n, any)
    return torch.nn.functional.normalize(rows, dim=1).cpu().numpy()
