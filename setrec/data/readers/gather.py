"""What readers collect: events as numbers, and one row for each item with a text made from its fields."""

import html
import re
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from setrec.errors import DataError
from setrec.files.ids import alike, own_id, whole_numbers, without_lone_surrogates, without_point_zero
from setrec.files.lines import Count, LineCounter

_BUFFER = 200_000  # events that are held in Python arrays at a time
_LATEST = 1 << 62  # no time is later than this, in any unit
_RESERVED = ("id", "title", "text", "item_id", "count", "warm")  # columns that the prepared table has anyway
_SPREADSHEET = re.compile(r"\d(?:[.,]\d+)?E\+\d+")  # 8.71235E+12, what Excel makes of a long number
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


class Events:
    """Collects events. Ids become numbers at once, so memory grows by about 20 bytes an event, however long the ids are.

    Args:
        counter: counts the events that lack something.
    """

    def __init__(self, counter: LineCounter) -> None:
        self._counter = counter
        self.users: dict[str, int] = {}  # own id -> number, in order of first appearance
        self.items: dict[str, int] = {}
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._kinds: dict[str, int] = {}  # kind -> number
        self._kind_parts: list[np.ndarray] = []  # of the events, where there are kinds
        self._clear_buffer()

    def _clear_buffer(self) -> None:
        self._user, self._item = array("i"), array("i")
        self._time, self._rating = array("q"), array("f")

    def add(self, line: int, user: object, item: object, time: object, rating: object = None) -> None:
        """Add the event of one record, or count it as malformed.

        Args:
            line: the number of its line.
            user: own id, text or a number.
            item: own id, text or a number.
            time: in the log's ticks; a number, or text that holds one.
            rating: a number, or text that holds one; None: there is no rating.

        Raises:
            DataError: see `LineCounter.skip`.
        """
        own_user, own_item = own_id(user), own_id(item)
        if not own_user or not own_item:
            return self._counter.skip(line, "no user" if not own_user else "no item")
        try:
            when = int(time)  # type: ignore[call-overload]
            stars = float(rating) if rating is not None else np.nan  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return self._counter.skip(line, "time or rating is no number", shown=f"{time}, {rating}")
        if not -_LATEST < when < _LATEST:
            return self._counter.skip(line, "no such time", shown=when)
        self._user.append(self.users.setdefault(own_user, len(self.users)))
        self._item.append(self.items.setdefault(own_item, len(self.items)))
        self._time.append(when)
        self._rating.append(stars)
        if len(self._user) >= _BUFFER:
            self._flush()
        return None

    def add_many(
        self,
        user: pl.Series,
        item: pl.Series,
        time: pl.Series,
        rating: pl.Series | None = None,
        kind: pl.Series | None = None,
    ) -> None:
        """Add many events, already checked: users, items and kinds as text, times int64, ratings any float or None.

        A log has kinds if every call gives them.
        """
        if kind is not None:
            self._kind_parts.append(_number_ids(kind, self._kinds))
        stars = np.full(len(user), np.nan, np.float32) if rating is None else rating.cast(pl.Float32).to_numpy()
        numbers = (_number_ids(user, self.users), _number_ids(item, self.items))
        self._parts.append((*numbers, time.to_numpy(), stars))

    def _flush(self) -> None:
        parts = (self._user, self._item, self._time, self._rating)
        user, item, time, rating = (np.array(part) for part in parts)
        self._parts.append((user, item, time, rating))
        self._clear_buffer()

    def frame(self) -> pl.DataFrame:
        """Close the count of lines and return all events.

        Returns:
            user and item (categorical), time int64; rating float32 where any event has one; kind (categorical) where given.

        Raises:
            DataError: there is no event, or too many lines were malformed.
        """
        self._counter.close()
        self._flush()
        for what, known in (("user", self.users), ("item", self.items)):
            lost = [own for own in known if "E+" in own and _SPREADSHEET.fullmatch(own)]
            if lost:
                why = f"{what} ids in the form of a spreadsheet, which may have lost their last digits"
                self._counter.notes[why] = Count(len(lost), repr(lost[0]))
            pointed = whole_numbers(known)
            if pointed:
                own, number = next(iter(pointed.items()))
                what = f"{what} ids with a decimal point, read as whole numbers"
                self._counter.notes[what] = Count(len(pointed), f"{own!r} as {number!r}")
        self.users, users = _as_whole_numbers(self.users)
        self.items, items = _as_whole_numbers(self.items)
        user, item, time, rating = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        self._parts = []
        if not len(time):
            raise DataError(
                f"{self._counter.file} holds no events{self._counter.in_words()}; check that it is the right file."
            )
        user, item = (part if to is None else to[part] for part, to in ((user, users), (item, items)))
        columns = {"user": _categories(user, self.users), "item": _categories(item, self.items), "time": time}
        if not np.isnan(rating).all():
            columns["rating"] = rating
        if self._kind_parts:
            columns["kind"] = _categories(np.concatenate(self._kind_parts), self._kinds)
        return pl.DataFrame(columns).with_columns(pl.col(pl.Float32).fill_nan(None))


