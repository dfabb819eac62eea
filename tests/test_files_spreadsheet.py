"""CSV cells that no spreadsheet program takes for formulas, and that come back as they were."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setrec.files.spreadsheet import quoted, unquoted
from setrec.files.tables import read_table

CELLS = {
    "=1+1": "'=1+1", "@SUM(A1)": "'@SUM(A1)", "+cmd|' /C calc'!A0": "'+cmd|' /C calc'!A0", "-2+3": "'-2+3",
    "\t=1": "'\t=1", "\r=1": "'\r=1", "\n=1": "'\n=1", "＝1+1": "'＝1+1", "'=1": "''=1", "''-x": "'''-x",
    "-": "'-", "-5": "-5", "+1.5e-3": "+1.5e-3", "-.5": "-.5", "-1-1": "'-1-1", "a=b": "a=b", "'tis": "'tis",
    "": "", "007": "007", " =1": " =1", "é": "é",
}  # fmt: skip


@pytest.mark.parametrize(("text", "cell"), CELLS.items())
def test_cells(text: str, cell: str) -> None:
    table = pl.DataFrame({"title": [text, None]})
    written = table.with_columns(quoted("title"))
    assert written["title"].to_list() == [cell, None]
    assert unquoted(written).equals(table)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="'=+-@\t\r\n＝－1.eé\" ,;", max_size=6) | st.text(), max_size=5))
def test_every_text_comes_back(texts: list[str]) -> None:
    texts = [text.encode("utf8", "replace").decode() for text in texts]  # no lone surrogates, which no file holds
    table = pl.DataFrame({"a": texts, "n": range(len(texts))}, schema={"a": pl.String, "n": pl.Int64})
    written = table.with_columns(quoted("a"))
    assert unquoted(written).equals(table)
    for cell in written["a"]:
        assert cell[:1] not in set("=+-@\t\r\n＝＋－＠") or float(cell) is not None  # a number


def test_our_own_commands_read_what_they_wrote(tmp_path: Path) -> None:
    table = pl.DataFrame({"id": list(CELLS), "score": [-1.5] * len(CELLS)}).filter(
        ~pl.col("id").str.contains("^$|\r")  # no id has a line break of its own
    )
    table.with_columns(quoted("id")).write_csv(tmp_path / "t.csv")
    found = read_table(tmp_path / "t.csv")
    assert found["id"].to_list() == table["id"].to_list()
    assert set(found["score"]) == {"-1.5"}
