"""From a reader's events to numbers in place of ids, in the order in which cleaning and split take them: in any engine."""

from pathlib import Path
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np
import polars as pl

from setrec.data.engines import Engine, Frame, Session, collected, count_rows
from setrec.data.readers.base import EventLog, PlainTable, Reader, SplitLog
from setrec.data.sql_session import SQLSession
from setrec.data.ties import id_hashes, mixed, share_of_ties, tie_keys, tied_events
from setrec.errors import ConfigError, DataError
from setrec.files.ids import as_text, whole_numbers
from setrec.files.times import TICKS, UNKNOWN

_NO_ROWS = "no user, no item or no time"


class NumberedLog(NamedTuple):
    """A log of events with numbers in place of ids, ready for cleaning."""

    events: Frame  # user, item: places in users and items; time: seconds; row: an order of a user's events; optionally rating,
    # kind: places in kinds; when: microseconds
    users: pl.Series  # own ids: in their order, or with paper_ids by first appearance
    items: pl.Series
    kinds: list[str]  # in order
    table: pl.DataFrame  # the reader's table of items
    extra: list[str]  # own ids of items without any event that enter the catalogue
    read: dict[str, int]  # events, users and items
    first: int  # ticks
    last: int
    ticks: int
    tied: float  # see `share_of_ties`


def read_log(
    reader: Reader, raw: Path | None, engine: Engine, session: Session, paper_ids: bool
) -> tuple[SplitLog | NumberedLog, dict[str, dict[str, Any]]]:
    """Read the raw files. Returns the log, and what there is to say about each file.

    Raises:
        DataError: see `Reader.read`.
        ConfigError: the engine does not keep the order of the rows, which paper_ids needs.
    """
    if isinstance(session, SQLSession):
        if paper_ids:
            raise ConfigError(
                f"paper_ids needs the order of the raw rows, which {type(engine).__name__} does not keep; use --data.engine "
                "PolarsEngine, or --data.paper_ids false."
            )
        table = reader.plain(raw)
        if table is not None:
            return _from_table(table, reader, raw, session)
    log = reader.read(raw)
    files = dict(log.files or {})
    if isinstance(log, SplitLog):
        return log, files
    for name, count in (log.skipped or {}).items():  # a reader of the user's own may say only this
        files.setdefault(name, {"skipped": count})
    if log.items["id"].is_duplicated().any():
        own = log.items.filter(pl.col("id").is_duplicated())["id"][0]
        raise DataError(f"item {own!r} is there twice in the table of items; keep one row per item.")
    if isinstance(session, SQLSession):
        return _from_log(log, session), files
    return _in_memory(log, paper_ids), files


def microseconds(ticks: int) -> nw.Expr:
    """The column `time`, int64 ticks, in microseconds; `UNKNOWN` where that is beyond what int64 holds."""
    factor = TICKS // ticks
    known = nw.col("time").abs() < (1 << 62) // factor
    return nw.when(known).then(nw.col("time") * factor).otherwise(nw.lit(UNKNOWN, nw.Int64))


