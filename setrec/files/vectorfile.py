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
from setrec.files.mapped import blocks, by_rows, converted, new_table
from setrec.files.pickles import load_object_npy, load_pickle
from setrec.files.ragged import Ragged
from setrec.files.whole import whole_file


class VectorFile(NamedTuple):
    """A matrix, and what its file says about it. Only .safetensors files say anything."""

    vectors: np.ndarray  # (N, width) float32 or float16
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


def read_vectors(path: Path, ids: list[str], scratch: Path | None = None) -> np.ndarray:
    """Read only the vectors, (N, width) float32 or float16. See `read_vector_file`."""
    return read_vector_file(path, ids, scratch).vectors


def read_vector_file(path: Path, ids: list[str], scratch: Path | None = None) -> VectorFile:
    """Read the vectors of the items `ids`. Those of an .npy or .safetensors file are memory-mapped, and must not be written to.

    Args:
        path: .npy; .safetensors (the tensor "vectors", or the only one; the metadata entry ids_sha256 is checked if there is
            one); .pkl (a pickled tensor, read by the restricted unpickler); or .parquet (columns `id` and `vector`, in any order;
            an item without a row has zeros and is not present).
        ids: the items' own ids in row order.
        scratch: where vectors lie that must be converted or put into order, see `new_table`.

    Raises:
        DataError: the file cannot be read, or does not hold a matrix of numbers with N rows, or was made for other ids, or
            holds NaN or infinity.
    """
    vectors, about = _by_id(path, ids, scratch) if path.suffix == ".parquet" else _read(path)
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
    if vectors.dtype not in (np.float32, np.float16):
        vectors = converted(vectors, "float32", scratch)  # (N, width)
    finite = by_rows(lambda block: np.isfinite(block).all(axis=1), vectors)  # (N,)
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


def _by_id(path: Path, ids: list[str], scratch: Path | None) -> tuple[np.ndarray, _Metadata]:
    """The rows of a table of ids and vectors in the order of `ids`, (N, width) float32. Rows of other ids are left out."""
    try:
        table = pl.scan_parquet(path, glob=False)
        table = table.select(pl.col("id").cast(pl.String), pl.col("vector").cast(pl.List(pl.Float32)))
        table = table.with_columns(length=pl.col("vector").list.len())
        known = table.drop_nulls().select("id", "length").collect()
        if known["id"].is_duplicated().any():
            raise DataError(f"{path.name} has item {known.filter(known['id'].is_duplicated())['id'][0]!r} twice.")
        lengths = known["length"].unique().sort().to_list()
        if len(lengths) != 1 or lengths[0] == 0:
            raise ValueError(f"the lengths are {', '.join(map(str, lengths[:5])) or 'none'}")
        vectors = new_table((len(ids), lengths[0]), "float32", scratch)  # (N, width)
        present = np.zeros(len(ids), bool)
        place = {own: row for row, own in enumerate(ids)}
        for some in blocks(table.select(pl.len()).collect().item(), lengths[0]):
            rows = table.slice(some.start, some.stop - some.start).collect().drop_nulls()
            matrix = rows["vector"].explode().to_numpy().reshape(-1, lengths[0])  # (rows, width)
            at = np.array([place.get(own, -1) for own in rows["id"].to_list()], np.int64)  # (rows,)
            vectors[at[at >= 0]] = matrix[at >= 0]
            present[at[at >= 0]] = True
    except (OSError, ValueError, TypeError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path.name} must hold the columns id and vector, lists of numbers of one length ({reason})."
        ) from None
    return vectors, _Metadata(present=present)


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
                vectors = file.get_tensor(name)
                return (vectors.float() if vectors.dtype == torch.bfloat16 else vectors).numpy(), about
        except (OSError, SafetensorError, IndexError) as error:
            raise DataError(f"{path.name} is truncated or damaged ({error}); make or download it again.") from None
    raise DataError(
        f"{path.name}: vectors are read from .npy, .safetensors, .pkl or .parquet; convert it to one of them."
    )
