"""Matrices with one row per item in .npy, .safetensors, .pkl or .parquet files, checked when they are read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from setrec.errors import DataError
from setrec.files.hashes import ids_hash
from setrec.files.pickles import load_object_npy, load_pickle
from setrec.files.ragged import Ragged
from setrec.files.whole import whole_file


class VectorFile(NamedTuple):
    """A matrix, and what its file says about it. Only .safetensors files say anything."""

    vectors: np.ndarray  # (N, width) float32
    present: np.ndarray | None  # (N,) bool: the rows that a model learned
    train_sha256: str | None  # `train_hash` of the split that the model learned from


def train_hash(train: Ragged) -> str:
    """Return the sha256 of a training split. Vectors learned from another split may know this one's test items."""
    return hashlib.sha256(train.offsets.tobytes() + train.items.tobytes()).hexdigest()


def write_vectors(
    path: Path, vectors: np.ndarray, present: np.ndarray, ids: list[str], train: Ragged, about: Mapping[str, str]
) -> None:
    """Write learned vectors, and what they were learned from, whole or not at all.

    Args:
        path: a .safetensors file.
        vectors: (N, width) float32.
        present: (N,) bool, the rows that were learned.
        ids: the items' own ids in row order.
        train: the training split that the vectors were learned from.
        about: further metadata of the file.

    Raises:
        DataError: the disk refuses.
    """
    metadata = {**about, "ids_sha256": ids_hash(ids), "train_sha256": train_hash(train)}
    try:
        tables = {"vectors": np.ascontiguousarray(vectors), "present": np.ascontiguousarray(present)}
        with whole_file(path) as hidden:
            hidden.write_bytes(save(tables, metadata))  # save_file would make a file that others may not read
    except (OSError, SafetensorError) as error:
        raise DataError(f"the vectors cannot be written to {path} ({error}); free some space.") from None


def read_vectors(path: Path, ids: list[str]) -> np.ndarray:
    """Read only the vectors, (N, width) float32. See `read_vector_file`."""
    return read_vector_file(path, ids).vectors


def read_vector_file(path: Path, ids: list[str]) -> VectorFile:
    """Read the vectors of the items `ids`.

    Args:
        path: .npy; .safetensors (the tensor "vectors", or the only one; the metadata entry ids_sha256 is checked if there is
            one); .pkl (a pickled tensor, read by the restricted unpickler); or .parquet (columns `id` and `vector`, in any order;
            an item without a row has zeros and is not present).
        ids: the items' own ids in row order.

    Raises:
        DataError: the file cannot be read, or does not hold a matrix of numbers with N rows, or was made for other ids, or
            holds NaN or infinity.
    """
    vectors, about = _by_id(path, ids) if path.suffix == ".parquet" else _read(path)
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise DataError(
            f"{path.name} must hold a matrix of numbers with one row per item; this file holds something else."
        )
    if len(vectors) != len(ids):
        raise DataError(
            f"{path.name} has {len(vectors)} rows but the data has {len(ids)} items; row i must belong to item id i: "
            "use the file made for this data set."
        )
    if about.ids_sha256 is not None and about.ids_sha256 != ids_hash(ids):
        raise DataError(f"{path.name} was made for other items or another item order; make it again for this data set.")
    vectors = vectors.astype(np.float32)  # (N, width)
    finite = np.isfinite(vectors).all(1)  # (N,)
    if not finite.all():
        row = int(finite.argmin())
        raise DataError(
            f"{path.name} row {row} (item {ids[row]}) holds NaN or infinity, {int((~finite).sum())} such rows in all; "
            "make the file again."
        )
    if about.present is not None and (about.present.shape != (len(ids),) or about.present.dtype != bool):
        raise DataError(f"{path.name}: its tensor 'present' must hold one bool per item; make the file again.")
    return VectorFile(vectors, about.present, about.train_sha256)


def count_rows(path: Path) -> int | None:
    """Return the number of rows of a matrix file; None: it does not hold a matrix."""
    vectors, _ = _read(path)
    return len(vectors) if isinstance(vectors, np.ndarray) and vectors.ndim == 2 else None


class _Metadata(NamedTuple):
    """What a .safetensors file may say about its matrix."""

    ids_sha256: str | None = None
    train_sha256: str | None = None
    present: np.ndarray | None = None


def _by_id(path: Path, ids: list[str]) -> tuple[object, _Metadata]:
    """The rows of a table of ids and vectors in the order of `ids`."""
    try:
        table = pl.read_parquet(path, columns=["id", "vector"])
        rows = table.select(pl.col("id").cast(pl.String), "vector").drop_nulls()
        if rows["id"].is_duplicated().any():
            raise DataError(f"{path.name} has item {rows.filter(rows['id'].is_duplicated())['id'][0]!r} twice.")
        matrix = np.stack([np.asarray(row, np.float32) for row in rows["vector"].to_list()])  # (rows, width)
    except (OSError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path.name} must hold the columns id and vector, lists of numbers of one length ({reason})."
        ) from None
    place = {own: i for i, own in enumerate(rows["id"].to_list())}
    at = np.array([place.get(own, -1) for own in ids])  # (N,)
    vectors = np.zeros((len(ids), *matrix.shape[1:]), np.float32)
    vectors[at >= 0] = matrix[at[at >= 0]]
    return vectors, _Metadata(present=at >= 0)


def _read(path: Path) -> tuple[object, _Metadata]:
    """Return the content of a file, and what the file says about it."""
    if path.suffix == ".npy":
        return load_object_npy(path), _Metadata()
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            content = load_pickle(file, path.name)
        return content.numpy() if isinstance(content, torch.Tensor) else content, _Metadata()
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                name = "vectors" if "vectors" in names else names[0]
                if name != "vectors" and len(names) > 1:
                    raise DataError(
                        f"{path.name} holds several tensors and none is called 'vectors'; keep the one to use."
                    )
                metadata = file.metadata() or {}
                present = file.get_tensor("present").numpy() if "present" in names else None
                about = _Metadata(metadata.get("ids_sha256"), metadata.get("train_sha256"), present)
                return file.get_tensor(name).float().numpy(), about
        except (OSError, SafetensorError, IndexError) as error:
            raise DataError(f"{path.name} is truncated or damaged ({error}); make or download it again.") from None
    raise DataError(
        f"{path.name}: vectors are read from .npy, .safetensors, .pkl or .parquet; convert it to one of them."
    )
