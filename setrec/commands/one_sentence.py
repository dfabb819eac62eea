"""Errors of the parser and of Lightning in one sentence, without a traceback."""

import difflib
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from setrec.class_names import CLASSES
from setrec.errors import ConfigError, SETRecError

_NOISE = (
    "Parser key",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Does not validate",
    "Expected a path but",
    "Problem with given",
)
_OWN, _LIGHTNING = Path(__file__).parents[1], Path(lightning.__file__).parent


def of_parser(message: str) -> str:
    """What the parser says over many lines: the option, what it expects, and what it was given."""
    option = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    reasons = [re.sub(r"<class '([^']+)'>|typing\.Literal\[(.+?)\]", r"\1\2", line) for line in lines if line]
    reasons = [line for line in dict.fromkeys(reasons) if not line.startswith(_NOISE)]
    given = re.findall(r"Given value: (.+)", message)
    # all else that is said of a class that there is not is noise
    for name in re.findall(r"Expected a dot import path string: (\S+)", message):
        reasons, given = [f"there is no class {name}; {_alike(name)}"], []
    said = "; ".join(reasons or lines[:1]) + (f"; given is {given[-1][:80]}" if given else "")
    return f"--{option}: {said}" if option else f"{said}; `setrec COMMAND --help` lists the options."


def _alike(name: str) -> str:
    """What a misspelt class may be."""
    known = {own.rpartition(".")[2].lower(): own.rpartition(".")[2] for own in CLASSES}
    found = [known[low] for low in known if len(name) > 2 and name.lower() in low]
    found = found or [known[low] for low in difflib.get_close_matches(name.lower(), known)]
    if found:
        return f"did you mean {' or '.join(found)}?"
    return "`setrec COMMAND --help` lists this project's; name one of your own with its module, as in my_module.MyClass"


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
