"""Lines of raw files: records, line numbers, and malformed lines."""

import json

import pytest

from setrec.data import TableFiles
from setrec.errors import ConfigError, DataError
from setrec.files import encodings, lines
from setrec.files.times import TICKS
from tests.raw_data import events_of, items_of, prepared, write


def test_parse_takes_objects_only():
    assert lines.parse(b'{"a": 1}') == lines.parse(b"{'a': 1}") == lines.parse(b"{u'a': 1}") == {"a": 1}
    for text in (b"[1]", b"1", b"{'a': f()}", b"", b"\xff"):
        with pytest.raises((ValueError, SyntaxError)):
            lines.parse(text)


def test_malformed_lines_are_counted_with_their_place(tmp_path):
    rows = ["user_id,item_id,timestamp,rating"] + [f"u{i},i{i},{i},5" for i in range(200)]
    rows[1] = "u"
    rows[100:100] = [""]  # an empty line is no fault
    rows[150] = ",i,1,5"
    rows[199] = "u,i,today,5"
    rows[201] = "u,i,1,many"
    path = write(tmp_path / "events.csv", "\n".join(rows) + "\n\n")
    log = TableFiles(rating="rating", max_bad_lines=0.1).read(tmp_path)
    about = log.files["events.csv"]
    assert (about["rows"], about["skipped"], len(log.events)) == (200, 4, 196)
    assert about["reasons"] == {
        "1 field, not 4": {"rows": 1, "example": "line 2"},
        "no user": {"rows": 1, "example": "line 151"},
        "no time": {"rows": 1, "example": "line 200: 'today'"},
        "the rating is no number": {"rows": 1, "example": "line 202: 'many'"},
    }
    for limit, passes in ((4, True), (3, False), (0.02, True), (0.01, False), (0, False)):
        if passes:
            TableFiles(rating="rating", max_bad_lines=limit).read(tmp_path)
        else:
            with pytest.raises(DataError, match=r"events.csv has \d malformed lines?, more than max_bad_lines"):
                TableFiles(rating="rating", max_bad_lines=limit).read(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"u5,", b"\xff,"))
    assert TableFiles(max_bad_lines=9).read(tmp_path).files["events.csv"]["skipped"] == 4  # the rating is not looked at
    with pytest.raises(ConfigError, match="max_bad_lines 1.5 must be"):
        TableFiles(max_bad_lines=1.5).read(tmp_path)


def test_lines_stay_right_over_blocks_and_quotes(tmp_path, monkeypatch):
    monkeypatch.setattr(encodings, "_BLOCK", 64)
    rows = ["user_id,item_id,timestamp"] + [f'"u{i}",i{i},{i}' for i in range(50)]
    rows[30] = "broken"
    write(tmp_path / "events.csv", "\n".join(rows))
    with pytest.raises(DataError, match=r"line 31 \(1 field, not 3\)"):
        TableFiles(max_bad_lines=0).read(tmp_path)
    items = "item_id,title\n" + "".join(f'i{i},"a ""title""\nof {i}, with a break"\n' for i in range(40))
    write(tmp_path / "items.csv", items)
    log = TableFiles(items="items.csv", max_bad_lines=1).read(tmp_path)
    assert items_of(log)["i7"]["title"] == 'a "title" of 7, with a break'
    assert len(log.items) == 39  # i29 stood in the broken line


def test_a_quote_left_open_is_not_one_line(tmp_path):
    rows = [f"u{i},i{i},{i}" for i in range(1000)]
    rows[3] = 'u,"i,3'
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "\n".join(rows))
    log = TableFiles(max_bad_lines=0).read(tmp_path)
    assert events_of(log)[2:5] == [("u2", "i2", 2 * TICKS), ("u", '"i', 3 * TICKS), ("u4", "i4", 4 * TICKS)]
    assert log.files["events.csv"]["notes"] == {
        "rows with odd quotes, taken as they stand": {"rows": 1, "example": "line 5: 'u,\"i,3'"}
    }
    rows[500] = 'u,i",3'  # closed far away: the lines between are rows, not a text of many lines
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "\n".join(rows))
    log = TableFiles(max_bad_lines=0).read(tmp_path)
    assert len(log.events) == 1000
    assert {event[1] for event in events_of(log) if event[0] == "u"} == {'"i', 'i"'}
    rows[7] = 'u,"i; 3'  # two fields
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"events.csv has 1 malformed line.*line 9 \(2 fields, not 3\)"):
        TableFiles(max_bad_lines=0).read(tmp_path)


@pytest.mark.parametrize("name", ["events.csv.gz", "events.jsonl.gz"])
def test_a_file_that_is_cut_off(tmp_path, name):
    line = '{"user_id": "u", "item_id": "i", "timestamp": 1}\n' if "json" in name else "u,i,1\n"
    whole = ("user_id,item_id,timestamp\n" if "csv" in name else "") + line * 50_000
    path = write(tmp_path / name, whole)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"{name} cannot be read to its end"):
        TableFiles(name).read(tmp_path)


def test_skipped_lines_are_in_the_manifest(tmp_path):
    write(tmp_path / "events.csv", "user_id,item_id,timestamp\n" + "".join(f"u,i{t},{t}\n" for t in range(10)) + "x\n")
    prepared(tmp_path, TableFiles(max_bad_lines=1))
    manifest = json.loads((tmp_path / "data" / "x" / "manifest.json").read_text())
    assert manifest["skipped_lines"] == {"events.csv": 1}


def test_byte_order_marks_inside_a_file(tmp_path, monkeypatch):
    """Files that were put together. pyarrow takes a mark away at the start of every block."""
    monkeypatch.setattr(encodings, "_BLOCK", 30)
    rows = [f"\ufeffu{i},i,{i}" if i % 3 else "broken" for i in range(20)]
    write(tmp_path / "events.csv", "\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    log = TableFiles(max_bad_lines=7).read(tmp_path)
    assert [event[0] for event in events_of(log)] == [f"\ufeffu{i}" for i in range(20) if i % 3]
    assert log.files["events.csv"]["reasons"] == {"1 field, not 3": {"rows": 7, "example": "line 2"}}
