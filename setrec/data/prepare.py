"""From raw files to prepared data: read, clean, split, give ids, make vectors, write. Done once per data set."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from rich.console import Console

from setrec.cf import CFVectors
from setrec.class_names import current_names, public_name
from setrec.data.catalogue import read_manifest
from setrec.data.clean import Cleaning
from setrec.data.identity import inputs_hash
from setrec.data.readers.base import EventLog, Reader, SplitLog
from setrec.data.readers.download import fetch
from setrec.data.report import about_source, about_targets, about_times, about_vectors, lines, warnings
from setrec.data.split import TEST, TRAIN, VALIDATION, Split, paper_item_ids
from setrec.data.store import FORMAT, Prepared, files_match, locked, update_manifest, write
from setrec.data.ties import share_of_ties, tie_keys
from setrec.errors import DataError
from setrec.files.hashes import file_hash, stamp
from setrec.files.ragged import Ragged, Splits
from setrec.files.times import TICKS, UNKNOWN
from setrec.hparams import default_arguments, to_plain
from setrec.text import TextVectors
from setrec.vectors import ItemVectors, Made

VectorType = Literal["float32", "float16"]
_BIG = 1 << 26  # bytes: a raw file of this size or more is hashed again only if its size or time of change is another


class Preparation(NamedTuple):
    """Everything that decides what the prepared data looks like, except the raw files."""

    reader: Reader
    text: TextVectors | None
    cf: list[CFVectors]
    cleaning: Cleaning
    split: Split
    paper_ids: bool
    vector_dtype: VectorType = "float32"
    vectors: Mapping[str, ItemVectors] = {}  # further sources, by name

    def options(self) -> dict[str, Any]:
        """Return the preparation in plain types, without the options that this reader does not use and its downloads."""
        used: dict[str, object] = {"reader": self.reader, "text": self.text, "cf": self.cf}
        if not self.reader.gives_splits:
            used |= {"cleaning": self.cleaning, "split": self.split, "paper_ids": self.paper_ids}
        options: dict[str, Any] = json.loads(json.dumps(to_plain(used)))  # as it comes back from the manifest
        options["reader"]["init_args"].pop("download", None)
        if self.vector_dtype != "float32":  # as version 0.2.0, which had no other, wrote it
            options["vector_dtype"] = self.vector_dtype
        if self.vectors:
            options["vectors"] = json.loads(json.dumps(to_plain(self.vectors)))
        return options

    def sources(self, raw: Path | None) -> dict[str, Path]:
        """Return every file that would be read, under its name in the manifest."""
        makers: list[Reader | ItemVectors] = [
            self.reader,
            *self.cf,
            *([self.text] if self.text is not None else []),
            *self.vectors.values(),
        ]
        files = {path for maker in makers for path in maker.sources(raw)}
        inside = {path for path in files if raw is not None and path.is_relative_to(raw)}
        named = {str(path.relative_to(raw)) if path in inside and raw else str(path.resolve()): path for path in files}
        return dict(sorted(named.items()))


def prepare(
    name: str, folder: Path, preparation: Preparation, raw: Path | None, trained_on: Mapping[str, Any] | None = None
) -> bool:
    """Prepare the data set that `preparation` describes, unless `folder` holds it already.

    It holds it if the manifest has the same options, and the prepared files and the raw files (if they are there) have the
    hashes in the manifest. A raw file of 64 MiB or more counts as unchanged while its size and its time of change are the
    same. Two processes may call this at once: one works, the other waits. Nothing is written where the data is prepared already.

    If no raw folder is given and the reader knows a public source, that is downloaded to <root>/raw/<name>.

    What was done to the data is printed to stderr and kept in the manifest.

    Args:
        name: the data set's name.
        folder: <root>/<name>.
        preparation: what to make.
        raw: the folder of raw files. None: use what is prepared, or download, or the reader makes its own data.
        trained_on: what a checkpoint that is about to be used holds of its catalogue. Prepared data is not replaced
            by other data than this.

    Returns:
        Whether anything was done.

    Raises:
        DataError: raw files are missing or wrong, or the disk refuses.
        ConfigError: the data would be other than that of `trained_on`. Nothing was changed.
    """
    options = preparation.options()
    found = _find_current(folder, options, preparation, raw)  # before the lock, so that a folder may be read-only
    if found is not None:
        found.use(folder, raw)
        return False
    with locked(folder):
        if _find_current(folder, options, preparation, raw) is not None:  # another process has just made it
            return False
        if raw is not None and not raw.is_dir():
            raise DataError(f"there is no folder {raw}; pass --data.raw DIR with the folder that holds the raw files.")
        if raw is None and preparation.reader.needs_raw:
            raw = _download(name, folder, preparation)
        with _progress(f"data set {name}: reading raw files"):
            sources, stamps = _hashes(preparation.sources(raw), {})
            log, report, skipped = _read(preparation.reader, raw)
        if isinstance(log, _NumberedLog):
            with _progress(f"data set {name}: cleaning and splitting {len(log.events):,} events"):
                log = _split_log(log, preparation, report)
        scratch = folder.parent / f".{folder.name}.blocks"  # finished blocks of a slow text encoder
        prepared, about = _add_vectors(name, log, preparation, raw, sources, scratch)
        _finish_report(report, log, prepared)
        if trained_on is not None:
            prepared.identify(about).check(
                trained_on, name, "The checkpoint",
                f"nothing was changed in {folder}: give the raw files as they were, use what is prepared with --data.raw null, or "
                "train again under another --data.name",
            )  # fmt: skip
        about |= {"report": report, "skipped_lines": skipped, "raw": str(raw.resolve()) if raw is not None else None}
        about |= {"reader": options["reader"], "options": options, "sources": sources, "stamps": stamps}
        with _progress(f"data set {name}: writing {folder}"):
            write(folder, prepared, about)
        _say(f"data set {name}, prepared in {folder}:", *(f"  {line}" for line in lines(report)))
        _warn(report)
        return True


def say_what_changed(folder: Path) -> None:
    """Print what must not be overlooked in prepared data that is used as it is: also that its raw files have changed since.

    Nothing is read but the raw files that have another time of change.
    """
    manifest = read_manifest(folder) or {}
    raw: str | None = manifest.get("raw")
    for label, known in manifest.get("stamps", {}).items():
        path = Path(raw or "", label)
        if raw is not None and path.is_file() and stamp(path) != known:
            big = path.stat().st_size >= _BIG
            if path.stat().st_size != known[0] or (not big and file_hash(path) != manifest["sources"].get(label)):
                _say(
                    f"WARNING: {path} was changed after the data was prepared. It is used as it lies in {folder}; --data.raw "
                    f"{shlex.quote(raw)} compares the two."
                )
    _warn(manifest.get("report", {}))


def _say(*said: str) -> None:
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    for line in said:
        console.print(line, soft_wrap=True)


def _warn(report: Mapping[str, Any]) -> None:
    _say(*(f"  WARNING: {sentence}" for sentence in report.get("warnings", [])))


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


class _Current(NamedTuple):
    """A prepared data set that is what is wanted."""

    manifest: dict[str, Any]
    stamps: dict[str, list[int]]  # of its raw files, as they are now
    missing: list[str]  # raw files that it was made from and that are not there any more

    def use(self, folder: Path, raw: Path | None) -> None:
        """Say what there is to say, and note the new stamps of raw files that were copied."""
        if self.missing:
            _say(
                f"{', '.join(self.missing[:3])} cannot be found in {raw}: the data is used as it was prepared in {folder}."
            )
        elif raw is not None and self.stamps != self.manifest.get("stamps"):
            with suppress(DataError), locked(folder):  # a read-only folder keeps the old ones
                now = read_manifest(folder)
                if now is not None and now.get("sources") == self.manifest.get("sources"):
                    update_manifest(folder, now | {"stamps": self.stamps})
        _warn(self.manifest.get("report", {}))


def _find_current(folder: Path, options: dict[str, Any], preparation: Preparation, raw: Path | None) -> _Current | None:
    """Find the data set of these options and raw files in the folder; None: it holds another or none."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("format") != FORMAT or _options_of(manifest, preparation) != options:
        return None
    if not files_match(folder, manifest):
        return None
    if raw is None:
        if not preparation.reader.needs_raw:  # files of vectors can be all that it is made from
            files = {label: path for label, path in preparation.sources(None).items() if path.is_file()}
            hashes, _ = _hashes(files, manifest)
            if any(manifest.get("sources", {}).get(label) != one for label, one in hashes.items()):
                return None
        return _Current(manifest, {}, [])
    here, missing = _sources_here(preparation, raw, manifest)
    sources, stamps = _hashes(here, manifest)
    known = {label: one for label, one in manifest.get("sources", {}).items() if label not in missing}
    return _Current(manifest, stamps, missing) if sources == known else None


