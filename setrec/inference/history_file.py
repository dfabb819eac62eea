"""Histories from a file: users who were never in the data, in their own ids."""

import json
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from setrec.errors import DataError
from setrec.files.ids import as_ids, as_text
from setrec.files.tables import read_table
from setrec.files.times import time_form, times

_CALL_IT = "name the columns with --user, --item, --time and --history"
_WRITE_DATES = "write the dates as 2014-07-23."


class HistoryFile(NamedTuple):
    """Users and what they did."""

    users: list[str]  # own ids, each once, in order of first appearance
    histories: list[list[str]]  # each user's items, oldest first
    kinds: list[list[str]] | None = None  # the kind of every event; None: not known


def read_history_file(
    path: str | Path,
    user: str = "user_id",
    item: str = "item_id",
    time: str = "timestamp",
    history: str = "history",
    kind: str | None = None,
) -> HistoryFile:
    """Read histories from .parquet, JSON lines (.jsonl, .ndjson, .json) or CSV with a header; see `read_table`.

    Either one row a user, with the items in the column `history`: a list, or in a CSV a JSON list or ids with spaces between. Or
    one row an event: `user` and `item`, in order of the column `time` where there is one, otherwise as they stand.

    Args:
        path: the file.
        user: the column of user ids.
        item: the column of item ids, where a row is an event.
        time: the column that gives a user's events their order.
        history: the column of histories, where a row is a user.
        kind: the column with the kind of an event, where a row is an event; None: there is none.

    Raises:
        DataError: no such file, a column missing, a row without user or item, a user who is there twice with a history.
    """
    table = read_table(path)
    name = Path(path).name
    if user not in table.columns or not {history, item} & set(table.columns):
        raise DataError(
            f"{name} needs a column {user!r} and a column {history!r} or {item!r} (it has {', '.join(table.columns)}): {_CALL_IT}."
        )
    if kind is not None and (kind not in table.columns or history in table.columns):
        raise DataError(
            f"{name}: --kind {kind} is a column of a file with a row for each event (it has {', '.join(table.columns)})."
        )
    users = as_ids(table[user])
    if users.null_count():
        raise DataError(f"{name}, row {_first(users.is_null())}: no user in column {user!r}.")
    if history in table.columns:
        return _from_rows(name, users, table[history])
    items = as_ids(table[item])
    if items.null_count():
        raise DataError(f"{name}, row {_first(items.is_null())}: no item in column {item!r}.")
    kinds = pl.repeat("", len(table), dtype=pl.String, eager=True) if kind is None else as_text(table[kind])
    columns = [users.alias("user"), items.alias("item"), kinds.fill_null("").alias("kind")]
    events = pl.DataFrame(columns).with_row_index("row")
    events = events.with_columns(pl.col("row").min().over("user").alias("first"))
    if time in table.columns:
        form = time_form([table[time]], "auto", f"{name}, column {time!r}", _WRITE_DATES)
        when = times(table[time], "auto", form)
        if when.null_count():
            row = _first(when.is_null())
            raise DataError(f"{name}, row {row}: {table[time][row - 1]!r} in column {time!r} is no time.")
        events = events.with_columns(when.alias("when")).sort("first", "when", "row")
    grouped = events.group_by("user", maintain_order=True).agg("item", "kind", pl.col("first").first()).sort("first")
    of_events = None if kind is None else grouped["kind"].to_list()
    return HistoryFile(grouped["user"].to_list(), grouped["item"].to_list(), of_events)


def _from_rows(name: str, users: pl.Series, column: pl.Series) -> HistoryFile:
    """One row a user."""
    if users.is_duplicated().any():
        row = _first(users.is_duplicated() & ~users.is_first_distinct())
        raise DataError(f"{name}, row {row}: user {users[row - 1]!r} is there twice; give each user one history.")
    lengths: list[int] = []
    parts = [pl.Series("item", [], pl.String)]
    for row, value in enumerate(column.to_list(), 1):
        if isinstance(value, str):
            value = _split(name, row, value)
        parts.append(as_text(pl.Series("item", value or [], strict=False)) if value else parts[0])
        lengths.append(len(parts[-1]))
        if parts[-1].null_count():
            raise DataError(f"{name}, row {row}: the history of user {users[row - 1]!r} holds an empty item.")
    items = as_ids(pl.concat(parts)).to_list()
    ends = list(accumulate(lengths, initial=0))
    return HistoryFile(users.to_list(), [items[start:end] for start, end in pairwise(ends)])


def _split(name: str, row: int, text: str) -> list[Any]:
    """A history in one field of a CSV."""
    if not text.lstrip().startswith("["):
        return text.split()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DataError(f"{name}, row {row}: the history is no JSON list ({error}).") from None
    assert isinstance(value, list)
    return value


def _first(true: pl.Series) -> int:
    """The number, from 1, of the first row that is true."""
    place = true.arg_max()
    assert place is not None
    return place + 1
