"""The journal of a served catalogue: what is damaged is refused, what is whole is kept."""

import json
import logging
from pathlib import Path

import pytest

import setrec.serve.journal
from setrec.errors import DataError
from setrec.serve.journal import Journal

ITEMS = [{"id": f"N{i}", "title": f"wooden crane {i} é", "vector": [0.25, i / 3]} for i in range(3)]


def written(path: Path) -> bytes:
    """Three items added one by one, one removed."""
    journal = Journal(path)
    for item in ITEMS:
        journal.add([item])
    journal.remove(["N1", "A5"])
    journal.close()
    return path.read_bytes()


def content(path: Path) -> tuple[dict, set]:
    journal = Journal(path, writable=False)
    return journal.added, journal.removed


def test_every_bit_flip_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    whole = written(path)
    expected = content(path)
    refused = 0
    for place in range(len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                assert content(path) == expected, (place, bit)
            except DataError:
                refused += 1
    assert refused > 2.9 * len(whole)  # nearly every one


def test_a_whole_last_line_without_a_newline_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(written(path).rstrip(b"\n"))
    for _ in range(2):
        journal = Journal(path)
        assert list(journal.added) == ["N0", "N2"]
        assert journal.removed == {"A5"}
        journal.close()
    path.write_text('{"add": [{"id": "OLD", "title": "t"}]}')  # of an earlier version
    journal = Journal(path)
    journal.add([ITEMS[0]])
    journal.close()
    assert list(content(path)[0]) == ["OLD", "N0"]
    assert not caplog.records


def test_half_a_line_is_dropped_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "items.jsonl"
    whole = written(path)
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):  # the last line, cut at every place
        path.write_bytes(whole[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "uvicorn.error"):
            assert list(content(path)[0]) == ["N0", "N1", "N2"]
        assert "half a change" in caplog.text


@pytest.mark.parametrize(
    "line", ['{"ad": []}', '{"add": [], "remove": []}', '{"add": [], "sha256": "x"}', "[]", "null", "[" * 100_000]
)
def test_what_is_no_change_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"add": ITEMS}) + "\n" + line + "\n")  # a line that a person wrote has no hash
    with pytest.raises(DataError, match="line 2"):
        Journal(path)


def test_the_name_of_a_new_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(setrec.serve.journal, "sync_folder", synced.append)
    written(tmp_path / "items.jsonl")
    assert synced == [tmp_path]