def _options_of(manifest: Mapping[str, Any], preparation: Preparation) -> Any:
    """The options in a manifest, with current names, and with the defaults of arguments that its version did not know."""
    options = current_names(manifest.get("options"))
    if not isinstance(options, dict):
        return None

    def filled(stored: Any, maker: object) -> Any:
        if not isinstance(stored, dict) or stored.get("class_path") != public_name(type(maker)):
            return stored
        return stored | {"init_args": default_arguments(type(maker)) | stored.get("init_args", {})}

    makers = {"reader": preparation.reader, "text": preparation.text, "split": preparation.split}
    options |= {key: filled(options[key], maker) for key, maker in makers.items() if key in options}
    if isinstance(options.get("vectors"), dict):
        stored = options["vectors"]
        options["vectors"] = {name: filled(one, preparation.vectors.get(name)) for name, one in stored.items()}
    options["cf"] = [filled(*pair) for pair in zip(options.get("cf", []), preparation.cf, strict=False)]
    if isinstance(options.get("reader"), dict):
        options["reader"]["init_args"].pop("download", None)
    return options


def _sources_here(
    preparation: Preparation, raw: Path, manifest: Mapping[str, Any]
) -> tuple[dict[str, Path], list[str]]:
    """Return the raw files that are there, and the names of those that the prepared data was made from and that are gone."""
    try:
        needed = preparation.sources(raw) if raw.is_dir() else {}
    except DataError:  # one that is needed is not there
        needed = {}
    if needed and all(path.is_file() for path in needed.values()):
        return needed, []
    places = {label: raw / label for label in manifest.get("sources", {})}  # an absolute path stays what it is
    here = {label: path for label, path in places.items() if path.is_file()}
    return here, [label for label in places if label not in here]


