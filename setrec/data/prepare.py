"""From raw files to prepared data: read, clean, split, give ids, make vectors, write. Done once per data set."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
from rich.console import Console

from setrec.cf import CFVectors
from setrec.class_names import current_names
from setrec.data.catalogue import read_manifest
from setrec.data.clean import Cleaning
from setrec.data.readers.base import EventLog, Reader, SplitLog
from setrec.data.readers.download import fetch
from setrec.data.split import TEST, TRAIN, VALIDATION, Split, paper_item_ids
from setrec.data.store import FORMAT, Prepared, files_match, locked, update_manifest, write
from setrec.errors import DataError
from setrec.files.hashes import file_hash
from setrec.files.ragged import Ragged
from setrec.hparams import to_plain
from setrec.text import TextVectors

_BIG = 1 << 26  # bytes: a raw file of this size or more is hashed again only if its size or time of change is another


class Preparation(NamedTuple):
    """Everything that decides what the prepared data looks like, except the raw files."""

    reader: Reader
    text: TextVectors | None
    cf: list[CFVectors]
    cleaning: Cleaning
    split: Split
    paper_ids: bool

    def options(self) -> dict[str, Any]:
        """Return the preparation in plain types, without the options that this reader does not use and its downloads."""
        used: dict[str, object] = {"reader": self.reader, "text": self.text, "cf": self.cf}
        if not self.reader.gives_splits:
            used |= {"cleaning": self.cleaning, "split": self.split, "paper_ids": self.paper_ids}
        options: dict[str, Any] = json.loads(json.dumps(to_plain(used)))  # as it comes back from the manifest
        options["reader"]["init_args"].pop("download", None)
        return options

    def sources(self, raw: Path | None) -> dict[str, Path]:
        """Return every file that would be read, under its name in the manifest."""
        makers: list[Reader | CFVectors | TextVectors] = [
            self.reader,
            *self.cf,
            *([self.text] if self.text is not None else []),
        ]
        files = {path for maker in makers for path in maker.sources(raw)}
        inside = {path for path in files if raw is not None and path.is_relative_to(raw)}
        named = {str(path.relative_to(raw)) if path in inside and raw else str(path.resolve()): path for path in files}
        return dict(sorted(named.items()))


def prepare(name: str, folder: Path, preparation: Preparation, raw: Path | None) -> bool:
    """Prepare the data set that `preparation` describes, unless `folder` holds it already.

    It holds it if the manifest has the same options, and the prepared files and the raw files (if they are given) have the
    hashes in the manifest. A raw file of 64 MiB or more counts as unchanged while its size and its time of change are the
    same. Two processes may call this at once: one works, the other waits.

    If no raw folder is given and the reader knows a public source, that is downloaded to <root>/raw/<name>.

    Args:
        name: the data set's name.
        folder: <root>/<name>.
        preparation: what to make.
        raw: the folder of raw files. None: use what is prepared, or download, or the reader makes its own data.

    Returns:
        Whether anything was done.

    Raises:
        DataError: raw files are missing or wrong, or the disk refuses.
    """
    if raw is not None and not raw.is_dir():
        raise DataError(f"there is no folder {raw}; pass --data.raw DIR with the folder that holds the raw files.")
    with locked(folder):
        options = preparation.options()
        if _is_current(folder, options, preparation, raw):
            return False
        if raw is None and preparation.reader.needs_raw:
            raw = _download(name, folder, preparation)
        with _progress(f"data set {name}: reading raw files"):
            sources, stamps = _hashes(preparation, raw, {})
            log, skipped = _read(preparation.reader, raw)
        if isinstance(log, _NumberedLog):
            with _progress(f"data set {name}: cleaning and splitting {len(log.events):,} events"):
                log = _split_log(log, preparation)
        scratch = folder.parent / f".{folder.name}.blocks"  # finished blocks of a slow text encoder
        prepared, about = _add_vectors(name, log, preparation, raw, sources, scratch)
        about |= {"skipped_lines": skipped}
        about |= {"reader": options["reader"], "options": options, "sources": sources, "stamps": stamps}
        with _progress(f"data set {name}: writing {folder}"):
            write(folder, prepared, about)
        return True


def _download(name: str, folder: Path, preparation: Preparation) -> Path:
    """Download the raw files, unless they are there. Returns their folder.

    Raises:
        DataError: the reader knows no public source, or the download fails.
    """
    public = preparation.reader.public(name)
    if not public:
        state = "is not prepared" if read_manifest(folder) is None else "was prepared with other options or is damaged"
        raise DataError(
            f"data set {name!r} {state} in {folder} and {type(preparation.reader).__name__} needs raw files; "
            "pass --data.raw DIR with the folder that holds them."
        )
    raw = folder.parent / "raw" / name
    fetch(public, raw)
    return raw


def _is_current(folder: Path, options: dict[str, Any], preparation: Preparation, raw: Path | None) -> bool:
    """Whether the folder holds the data set of these options and raw files."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("format") != FORMAT or current_names(manifest.get("options")) != options:
        return False
    if not files_match(folder, manifest):
        return False
    if raw is not None:
        sources, stamps = _hashes(preparation, raw, manifest)
        if sources != manifest.get("sources"):
            return False
        if stamps != manifest.get("stamps"):  # the same content under new times, as after a copy
            update_manifest(folder, manifest | {"stamps": stamps})
    return True


