"""The HTTP interface around a fake model: bodies, limits, the token, added items, takeovers, batches."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from setrec.errors import ConfigError, DataError
from setrec.serve import messages
from setrec.serve.answering import Answered, answer_batch
from setrec.serve.app import create_app
from setrec.serve.batching import Batcher, BusyError
from setrec.serve.journal import Journal
from setrec.serve.models import Models
from tests.serve_fake import FakeRecommender, write_checkpoint

TOKEN = "s3cret"
HOLDER = {"authorization": f"Bearer {TOKEN}"}
Serve = Callable[..., TestClient]


def models_of(folder: Path) -> Models:
    """A served fake checkpoint, and its journal, in a folder."""
    path = folder / "model.ckpt"
    if not path.exists():
        write_checkpoint(path)
    return Models(path, FakeRecommender.load, Journal(folder / "items.jsonl"), folder)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return models_of(tmp_path)


@pytest.fixture
def client(models: Models) -> Any:
    with TestClient(create_app(models, TOKEN, max_wait=0.0), raise_server_exceptions=False) as client:
        yield client


def ids(answer: Any, row: int = 0) -> list[str]:
    return [item["id"] for item in answer.json()["recommendations"][row]["items"]]


# --------------------------------------------------------------------------------------------------------- recommending
def test_recommend_answers_each_history_in_order(client: TestClient) -> None:
    answer = client.post("/recommend", json={"histories": [["A000"], [], ["A001", "nowhere"]], "k": 2})
    assert answer.status_code == 200
    assert [ids(answer, row) for row in range(3)] == [["A001", "A002"], ["A000", "A001"], ["A000", "A002"]]
    assert answer.json()["recommendations"][2]["unknown"] == ["nowhere"]
    assert answer.json()["generation"] == 0
    first = answer.json()["recommendations"][1]["items"][0]
    assert first == {"id": "A000", "title": "toy train 0", "score": 0.0, "warm": True, "why": None}


def test_options_reach_the_model(client: TestClient) -> None:
    seen = client.post("/recommend", json={"histories": [["A000"]], "k": 1, "exclude_seen": False})
    assert ids(seen) == ["A000"]
    some = client.post("/recommend", json={"histories": [[]], "candidates": ["A007", "A003"]})
    assert ids(some) == ["A003", "A007"]
    why = client.post("/recommend", json={"histories": [["A005"]], "explain": True, "k": 3}).json()
    for item in why["recommendations"][0]["items"]:
        assert sum(item["why"]["parts"].values()) == pytest.approx(item["score"])
        assert item["why"]["nearest_text"] == [{"id": "A005", "cosine": 0.5}]


def test_an_unknown_id_can_be_refused_by_name(client: TestClient) -> None:
    answer = client.post("/recommend", json={"histories": [["A000"], ["nowhere"]], "unknown": "refuse"})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("histories[1][0]: 'nowhere' is not in the catalogue")
    body = {"histories": [[]], "candidates": ["A000", "gone"], "unknown": "refuse"}
    assert client.post("/recommend", json=body).json()["error"].startswith("candidates[1]: 'gone'")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "histories: Field required"),
        ({"histories": []}, "histories: List should have at least 1 item"),
        ({"histories": [["A"], ["B", 7]]}, "histories[1][1]: Input should be a valid string (given: 7)"),
        ({"histories": [[""]]}, "histories[0][0]: String should have at least 1 character"),
        ({"histories": "A000"}, "histories: Input should be a valid list (given: 'A000')"),
        ({"histories": [[]], "k": 0}, "k: Input should be greater than or equal to 1 (given: 0)"),
        ({"histories": [[]], "k": "10"}, "k: Input should be a valid integer (given: '10')"),
        ({"histories": [[]], "k": messages.MAX_K + 1}, "k: Input should be less than or equal to 500"),
        ({"histories": [[]], "beta": 1.5}, "beta: Input should be less than or equal to 1"),
        ({"histories": [[]], "unknown": "guess"}, "unknown: Input should be 'skip' or 'refuse'"),
        ({"histories": [[]], "top": 3}, "top: Extra inputs are not permitted"),
        ({"histories": [[]] * (messages.MAX_HISTORIES + 1)}, "histories: List should have at most 512 items"),
        ({"histories": [["A"] * (messages.MAX_HISTORY + 1)]}, "histories[0]: List should have at most 2000 items"),
        ({"histories": [[]] * 500, "k": 100}, "500 histories x k 100 are 50000 answers; at most 20000"),
        ({"histories": [[]] * 50, "k": 50, "explain": True}, "at most 2000 with explain"),
        ({"histories": [[]], "candidates": []}, "candidates: List should have at least 1 item"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_a_bad_body_is_told_what_and_where(client: TestClient, body: Any, said: str) -> None:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{histories: 1}", 422, "not JSON"),
        (b"", 422, "The body is missing"),
        (b"\xff\xfe\x00", 400, "send JSON in UTF-8"),
        (b"[" * 100_000, 400, "can't be read"),
        (b'{"histories": [["\\ud800"]]}', 422, "histories[0][0]"),
        (b'{"histories": [[]], "beta": NaN}', 422, "beta"),
        (b'{"histories": [[]], "k": ' + b"1" * 5000 + b"}", 400, "can't be read"),
    ],
    ids=["no json", "empty", "no text", "deep", "half a character", "no number", "long number"],
)
def test_garbage_is_refused_with_a_sentence(client: TestClient, content: bytes, status: int, said: str) -> None:
    answer = client.post("/recommend", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert said in answer.json()["error"]


def test_a_body_beyond_the_limit_is_not_read(client: TestClient) -> None:
    def endless() -> Any:
        for _ in range(messages.MAX_BODY // 65_536 + 2):
            yield b" " * 65_536

    answer = client.post("/recommend", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json() == {"error": f"The body is larger than {messages.MAX_BODY} bytes."}


def test_strange_paths_and_methods_get_the_same_form(client: TestClient) -> None:
    assert client.get("/nothing").json() == {"error": "There is nothing at '/nothing'; see /openapi.json."}
    assert client.put("/recommend").status_code == 405
    assert "PUT is not allowed" in client.put("/recommend").json()["error"]


def test_a_fault_of_the_model_is_a_500_with_a_sentence(client: TestClient, models: Models) -> None:
    models.served.recommender.fault = "recommend"
    answer = client.post("/recommend", json={"histories": [[]]})
    assert answer.status_code == 500
    assert answer.json() == {"error": "The server failed at this request; its log says how."}
    assert client.get("/health").status_code == 200


# ------------------------------------------------------------------------------------------------------------ catalogue
def test_search_by_title(client: TestClient) -> None:
    found = client.get("/items", params={"search": "TRAIN 1", "limit": 3}).json()["items"]
    assert [item["id"] for item in found] == ["A001", "A010", "A011"]
    assert found[2] == {"id": "A011", "title": "toy train 11", "warm": False}
    assert client.get("/items", params={"limit": 0}).status_code == 422
    assert "limit" in client.get("/items", params={"limit": "many"}).json()["error"]


def test_items_are_added_recommended_and_removed(client: TestClient) -> None:
    new = {"items": [{"id": "N1", "title": "a new crane"}, {"id": "N2", "title": "another", "text": "a long text"}]}
    answer = client.post("/items", json=new, headers=HOLDER)
    assert (answer.status_code, answer.json()) == (201, {"ids": ["N1", "N2"]})
    assert ids(client.post("/recommend", json={"histories": [[]], "candidates": ["N1"]})) == ["N1"]
    again = client.post("/items", json=new, headers=HOLDER)
    assert again.status_code == 422
    assert "N1" in again.json()["error"]
    gone = client.delete("/items", params={"id": ["N1", "A002"]}, headers=HOLDER)
    assert (gone.status_code, gone.json()) == (200, {"ids": ["N1", "A002"]})
    assert ids(client.post("/recommend", json={"histories": [[]], "candidates": ["N1", "A002", "N2"]})) == ["N2"]
    missing = client.delete("/items", params={"id": ["A001", "N1"]}, headers=HOLDER)
    assert missing.status_code == 404
    assert "'N1' is not in the catalogue" in missing.json()["error"]
    assert ids(client.post("/recommend", json={"histories": [[]], "candidates": ["A001"]})) == ["A001"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/items", {"items": [{"id": "N", "title": "t"}]}),
        ("DELETE", "/items?id=A001", None),
        ("POST", "/model/reload", {}),
    ],
)
def test_changes_need_the_token(client: TestClient, models: Models, method: str, path: str, body: Any) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"authorization": ""}):
        answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code == 401
        assert "SETREC_TOKEN" in answer.json()["error"]
        assert answer.headers["www-authenticate"] == "Bearer"
    strange = client.request(method, path, json=body, headers={"authorization": b"Bearer \xe9\xff"})
    assert strange.status_code == 401
    assert models.served.generation == 0
    assert "A001" in models.served.recommender
    assert "N" not in models.served.recommender


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nothing_can_be_changed(models: Models, token: str | None) -> None:
    with TestClient(create_app(models, token)) as client:
        for headers in ({}, HOLDER, {"authorization": "Bearer "}):
            answer = client.post("/items", json={"items": [{"id": "N", "title": "t"}]}, headers=headers)
            assert answer.status_code == 403
            assert "SETREC_TOKEN" in answer.json()["error"]
        assert client.post("/recommend", json={"histories": [[]]}).status_code == 200


def test_changes_survive_a_restart(tmp_path: Path) -> None:
    models = models_of(tmp_path)
    models.add([{"id": "N1", "title": "née\n\u2028", "text": None}, {"id": "N2", "title": "two", "text": "words"}])
    models.remove(["N2", "A000"])
    models.journal.close()
    again = models_of(tmp_path)
    recommender = again.served.recommender
    assert recommender.titles["N1"] == "née\n\u2028"
    assert "N2" not in recommender
    assert "A000" not in recommender
    again.add([{"id": "A000", "title": "another one"}])  # removed, then added anew
    again.journal.close()
    assert models_of(tmp_path).served.recommender.titles["A000"] == "another one"


def test_fields_and_vectors_reach_the_encoder_also_after_a_restart(tmp_path: Path) -> None:
    models = models_of(tmp_path)
    given = [
        {"id": "N1", "title": "one", "fields": {"brand": "b", "id": "other"}},
        {"id": "N2", "title": "two", "vector": [1.0, 2.5]},
    ]
    with TestClient(create_app(models, TOKEN)) as client:
        mixed = client.post("/items", json={"items": given}, headers=HOLDER)
        assert mixed.status_code == 422
        for item in given:
            assert client.post("/items", json={"items": [item]}, headers=HOLDER).status_code == 201
        bad = client.post("/items", json={"items": [{"id": "N3", "title": "t", "vector": ["x"]}]}, headers=HOLDER)
        assert "items[0].vector[0]" in bad.json()["error"]
        spaces = client.post("/items", json={"items": [{"id": "  ", "title": "t"}]}, headers=HOLDER)
        assert "items[0].id" in spaces.json()["error"]
    models.journal.close()
    for recommender in (models.served.recommender, models_of(tmp_path).served.recommender):
        assert recommender.added[-2:] == [
            {"id": "N1", "title": "one", "brand": "b"},
            {"id": "N2", "title": "two", "vector": [1.0, 2.5]},
        ]


def test_the_last_item_stays(client: TestClient, models: Models) -> None:
    answer = client.delete("/items", params={"id": [f"A{i:03d}" for i in range(20)]}, headers=HOLDER)
    assert answer.status_code == 422
    assert "nothing would be left" in answer.json()["error"]
    assert not models.journal.path.exists()


def test_a_line_half_written_is_dropped_and_a_strange_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"add": [{"id": "N1", "title": "one"}]}\n{"add": [{"id": "N2", "ti')
    journal = Journal(path)
    assert list(journal.added) == ["N1"]
    journal.add([{"id": "N3", "title": "three"}])
    journal.close()
    whole = Journal(path)
    assert list(whole.added) == ["N1", "N3"]
    whole.close()
    path.write_text('{"add": []}\nnonsense\n')
    with pytest.raises(DataError, match="line 2"):
        Journal(path)


def test_two_servers_do_not_share_a_journal(tmp_path: Path) -> None:
    first = Journal(tmp_path / "items.jsonl")
    with pytest.raises(ConfigError, match="another server"):
        Journal(tmp_path / "items.jsonl")
    Journal(tmp_path / "items.jsonl", writable=False)  # to read it is allowed
    first.close()


def test_a_change_that_cannot_be_kept_is_not_made(
    client: TestClient, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    client.post("/items", json={"items": [{"id": "N0", "title": "t"}]}, headers=HOLDER)
    before = models.journal.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("setrec.serve.journal.os.fsync", full)
        answer = client.post("/items", json={"items": [{"id": "N", "title": "t"}]}, headers=HOLDER)
        assert answer.status_code == 507
        assert "No space left on device" in answer.json()["error"]
        assert client.delete("/items", params={"id": "A001"}, headers=HOLDER).status_code == 507
    assert "N" not in models.served.recommender
    assert "A001" in models.served.recommender
    assert models.journal.path.read_bytes() == before


# ------------------------------------------------------------------------------------------------------------- takeover
def test_a_takeover_keeps_added_items_and_drops_nothing(tmp_path: Path, models: Models) -> None:
    models.served.recommender.delay = 0.01
    new = write_checkpoint(tmp_path / "new.ckpt", n_items=30, shift=5.0, delay=0.01)
    statuses: list[int] = []
    scores: set[tuple[int, float]] = set()
    stop = threading.Event()
    with TestClient(create_app(models, TOKEN)) as client:
        client.post(
            "/items", json={"items": [{"id": "N1", "title": "new"}, {"id": "A025", "title": "t"}]}, headers=HOLDER
        )

        def ask() -> None:
            while not stop.is_set():
                answer = client.post("/recommend", json={"histories": [[]], "k": 1})
                statuses.append(answer.status_code)
                scores.add((answer.json()["generation"], answer.json()["recommendations"][0]["items"][0]["score"]))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            answer = client.post("/model/reload", json={"path": str(new)}, headers=HOLDER)
            assert answer.status_code == 200
        stop.set()
        for thread in threads:
            thread.join()
        assert answer.json()["generation"] == 3
        assert answer.json()["checkpoint"] == str(new)
        assert answer.json()["info"]["n_items"] == 31  # A025 has been trained on meanwhile
        assert 'setrec_takeovers_total{outcome="done"} 3.0' in client.get("/metrics").text
    assert set(statuses) == {200}
    assert scores <= {(0, 0.0), (1, 5.0), (2, 5.0), (3, 5.0)}  # an answer names the model that gave it
    assert len(scores) > 1


@pytest.mark.parametrize(
    "content", ["", "{}", "not a checkpoint", '{"n_items": 0, "shift": 0, "delay": 0, "fault": ""}']
)
def test_a_broken_checkpoint_is_refused(client: TestClient, tmp_path: Path, content: str) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_text(content)
    answer = client.post("/model/reload", json={"path": str(broken)}, headers=HOLDER)
    assert answer.status_code == 422
    assert "broken.ckpt" in answer.json()["error"]
    assert client.get("/model").json()["generation"] == 0
    assert client.post("/recommend", json={"histories": [[]]}).status_code == 200
    assert 'setrec_takeovers_total{outcome="refused"} 1.0' in client.get("/metrics").text


def test_scores_that_are_no_numbers_are_refused(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "diverged.ckpt"
    path.write_text('{"n_items": 5, "shift": NaN, "delay": 0, "fault": ""}')
    answer = client.post("/model/reload", json={"path": str(path)}, headers=HOLDER)
    assert answer.status_code == 422
    assert "no numbers" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.ckpt", "nowhere.ckpt", "a\0b", "a" * 3000])
def test_only_checkpoints_of_the_folder_can_be_named(
    client: TestClient, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    answer = client.post("/model/reload", json={"path": path}, headers=HOLDER)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("path: ")


def test_one_takeover_at_a_time(client: TestClient, models: Models) -> None:
    with models._taking_over:
        assert client.post("/model/reload", json={}, headers=HOLDER).status_code == 409
    assert client.post("/model/reload", json={}, headers=HOLDER).status_code == 200


def test_a_watched_checkpoint_is_taken_over_when_it_changes(models: Models) -> None:
    path = models.served.path
    with TestClient(create_app(models, None, watch_every=0.01)) as client:

        def wait_for(line: str) -> None:
            for _ in range(500):
                if line in client.get("/metrics").text:
                    return
                threading.Event().wait(0.01)
            pytest.fail(f"{line} didn't come")

        write_checkpoint(path.with_suffix(".part"), shift=7.0).replace(path)
        wait_for('setrec_takeovers_total{outcome="done"} 1.0')
        answer = client.post("/recommend", json={"histories": [[]], "k": 1}).json()
        assert answer["recommendations"][0]["items"][0]["score"] == 7.0
        path.write_text("garbage")
        wait_for('setrec_takeovers_total{outcome="refused"} 1.0')
        assert client.post("/recommend", json={"histories": [[]], "k": 1}).json()["generation"] == 1
        threading.Event().wait(0.1)  # refused once, not at every look
        assert 'setrec_takeovers_total{outcome="refused"} 1.0' in client.get("/metrics").text


# --------------------------------------------------------------------------------------------------------------- batches
def test_concurrent_requests_share_calls_and_keep_their_own_answers(models: Models) -> None:
    fake = models.served.recommender
    fake.calls.clear()
    fake.threads.clear()
    fake.delay = 0.05
    app = create_app(models, None, max_batch=64, max_wait=0.02)
    answers: dict[int, Any] = {}
    with TestClient(app) as client:

        def ask(n: int) -> None:
            history = [f"A{i:03d}" for i in range(n)]
            body: dict[str, Any] = {"histories": [history], "k": 1 + n % 3, "unknown": "refuse"}
            if n == 5:
                body["histories"] = [["nowhere"]]
            answers[n] = client.post("/recommend", json=body)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        shared = client.get("/metrics").text
    assert len(fake.threads) == 1
    assert max(fake.calls) > 1
    assert "setrec_batch_histories_count" in shared
    for n, answer in answers.items():
        if n == 5:  # its neighbours don't suffer
            assert answer.status_code == 422
            assert "histories[0][0]" in answer.json()["error"]
        else:
            assert ids(answer) == [f"A{i:03d}" for i in range(n, n + 1 + n % 3)]


def test_a_call_that_fails_is_repeated_for_each_request_alone(models: Models) -> None:
    def body(beta: float, own: str) -> messages.RecommendBody:
        return messages.RecommendBody(histories=[[own]], k=1, beta=beta, unknown="refuse")

    first, broken, third, other = answer_batch(
        models.served, [body(0.5, "A001"), body(0.5, "nowhere"), body(0.5, "A002"), body(0.6, "A003")]
    )
    assert isinstance(broken, DataError)
    assert all(isinstance(one, Answered) for one in (first, third, other))


def test_a_large_request_lets_others_in_between(models: Models) -> None:
    fake = models.served.recommender
    fake.calls.clear()
    fake.delay = 0.02
    order: list[str] = []
    with TestClient(create_app(models, None, max_batch=4, max_wait=0)) as client:

        def ask(name: str, n: int) -> None:
            answer = client.post("/recommend", json={"histories": [[f"A{i % 20:03d}"] for i in range(n)], "k": 1})
            order.append(name)
            assert [ids(answer, row) for row in range(n)] == [["A001" if i % 20 == 0 else "A000"] for i in range(n)]

        large = threading.Thread(target=ask, args=("large", 200))
        large.start()
        while len(fake.calls) < 2:  # it is under way
            threading.Event().wait(0.001)
        ask("small", 1)
        large.join()
    assert order == ["small", "large"]
    assert max(fake.calls) <= 4


def test_a_takeover_in_the_middle_of_a_large_request_gives_it_one_model(tmp_path: Path, models: Models) -> None:
    models.served.recommender.delay = 0.02
    new = write_checkpoint(tmp_path / "new.ckpt", shift=5.0)
    answers: list[Any] = []
    old = models.served.recommender
    with TestClient(create_app(models, TOKEN, max_batch=4, max_wait=0)) as client:
        body = {"histories": [[]] * 200, "k": 1}
        large = threading.Thread(target=lambda: answers.append(client.post("/recommend", json=body).json()))
        large.start()
        while len(old.calls) < 5:
            threading.Event().wait(0.001)
        client.post("/model/reload", json={"path": str(new)}, headers=HOLDER)
        large.join()
    assert answers[0]["generation"] == 1
    assert [one["items"][0]["score"] for one in answers[0]["recommendations"]] == [5.0] * 200


def test_batches_are_bounded_and_nothing_is_lost_or_split() -> None:
    batches: list[list[int]] = []

    def answer(requests: list[int]) -> list[int]:
        batches.append(list(requests))
        return [request * 10 for request in requests]

    async def run() -> list[int]:
        batcher: Batcher[int, int] = Batcher(answer, max_batch=4, max_wait=0.01)
        batcher.start()
        sizes = [1, 2, 2, 1, 9, 1, 1]
        answers = await asyncio.gather(*(batcher.submit(i, size) for i, size in enumerate(sizes)))
        await batcher.close()
        return list(answers)

    assert asyncio.run(run()) == [i * 10 for i in range(7)]
    assert batches == [[0, 1], [2, 3], [4], [5, 6]]


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(lambda requests: list(requests), max_batch=2, max_wait=60)
        batcher.start()
        waiting = [asyncio.ensure_future(batcher.submit(i)) for i in range(1)]
        await asyncio.sleep(0)
        await batcher.close()
        assert [await one for one in waiting] == [0]
        with pytest.raises(BusyError):
            await batcher.submit(9)

    asyncio.run(asyncio.wait_for(run(), 10))


def test_too_many_waiting_are_refused_at_once_and_clients_that_left_are_skipped() -> None:
    release, batches = threading.Event(), []

    def answer(requests: list[int]) -> list[int]:
        batches.append(list(requests))
        release.wait(10)
        return list(requests)

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(answer, max_batch=1, max_wait=0, max_waiting=2)
        batcher.start()
        first = asyncio.ensure_future(batcher.submit(0))
        while not batches:
            await asyncio.sleep(0.001)
        leaving, staying = asyncio.ensure_future(batcher.submit(1)), asyncio.ensure_future(batcher.submit(2))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await batcher.submit(3)
        leaving.cancel()
        release.set()
        assert (await first, await staying) == (0, 2)
        await batcher.close()
        assert batches == [[0], [2]]

    asyncio.run(run())


def test_a_full_server_says_so(models: Models) -> None:
    models.served.recommender.delay = 0.3
    statuses: list[Any] = []
    with TestClient(create_app(models, None, max_batch=1, max_wait=0, max_waiting=1)) as client:
        threads = [
            threading.Thread(target=lambda: statuses.append(client.post("/recommend", json={"histories": [[]]})))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    refused = [answer for answer in statuses if answer.status_code == 503]
    assert {answer.status_code for answer in statuses} == {200, 503}
    assert refused[0].headers["retry-after"] == "1"
    assert "try again" in refused[0].json()["error"]


# -------------------------------------------------------------------------------------------------------------- the rest
def test_model_health_and_metrics(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/health").json() == {
        "status": "ok", "checkpoint": str(tmp_path / "model.ckpt"), "generation": 0
    }  # fmt: skip
    model = client.get("/model").json()
    assert model["info"]["n_items"] == 20
    assert model["limits"]["k"] == messages.MAX_K
    for path in ("/wp-admin", "/%00", "/a/b/c"):
        client.get(path)
    client.request("BREW", "/recommend")
    text = client.get("/metrics").text
    assert 'setrec_requests_total{method="GET",route="/health",status="200"} 1.0' in text
    assert 'setrec_requests_total{method="GET",route="none",status="404"} 3.0' in text
    assert 'method="other"' in text
    assert "BREW" not in text
    assert "wp-admin" not in text
    assert "setrec_items 20.0" in text


def test_the_document_describes_what_is_there(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {"/recommend", "/items", "/model/reload", "/model", "/health", "/metrics"}
    histories = document["components"]["schemas"]["RecommendBody"]["properties"]["histories"]
    assert histories["maxItems"] == messages.MAX_HISTORIES
    assert "HTTPValidationError" not in json.dumps(document["paths"])
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere
