"""Which catalogue this is: checkpoints remember it, and are refused for another one.

The fingerprint is exact: the same numbers to the bit. The same raw data prepared on another machine, or with another number of
threads, gives the same vectors up to rounding. So a catalogue that is made from the same items and training histories is accepted
if a sketch of its vectors is close.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from setrec.errors import ConfigError
from setrec.files.hashes import ids_hash
from setrec.files.ragged import Ragged

_ROWS = 1 << 16  # rows that are read at a time
_CLOSE = 0.02  # of the vectors' length; measured between CPUs and numbers of threads: 0.0001


class Identity(NamedTuple):
    """What tells a catalogue from others."""

    fingerprint: str  # sha256 of ids, counts and vectors
    former: str  # what version 0.2.0 took for the fingerprint: sha256 of ids, counts and the origin of the vectors
    inputs: str  # `inputs_hash`; "" for data that version 0.2.0 prepared
    sketch: list[float]  # weighted sums of the rows of all matrices

    def plain(self, name: str) -> dict[str, Any]:
        """Return what a checkpoint holds. name: of the data set."""
        return {"name": name, "fingerprint": self.fingerprint, "inputs": self.inputs, "sketch": self.sketch}

    def check(self, trained_on: Mapping[str, Any], name: str, what: str, advice: str) -> None:
        """Check that weights were trained on this catalogue.

        Args:
            trained_on: what the checkpoint holds, see `plain`.
            name: of the data set here.
            what: what the message calls the checkpoint.
            advice: what to do otherwise.

        Raises:
            ConfigError: they were trained on another one.
        """
        if not self._accepts(trained_on):
            raise ConfigError(
                f"{what} was trained on the data set {trained_on['name']!r} ({trained_on['fingerprint'][:12]}), but this is "
                f"{name!r} ({self.fingerprint[:12]}): items, their vectors or the training events are others, so its scores would "
                f"be wrong; {advice}."
            )

    def _accepts(self, trained_on: Mapping[str, Any]) -> bool:
        if trained_on["fingerprint"] == self.fingerprint:
            return True
        if "sketch" not in trained_on:  # version 0.2.0
            return bool(trained_on["fingerprint"] == self.former)
        same = (
            bool(self.inputs) and trained_on["inputs"] == self.inputs and len(trained_on["sketch"]) == len(self.sketch)
        )
        return same and bool(np.linalg.norm(np.subtract(trained_on["sketch"], self.sketch)) < _CLOSE)


def identify(
    ids: list[str],
    count: np.ndarray,
    origin: Mapping[str, Any],
    text: np.ndarray | None,
    cf: Sequence[tuple[np.ndarray, np.ndarray]],
    vectors: Mapping[str, tuple[np.ndarray, np.ndarray]] = {},
) -> Identity:
    """Identify a catalogue.

    Args:
        ids: own ids, N of them.
        count: (N,) int64, occurrences in the training split.
        origin: the manifest: what it says of the vectors (`text` and `cf`) and of `inputs`.
        text: (N, F) float32 or float16.
        cf: for each CF slot, vectors (N, E) float32 or float16 and present (N,) bool.
        vectors: the same of every further source, by name.
    """
    counted = "\n".join((ids_hash(ids), hashlib.sha256(count.astype(np.int64).tobytes()).hexdigest()))
    made = json.dumps(_makers(origin), sort_keys=True)
    content = hashlib.sha256(counted.encode())
    sketch: list[float] = []
    for matrix in (text, *(matrix for slot in (*cf, *vectors.values()) for matrix in slot)):
        content.update(b"none" if matrix is None else f"{matrix.dtype}{matrix.shape}".encode())
        if matrix is not None:
            content.update(np.ascontiguousarray(matrix).data)
            sketch += _sketch(matrix)
    content.update("\n".join(vectors).encode())
    former = hashlib.sha256("\n".join((counted, made)).encode()).hexdigest()
    return Identity(content.hexdigest(), former, origin.get("inputs", ""), sketch)


def known_identity(manifest: Mapping[str, Any]) -> Identity | None:
    """The identity that the manifest holds; None: it was written by an earlier version."""
    known = manifest.get("identity")
    return None if known is None else Identity(inputs=manifest.get("inputs", ""), **known)


def inputs_hash(items: pl.DataFrame, train: Ragged, origin: Mapping[str, Any]) -> str:
    """Return the sha256 of what vectors are made from: the table of items, the training histories, and the makers of vectors."""
    digest = hashlib.sha256(json.dumps(_makers(origin), sort_keys=True).encode())
    for name in sorted(items.columns):
        digest.update(ids_hash([name, *map(str, items[name].to_list())]).encode())
    digest.update(train.offsets.tobytes() + train.items.tobytes())
    return digest.hexdigest()


def _makers(origin: Mapping[str, Any]) -> list[Any]:
    """What the manifest says of the vectors."""
    return [origin["text"], origin["cf"], *([origin["vectors"]] if origin.get("vectors") else [])]


def _sketch(matrix: np.ndarray) -> list[float]:
    """Two weighted sums of the rows, in units of the length of the matrix. matrix: (N, width) or (N,)."""
    rows = matrix.reshape(len(matrix), -1)  # (N, width)
    angle = np.arange(1, len(rows) + 1, dtype=np.float64)  # (N,)
    weights = np.stack([np.cos(angle), np.sin(angle * np.sqrt(2))]).astype(np.float32)  # (2, N)
    sums, squares = np.zeros((2, rows.shape[1])), 0.0
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS].astype(np.float32)  # (up to _ROWS, width)
        sums += weights[:, start : start + _ROWS] @ block
        squares += float(np.vdot(block, block))
    return [float(value) for value in (sums / max(squares**0.5, 1e-6)).ravel()]
