"""A person's ids: text without blanks around it. Words that mean nothing, such as nan or NULL, are no ids."""

import re
from collections.abc import Collection, Iterable

import polars as pl

# what other programs write where a value is missing
NULL_WORDS = ["nan", "NaN", "NAN", "None", "null", "NULL", "Null", "\\N", "N/A", "n/a", "NA", "<NA>", "#N/A", "NaT"]
_WHOLE = re.compile(r"\d+(?:\.0+)?")
_POINT_ZERO = re.compile(r"\d+\.0+")


def own_id(value: object) -> str | None:
    """Turn an id of a record into text as it stands; None where the value cannot be an id."""
    if isinstance(value, str):
        return without_lone_surrogates(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else (str(value) if value == value else None)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def as_text(column: pl.Series, null_words: Collection[str] = ()) -> pl.Series:
    """Turn a column of ids into text without blanks around it: whole numbers without a decimal point, null where there is no id.

    Args:
        column: any type.
        null_words: texts that mean that there is no id.
    """
    if column.dtype.is_nested():  # no id
        return pl.Series(column.name, [None] * len(column), pl.String)
    value = pl.col("value")
    text = value.cast(pl.String, strict=False)
    if column.dtype.is_float():
        whole = value.cast(pl.Int64, strict=False).cast(pl.String)
        text = pl.when(value == value.floor()).then(whole).when(value.is_not_nan()).then(text)
    frame = column.alias("value").to_frame().select(text=text.str.strip_chars())
    missing = (pl.col("text") == "") | pl.col("text").is_in(list(null_words))
    return frame.select(pl.when(~missing).then(pl.col("text")).alias(column.name)).to_series()


def as_ids(column: pl.Series) -> pl.Series:
    """Turn a whole column of ids into text, as the readers of data do: see `as_text` and `whole_numbers`."""
    text = as_text(column)
    changed = whole_numbers(text.drop_nulls().unique().to_list())
    return text.replace(changed) if changed else text


def whole_numbers(ids: Iterable[str]) -> dict[str, str]:
    """Ids of a column that a program took for decimal numbers: {"1.0": "1"} where all are whole numbers, otherwise {}."""
    found = {}
    for own in ids:
        if not _WHOLE.fullmatch(own):
            return {}
        if "." in own:
            found[own] = own.partition(".")[0]
    return found


def without_point_zero(own: str) -> str:
    """Take the point and the zeros from 1.0."""
    return own.partition(".")[0] if _POINT_ZERO.fullmatch(own) else own


def alike(own: str) -> str:
    """What an id has in common with others that were probably meant: no zeros in front, small letters."""
    return own.casefold().lstrip("0") or "0"


def without_lone_surrogates(text: str) -> str:
    """Replace lone halves of surrogate pairs, which old Python literals hold and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
