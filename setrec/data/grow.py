"""The next version of prepared data: its users and items in their rows, with new events and new items after them.

    <root>/shop            as `fit` prepared it
          shop.002         after the first update; its own files are whole, and those of shop stay as they are
          shop.003

Everything known before is training data of the new version. Of the new events, the newest are its validation split.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np
import polars as pl
from safetensors.numpy import load_file

from setrec.cf import CFFile, CFVectors, rotated
from setrec.data.catalogue import ENCODER, ITEMS, MANIFEST, VECTORS, Catalogue, Histories, read_manifest
from setrec.data.clean import Cleaning
from setrec.data.engines import collected, in_memory
from setrec.data.identity import inputs_hash
from setrec.data.numbering import microseconds
from setrec.data.readers.base import EventLog
from setrec.data.split import TRAIN, VALIDATION
from setrec.data.split_log import numbered_kinds, splits_of
from setrec.data.store import Prepared
from setrec.errors import DataError
from setrec.files.times import TICKS, UNKNOWN
from setrec.vectors import ItemVectors, Made

_BEFORE_ALL, _AFTER_ALL = -(1 << 44), 1 << 44  # seconds, for events without a time: old ones are before, new ones after
_DAY = 86_400


class NewItems(NamedTuple):
    """Items that the catalogue does not have yet."""

    table: pl.DataFrame  # id, title, text and further columns
    vectors: np.ndarray | None  # (new, F) float32; None: the data has no text
    more: Mapping[
        str, tuple[np.ndarray, np.ndarray]
    ] = {}  # of further sources, vectors (new, W) and present (new,), by name


class Newest(NamedTuple):
    """Which of the new events are the validation split: the newest."""

    share: float = 0.2  # of the new events
    days: float | None = None  # in place of the share: those of so many days before the last


class Grown(NamedTuple):
    """A new version, ready to be written by `write`."""

    prepared: Prepared
    about: dict[str, Any]  # for the manifest
    counts: dict[str, int]  # of new events, users and items, and of the events of the validation split
    dropped: dict[str, int]  # why -> new events


# --------------------------------------------------------------------------------------------------------- the versions
def versions_of(folder: Path) -> dict[int, Path]:
    """The versions that `update` made of a prepared data set, by number. folder: the data set, or one of its versions."""
    stem = stem_of(folder)
    found = {}
    for path in folder.parent.glob(f"{stem}.*"):
        number = path.name.removeprefix(f"{stem}.")
        if re.fullmatch(r"\d{3,}", number) and (path / MANIFEST).is_file():
            found[int(number)] = path
    return dict(sorted(found.items()))


def stem_of(folder: Path) -> str:
    """The name of a data set without the number of its version."""
    grown = bool((read_manifest(folder) or {}).get("grown_from"))
    return re.sub(r"\.\d{3,}$", "", folder.name) if grown else folder.name


# ------------------------------------------------------------------------------------------------------------ to grow
def grow(
    base: Path,
    name: str,
    log: EventLog | None,
    new: NewItems,
    makers: Sequence[CFVectors],
    cleaning: Cleaning,
    newest: Newest,
    also_from: str,
    sources: Mapping[str, ItemVectors] = {},
) -> Grown:
    """Put new events and items after those of prepared data.

    New events are cleaned as the data was: ratings too low, events that are known already (the same user, item and second), and
    repeats that it does not keep are dropped; so are events of items that nobody describes. Users and items with few events
    stay: the k-core is not taken again.

    Args:
        base: the version before.
        name: the name of the new one.
        log: the new events; None: there are none.
        new: the new items.
        makers: of the CF vectors, one for each slot. Vectors from a file stay, and new items have none; others are made again
            from all events and rotated onto those before (`rotated`).
        cleaning: how the data was cleaned.
        newest: the validation split.
        also_from: fingerprint of a catalogue that weights for the new version may come from, beside those of `base`.
        sources: makers of further vectors, by name: CF vectors are made again; new items bring the others, or have none.

    Raises:
        DataError: there is nothing new, or `base` cannot be read.
    """
    catalogue, histories = Catalogue.load(base), Histories.load(base)
    manifest = read_manifest(base) or {}
    ids = catalogue.ids + new.table["id"].to_list()
    dropped: dict[str, int] = {}
    old = _old_events(histories)
    users, fresh = histories.ids, old.clear()
    if log is not None:
        users, fresh = _new_events(log, users, ids, cleaning.min_rating, bool(len(histories.kind_names)), dropped)
    if not len(fresh) and not len(new.table):
        raise DataError(f"there is nothing new{_in_words(dropped)}: no event and no item is added.")
    events = pl.concat([old, fresh], how="diagonal_relaxed").with_row_index("row")
    again = cleaning.drop_duplicates and (log is None or log.timed)
    rules = replace(cleaning, min_rating=None, drop_duplicates=again, k_core=0)
    for step, frame, _ in rules.steps(nw.from_native(events.lazy()), in_memory):
        kept = collected(frame).sort("row")
        _count(dropped, step, int(events["new"].sum()), int(kept["new"].sum()))
        events = kept
    added = int(events["new"].sum())
    if not added and not len(new.table):
        raise DataError(f"there is nothing new{_in_words(dropped)}: no event and no item is added.")
    events = events.with_columns(part=_parts(events.filter("new"), newest))
    no_kinds = events["kind"].null_count() == len(events)
    events = events.drop("kind") if no_kinds else events.with_columns(pl.col("kind").fill_null(""))
    events, kinds = numbered_kinds(events)
    events = events.sort("user_id", "time", "row")
    splits = splits_of(events, len(users))
    times = splits["times"] if (events["when"] != UNKNOWN).any() else None
    train = events.filter(pl.col("part") == TRAIN)
    place = train.select(place=pl.int_range(pl.len()).over("user_id"), user_id="user_id", new="new").filter("new")
    since = splits["items"].train.lengths.copy()  # (users,)
    np.minimum.at(since, place["user_id"].to_numpy(), place["place"].to_numpy())
    table = pl.read_parquet(base / ITEMS).drop("item_id", "count", "warm")
    table = pl.concat([table, new.table], how="diagonal_relaxed").with_columns(pl.col("title", "text").fill_null(""))
    text = None if catalogue.text is None else catalogue.text.numpy()  # (N, F)
    if text is not None and new.vectors is not None:
        text = np.concatenate([text, new.vectors.astype(text.dtype)])  # (N', F)
    cf, about_cf = [], []
    for c, maker in enumerate(makers):
        known = catalogue.cf[c].numpy(), catalogue.present[c].numpy()  # (N, E), (N,)
        vectors, present = _cf(known, maker, ids, splits["items"].train)  # (N', E), (N',)
        cf.append((vectors, present))
        about_cf.append(manifest["cf"][c] | {"present": int(present.sum())})
    further, about_further = {}, {}
    stored = load_file(base / VECTORS) if catalogue.vectors else {}
    for source, one in catalogue.vectors.items():
        before, there = one.table.numpy(), one.present.numpy()  # (N, W), (N,)
        made_by = sources.get(source)
        if isinstance(made_by, CFVectors):
            vectors, present = _cf((before, there), made_by, ids, splits["items"].train)  # (N', W), (N',)
        else:
            none = np.zeros((len(new.table), before.shape[1]), before.dtype), np.zeros(len(new.table), bool)
            theirs = new.more.get(source, none)
            vectors = np.concatenate([before, theirs[0].astype(before.dtype)])  # (N', W)
            present = np.concatenate([there, theirs[1]])  # (N',)
        first = f"{source}.learned."
        of_maker = {key.removeprefix(first): value for key, value in stored.items() if key.startswith(first)}
        further[source] = Made(vectors, present, of_maker)
        about_further[source] = manifest["vectors"][source] | {"missing": int((~present).sum())}
    learned = load_file(base / ENCODER) if (base / ENCODER).is_file() else None
    of_kinds = splits.get("kinds")
    prepared = Prepared(name, table, users, *splits["items"], text, cf, learned, times, of_kinds, kinds, since, further)
    assert catalogue.identity is not None, "it was read from the disk"
    from_ = [*manifest.get("grown_from", []), catalogue.identity.fingerprint, also_from]
    about: dict[str, Any] = {"text": manifest["text"], "cf": about_cf}
    if further:
        about["vectors"] = about_further
    about |= {"inputs": inputs_hash(table, splits["items"].train, about), "grown_from": list(dict.fromkeys(from_))}
    about |= {name: manifest[name] for name in ("reader", "options") if name in manifest}
    about |= {"sources": {}, "stamps": {}, "raw": None, "report": {"warnings": []}, "skipped_lines": {}}
    validation = int((events["part"] == VALIDATION).sum())
    counts = {"events": added, "users": len(users) - len(histories.ids), "items": len(new.table), "newest": validation}
    return Grown(prepared, about, counts, dropped)


def _old_events(histories: Histories) -> pl.DataFrame:
    """All events before, those of a user in their order: user_id, item_id, user, item, time, when, kind, new."""
    parts = []
    user = np.arange(len(histories.ids))
    for number, split in enumerate(("train", "validation", "test")):
        rows = getattr(histories, split)
        times = getattr(histories.times, split).items if histories.times is not None else UNKNOWN
        kinds = None
        if histories.kinds is not None:
            kinds = pl.Series(histories.kind_names, dtype=pl.String)[getattr(histories.kinds, split).items]
        parts.append(
            pl.DataFrame(
                {"user_id": np.repeat(user, rows.lengths), "item_id": rows.items.astype(np.int64)}
            ).with_columns(
                when=pl.lit(times, dtype=pl.Int64) if isinstance(times, int) else pl.Series(times),
                kind=pl.lit(None, dtype=pl.String) if kinds is None else kinds,
                split=pl.lit(number),
            )
        )
    events = pl.concat(parts).sort("user_id", "split", maintain_order=True).drop("split")
    place = pl.int_range(pl.len()) + _BEFORE_ALL
    time = pl.when(pl.col("when") == UNKNOWN).then(place).otherwise(pl.col("when") // TICKS)
    return events.with_columns(user="user_id", item="item_id", time=time, new=pl.lit(False))


def _new_events(
    log: EventLog, users: list[str], ids: list[str], min_rating: float | None, has_kinds: bool, dropped: dict[str, int]
) -> tuple[list[str], pl.DataFrame]:
    """The new events in the form of the old ones, and all users: those known, then new ones in order of their ids."""
    events = log.events
    if min_rating is not None and "rating" in events.columns:
        kept = events.filter(pl.col("rating") >= min_rating)
        _count(dropped, f"min_rating {min_rating:g}", len(events), len(kept))
        events = kept
    events = events.with_columns(pl.col("user", "item").cast(pl.String))
    items = pl.DataFrame({"item": ids, "item_id": range(len(ids))}, {"item": pl.String, "item_id": pl.Int64})
    kept = events.join(items, "item", maintain_order="left")
    _count(dropped, "of items that are not described", len(events), len(kept))
    everyone = users + sorted(set(kept["user"].unique().to_list()) - set(users))
    numbers = pl.DataFrame(
        {"user": everyone, "user_id": range(len(everyone))}, {"user": pl.String, "user_id": pl.Int64}
    )
    kept = kept.join(numbers, "user", how="left", maintain_order="left")
    time = pl.col("time") // log.ticks if log.timed else pl.int_range(pl.len()) + _AFTER_ALL
    no_kind = pl.lit("" if has_kinds else None, pl.String)
    if log.timed:
        kept = nw.from_native(kept).with_columns(when=microseconds(log.ticks)).to_native()
    else:
        kept = kept.with_columns(when=pl.lit(UNKNOWN, pl.Int64))
    kept = kept.with_columns(time=time, kind=pl.col("kind").cast(pl.String) if "kind" in kept.columns else no_kind)
    kept = kept.with_columns(user="user_id", item="item_id", new=pl.lit(True))
    kept = kept.select("user_id", "item_id", "when", "kind", "user", "item", "time", "new")
    return everyone, kept.sort("time", maintain_order=True)


def _parts(fresh: pl.DataFrame, newest: Newest) -> pl.Expr:
    """TRAIN or VALIDATION for each event. fresh: the new events."""
    if not len(fresh):
        return pl.lit(TRAIN, pl.UInt8)
    times = fresh["time"].sort()
    first = times[-math.ceil(newest.share * len(times))] if newest.days is None else times[-1] - newest.days * _DAY
    is_newest = pl.col("new") & (pl.col("time") >= first)
    return pl.when(is_newest).then(VALIDATION).otherwise(TRAIN).cast(pl.UInt8)


def _cf(
    known: tuple[np.ndarray, np.ndarray], maker: CFVectors, ids: list[str], train: Any
) -> tuple[np.ndarray, np.ndarray]:
    """CF vectors, (N', E), and which are present, (N',) bool. known: those of the items before, (N, E) and (N,)."""
    old, there = known
    more = len(ids) - len(old)
    if isinstance(maker, CFFile):
        return np.pad(old, ((0, more), (0, 0))), np.pad(there, (0, more))
    vectors, present = maker.vectors(ids, train, None)  # (N', E), (N',)
    shared = np.flatnonzero(there & present[: len(old)])  # (n,)
    return rotated(vectors, old[shared], shared).astype(old.dtype), present


def _count(dropped: dict[str, int], why: str, before: int, after: int) -> None:
    if before > after:
        dropped[why] = dropped.get(why, 0) + before - after


def _in_words(dropped: dict[str, int]) -> str:
    return f" ({', '.join(f'{count:,} events dropped: {why}' for why, count in dropped.items())})" if dropped else ""
