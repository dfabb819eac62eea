"""A PostgreSQL server of a test, from Debian's package, on a socket in a folder of its own."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Postgres:
    """The server; root starts it as the user postgres, since it refuses root."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
        if self.as_user:
            shutil.chown(folder, "postgres", "postgres")
        self._run("initdb", "-D", str(self.data), "-U", "shop", "-A", "trust", "-E", "UTF8", "--locale=C")
        self.url = f"postgresql://shop@/postgres?host={folder}"

    def _run(self, name: str, *words: str) -> None:
        subprocess.run(
            [*self.as_user, str(BINARIES[-1] / name), *words], check=True, capture_output=True, cwd=self.folder
        )

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.folder}"
        for left in reversed(range(20)):  # after a kill, the memory of the old one is in use for a moment
            try:
                self._run(
                    "pg_ctl",
                    "-D",
                    str(self.data),
                    "-w",
                    "-t",
                    "60",
                    "-l",
                    str(self.folder / "log"),
                    "-o",
                    options,
                    "start",
                )
                return
            except subprocess.CalledProcessError:
                if not left:
                    raise
                time.sleep(0.2)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-w", "-m", "fast", "stop")

    def kill(self) -> None:
        """kill -9 of the postmaster; its children end when they see it."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split()
        os.kill(pid, signal.SIGKILL)
        for child in map(int, children):
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


@contextmanager
def postgres() -> Iterator[Postgres]:
    if not BINARIES:
        pytest.skip("PostgreSQL is not here: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="setrec-pg-", dir="/tmp") as name:  # short: a socket's path has a limit
        server = Postgres(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()
