"""Load on a served checkpoint, on this machine's loopback only: throughput, latency, losses and memory, bounded in time.

    python tests/benchmarks/load.py --ckpt_path CKPT                    # two minutes: calm, a takeover, garbage
    python tests/benchmarks/load.py --ckpt_path CKPT --seconds 30 --clients 8

Starts `main.py serve` as a process of its own on a free port of 127.0.0.1, asks from several connections, each of which
waits for its answer before it asks again, and ends it with SIGTERM. Three phases of equal length: nothing else going on; the
checkpoint taken over again and again; a client that sends garbage beside the others. Prints a line for each, and writes
everything as JSON with --output. An answer that isn't right (200, k items for each history) counts as lost.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
TOKEN = "load"
PHASES = ["calm", "takeovers", "garbage"]
GARBAGE = (
    b"", b"\x00" * 1000, b"{" * 5000, b'{"histories": 7}', b'{"histories": [["\\ud800"]]}', b"[" * 50_000,
    b'{"histories": [[]], "k": 1e400}', b'{"histories": [[]], "k": -1}', b'{"histories": [[1, null, {}]]}', b"\xff" * 100,
)  # fmt: skip


@dataclass
class Phase:
    """What one phase saw; seconds, MiB."""

    name: str
    seconds: float = 0.0
    answered: int = 0
    lost: int = 0
    cpu: float = 0.0  # processor seconds of the server: what it would take on an idle machine
    latency: list[float] = field(default_factory=list)
    takeovers: list[float] = field(default_factory=list)  # seconds that each took
    garbage: dict[str, int] = field(default_factory=dict)  # status -> count
    rss: list[float] = field(default_factory=list)  # of the server's processes (PSS), ten times a phase

    def summary(self) -> dict[str, object]:
        """The figures, without the raw latencies."""
        ms = np.percentile(np.array(self.latency or [np.nan]) * 1000, [50, 99])
        known = asdict(self) | {"per_second": self.answered / max(self.seconds, 1e-9)}
        known |= {"p50_ms": ms[0], "p99_ms": ms[1], "rss": [round(value, 1) for value in self.rss]}
        del known["latency"]
        return known


async def ask(client: httpx.AsyncClient, phase: Phase, ids: list[str], given: argparse.Namespace, until: float) -> None:
    """One client: a question, its answer, the next question."""
    draw = random.Random(id(phase) ^ id(client) ^ random.randrange(1 << 30))
    size, k = given.histories, given.k
    users = [draw.sample(ids, draw.randint(0, 10)) for _ in range(20)]  # of this client
    while time.perf_counter() < until:
        histories = [draw.sample(ids, draw.randint(0, 30)) for _ in range(size)]
        if given.growing:  # the same users again, each with one event more
            some = draw.sample(range(len(users)), size)
            for user in some:
                users[user] = [*users[user], draw.choice(ids)] if len(users[user]) < 40 else []
            histories = [users[user] for user in some]
        start = time.perf_counter()
        try:
            answer = await client.post("/recommend", json={"histories": histories, "k": k})
            right = (
                answer.status_code == 200
                and [len(one["items"]) for one in answer.json()["recommendations"]] == [k] * size
            )
        except httpx.HTTPError:
            right = False
        phase.latency.append(time.perf_counter() - start)
        phase.answered += right
        phase.lost += not right


async def take_over(client: httpx.AsyncClient, phase: Phase, until: float) -> None:
    """Load the checkpoint again and again, with five seconds between."""
    while time.perf_counter() < until - 2:
        start = time.perf_counter()
        answer = await client.post("/model/reload", json={}, headers={"authorization": f"Bearer {TOKEN}"}, timeout=120)
        answer.raise_for_status()
        phase.takeovers.append(round(time.perf_counter() - start, 2))
        await asyncio.sleep(min(5.0, max(0.0, until - 2 - time.perf_counter())))


async def send_garbage(port: int, client: httpx.AsyncClient, phase: Phase, until: float) -> None:
    """Bodies and bytes that mean nothing, about fifty a second."""
    place = 0
    while time.perf_counter() < until:
        body = GARBAGE[place % len(GARBAGE)]
        place += 1
        try:
            answer = await client.post("/recommend", content=body, headers={"content-type": "application/json"})
            status = str(answer.status_code)
        except httpx.HTTPError as error:
            status = type(error).__name__
        phase.garbage[status] = phase.garbage.get(status, 0) + 1
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)  # and a connection that is broken off
        writer.write(
            body[:500] + b"\r\n\r\n" if place % 2 else b"POST /recommend HTTP/1.1\r\ncontent-length: 999\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.02)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and those it started."""
    return [process, *process.children(recursive=True)]


