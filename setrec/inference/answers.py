"""From own ids to ranked items in own ids, for one fixed state of model and catalogue."""

from collections.abc import Collection, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.batches import EvalRows
from setrec.data.catalogue import Catalogue
from setrec.errors import ConfigError, DataError
from setrec.files.ragged import Ragged
from setrec.inference.explain import Why, explain
from setrec.inference.restore import Restored
from setrec.inference.versions import Changes
from setrec.schemas import PAD, Batch
from setrec.scoring.topk import mask_seen, top_items

BLOCK = 256  # most histories scored together
SCORES = 1 << 26  # most scores held at once: fewer histories a block where the catalogue is large


class RankedItem(NamedTuple):
    """One recommended item."""

    id: str
    title: str
    score: float
    warm: bool  # seen in training
    why: Why | None  # only where asked for


class Recommendation(NamedTuple):
    """What one history gets."""

    items: list[RankedItem]  # best first; fewer than k where fewer can be recommended
    unknown: list[str]  # ids of the history that the catalogue doesn't have, each once


class Snapshot(NamedTuple):
    """Everything an answer depends on; never changed once it is made."""

    restored: Restored
    catalogue: Catalogue
    changes: Changes  # since training
    max_history: int  # history items that the model reads, the last ones
    row: dict[str, int]  # own id -> item id
    folded: list[str]  # N titles without case, for the search
    by_fame: np.ndarray  # (N,) int64 item ids, the most bought in training first


def make_snapshot(restored: Restored, catalogue: Catalogue, changes: Changes, max_history: int) -> Snapshot:
    """A model over a version of its catalogue."""
    row = {own: i for i, own in enumerate(catalogue.ids)}
    folded = [title.casefold() for title in catalogue.titles]
    by_fame = np.argsort(-catalogue.count.numpy(), kind="stable")  # (N,)
    return Snapshot(restored, catalogue, changes, max_history, row, folded, by_fame)


class Wanted(NamedTuple):
    """What is wanted of every history."""

    k: int
    exclude_seen: bool
    allowed: Tensor | None  # (N,) bool; None: every item
    beta: float
    explain: bool


def batches(
    snapshot: Snapshot, rows: list[list[int]], share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[list[int], Batch]]:
    """Blocks of histories of like length: their places, and the batch.

    share: (r, n) gives every n-th block from the r-th on.
    """
    everyone = EvalRows(Ragged.from_rows(rows), Ragged.from_rows([[]] * len(rows)), snapshot.max_history)
    size = max(1, min(BLOCK, SCORES // max(snapshot.catalogue.n_items, 1)))
    rank, n = share
    for places in blocks(everyone.shown, size)[rank::n]:
        yield places.tolist(), Batch(*(tensor.to(snapshot.restored.device) for tensor in everyone[places]))


def blocks(length: np.ndarray, size: int) -> list[np.ndarray]:
    """Places of histories in blocks: at most `size` in one, and none more than half as long again as the shortest.

    Without the second rule, a few hundred users of any length would nearly all be padding. length: (users,) int64.
    """
    order = np.argsort(length, kind="stable")
    found, start = [], 0
    while start < len(order):
        shortest = int(length[order[start]])
        longest = max(shortest + 4, shortest * 3 // 2)
        end = int(np.searchsorted(length[order], longest, side="right"))
        found.append(order[start : min(end, start + size)])
        start += len(found[-1])
    return found


@torch.inference_mode()
def ranked(snapshot: Snapshot, batch: Batch, wanted: Wanted) -> list[list[RankedItem]]:
    """The lists of a block of histories."""
    scorer, catalogue = snapshot.restored.scorer, snapshot.catalogue
    weights = snapshot.restored.weights._replace(beta=wanted.beta)
    (scores,) = scorer.scores(batch, [weights])  # (B, N)
    if wanted.exclude_seen:
        scores = mask_seen(scores, batch.seen)  # (B, N)
    items = top_items(scores, min(wanted.k, catalogue.n_items), wanted.allowed)  # (B, k)
    whys = explain(scorer, batch, weights, items, catalogue.ids) if wanted.explain else None
    values = scores.gather(1, items.clamp(min=0)).float().tolist()  # B lists of k
    warm = (catalogue.count[items.clamp(min=0).cpu()] > 0).tolist()  # B lists of k
    return [
        [
            RankedItem(
                catalogue.ids[item], catalogue.titles[item], values[b][j], warm[b][j], whys[b][j] if whys else None
            )
            for j, item in enumerate(row)
            if item != PAD  # missing places are at the end
        ]
        for b, row in enumerate(items.tolist())
    ]


def chosen_beta(snapshot: Snapshot, beta: float | None) -> float:
    """The weight of the semantic slots: as asked for, or as chosen on validation; fixed with one kind of slot.

    Raises:
        ConfigError: it is out of range.
    """
    if beta is not None and not 0 <= beta <= 1:
        raise ConfigError(f"beta is {beta}; it must be between 0 (collaborative) and 1 (semantic).")
    betas = snapshot.restored.scorer.betas
    if len(betas) == 1:
        return betas[0]
    return snapshot.restored.weights.beta if beta is None else float(beta)


def allowed_items(
    snapshot: Snapshot, candidates: Collection[str] | None, unknown: Literal["skip", "refuse"]
) -> Tensor | None:
    """Candidates in own ids as (N,) bool; None for every item.

    Raises:
        DataError: one is unknown under `refuse`; they are no list.
    """
    if candidates is None:
        return None
    if isinstance(candidates, str):
        raise DataError("candidates is one text; give a list of item ids.")
    rows = [snapshot.row.get(own, PAD) for own in candidates]
    if unknown == "refuse" and PAD in rows:
        own = next(own for own in candidates if own not in snapshot.row)
        raise DataError(f"candidates: item {own!r} is not in the catalogue.")
    allowed = torch.zeros(snapshot.catalogue.n_items, dtype=torch.bool)  # (N,)
    allowed[[row for row in rows if row != PAD]] = True
    return allowed.to(snapshot.restored.device)


def read_histories(
    histories: Sequence[Sequence[str]], row: dict[str, int], unknown: Literal["skip", "refuse"]
) -> tuple[list[list[int]], list[list[str]]]:
    """Own ids -> item ids, and the ids of each history that are unknown, each once.

    Raises:
        DataError: one is unknown under `refuse`; a history is no list.
    """
    if isinstance(histories, str):
        raise DataError("histories is one text; give a list of histories, each a list of item ids.")
    known, strange = [], []
    for number, history in enumerate(histories):
        if isinstance(history, str):
            raise DataError(f"history {number} is the text {history!r}; give a list of item ids for each user.")
        rows = [row.get(own, PAD) for own in history]
        odd = list(dict.fromkeys(str(own) for own, at in zip(history, rows, strict=True) if at == PAD))
        if odd and unknown == "refuse":
            raise DataError(f"history {number}: item {odd[0]!r} is not in the catalogue; leave it out or add it.")
        known.append([at for at in rows if at != PAD])
        strange.append(odd)
    return known, strange
