"""A process that has imported everything and runs one task after the other in a fork of itself.

The imports take seconds, a task a fraction of one. It must not compute anything before it forks: threads do not survive a fork.

    python -m tests.zygote     one task a line on stdin, as JSON; on stdout the number of its process, and how it ended
"""

import functools
import json
import os
import pkgutil
import resource
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

ROOT = Path(__file__).parents[1]
TOKEN = "secret"  # of the servers


class Ended(NamedTuple):
    """How a task ended."""

    code: int  # the exit code; below 0: the number of the signal
    seconds: float
    said: str  # stdout and stderr


class Zygote:
    """The process, seen from the tests."""

    def __init__(self) -> None:
        self.running = False
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "SETREC_TOKEN": TOKEN},
        )  # fmt: skip

    def begin(self, task: str, log: Path, **arguments: Any) -> None:
        """Start a task. One whose end was not fetched, as its test failed, is killed first."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self.running:
            self.kill()
            self.end()
        self.process.stdin.write(json.dumps({"task": task, "log": str(log), "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        self.log, self.task, self.running = log, int(self.process.stdout.readline()), True

    def address(self) -> str:
        """The address of a task that serves, once it answers."""
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
            for line in lines:
                if line.startswith("serving at "):
                    return line.split()[2]
            time.sleep(0.01)
        raise AssertionError(lines)

    def kill(self) -> None:
        """Kill the task and all that it started, at once."""
        with suppress(ProcessLookupError):  # it is over
            os.killpg(self.task, signal.SIGKILL)

    def end(self) -> Ended:
        """Wait for the end of the task."""
        assert self.process.stdout is not None
        answer = json.loads(self.process.stdout.readline())
        self.running = False
        return Ended(**answer, said=self.log.read_text(errors="replace"))

    def run(self, task: str, log: Path, kill_after: float | None = None, **arguments: Any) -> Ended:
        """Run a task, killed after so many seconds."""
        self.begin(task, log, **arguments)
        if kill_after is not None:
            time.sleep(kill_after)
            self.kill()
        return self.end()

    def together(self, words: list[str], count: int, folder: Path, **more: Any) -> None:
        """Run `processes` in a folder, whose log it keeps, to its good end."""
        ended = self.run("processes", folder / "log", words=words, count=count, folder=str(folder), **more)
        assert ended.code == 0, ended.said[-3000:]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        if self.running:
            self.kill()
        self.process.stdin.close()
        self.process.wait()


# ------------------------------------------------------------------------------------------------------------ the tasks
def command(words: list[str], file_size: int | None = None) -> None:
    """A command of setrec. file_size: no file may become larger, in bytes."""
    from setrec.cli import main

    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    main(words)


def processes(words: list[str], count: int, folder: str, function: str = "setrec.cli:main") -> None:
    """The same in several processes with the variables that torchrun sets, which Lightning reads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    shared |= {"GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "fork"}
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        _end_with(
            functools.partial(_one_of_several, words, folder, function, shared | {"RANK": rank, "LOCAL_RANK": rank})
        )
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(ends), ends


def _one_of_several(words: list[str], folder: str, function: str, variables: dict[str, object]) -> None:
    os.chdir(folder)
    os.environ |= {name: str(value) for name, value in variables.items()}
    pkgutil.resolve_name(function)(words)


def prepare(root: str, k_core: int, users: int = 60) -> None:
    """Prepare the data set `tiny`."""
    from setrec.data import Cleaning, SETRecDataModule, SyntheticWorld

    reader = SyntheticWorld(users=users, items=40)
    SETRecDataModule(name="tiny", root=root, reader=reader, cleaning=Cleaning(k_core=k_core)).prepare_data()


def _run(order: dict[str, Any]) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    {"command": command, "processes": processes, "prepare": prepare}[order["task"]](**order["arguments"])


def _end_with(work: Callable[[], object]) -> NoReturn:
    """The end of a fork: its work, and the exit status that it gives. Nothing of the process that forked runs after it."""
    code = 99
    try:
        work()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main() -> None:
    import setrec.commands.add_items
    import setrec.commands.fit
    import setrec.commands.predict_file
    import setrec.commands.publish
    import setrec.commands.serve
    import setrec.commands.update
    import setrec.serve.server  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        start = time.monotonic()
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            _end_with(functools.partial(_run, json.loads(line)))
        with suppress(OSError):  # done here too: whichever is first
            os.setpgid(pid, pid)
        print(pid, file=answers, flush=True)
        _, status = os.waitpid(pid, 0)
        end = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - start}
        print(json.dumps(end), file=answers, flush=True)


if __name__ == "__main__":
    _main()
