"""Raw files as streams of bytes and of records, and the account of lines that make no sense."""

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
from typing import IO, NamedTuple, cast

import pyarrow as pa

from setrec.errors import ConfigError, DataError

_SHOWN = 3  # malformed lines that a message quotes


class RawFile(NamedTuple):
    """A file on the disk, or one inside a zip archive."""

    path: Path
    member: str = ""

    @property
    def name(self) -> str:
        return f"{self.path.name}/{self.member}" if self.member else self.path.name


class Tally:
    """Counts the lines of one file and those of them that are skipped because they are malformed.

    Args:
        file: what the messages call the file.
        limit: a whole number of malformed lines that is still put up with, or a share of the lines (0.01: 1%).

    Raises:
        ConfigError: the limit is neither.
    """

    def __init__(self, file: str, limit: int | float) -> None:
        if limit < 0 or (isinstance(limit, float) and limit > 1):
            raise ConfigError(f"max_bad_lines {limit} must be a whole number from 0, or a share between 0.0 and 1.0.")
        self.file, self.limit = file, limit
        self.lines = self.skipped = 0
        self._first: list[str] = []

    def bad(self, line: int, why: str, count: int = 1) -> None:
        """Count a malformed line, or `count` of them from this one on.

        Raises:
            DataError: the limit is a number of lines, and is passed.
        """
        self.skipped += count
        if len(self._first) < _SHOWN:
            self._first.append(f"line {line} ({why})")
        if isinstance(self.limit, int) and self.skipped > self.limit:
            raise DataError(self._sentence(f"more than max_bad_lines ({self.limit})"))

    def close(self) -> None:
        """Check the share at the end of the file, and tell of what was skipped.

        Raises:
            DataError: the limit is a share, and is passed.
        """
        if isinstance(self.limit, float) and self.skipped > self.limit * self.lines:
            raise DataError(self._sentence(f"more than max_bad_lines ({self.limit:.2%} of {self.lines:,})"))
        if self.skipped:
            print(f"{self.file}: skipped {self._what()} of {self.lines:,}: {self._examples()}", file=sys.stderr)

    def _what(self) -> str:
        return f"{self.skipped:,} malformed line" + "s" * (self.skipped > 1)

    def _examples(self) -> str:
        return ", ".join(self._first) + (", ..." if self.skipped > len(self._first) else "")

    def _sentence(self, more: str) -> str:
        return (
            f"{self.file} has {self._what()}, {more}: {self._examples()}; correct the file, the reader's options, or "
            "allow more with --data.reader.max_bad_lines."
        )


@contextmanager
def opened(file: RawFile) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked on the way where it is gzip (whatever its name) or inside a zip.

    Raises:
        DataError: not there, damaged, cut off, or locked with a password; also while the body reads on.
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


def records(file: RawFile, tally: Tally) -> Iterator[tuple[int, dict]]:
    """Line number and content of every line: JSON objects, or Python dicts as literals (Amazon 2014, Steam).

    Empty lines are passed over, malformed ones counted.

    Raises:
        DataError: see `opened` and `Tally`.
    """
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            line = line.strip().removeprefix(b"\xef\xbb\xbf")
            if not line:
                continue
            tally.lines += 1
            try:
                record = parse(line)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                tally.bad(number, "not a JSON object" if line.startswith(b'{"') else "neither JSON nor a Python dict")
                continue
            yield number, record


def parse(line: bytes) -> dict:
    """A JSON object or a Python dict literal; nothing is ever executed.

    Raises:
        ValueError: and SyntaxError, TypeError, MemoryError, RecursionError: it is neither.
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
