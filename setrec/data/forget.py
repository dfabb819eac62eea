"""Erasure of users: their ids and events leave prepared data and the tables of runs.

A row stays in the place of each, with an id that says nothing and without events, so that all row numbers hold. Checkpoints accept
the data as before: what they know of it are items, their counts and their vectors, and nobody can be told from these.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from secrets import token_hex

import numpy as np
import polars as pl
from safetensors import safe_open
from safetensors.numpy import save_file

from setrec.data.catalogue import HISTORIES, MANIFEST, USERS, read_manifest
from setrec.data.store import locked
from setrec.errors import DataError
from setrec.files.hashes import SEAL, file_hash, ids_hash, read_sealed, sealed, stamp
from setrec.files.ragged import Ragged, Splits
from setrec.files.whole import whole_file, whole_folder


def new_ids(users: Sequence[str]) -> dict[str, str]:
    """An id that says nothing for each user."""
    return {own: f"forgotten-{token_hex(8)}" for own in users}


def forget_in_data(folder: Path, ids: Mapping[str, str]) -> int:
    """Take users out of prepared data. It is replaced whole or not at all; files that hold no users are not written again.

    Args:
        folder: the prepared data.
        ids: own id -> the id that takes its place.

    Returns:
        The number of users that were found.

    Raises:
        DataError: the folder holds no prepared data, or cannot be written to.
    """
    if read_manifest(folder) is None:
        raise DataError(f"{folder} holds no prepared data (no {MANIFEST}).")
    with locked(folder):
        users = pl.read_parquet(folder / USERS)
        gone = users["id"].is_in(list(ids))  # (users,)
        manifest = read_manifest(folder)
        if manifest is None or not gone.any():
            return 0
        users = users.with_columns(pl.col("id").replace(dict(ids)))
        empty = [
            pl.when(~gone).then(pl.col(split)).otherwise(pl.lit([], pl.List(pl.Int32))) for split in Splits._fields
        ]
        users = users.with_columns(column.alias(split) for column, split in zip(empty, Splits._fields, strict=True))
        try:
            with whole_folder(folder, replace=True) as hidden:
                written = {USERS, MANIFEST, HISTORIES}
                _link_all(folder, hidden, written)
                users.write_parquet(hidden / USERS)
                if (folder / HISTORIES).exists():
                    _without_rows(folder / HISTORIES, hidden / HISTORIES, ~gone.to_numpy(), users["id"].to_list())
                for name in written & manifest["files"].keys():
                    manifest["files"][name] = file_hash(hidden / name)
                    manifest.setdefault("file_stamps", {})[name] = stamp(hidden / name)
                manifest["counts"] |= {split: int(users[split].list.len().sum()) for split in Splits._fields}
                text = json.dumps(manifest, indent=2, ensure_ascii=False)
                if any(own in text for own in ids):  # an example of a malformed line
                    manifest["report"].pop("files", None)
                    text = json.dumps(manifest, indent=2, ensure_ascii=False)
                (hidden / MANIFEST).write_text(text + "\n")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{folder} cannot be written ({error}); nothing was changed.") from None
        return int(gone.sum())


def _link_all(folder: Path, hidden: Path, without: set[str]) -> None:
    """Put every file and folder into a hidden folder too, without copying them where the disk can link."""
    for path in folder.iterdir():
        if path.name in without:
            continue
        if path.is_dir():
            shutil.copytree(path, hidden / path.name, symlinks=True, copy_function=_link)
        else:
            _link(path, hidden / path.name)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _without_rows(source: Path, target: Path, keep: np.ndarray, ids: list[str]) -> None:
    """Write histories without those of some users. keep: (users,) bool."""
    with safe_open(source, framework="np") as file:
        about = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    kept = {}
    for split in Splits._fields:
        offsets = tensors[f"{split}_offsets"]
        for name in (f"{split}_items", f"{split}_times", f"{split}_kinds"):
            if name in tensors:
                kept[f"{split}_offsets"], kept[name] = Ragged(offsets, tensors[name]).only(keep)
    if "train_since" in tensors:
        kept["train_since"] = tensors["train_since"] * keep  # (users,)
    save_file(kept, target, about | {"ids_sha256": ids_hash(ids)})


def forget_in_runs(folder: Path, ids: Mapping[str, str]) -> int:
    """Put new ids in place of users' in the tables of all runs in a folder (per_user.parquet, hits.parquet, predictions).

    Returns:
        The number of tables that held any of the users. The hashes in results.json beside them are made again.
    """
    changed = 0
    for path in sorted(folder.rglob("*.parquet")):
        if path.name == USERS and (path.parent / MANIFEST).exists():  # prepared data, see `forget_in_data`
            continue
        if pl.read_parquet_schema(path).get("user_id") != pl.String:
            continue
        table = pl.read_parquet(path)
        if not table["user_id"].is_in(list(ids)).any():
            continue
        with whole_file(path) as hidden:
            table.with_columns(pl.col("user_id").replace(dict(ids))).write_parquet(hidden)
        for results in path.parent.glob("*results.json"):
            content = read_sealed(results)
            if path.name in content.get("files", {}):
                content["files"][path.name] = file_hash(path)
                content.pop(SEAL, None)
                with whole_file(results) as hidden:
                    hidden.write_text(json.dumps(sealed(content), indent=2, ensure_ascii=False) + "\n")
        changed += 1
    return changed
