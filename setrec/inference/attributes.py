"""The attributes of a catalogue's items: the columns of its table, with one kind each, and the filters on them.

Files hold attributes as text. A column of text of which every value is a number is a column of numbers; of which every value is
true, false, yes or no, a yes/no column. An empty text is a missing value.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import polars as pl
import torch
from torch import Tensor

from setrec.errors import ConfigError, DataError
from setrec.inference.filters import Kind, parse_filter

Value = str | float | bool | None
OWN = ("id", "title", "text", "count", "warm")  # columns that are not attributes; filters can name them
_KEPT = 64  # masks and groups that are kept
_TYPES: dict[Kind, pl.DataType] = {"text": pl.String(), "number": pl.Float64(), "yes/no": pl.Boolean()}
_NUMBER = r"^[+-]?(?:0|[1-9]\d*)?(?:\.\d+)?(?:[eE][+-]?\d+)?$"  # 007 is no number: it would lose its zeros
_LARGEST = 1e300  # of a number; it refuses NaN, too
_YES, _NO = ("true", "yes"), ("false", "no")
_NAME = re.compile(r"[^`\x00-\x1f]{1,200}")


class Attributes:
    """The table of a version's items. It never changes.

    Attributes:
        table: row i is item id i: the columns of `OWN` and the attributes, each String, Float64 or Boolean.
        kinds: the kind of every column.

    Args:
        table: id, title, text, count, warm and further columns of any type; nested ones are left out.
        patched: own id -> attributes that were changed since, and the title.
    """

    def __init__(self, table: pl.DataFrame, patched: Mapping[str, Mapping[str, Value]] | None = None) -> None:
        columns = {
            column.name: _typed(column, column.name in OWN[:3]) for column in table if not column.dtype.is_nested()
        }
        if patched:
            columns |= _patched(columns, patched)
        self.table = pl.DataFrame(list(columns.values()))
        self.kinds = {column.name: _kind(column) for column in self.table}
        self._kept: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def columns(self) -> dict[str, Kind]:
        """The attributes and their kinds."""
        return {name: kind for name, kind in self.kinds.items() if name not in OWN}

    def of(self, item: int) -> dict[str, Value]:
        """The attributes of an item; whole numbers as int."""
        row = self.table.select(list(self.columns)).row(item, named=True) if self.columns else {}
        return {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in row.items()
        }

    def mask(self, expression: str) -> Tensor:
        """The items that a filter admits, (N,) bool. The last masks are kept.

        Raises:
            ConfigError: see `parse_filter`.
        """
        return self._cached("mask", expression, self._mask)

    def values(self, column: str) -> Tensor:
        """A number for every value of a column, (N,) int64; -1 where the value is missing.

        Raises:
            ConfigError: there is no such column.
        """
        return self._cached("values", column, self._values)

    def _mask(self, expression: str) -> Tensor:
        found = self.table.select(found=parse_filter(expression, self.kinds))["found"]
        return torch.from_numpy(found.to_numpy().copy())  # (N,)

    def _values(self, column: str) -> Tensor:
        if column not in self.kinds:
            raise ConfigError(f"caps: the catalogue has no column {column!r}; it has {', '.join(self.kinds)}.")
        codes = self.table[column].rank("dense").cast(pl.Int64).fill_null(0) - 1
        return torch.from_numpy(codes.to_numpy().copy())  # (N,)

    def _cached(self, what: str, name: str, make: Callable[[str], Tensor]) -> Tensor:
        with self._lock:
            if (what, name) in self._kept:
                self._kept.move_to_end((what, name))
                return self._kept[what, name]
        made = make(name)
        with self._lock:
            self._kept[what, name] = made
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return made

    def fitting(self, own: str, fields: Mapping[str, Any], fixed: Collection[str] = ()) -> dict[str, Value]:
        """Bring new values of an item's attributes into the kinds of their columns; a new column takes any.

        Args:
            own: the item's id, for messages.
            fields: attribute, or title, -> text, number, true, false, or None: missing.
            fixed: further columns that cannot be changed, since the item's vector is made of them.

        Raises:
            DataError: a column cannot be changed, or a value does not fit.
        """
        found = {}
        for name, value in fields.items():
            if name in ("text", "vector", *fixed):
                raise DataError(
                    f"item {own!r}: {name!r} is what its vector is made of; to change it, remove the item and add it again."
                )
            if name in ("id", "count", "warm", "item_id") or not _NAME.fullmatch(name):
                raise DataError(f"item {own!r}: {name[:200]!r} is no attribute that can be changed.")
            if name == "title" and not (isinstance(value, str) and value.strip()):
                raise DataError(f"item {own!r}: its title must be a text that is not blank.")
            found[name] = self._fitted(own, name, value)
        return found

    def check_added(self, table: pl.DataFrame) -> None:
        """Check that the attributes of new items fit the kinds of their columns.

        Raises:
            DataError: a value does not fit.
        """
        for name in self.columns.keys() & set(table.columns):
            for own, value in zip(table["id"].to_list(), table[name].to_list(), strict=True):
                self._fitted(own, name, value)

    def _fitted(self, own: str, name: str, value: Any) -> Value:
        kind = self.kinds.get(name)
        plain = value.strip() if isinstance(value, str) else value
        if plain is None or plain == "":
            return None
        if not isinstance(plain, str | int | float | bool) or (
            not isinstance(plain, str) and not abs(plain) < _LARGEST
        ):
            raise DataError(f"item {own!r}, {name!r}: give a text, a finite number, true or false, not {plain!r:.80}.")
        if kind is None:
            return plain
        if kind == "text" and isinstance(plain, str):
            return plain
        if kind == "number" and isinstance(plain, int | float) and not isinstance(plain, bool):
            return float(plain)
        typed = _typed(pl.Series([_as_word(plain)], dtype=pl.String))
        if kind == "text" or _kind(typed) == kind:
            fitted: Value = _as_word(plain) if kind == "text" else typed.item()
            return fitted
        what = {"number": "a number", "yes/no": "yes or no (true, false)"}[kind]
        raise DataError(f"item {own!r}, {name!r}: the column holds {kind} values, and {plain!r:.80} is not {what}.")


def _as_word(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else repr(value)


def _kind(column: pl.Series) -> Kind:
    return next(kind for kind, dtype in _TYPES.items() if column.dtype == dtype)


def _typed(column: pl.Series, as_it_is: bool = False) -> pl.Series:
    """A column as String, Float64 or Boolean. as_it_is: a text stays a text, whatever it holds."""
    if column.dtype == pl.Boolean:
        return column
    if column.dtype.is_numeric():
        numbers = column.cast(pl.Float64)
        return numbers.set(~numbers.is_finite(), None)
    text = column.cast(pl.String).str.strip_chars().alias(column.name)
    text = text.set(text == "", None)
    some = text.drop_nulls()
    if as_it_is or not len(some):
        return text
    words = some.str.to_lowercase()
    if words.is_in([*_YES, *_NO]).all():
        return text.str.to_lowercase().is_in(list(_YES)).alias(column.name)
    numbers = text.cast(pl.Float64, strict=False)
    fits = numbers.drop_nulls()
    return numbers if some.str.contains(_NUMBER).all() and len(fits) == len(some) and fits.is_finite().all() else text


def _patched(columns: Mapping[str, pl.Series], patched: Mapping[str, Mapping[str, Value]]) -> dict[str, pl.Series]:
    """The columns that patches change."""
    ids = columns["id"]
    row = {own: place for place, own in enumerate(ids.to_list()) if own in patched}
    changed: dict[str, tuple[list[int], list[Value]]] = {}
    for own, fields in patched.items():
        for name, value in fields.items():
            if own in row:
                rows, values = changed.setdefault(name, ([], []))
                rows.append(row[own])
                values.append(value)
    found = {}
    for name, (rows, values) in changed.items():
        new = _column(name, values)
        old = columns.get(name)
        if old is None or old.null_count() == len(old):
            old = pl.Series(name, [None] * len(ids), new.dtype)
        if old.dtype != new.dtype:  # what does not fit any more makes a column of text of both
            if old.dtype == pl.String or new.null_count() == len(new):
                new = _column(name, values, pl.String()).cast(old.dtype)
            else:
                old, new = old.cast(pl.String), _column(name, values, pl.String())
        found[name] = old.clone().scatter(rows, new)
    return found


def _column(name: str, values: Sequence[Value], dtype: pl.DataType | None = None) -> pl.Series:
    words = [None if value is None else _as_word(value) for value in values]
    column = pl.Series(name, words, pl.String)
    return column if dtype is not None else _typed(column, as_it_is=name in OWN[:3])
