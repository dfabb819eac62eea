"""`setrec serve --workers 2` on a real checkpoint: one catalogue, one count, takeovers one after another, deaths."""

import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from setrec import Recommender
from setrec.cli import main
from tests.serve_fake import WITH_TOKEN
from tests.test_serve_process import WEB, error_of, figure, folder, served  # noqa: F401

pytestmark = pytest.mark.process


def workers_of(pid: int) -> list[int]:
    """The living processes that serve; beside them is multiprocessing's tracker."""
    found = []
    for one in psutil.Process(pid).children():
        with suppress(psutil.Error):  # it has just died
            if "spawn_main" in " ".join(one.cmdline()):
                found.append(one.pid)
    return found


def one_connection_each(url: str, n: int = 12) -> list[httpx.Client]:
    """Clients with a connection of their own, which stays with its worker."""
    clients = [httpx.Client(base_url=url, timeout=60, headers=WITH_TOKEN) for _ in range(n)]
    for client in clients:
        assert client.get("/health/ready").status_code == 200
    return clients


def until(what: object, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_workers_share_a_catalogue_and_one_replaces_a_dead_one(folder: Path) -> None:  # noqa: F811
    with served(folder, "--workers", "2") as (process, url):
        until(lambda: len(workers_of(process.pid)) == 2 and figure(url, "setrec_items") == 80)
        time.sleep(3)  # the second one loads
        clients = one_connection_each(url)
        for number in range(6):  # acknowledged by one, known to all others at once
            new = {"id": f"N{number}", "title": f"a lamp {number}"}
            assert clients[number].post("/items", json={"items": [new]}).status_code == 201
            for client in clients:
                answer = client.post("/recommend", json={"histories": [[]], "candidates": [f"N{number}"]}).json()
                assert [item["id"] for item in answer["recommendations"][0]["items"]] == [f"N{number}"]
        assert clients[0].delete("/items", params={"id": ["N0"]}).status_code == 200
        again = {"items": [{"id": "N0", "title": "another lamp"}]}
        assert clients[1].post("/items", json=again).status_code == 201
        assert all(client.post("/items", json=again).status_code == 422 for client in clients)

        # what add-items writes reaches all of them, and it begins with what they have
        (folder / "new.csv").write_text("id,title\nFILE,a garden hose\n")
        main(["add-items", "--ckpt_path", str(folder / "model.ckpt"), "--items", str(folder / "new.csv")])
        assert all(client.get("/items/FILE").status_code == 200 for client in clients)  # named, so waited for
        for client in clients:
            found = client.get("/items", params={"search": "garden hose"}).json()["items"]
            assert [one["id"] for one in found][:1] == ["FILE"]
        assert Recommender.load(folder / "model.ckpt").info()["added"] == 7
        assert Recommender.load(folder / "model.items-001").info()["added"] == 7

        # one takeover for all, asked of one
        assert clients[0].post("/model/reload", json={}).json()["generation"] == 1
        assert {client.get("/model").json()["generation"] for client in clients} == {1}
        (folder / "broken.ckpt").write_text("no checkpoint")
        assert clients[0].post("/model/reload", json={"path": "broken.ckpt"}).status_code == 422
        process.send_signal(signal.SIGHUP)
        until(lambda: {client.get("/model").json()["generation"] for client in clients} == {2})

        # figures of all workers, whichever is asked
        name = 'setrec_requests_total{method="POST",route="/recommend",status="200"}'
        until(lambda: {figure(url, name) for _ in range(8)} == {6 * 12})

        # kill -9 of one: the other goes on, and another one comes
        killed = workers_of(process.pid)[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: killed not in workers_of(process.pid) and len(workers_of(process.pid)) == 2)
        lost = 0
        for _ in range(20):
            with httpx.Client(base_url=url, timeout=60) as client:
                lost += client.get("/health/ready").status_code != 200
        assert lost == 0
        time.sleep(3)
        assert {client.get("/model").json()["generation"] for client in one_connection_each(url)} == {2}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert not psutil.pid_exists(killed)


@pytest.mark.fault
def test_a_worker_killed_while_items_are_added_loses_nothing_acknowledged(folder: Path) -> None:  # noqa: F811
    """And the supervisor, killed at the end, takes its workers with it."""
    tries = int(os.environ.get("SETREC_FAULT_TRIES", "8"))
    acknowledged: set[str] = set()
    with served(folder, "--workers", "2") as (process, url):
        until(lambda: len(workers_of(process.pid)) == 2)
        stop = threading.Event()

        def add(who: int) -> None:
            number = 0
            while not stop.is_set():
                own = f"W{who}-{number}"
                number += 1
                try:
                    with httpx.Client(base_url=url, timeout=60, headers=WITH_TOKEN) as client:
                        if (
                            client.post("/items", json={"items": [{"id": own, "title": f"fault {own},"}]}).status_code
                            == 201
                        ):
                            acknowledged.add(own)
                except httpx.TransportError:
                    pass  # its worker was killed

        threads = [threading.Thread(target=add, args=(who,)) for who in range(3)]
        for thread in threads:
            thread.start()
        for number in range(min(tries // 4, 4)):  # not more than the limit in a minute
            until(lambda number=number: len(acknowledged) > 2 * number)  # type: ignore[misc]
            os.kill(workers_of(process.pid)[number % 2], signal.SIGKILL)
            until(lambda: len(workers_of(process.pid)) == 2)
        stop.set()
        for thread in threads:
            thread.join()
        there = {
            one["id"] for one in WEB.get(f"{url}/items", params={"search": "fault ", "limit": 100}).json()["items"]
        }
        assert len(acknowledged) > 5
        assert len(there) == 100 or acknowledged <= there
        pids = workers_of(process.pid)
        process.kill()
        process.wait()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 20)
    assert acknowledged <= set(Recommender.load(folder / "model.ckpt")._snapshot.row)


def test_what_is_wrong_is_said_once(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    (folder / "broken.ckpt").write_text("no checkpoint")
    said = error_of(["--ckpt_path", str(folder / "broken.ckpt"), "--port", "0", "--workers", "2"], capfd)
    assert len(re.findall("broken.ckpt", said)) == 1
    assert "Traceback" not in said
    assert "--workers is 0" in error_of(["--ckpt_path", str(folder / "model.ckpt"), "--workers", "0"], capfd)
