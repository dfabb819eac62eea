"""The link to the checkpoint that is served: replacing it in one step, one update at a time, and telling a server."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from setrec.commands.words import command_of
from setrec.errors import ConfigError
from setrec.files.whole import sync_folder
from setrec.inference.journal_place import share_journal

TOKEN = "SETREC_TOKEN"


@contextmanager
def only_one(link: Path) -> Iterator[None]:
    """Hold the lock of a link.

    Raises:
        ConfigError: another update holds it.
    """
    lock = FileLock(link.parent / f".{link.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"another update of {link} is running; wait for its end.") from None
    try:
        yield
    finally:
        lock.release()


def point(link: Path, checkpoint: Path) -> str:
    """Let a link name a checkpoint, in one step; both have one journal then.

    Returns:
        A sentence about changes of the catalogue that were taken over; mostly "".

    Raises:
        ConfigError: a file that is no link has its name.
    """
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link} is a file, not a link that update made; give another --current.")
    said = share_journal(link, checkpoint)
    hidden = link.with_name(f".{link.name}.new")
    hidden.unlink(missing_ok=True)
    hidden.symlink_to(os.path.relpath(checkpoint.resolve(), link.parent.resolve()))
    os.replace(hidden, link)
    sync_folder(link.parent)
    return said


def served_by(link: Path) -> Path:
    """The checkpoint that a link names.

    Raises:
        ConfigError: there is none.
    """
    if not link.exists():
        raise ConfigError(
            f"{link} names no checkpoint; make it once: {command_of(['update', '--publish', 'CHECKPOINT'])}."
        )
    return link.resolve()


def tell(server: str | None) -> None:
    """Ask a server to load its checkpoint again.

    Raises:
        ConfigError: it cannot be reached, or refuses; the link names the new model all the same.
    """
    if server is None:
        return
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get(TOKEN, '')}"}
    request = urllib.request.Request(f"{server.rstrip('/')}/model/reload", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=600):
            pass
    except (OSError, ValueError) as error:
        said = error.read().decode(errors="replace")[:300] if isinstance(error, urllib.error.HTTPError) else ""
        raise ConfigError(
            f"the model is published, but {server} did not load it ({error}{said and ': '}{said})."
        ) from None
