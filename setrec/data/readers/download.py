"""Downloads of raw files: resumed where the connection breaks, checked, and in place only when complete."""

import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from setrec.errors import ConfigError, DataError
from setrec.files.hashes import file_hash
from setrec.files.whole import move_into_place

_BLOCK = 1 << 18  # bytes read at a time
_NETWORK = (urllib.error.URLError, ssl.SSLError, ConnectionError, TimeoutError)
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # a later attempt may succeed


@dataclass(frozen=True)
class Source:
    """A file to download.

    Args:
        url: http or https.
        file: its name inside the raw folder; null: the last part of the URL.
        sha256: of the whole file, in hexadecimal; null: not known.
        optional: go on without the file if the server does not have it.
    """

    url: str
    file: str | None = None
    sha256: str | None = None
    optional: bool = False

    @property
    def name(self) -> str:
        """The file's name inside the raw folder.

        Raises:
            ConfigError: the name has a folder or a dot at the start, or the URL is not http or https.
        """
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https"):
            raise ConfigError(f"download {self.url}: only http and https are fetched; use --data.raw DIR for a folder.")
        name = self.file or urllib.parse.unquote(parts.path).rsplit("/", 1)[-1]
        if not name or Path(name).name != name or name.startswith("."):
            raise ConfigError(
                f"download {self.url}: file {name!r} must be a plain file name: no /, no dot at the start."
            )
        return name


