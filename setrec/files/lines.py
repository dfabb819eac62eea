"""The count of a file's rows: which are malformed and skipped, and what was odd but kept. Records of JSON lines."""

import ast
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from setrec.errors import ConfigError, DataError
from setrec.files.encodings import as_utf8, whole_lines
from setrec.files.packed import RawFile, opened

_SHOWN = 3  # malformed lines that a message quotes
_RECORDS = 1 << 20  # bytes of JSON lines that are held at a time
_LONGEST_ARRAY = 1 << 30  # bytes of a JSON array, which is held as a whole
_ADVICE = "correct the file, the reader's options, or allow more with --data.reader.max_bad_lines"


@dataclass
class Count:
    """How often something was met, and the first time."""

    rows: int = 0
    example: str = ""

    def add(self, example: str, rows: int = 1) -> None:
        """Count it once more."""
        self.example = self.example or example
        self.rows += rows


class LineCounter:
    """Counts the rows of a file, and the malformed ones, which are skipped.

    Args:
        file: what the messages call the file.
        limit: how many rows may be malformed: a whole number, or a float for a share of the rows (0.01: 1%).
        advice: what to do if there are more; None: what readers of data say.
        encoding_option: the option that tells the encoding of the file.

    Raises:
        ConfigError: the limit is neither.
    """

    def __init__(
        self, file: str, limit: int | float, advice: str | None = None, encoding_option: str = "--data.reader.encoding"
    ) -> None:
        if limit < 0 or (isinstance(limit, float) and limit > 1):
            raise ConfigError(f"max_bad_lines {limit} must be a whole number from 0, or a share between 0.0 and 1.0.")
        self.file, self.limit, self._advice, self._option = file, limit, advice, encoding_option
        self.encoding, self.separator = "", ""  # as they were read
        self.lines = self.skipped = 0
        self.reasons: dict[str, Count] = {}  # why rows were skipped
        self.notes: dict[str, Count] = {}  # what was odd in rows that were kept
        self._first: list[str] = []
        self._undecoded = False

    def skip(self, line: int, why: str, count: int = 1, shown: object = None) -> None:
        """Count a malformed line, or `count` of them from this one on.

        Args:
            line: its number, from 1.
            why: what is wrong with it, in the same words for all lines of the kind.
            count: how many lines are lost.
            shown: what stands there instead.

        Raises:
            DataError: the limit is a number of lines, and this is more.
        """
        self.skipped += count
        reason = why if shown is None else f"{why}: {str(shown)[:40]!r}"
        self.reasons.setdefault(why, Count()).add(
            f"line {line}" + ("" if shown is None else f": {str(shown)[:40]!r}"), count
        )
        if len(self._first) < _SHOWN:
            self._first.append(f"line {line} ({reason})")
        if isinstance(self.limit, int) and self.skipped > self.limit:
            raise DataError(self._error(f", more than max_bad_lines ({self.limit})"))

    def skip_some(self, why: str, count: int) -> None:
        """Count malformed lines of which nobody knows the numbers. why, raises: see `skip`."""
        self.skipped += count
        self.reasons.setdefault(why, Count()).add("an engine knows no lines", count)
        self._first.append(why)
        if isinstance(self.limit, int) and self.skipped > self.limit:
            raise DataError(self._error(f", more than max_bad_lines ({self.limit})"))

    def skip_undecoded(self, line: int, where: str = "") -> None:
        """Count a malformed line that is no text in the file's encoding. where: in which column."""
        self._undecoded = True
        self.skip(line, f"not {self.encoding.upper()}{where}")

    def note(self, line: int, what: str, shown: str) -> None:
        """Count a line that is odd but was read."""
        self.notes.setdefault(what, Count()).add(f"line {line}: {shown[:60]!r}")

    def close(self) -> None:
        """At the end of the file: check the share.

        Raises:
            DataError: the limit is a share, and this is more.
        """
        if isinstance(self.limit, float) and self.skipped > self.limit * self.lines:
            raise DataError(self._error(f", more than max_bad_lines ({self.limit:.2%} of {self.lines:,})"))

    def about(self) -> dict[str, Any]:
        """Return the counts in plain types, for the manifest."""
        about: dict[str, Any] = {"rows": self.lines, "skipped": self.skipped}
        about |= {name: value for name in ("encoding", "separator") if (value := getattr(self, name))}
        for name, counts in (("reasons", self.reasons), ("notes", self.notes)):
            if counts:
                about[name] = {what: {"rows": one.rows, "example": one.example} for what, one in counts.items()}
        return about

    def in_words(self) -> str:
        """How many lines were skipped and why; "" if none was."""
        if not self.skipped:
            return ""
        what = f"{self.skipped:,} malformed line" + "s" * (self.skipped > 1)
        return f" ({what}: {', '.join(self._first)}{', ...' * (self.skipped > len(self._first))})"

    def _error(self, more: str) -> str:
        advice = self._advice or _ADVICE
        more = "" if self._advice else more  # there is no such option
        if self._undecoded:
            advice = f"name its encoding with {self._option} (cp1252, gb18030, shift_jis, ...), {advice}"
        examples = ", ".join(self._first) + (", ..." if self.skipped > len(self._first) else "")
        what = f"{self.skipped:,} malformed line" + "s" * (self.skipped > 1)
        return f"{self.file} has {what}{more}: {examples}; {advice}."


