"""Raw files as streams of bytes or of records, and the count of malformed lines."""

import ast
import gzip
import json
import sys
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import pyarrow as pa

from setrec.errors import ConfigError, DataError

_SHOWN = 3  # malformed lines that a message quotes


class RawFile(NamedTuple):
    """A file on the disk, or one inside a zip archive."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        """What messages call the file: its name, behind that of its archive."""
        return f"{self.path.name}/{self.member}" if self.member else self.path.name


class LineCounter:
    """Counts the lines of a file, and the malformed ones, which are skipped.

    Args:
        file: what the messages call the file.
        limit: how many lines may be malformed: a whole number, or a float for a share of the lines (0.01: 1%).

    Raises:
        ConfigError: the limit is neither.
    """

    def __init__(self, file: str, limit: int | float) -> None:
        if limit < 0 or (isinstance(limit, float) and limit > 1):
            raise ConfigError(f"max_bad_lines {limit} must be a whole number from 0, or a share between 0.0 and 1.0.")
        self.file, self.limit = file, limit
        self.lines = self.skipped = 0
        self._first: list[str] = []

    def skip(self, line: int, why: str, count: int = 1) -> None:
        """Count a malformed line, or `count` of them from this one on.

        Args:
            line: its number, from 1.
            why: what is wrong with it.
            count: how many lines are lost.

        Raises:
            DataError: the limit is a number of lines, and this is more.
        """
        self.skipped += count
        if len(self._first) < _SHOWN:
            self._first.append(f"line {line} ({why})")
        if isinstance(self.limit, int) and self.skipped > self.limit:
            raise DataError(self._error(f"more than max_bad_lines ({self.limit})"))

    def close(self) -> None:
        """At the end of the file: check the share, and print what was skipped to stderr.

        Raises:
            DataError: the limit is a share, and this is more.
        """
        if isinstance(self.limit, float) and self.skipped > self.limit * self.lines:
            raise DataError(self._error(f"more than max_bad_lines ({self.limit:.2%} of {self.lines:,})"))
        if self.skipped:
            print(f"{self.file}: skipped {self._what()} of {self.lines:,}: {self._examples()}", file=sys.stderr)

    def _what(self) -> str:
        return f"{self.skipped:,} malformed line" + "s" * (self.skipped > 1)

    def _examples(self) -> str:
        return ", ".join(self._first) + (", ..." if self.skipped > len(self._first) else "")

    def _error(self, more: str) -> str:
        return (
            f"{self.file} has {self._what()}, {more}: {self._examples()}; correct the file, the reader's options, or "
            "allow more with --data.reader.max_bad_lines."
        )


@contextmanager
def opened(file: RawFile) -> Iterator[IO[bytes]]:
    """Open a file for its bytes. A gzip file (whatever its name) and a member of a zip archive are unpacked on the way.

    Raises:
        DataError: the file is missing, damaged, cut off, or locked with a password. Errors of reading inside the block turn
            into this one too.
    """
    try:
        with ExitStack() as stack:
            if file.member:
                archive = stack.enter_context(zipfile.ZipFile(file.path))
                stream: IO[bytes] = stack.enter_context(archive.open(file.member))
            else:
                stream = stack.enter_context(file.path.open("rb"))
                packed = stream.read(2) == b"\x1f\x8b"
                stream.seek(0)
                if packed:
                    stream = cast(IO[bytes], stack.enter_context(gzip.open(stream, "rb")))
            yield stream
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{file.name} cannot be read to its end ({error}); download or copy it again.") from None
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file.name} is not a table that can be read ({reason}); check the separator and the quotes."
        ) from None


def records(file: RawFile, counter: LineCounter) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of every line: JSON objects, or Python dict literals (Amazon 2014, Steam).

    Empty lines are left out. Malformed ones are counted.

    Raises:
        DataError: see `opened` and `LineCounter`.
    """
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            line = line.strip().removeprefix(b"\xef\xbb\xbf")
            if not line:
                continue
            counter.lines += 1
            try:
                record = parse(line)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                counter.skip(
                    number, "not a JSON object" if line.startswith(b'{"') else "neither JSON nor a Python dict"
                )
                continue
            yield number, record


def parse(line: bytes) -> dict[str, Any]:
    """Read a JSON object or a Python dict literal. Nothing in it is executed.

    Raises:
        ValueError: the line is neither. SyntaxError, TypeError, MemoryError or RecursionError say the same.
    """
    text = line.decode("utf8")
    try:
        record = json.loads(text)
    except ValueError:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old literals are full of \d and the like
            record = ast.literal_eval(text)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return record
