"""A checkpoint is whole or not there."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from setrec.errors import ConfigError, SETRecError
from setrec.files.checkpoint import read_checkpoint, seal_folder
from setrec.trainer.checkpoints import WholeCheckpointIO


def test_failed_write_leaves_the_old_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"epoch": 1}, path)

    def half(content: object, file: object) -> None:
        file.write(b"half a checkpoint")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(SETRecError, match="last.ckpt can't be written .*No space left"):
        WholeCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(path, weights_only=True) == {"epoch": 1}


def content() -> dict[str, Any]:
    return {
        "hyper_parameters": {"n_sem": 2}, "datamodule_hyper_parameters": {"name": "x"}, "state_dict": {"w": torch.arange(2000.0)},
    }  # fmt: skip


def test_a_checkpoint_carries_its_hash_and_every_flip_is_refused(tmp_path: Path) -> None:
    """Of the new form and of the form of earlier versions, which have only the checksums of the zip archive."""
    new, old = tmp_path / "new.ckpt", tmp_path / "old.ckpt"
    WholeCheckpointIO().save_checkpoint(content(), new)
    torch.save(content(), old)
    assert b"setrec sha256:" in new.read_bytes()[-100:]
    for path in (new, old):
        whole, refused = path.read_bytes(), 0
        assert torch.equal(read_checkpoint(path).weights["w"], torch.arange(2000.0))
        places = range(3, len(whole), 41)
        for number, place in enumerate(places):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << number % 8
            path.write_bytes(damaged)
            try:
                read = read_checkpoint(path)
                assert torch.equal(read.weights["w"], torch.arange(2000.0))  # it was between the parts of the archive
                assert (read.model, read.data) == ({"n_sem": 2}, {"name": "x"})
            except ConfigError:
                refused += 1
        assert refused > (0.98 if path == new else 0.6) * len(places)


def test_a_changed_checkpoint_is_told_in_one_sentence_and_a_saved_one_is_new(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    WholeCheckpointIO().save_checkpoint(content(), path)
    whole = path.read_bytes()
    place = whole.index(torch.arange(1990.0, 1993.0).numpy().tobytes())
    path.write_bytes(whole[:place] + b"\x01" + whole[place + 1 :])
    for read in (read_checkpoint, WholeCheckpointIO().load_checkpoint):
        with pytest.raises(ConfigError, match=r"x.ckpt was changed or damaged after it was written; take another copy"):
            read(path)
    path.write_bytes(whole)
    kept = torch.load(path, weights_only=True)
    torch.save(kept, path)  # somebody who knows what he does: a checkpoint without a hash
    assert read_checkpoint(path).data == {"name": "x"}


def test_a_packed_checkpoint_is_refused(tmp_path: Path) -> None:
    """torch never packs, so a packed one may unpack to anything."""
    path = tmp_path / "x.ckpt"
    torch.save(content(), path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, old.read(part))
    with pytest.raises(ConfigError, match="changed or damaged"):
        read_checkpoint(tmp_path / "y.ckpt")


def test_all_parts_of_a_sharded_checkpoint_are_checked(tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    torch.save(content(), folder / "meta.pt")
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        (folder / name).write_bytes(name.encode() * 9)
    assert read_checkpoint(folder).data == {"name": "x"}  # of an earlier version: no hashes
    seal_folder(folder)
    assert read_checkpoint(folder).data == {"name": "x"}
    for part in sorted(folder.iterdir()):
        whole = part.read_bytes()
        for damaged in (whole[:-5], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], None):
            part.unlink() if damaged is None else part.write_bytes(damaged)
            if damaged is None and part.name == "files.json":
                continue
            with pytest.raises(ConfigError, match=f"{part.name} is missing, or was changed or damaged"):
                read_checkpoint(folder)
        part.write_bytes(whole)
