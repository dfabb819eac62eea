"""One process that serves: the model, the application and uvicorn; alone, or one of several under a supervisor.

A worker of several talks with its supervisor over a pipe:

    worker -> supervisor    ("ready", lines to print)  ("failed", sentence)   how its start went
                            ("reload", path)                                  a request wants another checkpoint, in all workers
                            ("taken", sentence)                               its own takeover is over; "": it went well
    supervisor -> worker    ("take_over", path)                               now it is this worker's turn
                            ("reloaded", sentence)                            the answer to "reload"; None: another one is running
"""

import logging
import math
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import uvicorn

from setrec.errors import ConfigError, DataError, SETRecError
from setrec.inference.answers import index_sentence
from setrec.inference.journal import Journal
from setrec.inference.journal_place import journal_path, share_journal
from setrec.recommend import Recommender
from setrec.serve.app import create_app
from setrec.serve.connections import HostCheck, limited, own_names
from setrec.serve.guard import TOKEN, token_of_environment
from setrec.serve.model_holder import ModelHolder, TakeoverRunningError
from setrec.serve.options import ServeOptions
from setrec.serve.request_ids import log_as
from setrec.serve.shop import CHALLENGER, SHADOW
from setrec.serve.tracing import start_tracing
from setrec.shop.events import EventStore

log = logging.getLogger("uvicorn.error")


class Worker:
    """A server that is ready to run.

    Attributes:
        said: lines that tell what is served.

    Args:
        ckpt_path: the checkpoint.
        options: see `ServeOptions`.
        generation: of the checkpoint.

    Raises:
        SETRecError: the checkpoint is broken, or the journal is.
    """

    def __init__(self, ckpt_path: Path, options: ServeOptions, generation: int = 0) -> None:
        def load(path: Path) -> Recommender:
            return Recommender.load(
                path, options.device, index=options.index, prefix_cache=options.prefix_cache, encoder=options.encoder
            )

        token = token_of_environment()
        taken = (
            share_journal(ckpt_path, ckpt_path) if token and ckpt_path.is_symlink() and options.items is None else ""
        )
        journal = Journal(options.items or journal_path(ckpt_path), writable=bool(token))
        store = _open_store(ckpt_path, options, token)
        named = store is not None
        self.holder = ModelHolder(ckpt_path, load, journal, options.models, options.encoder, generation, named)
        for variant, path in ((CHALLENGER, options.challenger), (SHADOW, options.shadow)):
            if path is not None:
                own = Journal(journal.path, writable=False)
                self.holder.followers[variant] = ModelHolder(path, load, own, options.models, options.encoder, 0, named)
        self._provider = start_tracing()
        app = create_app(self.holder, token, options, store, self._provider)
        self.service = app.state.service
        app.add_middleware(HostCheck, names=own_names(options.host) | options.allowed_names)
        self.config = uvicorn.Config(
            app, access_log=False, log_level="info", timeout_graceful_shutdown=options.drain, ws="none",
            http=limited(options.client_timeout, options.max_connections), log_config=None if options.log_format == "json" else
            uvicorn.config.LOGGING_CONFIG, timeout_keep_alive=math.ceil(options.client_timeout),
        )  # fmt: skip
        info = self.holder.current.recommender.info()
        self.said = [f"{ckpt_path}: {info['n_items']:,} items, {len(journal.added)} of them added ({journal.path})"]
        self.said += [taken] if taken else []
        if options.index is not None:
            self.said.append(index_sentence(options.index, info["index_recall@10"]))
        self.said.append(f"users and events: {'none are kept' if store is None else store.database.shown}")
        self.said.append(f"changes: {'with the token in ' + TOKEN if token else 'refused, ' + TOKEN + ' is not set'}")

    def run(self, listening: socket.socket) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        try:
            _Server(self.config, self._begin_to_end).run(sockets=[listening])
        finally:
            if self._provider is not None:
                self._provider.shutdown()

    def take_over(self, path: Path) -> str:
        """Take over a checkpoint; returns a sentence on what is wrong, or ""."""
        try:
            served = self.service.take_over(path)
        except TakeoverRunningError:
            return "Another checkpoint is being loaded right now."
        except Exception as error:
            log.error("refused %s: %s", path, error)
            return str(error)
        log.info("took over %s, generation %d", path, served.generation)
        return ""

    def take_over_again(self) -> None:
        """Load the checkpoint in service once more."""
        self.take_over(self.holder.current.path)

    def _begin_to_end(self) -> None:
        self.service.draining = True


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
    return EventStore(options.database or _database_beside(ckpt_path))


def _database_beside(ckpt_path: Path) -> Path:
    """The file beside a checkpoint. A link goes on with that of the checkpoint, if it served under its own path before."""
    own = ckpt_path.absolute().with_name(ckpt_path.name + ".shop.db")
    named = ckpt_path.resolve().with_name(ckpt_path.resolve().name + ".shop.db")
    if ckpt_path.is_symlink() and named.exists() and not (own.exists() or own.is_symlink()):
        with suppress(FileExistsError):  # another worker was faster
            own.symlink_to(os.path.relpath(named, own.parent))
    return own


class _Server(uvicorn.Server):
    """uvicorn's server, which tells when it begins to end."""

    def __init__(self, config: uvicorn.Config, on_end: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_end = on_end

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to end."""
        self._on_end()
        super().handle_exit(sig, frame)


def run_worker(
    pipe: Connection, listening: socket.socket, ckpt_path: Path, generation: int, options: ServeOptions
) -> None:
    """Be one of several workers; runs in a process of its own."""
    signal.signal(
        signal.SIGTERM, lambda *_: os._exit(0)
    )  # before the start, and after uvicorn has ended: all is closed
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the supervisor ends this one
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log_as(options.log_format)
    torch.set_num_threads(max(1, torch.get_num_threads() // options.workers))
    try:
        worker = Worker(ckpt_path, options, generation)
    except SETRecError as error:
        pipe.send(("failed", str(error)))
        return
    sending, reloading, answers = threading.Lock(), threading.Lock(), queue.Queue[str | None]()

    def send(*message: Any) -> None:
        with sending:
            pipe.send(message)

    def reload(path: Path) -> None:
        if not reloading.acquire(blocking=False):
            raise TakeoverRunningError
        try:
            send("reload", path)
            wrong = answers.get()
        finally:
            reloading.release()
        if wrong is None:
            raise TakeoverRunningError
        if wrong:
            raise DataError(wrong)

    def listen() -> None:
        while True:
            try:
                kind, what = pipe.recv()
                if kind == "take_over":
                    send("taken", worker.take_over(what))
                else:
                    answers.put(what)
            except (EOFError, OSError):  # the supervisor is gone
                os.kill(os.getpid(), signal.SIGTERM)
                return

    worker.service.reload = reload
    threading.Thread(target=listen, daemon=True).start()
    send("ready", worker.said)
    worker.run(listening)