def _hashes(files: Mapping[str, Path], manifest: dict[str, Any]) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Return the sha256 of every raw file, and its size and time of change (in ns). Known big files are not read again."""
    hashes, stamps = {}, {}
    for label, path in files.items():
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
            text = _stored(text, preparation.vector_dtype, ids)
        hashes = [
            sources[label] for label, path in preparation.sources(raw).items() if path in preparation.text.sources(raw)
        ]
        about_text = preparation.text.describe() | {"width": text.shape[1], "files": hashes}
    cf, about_cf = [], []
    for maker in preparation.cf:
        with _progress(f"data set {name}: CF vectors by {type(maker).__name__}"):
            vectors, present = maker.vectors(ids, log.train, raw)  # (N, E), (N,)
        hashes = [sources[label] for label, path in preparation.sources(raw).items() if path in maker.sources(raw)]
        cf.append((_stored(vectors, preparation.vector_dtype, ids), np.ascontiguousarray(present, bool)))
        about_cf.append(maker.describe() | {"width": vectors.shape[1], "present": int(present.sum()), "files": hashes})
    more: dict[str, Made] = {}
    about_more: dict[str, dict[str, Any]] = {}
    for source, made_by in preparation.vectors.items():
        with _progress(f"data set {name}: vectors {source} by {type(made_by).__name__}"):
            made = made_by.make(log.items, log.train, raw, scratch)
        table = _stored(made.vectors * made.present[:, None], preparation.vector_dtype, ids)  # (N, W)
        more[source] = Made(table, made.present, made.learned)
        hashes = [sources[label] for label, path in preparation.sources(raw).items() if path in made_by.sources(raw)]
        about_more[source] = made_by.describe() | {
            "width": table.shape[1], "missing": int((~made.present).sum()), "files": hashes
        }  # fmt: skip
    learned = preparation.text.learned() if preparation.text is not None else None
    splits = (log.train, log.validation, log.test)
    facts = (log.times, log.kinds, log.kind_names)
    prepared = Prepared(name, log.items, log.user_ids, *splits, text, cf, learned, *facts, vectors=more)
    about: dict[str, Any] = {"text": about_text, "cf": about_cf}
    if more:
        about["vectors"] = about_more
    return prepared, about | {"inputs": inputs_hash(log.items, log.train, about)}


def _stored(vectors: np.ndarray, dtype: VectorType, ids: list[str]) -> np.ndarray:
    """Vectors as they are stored, (N, width).

    Raises:
        DataError: a number is too large for float16.
    """
    with np.errstate(over="ignore"):  # infinity, which is refused below
        stored = np.ascontiguousarray(vectors, dtype)  # (N, width)
    if dtype == "float16" and np.isinf(stored).any():
        row = int(np.isinf(stored).any(axis=1).argmax())
        raise DataError(
            f"the vector of item {ids[row]!r} holds a number above 65,504, which float16 cannot store; use "
            "--data.vector_dtype float32."
        )
    return stored


class _NumberedLog(NamedTuple):
    """A log of events with numbers in place of ids, so that 20 million events fit in memory."""

    events: pl.DataFrame  # user u32, item u32, time i64, optionally rating and kind, in file order
    users: pl.DataFrame  # user u32 (by first appearance), id str
    items: pl.DataFrame  # item u32, id str
    table: pl.DataFrame  # the reader's table of items
    ticks: int
    extra: list[str]  # own ids of items without any event that enter the catalogue
    timed: bool


def _read(reader: Reader, raw: Path | None) -> tuple[SplitLog | _NumberedLog, dict[str, Any], dict[str, int]]:
    """Read the raw files. Returns the log, the beginning of the report, and the number of skipped lines of each file."""
    log = reader.read(raw)
    files = dict(log.files or {})
    if isinstance(log, SplitLog):
        return log, {"files": files}, {name: about.get("skipped", 0) for name, about in files.items()}
    for name, count in (log.skipped or {}).items():  # a reader of the user's own may say only this
        files.setdefault(name, {"skipped": count})
    return _number_ids(log), {"files": files}, {name: about.get("skipped", 0) for name, about in files.items()}


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
    return _NumberedLog(events, tables["user"], tables["item"], log.items, log.ticks, never, log.timed)


def _split_log(log: _NumberedLog, preparation: Preparation, report: dict[str, Any]) -> SplitLog:
    """Clean, split, drop users, give ids, and add to the report what that did.

    With preparation.paper_ids, ids are given as in the official release: items by `paper_item_ids`, users in order of first
    appearance; events of a user at the same time stay in the order of the file. Otherwise nothing depends on the order of the
    raw rows: items and users are in order of their own ids, events in order of time, and by chance within a time (`ties.py`).
    """
    events, cleaning, split = log.events, preparation.cleaning, preparation.split
    tied = share_of_ties(events)
    report["read"] = {"events": len(events), "users": len(log.users), "items": len(log.items)}
    report["times"] = about_times(events["time"], log.ticks, tied, preparation.paper_ids)
    if not preparation.paper_ids:
        keys = tie_keys(log.users["id"].to_list(), log.items["id"].to_list(), events, log.ticks)
        events = events.with_columns(tie=pl.Series(keys)).sort("time", "tie").drop("tie")
    elif log.ticks > 1:
        events = events.sort("time", maintain_order=True)
    if log.timed:
        events = events.with_columns(when=microseconds(log.ticks))
    if log.ticks > 1:  # from here on whole seconds; the order of the rows keeps what is finer
        events = events.with_columns(pl.col("time") // log.ticks)
    report["cleaning"] = []
    cleaned = events.with_row_index("row")
    for step, kept in cleaning.steps(cleaned):
        report["cleaning"].append({"step": step, "dropped": len(cleaned) - len(kept)})
        cleaned = kept
    events = split.apply(cleaned)
    report["split"] = {
        "by": type(split).__name__, "min_train": split.min_train, "events": len(cleaned) - len(events),
        "users": cleaned["user"].n_unique() - events["user"].n_unique(),
    }  # fmt: skip

    events, names = numbered_kinds(events)
    kept = events.select("item").unique().join(log.items, "item").sort("id")
    order = sorted(kept["id"].to_list() + log.extra)
    order = paper_item_ids(order) if preparation.paper_ids else order
    new = pl.DataFrame({"id": order}, {"id": pl.String}).with_row_index("item_id").join(kept, "id")  # id, item_id, item
    table = pl.DataFrame({"id": order}, {"id": pl.String}).join(log.table, "id", how="left", maintain_order="left")
    table = table.with_columns(pl.col("title", "text").fill_null(""))
    people = events.select("user").unique().join(log.users, "user")
    people = people.sort("user" if preparation.paper_ids else "id").with_row_index("user_id")

    events = events.join(new.select("item", "item_id"), "item").join(people.select("user", "user_id"), "user")
    events = events.sort("user_id", "time", "row")
    splits = splits_of(events, len(people))
    times, kinds = splits.get("times"), splits.get("kinds")
    return SplitLog(people["id"].to_list(), table, *splits["items"], None, times, kinds, names)


def _finish_report(report: dict[str, Any], log: SplitLog, prepared: Prepared) -> None:
    """Add to the report what was kept, and what must not be overlooked."""
    splits = (log.train, log.validation, log.test)
    n_items = len(log.items)
    report["kept"] = {"events": sum(len(one.items) for one in splits), "users": len(log.user_ids), "items": n_items}
    report["targets"] = about_targets(log)
    report["items"] = {"described": int((log.items["text"] != "").sum())}
    if prepared.text is not None:
        report["text"] = about_vectors(prepared.text)
    cold = prepared.counts() == 0  # (N,)
    if prepared.vectors:
        report["vectors"] = {name: about_source(made.present, cold) for name, made in prepared.vectors.items()}
    report["warnings"] = warnings(report, log)


def microseconds(ticks: int) -> pl.Expr:
    """The column `time`, int64 ticks, in microseconds; `UNKNOWN` where that is beyond what int64 holds."""
    factor = TICKS // ticks
    return pl.when(pl.col("time").abs() < (1 << 62) // factor).then(pl.col("time") * factor).otherwise(UNKNOWN)


def numbered_kinds(events: pl.DataFrame) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Make numbers, uint8, of the column `kind`, if there is one. Returns the names of the numbers too.

    Raises:
        DataError: there are more than 256 kinds.
    """
    if "kind" not in events.columns:
        return events, ()
    names = sorted(events["kind"].cast(pl.String).unique().to_list())
    if len(names) > 256:
        raise DataError(
            f"the column of kinds holds {len(names):,} different values, such as {names[1]!r}, and at most 256 are kept; name "
            "another column, or none, with --data.reader.kind."
        )
    table = pl.DataFrame({"kind": names, "number": pl.Series(range(len(names)), dtype=pl.UInt8)})
    number = events.select(pl.col("kind").cast(pl.String)).join(table, "kind", how="left", maintain_order="left")
    return events.with_columns(kind=number["number"]), tuple(names)


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


@contextmanager
def _progress(what: str, spinner: bool = True) -> Iterator[None]:
    """Show a spinner while the block runs, and print one line with the time if it took 2 seconds or more."""
    console, start = Console(stderr=True, highlight=False), time.monotonic()
    with console.status(what) if spinner else nullcontext():
        yield
    if time.monotonic() - start > 2:
        console.print(f"{what}: {time.monotonic() - start:.0f} s", soft_wrap=True)
