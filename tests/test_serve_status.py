"""What a server with a fake model says about itself: /model, /health, /metrics, /openapi.json."""

import json
import re
from pathlib import Path

from fastapi.testclient import TestClient

from setrec.inference.journal import Journal
from setrec.recommend import Recommender
from setrec.serve import messages
from setrec.serve.app import create_app
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from tests.conftest import TrainedRun


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


def test_answers_and_metrics_tell_what_the_prefix_cache_kept(tiny_run: TrainedRun, tmp_path: Path) -> None:
    def load(path: Path) -> Recommender:
        return Recommender.load(path, prefix_cache=1)

    holder = ModelHolder(tiny_run.checkpoint, load, Journal(tmp_path / "items.jsonl"), tmp_path)
    with TestClient(create_app(holder, None, ServeOptions()), base_url="http://localhost") as client:
        ids = [item["id"] for item in client.get("/items").json()["items"]]
        for length, kept in ((4, 0), (5, 4), (5, 5)):
            answer = client.post("/recommend", json={"histories": [ids[:length]]})
            assert f'prefix_cache;desc="{kept} of {length} items"' in answer.headers["server-timing"]
        text = client.get("/metrics").text
    assert 'setrec_history_items_total{how="kept"} 9.0' in text
    assert 'setrec_history_items_total{how="read"} 5.0' in text
    assert re.search(r"setrec_prefix_cache_bytes [1-9]", text)


def test_the_document_describes_what_is_there(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    paths = {"recommend", "items", "model/reload", "model", "health", "health/live", "health/ready", "metrics"}
    paths |= {"popular", "latest", "changes", "items/{id}", "items/{id}/similar"}
    paths |= {"events", "users/{id}", "users/{id}/recommendations", "users/recommendations", "feedback"}
    assert set(document["paths"]) == {f"/v1/{path}" for path in paths}
    histories = document["components"]["schemas"]["RecommendBody"]["properties"]["histories"]
    assert histories["maxItems"] == messages.MAX_HISTORIES
    assert "HTTPValidationError" not in json.dumps(document["paths"])
    assert client.get("/docs").status_code == 404  # it would load scripts from elsewhere


def test_no_answer_is_taken_for_another_kind(client: TestClient) -> None:
    """A browser must not guess what an answer is: pages, JSON, figures and errors alike."""
    for path in ("/", "/health", "/metrics", "/openapi.json", "/nowhere"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    assert client.post("/recommend", json={}).headers["x-content-type-options"] == "nosniff"


def test_health_tells_a_sick_model(client: TestClient, holder: ModelHolder) -> None:
    assert client.get("/health").status_code == 200
    holder.current.recommender.fault = "sick"
    answer = client.post("/recommend", json={"histories": [[]]})
    assert answer.status_code == 503
    assert "not finite" in answer.json()["error"]
    for _ in range(2):
        answer = client.get("/health")
        assert answer.status_code == 503
        assert answer.json() == {"error": "The model in service cannot answer: the scores are not finite."}
    holder.current.recommender.fault = ""
    assert client.get("/health").status_code == 200


def test_health_asks_the_model_where_nobody_else_does(client: TestClient, holder: ModelHolder) -> None:
    client.post("/recommend", json={"histories": [[]]})
    calls = len(holder.current.recommender.calls)
    client.get("/health")
    assert len(holder.current.recommender.calls) == calls  # it has just answered
    holder.answered -= 60
    holder.current.recommender.fault = "sick"
    assert client.get("/health").status_code == 503


def test_no_answer_is_taken_for_another_kind_not_even_a_fault(client: TestClient, holder: ModelHolder) -> None:
    holder.current.recommender.fault = "recommend"
    for answer in (client.post("/recommend", json={"histories": [[]]}), client.get("/health"), client.head("/")):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_head_is_get_without_the_body(client: TestClient) -> None:
    for path in (
        "/",
        "/health",
        "/model",
        "/items?search=train",
        "/metrics",
        "/openapi.json",
        "/nowhere",
        "/recommend",
    ):
        head, whole = client.head(path), client.get(path)
        assert head.status_code == whole.status_code
        assert head.content == b""
        assert head.headers["content-type"] == whole.headers["content-type"]
        assert int(head.headers["content-length"]) > 0
    assert 'method="HEAD",route="/health",status="200"' in client.get("/metrics").text
