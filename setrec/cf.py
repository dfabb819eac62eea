"""From training histories to collaborative (CF) vectors (N, E), which the CF tokens are made from."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import narwhals as nw
import numpy as np
import polars as pl
from scipy import sparse

from setrec.errors import DataError
from setrec.files.ragged import Ragged
from setrec.files.raw import raw_file, raw_sources
from setrec.files.vectorfile import read_vector_file, train_hash
from setrec.vectors import ItemVectors, Made

Counter: TypeAlias = "Callable[[Ragged, int, int], sparse.csr_matrix]"  # what `count_cooccurrence` is


def count_cooccurrence(
    sequences: Ragged, n_items: int, window: int, worth: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Count how often two items stand within `window` steps of each other in a history, in either order.

    Args:
        sequences: each user's items in order.
        n_items: the number of items, N.
        window: the most steps between the two.
        worth: see `count_transitions`.

    Returns:
        (N, N) sparse float32, symmetric, with an empty diagonal.
    """
    counts = count_transitions(sequences, n_items, window, worth=worth)  # (N, N) sparse
    return (counts + counts.T).tocsr()


def count_pairs(events: "nw.LazyFrame[Any]", window: int) -> "nw.LazyFrame[Any]":
    """What `count_cooccurrence` counts, as an expression that a dataframe engine computes.

    Args:
        events: user, item (numbers), time, row: the order of a user's events.
        window: the most steps between the two.

    Returns:
        first and second, items with first < second, and n > 0: how often they stand together.
    """
    before = {
        f"before_{step}": nw.col("item").shift(step).over("user", order_by=["time", "row"])
        for step in range(1, window + 1)
    }
    events = events.select("item", **before)
    counts = []
    for name in before:  # one step at a time, to limit memory
        pairs = events.select("item", other=name).filter(nw.col("other") != nw.col("item"))
        pairs = pairs.select(first=nw.min_horizontal("item", "other"), second=nw.max_horizontal("item", "other"))
        counts.append(pairs.group_by("first", "second").agg(n=nw.len()))
    return nw.concat(counts).group_by("first", "second").agg(n=nw.col("n").sum().cast(nw.Int64))


