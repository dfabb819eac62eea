"""Several workers on one port: starts them, starts one that dies again, has them take over a checkpoint one by one, ends them.

The port is bound and listened at here, so that a connection waits for a living worker and is never refused. A worker answers with
the model it has while another one loads the next; a takeover within a worker loses no request either.
"""

import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from prometheus_client.multiprocess import mark_process_dead

from setrec.errors import ConfigError
from setrec.serve.file_watcher import FileWatch
from setrec.serve.options import ServeOptions
from setrec.serve.prometheus import SHARED
from setrec.serve.worker import run_worker

MOST_DEATHS, WITHIN = 5, 60.0  # of workers, in seconds; more of them end the server
LOOK = 0.2  # seconds between two looks at signals
log = logging.getLogger("uvicorn.error")


def announce(said: list[str], listening: socket.socket, options: ServeOptions) -> None:
    """Listen, and say what is served, and where."""
    host, port = listening.getsockname()[:2]
    listening.listen(2048)  # from here on a connection waits for its answer instead of being refused
    for line in (*said, f"serving at http://{f'[{host}]' if ':' in host else host}:{port}"):
        log.info(line) if options.log_format == "json" else print(line, flush=True)


class _Member:
    """A worker, seen from the supervisor."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.ready = False

    def send(self, *message: Any) -> None:
        with suppress(OSError):  # it has died, which `_bury` sees
            self.pipe.send(message)


class _Roll:
    """A takeover that goes through the workers."""

    def __init__(self, path: Path, asker: _Member | None, left: list[_Member]) -> None:
        self.path, self.asker, self.left = path, asker, left
        self.now: _Member | None = None  # whose turn it is
        self.done = 0


class Supervisor:
    """Runs several workers.

    Args:
        ckpt_path: the first checkpoint.
        listening: a bound socket.
        options: see `ServeOptions`.
    """

    def __init__(self, ckpt_path: Path, listening: socket.socket, options: ServeOptions) -> None:
        if not hasattr(signal, "SIGHUP"):
            raise ConfigError("--workers above 1 needs Linux or macOS.")
        self.path, self.listening, self.options = ckpt_path, listening, options
        self.generation = 0
        self.members: list[_Member] = []
        self.roll: _Roll | None = None
        self.deaths: list[float] = []
        self.signal = 0
        self.hangup = False

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C.

        Raises:
            SETRecError: the first worker cannot start, or workers die again and again.
            SystemExit: a signal has come.
        """
        figures = tempfile.mkdtemp(prefix="setrec-metrics-")
        os.environ[SHARED] = figures  # of the workers, before they import anything
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)
        signal.signal(signal.SIGHUP, self._note_hangup)
        try:
            self._run()
        finally:
            self._end()
            del os.environ[SHARED]
            shutil.rmtree(figures, ignore_errors=True)
        raise SystemExit(128 + self.signal)

    def _note_signal(self, number: int, frame: Any) -> None:
        self.signal = number

    def _note_hangup(self, number: int, frame: Any) -> None:
        self.hangup = True

    def _run(self) -> None:
        self._start()  # alone: what is wrong with the checkpoint is said once
        file, looked = FileWatch(self.path), time.monotonic()
        while not self.signal:
            for found in wait([one.pipe for one in self.members], LOOK):
                member = next(one for one in self.members if one.pipe is found)
                try:
                    self._hear(member, *member.pipe.recv())
                except (EOFError, OSError):
                    self._bury(member)
            if self.options.watch and time.monotonic() - looked >= self.options.watch:
                looked = time.monotonic()
                self.hangup |= file.changed(self.path)
            if self.hangup and self.roll is None:
                self.hangup = False
                self._begin_roll(self.path, None)

    def _start(self) -> None:
        ours, theirs = get_context("spawn").Pipe()
        arguments = theirs, self.listening, self.path, self.generation, self.options.for_worker()
        process = get_context("spawn").Process(target=run_worker, args=arguments)
        process.start()
        theirs.close()
        self.members.append(_Member(process, ours))

    def _hear(self, member: _Member, kind: str, what: Any) -> None:
        if kind == "ready":
            first = not any(one.ready for one in self.members) and len(self.members) == 1
            member.ready = True
            if first:
                announce([*what, f"{self.options.workers} workers"], self.listening, self.options)
                for _ in range(self.options.workers - 1):
                    self._start()
        elif kind == "failed":
            if self.generation == 0 and len(self.members) == 1:
                raise ConfigError(what)
            log.error("a worker cannot start: %s", what)  # its end is seen next
        elif kind == "reload":
            if self.roll is not None:
                member.send("reloaded", None)
            else:
                self._begin_roll(what, member)
        else:
            self._taken(what)

    def _begin_roll(self, path: Path, asker: _Member | None) -> None:
        self.roll = _Roll(path, asker, sorted(self.members, key=lambda one: one is not asker))
        self._next()

    def _next(self) -> None:
        assert self.roll is not None
        if self.roll.left:
            self.roll.now = self.roll.left.pop(0)
            self.roll.now.send("take_over", self.roll.path)
        else:
            self._end_roll("")

    def _taken(self, wrong: str) -> None:
        roll = self.roll
        if roll is None or roll.now is None:
            return
        if not wrong:
            if not roll.done:
                self.path, self.generation = roll.path, self.generation + 1
            roll.done += 1
        elif not roll.done:
            return self._end_roll(wrong)
        else:  # the others have it: a new worker starts with it
            log.error("a worker could not take over %s and is started again: %s", roll.path, wrong)
            roll.now.process.kill()
        self._next()

    def _end_roll(self, wrong: str) -> None:
        assert self.roll is not None
        if self.roll.asker is not None:
            self.roll.asker.send("reloaded", wrong)
        self.roll = None

    def _bury(self, member: _Member) -> None:
        """A worker has ended: start another one.

        Raises:
            ConfigError: too many have.
        """
        member.process.join()
        code = member.process.exitcode or 0
        self.members.remove(member)
        mark_process_dead(member.process.pid, os.environ[SHARED])  # type: ignore[no-untyped-call]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        now = time.monotonic()
        self.deaths = [*(one for one in self.deaths if now - one < WITHIN), now]
        if not self.members and not self.generation and not member.ready:
            raise ConfigError(f"the first worker {how} before it was ready.")
        if len(self.deaths) > MOST_DEATHS:
            raise ConfigError(
                f"{len(self.deaths)} workers ended within {WITHIN:.0f} s, the last one {how}: the server ends; its log says why."
            )
        log.error("worker %d %s; another one is started", member.process.pid, how)
        self._start()
        if self.roll is not None:
            self.roll.left = [one for one in self.roll.left if one is not member]
            if self.roll.asker is member:
                self.roll.asker = None
            if not self.roll.done:  # the new one has the old checkpoint
                self.roll.left.append(self.members[-1])
            if self.roll.now is member:
                self._next()

    def _end(self) -> None:
        for one in self.members:
            one.process.terminate()
        limit = time.monotonic() + self.options.drain + 5
        for one in self.members:
            one.process.join(max(0.1, limit - time.monotonic()))
            if one.process.is_alive():
                one.process.kill()
                one.process.join()
