"""A checkpoint of fit on the disk, as weights and plain types."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from setrec.class_names import current_name, current_names
from setrec.errors import ConfigError


class Checkpoint(NamedTuple):
    """What a checkpoint knows. Every class is a public name, and nothing was imported for it."""

    model_class: str
    model: dict[str, Any]  # the model's arguments
    data: dict[str, Any]  # the data module's arguments
    weights: dict[str, Tensor]  # the state_dict
    catalogue: dict[str, str]  # name and fingerprint of what it was trained on
    origin: dict[str, Any]  # of the frozen base that the weights leave out; {} without one


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; of a sharded one, a folder, the part that holds no weights.

    Raises:
        ConfigError: the file isn't a checkpoint of this project, or needs more than weights and plain types.
    """
    try:
        file = path / "meta.pt" if path.is_dir() else path
        content = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        return Checkpoint(
            model_class=current_name(content.get("model_class", "setrec.module.SETRecModule")),
            model=_arguments(content["hyper_parameters"]),
            data=_arguments(content["datamodule_hyper_parameters"]),
            weights=content.get("state_dict", {}),
            catalogue=content.get("catalogue", {}),
            origin=content.get("backbone", {}),
        )
    except Exception as error:  # whatever is wrong with the file, one sentence says so and names it
        raise ConfigError(
            f"--ckpt_path {path} is not a checkpoint of this project ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give the path that fit printed at its end."
        ) from error


def _arguments(stored: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters without what Lightning keeps there for itself, under current names."""
    own = {key: value for key, value in stored.items() if key not in ("_class_path", "_instantiator")}
    return dict(current_names(own))