def count_transitions(
    sequences: Ragged, n_items: int, window: int, decay: float = 1.0, worth: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Count how often item j comes after item i in a history, at most `window` steps later.

    Args:
        sequences: each user's items in order.
        n_items: the number of items, N.
        window: the most steps between the two.
        decay: a pair that is s steps apart counts decay^(s - 1).
        worth: (all,) float32, how many times each element of the sequences counts; a pair counts the product. None: once.

    Returns:
        (N, N) sparse float32, row i, column j, with an empty diagonal.
    """
    items = sequences.items
    user = np.repeat(np.arange(len(sequences)), sequences.lengths)  # (all,) the user of each item
    counts = sparse.csr_matrix((n_items, n_items), dtype=np.float32)
    for step in range(1, window + 1):  # one step at a time, to limit memory
        pair = (user[step:] == user[:-step]) & (items[step:] != items[:-step])  # (all - step,)
        place = items[:-step][pair], items[step:][pair]
        worths = np.full(len(place[0]), decay ** (step - 1), np.float32)  # (pairs,)
        if worth is not None:
            worths *= worth[:-step][pair] * worth[step:][pair]
        counts = counts + sparse.csr_matrix((worths, place), (n_items, n_items))
    return counts.tocsr()


def rotated(new: np.ndarray, old: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Rotate new CF vectors onto old ones, so that what a model has learned from the old ones holds for the new.

    An SVD of more events has other axes, and inner products between its vectors are all that it means. The rotation is the
    orthogonal Procrustes solution over the items that both have.

    Args:
        new: (N', E) float32.
        old: (n, E) float32, of the items `shared`, in this order.
        shared: (n,) int64, rows of `new`.

    Returns:
        (N', E) float32, with the same inner products as `new`.
    """
    left, _, right = np.linalg.svd(new[shared].T.astype(np.float64) @ old.astype(np.float64))  # (E, E) each
    turned: np.ndarray = new.astype(np.float64) @ (left @ right)  # (N', E)
    return turned.astype(np.float32)


class CFVectors(ItemVectors):
    """A way to get collaborative vectors. A subclass keeps its arguments in attributes of the same names."""

    @abstractmethod
    def vectors(self, ids: list[str], train: Ragged, raw: Path | None) -> tuple[np.ndarray, np.ndarray]:
        """Make the vectors of all items.

        Args:
            ids: the items' own ids, N of them.
            train: each user's training items in order. Nothing else may be used.
            raw: the folder of raw files; None: there is none.

        Returns:
            The vectors, (N, E) float32, or float16 from a file, every number finite; and present, (N,) bool: the rows that were
            learned from training items.

        Raises:
            DataError: there is no usable data, or a file does not fit the items.
        """

    def make(self, items: pl.DataFrame, train: Ragged, raw: Path | None, scratch: Path | None = None) -> Made:
        """See `ItemVectors.make`."""
        return Made(*self.vectors(items["id"].to_list(), train, raw))


class CFFile(CFVectors):
    """Reads the vectors of a trained CF model: the item_vectors.safetensors of a SASRec run, or the released SASRec.

    Rows of cold items stay as they are in the file (the random numbers that training began with, or what it made of them). They
    are marked as not present, and the model decides what a missing row is.

    Args:
        file: name inside the raw folder, or a path: .pkl (a pickled tensor, read without trusting it), .npy or .safetensors with
            one row per item in id order. A .safetensors file may say which rows are present, and for which ids and which
            training split it was made. It is then refused for others.
    """

    def __init__(self, file: str = "SASRec_item_embed.pkl") -> None:
        self.file = file

    def make(self, items: pl.DataFrame, train: Ragged, raw: Path | None, scratch: Path | None = None) -> Made:
        """See `ItemVectors.make`."""
        return Made(*self.vectors(items["id"].to_list(), train, raw, scratch))

    def vectors(
        self, ids: list[str], train: Ragged, raw: Path | None, scratch: Path | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `CFVectors.vectors`. scratch: see `ItemVectors.make`."""
        path = raw_file(self.file, raw)
        found = read_vector_file(path, ids, scratch)
        if found.train_sha256 is not None and found.train_sha256 != train_hash(train):
            raise DataError(
                f"{path.name} was learned from another training split of these items, so it may know what is to be "
                "predicted here; train it again on this data set."
            )
        present = found.present if found.present is not None else np.bincount(train.items, minlength=len(ids)) > 0
        return found.vectors, present  # (N, E), (N,)

    def describe(self) -> dict[str, str | int | float]:
        """See `ItemVectors.describe`."""
        return {"source": "CFFile", "file": Path(self.file).name}

    def sources(self, raw: Path | None) -> list[Path]:
        """See `ItemVectors.sources`."""
        return raw_sources(self.file, raw)


class CooccurrenceSVD(CFVectors):
    """Truncated SVD of the items' co-occurrence in training histories. It takes seconds and needs no training run.

    Entry (i, j) counts how often i and j stand within `window` steps of each other, divided by sqrt(n_i n_j): a cosine. The
    inner products of U sqrt(S) of the SVD are close to these cosines. The table is scaled so that present rows have length 1 on
    average. Cold items get zeros. Not in the paper, which uses SASRec.

    Args:
        width: E, numbers per vector (the paper's SASRec: 64). With fewer items, the last numbers are 0.
        window: the most steps between two items that count as bought together.
        seed: of the randomised SVD.
    """

    def __init__(self, width: int = 64, window: int = 5, seed: int = 2023) -> None:
        self.width, self.window, self.seed = width, window, seed
        self.count: Counter = count_cooccurrence  # or that of an engine

    def vectors(self, ids: list[str], train: Ragged, raw: Path | None) -> tuple[np.ndarray, np.ndarray]:
        """See `CFVectors.vectors`."""
        from sklearn.utils.extmath import randomized_svd  # here: scikit-learn takes a second to import

        n_items = len(ids)
        count = np.bincount(train.items, minlength=n_items)  # (N,)
        together = self.count(train, n_items, self.window)  # (N, N) sparse
        if together.nnz == 0 or not together.data.any():
            raise DataError("no two items follow each other in the training split; use --data.cf '[]' (and n_cf 0).")
        scale = 1 / np.sqrt(np.maximum(count, 1)).astype(np.float32)  # (N,)
        together.data *= np.repeat(scale, np.diff(together.indptr))  # in place: 1 GB for 20 million events
        together.data *= scale[together.indices]
        width = min(self.width, n_items - 1)
        left, strength, _ = randomized_svd(together, width, n_iter=7, random_state=self.seed)
        vectors = np.zeros((n_items, self.width), np.float32)
        vectors[:, :width] = left * np.sqrt(strength)  # (N, E)
        present = count > 0  # (N,)
        vectors[~present] = 0
        vectors /= max(float(np.linalg.norm(vectors[present], axis=1).mean()), 1e-8)
        return vectors, present

    def describe(self) -> dict[str, str | int | float]:
        """See `ItemVectors.describe`."""
        return {"source": "CooccurrenceSVD", "window": self.window, "seed": self.seed}
