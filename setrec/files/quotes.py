r"""Rows of a CSV and the quotes in them. Quotes that enclose nothing are taken as they stand, and no row swallows others.

A field is enclosed if it begins with " and ends with a " that stands before a separator or the end of the line. Real files break
this: titles begin with " and never close it, or hold \" in place of "". So every line with a " is looked at. What is odd is
written anew in the form that every CSV parser understands, and is reported.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_LONGEST = 1 << 20  # bytes of a row that goes over several lines
_AHEAD = 500  # lines that such a row may have


class RowBlock(NamedTuple):
    """Whole rows."""

    data: bytes  # every " in it that begins a field encloses it
    line: int  # the number of the first line, from 1
    starts: np.ndarray | None  # (rows,) int64, the line of each row, from 0 at the first line; None: each line is a row
    lines: int  # how many lines it has
    odd: list[tuple[int, str]]  # the number and the text of lines whose quotes are taken as they stand


class RowReader:
    """Finds the rows.

    Args:
        separator: one byte.
        fields: how many fields a row has.
        blanks: blanks may stand around quotes, as in `u1, "a title"`.
        quotes: whether " encloses fields at all.
    """

    def __init__(self, separator: bytes, fields: int, blanks: bool = False, quotes: bool = True) -> None:
        s, blank = re.escape(separator), b" *" if blanks else b""
        plain = rb'(?!%s")[^%s\n]*+' % (blank, s)
        whole = rb'%s"(?:[^"]|"")*+"%s' % (blank, blank)
        escaped = rb'%s"(?:[^"\\]|\\.)*+"%s' % (blank, blank)
        self.separator, self.fields, self.blanks, self.quotes = separator, fields, blanks, quotes
        self._begins = re.compile(rb'(?:^|%s)%s"' % (s, blank))  # a field that begins with a quote
        self._proper = _row(whole, plain, s)
        self._escaped = _row(escaped, plain, s)
        self._open = re.compile(rb'(?:(?:%s|%s)%s)*+%s"(?:[^"]|"")*+' % (whole, plain, s, blank), re.DOTALL)
        self._field = re.compile(rb"(?:^|%s)(?:(%s)|(%s)|(%s))(?=%s|$)" % (s, whole, escaped, plain, s), re.DOTALL)

    def blocks(self, chunks: Iterator[bytes], line: int = 1) -> Iterator[RowBlock]:
        """Turn chunks of whole lines into blocks of whole rows.

        Args:
            chunks: bytes that end where a line ends.
            line: the number of the first line.
        """
        rest = b""
        for chunk in chunks:
            block, rest = self._block(rest + chunk, line, last=False)
            line += block.lines
            if block.lines:
                yield block._replace(data=self._tellable(block.data))
        if rest:
            block = self._block(rest, line, last=True)[0]
            yield block._replace(data=self._tellable(block.data))

    def _tellable(self, data: bytes) -> bytes:
        """Make text of lines with a wrong number of fields: pyarrow can only tell of malformed rows that are UTF-8."""
        try:
            data.decode()
        except UnicodeDecodeError:
            lines = data.split(b"\n")
            for place, line in enumerate(lines):
                if not line.isascii() and len(self._field.findall(line)) != self.fields:
                    lines[place] = line.decode(errors="replace").encode()
            data = b"\n".join(lines)
        return data

    def _block(self, chunk: bytes, line: int, last: bool) -> tuple[RowBlock, bytes]:
        """Look at the quotes of a chunk. Returns its whole rows, and the bytes of a row that goes on after it."""
        if not self.quotes or b'"' not in chunk:
            return RowBlock(chunk, line, None, chunk.count(b"\n") + (not chunk.endswith(b"\n")), []), b""
        lines = chunk.split(b"\n")
        end = lines.pop() if lines[-1] == b"" else None  # what split leaves after the last line break
        inside: list[int] = []  # lines that go on from the line before
        odd: list[tuple[int, str]] = []
        rest, place = b"", 0
        while place < len(lines):
            text = lines[place]
            if b'"' not in text or not self._begins.search(text):
                place += 1
                continue
            if self._proper.fullmatch(text):
                if self.blanks:
                    lines[place] = self._anew(text)
                place += 1
                continue
            more = self._more(lines, place)
            if more is None and not last and len(lines) - place < _AHEAD and sum(map(len, lines[place:])) < _LONGEST:
                rest = b"\n".join(lines[place:]) + (b"\n" if end is not None else b"")
                del lines[place:]
                end = b""
                break
            if more:
                inside += range(place + 1, place + more + 1)
                place += more + 1
                continue
            lines[place], shown = self._as_it_stands(text)
            if shown is not None:
                odd.append((line + place, shown))
            place += 1
        data = b"\n".join(lines) + (b"\n" if lines and end is not None else b"")
        starts = np.delete(np.arange(len(lines)), inside) if inside else None
        return RowBlock(data, line, starts, len(lines), odd), rest

    def _more(self, lines: list[bytes], place: int) -> int | None:
        """How many lines more a row has; 0: it is one line whose quotes are odd; None: the lines end before this is known."""
        if not self._open.fullmatch(lines[place]):
            return 0
        text = lines[place]
        for more, following in enumerate(lines[place + 1 : place + 1 + _AHEAD], 1):
            text += b"\n" + following
            if len(text) > _LONGEST:
                return 0
            if b'"' not in following:
                continue
            if self._proper.fullmatch(text):
                right = len(self._field.findall(text)) == self.fields
                return more if right and not self._are_rows(lines[place : place + 1 + more]) else 0
            if not self._open.fullmatch(text):
                return 0
        return None if place + 1 + _AHEAD > len(lines) else 0

    def _are_rows(self, lines: list[bytes]) -> bool:
        """Whether lines that a pair of quotes would make one row of are rather rows of their own."""
        full = [line.count(self.separator) == self.fields - 1 for line in lines]
        if not all(full):
            return len(lines) > 4 and all(full[1:-1])
        text_in_few_lines = self.separator in b",;" and self.fields <= 3 and len(lines) <= 4
        return not text_in_few_lines and b'""' not in lines[0]

    def _as_it_stands(self, text: bytes) -> tuple[bytes, str | None]:
        """Write a line with odd quotes in the proper form; None: it has another number of fields anyway."""
        if b'\\"' in text and self._escaped.fullmatch(text) and len(self._field.findall(text)) == self.fields:
            return self._anew(text), text.decode(errors="replace")
        fields = text.split(self.separator)
        if len(fields) != self.fields:  # without quotes it is one row for the parser, and is counted
            return text.replace(b'"', b"'"), None
        return self.separator.join(map(_quoted, fields)), text.decode(errors="replace")

    def _anew(self, text: bytes) -> bytes:
        r"""Write fields anew that are enclosed in quotes with blanks around them, or that hold \"."""
        fields = []
        for proper, escaped, plain in self._field.findall(text):
            if proper:
                fields.append(_quoted(proper.strip(b" ")[1:-1].replace(b'""', b'"')))
            elif escaped:
                fields.append(_quoted(re.sub(rb"\\(.)", rb"\1", escaped.strip(b" ")[1:-1])))
            else:
                fields.append(plain)
        return self.separator.join(fields)


def _row(enclosed: bytes, plain: bytes, separator: bytes) -> re.Pattern[bytes]:
    field = rb"(?:%s|%s)" % (enclosed, plain)
    return re.compile(rb"%s(?:%s%s)*+" % (field, separator, field), re.DOTALL)


def _quoted(field: bytes) -> bytes:
    return b'"' + field.replace(b'"', b'""') + b'"'
