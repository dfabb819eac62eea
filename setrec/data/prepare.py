"""From raw files to prepared data: read, clean, split, give ids, make vectors, write. Done once per data set."""

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from copy import copy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import narwhals as nw
import numpy as np
import polars as pl
from rich.console import Console
from scipy import sparse

from setrec.cf import CFVectors, CooccurrenceSVD, Counter, count_pairs
from setrec.class_names import current_names, public_name
from setrec.data.catalogue import read_manifest
from setrec.data.clean import Cleaning
from setrec.data.engines import Engine, Frame, PolarsEngine, Session, collected
from setrec.data.identity import inputs_hash
from setrec.data.numbering import NumberedLog, kind_names, read_log
from setrec.data.readers.base import Reader, SplitLog
from setrec.data.readers.download import fetch
from setrec.data.report import about_source, about_targets, about_times, about_vectors, lines, warnings
from setrec.data.split import TEST, TRAIN, VALIDATION, Split, paper_item_ids
from setrec.data.store import FORMAT, Prepared, files_match, locked, update_manifest, write
from setrec.errors import DataError
from setrec.files.hashes import file_hash, stamp
from setrec.files.ragged import Ragged, Splits
from setrec.files.text_blocks import Share
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
    engine: Engine = PolarsEngine()  # changes nothing about the data

    def counting(self, count: Counter) -> "Preparation":
        """The same, with another way to count co-occurrence."""
        makers = [copy(maker) for maker in self.cf]
        for maker in makers:
            if isinstance(maker, CooccurrenceSVD):
                maker.count = count
        return self._replace(cf=makers)

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

    def helper(self, scratch: Path) -> Callable[[], None] | None:
        """What one of several processes does while another prepares: encode its share of the texts; None: it is alone."""
        share, text = Share.of_environment(), self.text
        return None if text is None or share.world == 1 else lambda: text.help(scratch, share)

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
    work = folder.parent / f".{folder.name}.engine"  # intermediate results of the engine
    scratch = folder.parent / f".{folder.name}.blocks"  # finished blocks of a slow text encoder
    with locked(folder, preparation.helper(scratch)), ExitStack() as stack:
        if _find_current(folder, options, preparation, raw) is not None:  # another process has just made it
            shutil.rmtree(scratch, ignore_errors=True)  # a block that this one wrote while the other cleared them
            return False
        if raw is not None and not raw.is_dir():
            raise DataError(f"there is no folder {raw}; pass --data.raw DIR with the folder that holds the raw files.")
        if raw is None and preparation.reader.needs_raw:
            raw = _download(name, folder, preparation)
        engine = PolarsEngine() if preparation.reader.gives_splits else preparation.engine
        session = stack.enter_context(engine.opened(work))
        with _progress(f"data set {name}: reading raw files"):
            sources, stamps = _hashes(preparation.sources(raw), {})
            log, files = read_log(preparation.reader, raw, engine, session, preparation.paper_ids)
        report: dict[str, Any] = {"files": files}
        skipped = {file: said.get("skipped", 0) for file, said in files.items()}
        if isinstance(log, NumberedLog):
            with _progress(f"data set {name}: cleaning and splitting {log.read['events']:,} events"):
                divided = _split_log(log, preparation, session, report)
            log = divided.log
            if not isinstance(engine, PolarsEngine):
                preparation = preparation.counting(divided.cooccurrence)
            del divided
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


class _Divided(NamedTuple):
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


def _split_log(log: NumberedLog, preparation: Preparation, session: Session, report: dict[str, Any]) -> _Divided:
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
    return _Divided(parted, frame, item_ids)


def _n_users(frame: Frame) -> int:
    return int(collected(frame.select(nw.col("user").n_unique())).item())


def _needed(frame: Frame) -> list[str]:
    """The columns that the histories are made from."""
    types = frame.collect_schema()
    return ["user", "time", "row", "item", "part", *(name for name in ("when", "kind") if name in types)]


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


@contextmanager
def _progress(what: str, spinner: bool = True) -> Iterator[None]:
    """Show a spinner while the block runs, and print one line with the time if it took 2 seconds or more."""
    console, start = Console(stderr=True, highlight=False), time.monotonic()
    with console.status(what) if spinner else nullcontext():
        yield
    if time.monotonic() - start > 2:
        console.print(f"{what}: {time.monotonic() - start:.0f} s", soft_wrap=True)
