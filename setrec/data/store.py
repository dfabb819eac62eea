"""Prepared data on the disk: one folder per data set, written whole or not at all.

<root>/<name>/items.parquet       row i is item id i: item_id, id, title, text, ..., count, warm
              users.parquet       row u is user u: user_id, id, train, validation, test (lists of item ids)
              histories.safetensors  the same lists, to be memory-mapped: train_offsets (users + 1,), train_items, ...;
                                  where the raw data has them, train_times int64 (microseconds since 1970, UTC; the least int64:
                                  not known) and train_kinds uint8, places in the table of kinds that the metadata holds;
                                  train_since (users,), with data that `update` made
              text.safetensors    vectors (N, F) float32 or float16; absent without text
              cf.safetensors      vectors_0 (N, E) float32 or float16, present_0 (N,) bool, vectors_1, ...; absent without CF
              vectors.safetensors of every source of --data.vectors: NAME.vectors (N, W), NAME.present (N,) bool, and
                                  NAME.learned.KEY, what vectors of later items are made with; absent without any
              encoder.safetensors what the text encoder learned from the texts; absent if it learns nothing
              manifest.json       counts, options, the origin of everything, sha256 of every file
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import save_file

from setrec.data.catalogue import CF, ENCODER, HISTORIES, ITEMS, KINDS, MANIFEST, TEXT, USERS, VECTORS, read_manifest
from setrec.data.identity import Identity, identify
from setrec.errors import DataError
from setrec.files.hashes import changed_file, file_hash, ids_hash, stamp
from setrec.files.ragged import Ragged, Splits
from setrec.files.whole import clear_leftovers, whole_file, whole_folder
from setrec.vectors import Made

FORMAT = 1


class Prepared(NamedTuple):
    """A data set that is ready to be written."""

    name: str
    items: pl.DataFrame  # row i is item id i: id, title, text and any further columns
    user_ids: list[str]
    train: Ragged
    validation: Ragged
    test: Ragged
    text: np.ndarray | None  # (N, F) float32 or float16
    cf: list[tuple[np.ndarray, np.ndarray]]  # for each slot, vectors (N, E) float32 or float16 and present (N,) bool
    encoder: dict[str, np.ndarray] | None = None  # see `TextVectors.learned`
    times: Splits | None = None  # see `SplitLog`, as the next two
    kinds: Splits | None = None
    kind_names: tuple[str, ...] = ()
    since: np.ndarray | None = None  # see `Histories`
    vectors: dict[str, Made] = {}  # noqa: RUF012  (never changed) of further sources

    def identify(self, about: Mapping[str, Any]) -> Identity:
        """Identify its catalogue. about: what the manifest says of the vectors and of `inputs`."""
        more = {name: (made.vectors, made.present) for name, made in self.vectors.items()}
        return identify(self.items["id"].to_list(), self.counts(), about, self.text, self.cf, more)

    def counts(self) -> np.ndarray:
        """How often each item occurs in training, (N,) int64."""
        return np.bincount(self.train.items, minlength=len(self.items)).astype(np.int64)


def files_match(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether every prepared file exists and has the hash that the manifest holds for it."""
    files = manifest.get("files", {})
    return bool(files) and all((folder / n).is_file() and file_hash(folder / n) == h for n, h in files.items())


def check_prepared(folder: Path, names: list[str] | None = None) -> None:
    """Check prepared files against the hashes in the manifest. A file with the size and time of its hash is not read again.

    Args:
        folder: a prepared data set. Without a manifest nothing is checked: `Catalogue.load` refuses it.
        names: the files to check; None: all.

    Raises:
        DataError: a file is not the one that was prepared.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return
    hashes = manifest.get("files", {})
    changed = changed_file(folder, list(hashes) if names is None else names, hashes, manifest.get("file_stamps", {}))
    if changed is not None:
        raise DataError(
            f"{folder / changed} was changed or damaged after it was prepared; delete the folder and prepare it again with "
            "--data.raw DIR."
        )


@contextlib.contextmanager
def locked(folder: Path, meanwhile: Callable[[], None] | None = None) -> Iterator[None]:
    """Lock `folder`, so that a second process waits here, and clear what a killed process left behind.

    Args:
        folder: the folder.
        meanwhile: called again and again while another process holds the lock.

    Raises:
        DataError: the folder above cannot be written to.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                lock.acquire(timeout=-1 if meanwhile is None else 0.5)
                break
            except Timeout:
                if meanwhile is not None:
                    meanwhile()
    except OSError as error:
        raise DataError(
            f"cannot write to {folder.parent} ({error}); choose another place with --data.root DIR."
        ) from None
    try:
        clear_leftovers(folder)
        yield
    finally:
        lock.release()


