"""The command line: `setrec NAME ...`, `python -m setrec NAME ...` or `python main.py NAME ...`.

One sentence and exit code 2 where the input is at fault. What the commands are stands in setrec/commands.
"""

import errno
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from setrec.commands import COMMANDS
from setrec.errors import ConfigError, SETRecError

if TYPE_CHECKING:
    from setrec.commands.fit import SETRecCLI

LIGHTNING = ("fit", "validate", "test")  # commands that LightningCLI parses, name included


def overview() -> str:
    """What `setrec --help` prints."""
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
    """Run a command.

    Args:
        args: its words; None: those that the program was started with.
    """
    words = list(sys.argv[1:] if args is None else args)
    try:
        dispatch(words)
    except SETRecError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: the disk is full ({error}); free some space and start again.", file=sys.stderr)
        sys.exit(2)


def dispatch(words: Sequence[str]) -> None:
    """Run a command; errors come as exceptions.

    Raises:
        ConfigError: no command has this name.
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
    module = importlib.import_module(COMMANDS[name].module)
    module.from_words(words if name in LIGHTNING else words[1:])


def run(args: Sequence[str]) -> "SETRecCLI":
    """Run `fit`, `validate`, `test` or `predict` and return its LightningCLI; errors come as exceptions."""
    from setrec.commands.fit import run as run_lightning  # here: Lightning takes seconds to import

    return run_lightning(args)
