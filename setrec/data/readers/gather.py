"""Where readers put what they find: events as numbers, items as one row each with a text made from their fields."""

import html
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from setrec.data.readers.lines import Tally
from setrec.errors import DataError

_BUFFER = 200_000  # events that wait as Python objects
_FAR = 1 << 62  # no time is later than this, in any unit
_OURS = ("id", "title", "text", "item_id", "count", "warm")  # columns of the prepared table that mean something else
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


class Events:
    """Events as they come. Ids become numbers at once, so memory grows by some 20 bytes an event and not by the text.

    Args:
        tally: counts the events that lack something.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self.users: dict[str, int] = {}  # own id -> number, in order of first appearance
        self.items: dict[str, int] = {}
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._clear()

    def _clear(self) -> None:
        self._user, self._item = array("i"), array("i")
        self._time, self._rating = array("q"), array("f")

    def put(self, line: int, user: object, item: object, time: object, rating: object = None) -> None:
        """One event of a record.

        Args:
            line: where it stands.
            user, item: own ids, text or numbers.
            time: in the log's ticks; a number, or text that is one.
            rating: a number, or text that is one; None where there is none.

        Raises:
            DataError: see `Tally.bad`.
        """
        own_user, own_item = own_id(user), own_id(item)
        if not own_user or not own_item:
            return self._tally.bad(line, "no user" if not own_user else "no item")
        try:
            when = int(time)  # type: ignore[call-overload]
            stars = float(rating) if rating is not None else np.nan  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return self._tally.bad(line, f"time {str(time)[:30]!r}, rating {str(rating)[:30]!r}")
        if not -_FAR < when < _FAR:
            return self._tally.bad(line, f"time {str(when)[:30]}")
        self._user.append(self.users.setdefault(own_user, len(self.users)))
        self._item.append(self.items.setdefault(own_item, len(self.items)))
        self._time.append(when)
        self._rating.append(stars)
        if len(self._user) >= _BUFFER:
            self._flush()
        return None

    def add(self, user: pl.Series, item: pl.Series, time: pl.Series, rating: pl.Series | None = None) -> None:
        """Many events at once, checked already: text, text, int64 and, optionally, a float."""
        stars = np.full(len(user), np.nan, np.float32) if rating is None else rating.cast(pl.Float32).to_numpy()
        coded = (_numbers(user, self.users), _numbers(item, self.items))
        self._parts.append((*coded, time.to_numpy(), stars))

    def _flush(self) -> None:
        parts = (self._user, self._item, self._time, self._rating)
        user, item, time, rating = (np.array(part) for part in parts)
        self._parts.append((user, item, time, rating))
        self._clear()

    def frame(self) -> pl.DataFrame:
        """User and item (categorical), time int64, rating float32 where any event has one. The account is closed.

        Raises:
            DataError: there is no event, or too many lines were malformed.
        """
        self._tally.close()
        self._flush()
        user, item, time, rating = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts = []
        if not len(time):
            raise DataError(f"{self._tally.file} holds no events; check that it is the right file.")
        columns = {"user": _categories(user, self.users), "item": _categories(item, self.items), "time": time}
        if not np.isnan(rating).all():
            columns["rating"] = rating
        return pl.DataFrame(columns).with_columns(pl.col(pl.Float32).fill_nan(None))


class Items:
    """The table of items: one row per own id, whatever the raw file repeats.

    Of several rows of one item the one with the longest text stays (of equally long ones the last in the alphabet), so
    the order of the rows does not matter.

    Args:
        text_fields: which fields the text is made from, in this order: "title: ...; brand: ...", empty ones left out.
        wanted: the own ids that are kept; None keeps all.
        max_text: characters at most in a text.
        kept: fields that become columns of their own beside those of text_fields, for templates of text encoders.
    """

    def __init__(
        self, text_fields: Sequence[str], wanted: Iterable[str] | None, max_text: int, kept: Sequence[str] = ()
    ) -> None:
        self.text_fields, self.max_text, self._kept = text_fields, max_text, kept
        self._wanted = None if wanted is None else set(wanted)
        self._rows: dict[str, tuple[str, ...]] = {}

    def put(self, own: str, title: object, fields: Mapping[str, object]) -> None:
        """One item.

        Args:
            own: its own id.
            title: text, or None.
            fields: field -> text, number, list or None.
        """
        if self._wanted is not None and own not in self._wanted:
            return
        columns = self._columns()
        flat = {name: plain(fields.get(name))[: self.max_text] for name in {*self.text_fields, *columns}}
        text = "; ".join(f"{name}: {flat[name]}" for name in self.text_fields if flat[name])[: self.max_text].rstrip()
        row = (text, plain(title)[: self.max_text], *(flat[name] for name in columns))
        before = self._rows.get(own)
        if before is None or (len(before[0]), before) < (len(row[0]), row):
            self._rows[own] = row

    def _columns(self) -> list[str]:
        return [name for name in dict.fromkeys((*self.text_fields, *self._kept)) if name not in _OURS]

    def frame(self) -> pl.DataFrame:
        """id, text, title and the fields as columns, by id."""
        names = ["id", "text", "title", *self._columns()]
        rows = [(own, *self._rows[own]) for own in sorted(self._rows)]
        return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def own_id(value: object) -> str | None:
    """An id as text; None for what cannot be one."""
    if isinstance(value, str):
        return _paired(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else (str(value) if value == value else None)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def plain(value: object) -> str:
    """A field as one line of text: lists and dicts flattened, HTML undone, white space made single spaces."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, Mapping | list | tuple | set):
        return ", ".join(dict.fromkeys(part for part in _parts(value) if part))  # each once, in order
    text = str(value)
    if "<" in text or "&" in text:
        text = _TAG.sub(" ", html.unescape(text))
    return _paired(" ".join(text.split()))


def _parts(value: object) -> Iterator[str]:
    """The texts in a list or dict, however deep."""
    if isinstance(value, Mapping):
        yield from (f"{name} {text}" for name, part in value.items() if (text := plain(part)))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, set):
        yield from sorted(map(plain, value))
    else:
        yield plain(value)


def _paired(text: str) -> str:
    """Text without halves of surrogate pairs, which old literals have and UTF-8 has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _numbers(column: pl.Series, known: dict[str, int]) -> np.ndarray:
    """The number of each id, (rows,) int32; new ids get the next ones."""
    different = column.unique(maintain_order=True)
    numbers = [known.setdefault(own, len(known)) for own in different.to_list()]
    table = pl.DataFrame({"id": different, "number": pl.Series(numbers, dtype=pl.Int32)})
    return column.to_frame("id").join(table, "id", how="left", maintain_order="left")["number"].to_numpy()


def _categories(numbers: np.ndarray, own: dict[str, int]) -> pl.Series:
    names = pa.array(own, pa.large_string())
    column = pl.from_arrow(pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), names))
    assert isinstance(column, pl.Series)
    return column
