"""Writes checkpoints so that there is never half a file."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from setrec.errors import ConfigError, SETRecError
from setrec.files.checkpoint import check_unchanged, seal
from setrec.files.whole import whole_file


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all.

    Lightning's own class moves it from the system's temporary folder. If that is on another disk, the move is a copy, and a full
    disk leaves half a checkpoint with the right name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """See `CheckpointIO.save_checkpoint`.

        Raises:
            SETRecError: it can't be written; an older checkpoint with that name is kept.
        """
        path = Path(path)
        try:
            with whole_file(path) as hidden:
                with hidden.open("wb") as file:  # a path would put its name into the checkpoint
                    torch.save(checkpoint, file)
                seal(hidden)
        except (OSError, RuntimeError) as error:  # torch's archive writer turns a full disk into a RuntimeError
            raise SETRecError(
                f"The checkpoint {path} can't be written ({str(error).splitlines()[0]}): free some space, then resume "
                "from the newest checkpoint beside it."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> Any:
        """See `CheckpointIO.load_checkpoint`.

        Raises:
            ConfigError: the checkpoint cannot be read, or was changed after it was written.
        """
        check_unchanged(Path(path))
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except Exception as error:  # torch has a type of its own for every damage
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"{path} cannot be read as a checkpoint ({type(error).__name__}: {reason}).") from error