def text_lines(
    file: RawFile, counter: LineCounter, encoding: str | None = None, size: int | None = None
) -> Iterator[bytes]:
    """Yield a text file in chunks of whole lines, in UTF-8, and tell the counter the encoding. encoding, size: see `as_utf8`.

    Raises:
        DataError: see `opened`; or a line has no end.
    """
    with opened(file) as stream:
        counter.encoding, blocks, odd = as_utf8(stream, encoding, size)
        if odd:
            counter.notes[odd] = Count(1, "")
        yield from whole_lines(blocks, file.name)


def records(file: RawFile, counter: LineCounter, encoding: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the content of every line: JSON objects, or Python dict literals (Amazon 2014, Steam).

    A file that is one JSON array gives its elements. Empty lines are left out. Malformed ones are counted.

    Raises:
        DataError: see `text_lines` and `LineCounter`.
    """
    number = 0
    chunks = text_lines(file, counter, encoding, _RECORDS)
    for chunk in chunks:
        if number == 0 and chunk.lstrip().startswith(b"["):
            chunk = _whole(chunk, chunks, file)
            array = _array(chunk)
            if array is not None:
                for number, record in enumerate(array, 1):
                    counter.lines += 1
                    if isinstance(record, dict):
                        yield number, record
                    else:
                        counter.skip(number, "not a JSON object")
                return
        for line in chunk.removesuffix(b"\n").split(b"\n"):
            number += 1
            line = line.strip().removeprefix(b"\xef\xbb\xbf")  # where files were put together
            if not line:
                continue
            counter.lines += 1
            try:
                record = parse(line)
            except UnicodeDecodeError:
                counter.skip_undecoded(number)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                counter.skip(
                    number, "not a JSON object" if line.startswith(b'{"') else "neither JSON nor a Python dict"
                )
            else:
                yield number, record


def _whole(chunk: bytes, chunks: Iterator[bytes], file: RawFile) -> bytes:
    parts, size = [chunk], len(chunk)
    for part in chunks:
        parts.append(part)
        size += len(part)
        if size > _LONGEST_ARRAY:
            raise DataError(
                f"{file.name} is one JSON array of more than {_LONGEST_ARRAY >> 30} GiB; write one object a line."
            )
    return b"".join(parts)


def _array(text: bytes) -> list[Any] | None:
    """A file that is one JSON array; None: it is not."""
    try:
        array = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return array if isinstance(array, list) else None


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