def seconds(ticks: int) -> nw.Expr:
    """The column `time`, int64 ticks, in whole seconds. Exact where an engine divides by floating point, too."""
    time = nw.col("time")
    return (time - time % ticks + ticks // 2) // ticks if ticks > 1 else time


def kind_names(kinds: pl.Series) -> list[str]:
    """The different kinds, in order."""
    return sorted(kinds.unique().cast(pl.String).to_list())


# ------------------------------------------------------------------------------------------------------------- in memory
def _in_memory(log: EventLog, paper_ids: bool) -> NumberedLog:
    """Replace ids by numbers, so that the memory of the strings is free before the work begins."""
    numbers, tables = {}, {}
    for column in ("user", "item"):
        ids = log.events.select(id=column).unique(maintain_order=True)
        ids = (ids if paper_ids else ids.sort(pl.col("id").cast(pl.String))).with_row_index(column)
        numbered = log.events.select(id=column).join(ids, "id", how="left", maintain_order="left")
        numbers[column], tables[column] = numbered[column], ids["id"].cast(pl.String)
    kinds: list[str] = []
    if "kind" in log.events.columns:
        kinds = kind_names(log.events["kind"])
        places = pl.DataFrame({"kind": kinds}).with_row_index("place")
        names = log.events.select(pl.col("kind").cast(pl.String))
        numbers["kind"] = names.join(places, "kind", how="left", maintain_order="left")["place"]
    events = log.events.select("time", *(["rating"] if "rating" in log.events.columns else [])).with_columns(**numbers)
    read = {"events": len(events), "users": len(tables["user"]), "items": len(tables["item"])}
    first, last, tied = _end(events, False), _end(events, True), share_of_ties(events)
    if not paper_ids:
        keys = tie_keys(tables["user"].to_list(), tables["item"].to_list(), events, log.ticks)
        order = ["time", "tie", *(["kind"] if kinds else [])]
        events = events.with_columns(tie=pl.Series(keys)).sort(order).drop("tie")
    elif log.ticks > 1:
        events = events.sort("time", maintain_order=True)
    frame: Frame = nw.from_native(events.with_row_index("row").lazy())
    if log.timed:
        frame = frame.with_columns(when=microseconds(log.ticks))
    if log.ticks > 1:  # from here on whole seconds; the order of the rows keeps what is finer
        frame = frame.with_columns(time=seconds(log.ticks))
    frame = nw.from_native(collected(frame).lazy())
    extra = _without_events(log, tables["item"])
    return NumberedLog(
        frame, tables["user"], tables["item"], kinds, log.items, extra, read, first, last, log.ticks, tied
    )


def _end(events: pl.DataFrame, last: bool) -> int:
    return int(events["time"].max() if last else events["time"].min())  # type: ignore[arg-type]


def _without_events(log: EventLog, items: pl.Series) -> list[str]:
    if not log.keep_unreviewed:
        return []
    found: list[str] = log.items.join(items.to_frame("id"), "id", how="anti")["id"].to_list()
    return found


# ---------------------------------------------------------------------------------------------------------- in an engine
def _from_log(log: EventLog, session: SQLSession) -> NumberedLog:
    """The events of a reader that reads in memory go to the engine as they are."""
    texts = [name for name in ("user", "item", "kind") if name in log.events.columns]
    events = session.put(log.events.with_columns(pl.col(texts).cast(pl.String)))
    users, items = (_Ids(session, events, name, None) for name in ("user", "item"))
    return _numbered(session, events, users, items, log, None)


def _from_table(
    table: PlainTable, reader: Reader, raw: Path | None, session: SQLSession
) -> tuple[NumberedLog, dict[str, dict[str, Any]]]:
    """The engine reads the events itself. Only their different ids come here."""
    counter = table.counter
    events = session.scan(table)
    counter.lines = count_rows(events)
    here = events.filter(~nw.col("user").is_null(), ~nw.col("item").is_null(), ~nw.col("time").is_null())
    users, items = (_Ids(session, here, name, table) for name in ("user", "item"))
    log = EventLog(pl.DataFrame(), pl.DataFrame(), TICKS)
    numbered = _numbered(session, here, users, items, log, table)
    described = reader.items_of(raw, dict.fromkeys(numbered.items.to_list()))
    extra = _without_events(described, numbered.items)
    return numbered._replace(table=described.items, extra=extra), {counter.file: counter.about()} | (
        described.files or {}
    )


class _Ids:
    """The different ids of a column: as a table of the engine, and the texts that they mean, in order."""

    def __init__(self, session: SQLSession, events: Frame, column: str, table: PlainTable | None) -> None:
        raw = collected(events.select(column).unique())[column]
        text = raw.cast(pl.String) if table is None else as_text(raw, table.null_words)
        if table is not None:
            text = pl.select(pl.when(~text.str.contains("\n", literal=True)).then(text)).to_series()
            changed = whole_numbers(text.drop_nulls().to_list())
            text = text.replace(changed) if changed else text
        self.own = text.drop_nulls().unique().sort().alias("id")
        own = self.own.to_list()
        hashes = id_hashes(own) if column == "item" else mixed(id_hashes(own))  # (ids,)
        signed = pl.Series(hashes.view(np.int64))  # Spark has no other
        numbers = pl.DataFrame({"id": self.own, column: pl.Series(range(len(own)), dtype=pl.Int32), "hash": signed})
        found = pl.DataFrame({f"{column}_raw": raw, "id": text}).join(numbers, "id").drop("id")
        self.table = session.put(found.rename({"hash": f"{column}_hash"}))


def _numbered(
    session: SQLSession, events: Frame, users: _Ids, items: _Ids, log: EventLog, table: PlainTable | None
) -> NumberedLog:
    kinds: list[str] = []
    events = events.rename({"user": "user_raw", "item": "item_raw"})
    frame = events.join(users.table, on="user_raw").join(items.table, on="item_raw").drop("user_raw", "item_raw")
    types = events.collect_schema()
    if "kind" in types:
        raw = collected(events.select("kind").unique())["kind"]
        text = (raw if table is None else as_text(raw, table.null_words)).fill_null("")
        kinds = kind_names(text)
        places = pl.Series([kinds.index(one) for one in text.to_list()], dtype=pl.Int32)
        of_text = session.put(pl.DataFrame({"kind_raw": raw.fill_null("\0"), "kind": places}))
        frame = frame.with_columns(kind_raw=nw.col("kind").fill_null("\0")).drop("kind")
        frame = frame.join(of_text, on="kind_raw").drop("kind_raw")
    frame = session.tied(frame.with_columns(second=seconds(log.ticks)))
    order = ["time", "tie", *(["kind"] if kinds else [])]
    frame = frame.with_columns(row=nw.col("time").cum_count().over("user", order_by=order)).drop("tie")
    frame = session.keep(frame)
    ends = frame.select(
        first=nw.col("time").min(), last=nw.col("time").max(), n=nw.len(),
        users=nw.col("user").n_unique(), items=nw.col("item").n_unique(),
    )  # fmt: skip
    first, last, n, n_users, n_items = collected(ends).row(0)
    tied, different = collected(tied_events(frame)).row(0)
    if table is not None:
        if n < table.counter.lines:
            table.counter.skip_some(_NO_ROWS, table.counter.lines - n)
        table.counter.close()
        if not n:
            raise DataError(
                f"{table.counter.file} holds no events{table.counter.in_words()}; check that it is the right file."
            )
    read = {"events": n, "users": n_users, "items": n_items}
    own = items.own
    if n_items < len(own):  # ids that only malformed rows have
        there = collected(frame.select("item").unique())["item"].sort()
        numbers = pl.DataFrame({"item": there, "place": pl.Series(range(len(there)), dtype=pl.Int32)})
        frame = frame.join(session.put(numbers), on="item").drop("item").rename({"place": "item"})
        own = own.gather(there)
    if log.timed:
        frame = frame.with_columns(when=microseconds(log.ticks))
    frame = frame.with_columns(time=seconds(log.ticks))
    extra = _without_events(log, own) if table is None else []
    return NumberedLog(
        frame, users.own, own, kinds, log.items, extra, read, first, last, log.ticks, tied / max(different, 1)
    )
