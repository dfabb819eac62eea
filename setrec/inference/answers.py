"""From histories of item ids to ranked lists of item ids, for one fixed state of the model and its catalogue.

"Own id" is the id that the user's data gives an item (a text); "item id" is its row in the catalogue (a number).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from setrec.data.batches import EvalRows
from setrec.data.catalogue import Catalogue
from setrec.errors import DataError, ModelError
from setrec.files.ragged import Ragged
from setrec.inference.explain import Why, explain
from setrec.inference.history_reader import HistoryReader
from setrec.inference.options import RecommendOptions, Unknown
from setrec.inference.restore import Restored
from setrec.inference.versions import Changes
from setrec.schemas import PAD, Batch
from setrec.scoring.retrieval import FaissSearch, Retriever, overlap

MAX_BATCH = 256  # most histories in a batch
MAX_SCORES = 1 << 26  # most scores held at once: with a large catalogue, a batch has fewer histories
WINDOW_STEPS = 5  # with a prefix cache, the window of a long history moves by max_history / 5 items
RECALL_HISTORIES = 256  # of which the recall of an approximate index is taken, about
_TRIED = 16  # most histories of new items in a trial


class RankedItem(NamedTuple):
    """One recommended item."""

    id: str
    title: str
    score: float
    warm: bool  # seen in training
    why: Why | None  # None unless `explain` asks for it


class Recommendation(NamedTuple):
    """The answer for one history."""

    items: list[RankedItem]  # best first; fewer than k if fewer items can be recommended
    unknown: list[str]  # ids of the history that are not in the catalogue, each once
    kept: int = 0  # items of the history that the prefix cache held, so that they were not read again


@dataclass(frozen=True)
class SearchOptions:
    """How answers are found. `Recommender.load` describes the options."""

    index: str | None = None
    prefix_cache: int = 0  # MiB


DEFAULT = SearchOptions()


class Snapshot(NamedTuple):
    """Everything that an answer depends on. It never changes; a change of the catalogue makes a new one."""

    restored: Restored
    catalogue: Catalogue
    changes: Changes  # of the catalogue since training
    max_history: int  # the model reads this many items of a history, the last ones
    row: dict[str, int]  # own id -> item id
    lower_titles: list[str]  # N titles in lower case, for the search
    by_count: np.ndarray  # (N,) int64 item ids, most frequent in training first
    search: SearchOptions
    reader: HistoryReader
    retriever: Retriever  # finds the best items without holding the scores of all of them


def make_snapshot(
    restored: Restored, catalogue: Catalogue, changes: Changes, max_history: int, search: SearchOptions = DEFAULT
) -> Snapshot:
    """Put a model and a version of its catalogue together."""
    how = None if search.index is None else FaissSearch(search.index)
    retriever = Retriever(restored.scorer, how, fixed=True)
    retriever.refresh()
    reader = HistoryReader(restored.model, restored.scorer.index, search.prefix_cache << 20)
    row = {own: i for i, own in enumerate(catalogue.ids)}
    lower_titles = [title.casefold() for title in catalogue.titles]
    by_count = np.argsort(-catalogue.count.numpy(), kind="stable")  # (N,)
    return Snapshot(restored, catalogue, changes, max_history, row, lower_titles, by_count, search, reader, retriever)


@torch.inference_mode()
def try_snapshot(snapshot: Snapshot, items: Sequence[str] = ()) -> None:
    """Score the whole catalogue for a few histories: none, the most frequent items, and those in `items`.

    Args:
        snapshot: the model and its catalogue.
        items: own ids of items that are new in the catalogue.

    Raises:
        ModelError: a score is not a finite number.
    """
    new, size = [snapshot.row[own] for own in items], max(snapshot.max_history, 1)
    rows = [[], snapshot.by_count[:size].tolist(), *(new[i : i + size] for i in range(0, len(new), size))][: _TRIED + 2]
    weights = snapshot.restored.weights
    betas = snapshot.restored.scorer.betas
    grid = [weights._replace(beta=beta) for beta in {betas[0], betas[-1], chosen_beta(snapshot)}]
    for _, batch in batches(snapshot, rows):
        for scores in snapshot.restored.scorer.scores(batch, grid):  # (B, N)
            if not scores.isfinite().all():
                raise _not_finite()


def _not_finite() -> ModelError:
    return ModelError(
        "the model gives scores that are not finite numbers: it is damaged, or its training has diverged."
    )


def batches(
    snapshot: Snapshot, rows: list[list[int]], share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[list[int], Batch]]:
    """Put histories into batches, those of similar length together.

    Args:
        snapshot: the model and its catalogue.
        rows: item ids of each history.
        share: (r, n) gives every n-th batch, starting with batch r.

    Yields:
        The places of some histories in `rows`, and their batch.
    """
    step = max(1, snapshot.max_history // WINDOW_STEPS) if snapshot.search.prefix_cache else 1
    everyone = EvalRows(Ragged.from_rows(rows), Ragged.from_rows([[]] * len(rows)), snapshot.max_history, step)
    size = max(1, min(MAX_BATCH, MAX_SCORES // max(snapshot.catalogue.n_items, 1)))
    rank, n = share
    order = np.argsort(everyone.shown, kind="stable")  # (users,)
    for places in np.split(order, range(size, len(order), size))[rank::n] if len(order) else []:
        yield places.tolist(), Batch(*(tensor.to(snapshot.restored.device) for tensor in everyone[places]))


def index_sentence(index: str | None, recall: float) -> str:
    """What commands print of an approximate index."""
    return (
        f"index {index}: finds {100 * recall:.1f}% of the exact first 10 (histories of one item, popular and rare ones)"
    )


@torch.no_grad()
def index_recall(snapshot: Snapshot, k: int = 10) -> float:
    """The share of the exact lists that the approximate index finds, for histories of one item, popular and rare ones."""
    some = snapshot.by_count[:: max(1, len(snapshot.by_count) // RECALL_HISTORIES)]
    exact, weights = snapshot.retriever.exact(), snapshot.restored.weights
    parts = []
    for _, batch in batches(snapshot, [[item] for item in some.tolist()]):
        user = snapshot.reader.read(batch).user
        lists = [retriever.top(batch, weights, k, user=user) for retriever in (snapshot.retriever, exact)]
        parts.append((overlap(*lists), len(batch.history)))
    return sum(share * n for share, n in parts) / sum(n for _, n in parts)


@torch.inference_mode()
def ranked(
    snapshot: Snapshot, batch: Batch, options: RecommendOptions, allowed: Tensor | None
) -> tuple[list[list[RankedItem]], list[int]]:
    """Rank the catalogue for each history of a batch, and count the items of each that were not read again.

    Args:
        snapshot: the model and its catalogue.
        batch: B histories.
        options: k, beta and so on; its candidates are not read.
        allowed: (N,) bool, the candidates; None: every item.

    Raises:
        ModelError: a score is not a finite number.
    """
    scorer, catalogue = snapshot.restored.scorer, snapshot.catalogue
    weights = snapshot.restored.weights._replace(beta=chosen_beta(snapshot, options.beta))
    k = min(options.k, catalogue.n_items)
    few = None if allowed is None else allowed.nonzero().squeeze(1)  # (n,)
    user, outputs, kept = snapshot.reader.read(batch)
    items, best = snapshot.retriever.top(batch, weights, k, options.exclude_seen, few, user)  # (B, k), (B, k)
    whys = explain(scorer, batch, weights, items, catalogue.ids, outputs) if options.explain else None
    if not (best.isfinite() | (items == PAD)).all():
        raise _not_finite()
    values = best.float().tolist()  # B lists of k
    warm = (catalogue.count[items.clamp(min=0).cpu()] > 0).tolist()  # B lists of k
    lists = [
        [
            RankedItem(
                catalogue.ids[item], catalogue.titles[item], values[b][j], warm[b][j], whys[b][j] if whys else None
            )
            for j, item in enumerate(row)
            if item != PAD  # padding is at the end
        ]
        for b, row in enumerate(items.tolist())
    ]
    return lists, kept


def chosen_beta(snapshot: Snapshot, beta: float | None = None) -> float:
    """The weight of the semantic slots: `beta`, or what validation chose; fixed for a model with one kind of slot."""
    betas = snapshot.restored.scorer.betas
    if len(betas) == 1:
        return betas[0]
    return snapshot.restored.weights.beta if beta is None else float(beta)


def allowed_items(snapshot: Snapshot, candidates: Collection[str] | None, unknown: Unknown) -> Tensor | None:
    """Turn candidates, in own ids, into (N,) bool; None stands for every item.

    Raises:
        DataError: `unknown` is "refuse" and an id is not in the catalogue, or `candidates` is one text.
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
    histories: Sequence[Sequence[str]], row: dict[str, int], unknown: Unknown
) -> tuple[list[list[int]], list[list[str]]]:
    """Turn own ids into item ids.

    Returns:
        The known item ids of each history, and its unknown own ids, each once.

    Raises:
        DataError: `unknown` is "refuse" and an id is not in the catalogue, or a history is not a list.
    """
    if isinstance(histories, str):
        raise DataError("histories is one text; give a list of histories, each a list of item ids.")
    known, missing = [], []
    for number, history in enumerate(histories):
        if isinstance(history, str):
            raise DataError(f"history {number} is the text {history!r}; give a list of item ids for each user.")
        rows = [row.get(own, PAD) for own in history]
        absent = list(dict.fromkeys(str(own) for own, at in zip(history, rows, strict=True) if at == PAD))
        if absent and unknown == "refuse":
            raise DataError(f"history {number}: item {absent[0]!r} is not in the catalogue; leave it out or add it.")
        known.append([at for at in rows if at != PAD])
        missing.append(absent)
    return known, missing
