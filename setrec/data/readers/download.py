"""Raw files from the web: resumed where a connection breaks, checked, and whole or not there at all."""

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

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from setrec.errors import ConfigError, DataError
from setrec.files.hashes import file_hash
from setrec.files.whole import move_into_place

_BLOCK = 1 << 18  # bytes read at a time
_NETWORK = (urllib.error.URLError, ssl.SSLError, ConnectionError, TimeoutError)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # the server may do better later


@dataclass(frozen=True)
class Source:
    """A file that can be fetched.

    Args:
        url: http or https.
        file: name it gets inside the raw folder; null: the last part of the URL.
        sha256: of the whole file, in hexadecimal; null where it is not known.
        optional: go on without it where the server has no such file.
    """

    url: str
    file: str | None = None
    sha256: str | None = None
    optional: bool = False

    @property
    def name(self) -> str:
        """The name inside the raw folder.

        Raises:
            ConfigError: not a plain file name, or not a URL that can be fetched.
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
    """Make `folder` hold the files; those that are there already (with the right hash where it is known) stay.

    A file is written to <name>.part and renamed when it is whole: as long as the server said, with the known hash. A
    .part is gone on with, in a later run too, unless the server's file has changed meanwhile.

    Args:
        sources: what to fetch.
        folder: where to; made where needed.
        tries: attempts in a row without a new byte before giving up.
        wait: seconds before the second attempt, doubled for each further one.
        timeout: seconds without an answer after which a connection counts as broken.

    Returns:
        The files, without optional ones that the server does not have.

    Raises:
        DataError: no network, no such file, a wrong hash, a full disk; the sentence names the URL.
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
    """What is in the .part does not belong to what the server has now."""


class _BrokenError(Exception):
    """The connection ended early, or the server is not at its best; trying again may help."""


class _Download:
    """One file on its way."""

    def __init__(
        self, source: Source, folder: Path, tries: int, wait: float, timeout: float, progress: Progress
    ) -> None:
        self.source, self.path = source, folder / source.name
        self.part, self.about = folder / f"{source.name}.part", folder / f"{source.name}.part.about"
        self.tries, self.wait, self.timeout, self.progress = tries, wait, timeout, progress
        self._unsized = -1  # bytes of an answer that ended without ever having said how long it is

    def run(self) -> Path | None:
        """Fetch it; None where it is optional and not there."""
        if self.path.is_file() and self.source.sha256 in (None, file_hash(self.path)):
            return self.path
        task = self.progress.add_task(self.path.name, total=None)
        fresh = not self.part.exists()
        if not self._whole(task):
            return None
        found = file_hash(self.part)
        if self.source.sha256 not in (None, found) and not fresh:  # a .part of another time: begin anew, once
            self._forget()
            if not self._whole(task):
                return None
            found = file_hash(self.part)
        if self.source.sha256 not in (None, found):
            self._forget()
            raise DataError(
                f"{self.source.url} is not the expected file (sha256 {found[:12]}..., expected "
                f"{(self.source.sha256 or '')[:12]}...); get it by other means and pass --data.raw DIR."
            )
        move_into_place(self.part, self.path)
        self.about.unlink(missing_ok=True)
        return self.path

    def _whole(self, task: TaskID) -> bool:
        """Attempts until the .part is as long as the server says; False where an optional file is not there."""
        failures, furthest = 0, self._size()
        while True:
            try:
                self._attempt(task)
                return True
            except _ChangedError:
                self._forget()
                reason, failures = "the server's file has changed", failures + 1
            except urllib.error.HTTPError as error:
                if error.code == 404 and self.source.optional:
                    return False
                if error.code not in _AGAIN:
                    raise self._failed(f"the server says {error.code} {error.reason}") from None
                reason, failures = f"the server says {error.code} {error.reason}", failures + 1
            except (_BrokenError, http.client.HTTPException, *_NETWORK) as error:
                cause = getattr(error, "reason", error)
                if isinstance(cause, socket.gaierror):
                    raise self._failed(f"no network, or no such server: {cause}") from None
                reason = str(cause) or type(cause).__name__
                failures = 0 if self._size() > furthest else failures + 1  # as long as it gets on, go on
                furthest = max(furthest, self._size())
            if failures >= self.tries:
                raise self._failed(f"{reason}; {self.tries} attempts")
            time.sleep(self.wait * 2 ** max(failures - 1, 0))

    def _attempt(self, task: TaskID) -> None:
        """One request, for what is missing."""
        have, known = self._size(), self._known()
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
            else:  # the whole file: Range is not understood, or the file has changed
                have, total = 0, _number(answer.headers.get("Content-Length"))
            self._write(answer, have, total, task)

    def _write(self, answer: http.client.HTTPResponse, have: int, total: int | None, task: TaskID) -> None:
        """Put the answer behind the first `have` bytes of the .part."""
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
        if total is None and not answer.chunked and self.source.sha256 is None and size != self._unsized:
            self._unsized = size  # the end, or a broken connection? A second answer of the same length settles it
            raise _BrokenError(f"the server ended after {size:,} bytes without saying how many there are")

    def _size(self) -> int:
        """Bytes in the .part; one that comes from another URL, or from nowhere, is thrown away."""
        if self.part.exists() and self._known().get("url") != self.source.url:
            self._forget()
        return self.part.stat().st_size if self.part.exists() else 0

    def _known(self) -> dict:
        try:
            known = json.loads(self.about.read_text())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _forget(self) -> None:
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def _failed(self, reason: str) -> DataError:
        return DataError(
            f"cannot download {self.source.url} ({reason}); check the network, or get the file by other means and pass "
            "--data.raw DIR with the folder that holds it."
        )


def _validator(headers: http.client.HTTPMessage) -> str | None:
    """What If-Range may be asked with: a strong ETag, or the date of the last change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _range(header: str | None) -> tuple[int | None, int | None]:
    """First byte and total of "bytes 5-9/10"."""
    first = (header or "").removeprefix("bytes ").split("-")[0]
    return _number(first), _total(header)


def _total(header: str | None) -> int | None:
    return _number((header or "").rpartition("/")[2])


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
