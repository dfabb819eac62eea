"""The journal of a served catalogue: what is damaged is refused, what is whole is kept."""

import errno
import json
import logging
from pathlib import Path
from typing import NoReturn

import pytest

import setrec.inference.journal
from setrec.errors import DataError
from setrec.inference.journal import Journal

ITEMS = [{"id": f"N{i}", "title": f"wooden crane {i} é", "vector": [0.25, i / 3]} for i in range(3)]


def written(path: Path) -> bytes:
    """Three items added one by one, one removed."""
    journal = Journal(path)
    for item in ITEMS:
        journal.add([item])
    journal.remove(["N1", "A5"])
    return path.read_bytes()


def content(path: Path) -> tuple[dict, set]:
    journal = Journal(path, writable=False)
    return journal.added, journal.removed


def test_every_bit_flip_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path, head = tmp_path / "items.jsonl", tmp_path / "items.jsonl.head"
    whole = written(path)
    expected = content(path)
    refused = 0
    for place in range(len(whole)):
        for bit in (0, 3, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            head.unlink(missing_ok=True)  # the hashes of the lines alone
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
        assert journal.removed == {"N1", "A5"}
    path.write_text('{"add": [{"id": "OLD", "title": "t"}]}')  # of an earlier version
    (tmp_path / "items.jsonl.head").unlink()
    journal = Journal(path)
    journal.add([ITEMS[0]])
    assert list(content(path)[0]) == ["OLD", "N0"]
    assert not caplog.records


def test_half_a_line_is_dropped_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "items.jsonl"
    whole = written(path)
    (tmp_path / "items.jsonl.head").unlink()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start + 1, len(whole) - 1):  # the last line, cut at every place
        path.write_bytes(whole[:end])
        caplog.clear()
        with caplog.at_level(logging.WARNING, "uvicorn.error"):
            assert list(content(path)[0]) == ["N0", "N1", "N2"]
        assert "half a change" in caplog.text


def test_lost_and_exchanged_lines_are_seen(tmp_path: Path) -> None:
    path, head = tmp_path / "items.jsonl", tmp_path / "items.jsonl.head"
    lines = written(path).splitlines(keepends=True)
    for kept in range(len(lines)):  # cut exactly between two lines, or within a confirmed one
        for whole in (b"".join(lines[:kept]), b"".join(lines[:kept]) + lines[kept][:30]):
            path.write_bytes(whole)
            with pytest.raises(DataError, match=rf"has {kept} of the 4 lines .* delete items.jsonl.head to accept"):
                Journal(path)
    path.unlink()
    with pytest.raises(DataError, match="has 0 of the 4 lines"):
        Journal(path)
    for other in (lines[:1] + lines[2:] + lines[1:2], lines[1:2] + lines[:1] + lines[2:], lines[1:] + lines[-1:]):
        path.write_bytes(b"".join(other))
        with pytest.raises(DataError, match="its first 4 lines are not those that were confirmed"):
            Journal(path)
    head.unlink()  # as the sentence says
    path.write_bytes(b"".join(lines[:2]))
    Journal(path)
    assert json.loads(head.read_text())["lines"] == 2


def test_a_crash_at_any_moment_loses_and_refuses_nothing(tmp_path: Path) -> None:
    """Whatever line the head was last written at, and with half a line at the end, the journal is read whole."""
    path, head = tmp_path / "items.jsonl", tmp_path / "items.jsonl.head"
    heads, journal = [b""], Journal(path)
    for item in ITEMS:
        journal.add([item])
        heads.append(head.read_bytes())
    whole = path.read_bytes()
    for old in heads:
        for torn in (b"", b'{"add": [{"id"'):
            path.write_bytes(whole + torn)
            head.write_bytes(old) if old else head.unlink()
            journal = Journal(path)
            assert list(journal.added) == ["N0", "N1", "N2"]
            journal.add([ITEMS[0] | {"id": "N9"}])  # goes on from there
            assert list(content(path)[0]) == ["N0", "N1", "N2", "N9"]
            assert json.loads(head.read_text())["lines"] == 4


def test_a_head_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, write = tmp_path / "items.jsonl", setrec.inference.journal.whole_file
    written(path)

    def full(path: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    journal = Journal(path)
    monkeypatch.setattr(setrec.inference.journal, "whole_file", full)
    with caplog.at_level(logging.WARNING, "uvicorn.error"):
        journal.add([ITEMS[1]])  # it is on the disk, so it is confirmed
    assert "counts fewer lines than there are" in caplog.text
    monkeypatch.setattr(setrec.inference.journal, "whole_file", write)
    assert list(content(path)[0]) == ["N0", "N2", "N1"]


@pytest.mark.parametrize(
    "damaged", ["", "{}", "[]", '{"lines": "4", "sha256": ""}', '{"lines": 0, "sha256": ""}', "[" * 100_000]
)
def test_a_damaged_head_is_named(tmp_path: Path, damaged: str) -> None:
    path, head = tmp_path / "items.jsonl", tmp_path / "items.jsonl.head"
    written(path)
    head.write_text(damaged)
    with pytest.raises(DataError, match="items.jsonl.head is damaged.* delete items.jsonl.head"):
        Journal(path)


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
    monkeypatch.setattr(setrec.inference.journal, "sync_folder", synced.append)
    written(tmp_path / "items.jsonl")
    assert synced == [tmp_path]  # the head's own is synced by whole_file
