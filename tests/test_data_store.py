"""Prepared data on the disk: whole or not at all, and for the right items."""

import multiprocessing
import os
import resource
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from setrec.cf import CooccurrenceSVD
from setrec.data import Catalogue, catalogue, current, prepare, store
from setrec.errors import DataError
from tests.raw_data import official


def test_another_folder_is_not_replaced(tiny_release, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(DataError, match="is not a prepared data set and would be replaced"):
        prepare.prepare("photos", folder, official(tiny_release), tiny_release)
    assert (folder / "cat.jpg").read_bytes() == b"cat"


def test_a_root_that_cannot_be_written(tiny_release, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write to .*file .*choose another place with --data.root DIR"):
        prepare.prepare("tiny", tmp_path / "file" / "tiny", official(tiny_release), tiny_release)


@pytest.mark.parametrize("at", ["save_file", "manifest", "rename"])
def test_a_failed_write_changes_nothing(tiny_release, tmp_path, monkeypatch, at):
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = official(tiny_release, cf=[CooccurrenceSVD(width=8)])

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if at == "save_file":
            patch.setattr(store, "save_file", full)
        elif at == "manifest":
            patch.setattr(Path, "write_text", full)
        else:  # the older version is away already when the new one should take its place
            real, calls = os.replace, []

            def second_fails(source, target):
                calls.append(target)
                return full() if len(calls) == 2 else real(source, target)

            patch.setattr(os, "replace", second_fails)
        with pytest.raises(DataError, match=r"failed \(.*No space left on device.*nothing was changed"):
            prepare.prepare("tiny", folder, changed, tiny_release)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "release", "tiny"]
    assert prepare.prepare("tiny", folder, changed, tiny_release)


def _prepare_with_little_space(raw: Path, folder: Path, queue) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))  # writing more fails as on a full disk
    try:
        prepare.prepare("tiny", folder, official(raw), raw)
        queue.put("done")
    except DataError as error:
        queue.put(str(error))


@pytest.mark.process
def test_a_really_full_disk(tiny_release, tmp_path):
    context = multiprocessing.get_context("forkserver")  # which imports once for both
    context.set_forkserver_preload([__name__])
    queue = context.Queue()
    process = context.Process(target=_prepare_with_little_space, args=(tiny_release, tmp_path / "tiny", queue))
    process.start()
    message = queue.get(timeout=60)
    process.join(timeout=60)
    assert "nothing was changed" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "release"]


def _prepare_and_count(raw: Path, folder: Path, gate, queue) -> None:
    gate.wait(60)
    queue.put(prepare.prepare("tiny", folder, official(raw), raw))


@pytest.mark.process
def test_two_processes_at_once(tiny_release, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    gate, queue = context.Barrier(2), context.Queue()
    arguments = (tiny_release, tmp_path / "tiny", gate, queue)
    processes = [context.Process(target=_prepare_and_count, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    did = [queue.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sorted(did) == [False, True]  # one works, the other finds it done
    assert Catalogue.load(tmp_path / "tiny").n_items == 40


def test_what_a_killed_process_left_is_cleared(tiny_release, tmp_path):
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    folder.rename(tmp_path / ".tiny.old")  # killed between the two renames
    (tmp_path / ".tiny.new").mkdir()
    assert not prepare.prepare("tiny", folder, official(tiny_release), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "release", "tiny"]


def test_a_matrix_made_for_other_items_is_refused(tiny_release, tmp_path):
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    for name in ("text.safetensors", "cf.safetensors"):
        tensors, good = load_file(folder / name), (folder / name).read_bytes()
        save_file(tensors, folder / name, {"ids_sha256": catalogue.ids_hash(["other", "items"])})
        with pytest.raises(DataError, match=f"{name} was made for other items"):
            Catalogue.load(folder)
        (folder / name).write_bytes(good)
    Catalogue.load(folder)


def test_a_read_only_place_is_good_enough_for_what_is_prepared(tiny_release, tmp_path, monkeypatch):
    """No lock, no file beside it, nothing written. (Modes of files mean nothing to root, so writing itself is refused here.)"""
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    (tmp_path / ".tiny.lock").unlink()
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*"))}

    def refused(*_args, **_options):
        raise OSError(30, "Read-only file system")

    for name in ("acquire", "_acquire"):
        monkeypatch.setattr(store.FileLock, name, refused)
    for name in ("mkdir", "write_text", "write_bytes", "touch"):
        monkeypatch.setattr(Path, name, refused)
    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr(current, "_BIG", 0)
    for path in tiny_release.iterdir():
        os.utime(path, (1, 1))  # copied: another time, the same content
    assert not prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    assert not prepare.prepare("tiny", folder, official(tiny_release), None)
    Catalogue.load(folder)
    there = [path for path in tmp_path.rglob("*") if tiny_release not in path.parents]
    assert {path: path.stat().st_mtime_ns for path in there} == {path: before[path] for path in there}
    with pytest.raises(DataError, match="cannot write to"):
        prepare.prepare("tiny", folder, official(tiny_release, cf=[CooccurrenceSVD(width=8)]), tiny_release)


@pytest.mark.parametrize("gone", ["folder", "one file", "all files"])
def test_raw_files_that_moved_away_are_not_needed(tiny_release, tmp_path, capsys, gone):
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    if gone == "folder":
        tiny_release.rename(tmp_path / "elsewhere")
    for path in [] if gone == "folder" else sorted(tiny_release.iterdir()):
        if gone == "all files" or path.name == "testing_dict.npy":
            path.unlink()
    assert not prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    said = capsys.readouterr().err
    assert f"cannot be found in {tiny_release}: the data is used as it was prepared in {folder}" in " ".join(
        said.split()
    )
    with pytest.raises(DataError, match=r"there is no folder|does not exist"):  # they are needed for other options
        prepare.prepare("tiny", folder, official(tiny_release, cf=[CooccurrenceSVD(width=8)]), tiny_release)
    if gone == "one file":  # another one is not what it was
        (tiny_release / "training_dict.npy").write_bytes(b"changed")
        with pytest.raises(DataError):
            prepare.prepare("tiny", folder, official(tiny_release), tiny_release)


def test_loading_what_is_not_prepared(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data"):
        Catalogue.load(tmp_path)


def test_ids_hash_tells_lists_apart():
    assert len({catalogue.ids_hash(ids) for ids in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [])}) == 5
