"""A shop's load over loopback: users' recommendations and events, with a check that no acknowledged event is lost.

python tests/benchmarks/shop_load.py --ckpt_path CKPT --seconds 60 --clients 8 [--database postgresql://...] [--takeover] [--kill]
"""

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
TOKEN = "load"


class Server:
    """`setrec serve` in a process."""

    def __init__(self, words: list[str]) -> None:
        self.words, self.port = words, 0
        self.start()

    def start(self) -> None:
        words = [*self.words, "--port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "main.py"), *words], stdout=subprocess.PIPE, text=True,
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
    web: httpx.AsyncClient, given: argparse.Namespace, items: list[str], until: float, tally: dict[str, Any]
) -> None:
    """One client: 80% recommendations, 20% events of random users."""
    chance = random.Random(len(tally["clients"]))
    tally["clients"].append(1)
    while time.perf_counter() < until:
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
        tally["reads" if reading else "events"].append(time.perf_counter() - start)
        if answer.status_code not in (200, 201):
            tally["refused"] += 1
        elif not reading:
            tally["acknowledged"].append((user, own))


async def disturb(web: httpx.AsyncClient, server: Server, given: argparse.Namespace, tally: dict[str, Any]) -> None:
    """In the middle: a takeover, then kill -9 and a new start. Memory all the time."""
    start = time.perf_counter()
    todo = [(0.4, "takeover")] * given.takeover + [(0.6, "kill")] * given.kill
    while (passed := time.perf_counter() - start) < given.seconds:
        tally["rss"].append(psutil.Process(server.process.pid).memory_info().rss / 2**20)
        if todo and passed > todo[0][0] * given.seconds:
            what = todo.pop(0)[1]
            if what == "takeover":
                (await web.post("/model/reload", json={})).raise_for_status()
            else:
                server.process.kill()
                server.process.wait()
                before = time.perf_counter()
                await asyncio.to_thread(server.start)
                print(f"killed, and there again after {time.perf_counter() - before:.1f} s")
        await asyncio.sleep(min(0.5, given.seconds / 20))


async def load(server: Server, given: argparse.Namespace) -> dict[str, Any]:
    tally: dict[str, Any] = {name: [] for name in ("clients", "reads", "events", "acknowledged", "rss")} | {
        "broken": 0,
        "refused": 0,
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
        until = time.perf_counter() + given.seconds
        await asyncio.gather(
            *[ask(web, given, items, until, tally) for _ in range(given.clients)], disturb(web, server, given, tally)
        )
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
    given = parser.parse_args()
    given.seconds = min(given.seconds, 300)
    with tempfile.TemporaryDirectory() as folder:
        database = given.database or f"{folder}/shop.db"
        server = Server(
            ["serve", "--ckpt_path", given.ckpt_path, "--items", f"{folder}/items.jsonl", "--database", database]
        )
        try:
            tally = asyncio.run(load(server, given))
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(60)
        finally:
            server.process.kill()
    n = len(tally["reads"]) + len(tally["events"])
    print(
        f"{n:,} requests, {n / given.seconds:.0f}/s, {tally['refused']} refused, {tally['broken']} broken by the kill"
    )
    for name in ("reads", "events"):
        p50, p99 = np.percentile(1000 * np.array(tally[name]), (50, 99))
        print(f"{name}: {len(tally[name]):,}, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"{len(tally['acknowledged']):,} events acknowledged, {tally['lost']} lost")
    print(f"memory {tally['rss'][0]:.0f} to {max(tally['rss']):.0f} MiB")
    sys.exit(1 if tally["lost"] or tally["refused"] else 0)


if __name__ == "__main__":
    main()
