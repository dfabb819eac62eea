"""Matrices with one row per item, from .npy, .safetensors or a released .pkl, checked before anybody trusts them."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from setrec.data.catalogue import ids_hash
from setrec.data.pickles import load_object_npy, load_pickle
from setrec.errors import DataError


def read_vectors(path: Path, ids: list[str]) -> np.ndarray:
    """Read the vectors of the items `ids`.

    Args:
        path: .npy, .safetensors (the tensor "vectors", or the only one; the metadata entry ids_sha256, where there is
            one, is checked) or .pkl (a pickled tensor, read by the restricted unpickler).
        ids: the items' own ids in row order.

    Returns:
        (N, width) float32.

    Raises:
        DataError: unreadable, not a matrix of numbers, not N rows, made for other ids, or NaN/infinity in it.
    """
    vectors, made_for = _read(path)
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise DataError(
            f"{path.name} must hold a matrix of numbers with one row per item; this file holds something else."
        )
    if len(vectors) != len(ids):
        raise DataError(
            f"{path.name} has {len(vectors)} rows but the data has {len(ids)} items; row i must belong to item id i: "
            "use the file made for this data set."
        )
    if made_for is not None and made_for != ids_hash(ids):
        raise DataError(f"{path.name} was made for other items or another item order; make it again for this data set.")
    vectors = vectors.astype(np.float32)  # (N, width)
    finite = np.isfinite(vectors).all(1)  # (N,)
    if not finite.all():
        row = int(finite.argmin())
        raise DataError(
            f"{path.name} row {row} (item {ids[row]}) holds NaN or infinity, {int((~finite).sum())} such rows in all; "
            "make the file again."
        )
    return vectors


def count_rows(path: Path) -> int | None:
    """Rows of a matrix file, None where it does not hold a matrix."""
    vectors, _ = _read(path)
    return len(vectors) if isinstance(vectors, np.ndarray) and vectors.ndim == 2 else None


def _read(path: Path) -> tuple[object, str | None]:
    """The file's content and the hash of the ids that it was made for, where it says so."""
    if path.suffix == ".npy":
        return load_object_npy(path), None
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            content = load_pickle(file, path.name)
        return content.numpy() if isinstance(content, torch.Tensor) else content, None
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                name = "vectors" if "vectors" in names else names[0]
                if name != "vectors" and len(names) > 1:
                    raise DataError(
                        f"{path.name} holds several tensors and none is called 'vectors'; keep the one to use."
                    )
                return file.get_tensor(name).float().numpy(), (file.metadata() or {}).get("ids_sha256")
        except (OSError, SafetensorError, IndexError) as error:
            raise DataError(f"{path.name} is truncated or damaged ({error}); make or download it again.") from None
    raise DataError(f"{path.name}: vectors are read from .npy, .safetensors or .pkl; convert it to one of them.")
