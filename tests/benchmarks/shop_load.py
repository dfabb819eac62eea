"""A shop's load over loopback: users' recommendations and events, with a check that no acknowledged event is lost.

python tests/benchmarks/shop_load.py --ckpt_path CKPT --seconds 60 --clients 8 [--database postgresql://...] [--takeover] [--kill]
    [--update] [--kill_database]

--update runs `setrec update --database` in the middle, on a copy of the data and the checkpoint, whose link the server watches: run
in the folder that fit ran in, with data.root relative to it. --kill_database starts a PostgreSQL server of its own (Debian's
package), kills its postmaster and all its processes with SIGKILL in the middle, and starts it again two seconds later.
"""

import argparse
import asyncio
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from setrec.commands.update_link import point  # noqa: E402
from tests.postgres import postgres  # noqa: E402

TOKEN = "load"


class Server:
    """`setrec serve` in a process. folder: that it runs in; postgres: the database server, if it is the benchmark's own."""

    def __init__(self, words: list[str], folder: Path, postgres: Any = None) -> None:
        self.words, self.port, self.folder, self.postgres = words, 0, folder, postgres
        self.start()

    def start(self) -> None:
        words = [*self.words, "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *words], stdout=subprocess.PIPE, text=True, cwd=self.folder,
            env=os.environ | {"SETREC_TOKEN": TOKEN},
        )  # fmt: skip
        assert self.process.stdout is not None
        found = next(
            (m for line in self.process.stdout if (m := re.match(r"serving at http://127.0.0.1:(\d+)", line))), None
        )
        if found is None:
            sys.exit("the server did not start")
        self.port = int(found[1])


async def ask(
    web: httpx.AsyncClient,
    given: argparse.Namespace,
    items: list[str],
    until: asyncio.Task[None],
    tally: dict[str, Any],
) -> None:
    """One client: 80% recommendations, 20% events of random users."""
    chance = random.Random(len(tally["clients"]))
    tally["clients"].append(1)
    while not until.done():
        user, start = f"user{chance.randrange(given.users)}", time.perf_counter()
        own = f"{chance.getrandbits(64):x}"
        reading = chance.random() < given.reads
        try:
            if reading:
                answer = await web.get(f"/users/{user}/recommendations")
            else:
                event = {"user": user, "item": chance.choice(items), "id": own}
                answer = await web.post("/events", json={"events": [event]})
        except httpx.HTTPError:  # the server was killed
            tally["broken"] += 1
            await asyncio.sleep(0.1)
            continue
        if answer.status_code == 503 and tally["without_database"]:
            tally["unavailable"] += 1
            tally["said"].add(answer.json()["error"][:60])
            await asyncio.sleep(0.1)
            continue
        tally["reads" if reading else "events"].append(time.perf_counter() - start)
        if answer.status_code not in (200, 201):
            tally["refused"] += 1
            tally["said"].add(f"{answer.status_code}: {answer.text[:100]}")
        elif not reading:
            tally["acknowledged"].append((user, own))


async def disturb(web: httpx.AsyncClient, server: Server, given: argparse.Namespace, tally: dict[str, Any]) -> None:
    """In the middle: a takeover, then kill -9 and a new start. Memory all the time."""
    start = time.perf_counter()
    todo = [(0.1, "update")] * given.update + [(0.3, "kill_database")] * given.kill_database
    todo += [(0.4, "takeover")] * given.takeover + [(0.6, "kill")] * given.kill
    updating: asyncio.Task[None] | None = None
    while (passed := time.perf_counter() - start) < given.seconds or (updating is not None and not updating.done()):
        tally["rss"].append(psutil.Process(server.process.pid).memory_info().rss / 2**20)
        if todo and passed > todo[0][0] * given.seconds:
            what = todo.pop(0)[1]
            if what == "takeover":
                (await web.post("/model/reload", json={})).raise_for_status()
            elif what == "update":
                updating = asyncio.create_task(update(web, server, given, tally))
            elif what == "kill_database":
                tally["without_database"] = True
                server.postgres.kill()
                before = time.perf_counter()
                await asyncio.sleep(2)
                await asyncio.to_thread(server.postgres.start)
                print(f"the database was killed, and there again after {time.perf_counter() - before:.1f} s")
                while (await web.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.05)
                print(f"the server is ready again after {time.perf_counter() - before:.1f} s")
                await asyncio.sleep(0.5)  # requests that had begun before
                tally["without_database"] = False
            else:
                server.process.kill()
                server.process.wait()
                before = time.perf_counter()
                await asyncio.to_thread(server.start)
                print(f"killed, and there again after {time.perf_counter() - before:.1f} s")
        await asyncio.sleep(min(0.5, given.seconds / 20))


