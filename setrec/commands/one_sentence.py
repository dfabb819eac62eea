"""Errors of Lightning, and of the classes that options name, in one sentence, without a traceback."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from setrec.errors import ConfigError, SETRecError

_OWN, _LIGHTNING = Path(__file__).parents[1], Path(lightning.__file__).parent


@contextmanager
def of_construction(what: str) -> Iterator[None]:
    """Errors of classes that options name, such as the Trainer, its loggers and callbacks, become one sentence.

    An error of this project's own code keeps its traceback.

    Raises:
        ConfigError: such an error; it begins with `what`.
    """
    try:
        yield
    except SETRecError:
        raise
    except Exception as error:
        first = _first(error)
        if isinstance(first, SETRecError):
            raise first from None
        if _place(first).is_relative_to(_OWN):
            raise
        raise ConfigError(f"{what}: {_short(first)}") from error


@contextmanager
def of_run() -> Iterator[None]:
    """What Lightning or a tracker refuses when a run begins becomes one sentence.

    Raises:
        ConfigError: Lightning refuses an option, or a tracker has no login.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, KeyError) as error:
        if isinstance(error, SETRecError) or not _place(error).is_relative_to(_LIGHTNING):
            raise
        raise ConfigError(_short(error)) from error
    except Exception as error:
        tracker = type(error).__module__.partition(".")[0]
        if tracker not in ("wandb", "mlflow"):
            raise
        raise ConfigError(f"--trainer.logger: {tracker} says: {_short(error)}") from error


def _first(error: BaseException) -> BaseException:
    """The error that began it."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _place(error: BaseException) -> Path:
    """The file that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return Path(frames[-1].filename) if frames else Path()


def _short(error: BaseException) -> str:
    said = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    said = re.sub(r"`?Trainer\(([\w.]+)=(.+?)\)`?", r"--trainer.\1 \2", said)
    return said or type(error).__name__
