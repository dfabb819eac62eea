"""Reads a checkpoint of fit as weights and plain types."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from setrec.class_names import current_name, current_names
from setrec.errors import ConfigError

SETREC = "setrec.module.SETRecModule"  # the model_class of checkpoints that can recommend


class Checkpoint(NamedTuple):
    """The content of a checkpoint. Classes are public names. Nothing was imported to read it."""

    model_class: str
    model: dict[str, Any]  # the model's arguments
    data: dict[str, Any]  # the data module's arguments
    weights: dict[str, Tensor]  # the state_dict
    catalogue: dict[str, Any]  # name, fingerprint and so on of what it was trained on
    origin: dict[str, Any]  # of a frozen base whose weights are not in the checkpoint; {}: there is none


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Of a sharded one, which is a folder, read all except the weights.

    Raises:
        ConfigError: the file isn't a checkpoint of this project, or holds more than weights and plain types.
    """
    try:
        file = path / "meta.pt" if path.is_dir() else path
        content = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        return Checkpoint(
            model_class=current_name(content.get("model_class", SETREC)),
            model=_arguments(content["hyper_parameters"]),
            data=_arguments(content["datamodule_hyper_parameters"]),
            weights=content.get("state_dict", {}),
            catalogue=content.get("catalogue", {}),
            origin=content.get("backbone", {}),
        )
    except Exception as error:  # a file can be wrong in many ways; one sentence names it
        raise ConfigError(
            f"--ckpt_path {path} is not a checkpoint of this project ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give the path that fit printed at its end."
        ) from error


def _arguments(stored: dict[str, Any]) -> dict[str, Any]:
    """The hyper-parameters with current class names, without Lightning's own entries."""
    own = {key: value for key, value in stored.items() if key not in ("_class_path", "_instantiator")}
    return dict(current_names(own))
