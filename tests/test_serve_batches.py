"""Requests that share calls of a fake model, large ones in pieces, and the queue in front of them."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from setrec.errors import DataError
from setrec.serve import messages
from setrec.serve.app import create_app
from setrec.serve.batching import Batcher, BusyError
from setrec.serve.model_calls import RequestResult, answer_batch
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from tests.serve_fake import TOKEN, WITH_TOKEN, ids, write_checkpoint


def test_concurrent_requests_share_calls_and_keep_their_own_answers(holder: ModelHolder) -> None:
    fake = holder.current.recommender
    fake.calls.clear()
    fake.threads.clear()
    fake.delay = 0.05
    app = create_app(holder, None, ServeOptions(max_batch=64, max_wait_ms=20))
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


def test_a_call_that_fails_is_repeated_for_each_request_alone(holder: ModelHolder) -> None:
    def body(beta: float, own: str) -> messages.RecommendBody:
        return messages.RecommendBody(histories=[[own]], k=1, beta=beta, unknown="refuse")

    first, broken, third, other = answer_batch(
        holder.current, [body(0.5, "A001"), body(0.5, "nowhere"), body(0.5, "A002"), body(0.6, "A003")]
    )
    assert isinstance(broken, DataError)
    assert all(isinstance(one, RequestResult) for one in (first, third, other))


def test_a_large_request_lets_others_in_between(holder: ModelHolder) -> None:
    fake = holder.current.recommender
    fake.calls.clear()
    fake.delay = 0.02
    order: list[str] = []
    with TestClient(create_app(holder, None, ServeOptions(max_batch=4, max_wait_ms=0))) as client:

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


def test_a_takeover_in_the_middle_of_a_large_request_gives_it_one_model(tmp_path: Path, holder: ModelHolder) -> None:
    holder.current.recommender.delay = 0.02
    new = write_checkpoint(tmp_path / "new.ckpt", shift=5.0)
    answers: list[Any] = []
    old = holder.current.recommender
    with TestClient(create_app(holder, TOKEN, ServeOptions(max_batch=4, max_wait_ms=0))) as client:
        body = {"histories": [[]] * 200, "k": 1}
        large = threading.Thread(target=lambda: answers.append(client.post("/recommend", json=body).json()))
        large.start()
        while len(old.calls) < 5:
            threading.Event().wait(0.001)
        client.post("/model/reload", json={"path": str(new)}, headers=WITH_TOKEN)
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


def test_a_full_server_says_so(holder: ModelHolder) -> None:
    holder.current.recommender.delay = 0.3
    statuses: list[Any] = []
    with TestClient(create_app(holder, None, ServeOptions(max_batch=1, max_wait_ms=0, max_waiting=1))) as client:
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