class Items:
    """Collects items: one row per own id, however often the raw file repeats it. Counts those that no event names.

    Of several rows of an item, the one with the longest text stays (of equally long ones, the last in the alphabet). So the
    order of the rows does not matter.

    Args:
        text_fields: the fields that the text is made from, in this order: "title: ...; brand: ...". Empty fields are left out.
        events: the own ids of the items in the events.
        max_text: the most characters of a text.
        kept: fields that become columns too, as those of text_fields do, for the templates of text encoders.
        keep_all: keep the items that no event names too.
        null_words: texts of a field that mean that it is empty.
    """

    def __init__(
        self,
        text_fields: Sequence[str],
        events: Collection[str],
        max_text: int,
        kept: Sequence[str] = (),
        keep_all: bool = False,
        null_words: Collection[str] = (),
    ) -> None:
        self.text_fields, self.max_text, self._kept = text_fields, max_text, kept
        self._events, self._keep_all, self._null_words = events, keep_all, frozenset(null_words)
        self._numbers = bool(events) and all(own.isdecimal() for own in events)  # a column of whole numbers
        self._rows: dict[str, tuple[str, ...]] = {}
        self._unnamed = array("q")  # hashes of the ids that are in no event; there may be millions
        self._example = ""
        self._alike: dict[str, str] | None = None  # what ids of the events have in common with others
        self._different: dict[str, str] = {}  # id in the events -> id that was probably meant to be the same

    def add(self, own: str, title: object, fields: Mapping[str, object]) -> None:
        """Add a row of an item.

        Args:
            own: its own id.
            title: text, or None.
            fields: field -> text, number, list or None.
        """
        if self._numbers:
            own = without_point_zero(own)
        if own not in self._events:
            self._note_unnamed(own)
            if not self._keep_all:
                return
        columns = self._columns()
        flat = {name: self._flat(fields.get(name)) for name in {*self.text_fields, *columns}}
        text = "; ".join(f"{name}: {flat[name]}" for name in self.text_fields if flat[name])[: self.max_text].rstrip()
        row = (text, self._flat(title), *(flat[name] for name in columns))
        before = self._rows.get(own)
        if before is None or (len(before[0]), before) < (len(row[0]), row):
            self._rows[own] = row

    def _flat(self, value: object) -> str:
        text = one_line(value)[: self.max_text]
        return "" if text in self._null_words else text

    def _note_unnamed(self, own: str) -> None:
        self._example = self._example or own
        self._unnamed.append(hash(own))
        if self._alike is None:
            self._alike = {alike(known): known for known in self._events}
        meant = self._alike.get(alike(own))
        if meant is not None and own != meant:
            self._different.setdefault(meant, own)

    def about(self, file: str, events: str) -> dict[str, Any]:
        """Count the ids that are in no event, for the manifest.

        Args:
            file: what messages call the file of items.
            events: what messages call the file of events.

        Raises:
            DataError: no id of the items is in the events.
        """
        named = sum(own in self._events for own in self._rows)
        different = {meant: own for meant, own in self._different.items() if meant not in self._rows}
        hint = ""
        if different:
            meant, own = next(iter(different.items()))
            hint = f"; {len(different):,} differ only in zeros in front or in capital letters, such as {own!r} and {meant!r}"
        if not named and self._example:
            raise DataError(
                f"no id of {file} is in {events}: {self._example!r} stands in one, {next(iter(self._events))!r} in the "
                f"other{hint}; name the columns with the ids, or write the ids alike in both files."
            )
        about: dict[str, Any] = {"items": named}
        if self._unnamed:
            about |= {"in_no_event": len(np.unique(np.frombuffer(self._unnamed, np.int64))), "example": self._example}
        if different:
            about["written_differently"] = {"items": len(different), "here": own, "in_events": meant}
        return about

    def _columns(self) -> list[str]:
        return [name for name in dict.fromkeys((*self.text_fields, *self._kept)) if name not in _RESERVED]

    def frame(self) -> pl.DataFrame:
        """Return the items in order of their ids: id, text, title and a column for each field."""
        names = ["id", "text", "title", *self._columns()]
        rows = [(own, *self._rows[own]) for own in sorted(self._rows)]
        return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def one_line(value: object) -> str:
    """Turn a field into one line of text: lists and dicts flattened, HTML removed, white space made single spaces."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, Mapping | list | tuple | set):
        return ", ".join(dict.fromkeys(part for part in _texts_in(value) if part))  # each once, in order
    text = str(value)
    if "<" in text or "&" in text:
        text = _TAG.sub(" ", html.unescape(text))
    return without_lone_surrogates(" ".join(text.split()))


def _texts_in(value: object) -> Iterator[str]:
    """Yield the texts in a list or dict, however deep."""
    if isinstance(value, Mapping):
        yield from (f"{name} {text}" for name, part in value.items() if (text := one_line(part)))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts_in(part)
    elif isinstance(value, set):
        yield from sorted(map(one_line, value))
    else:
        yield one_line(value)


def _as_whole_numbers(known: dict[str, int]) -> tuple[dict[str, int], np.ndarray | None]:
    """Take ".0" from ids that are all whole numbers.

    Returns:
        The ids with new numbers, and the new number of each old one; None: nothing changes.
    """
    changed = whole_numbers(known)
    if not changed:
        return known, None
    new: dict[str, int] = {}
    return new, np.array([new.setdefault(changed.get(own, own), len(new)) for own in known], np.int32)


def _number_ids(column: pl.Series, known: dict[str, int]) -> np.ndarray:
    """Turn ids into their numbers, (rows,) int32. New ids get the next numbers."""
    different = column.unique(maintain_order=True)
    numbers: list[int] = [known.setdefault(own, len(known)) for own in different.to_list()]
    table = pl.DataFrame({"id": different, "number": pl.Series(numbers, dtype=pl.Int32)})
    return column.to_frame("id").join(table, "id", how="left", maintain_order="left")["number"].to_numpy()


def _categories(numbers: np.ndarray, own: dict[str, int]) -> pl.Series:
    names = pa.array(own, pa.large_string())
    column = pl.from_arrow(pa.DictionaryArray.from_arrays(pa.array(numbers.astype(np.int32)), names))
    assert isinstance(column, pl.Series)
    return column