def processor(process: psutil.Process) -> float:
    """Processor seconds of the server."""
    return sum(sum(one.cpu_times()[:2]) for one in family(process))


async def watch_memory(process: psutil.Process, phase: Phase, until: float, seconds: float) -> None:
    """The server's memory, of all its processes, what they share counted once (PSS), ten times."""
    while time.perf_counter() < until:
        phase.rss.append(sum(one.memory_full_info().pss for one in family(process)) / 2**20)
        await asyncio.sleep(seconds / 10)


async def load(port: int, process: psutil.Process, given: argparse.Namespace) -> list[Phase]:
    """All phases, one after the other."""
    limits = httpx.Limits(max_connections=given.clients + 4)
    phases = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
        found = (await client.get("/items", params={"limit": 100})).json()["items"]
        ids = [item["id"] for item in found]
        for name in given.phases:
            phase, seconds = Phase(name), given.seconds / len(given.phases)
            start = time.perf_counter()
            until = start + seconds
            before = processor(process)
            tasks = [ask(client, phase, ids, given, until) for _ in range(given.clients)]
            tasks.append(watch_memory(process, phase, until, seconds))
            if name == "takeovers":
                tasks.append(take_over(client, phase, until))
            if name == "garbage":
                tasks.append(send_garbage(port, client, phase, until))
            await asyncio.gather(*tasks)
            phase.seconds, phase.cpu = time.perf_counter() - start, processor(process) - before
            phases.append(phase)
            say(phase)
    return phases


def say(phase: Phase) -> None:
    """One line of a phase."""
    s = phase.summary()
    line = (
        f"{phase.name:10s} {phase.seconds:5.1f} s  {phase.answered} answered, {phase.lost} lost  {s['per_second']:.0f}/s  "
        f"p50 {s['p50_ms']:.1f} ms  p99 {s['p99_ms']:.1f} ms  server's processor {1000 * phase.cpu / max(phase.answered, 1):.1f} "
        f"ms/answer  PSS {phase.rss[0]:.0f} -> {phase.rss[-1]:.0f} MiB, at most {max(phase.rss):.0f}"
    )
    extra = f"  takeovers, seconds: {phase.takeovers}" if phase.takeovers else ""
    print(line + extra + (f"  garbage: {phase.garbage}" if phase.garbage else ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="run in the folder that fit ran in")
    parser.add_argument("--seconds", type=float, default=120, help="all phases together, at most 300")
    parser.add_argument("--phases", nargs="+", default=PHASES, choices=PHASES)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--histories", type=int, default=1, help="in a request")
    parser.add_argument(
        "--growing", action="store_true", help="20 users a client, whose histories grow by an item a request"
    )
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--max_batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="JSON with all figures")
    given = parser.parse_args()
    given.seconds = min(given.seconds, 300)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "serve", "--ckpt_path", given.ckpt_path, "--port", "0", "--items", f"{folder}/items.jsonl",
            "--max_batch", str(given.max_batch), "--workers", str(given.workers), "--device", given.device,
        ]  # fmt: skip
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *words],
            stdout=subprocess.PIPE, stderr=sys.stderr, text=True, env=os.environ | {"SETREC_TOKEN": TOKEN},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            found = next(
                (m for line in process.stdout if (m := re.match(r"serving at http://127.0.0.1:(\d+)", line))), None
            )
            if found is None:
                sys.exit("the server did not start")
            print(
                f"started in {time.perf_counter() - start:.1f} s; {given.clients} clients, {given.histories} histories a request"
            )
            time.sleep(8 * (given.workers > 1))  # the others load
            phases = asyncio.run(load(int(found[1]), psutil.Process(process.pid), given))
            process.send_signal(signal.SIGTERM)
            print(f"ended with {process.wait(60)} on SIGTERM")
        finally:
            process.kill()
    if given.output:
        given.output.write_text(json.dumps([phase.summary() for phase in phases], indent=1))
    sys.exit(1 if sum(phase.lost for phase in phases) else 0)


if __name__ == "__main__":
    main()
