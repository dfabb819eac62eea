"""A person's times: numbers since 1970, or dates in the common forms, in microseconds since 1970. Without a zone they are UTC."""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal
from zoneinfo import ZoneInfo

import polars as pl

from setrec.errors import DataError

TimeUnit = Literal["auto", "s", "ms", "us", "ns"]
TICKS = 1_000_000  # in a second: `times` gives microseconds
UNKNOWN = -(1 << 63)  # int64, where a time is not known: before all times
_PER_UNIT = {"s": 1_000_000, "ms": 1_000, "us": 1}
_COMPACT = {8: "%Y%m%d", 14: "%Y%m%d%H%M%S"}  # digits -> form
_DAY, _MONTH = "day first", "month first"
# 1/7/2014, 01.07.2014 12:30
_SLASHES = r"^\s*(\d{1,2})([/.\-])(\d{1,2})[/.\-](?:\d{4}|\d{2})(?:\D|$)"
_DATES = ("%Y-%m-%d", "%d-%b-%Y", "%d %b %Y", "%d %B %Y", "%b %d %Y", "%B %d %Y", "%d-%b-%y")
_ORDERED = {_DAY: ("%d-%m-%Y", "%d-%m-%y"), _MONTH: ("%m-%d-%Y", "%m-%d-%y")}
_WEEKDAY = re.compile(r"^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*[,.]? ", re.IGNORECASE)
_PARTS = re.compile(
    r"(?P<date>.*?\d)"
    r"(?:[T ,:]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?"
    r"(?: ?(?P<zone>Z|UTC|GMT|[A-Za-z]+/[A-Za-z_/]+|(?:UTC|GMT)?[+-]\d{2}:?(?:\d{2})?))?)?"
    r"(?:\[[^\]]*\])?(?: (?P<year>\d{4}))?"
)


def time_form(columns: Iterable[pl.Series], unit: TimeUnit, place: str, advice: str) -> str | None:
    """Find the form of times that their digits alone do not tell: 20140701, or which of 1/7/2014 is the day.

    Only so many columns are looked at as it takes.

    Args:
        columns: the times, some at a time.
        unit: of times that are numbers. Only with "auto" can 20140701 be a date.
        place: the file and column, for the message.
        advice: what to do if nobody can know.

    Returns:
        A form for `times`; None: the times tell it themselves.

    Raises:
        DataError: every date may be day/month and month/day.
    """
    example = None
    for column in columns:
        values = column.drop_nulls()
        if unit == "auto" and (form := _compact(values)):
            return form
        if values.dtype != pl.String:
            return None
        parts = values.to_frame("value").filter(pl.col("value").str.contains(_SLASHES))
        if not len(parts) and example is None:
            return None
        groups = parts.select(
            "value",
            one=pl.col("value").str.extract(_SLASHES, 1).cast(pl.Int64),
            mark=pl.col("value").str.extract(_SLASHES, 2),
            two=pl.col("value").str.extract(_SLASHES, 3).cast(pl.Int64),
        )
        day_first = groups.filter((pl.col("one") > 12) & (pl.col("two") <= 12))["value"]
        month_first = groups.filter((pl.col("two") > 12) & (pl.col("one") <= 12))["value"]
        if len(day_first) and len(month_first):
            raise DataError(
                f"{place}: {day_first[0]!r} begins with the day and {month_first[0]!r} with the month, so nobody can know "
                f"what the others mean; {advice}"
            )
        if len(day_first) or len(month_first):
            return _DAY if len(day_first) else _MONTH
        if len(groups) and (groups["mark"] == ".").all():
            return _DAY  # 1.7.2014 is written where the day comes first
        example = example or groups["value"][0]
    if example is None:
        return None
    raise DataError(f"{place}: in {example!r} nobody can know which is the day and which is the month; {advice}")


def _compact(values: pl.Series) -> str | None:
    """The form of numbers that are dates, such as 20140701 and 20140701123000; what is no number at all does not count."""
    if values.dtype.is_float() or values.dtype.is_temporal():
        return None
    digits = values.cast(pl.String, strict=False).str.strip_chars()
    digits = digits.filter(digits.str.contains(r"^\d+$"))
    form = _COMPACT.get(len(digits[0])) if len(digits) > len(values) // 2 else None
    if form is None or not digits.str.contains(r"^(?:19|20)\d+$").all():
        return None
    return None if digits.str.to_datetime(form, strict=False).null_count() else form


