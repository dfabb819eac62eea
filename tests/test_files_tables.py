"""A person's table: the forms of the file, ids and times."""

from pathlib import Path

import polars as pl
import pytest

from setrec.errors import DataError
from setrec.files.tables import as_text, read_table, times


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl", "ndjson", "json", "txt"])
def test_every_form_is_read(tmp_path: Path, kind: str) -> None:
    table, path = pl.DataFrame({"id": ["007", 'é, "q"'], "price": [1.5, None]}), tmp_path / f"items.{kind}"
    if kind == "parquet":
        table.write_parquet(path)
    elif "json" in kind:
        table.write_ndjson(path)
    else:
        table.write_csv(path)
    found = read_table(path)
    assert found["id"].to_list() == ["007", 'é, "q"']
    assert found["price"].cast(pl.Float64).to_list() == [1.5, None]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.csv"])
def test_what_is_no_table_is_one_sentence(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        read_table(tmp_path / name)
    (tmp_path / name).write_bytes(b"" if name == "a.csv" else b"{broken\n")
    with pytest.raises(DataError, match=rf"{name} cannot be read as a table \(.*\)\.$"):
        read_table(tmp_path / name)


def test_ids_become_text() -> None:
    assert as_text(pl.Series("id", [7, None])).to_list() == ["7", None]
    assert as_text(pl.Series("id", [7.0, 7.5, float("nan")])).to_list() == ["7", "7.5", None]
    assert as_text(pl.Series("id", ["007", "", " "])).to_list() == ["007", None, " "]


def test_times() -> None:
    texts = ["1400000000", "1400000000000", "1400000000000000", "1400000000000000000", "1400000000.25", "2014-05-13",
             "2014-05-13T16:53:20Z", "2014-05-13 18:53:20+02:00", "2014-05-13T16:53:20.000001", "-5", "", "soon", "nan",
             "1e400", " 7 ", "99999999999999999999999999"]  # fmt: skip
    day, moment = 1399939200_000000, 1400000000_000000
    expected = [moment, moment, moment, moment, moment + 250000, day, moment, moment, moment + 1, -5_000000, None, None,
                None, None, 7_000000, None]  # fmt: skip
    assert times(pl.Series("t", texts)).to_list() == expected
    assert times(pl.Series("t", [1, 10**11, None])).to_list() == [10**6, 10**14, None]
    assert times(pl.Series("t", [1.5, float("nan")])).to_list() == [1_500000, None]
    assert times(pl.Series("t", ["2014-05-13"]).str.to_date()).to_list() == [day]
    assert times(pl.Series("t", ["5"]), "ms").to_list() == [5000]
    assert times(pl.Series("t", ["5000"]), "ns").to_list() == [5]
    assert times(pl.Series("t", [10**18]), "s").to_list() == [None]  # beyond int64
