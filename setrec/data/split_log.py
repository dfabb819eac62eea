"""From a numbered log to the histories of users: cleaned, split, with the ids of users and items."""

from typing import Any, NamedTuple

import narwhals as nw
import numpy as np
import polars as pl
from scipy import sparse

from setrec.cf import count_pairs
from setrec.data.engines import Frame, Session, collected
from setrec.data.numbering import NumberedLog, kind_names
from setrec.data.preparation import Preparation
from setrec.data.readers.base import SplitLog
from setrec.data.report import about_times
from setrec.data.split import TEST, TRAIN, VALIDATION, paper_item_ids
from setrec.errors import DataError
from setrec.files.ragged import Ragged, Splits


class Divided(NamedTuple):
    """A log with its splits, and the same events as a frame of the engine."""

    log: SplitLog
    events: Frame  # user, item, time, row, part
    item_ids: np.ndarray  # number of an item in `events` -> item id, int32

    def cooccurrence(self, train: Ragged, n_items: int, window: int) -> sparse.csr_matrix:
        """Count in the engine what `setrec.cf.count_cooccurrence` counts in memory."""
        pairs = collected(count_pairs(self.events.filter(nw.col("part") == TRAIN), window))
        first, second = (self.item_ids[pairs[name].to_numpy()] for name in ("first", "second"))
        half = sparse.csr_matrix((pairs["n"].to_numpy().astype(np.float32), (first, second)), (n_items, n_items))
        return (half + half.T).tocsr()


def split_log(log: NumberedLog, preparation: Preparation, session: Session, report: dict[str, Any]) -> Divided:
    """Clean, split, drop users, give ids, and add to the report what that did.

    With preparation.paper_ids, ids are given as in the official release: items by `paper_item_ids`, users in order of first
    appearance; events of a user at the same time stay in the order of the file. Otherwise nothing depends on the order of the
    raw rows: items and users are in order of their own ids, events in order of time, and by chance within a time (`ties.py`).
    """
    cleaning, split, paper_ids = preparation.cleaning, preparation.split, preparation.paper_ids
    report["read"] = log.read | {"items": len(log.items)}
    report["times"] = about_times(log.first, log.last, log.ticks, log.tied, paper_ids)
    report["cleaning"] = []
    frame, before = log.events, log.read["events"]
    for step, kept, left in cleaning.steps(frame, session.keep):
        report["cleaning"].append({"step": step, "dropped": before - left})
        frame, before = kept, left
    n_users = _n_users(frame)
    frame, left = split.divided(frame, session.keep)
    events = session.in_order(frame.select(*_needed(frame)), ["user", "time", "row"])
    there = np.unique(events["user"].to_numpy())  # (users,) numbers of those who stay
    report["split"] = {
        "by": type(split).__name__, "min_train": split.min_train, "events": before - left, "users": n_users - len(there)
    }  # fmt: skip

    bought = np.unique(events["item"].to_numpy())  # (items,) numbers of those that stay
    own = pl.DataFrame({"id": log.items.gather(bought), "item": bought}, {"id": pl.String, "item": pl.Int64})
    order = sorted(own["id"].to_list() + log.extra)
    order = paper_item_ids(order) if paper_ids else order
    new = pl.DataFrame({"id": order}, {"id": pl.String}).with_row_index("item_id").join(own, "id")  # id, item_id, item
    table = pl.DataFrame({"id": order}, {"id": pl.String}).join(log.table, "id", how="left", maintain_order="left")
    table = table.with_columns(pl.col("title", "text").fill_null(""))
    item_ids = np.zeros(len(log.items), np.int32)  # number -> item id
    item_ids[new["item"].to_numpy()] = new["item_id"].to_numpy()
    user_ids = np.zeros(len(log.users), np.int32)  # number -> user id
    user_ids[there] = np.arange(len(there))
    events = events.with_columns(
        pl.Series("item_id", item_ids[events["item"].to_numpy()]), pl.Series("user_id", user_ids[events["user"].to_numpy()])
    ).drop("user", "item")  # fmt: skip
    names: tuple[str, ...] = ()
    if "kind" in events.columns:
        kinds, places = np.unique(events["kind"].to_numpy(), return_inverse=True)
        names = checked_kinds([log.kinds[place] for place in kinds])
        events = events.with_columns(pl.Series("kind", places, pl.UInt8))
    splits = splits_of(events, len(there))
    times, kinds_of = splits.get("times"), splits.get("kinds")
    parted = SplitLog(log.users.gather(there).to_list(), table, *splits["items"], None, times, kinds_of, names)
    return Divided(parted, frame, item_ids)


def _n_users(frame: Frame) -> int:
    return int(collected(frame.select(nw.col("user").n_unique())).item())


def _needed(frame: Frame) -> list[str]:
    """The columns that the histories are made from."""
    types = frame.collect_schema()
    return ["user", "time", "row", "item", "part", *(name for name in ("when", "kind") if name in types)]


def numbered_kinds(events: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Make numbers, uint8, of the column `kind`, if there is one. Returns the names of the numbers too.

    Raises:
        DataError: there are more than 256 kinds.
    """
    if "kind" not in events.columns:
        return events, ()
    names = checked_kinds(kind_names(events["kind"]))
    table = pl.DataFrame({"kind": names, "number": pl.Series(range(len(names)), dtype=pl.UInt8)})
    number = events.select(pl.col("kind").cast(pl.String)).join(table, "kind", how="left", maintain_order="left")
    return events.with_columns(kind=number["number"]), names


def checked_kinds(names: list[str]) -> tuple[str, ...]:
    """Check that the kinds fit into a byte.

    Raises:
        DataError: there are more than 256.
    """
    if len(names) > 256:
        raise DataError(
            f"the column of kinds holds {len(names):,} different values, such as {names[1]!r}, and at most 256 are kept; name "
            "another column, or none, with --data.reader.kind."
        )
    return tuple(names)


def splits_of(events: pl.DataFrame, n_users: int) -> dict[str, Splits]:
    """Make rows of users from events in their order: `items`, and `times` and `kinds` where the events have them.

    Args:
        events: user_id, item_id, part; optionally when (int64) and kind (uint8). Those of a user stand together, users ascending.
        n_users: the number of rows.
    """
    columns = {"items": "item_id", "times": "when", "kinds": "kind"}
    found: dict[str, list[Ragged]] = {name: [] for name, column in columns.items() if column in events.columns}
    for part in (TRAIN, VALIDATION, TEST):
        some = events.filter(pl.col("part") == part)
        lengths = np.bincount(some["user_id"].to_numpy(), minlength=n_users)  # (users,)
        items = Ragged.from_lengths(lengths, some["item_id"].to_numpy())
        for name, rows in found.items():
            rows.append(items if name == "items" else Ragged(items.offsets, some[columns[name]].to_numpy()))
    return {name: Splits(*rows) for name, rows in found.items()}
