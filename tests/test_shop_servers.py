"""Several servers on one PostgreSQL database, and a database that dies under a server."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from setrec.serve.app import create_app
from setrec.serve.options import ServeOptions
from setrec.shop.events import EventStore
from tests.postgres import Postgres, postgres
from tests.serve_fake import TOKEN, WITH_TOKEN, holder_of, listening
from tests.test_serve_process import folder, served  # noqa: F401

pytestmark = pytest.mark.process


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as one:
        yield one


def shown(web: httpx.Client, user: str, **query: object) -> list[str]:
    answer = web.get(f"/users/{user}/recommendations", params=query)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["recommendations"][0]["items"]]


def test_two_servers_are_one_shop(folder: Path, server: Postgres) -> None:  # noqa: F811
    """Each has a model, caches and connections of its own; what one has acknowledged holds for the other at once."""
    words = ["--database", server.url, "--items"]
    with (
        served(folder, *words, str(folder / "a.jsonl")) as (_, a_url),
        served(folder, *words, str(folder / "b.jsonl")) as (_, b_url),
        httpx.Client(base_url=f"{a_url}/v1", headers=WITH_TOKEN, timeout=60) as a,
        httpx.Client(base_url=f"{b_url}/v1", headers=WITH_TOKEN, timeout=60) as b,
    ):
        prior = shown(a, "u", k=5)
        assert shown(b, "u", k=5) == prior
        ids = [item["id"] for item in a.get("/items", params={"limit": 20}).json()["items"]]
        for number, item in enumerate(ids):  # to one server and the other in turns
            there, here = (a, b) if number % 2 else (b, a)
            event = {"user": "u", "item": item, "time": 10 + number, "id": f"own-{number}"}
            assert there.post("/events", json=event).json() == {"stored": 1, "duplicates": 0, "unknown_items": 0}
            assert here.post("/events", json=event).json()["duplicates"] == 1
            assert not set(shown(here, "u", k=60)) & set(ids[: number + 1])  # seen items are left out
            assert shown(a, "u", k=60) == shown(b, "u", k=60)
        assert a.get("/users/u").json() | {"answers": []} == b.get("/users/u").json() | {"answers": []}

        # the same events to both at the same time are stored once
        stored: list[int] = []
        same = [{"user": f"v{n % 7}", "item": ids[0], "time": n, "id": f"both-{n}"} for n in range(300)]

        def send(web: httpx.Client) -> None:
            stored.extend(
                web.post("/events", json=same[start : start + 30]).json()["stored"] for start in range(0, 300, 30)
            )

        threads = [threading.Thread(target=send, args=(web,)) for web in (a, b)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(stored) == 300

        assert b.delete("/users/u").json()["deleted"] >= 1 + len(ids)
        assert a.get("/users/u").status_code == 404
        assert shown(a, "u", k=5) == prior  # nothing that A had read of the user answers
        assert len(a.get("/changes").json()["models"]) == 1  # both serve the same model


def test_the_database_dies_and_comes_back(tmp_path: Path, server: Postgres) -> None:
    """Requests that need it get 503 and a sentence meanwhile, the others their answers; nothing acknowledged is lost."""
    app = create_app(holder_of(tmp_path), TOKEN, ServeOptions(max_wait_ms=0), EventStore(server.url))
    statuses: Counter[tuple[str, int]] = Counter()
    said: set[str] = set()
    acknowledged: list[str] = []
    with listening(app) as url, httpx.Client(base_url=f"{url}/v1", headers=WITH_TOKEN, timeout=60) as web:
        stop = threading.Event()

        def ask(who: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                own = f"{who}-{number}"
                answers = {
                    "events": web.post("/events", json={"user": f"u{who}", "item": "A000", "time": number, "id": own}),
                    "recommendations": web.get(f"/users/u{who}/recommendations"),
                    "popular": web.get("/popular"),
                    "recommend": web.post("/recommend", json={"histories": [["A000"]]}),
                }
                for what, answer in answers.items():
                    statuses[what, answer.status_code] += 1
                    if answer.status_code == 503:
                        said.add(answer.json()["error"])
                if answers["events"].status_code == 201:
                    acknowledged.append(own)

        threads = [threading.Thread(target=ask, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        for _ in range(2):
            server.kill()
            time.sleep(0.3)
            assert web.get("/health/ready").status_code == 503
            assert web.get("/health").status_code == 200
            server.start()
            before = len(acknowledged)
            limit = time.monotonic() + 30
            while len(acknowledged) < before + 20:
                assert time.monotonic() < limit
                time.sleep(0.02)
        stop.set()
        for thread in threads:
            thread.join()
        assert web.get("/health/ready").status_code == 200
        kept = {event["id"] for who in range(4) for event in web.get(f"/users/u{who}").json()["events"]}
        assert set(acknowledged) <= kept
    assert {status for _, status in statuses} == {200, 201, 503}
    assert statuses["recommend", 503] == 0
    assert statuses["events", 503] > 0
    assert set(said) == {"The database failed; send the request again."}, said