def fetch(
    sources: Sequence[Source], folder: Path, tries: int = 5, wait: float = 1.0, timeout: float = 30.0
) -> list[Path]:
    """Download files into a folder. Files that are there already stay, if their hash is right or unknown.

    A file is written to <name>.part, and renamed when it has the length that the server named and the known hash. A later
    run resumes a .part, unless the server's file has changed.

    Args:
        sources: what to download.
        folder: where to; made where needed.
        tries: attempts in a row that may bring no new byte.
        wait: seconds before the second attempt; doubled for each further one.
        timeout: seconds without an answer until a connection counts as broken.

    Returns:
        The files, without the optional ones that the server does not have.

    Raises:
        DataError: no network, no such file, a wrong hash or a full disk. The message names the URL.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"), _bar() as progress:
            paths = [_Download(source, folder, tries, wait, timeout, progress).run() for source in sources]
    except OSError as error:
        raise DataError(f"cannot download to {folder} ({error}); free some space or choose --data.root DIR.") from None
    return [path for path in paths if path is not None]


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


class _ChangedError(Exception):
    """The .part is of another version of the file than the server has now."""


class _BrokenError(Exception):
    """The connection ended early. A further attempt may succeed."""


class _Download:
    """The download of one file."""

    def __init__(
        self, source: Source, folder: Path, tries: int, wait: float, timeout: float, progress: Progress
    ) -> None:
        self.source, self.path = source, folder / source.name
        self.part, self.about = folder / f"{source.name}.part", folder / f"{source.name}.part.about"
        self.tries, self.wait, self.timeout, self.progress = tries, wait, timeout, progress
        self._size_without_length = -1  # bytes of the last answer that did not name its length

    def run(self) -> Path | None:
        """Download the file; None: it is optional, and the server does not have it."""
        if self.path.is_file() and self.source.sha256 in (None, file_hash(self.path)):
            return self.path
        task = self.progress.add_task(self.path.name, total=None)
        fresh = not self.part.exists()
        if not self._complete_part(task):
            return None
        found = file_hash(self.part)
        if (
            self.source.sha256 not in (None, found) and not fresh
        ):  # the .part of an earlier run was wrong: start again, once
            self._delete_part()
            if not self._complete_part(task):
                return None
            found = file_hash(self.part)
        if self.source.sha256 not in (None, found):
            self._delete_part()
            raise DataError(
                f"{self.source.url} is not the expected file (sha256 {found[:12]}..., expected "
                f"{(self.source.sha256 or '')[:12]}...); get it by other means and pass --data.raw DIR."
            )
        move_into_place(self.part, self.path)
        self.about.unlink(missing_ok=True)
        return self.path

    def _complete_part(self, task: TaskID) -> bool:
        """Make attempts until the .part has the length that the server names; False: an optional file is missing."""
        failures, furthest = 0, self._size()
        while True:
            try:
                self._attempt(task)
                return True
            except _ChangedError:
                self._delete_part()
                reason, failures = "the server's file has changed", failures + 1
            except urllib.error.HTTPError as error:
                if error.code == 404 and self.source.optional:
                    return False
                if error.code not in _TRY_AGAIN:
                    raise self._failed(f"the server says {error.code} {error.reason}") from None
                reason, failures = f"the server says {error.code} {error.reason}", failures + 1
            except (_BrokenError, http.client.HTTPException, *_NETWORK) as error:
                cause = getattr(error, "reason", error)
                if isinstance(cause, socket.gaierror):
                    raise self._failed(f"no network, or no such server: {cause}") from None
                reason = str(cause) or type(cause).__name__
                failures = 0 if self._size() > furthest else failures + 1  # new bytes came: not a failure
                furthest = max(furthest, self._size())
            if failures >= self.tries:
                raise self._failed(f"{reason}; {self.tries} attempts")
            time.sleep(self.wait * 2 ** max(failures - 1, 0))

    def _attempt(self, task: TaskID) -> None:
        """Send one request for the missing bytes."""
        have, known = self._size(), self._read_about()
        headers = {"Accept-Encoding": "identity", "User-Agent": "setrec"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if known.get("validator"):
                headers["If-Range"] = known["validator"]
        try:
            answer = urllib.request.urlopen(
                urllib.request.Request(self.source.url, headers=headers), None, self.timeout
            )
        except urllib.error.HTTPError as error:
            if error.code != 416:
                raise
            if have and _total(error.headers.get("Content-Range")) == have:  # nothing is missing
                return
            raise _ChangedError from None
        with answer:
            if answer.status == 206:
                begin, total = _range(answer.headers.get("Content-Range"))
                if begin != have or (known.get("total") is not None and total != known["total"]):
                    raise _ChangedError
            else:  # the server sends the whole file: it does not know Range, or the file has changed
                have, total = 0, _number(answer.headers.get("Content-Length"))
            self._write(answer, have, total, task)

    def _write(self, answer: http.client.HTTPResponse, have: int, total: int | None, task: TaskID) -> None:
        """Write the answer to the .part, after its first `have` bytes."""
        about = {"url": self.source.url, "total": total, "validator": _validator(answer.headers)}
        self.about.write_text(json.dumps(about))
        self.progress.update(task, total=total, completed=have)
        with self.part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            try:
                while block := answer.read(_BLOCK):
                    file.write(block)
                    self.progress.advance(task, len(block))
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                raise
        size = self._size()
        if total is not None and size != total:
            raise _BrokenError(f"the connection ended after {size:,} of {total:,} bytes")
        if total is None and not answer.chunked and self.source.sha256 is None and size != self._size_without_length:
            self._size_without_length = size  # complete or broken off? Complete if a second answer has the same length
            raise _BrokenError(f"the server ended after {size:,} bytes without saying how many there are")

    def _size(self) -> int:
        """Bytes in the .part. A .part of another or an unknown URL is deleted."""
        if self.part.exists() and self._read_about().get("url") != self.source.url:
            self._delete_part()
        return self.part.stat().st_size if self.part.exists() else 0

    def _read_about(self) -> dict[str, Any]:
        """What the last request noted of the .part; {} where nothing can be read."""
        try:
            known = json.loads(self.about.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _delete_part(self) -> None:
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def _failed(self, reason: str) -> DataError:
        return DataError(
            f"cannot download {self.source.url} ({reason}); check the network, or get the file by other means and pass "
            "--data.raw DIR with the folder that holds it."
        )


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """The value for If-Range: a strong ETag, or the date of the last change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _range(header: str | None) -> tuple[int | None, int | None]:
    """The first byte and the total of a header such as "bytes 5-9/10"."""
    first = (header or "").removeprefix("bytes ").split("-")[0]
    return _number(first), _total(header)


def _total(header: str | None) -> int | None:
    return _number((header or "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
