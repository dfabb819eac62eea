"""From histories of item ids to ranked lists of item ids, for one fixed state of the model and its catalogue.

"Own id" is the id that the user's data gives an item (a text); "item id" is its row in the catalogue (a number).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from setrec.data.batches import EvalRows
from setrec.data.catalogue import Catalogue
from setrec.errors import DataError, ModelError
from setrec.files.ragged import Ragged
from setrec.inference.attributes import Attributes
from setrec.inference.explain import Why, explain
from setrec.inference.history_reader import HistoryReader
from setrec.inference.options import RecommendOptions, Unknown
from setrec.inference.rerank import Choice, Rules, make_rules, reranked
from setrec.inference.restore import Restored
from setrec.inference.similar import SimilarItems
from setrec.inference.versions import Changes
from setrec.layers.grounding import UserVector
from setrec.schemas import PAD, Batch
from setrec.scoring.retrieval import FaissSearch, Found, Retriever, overlap

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
    attributes: Attributes  # of the items, for filters and caps
    similar: SimilarItems  # finds items that are similar to an item


def make_snapshot(
    restored: Restored,
    catalogue: Catalogue,
    changes: Changes,
    items: pl.DataFrame,
    max_history: int,
    search: SearchOptions = DEFAULT,
) -> Snapshot:
    """Put a model and a version of its catalogue together. items: the table of the version's items, see `table_of`."""
    how = None if search.index is None else FaissSearch(search.index)
    retriever = Retriever(restored.scorer, how, fixed=True)
    retriever.refresh()
    reader = HistoryReader(restored.model, restored.scorer.index, search.prefix_cache << 20)
    row = {own: i for i, own in enumerate(catalogue.ids)}
    lower_titles = lower_titles_of(catalogue)
    by_count = np.argsort(-catalogue.count.numpy(), kind="stable")  # (N,)
    attributes = Attributes(items, changes.patched)
    return Snapshot(
        restored, catalogue, changes, max_history, row, lower_titles, by_count, search, reader, retriever, attributes,
        SimilarItems(restored),
    )  # fmt: skip


