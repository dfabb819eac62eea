"""What preparing says to the person who waits: on stderr, as it goes on."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from rich.console import Console


def say(*said: str) -> None:
    """Print lines as they are."""
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    for line in said:
        console.print(line, soft_wrap=True)


def warn(report: Mapping[str, Any]) -> None:
    """Print the warnings of a report, see `report.py`."""
    say(*(f"  WARNING: {sentence}" for sentence in report.get("warnings", [])))


@contextmanager
def progress(what: str, spinner: bool = True) -> Iterator[None]:
    """Show a spinner while the block runs, and print one line with the time if it took 2 seconds or more."""
    console, start = Console(stderr=True, highlight=False), time.monotonic()
    with console.status(what) if spinner else nullcontext():
        yield
    if time.monotonic() - start > 2:
        console.print(f"{what}: {time.monotonic() - start:.0f} s", soft_wrap=True)
