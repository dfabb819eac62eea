"""`setrec serve`: open a socket, serve the application on it, and end in order."""

import math
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import uvicorn

from setrec.errors import ConfigError
from setrec.inference.answers import index_sentence
from setrec.recommend import Recommender
from setrec.serve.app import create_app
from setrec.serve.connections import HostCheck, limited, own_names
from setrec.serve.guard import TOKEN
from setrec.serve.journal import Journal
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from setrec.serve.shop import CHALLENGER, SHADOW
from setrec.shop.events import EventStore


def run_server(load: Callable[[Path], Recommender], ckpt_path: Path, options: ServeOptions) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        load: loads a checkpoint.
        ckpt_path: the first checkpoint.
        options: see `ServeOptions`.

    Raises:
        SETRecError: the checkpoint is broken, the port is taken, or another server uses the journal.
    """
    listening = _listen(options.host, options.port)
    token = os.environ.get(TOKEN, "")
    store = _open_store(ckpt_path, options, token)
    journal = Journal(options.items or journal_path(ckpt_path), writable=bool(token))
    try:
        holder = ModelHolder(ckpt_path, load, journal, options.models, options.encoder)
        for variant, path in ((CHALLENGER, options.challenger), (SHADOW, options.shadow)):
            if path is not None:
                holder.followers[variant] = ModelHolder(path, load, journal, options.models, options.encoder)
        app = create_app(holder, token, options, store)
        app.add_middleware(HostCheck, names=own_names(options.host) | options.allowed_names)
        config = uvicorn.Config(
            app, access_log=False, log_level="info", timeout_graceful_shutdown=options.drain, ws="none",
            http=limited(options.client_timeout, options.max_connections),
            timeout_keep_alive=math.ceil(options.client_timeout),
        )  # fmt: skip
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        info = holder.current.recommender.info()
        print(f"{ckpt_path}: {info['n_items']:,} items, {len(journal.added)} of them added ({journal.path})")
        if options.index is not None:
            print(index_sentence(options.index, info["index_recall@10"]))
        print(f"changes: {'with the token in ' + TOKEN if token else 'refused, ' + TOKEN + ' is not set'}")
        print(f"users and events: {'none are kept' if store is None else store.database.shown}")
        listening.listen(config.backlog)  # from here on a connection waits for its answer instead of being refused
        print(f"serving at http://{shown}:{port}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        journal.close()
        listening.close()


def journal_path(ckpt_path: Path) -> Path:
    """The default journal of a checkpoint or a published folder: a file beside it."""
    return ckpt_path.resolve().with_name(ckpt_path.resolve().name + ".items.jsonl")


def _open_store(ckpt_path: Path, options: ServeOptions, token: str) -> EventStore | None:
    """Open the database; without a token and a name there is none.

    Raises:
        ConfigError: see `Database`; or an option needs it.
    """
    if options.database is None and not token:
        for option in ("challenger", "shadow", "explore"):
            if getattr(options, option):
                raise ConfigError(f"--{option} needs the database: set {TOKEN}, or name one with --database.")
        return None
    return EventStore(options.database or ckpt_path.resolve().with_name(ckpt_path.resolve().name + ".shop.db"))


def _listen(host: str, port: int) -> socket.socket:
    """Bind a socket before anything is loaded, so that a taken port is reported at once.

    Raises:
        ConfigError: the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there it would let two servers share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port} cannot be bound ({error}); give another --port.") from None
    return listening
