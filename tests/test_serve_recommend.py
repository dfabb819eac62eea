"""POST /recommend with a fake model: answers, options, wrong bodies, limits."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from setrec.serve import messages
from setrec.serve.model_holder import ModelHolder
from tests.serve_fake import ids


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
        (b"[" * 100_000, 400, "cannot be read"),
        (b'{"histories": [["\\ud800"]]}', 422, "histories[0][0]"),
        (b'{"histories": [[]], "beta": NaN}', 422, "beta"),
        (b'{"histories": [[]], "k": ' + b"1" * 5000 + b"}", 400, "cannot be read"),
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


def test_unknown_paths_and_methods_get_the_same_form(client: TestClient) -> None:
    assert client.get("/nothing").json() == {"error": "There is nothing at '/nothing'; see /openapi.json."}
    assert client.put("/recommend").status_code == 405
    assert "PUT is not allowed" in client.put("/recommend").json()["error"]


def test_a_fault_of_the_model_is_a_500_with_a_sentence(client: TestClient, holder: ModelHolder) -> None:
    holder.current.recommender.fault = "recommend"
    answer = client.post("/recommend", json={"histories": [[]]})
    assert answer.status_code == 500
    assert answer.json() == {"error": "The server failed at this request; its log says why."}
    assert client.get("/health").status_code == 503
    holder.current.recommender.fault = ""
    assert client.get("/health").status_code == 200