def times(column: pl.Series, unit: TimeUnit = "auto", form: str | None = None) -> pl.Series:
    """Turn a column of times into microseconds since 1970, int64, null where a time cannot be read.

    Args:
        column: numbers, text with numbers or dates (ISO dates such as "2014-07-23" and "2014-07-23T10:00:00+02:00", "2014-07-23
            10:00:00 UTC", "Jul 23, 2014"; without a zone they are UTC), or dates.
        unit: of the numbers. "auto" goes by the size of each number: below 1e11 it means seconds (until the year 5138), below
            1e14 milliseconds (from March 1973), below 1e17 microseconds, else nanoseconds.
        form: what `time_form` found, or a form of strptime such as "%d/%m/%Y".
    """
    name = column.name
    if column.dtype in (pl.Time, pl.Duration) or column.dtype.is_nested():  # no moments
        return pl.Series(name, [None] * len(column), pl.Int64)
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us"), strict=False).to_physical().cast(pl.Int64).alias(name)
    value = pl.col("value")
    frame = column.alias("value").to_frame()
    if form is not None and "%" in form:
        texts = frame.select(value.cast(pl.String, strict=False).str.strip_chars())["value"]
        return _through_table(texts, lambda text: _by_form(text, form)).alias(name)
    if column.dtype == pl.String:
        frame = frame.with_columns(value.str.strip_chars())
    whole = value.cast(pl.Int64, strict=False) if not column.dtype.is_float() else pl.lit(None, pl.Int64)
    frame = frame.with_columns(whole=whole, float=value.cast(pl.Float64, strict=False))
    size = pl.col("float").abs()
    if unit == "auto":
        factor = pl.when(size < 1e11).then(1_000_000).when(size < 1e14).then(1_000).otherwise(1)
        divisor = pl.when(size < 1e17).then(1).otherwise(1_000)
    else:
        factor, divisor = pl.lit(_PER_UNIT.get(unit, 1)), pl.lit(1_000 if unit == "ns" else 1)
    factor = factor.cast(pl.Int64)
    fits = size * factor < 9e18  # int64 ends at 9.2e18
    exact = pl.col("whole") * factor // divisor.cast(pl.Int64)
    rounded = (pl.col("float") * factor / divisor).round().cast(pl.Int64, strict=False)
    number = pl.when(pl.col("whole").is_not_null()).then(exact).otherwise(rounded)
    frame = frame.select("value", "float", micros=pl.when(fits).then(number))
    if column.dtype == pl.String:
        dates = frame.select(pl.when(pl.col("float").is_null()).then(value).alias("value"))["value"]
        if dates.null_count() < len(dates):
            read = _through_table(dates, lambda text: _from_date(text, form))
            frame = frame.with_columns(pl.coalesce("micros", read.alias("date")).alias("micros"))
    return frame["micros"].alias(name)


def _through_table(texts: pl.Series, read: Callable[[str], int | None]) -> pl.Series:
    """Read every different text once."""
    different = texts.drop_nulls().unique()
    table = pl.DataFrame({"text": different, "micros": pl.Series(map(read, different.to_list()), dtype=pl.Int64)})
    return texts.to_frame("text").join(table, "text", how="left", maintain_order="left")["micros"]


def _by_form(text: str, form: str) -> int | None:
    try:
        return _micros(datetime.strptime(text, form))
    except ValueError:
        return None


def _from_date(text: str, order: str | None) -> int | None:
    """Microseconds of a date in one of the common forms; None: it is none."""
    try:
        return _micros(datetime.fromisoformat(text))
    except ValueError:
        pass
    parts = _PARTS.fullmatch(_WEEKDAY.sub("", text))
    if parts is None:
        return None
    date = re.sub(r"[/.\-]", "-", " ".join(parts["date"].replace(",", " ").split()))
    date = f"{date} {parts['year']}" if parts["year"] else date
    for form in (*_ORDERED.get(order or "", ()), *_DATES):
        try:
            when = datetime.strptime(date, form)
            hour = int(parts["hour"] or 0)
            if parts["half"]:
                hour = hour % 12 + 12 * (parts["half"] in "Pp")
            micros = int((parts["fraction"] or "0").ljust(6, "0")[:6])
            when = when.replace(hour=hour, minute=int(parts["minute"] or 0), second=int(parts["second"] or 0))
            return _micros(when.replace(microsecond=micros, tzinfo=_zone(parts["zone"])))
        except (ValueError, KeyError, OSError):
            continue
    return None


def _zone(name: str | None) -> timezone | ZoneInfo:
    if name is None or "/" not in name:
        shift = re.search(r"([+-])(\d{2}):?(\d{2})?$", name or "")
        minutes = int(shift[2]) * 60 + int(shift[3] or 0) if shift else 0
        return timezone(timedelta(minutes=-minutes if shift and shift[1] == "-" else minutes))
    return ZoneInfo(name)


def _micros(when: datetime) -> int:
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    seconds = (when.replace(microsecond=0) - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    return int(seconds) * TICKS + when.microsecond