def write(folder: Path, prepared: Prepared, about: dict[str, Any]) -> None:
    """Write a data set, whole or not at all. Only under `locked`.

    Args:
        folder: <root>/<name>.
        prepared: the data.
        about: further entries of the manifest: options, sources, descriptions of the vectors.

    Raises:
        DataError: the disk is full or refuses. Nothing is left behind, and an older version stays as it was.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise DataError(
            f"{folder} is not a prepared data set and would be replaced; move it away or change --data.name."
        )
    try:
        with whole_folder(folder, replace=True) as hidden:
            _write_files(hidden, prepared)
            files = {path.name: file_hash(path) for path in sorted(hidden.iterdir())}
            manifest = {"format": FORMAT, "name": prepared.name, "counts": _counts(prepared), **about, "files": files}
            identity = prepared.identify(about)._asdict()
            del identity["inputs"]  # the manifest has it
            manifest["identity"] = identity
            manifest["file_stamps"] = {name: stamp(hidden / name) for name in files}
            manifest["created"] = datetime.now(UTC).isoformat(timespec="seconds")
            (hidden / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"writing {folder} failed ({str(error).splitlines()[0]}); nothing was changed: free some space or choose "
            "another place with --data.root DIR."
        ) from None


def update_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a changed manifest, whole or not at all. A read-only folder keeps the old one. Only under `locked`."""
    with contextlib.suppress(OSError), whole_file(folder / MANIFEST) as hidden:
        hidden.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _write_files(folder: Path, prepared: Prepared) -> None:
    n_items = len(prepared.items)
    ids = prepared.items["id"].to_list()
    count = prepared.counts()  # (N,)
    items = prepared.items.insert_column(0, pl.Series("item_id", np.arange(n_items, dtype=np.int64)))
    items = items.with_columns(pl.Series("count", count), pl.Series("warm", count > 0))
    items.write_parquet(folder / ITEMS)
    users = pl.DataFrame(
        [
            pl.Series("user_id", np.arange(len(prepared.user_ids), dtype=np.int64)),
            pl.Series("id", prepared.user_ids, dtype=pl.String),
            prepared.train.to_series("train"),
            prepared.validation.to_series("validation"),
            prepared.test.to_series("test"),
        ]
    )
    users.write_parquet(folder / USERS)
    splits = {"train": prepared.train, "validation": prepared.validation, "test": prepared.test}
    flat = {f"{name}_{part}": array for name, rows in splits.items() for part, array in rows._asdict().items()}
    if prepared.since is not None:
        flat["train_since"] = np.ascontiguousarray(prepared.since, np.int64)
    about = {"ids_sha256": ids_hash(prepared.user_ids)}
    for name, facts in (("times", prepared.times), ("kinds", prepared.kinds)):
        if facts is not None:
            flat |= {f"{split}_{name}": np.ascontiguousarray(rows.items) for split, rows in facts._asdict().items()}
    if prepared.kinds is not None:
        about[KINDS] = json.dumps(prepared.kind_names)
    save_file(flat, folder / HISTORIES, about)
    _order_metadata(folder / HISTORIES)
    made_for = {"ids_sha256": ids_hash(ids)}
    if prepared.text is not None:
        save_file({"vectors": np.ascontiguousarray(prepared.text)}, folder / TEXT, made_for)
    if prepared.vectors:
        flat = {}
        for name, made in prepared.vectors.items():
            flat[f"{name}.vectors"] = np.ascontiguousarray(made.vectors)  # (N, W)
            flat[f"{name}.present"] = np.ascontiguousarray(made.present, bool)  # (N,)
            flat |= {f"{name}.learned.{key}": np.ascontiguousarray(value) for key, value in made.learned.items()}
        save_file(flat, folder / VECTORS, made_for)
    if prepared.encoder:
        save_file(prepared.encoder, folder / ENCODER)
    if prepared.cf:
        tables: dict[str, np.ndarray] = {}
        for c, (vectors, present) in enumerate(prepared.cf):
            tables[f"vectors_{c}"] = np.ascontiguousarray(vectors)  # (N, E)
            tables[f"present_{c}"] = np.ascontiguousarray(present, bool)  # (N,)
        save_file(tables, folder / CF, made_for)


def _order_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file into order: it is written in any, and equal data must be equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:
            raise ValueError(f"{path.name}: the header grew from {length} to {len(text)} bytes")
        file.seek(8)
        file.write(text.ljust(length))


def _counts(prepared: Prepared) -> dict[str, int]:
    n_items = len(prepared.items)
    warm = len(np.unique(prepared.train.items))
    return {
        "users": len(prepared.user_ids),
        "items": n_items,
        "warm": warm,
        "cold": n_items - warm,
        "train": len(prepared.train.items),
        "validation": len(prepared.validation.items),
        "test": len(prepared.test.items),
    }
