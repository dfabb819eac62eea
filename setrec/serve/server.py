"""`python main.py serve`: a socket, the application on it, and an orderly end."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from setrec.errors import ConfigError
from setrec.serve.app import TOKEN, create_app
from setrec.serve.journal import Journal
from setrec.serve.models import Models

if TYPE_CHECKING:
    from setrec.recommend import Recommender
    from setrec.text import TextVectors


def run_server(
    load: "Callable[[Path], Recommender]",
    ckpt_path: Path,
    host: str,
    port: int,
    max_batch: int,
    max_wait_ms: float,
    max_waiting: int,
    items: Path | None,
    models: Path,
    watch: float,
    drain: int,
    encoder: "TextVectors | None",
) -> None:
    """Serve until SIGTERM or Ctrl-C; see `setrec.serve.serve` for the arguments.

    Raises:
        SETRecError: a broken checkpoint, a port that is taken, a journal that another server keeps.
    """
    listening = _listen(host, port)
    token = os.environ.get(TOKEN, "")
    journal = Journal(items or beside(ckpt_path), writable=bool(token))
    try:
        served = Models(ckpt_path, load, journal, models, encoder)
        app = create_app(served, token, max_batch, max_wait_ms / 1000, max_waiting, watch)
        config = uvicorn.Config(app, access_log=False, log_level="info", timeout_graceful_shutdown=drain)
        name, at = listening.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        info = served.served.recommender.info()
        print(f"{ckpt_path}: {info['n_items']:,} items, {len(journal.added)} of them added ({journal.path})")
        print(f"changes: {'with the token in ' + TOKEN if token else 'refused, ' + TOKEN + ' is not set'}")
        listening.listen(config.backlog)  # from here on a connection waits for its answer instead of being refused
        print(f"serving at http://{shown}:{at}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        journal.close()
        listening.close()


def beside(ckpt_path: Path) -> Path:
    """Where the journal of a checkpoint is kept unless said otherwise: in its folder, or beside a published one."""
    return ckpt_path.resolve().with_name(ckpt_path.resolve().name + ".items.jsonl")


def _listen(host: str, port: int) -> socket.socket:
    """A socket bound before anything is loaded: a port that is taken is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two servers share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port} can't be bound ({error}); give another --port.") from None
    return listening
