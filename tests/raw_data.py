"""Raw files and raw events for the tests of data, and what comes out of them."""

import gzip
import json
from pathlib import Path

import numpy as np
import polars as pl

from setrec.cf import CFFile
from setrec.data import (
    Catalogue,
    Cleaning,
    EventLog,
    Histories,
    OfficialRelease,
    Reader,
    SETRecDataModule,
    TimeRatioSplit,
    prepare,
)
from setrec.data.preparation import Preparation
from setrec.text import TextFile


def write(path: Path, content: str | bytes) -> Path:
    """A file; packed where its name says so."""
    content = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def literal(rows: list[dict]) -> str:
    return "".join(f"{row!r}\n" for row in rows)


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def events_of(log: EventLog) -> list[tuple]:
    return log.events.with_columns(pl.col("user", "item").cast(pl.String)).rows()


def skipped(log: EventLog) -> dict[str, int]:
    """The number of malformed lines of every file."""
    return {name: about["skipped"] for name, about in (log.files or {}).items()}


def items_of(log: EventLog) -> dict[str, dict]:
    return {row["id"]: row for row in log.items.rows(named=True)}


def prepared(tmp_path: Path, reader, name: str = "x", **options) -> tuple[Catalogue, Histories]:
    options = {"cleaning": Cleaning(k_core=0), "text": None, "cf": []} | options
    data = SETRecDataModule(name=name, reader=reader, raw=str(tmp_path), root=str(tmp_path / "data"), **options)
    data.prepare_data()
    data.setup()
    return data.catalogue, data.histories


class Fixed(Reader):
    """Events given by the test."""

    needs_raw = False

    def __init__(self, events: list[tuple], items: list[tuple] | None = None) -> None:
        self.events, self.items = events, items

    def read(self, raw: Path | None) -> EventLog:
        columns = ["user", "item", "time", "rating"][: len(self.events[0])]
        events = pl.DataFrame(self.events, schema=columns, orient="row", schema_overrides={"time": pl.Int64})
        names = [(i, f"title {i}", f"text {i}") for i in sorted({event[1] for event in self.events})]
        rows = self.items if self.items is not None else names
        items = pl.DataFrame(rows, schema=dict.fromkeys(("id", "title", "text"), pl.String), orient="row")
        return EventLog(events, items)


def run(tmp_path: Path, reader: Reader, cleaning=None, split=None, paper_ids=False, name="x", text=None, cf=()):
    preparation = Preparation(
        reader, text, list(cf), cleaning or Cleaning(k_core=0), split or TimeRatioSplit(), paper_ids
    )
    prepare.prepare(name, tmp_path / name, preparation, None)
    return Catalogue.load(tmp_path / name), Histories.load(tmp_path / name)


def as_dicts(histories: Histories) -> list[dict[str, list[int]]]:
    splits = (histories.train, histories.validation, histories.test)
    return [{own: split.row(u).tolist() for u, own in enumerate(histories.ids)} for split in splits]


def random_events(seed: int, users: int = 40, items: int = 30, n: int = 600) -> list[tuple]:
    """Distinct (user, item) pairs with many ties in time, in no order, own ids that sort unlike numbers."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice(users * items, n, replace=False)
    times = rng.integers(1_000, 1_060, n)
    return [(f"u{pair // items}", f"B{pair % items}é", int(time)) for pair, time in zip(pairs, times, strict=True)]


def official(tiny_release: Path, **changed) -> Preparation:
    preparation = Preparation(OfficialRelease(), TextFile("text.npy"), [CFFile()], Cleaning(), TimeRatioSplit(), False)
    return preparation._replace(**changed)