def _hashes(
    preparation: Preparation, raw: Path | None, manifest: dict[str, Any]
) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Return the sha256 of every raw file, and its size and time of change (in ns). Known big files are not read again."""
    hashes, stamps = {}, {}
    for label, path in preparation.sources(raw).items():
        if path.is_file():
            state = path.stat()
            stamps[label] = [state.st_size, state.st_mtime_ns]
            known = manifest.get("sources", {}).get(label)
            same = state.st_size >= _BIG and manifest.get("stamps", {}).get(label) == stamps[label]
            hashes[label] = known if same and known else file_hash(path)
    return hashes, stamps


def _add_vectors(
    name: str, log: SplitLog, preparation: Preparation, raw: Path | None, sources: dict[str, str], scratch: Path
) -> tuple[Prepared, dict[str, Any]]:
    """Make the vectors of the items. Returns the whole data set, and what the manifest says of the vectors."""
    ids, texts = log.items["id"].to_list(), log.items["text"].to_list()
    text, about_text = None, None
    if preparation.text is not None:
        with _progress(
            f"data set {name}: text vectors of {len(ids):,} items", spinner=not preparation.text.shows_progress
        ):
            text = preparation.text.encode(ids, texts, raw, log.items, scratch)  # (N, F)
        hashes = [
            sources[label] for label, path in preparation.sources(raw).items() if path in preparation.text.sources(raw)
        ]
        about_text = preparation.text.describe() | {"width": text.shape[1], "files": hashes}
    cf, about_cf = [], []
    for maker in preparation.cf:
        with _progress(f"data set {name}: CF vectors by {type(maker).__name__}"):
            vectors, present = maker.vectors(ids, log.train, raw)  # (N, E), (N,)
        hashes = [sources[label] for label, path in preparation.sources(raw).items() if path in maker.sources(raw)]
        cf.append((vectors, present))
        about_cf.append(maker.describe() | {"width": vectors.shape[1], "present": int(present.sum()), "files": hashes})
    learned = preparation.text.learned() if preparation.text is not None else None
    prepared = Prepared(name, log.items, log.user_ids, log.train, log.validation, log.test, text, cf, learned)
    return prepared, {"text": about_text, "cf": about_cf}


class _NumberedLog(NamedTuple):
    """A log of events with numbers in place of ids, so that 20 million events fit in memory."""

    events: pl.DataFrame  # user u32, item u32, time i64, optionally rating, in file order
    users: pl.DataFrame  # user u32 (by first appearance), id str
    items: pl.DataFrame  # item u32, id str
    table: pl.DataFrame  # the reader's table of items
    ticks: int
    extra: list[str]  # own ids of items without any event that enter the catalogue


def _read(reader: Reader, raw: Path | None) -> tuple[SplitLog | _NumberedLog, dict[str, int]]:
    """Read the raw files. Returns the log, and the number of skipped lines of each file."""
    log = reader.read(raw)
    return (_number_ids(log), log.skipped or {}) if isinstance(log, EventLog) else (log, {})


def _number_ids(log: EventLog) -> _NumberedLog:
    """Replace ids by numbers, so that the memory of the strings is free before the work begins."""
    if log.items["id"].is_duplicated().any():
        own = log.items.filter(pl.col("id").is_duplicated())["id"][0]
        raise DataError(f"item {own!r} is there twice in the table of items; keep one row per item.")
    numbers, tables = {}, {}
    for column in ("user", "item"):
        ids = log.events.select(id=column).unique(maintain_order=True).with_row_index(column)
        numbered = log.events.select(id=column).join(ids, "id", how="left", maintain_order="left")
        numbers[column], tables[column] = numbered[column], ids.with_columns(pl.col("id").cast(pl.String))
    events = log.events.select(pl.exclude("user", "item")).with_columns(**numbers)
    never = log.items.join(tables["item"], "id", how="anti")["id"].to_list() if log.keep_unreviewed else []
    return _NumberedLog(events, tables["user"], tables["item"], log.items, log.ticks, never)


def _split_log(log: _NumberedLog, preparation: Preparation) -> SplitLog:
    """Clean, split, drop users, give ids.

    With preparation.paper_ids, ids are given as in the official release: items by `paper_item_ids`, users in order of first
    appearance; events of a user at the same time stay in the order of the file. Otherwise nothing depends on the order of the
    raw rows: items and users are in order of their own ids, events in order of (time, item).
    """
    events = log.events
    if not preparation.paper_ids:
        by_id = log.items.sort("id").select("item").with_row_index("new")  # items numbered by their own ids
        events = events.join(by_id, "item", how="left", maintain_order="left").sort("time", "new").drop("new")
    elif log.ticks > 1:
        events = events.sort("time", maintain_order=True)
    if log.ticks > 1:  # from here on whole seconds; the order of the rows keeps what is finer
        events = events.with_columns(pl.col("time") // log.ticks)
    events = preparation.split.apply(preparation.cleaning.apply(events.with_row_index("row")))

    kept = events.select("item").unique().join(log.items, "item").sort("id")
    order = sorted(kept["id"].to_list() + log.extra)
    order = paper_item_ids(order) if preparation.paper_ids else order
    new = pl.DataFrame({"id": order}, {"id": pl.String}).with_row_index("item_id").join(kept, "id")  # id, item_id, item
    table = pl.DataFrame({"id": order}, {"id": pl.String}).join(log.table, "id", how="left", maintain_order="left")
    table = table.with_columns(pl.col("title", "text").fill_null(""))
    people = events.select("user").unique().join(log.users, "user")
    people = people.sort("user" if preparation.paper_ids else "id").with_row_index("user_id")

    events = events.join(new.select("item", "item_id"), "item").join(people.select("user", "user_id"), "user")
    events = events.sort("user_id", "time", "row").select("user_id", "item_id", "part")
    splits = [_ragged(events.filter(pl.col("part") == part), len(people)) for part in (TRAIN, VALIDATION, TEST)]
    return SplitLog(people["id"].to_list(), table, *splits)


def _ragged(events: pl.DataFrame, n_users: int) -> Ragged:
    count = events.group_by("user_id").len().sort("user_id")
    everyone = pl.DataFrame({"user_id": pl.Series(range(n_users), dtype=pl.UInt32)})
    lengths = everyone.join(count, "user_id", how="left", maintain_order="left")["len"].fill_null(0)
    return Ragged.from_lengths(lengths.to_numpy(), events["item_id"].to_numpy())


@contextmanager
def _progress(what: str, spinner: bool = True) -> Iterator[None]:
    """Show a spinner while the block runs, and print one line with the time if it took 2 seconds or more."""
    console, start = Console(stderr=True, highlight=False), time.monotonic()
    with console.status(what) if spinner else nullcontext():
        yield
    if time.monotonic() - start > 2:
        console.print(f"{what}: {time.monotonic() - start:.0f} s", soft_wrap=True)
