"""Writes checkpoints so that there is never half a file."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from setrec.errors import SETRecError


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file in the same folder, then renames it.

    Lightning's own class moves it from the system's temporary folder. If that is on another disk, the move is a copy, and a full
    disk leaves half a checkpoint with the right name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """See `CheckpointIO.save_checkpoint`.

        Raises:
            SETRecError: it can't be written; an older checkpoint with that name is kept.
        """
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except (OSError, RuntimeError) as error:  # torch's archive writer turns a full disk into a RuntimeError
            beside.unlink(missing_ok=True)
            raise SETRecError(
                f"The checkpoint {path} can't be written ({str(error).splitlines()[0]}): free some space, then resume "
                "from the newest checkpoint beside it."
            ) from error
