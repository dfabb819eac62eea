"""Items that are added after training: their table, and their vectors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import torch

from setrec.errors import DataError
from setrec.files.ids import as_ids, as_text
from setrec.vectors import ItemVectors

VECTOR = "vector"  # the column with an item's text vector
_TRIED = 16  # known items that an encoder is tried on
_MAX_LONGER = 10.0  # a new vector may be this many times as long as the longest of the training
_MIN_COSINE = 0.99  # between the vectors it makes for them and those of the training


def check_items(items: pl.DataFrame | list[dict[str, Any]], known: Mapping[str, int]) -> pl.DataFrame:
    """Check new items and bring them into one form: id, title and text as texts, further columns as they are.

    Args:
        items: columns id, and title or text (default: the title). Optionally `vector`.
        known: the ids that the catalogue has already.

    Raises:
        DataError: a column is missing; an id is blank, repeated or known; an item has neither title, text nor vector.
    """
    if not isinstance(items, pl.DataFrame):
        try:
            items = pl.DataFrame(items, infer_schema_length=None)
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            raise DataError(f"the new items are not a table ({str(error).splitlines()[0]}).") from None
    if not len(items):
        raise DataError("there are no new items in the table.")
    if "id" not in items.columns:
        raise DataError(f"the new items have no column 'id' (they have {', '.join(items.columns)}).")
    ids = as_ids(items["id"])
    title = _texts(items, "title")
    text = _texts(items, "text")
    text = pl.select(pl.when(text == "").then(title).otherwise(text).alias("text")).to_series()
    table = items.drop("title", "text", strict=False).with_columns(ids.alias("id"), title, text)
    seen: set[str] = set()
    for row, own in enumerate(ids.to_list(), 1):
        if not own:
            raise DataError(f"new items, row {row}: the id is blank.")
        if own in known or own in seen:
            why = "the catalogue has it already" if own in known else "it is there twice"
            raise DataError(f"new items, row {row}: item {own!r}: {why}; leave it out, or give it another id.")
        seen.add(own)
        if not table["text"][row - 1] and VECTOR not in table.columns:
            raise DataError(f"new items, row {row}: item {own!r} has neither a title nor a text.")
    return table


def _texts(items: pl.DataFrame, column: str) -> pl.Series:
    if column not in items.columns:
        return pl.Series(column, [""] * len(items), pl.String)
    return as_text(items[column]).fill_null("").alias(column)


def vector_column(source: str) -> str:
    """The column with an item's vector of a source of --data.vectors."""
    return f"{VECTOR}_{source}"


def ready_vectors(table: pl.DataFrame, width: int, column: str = VECTOR, needed: bool = True) -> np.ndarray:
    """Read a column of vectors of new items, (items, width) float32.

    Args:
        table: the new items.
        width: numbers in a vector.
        column: its name.
        needed: every item has a vector; False: one without has zeros.

    Raises:
        DataError: a row is not a list of `width` finite numbers.
    """
    vectors = np.zeros((len(table), width), np.float32)
    for row, value in enumerate(table[column].to_list()):
        if value is None and not needed:
            continue
        try:
            with np.errstate(over="ignore"):  # infinity, which is refused below
                numbers = np.asarray(value, np.float32)  # (F,)
        except (TypeError, ValueError):
            numbers = np.zeros(0, np.float32)
        if numbers.shape != (width,) or not np.isfinite(numbers).all():
            raise DataError(
                f"new items, row {row + 1}: item {table['id'][row]!r}: its {column} must be a list of {width} finite numbers, "
                "made as those of the training were."
            )
        vectors[row] = numbers
    return vectors


def check_lengths(ids: list[str], vectors: np.ndarray, known: torch.Tensor) -> None:
    """Check that new vectors, (items, F), are numbers of the size that the model was trained on.

    Args:
        ids: own ids of the new items.
        vectors: their vectors.
        known: (N, F) float32, the vectors of the training.

    Raises:
        DataError: a vector is not finite, or far longer than every known one.
    """
    longest = max(float(some.double().norm(dim=1).max()) for some in known.split(1 << 16))
    length = np.linalg.norm(vectors.astype(np.float64), axis=1)  # (items,)
    wrong = np.flatnonzero(~(length <= _MAX_LONGER * longest))  # this way round it finds NaN, too
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"new items, row {row + 1}: item {ids[row]!r}: the length of its vector is {length[row]:.3g}, and the longest of the "
            f"training {longest:.3g}: it was not made by the encoder of the training."
        )


class ItemEncoder:
    """An encoder of a model, of texts or of a further source. It is tried on known items before it encodes new ones.

    Args:
        text: the encoder.
        learned: what it learned in training.
        vectors: (N, F) float32, the vectors of the known items.
        items: the table of the known items, in the same order.
    """

    def __init__(
        self, text: ItemVectors, learned: Mapping[str, np.ndarray], vectors: torch.Tensor, items: pl.DataFrame
    ) -> None:
        self.text, self.learned = text, learned
        self._vectors, self._items = vectors, items
        self._tried = False

    def __call__(self, table: pl.DataFrame) -> np.ndarray:
        """Encode new items, (items, F) float32.

        Raises:
            DataError: the encoder cannot encode, or makes other vectors than those the model was trained on.
            ConfigError: the encoder cannot be loaded, or reads a column that the table does not have.
        """
        self.text.preload()
        if not self._tried:
            self._try()
            self._tried = True
        return self.text.encode_more(table, self.learned)  # (items, F)

    def _try(self) -> None:
        """Encode some known items and compare the vectors."""
        rows = np.flatnonzero(self._vectors.any(dim=1).numpy())  # with a text
        rows = rows[np.linspace(0, len(rows) - 1, min(_TRIED, len(rows))).astype(np.int64)] if len(rows) else rows
        known = self._vectors[rows].float()  # (n, F)
        found = torch.from_numpy(self.text.encode_more(self._items[rows.tolist()], self.learned))  # (n, F)
        name = type(self.text).__name__
        if found.shape != known.shape:
            raise DataError(
                f"{name} makes vectors of {found.shape[1]} numbers, but the model was trained on {known.shape[1]}: name the "
                "encoder of the training."
            )
        cosine = torch.nn.functional.cosine_similarity(found, known, dim=1)  # (n,)
        if len(rows) and float(cosine.min()) < _MIN_COSINE:
            worst = self._items["id"][int(rows[int(cosine.argmin())])]
            raise DataError(
                f"{name} makes other vectors than the model was trained on (item {worst!r}: cosine {float(cosine.min()):.3f}): "
                "name the encoder of the training, its template and its max_tokens."
            )
