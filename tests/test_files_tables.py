"""A person's table: the forms of the file, ids and times."""

from pathlib import Path

import polars as pl
import pytest

from setrec.errors import DataError
from setrec.files.ids import as_ids, as_text
from setrec.files.tables import read_table
from setrec.files.times import times


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


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"{broken\n", "a.parquet is not a table that can be read"),
        (
            "a.jsonl",
            b'{"id": 1}\n{broken\n',
            r"a.jsonl has 1 malformed line: line 2 \(neither JSON nor a Python dict\)",
        ),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"id,title\n1,x\n2,y,z\n", r"a.csv has 1 malformed line: line 3 \(3 fields, not 2\)"),
        ("a.csv", b"id,id\n1,2\n", "a.csv has two columns called 'id'"),
    ],
)
def test_what_is_no_table_is_one_sentence(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        read_table(tmp_path / name)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_table(tmp_path / name)


def test_json_lines_may_mix_numbers_and_texts(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 1, "price": 2}\n{"id": "B7"}\n{"id": 3.0, "price": 1.5}\n')
    assert read_table(tmp_path / "a.jsonl")["id"].to_list() == ["1", "B7", "3"]


def test_ids_become_text() -> None:
    assert as_text(pl.Series("id", [7, None])).to_list() == ["7", None]
    assert as_text(pl.Series("id", [7.0, 7.5, float("nan")])).to_list() == ["7", "7.5", None]
    assert as_text(pl.Series("id", ["007", "", " ", " 7\t"])).to_list() == ["007", None, None, "7"]
    assert as_text(pl.Series("id", ["nan", "x"]), ["nan"]).to_list() == [None, "x"]
    assert as_ids(pl.Series("id", ["7.0", " 8", None])).to_list() == ["7", "8", None]
    assert as_ids(pl.Series("id", ["7.0", "1.5"])).to_list() == ["7.0", "1.5"]  # versions, not whole numbers


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
