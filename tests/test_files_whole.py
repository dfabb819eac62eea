"""Files and folders are written whole or not at all."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

import setrec.files.whole as files_whole
from setrec.errors import SETRecError
from setrec.evaluation.per_user import write_parts
from setrec.files.whole import clear_killed, clear_leftovers, move_into_place, whole_file, whole_folder
from setrec.trainer.checkpoints import WholeCheckpointIO


def full(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_a_file_and_its_folder_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with whole_file(path) as hidden:
        hidden.write_text("whole")
        assert hidden.parent == path.parent
        assert hidden.name.startswith(".")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert names(tmp_path) == ["file.txt", "new"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_in_the_middle_keeps_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half() -> None:
        with whole_file(path) as hidden:
            hidden.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_the_end_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"), whole_file(path) as hidden:
        hidden.write_text("new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_the_content_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        real = getattr(os, name)

        def call(*arguments: object) -> None:
            calls.append(name)
            real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name))
    with whole_file(tmp_path / "file.txt") as hidden:
        hidden.write_text("whole")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its new name, the folder
    calls.clear()
    part = tmp_path / "file.part"
    part.write_text("whole")
    move_into_place(part, tmp_path / "file.txt")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "above" / "folder"
    with whole_folder(path) as hidden:
        (hidden / "inside").mkdir()
        (hidden / "inside" / "file.txt").write_text("whole")
        assert not path.exists()
    assert names(tmp_path) == ["above", "file.txt", "folder", "inside"]


def test_a_folder_that_exists_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileExistsError, match="folder exists already"), whole_folder(tmp_path / "folder"):
        pass

    def write_too_late() -> None:
        with whole_folder(tmp_path / "other") as hidden:
            (hidden / "mine").touch()
            (tmp_path / "other").mkdir()  # by another process, meanwhile
            (tmp_path / "other" / "theirs").touch()

    with pytest.raises(OSError, match="other"):
        write_too_late()
    assert names(tmp_path) == ["folder", "other", "theirs"]


def test_leftovers_of_a_killed_process_are_in_nobodys_way(tmp_path: Path) -> None:
    left = tmp_path / f".folder.{os.getpid()}"
    left.mkdir()
    (left / "half").touch()
    with whole_folder(tmp_path / "folder") as hidden:
        (hidden / "whole").touch()
    assert names(tmp_path) == ["folder", "whole"]


@pytest.mark.parametrize("failing", [None, 0, 1, 2])
def test_a_folder_is_replaced_or_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int | None
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    real, calls = os.replace, 0

    def replace(*arguments: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            full()
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    try:
        with whole_folder(path, replace=True) as hidden:
            (hidden / "new").touch()
            if failing == 0:
                full()
    except OSError:
        assert failing is not None
    assert names(tmp_path) == ["folder", "new" if failing is None else "old"]


def test_a_process_killed_between_the_two_renames(tmp_path: Path) -> None:
    (tmp_path / ".folder.old").mkdir()
    (tmp_path / ".folder.old" / "old").touch()
    (tmp_path / ".folder.new").mkdir()
    clear_leftovers(tmp_path / "folder")
    assert names(tmp_path) == ["folder", "old"]


# ------------------------------------------------------------------------------- one sentence where it is written
def write_rows(path: Path, value: int) -> None:
    write_parts(path, iter([pl.DataFrame({"value": [value]})]))


def write_checkpoint(path: Path, value: int) -> None:
    WholeCheckpointIO().save_checkpoint({"value": torch.tensor(value)}, path)


@pytest.mark.parametrize("write", [write_rows, write_checkpoint])
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, int], None]
) -> None:
    path = tmp_path / "file"
    write(path, 1)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SETRecError, match=r"file can't be written \(.*No space left on device"):
            write(path, 2)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["file"]
    write(path, 2)
    assert path.read_bytes() != before


# ------------------------------------------------------------------------------------------ what killed processes left
def start_writer(path: Path, whole: str) -> subprocess.Popen[bytes]:
    """Another process that has begun to write `path` and waits."""
    code = (
        "import sys, time; from pathlib import Path; from setrec.files.whole import whole_file, whole_folder\n"
        f"with {whole}(Path(sys.argv[1])) as hidden:\n"
        "    file = hidden / 'half' if hidden.is_dir() else hidden\n"
        "    file.write_text('half'); print('begun', flush=True); sys.stdin.readline(); file.write_text('whole')\n"
    )
    words = [sys.executable, "-c", code, str(path)]
    writer = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"begun\n"
    return writer


@pytest.mark.process
@pytest.mark.parametrize("whole", ["whole_file", "whole_folder"])
def test_the_next_writer_clears_what_a_killed_one_left_and_no_more(tmp_path: Path, whole: str) -> None:
    path = tmp_path / "model.ckpt"
    killed, living, other = (start_writer(where, whole) for where in (path, path, tmp_path / "other"))
    for writer in (killed, other):
        writer.kill()
        writer.wait()
    (tmp_path / ".model.ckpt.new").touch()  # another kind of file
    with getattr(files_whole, whole)(path) as hidden:
        (hidden / "whole" if hidden.is_dir() else hidden).write_text("whole")
        assert names(tmp_path)[:3] == sorted(
            [f".model.ckpt.{living.pid}", f".model.ckpt.{os.getpid()}", ".model.ckpt.new"], key=str
        )
    assert f".other.{other.pid}" in names(tmp_path)
    if whole == "whole_file":
        assert living.communicate(b"\n", timeout=30) == (b"", None)
        assert path.read_text() == "whole"
        assert living.returncode == 0
    else:  # the folder is there by now: it is refused, and clears its own
        living.communicate(b"\n", timeout=30)
    clear_killed(tmp_path, "oth*")
    assert [name for name in names(tmp_path) if name.startswith(".")] == [".model.ckpt.new"]


def test_a_lock_protects_a_writer_whose_number_is_not_known_here(tmp_path: Path) -> None:
    """As of a process in another container."""
    left = tmp_path / ".file.99999999"
    left.write_text("being written")
    with left.open() as opened:
        fcntl.flock(opened.fileno(), fcntl.LOCK_EX)
        with whole_file(tmp_path / "file") as hidden:
            hidden.write_text("whole")
        assert names(tmp_path) == [".file.99999999", "file"]
    with whole_file(tmp_path / "file") as hidden:
        hidden.write_text("whole")
    assert names(tmp_path) == ["file"]


def test_two_threads_write_one_file(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as first, whole_file(tmp_path / "file") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"  # the last that ends
    assert names(tmp_path) == ["file"]
