"""The command line: `setrec COMMAND ...`, `python -m setrec COMMAND ...` or `python main.py COMMAND ...`.

If the input is wrong, it prints one sentence and ends with exit code 2. setrec/commands holds the commands.
"""

import errno
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, NoReturn

from setrec.commands import COMMANDS
from setrec.errors import ConfigError, SETRecError

if TYPE_CHECKING:
    from setrec.commands.fit import SETRecCLI

STOPPED = "stopped by SIGTERM: run the same command again\n"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
LIGHTNING = ("fit", "validate", "test")  # LightningCLI parses these, and reads the name of the command itself


def overview() -> str:
    """The text of `setrec --help`."""
    width = max(map(len, COMMANDS)) + 2
    rows = [f"  {name:{width}}{command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: setrec COMMAND [options]",
            "",
            "SETRec: generative recommendation with order-agnostic sets of item tokens.",
            "",
            *rows,
            "",
            "`setrec COMMAND --help` explains a command. First steps: setrec fit --config quickstart",
        ]
    )


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; an error ends the program with one sentence.

    Args:
        args: the command line without the program's name; None: the one that the program was started with.
    """
    words = list(sys.argv[1:] if args is None else args)
    threading.excepthook = _of_thread
    try:
        with _ended_by_sigterm():
            dispatch(words)
    except _Terminated:
        sys.stderr.write(STOPPED)
        raise
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except SETRecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno in FULL:
            print(f"error: the disk is full ({error}); free some space and run the command again.", file=sys.stderr)
        elif error.errno in FORBIDDEN:
            print(
                f"error: {error.strerror}: {error.filename}; change its permissions or name another place.",
                file=sys.stderr,
            )
        else:
            raise
        sys.exit(2)


class _Terminated(SystemExit):
    """SIGTERM came, before a command that has its own way to end (a fit in training, a server) had begun with that."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block like an exception, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        while frame is not None:
            if (
                frame.f_code.co_filename == "<frozen importlib._bootstrap>"
            ):  # libraries catch what is raised in an import
                sys.stdout.flush()
                sys.stderr.write(STOPPED)
                sys.stderr.flush()
                os._exit(128 + number)
            frame = frame.f_back
        raise _Terminated(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _of_thread(args: threading.ExceptHookArgs) -> None:
    """A full disk in a thread, such as that of TensorBoard's writer, is one sentence too."""
    error = args.exc_value
    if isinstance(error, OSError) and error.errno in FULL:
        sys.stderr.write(f"the disk is full ({error}): figures of this run are lost.\n")  # whole: others write too
    else:
        threading.__excepthook__(args)


def dispatch(words: Sequence[str]) -> None:
    """Run a command; errors are raised.

    Raises:
        ConfigError: there is no command of this name, or a configuration is far too large.
    """
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    name = words[0]
    if name == "--version":
        print(version("setrec"))
        return
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r}; the commands are {', '.join(COMMANDS)}.")
    from setrec.commands.words import call, check_configurations, ckpt_path_of  # here: `setrec --help` needs no parser

    check_configurations(words)
    module = import_at_once(COMMANDS[name].module)
    function = COMMANDS[name].function
    if function is None:
        module.from_words(words if name in LIGHTNING else words[1:])
        return
    ckpt_path_of(words)
    call(getattr(module, function), name, words[1:])


def import_at_once(name: str) -> ModuleType:
    """Import a module without collecting garbage meanwhile: what is imported stays, and the search takes a fifth of the time."""
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.enable()


def run(args: Sequence[str]) -> "SETRecCLI":
    """Run `fit`, `validate`, `test` or `predict`, and return its LightningCLI; errors are raised."""
    from setrec.commands.fit import run as run_lightning  # here: Lightning takes seconds to import

    return run_lightning(args)