async def update(web: httpx.AsyncClient, server: Server, given: argparse.Namespace, tally: dict[str, Any]) -> None:
    """`setrec update` in a process; the server, which watches the link, takes its model over."""
    generation, start = (await web.get("/model")).json()["generation"], time.perf_counter()
    words = ["update", "--database", given.database, "--tolerance", "9", "--trainer.max_epochs", "1"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    with (server.folder / "update.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "main.py"), *words, cwd=server.folder, stdout=log, stderr=log
        )
        status = await process.wait()
    if status:
        tally["failed"] = f"update ended with {status}: {(server.folder / 'update.log').read_text()[-500:]}"
        return
    took = time.perf_counter() - start
    limit = time.monotonic() + 60
    while (await web.get("/model")).json()["generation"] == generation and time.monotonic() < limit:
        await asyncio.sleep(0.1)
    if time.monotonic() >= limit:
        tally["failed"] = "the updated model was not taken over"
    print(f"updated in {took:.1f} s, taken over {time.perf_counter() - start - took:.1f} s later")


async def load(server: Server, given: argparse.Namespace) -> dict[str, Any]:
    tally: dict[str, Any] = {name: [] for name in ("clients", "reads", "events", "acknowledged", "rss")} | {
        "broken": 0,
        "refused": 0,
        "unavailable": 0,
        "without_database": False,
        "said": set(),
        "failed": "",
    }
    limits = httpx.Limits(max_connections=given.clients + 4)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{server.port}/v1",
        timeout=60,
        limits=limits,
        headers={"authorization": f"Bearer {TOKEN}"},
    ) as web:
        items = [item["id"] for item in (await web.get("/items", params={"limit": 100})).json()["items"]]
        lines = "\n".join(
            f'{{"user": "user{i % given.users}", "item": "{random.choice(items)}", "time": {1_600_000_000 + i}}}'
            for i in range(given.users * given.before)
        )
        start = time.perf_counter()
        for part in range(0, len(lines.splitlines()), 20_000):
            content = "\n".join(lines.splitlines()[part : part + 20_000]).encode()
            answer = await web.post("/events", content=content, headers={"content-type": "application/x-ndjson"})
            answer.raise_for_status()
        print(f"{given.users * given.before:,} events of {given.users:,} users in {time.perf_counter() - start:.1f} s")
        began = time.perf_counter()
        disturbing = asyncio.create_task(
            disturb(web, server, given, tally)
        )  # it ends when the time and the update are over
        await asyncio.gather(*[ask(web, given, items, disturbing, tally) for _ in range(given.clients)])
        await disturbing
        tally["seconds"] = time.perf_counter() - began
        lost, kept = 0, {}
        for user, own in tally["acknowledged"]:
            if user not in kept:
                kept[user] = {event["id"] for event in (await web.get(f"/users/{user}")).json()["events"]}
            lost += own not in kept[user]
        tally["lost"] = lost
        if tally["acknowledged"]:
            start = time.perf_counter()
            await web.delete(f"/users/{tally['acknowledged'][0][0]}")
            print(f"a user erased in {1000 * (time.perf_counter() - start):.0f} ms")
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="run in the folder that fit ran in")
    parser.add_argument("--database", help="default: SQLite in a folder of its own")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--before", type=int, default=4, help="events of each user before the load")
    parser.add_argument("--reads", type=float, default=0.8)
    parser.add_argument("--takeover", action="store_true", help="load the model again in the middle")
    parser.add_argument("--kill", action="store_true", help="kill -9 and a new start in the middle")
    parser.add_argument("--update", action="store_true", help="`setrec update` in the middle, taken over by --watch")
    parser.add_argument("--kill_database", action="store_true", help="kill -9 of a PostgreSQL server of its own")
    given = parser.parse_args()
    given.seconds = min(given.seconds, 300)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        own = stack.enter_context(postgres()) if given.kill_database else None
        given.database = own.url if own is not None else given.database or f"{folder}/shop.db"
        words = ["serve", "--ckpt_path", str(Path(given.ckpt_path).absolute()), "--items", f"{folder}/items.jsonl"]
        if given.update:
            for part in ("data", "lightning_logs"):
                shutil.copytree(part, folder / part, ignore=shutil.ignore_patterns("*.items.jsonl*"))
            checkpoint = folder / Path(given.ckpt_path).absolute().relative_to(Path.cwd())
            point(folder / "current.ckpt", checkpoint)
            words = ["serve", "--ckpt_path", "current.ckpt", "--watch", "1"]
        server = Server([*words, "--database", given.database], folder if given.update else Path.cwd(), own)
        try:
            tally = asyncio.run(load(server, given))
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
        finally:
            server.process.kill()
    n = len(tally["reads"]) + len(tally["events"])
    print(
        f"{n:,} requests, {n / tally['seconds']:.0f}/s, {tally['refused']} refused, {tally['broken']} broken by the kill"
    )
    for name in ("reads", "events"):
        p50, p99 = np.percentile(1000 * np.array(tally[name]), (50, 99))
        print(f"{name}: {len(tally[name]):,}, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"{len(tally['acknowledged']):,} events acknowledged, {tally['lost']} lost")
    print(f"memory {tally['rss'][0]:.0f} to {max(tally['rss']):.0f} MiB")
    if given.kill_database:
        print(f"{tally['unavailable']} requests got 503 while the database was down")
    for sentence in sorted(tally["said"]):
        print(f"  {sentence}")
    if tally["failed"]:
        print(tally["failed"])
    sys.exit(1 if tally["lost"] or tally["refused"] or tally["failed"] else 0)


if __name__ == "__main__":
    main()
