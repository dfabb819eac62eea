"""The vectors of all items, made and brought into the type that is stored. Tables may be larger than memory (`files/mapped.py`)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from setrec.data.console import progress
from setrec.data.preparation import Preparation, VectorType
from setrec.data.readers.base import SplitLog
from setrec.errors import DataError
from setrec.files.mapped import blocks, converted, new_table, not_zero
from setrec.vectors import ItemVectors, Made


class AllVectors(NamedTuple):
    """The vectors of every kind, and what the manifest says of them."""

    text: Made | None
    cf: list[Made]  # one for each slot
    more: dict[str, Made]  # of further sources, by name
    about: dict[str, Any]


def make_vectors(
    name: str, log: SplitLog, preparation: Preparation, raw: Path | None, hashes: dict[str, str], scratch: Path
) -> AllVectors:
    """Make the vectors of the items.

    Args:
        name: the data set's name.
        log: items and histories.
        preparation: the makers, and the type to store.
        raw: the folder of raw files; None: there is none.
        hashes: of the raw files, by their names in the manifest.
        scratch: see `ItemVectors.make`.

    Raises:
        DataError: a maker has nothing to make them from, a file does not fit the items, or the disk is full.
    """
    paths = preparation.sources(raw)  # name in the manifest -> file

    def make(what: str, maker: ItemVectors, zero_missing: bool = False) -> tuple[Made, dict[str, Any]]:
        with progress(f"data set {name}: {what}", spinner=not maker.shows_progress):
            made = maker.make(log.items, log.train, raw, scratch)
            made = _without_missing(made, scratch) if zero_missing else made
            table = _stored(made, preparation.vector_dtype, log.items["id"], scratch)  # (N, width)
        own = set(maker.sources(raw))
        files = [hashes[label] for label, path in paths.items() if path in own]
        return made._replace(vectors=table), {**maker.describe(), "width": table.shape[1], "files": files}

    found = AllVectors(None, [], {}, {"text": None, "cf": []})
    if preparation.text is not None:
        text, about = make(f"text vectors of {len(log.items):,} items", preparation.text)
        found = found._replace(text=text)
        found.about["text"] = about
    for maker in preparation.cf:
        made, about = make(f"CF vectors by {type(maker).__name__}", maker)
        found.cf.append(made)
        found.about["cf"].append(about | {"present": int(made.present.sum())})
    for source, by in preparation.vectors.items():
        made, about = make(f"vectors {source} by {type(by).__name__}", by, zero_missing=True)
        found.more[source] = made
        found.about.setdefault("vectors", {})[source] = about | {"missing": int((~made.present).sum())}
    return found


def _without_missing(made: Made, scratch: Path) -> Made:
    """The same, where an item without a vector has a zero row: a file of CF vectors may hold any numbers there."""
    if not (not_zero(made.vectors) & ~made.present).any():
        return made
    table = new_table(made.vectors.shape, made.vectors.dtype.name, scratch)  # (N, width)
    for rows in blocks(*table.shape):
        table[rows] = made.vectors[rows] * made.present[rows, None]
    return made._replace(vectors=table)


def _stored(made: Made, dtype: VectorType, ids: pl.Series, scratch: Path) -> np.ndarray:
    """Vectors as they are stored, (N, width).

    Raises:
        DataError: a number is too large for float16, or the disk is full.
    """
    table = converted(made.vectors, dtype, scratch)  # (N, width)
    for rows in blocks(*table.shape) if dtype == "float16" else ():
        infinite = np.isinf(table[rows]).any(axis=1)  # (block,)
        if infinite.any():
            raise DataError(
                f"the vector of item {ids[rows.start + int(infinite.argmax())]!r} holds a number above 65,504, which float16 "
                "cannot store; use --data.vector_dtype float32."
            )
    return table
