"""The folder of a run: <root>/lightning_logs/version_N, of which every run has its own."""

import itertools
import os
from pathlib import Path
from types import MethodType
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from setrec.errors import ConfigError


class FolderOnly(CSVLogger):
    """Gives a run its folder and writes nothing: `--trainer.logger false`."""

    def log_metrics(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing."""

    def log_hyperparams(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def save(self) -> None:
        """Nothing."""


def claim_version(logger: Logger) -> None:
    """Let a logger make the folder of its next version when it takes the number.

    Lightning looks for the highest number and makes the folder later, so that two runs started together would share one.
    """
    if isinstance(logger, CSVLogger | TensorBoardLogger):
        setattr(logger, "_get_next_version", MethodType(_make_next_version, logger))  # noqa: B010  (mypy)


def _make_next_version(logger: CSVLogger | TensorBoardLogger) -> int:
    first = type(logger)._get_next_version(logger)  # type: ignore[arg-type]
    root = os.path.expandvars(os.path.expanduser(logger.root_dir))
    if (
        getattr(rank_zero_only, "rank", 0) != 0 or "://" in root
    ):  # the first process tells the others its folder; no disk
        return first
    for number in itertools.count(first):
        try:
            Path(root, f"version_{number}").mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"{root} cannot be written to ({error.strerror}): give another folder.") from None
        break
    return number


def folder_of(trainer: Trainer) -> Path | None:
    """The folder of a run; None for a trial (fast_dev_run), which leaves nothing. Call it on every process.

    It is the folder in which Lightning makes `checkpoints`: loggers without folders of their own, such as MLflow's and W&B's, have
    one for every run there.
    """
    folder = trainer.log_dir  # broadcast
    logger = trainer.logger
    if logger is not None and not isinstance(logger, CSVLogger | TensorBoardLogger):
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        root = logger.save_dir or trainer.default_root_dir
        folder = trainer.strategy.broadcast(str(Path(root, str(logger.name), version)))
    return None if trainer.fast_dev_run else Path(folder or ".")  # type: ignore[attr-defined]
