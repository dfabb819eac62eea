"""Users and events over HTTP, with a fake model: what is acknowledged is in the next answer, what is erased is nowhere."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from setrec.inference.journal import Journal
from setrec.serve.app import create_app
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from setrec.serve.worker import _database_beside
from setrec.shop.answers import AnswerStore
from setrec.shop.events import Event, EventStore
from tests.serve_fake import TOKEN, WITH_TOKEN, FakeRecommender, holder_of, write_checkpoint

LINES = {"content-type": "application/x-ndjson"}


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[TestClient]:
    holder = holder_of(folder)
    for variant in ("challenger", "shadow"):
        if options.get(variant):
            path = write_checkpoint(folder / f"{variant}.ckpt", shift=100.0)
            holder.followers[variant] = ModelHolder(
                path, FakeRecommender.load, Journal(holder.journal.path, writable=False), folder
            )  # type: ignore[arg-type]
    store = EventStore(folder / "shop.db")
    app = create_app(holder, TOKEN, ServeOptions(max_wait_ms=0, **options), store)
    with TestClient(app, headers=WITH_TOKEN) as client:
        yield client


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path) as client:
        yield client


def shown(client: TestClient, user: str, **query: Any) -> list[str]:
    answer = client.get(f"/v1/users/{quote(user, safe='')}/recommendations", params=query)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["recommendations"][0]["items"]]


def test_the_kinds_of_events_reach_the_model(shop: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, plain = [], FakeRecommender.recommend

    def recommend(self: FakeRecommender, histories: Any, kinds: Any = None, **options: Any) -> Any:
        asked.append((histories, kinds))
        return plain(self, histories, **options)

    monkeypatch.setattr(FakeRecommender, "recommend", recommend)
    events = [{"user": "u", "item": f"A00{n}", "time": n, "kind": kind} for n, kind in enumerate(["view", "", "buy"])]
    assert shop.post("/v1/events", json={"events": events}).status_code == 201
    shown(shop, "u")
    assert asked[-1] == ([["A000", "A001", "A002"]], [["view", "", "buy"]])
    body = {"histories": [["A000"], ["A001"]], "kinds": [["view"], ["buy"]]}
    assert shop.post("/v1/recommend", json=body).status_code == 200
    assert asked[-1] == (body["histories"], body["kinds"])
    wrong = shop.post("/v1/recommend", json=body | {"kinds": [["view"], []]})
    assert (wrong.status_code, "a kind for each of its items" in wrong.text) == (422, True)


def test_an_event_is_in_the_next_answer(shop: TestClient) -> None:
    for user in ("u", "a/b", "/recommendations", "ü ?#%2F&", "x" * 500):
        assert shown(shop, user, k=2) == ["A000", "A001"]  # the prior
        for number in range(4):
            event = {"user": user, "item": f"A00{number}", "time": 10 + number}
            answer = shop.post("/v1/events", json={"events": [event]})
            assert (answer.status_code, answer.json()["stored"]) == (201, 1)
            assert shown(shop, user, k=1) == [f"A00{number + 1}"]
        assert shown(shop, user, k=2, candidates=["A002", "A007"]) == ["A007"]
        assert shown(shop, user, k=1, exclude_seen=False) == ["A000"]
        kept = shop.get(f"/v1/users/{quote(user, safe='')}").json()
        assert kept["id"] == user
        assert [event["item"] for event in kept["events"]] == ["A000", "A001", "A002", "A003"]
    both = shop.post("/v1/users/recommendations", json={"users": ["u", "nobody"], "k": 1}).json()["recommendations"]
    assert [one["items"][0]["id"] for one in both] == ["A004", "A000"]


def test_events_again_change_nothing(shop: TestClient) -> None:
    events = [{"user": "u", "item": "A000", "time": "2020-01-01", "id": "7"}, {"user": "u", "item": "NEW", "time": 5}]
    counts = [shop.post("/v1/events", json={"events": events}).json() for _ in range(2)]
    assert counts == [
        {"stored": 2, "duplicates": 0, "unknown_items": 1}, {"stored": 0, "duplicates": 2, "unknown_items": 1}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"user": "u"}, "item: Field required"),
        ({"user": "u", "item": ""}, "item: String should have at least 1"),
        ({"user": "u\x00", "item": "a"}, "user: "),
        ({"user": "u", "item": "a", "time": "yesterday"}, "time: 'yesterday' is not ISO 8601"),
        ({"user": "u", "item": "a", "time": "2999-01-01"}, "more than a day ahead"),
        ({"user": "u", "item": "a", "time": -5}, "before 1970"),
        ({"user": "u", "item": "a", "what": 1}, "what: "),
    ],
)
def test_a_wrong_event_is_refused_with_its_place(shop: TestClient, event: dict[str, Any], sentence: str) -> None:
    good = {"user": "u", "item": "A000", "time": 5}
    answer = shop.post("/v1/events", json={"events": [good, event]})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("events[1].")
    assert sentence in answer.json()["error"]
    assert shop.get("/v1/users/u").status_code == 404  # nothing of it was stored


def test_an_event_needs_no_list_around_it(shop: TestClient) -> None:
    event = {"user": "u", "item": "A000", "time": 5}
    assert shop.post("/v1/events", json=event).json()["stored"] == 1
    answer = shop.post("/v1/events", json=[event, event | {"time": 6}])
    assert (answer.status_code, answer.json()["stored"], answer.json()["duplicates"]) == (201, 1, 1)
    for wrong, sentence in (
        ({"user": "u"}, "events[0].item: Field required."),
        ([event, {"item": "A000"}], "events[1].user: Field required."),
        ([], "events: List should have at least 1 item"),
        ({"event": [event]}, "events: Field required"),
        ({}, "events: Field required."),
        ("u", "should be a valid dictionary"),
    ):
        answer = shop.post("/v1/events", json=wrong)
        assert (answer.status_code, sentence in answer.json()["error"]) == (422, True), answer.text
    forms = shop.get("/openapi.json").json()["components"]["schemas"]["EventsBody"]["anyOf"]
    assert [form.get("type", form.get("$ref")) for form in forms] == ["object", "array", "#/components/schemas/EventIn"]


def test_models_that_served_are_known_after_a_restart(tmp_path: Path) -> None:
    def models(client: TestClient) -> list[tuple[str, int]]:
        return [(Path(one["checkpoint"]).name, one["generation"]) for one in client.get("/v1/changes").json()["models"]]

    with serving(tmp_path) as client:
        write_checkpoint(tmp_path / "other.ckpt", shift=3.0)
        for path in ("other.ckpt", "other.ckpt"):  # the same files again are no news
            assert client.post("/v1/model/reload", json={"path": str(tmp_path / path)}).status_code == 200
        assert models(client) == [("other.ckpt", 1), ("model.ckpt", 0)]
    with serving(tmp_path) as client, serving(tmp_path) as worker:
        assert models(client) == models(worker) == [("model.ckpt", 0), ("other.ckpt", 1), ("model.ckpt", 0)]
        later = client.get("/v1/changes?since=2999-01-01").json()
        assert later["models"] == []


def test_json_lines(shop: TestClient) -> None:
    lines = [f'{{"user": "u{i % 7}", "item": "A000", "time": {i}}}\n' for i in range(5_000)]
    answer = shop.post("/v1/events", content=iter(line.encode() for line in lines), headers=LINES)
    assert (answer.status_code, answer.json()["stored"]) == (201, 5_000)
    lines[3_000] = '{"user": "u"}\n'
    answer = shop.post("/v1/events", content="".join(["\n", *lines]).encode(), headers=LINES)
    assert answer.status_code == 422
    assert answer.json()["error"] == (
        "line 3002: item: Field required; the lines before it are stored (0 new, 3000 known already)."
    )
    answer = shop.post("/v1/events", content=b"x" * 30_000, headers=LINES)
    assert "line 1: it is longer" in answer.json()["error"]


def test_people_need_the_token(shop: TestClient, tmp_path: Path) -> None:
    closed_folder = tmp_path / "closed"
    closed_folder.mkdir()
    calls = [
        ("GET", "/v1/users/u", None), ("DELETE", "/v1/users/u", None), ("GET", "/v1/users/u/recommendations", None),
        ("POST", "/v1/users/recommendations", {"users": ["u"]}), ("POST", "/v1/feedback", {"answer": "a", "item": "b"}),
        ("POST", "/v1/events", {"events": [{"user": "u", "item": "a"}]}),
    ]  # fmt: skip
    closed = TestClient(create_app(holder_of(closed_folder), None, ServeOptions()))
    for method, path, body in calls:
        assert shop.request(method, path, json=body, headers={"authorization": "Bearer no"}).status_code == 401
        assert closed.request(method, path, json=body).status_code == 403
    assert shop.post("/v1/events", content=b"{}", headers=LINES | {"authorization": ""}).status_code == 401


def test_erased_from_answers_log_and_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(tmp_path) as shop:
        for user in ("secret-person", "other-person"):
            shop.post("/v1/events", json={"events": [{"user": user, "item": f"thing-of-{user}", "id": f"own-{user}"}]})
            shown(shop, user)
        shop.get("/v1/users/secret-person")
        assert shop.delete("/v1/users/secret-person").json()["deleted"] >= 2
        assert shop.get("/v1/users/secret-person").status_code == 404
        assert shop.delete("/v1/users/secret-person").json()["deleted"] == 0
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert "secret-person" not in shop.get("/v1/metrics").text
    content += b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"other-person" in content
    assert b"secret-person" not in content
    assert "secret-person" not in "".join(
        one.getMessage() for one in caplog.records if not one.name.startswith("httpx")
    )
    assert not [thread for thread in threading.enumerate() if thread.name == "answer log"]


def log_of(folder: Path) -> list[dict[str, Any]]:
    store = EventStore(folder / "shop.db")
    answers, _ = AnswerStore(store.database).read()
    store.close()
    return answers.to_dicts()


def test_answers_are_logged_and_judged(tmp_path: Path) -> None:
    with serving(tmp_path) as shop:
        anonymous = shop.post("/v1/recommend", json={"histories": [[], ["A000"]], "k": 2}).json()["recommendations"]
        shop.post("/v1/events", json={"events": [{"user": "u", "item": "A000"}]})
        answer = shop.get("/v1/users/u/recommendations?k=2").json()["recommendations"][0]
        event = {"user": "u", "item": "A001", "kind": "buy", "answer": answer["id"]}
        shop.post("/v1/events", json={"events": [event]})
        said = [shop.post("/v1/feedback", json={"answer": answer["id"], "item": "A002"}).json() for _ in range(2)]
        assert said == [{"stored": True}, {"stored": False}]
    rows = {row["id"]: row for row in log_of(tmp_path)}
    assert rows.keys() == {one["id"] for one in [*anonymous, answer]}
    assert rows[answer["id"]]["items"] == ["A001", "A002"]
    assert rows[answer["id"]]["user"] is not None
    assert (
        rows[anonymous[1]["id"]] | {"user": None, "variant": "main", "propensities": None} == rows[anonymous[1]["id"]]
    )
    with serving(tmp_path, log_answers=0.0) as shop:
        shown(shop, "u")
    assert len(log_of(tmp_path)) == 3


def test_two_models_side_by_side(tmp_path: Path) -> None:
    users = [f"user {i}" for i in range(200)]
    found = []
    for share in (0.3, 0.3, 0.6):
        with serving(tmp_path, challenger=Path("x"), challenger_share=share) as shop:
            answer = shop.post("/v1/users/recommendations", json={"users": users, "k": 1}).json()
            for variant, one in zip(answer["variants"], answer["recommendations"], strict=True):
                assert one["items"][0]["score"] == (100 if variant == "challenger" else 0)
            found.append(
                {user for user, variant in zip(users, answer["variants"], strict=True) if variant == "challenger"}
            )
    assert found[0] == found[1] < found[2]  # the same after a restart; a larger share moves nobody back
    assert 40 < len(found[0]) < 80
    assert 95 < len(found[2]) < 145


def test_a_shadow_answers_for_the_log_only_and_follows_the_catalogue(tmp_path: Path) -> None:
    with serving(tmp_path, shadow=Path("x")) as shop:
        assert (
            shop.post("/v1/items", json={"items": [{"id": "N", "title": "new"}]}, headers=WITH_TOKEN).status_code == 201
        )
        own = [
            shop.post("/v1/recommend", json={"histories": [[]], "k": 30}).json()["recommendations"][0] for _ in range(5)
        ]
        metrics = shop.get("/v1/metrics").text
    assert all(one["items"][0]["score"] == 0 for one in own)
    rows = [row for row in log_of(tmp_path) if row["variant"] == "shadow"]
    assert 1 <= len(rows) <= 5
    assert {row["id"] for row in rows} <= {one["id"] for one in own}
    assert all("N" in row["items"] for row in rows)
    assert "setrec_shadow_answers_total" in metrics


def test_exploration_exchanges_one_item_and_says_how_likely(tmp_path: Path) -> None:
    with serving(tmp_path, explore=0.5) as shop:
        lists = [shown(shop, f"u{i}", k=3) for i in range(80)]
    best = ["A000", "A001", "A002"]
    changed = [one for one in lists if one != best]
    assert 15 < len(changed) < 50  # 80 * .5 * 3/4 = 30
    assert all(sum(a != b for a, b in zip(one, best, strict=True)) == 1 for one in changed)
    for row in log_of(tmp_path):
        for item, p in zip(row["items"], row["propensities"], strict=True):
            assert p == pytest.approx(1 - 0.5 * 3 / (3 * 4) if item in best else 0.5 / 4)


def test_a_full_log_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("setrec.serve.answer_log.WAITING", 2)
    with serving(tmp_path) as shop:
        shop.post("/v1/recommend", json={"histories": [[]] * 30})
        assert 'setrec_logged_answers_total{outcome="dropped"} 28.0' in shop.get("/v1/metrics").text
    assert len(log_of(tmp_path)) == 2


def test_a_link_goes_on_with_the_users_of_its_checkpoint(tmp_path: Path) -> None:
    own, link = tmp_path / "runs" / "a.ckpt", tmp_path / "current.ckpt"
    own.parent.mkdir()
    own.touch()
    link.symlink_to(own)
    assert _database_beside(link) == tmp_path / "current.ckpt.shop.db"
    assert not _database_beside(link).exists()
    store = EventStore(_database_beside(own))
    store.add([Event("u", "a", 1)])
    by_link = EventStore(_database_beside(link))  # while the other is open, with a log that is not empty
    by_link.add([Event("u", "b", 2)])
    assert store.history("u") == by_link.history("u") == ["a", "b"]
    for one in (store, by_link):
        one.close()
    link.unlink()
    link.symlink_to(tmp_path / "b.ckpt")
    (tmp_path / "b.ckpt").touch()
    assert EventStore(_database_beside(link)).history("u") == ["a", "b"]
