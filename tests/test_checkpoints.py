"""A checkpoint is whole or not there."""

from pathlib import Path

import pytest
import torch

from setrec.errors import SETRecError
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
