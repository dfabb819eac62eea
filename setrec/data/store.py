"""The canonical format on disk: one folder per data set, written whole or not at all.

    <root>/<name>/items.parquet       row i is item id i: item_id, id, title, text, ..., count, warm
                  users.parquet       row u is user u: user_id, id, train, validation, test (lists of item ids)
                  text.safetensors    vectors (N, F) float32; absent without text
                  cf.safetensors      vectors_0 (N, E) float32, present_0 (N,) bool, vectors_1, ...; absent without CF
                  encoder.safetensors what the text encoder learned from the texts; absent where it learns nothing
                  manifest.json       counts, options, where everything came from, sha256 of every file

A data set is written to a hidden folder beside its place and moved there when it is complete.
"""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.numpy import save_file

from setrec.data.catalogue import CF, ENCODER, ITEMS, MANIFEST, TEXT, USERS
from setrec.errors import DataError
from setrec.files.hashes import file_hash, ids_hash
from setrec.files.ragged import Ragged
from setrec.files.whole import clear_leftovers, whole_file, whole_folder

FORMAT = 1


class Prepared(NamedTuple):
    """A whole data set on its way to the disk."""

    name: str
    items: pl.DataFrame  # row i is item id i: id, title, text and anything else that is worth keeping
    user_ids: list[str]
    train: Ragged
    validation: Ragged
    test: Ragged
    text: np.ndarray | None  # (N, F) float32
    cf: list[tuple[np.ndarray, np.ndarray]]  # per slot (N, E) float32 and (N,) bool
    encoder: dict[str, np.ndarray] | None = None  # see `TextVectors.learned`


def intact(folder: Path, manifest: dict) -> bool:
    """Whether every prepared file is there with the hash that the manifest holds for it."""
    files = manifest.get("files", {})
    return bool(files) and all((folder / n).is_file() and file_hash(folder / n) == h for n, h in files.items())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone with `folder`: a second process waits here. Also clears what a killed process left behind.

    Raises:
        DataError: the root cannot be written to.
    """
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise DataError(
            f"cannot write to {folder.parent} ({error}); choose another place with --data.root DIR."
        ) from None
    try:
        clear_leftovers(folder)
        yield
    finally:
        lock.release()


def write(folder: Path, prepared: Prepared, about: dict) -> None:
    """Write a data set beside its place, then move it there. Call under `locked`.

    Args:
        folder: <root>/<name>.
        prepared: the data.
        about: further entries of the manifest (options, sources, descriptions of the vectors).

    Raises:
        DataError: the disk is full or refuses; nothing is left behind and an older version stays as it was.
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
            manifest["created"] = datetime.now(UTC).isoformat(timespec="seconds")
            (hidden / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"writing {folder} failed ({str(error).splitlines()[0]}); nothing was changed: free some space or choose "
            "another place with --data.root DIR."
        ) from None


def amend(folder: Path, manifest: dict) -> None:
    """Put a changed manifest in its place, whole or not at all. Call under `locked`."""
    with contextlib.suppress(OSError), whole_file(folder / MANIFEST) as hidden:  # a read-only folder keeps the old one
        hidden.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def _write_files(folder: Path, prepared: Prepared) -> None:
    n_items = len(prepared.items)
    ids = prepared.items["id"].to_list()
    count = np.bincount(prepared.train.items, minlength=n_items).astype(np.int64)  # (N,)
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
    made_for = {"ids_sha256": ids_hash(ids)}
    if prepared.text is not None:
        save_file({"vectors": np.ascontiguousarray(prepared.text, np.float32)}, folder / TEXT, made_for)
    if prepared.encoder:
        save_file(prepared.encoder, folder / ENCODER)
    if prepared.cf:
        tables: dict[str, np.ndarray] = {}
        for c, (vectors, present) in enumerate(prepared.cf):
            tables[f"vectors_{c}"] = np.ascontiguousarray(vectors, np.float32)  # (N, E)
            tables[f"present_{c}"] = np.ascontiguousarray(present, bool)  # (N,)
        save_file(tables, folder / CF, made_for)


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