def lower_titles_of(catalogue: Catalogue) -> list[str]:
    """The titles as they are searched."""
    return [title.casefold() for title in catalogue.titles]


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
    snapshot: Snapshot, rows: list[list[int]], share: tuple[int, int] = (0, 1), wanted: Ragged | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """Put histories into batches, those of similar length together.

    Args:
        snapshot: the model and its catalogue.
        rows: item ids of each history.
        share: (r, n) gives every n-th batch, starting with batch r.
        wanted: see `EvalRows`.

    Yields:
        The places of some histories in `rows`, and their batch.
    """
    step = max(1, snapshot.max_history // WINDOW_STEPS) if snapshot.search.prefix_cache else 1
    no_targets = Ragged.from_rows([[]] * len(rows))
    everyone = EvalRows(Ragged.from_rows(rows), no_targets, snapshot.max_history, step, wanted)
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


class Asked(NamedTuple):
    """What is asked of a snapshot: options in its own terms."""

    options: RecommendOptions
    allowed: Tensor | None  # (N,) bool, the items that may be recommended; None: all
    rules: Rules | None  # None: the score alone decides


def asked(snapshot: Snapshot, options: RecommendOptions) -> Asked:
    """Bring options into the terms of a snapshot.

    Raises:
        ConfigError: a filter or a column is wrong.
        DataError: see `allowed_items`.
    """
    allowed = allowed_items(snapshot, options.candidates, options.unknown)
    if options.filter is not None:
        mask = snapshot.attributes.mask(options.filter).to(snapshot.restored.device)  # (N,)
        allowed = mask if allowed is None else allowed & mask
    model, index = snapshot.restored.model, snapshot.restored.scorer.index
    tables = (model.text, index.cf, *model.tables)  # of (N, any)
    vectors = next(table for table in tables if table.shape[1])  # (N, any)
    return Asked(options, allowed, make_rules(options, snapshot.attributes, allowed, vectors))


@torch.inference_mode()
def ranked(snapshot: Snapshot, batch: Batch, what: Asked) -> tuple[list[list[RankedItem]], list[int]]:
    """Rank the catalogue for each history of a batch, and count the items of each that were not read again.

    Args:
        snapshot: the model and its catalogue.
        batch: B histories.
        what: what is asked.

    Raises:
        ModelError: a score is not a finite number.
    """
    options, rules = what.options, what.rules
    scorer, catalogue = snapshot.restored.scorer, snapshot.catalogue
    weights = snapshot.restored.weights._replace(beta=chosen_beta(snapshot, options.beta))
    k = min(options.k, catalogue.n_items)

    def top(some: Batch, size: int, rows: Tensor | None, user: UserVector) -> Found:
        found = snapshot.retriever.top(some, weights, size, options.exclude_seen, rows, user)  # (b, size), (b, size)
        if not (found.score.isfinite() | (found.item == PAD)).all():
            raise _not_finite()
        return found

    user, outputs, kept = snapshot.reader.read(batch)
    choices: list[list[Choice]] | None = None
    if rules is None:
        few = None if what.allowed is None else what.allowed.nonzero().squeeze(1)  # (n,)
        items, best = top(batch, k, few, user)  # (B, k), (B, k)
        values = best.float().tolist()  # B lists of k
    else:
        choices = reranked(top, batch, user, rules, k)
        values = [[one.score for one in row] for row in choices]  # B lists of up to k
        rows = [[one.item for one in row] + [PAD] * (k - len(row)) for row in choices]  # B lists of k
        items = torch.tensor(rows, dtype=torch.int64, device=batch.history.device).view(-1, k)  # (B, k)
    whys = explain(scorer, batch, weights, items, catalogue.ids, outputs) if options.explain else None
    if whys is not None and choices is not None:
        whys = [
            [_with_choice(why, choice, catalogue.ids) for why, choice in zip(*row, strict=True)]
            for row in zip(whys, choices, strict=True)
        ]
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


def _with_choice(why: Why, choice: Choice, ids: list[str]) -> Why:
    """Add what re-ranking did to the explanation of an item."""
    like = None if choice.like is None else (ids[choice.like[0]], choice.like[1])
    left_out = tuple((ids[item], column) for item, column in choice.left_out)
    return why._replace(parts=why.parts | choice.added, like=like, left_out=left_out)


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


class Told(NamedTuple):
    """Histories in item ids: the events that the model reads."""

    rows: list[list[int]]  # item ids of each history, oldest first
    unknown: list[list[str]]  # own ids of each history that are not in the catalogue, each once
    wanted: Ragged | None  # bool: the events of target kinds; None: all are


def read_histories(
    snapshot: Snapshot,
    histories: Sequence[Sequence[str]],
    unknown: Unknown,
    kinds: Sequence[Sequence[str] | None] | None = None,
) -> Told:
    """Turn own ids into item ids, and leave out events of kinds that the model does not read.

    Args:
        snapshot: the model and its catalogue.
        histories: own ids of each history.
        unknown: see `RecommendOptions`.
        kinds: the kind of every event of each history; None, for one or for all: not known, then all are read.

    Raises:
        DataError: `unknown` is "refuse" and an id is not in the catalogue, or a history is not a list, or has another number of
            kinds than of items.
    """
    if isinstance(histories, str):
        raise DataError("histories is one text; give a list of histories, each a list of item ids.")
    if kinds is not None and len(kinds) != len(histories):
        raise DataError(
            f"there are kinds of {len(kinds)} histories, but {len(histories)} histories; give one list for each."
        )
    chosen, row = snapshot.restored.kinds, snapshot.row
    known, missing, wanted = [], [], []
    for number, history in enumerate(histories):
        if isinstance(history, str):
            raise DataError(f"history {number} is the text {history!r}; give a list of item ids for each user.")
        of_events = kinds[number] if kinds is not None else None
        own_ids, predicted = list(history), [True] * len(history)
        if of_events is not None:
            if len(of_events) != len(own_ids) or isinstance(of_events, str):
                raise DataError(
                    f"history {number} has {len(own_ids)} items and {len(of_events)} kinds; give each item one."
                )
            read = [chosen.reads(kind) for kind in of_events]
            own_ids = list(compress(own_ids, read))
            predicted = list(compress(map(chosen.predicts, of_events), read))
        rows = [row.get(own, PAD) for own in own_ids]
        absent = list(dict.fromkeys(str(own) for own, at in zip(own_ids, rows, strict=True) if at == PAD))
        if absent and unknown == "refuse":
            raise DataError(f"history {number}: item {absent[0]!r} is not in the catalogue; leave it out or add it.")
        there = [at != PAD for at in rows]
        known.append(list(compress(rows, there)))
        wanted.append(list(compress(predicted, there)))
        missing.append(absent)
    if kinds is None:
        return Told(known, missing, None)
    flags = np.array([flag for row in wanted for flag in row], bool)  # (all,)
    return Told(known, missing, Ragged(Ragged.from_rows(known).offsets, flags))
