"""Opens a raw file for its bytes, whatever it is packed in: gzip, bzip2, xz, or a zip archive of one file."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import fsspec
import pyarrow as pa

from setrec.errors import DataError

_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_ZIP = b"PK\x03\x04"
_OTHERS = {  # how files begin that are often given, but are no tables
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a rar archive: unpack it",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV",
}
_EXCEL = "[Content_Types].xml"  # in every .xlsx, which is a zip archive
_FREE = 1 << 30  # bytes that any packed file may unpack to
_RATIO = 200  # how many times its size a packed file may unpack to, beyond that


class RawFile(NamedTuple):
    """A file on the disk, one inside a zip archive, or one in an object store."""

    path: Path  # of a remote file only its name
    member: str = ""
    url: str = ""  # of a remote file, for fsspec

    @property
    def name(self) -> str:
        """What messages call the file: its name, behind that of its archive."""
        return f"{self.path.name}/{self.member}" if self.member else self.path.name

    @property
    def endings(self) -> list[str]:
        """The endings of its own name, in lower case: [".csv", ".gz"]."""
        return Path(self.member or self.path.name.lower().removesuffix(".zip")).suffixes[-2:]


def inside(path: Path) -> RawFile:
    """Return the file to read at `path`: the file itself, or the only one in a zip archive.

    Raises:
        DataError: the file cannot be opened, the archive holds several files, or it is no table at all.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
        names = zipfile.ZipFile(path).namelist() if start.startswith(_ZIP) else []
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{path.name} cannot be read ({error}); download or copy it again.") from None
    what = next((advice for magic, advice in _OTHERS.items() if start.startswith(magic)), None)
    if _EXCEL in names:
        what = "an Excel workbook: save the sheet as CSV"
    if what is not None:
        raise DataError(f"{path.name} is {what}.")
    if not start.startswith(_ZIP):
        return RawFile(path)
    files = [name for name in names if not name.endswith("/") and not _is_litter(name)]
    if len(files) != 1:
        held = ", ".join(files[:5]) + ", ..." * (len(files) > 5) or "none"
        raise DataError(f"{path.name} must hold one file, but holds {held}; unpack it and name the file you mean.")
    return RawFile(path, files[0])


def _is_litter(name: str) -> bool:
    """What macOS puts into archives."""
    return name.startswith("__MACOSX/") or Path(name).name.startswith(".")


@contextmanager
def opened(file: RawFile) -> Iterator[IO[bytes]]:
    """Open a file for its bytes. A packed file (whatever its name) and a member of a zip archive are unpacked on the way.

    Raises:
        DataError: the file is missing, damaged, cut off, locked with a password, or unpacks to more than a table would. Errors
            of reading inside the block turn into this one too.
    """
    try:
        with ExitStack() as stack:
            source = fsspec.open(file.url, "rb") if file.url else file.path.open("rb")
            stream: IO[bytes] = stack.enter_context(source)
            if file.member:
                archive = stack.enter_context(zipfile.ZipFile(stream))
                size = archive.getinfo(file.member).compress_size
                stream = _bounded(stack.enter_context(archive.open(file.member)), size, file.name)
            else:
                start = stream.read(8)
                stream.seek(0)
                unpack = next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None)
                if unpack is not None and not file.url:
                    unpacked = stack.enter_context(cast(IO[bytes], unpack(stream, "rb")))
                    stream = _bounded(unpacked, file.path.stat().st_size, file.name)
            yield stream
    except (
        OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise DataError(f"{file.name} cannot be read to its end ({reason}); download or copy it again.") from None
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{file.name} is not a table that can be read ({reason}); check the separator and the quotes."
        ) from None


def _bounded(stream: IO[bytes], packed: int, name: str) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_Bounded(stream, max(_FREE, _RATIO * packed), name), 1 << 20))


class _Bounded(io.RawIOBase):
    """A stream that refuses to give more than `limit` bytes."""

    def __init__(self, stream: IO[bytes], limit: int, name: str) -> None:
        self._stream, self._left, self._name = stream, limit, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._stream.read(len(view))
        view[: len(data)] = data
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._name} unpacks to more than {_RATIO} times its size, which no table of events does: if it is "
                "right, unpack it yourself."
            )
        return len(data)
