"""A source of item vectors: what an item's tokens are made from. Text (text.py) and CF vectors (cf.py) are two of many."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import polars as pl

from setrec.errors import DataError
from setrec.files.mapped import blocks, by_rows, new_table, not_zero
from setrec.files.ragged import Ragged
from setrec.files.raw import raw_file, raw_sources
from setrec.files.vectorfile import read_vector_file

_LENGTH = "length"  # in what FileVectors learned: the mean length of the vectors in the file


class Made(NamedTuple):
    """The vectors of all items."""

    vectors: np.ndarray  # (N, W) float32, or float16 from a file
    present: np.ndarray  # (N,) bool: the items that have one
    learned: dict[str, np.ndarray] = {}  # noqa: RUF012  (never changed) what vectors of later items are made with


class ItemVectors(ABC):
    """A way to get a vector for every item. A subclass keeps its arguments in attributes of the same names."""

    shows_progress: ClassVar[bool] = False  # True: it shows its own progress bar

    @abstractmethod
    def make(self, items: pl.DataFrame, train: Ragged, raw: Path | None, scratch: Path | None = None) -> Made:
        """Make the vectors of all items.

        Args:
            items: the table of items in the order of their ids: id, title, text and further columns.
            train: each user's training items in order; no other events may be used.
            raw: the folder of raw files; None: there is none.
            scratch: a folder for work that must survive a kill, and for files that hold the vectors of all items (`new_table`);
                it need not exist. None: no work is kept, and the vectors are in memory.

        Raises:
            DataError: there is nothing to make them from, or a file does not fit the items.
        """

    def describe(self) -> dict[str, str | int | float]:
        """Return what the manifest says about the origin of the vectors."""
        return {"source": type(self).__name__}

    def sources(self, raw: Path | None) -> list[Path]:
        """List the files that `make` would read. The data is prepared again when one of them changes."""
        return []

    @property
    def encodes_more(self) -> bool:
        """Whether `encode_more` can make the vectors of items that come later. Otherwise each must come with its own."""
        return False

    def preload(self) -> None:  # noqa: B027  (most have nothing to load)
        """Load and keep what is slow to load, before a few items are encoded again and again."""

    def encode_more(self, items: pl.DataFrame, learned: Mapping[str, np.ndarray]) -> np.ndarray:
        """Make the vectors of items that came later, as `make` would have made them.

        Args:
            items: id, title, text and any other column that is read.
            learned: what `make` learned from the other items.

        Returns:
            (items, W) float32.

        Raises:
            DataError: this class cannot encode new items.
            ConfigError: an encoder cannot be loaded.
        """
        raise DataError(f"{type(self).__name__} cannot make the vectors of new items.")

    def scaled(self, vectors: np.ndarray, learned: Mapping[str, np.ndarray]) -> np.ndarray:
        """Vectors that came with later items, (items, W) float32, in the scale of those that were made."""
        return vectors


class FileVectors(ItemVectors):
    """Vectors from a file: of images, of prices, of whatever you have. An item without a row has the zero vector.

    All vectors are divided by the same number, so that their mean length is 1.

    Args:
        file: name inside the raw folder, or a path. A .parquet file has the columns `id` and `vector` and may lack items. A .npy,
            .safetensors or .pkl file has one row per item in id order; a row of zeros, or one that the tensor `present` of a
            .safetensors file denies, is no vector.
    """

    def __init__(self, file: str) -> None:
        self.file = file

    def make(self, items: pl.DataFrame, train: Ragged, raw: Path | None, scratch: Path | None = None) -> Made:
        """See `ItemVectors.make`."""
        path = raw_file(self.file, raw)
        found = read_vector_file(path, items["id"].to_list(), scratch)
        present = not_zero(found.vectors)  # (N,)
        if found.present is not None:
            present = present & found.present  # (N,)
        if not present.any():
            raise DataError(
                f"{path.name} has a vector for none of the {len(items):,} items: are its ids those of the data?"
            )
        lengths = by_rows(lambda block: np.linalg.norm(block.astype(np.float32), axis=1), found.vectors)  # (N,)
        learned = {_LENGTH: np.array([lengths[present].mean(dtype=np.float64)], np.float32)}
        vectors = new_table(found.vectors.shape, "float32", scratch)  # (N, W)
        for rows in blocks(*vectors.shape):
            vectors[rows] = self.scaled(found.vectors[rows].astype(np.float32), learned) * present[rows, None]
        return Made(vectors, present, learned)

    def scaled(self, vectors: np.ndarray, learned: Mapping[str, np.ndarray]) -> np.ndarray:
        """See `ItemVectors.scaled`."""
        scaled: np.ndarray = vectors / learned[_LENGTH]
        return scaled

    def describe(self) -> dict[str, str | int | float]:
        """See `ItemVectors.describe`."""
        return {"source": "FileVectors", "file": Path(self.file).name}

    def sources(self, raw: Path | None) -> list[Path]:
        """See `ItemVectors.sources`."""
        return raw_sources(self.file, raw)
