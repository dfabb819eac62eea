"""From raw files to prepared data: read, clean, split, give ids, make vectors, write. Done once per data set."""

import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from setrec.data.catalogue import read_manifest
from setrec.data.console import progress, say, warn
from setrec.data.current import find_current, source_hashes
from setrec.data.engines import PolarsEngine
from setrec.data.identity import inputs_hash
from setrec.data.item_vectors import AllVectors, make_vectors
from setrec.data.numbering import NumberedLog, read_log
from setrec.data.preparation import Preparation
from setrec.data.readers.base import SplitLog
from setrec.data.readers.download import fetch
from setrec.data.report import about_source, about_targets, about_vectors, lines, warnings
from setrec.data.split_log import split_log
from setrec.data.store import Prepared, locked, write
from setrec.errors import DataError


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
    found = find_current(folder, options, preparation, raw)  # before the lock, so that a folder may be read-only
    if found is not None:
        found.use(folder, raw)
        return False
    work = folder.parent / f".{folder.name}.engine"  # intermediate results of the engine
    scratch = folder.parent / f".{folder.name}.blocks"  # finished blocks of a slow text encoder, and tables of vectors
    with locked(folder, preparation.helper(scratch)), ExitStack() as stack:
        if find_current(folder, options, preparation, raw) is not None:  # another process has just made it
            shutil.rmtree(scratch, ignore_errors=True)  # a block that this one wrote while the other cleared them
            return False
        if raw is not None and not raw.is_dir():
            raise DataError(f"there is no folder {raw}; pass --data.raw DIR with the folder that holds the raw files.")
        if raw is None and preparation.reader.needs_raw:
            raw = _download(name, folder, preparation)
        engine = PolarsEngine() if preparation.reader.gives_splits else preparation.engine
        session = stack.enter_context(engine.opened(work))
        stack.callback(_remove_empty, scratch)
        with progress(f"data set {name}: reading raw files"):
            sources, stamps = source_hashes(preparation.sources(raw), {})
            log, files = read_log(preparation.reader, raw, engine, session, preparation.paper_ids)
        report: dict[str, Any] = {"files": files}
        skipped = {file: said.get("skipped", 0) for file, said in files.items()}
        if isinstance(log, NumberedLog):
            with progress(f"data set {name}: cleaning and splitting {log.read['events']:,} events"):
                divided = split_log(log, preparation, session, report)
            log = divided.log
            if not isinstance(engine, PolarsEngine):
                preparation = preparation.counting(divided.cooccurrence)
            del divided
        made = make_vectors(name, log, preparation, raw, sources, scratch)
        prepared = _prepared(name, log, made)
        about = made.about | {"inputs": inputs_hash(log.items, log.train, made.about)}
        _finish_report(report, log, prepared)
        if trained_on is not None:
            prepared.identify(about).check(
                trained_on, name, "The checkpoint",
                f"nothing was changed in {folder}: give the raw files as they were, use what is prepared with --data.raw null, or "
                "train again under another --data.name",
            )  # fmt: skip
        about |= {"report": report, "skipped_lines": skipped, "raw": str(raw.resolve()) if raw is not None else None}
        about |= {"reader": options["reader"], "options": options, "sources": sources, "stamps": stamps}
        with progress(f"data set {name}: writing {folder}"):
            write(folder, prepared, about)
        shutil.rmtree(scratch, ignore_errors=True)
        say(f"data set {name}, prepared in {folder}:", *(f"  {line}" for line in lines(report)))
        warn(report)
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


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds finished blocks, for the next try
        folder.rmdir()


def _prepared(name: str, log: SplitLog, made: AllVectors) -> Prepared:
    return Prepared(
        name,
        log.items,
        log.user_ids,
        log.train,
        log.validation,
        log.test,
        text=made.text.vectors if made.text is not None else None,
        cf=[(one.vectors, one.present) for one in made.cf],
        encoder=made.text.learned if made.text is not None else None,
        times=log.times,
        kinds=log.kinds,
        kind_names=log.kind_names,
        vectors=made.more,
    )


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
