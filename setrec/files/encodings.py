"""The encoding of a text file: told, or seen from its first bytes. What is read comes out as UTF-8."""

import codecs
import re
from collections.abc import Iterator
from itertools import chain
from typing import IO

from setrec.errors import ConfigError, DataError

_BLOCK = 16 << 20  # bytes that are read at a time
_LONGEST = 64 << 20  # bytes that a line may have
_MARKS = {  # byte order marks; that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip
# letters and signs of western texts beyond ASCII. ÿ (0xff) is left out: it is mostly a broken byte
_WESTERN = frozenset(
    "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþŒœŠšŽžŸ‘’“”–—…•·´™©®°€£¥§«»¡¿²³½¼¾ªº×\xa0"
)


def check_encoding(option: str, encoding: str | None) -> None:
    """Check that an encoding is one of Python's.

    Args:
        option: its name on the command line.
        encoding: its value; None: it is seen from the file.

    Raises:
        ConfigError: Python does not know it.
    """
    try:
        known = encoding is None or codecs.lookup(encoding)._is_text_encoding
    except LookupError:
        known = False
    if not known:
        raise ConfigError(f"{option} {encoding!r} is no encoding; give one such as utf-8, utf-16, cp1252 or gb18030.")


def guess_encoding(start: bytes) -> str:
    """Guess an encoding from the start of a file: by its mark, by its zeros (UTF-16), or cp1252 where it is western text.

    Anything else is UTF-8, and rows that are not UTF-8 are malformed.
    """
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    zeros = [start[place : 1 << 12 : 2].count(0) for place in (0, 1)]
    if max(zeros) > len(start[: 1 << 12]) // 5 and min(zeros) == 0:
        return "utf-16-be" if zeros[0] else "utf-16-le"
    return "cp1252" if not start.isascii() and _is_western(start) else "utf-8"


def _is_western(start: bytes) -> bool:
    """Whether the lines beyond ASCII are not UTF-8 but make sense as cp1252: known letters, few of them side by side."""
    lines = [line for line in start.split(b"\n") if not line.isascii()]
    other = [line for line in lines if not _is_utf8(line)]
    if len(other) <= len(lines) // 2:
        return False
    try:
        text = b"\n".join(other).decode("cp1252")
    except UnicodeDecodeError:
        return False
    beyond = re.findall(r"[^\x00-\x7f]+", text)
    usual = sum(letter in _WESTERN for run in beyond for letter in run)
    short = sum(len(run) for run in beyond if len(run) < 3)
    return usual >= 0.98 * sum(map(len, beyond)) <= short / 0.9


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _mark_bad(error: UnicodeError) -> tuple[str, int]:
    """Put a byte that is no UTF-8 in place of what cannot be decoded, so that the row counts as malformed."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error("setrec_bad", _mark_bad)


def as_utf8(
    stream: IO[bytes], encoding: str | None = None, size: int | None = None
) -> tuple[str, Iterator[bytes], str]:
    r"""Return the encoding of a stream, its content in blocks of UTF-8 without a byte order mark, and a word if that is odd.

    A line ends with \n. \r\n becomes \n, and so does \r in a file without any \n; another \r becomes a blank. A byte that
    cannot be decoded becomes 0xff, which is no UTF-8.

    Args:
        stream: the bytes.
        encoding: None: see `guess_encoding`.
        size: bytes that are read at a time; None: 16 MiB.
    """
    size = size or _BLOCK
    first = stream.read(size)
    name = codecs.lookup(encoding or guess_encoding(first)).name
    told_wrong = (
        encoding is not None and name != "utf-8" and not first.isascii() and _is_utf8(first[: first.rfind(b"\n") + 1])
    )
    odd = f"told to be {name}, but it makes sense as UTF-8" if told_wrong else ""
    return name, _blocks(first, stream, name, size), odd


def _blocks(first: bytes, stream: IO[bytes], encoding: str, size: int) -> Iterator[bytes]:
    for mark, of in _MARKS.items():
        if first.startswith(mark) and encoding in (of, of.rpartition("-")[0]):  # "utf-16" takes either order
            first, encoding = first[len(mark) :], of
            break
    decoder = codecs.getincrementaldecoder(encoding)("setrec_bad") if encoding != "utf-8" else None
    held, line_end = b"", b""
    for data in chain([first], iter(lambda: stream.read(size), b""), [None]):
        block = data or b""
        if decoder is not None:
            block = decoder.decode(block, final=data is None).encode("utf-8", "surrogateescape")
        block, held = held + block, b""
        if b"\r" in block:
            if block.endswith(b"\r") and data is not None:
                block, held = block[:-1], b"\r"
            block = block.replace(b"\r\n", b"\n")
            line_end = line_end or (b" " if b"\n" in block else b"\n")
            block = block.replace(b"\r", line_end)
        if block:
            yield block


def whole_lines(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """Cut blocks where lines end. The last line may have no line break.

    Raises:
        DataError: a line is longer than any table has.
    """
    rest = b""
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end]
            rest = b""
        rest += block[end:]
        if len(rest) > _LONGEST:
            raise DataError(
                f"{name} has a line of more than {_LONGEST >> 20} MiB; it is no table, or its lines are lost."
            )
    if rest:
        yield rest
