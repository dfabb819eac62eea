"""Text in CSV files that a spreadsheet program shows as text and never runs as a formula.

A cell that begins with = + - @ or a control character is a formula to such programs, and a title or an id may come from anyone. So
these cells get a ' in front, as people write text in a spreadsheet. Plain numbers stay as they are. A cell of this kind that begins
with ' already gets one more, so that nothing is lost: `unquoted` takes one away.
"""

import polars as pl

_FORMULA = r"[=+\-@\t\r\n＝＋－＠]"  # the last four: their wide forms, which some programs take for the same
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def quoted(column: str) -> pl.Expr:
    """A column of texts, with a ' before what would be a formula."""
    text = pl.col(column)
    formula = text.str.contains(f"^'*{_FORMULA}") & ~text.str.contains(_NUMBER)
    return pl.when(formula).then("'" + text).otherwise(text).alias(column)


def unquoted(table: pl.DataFrame) -> pl.DataFrame:
    """A table as it was before `quoted`."""
    text = pl.col(pl.String)
    return table.with_columns(
        pl.when(text.str.contains(f"^'+{_FORMULA}")).then(text.str.slice(1)).otherwise(text).name.keep()
    )
