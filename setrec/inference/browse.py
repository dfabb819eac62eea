"""Looking around in a catalogue: items by their title, details of one, similar, popular and latest ones."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from setrec.errors import DataError
from setrec.inference.answers import Snapshot
from setrec.inference.attributes import Value


class Item(NamedTuple):
    """An item of the catalogue."""

    id: str
    title: str
    warm: bool  # seen in training


class ItemDetails(NamedTuple):
    """All that is known of an item."""

    id: str
    title: str
    warm: bool
    events: int  # occurrences in training
    attributes: dict[str, Value]


class SimilarItem(NamedTuple):
    """An item that is similar to another one."""

    id: str
    title: str
    warm: bool
    similarity: float


def search(snapshot: Snapshot, text: str, limit: int, filter: str | None) -> list[Item]:
    """See `Recommender.search`."""
    wanted, titles, admitted = text.casefold().strip(), snapshot.lower_titles, _admitted(snapshot, filter)
    places = [i for i in snapshot.by_count.tolist() if wanted in titles[i] and (admitted is None or admitted[i])]
    own = snapshot.row.get(text.strip())
    if own is not None and (admitted is None or admitted[own]):
        places = [own, *(i for i in places if i != own)]
    return _items(snapshot, places[: max(limit, 0)])


def details(snapshot: Snapshot, own: str) -> ItemDetails:
    """See `Recommender.item`."""
    row, catalogue = _row_of(snapshot, own), snapshot.catalogue
    count = int(catalogue.count[row])
    return ItemDetails(own, catalogue.titles[row], count > 0, count, snapshot.attributes.of(row))


def similar(snapshot: Snapshot, own: str, by: str, k: int, filter: str | None) -> list[SimilarItem]:
    """See `Recommender.similar`."""
    allowed = None if filter is None else snapshot.attributes.mask(filter)
    found = snapshot.similar.find(_row_of(snapshot, own), by, k, allowed)
    items = _items(snapshot, [row for row, _ in found])
    return [SimilarItem(*item, similarity) for item, (_, similarity) in zip(items, found, strict=True)]


def popular(snapshot: Snapshot, limit: int, filter: str | None, counts: Mapping[str, float]) -> list[Item]:
    """See `Recommender.popular`."""
    admitted = _admitted(snapshot, filter)
    lately = sorted((own for own in counts if own in snapshot.row), key=lambda own: -counts[own])
    places = dict.fromkeys([*(snapshot.row[own] for own in lately), *snapshot.by_count.tolist()])
    return _items(snapshot, [i for i in places if admitted is None or admitted[i]][: max(limit, 0)])


def latest(snapshot: Snapshot, limit: int, filter: str | None) -> list[Item]:
    """See `Recommender.latest`."""
    admitted = _admitted(snapshot, filter)
    places = reversed(range(snapshot.catalogue.n_items))
    return _items(snapshot, [i for i in places if admitted is None or admitted[i]][: max(limit, 0)])


def _row_of(snapshot: Snapshot, own: str) -> int:
    if own not in snapshot.row:
        raise DataError(f"item {own!a:.200} is not in the catalogue.")
    return snapshot.row[own]


def _admitted(snapshot: Snapshot, filter: str | None) -> list[bool] | None:
    return None if filter is None else snapshot.attributes.mask(filter).tolist()


def _items(snapshot: Snapshot, rows: Sequence[int]) -> list[Item]:
    catalogue = snapshot.catalogue
    return [Item(catalogue.ids[i], catalogue.titles[i], bool(catalogue.count[i] > 0)) for i in rows]
