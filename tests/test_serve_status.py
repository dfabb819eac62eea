"""What a server with a fake model says about itself: /model, /health, /metrics, /openapi.json."""

import json
from pathlib import Path

from fastapi.testclient import TestClient

from setrec.serve import messages


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


def test_no_answer_is_taken_for_another_kind(client: TestClient) -> None:
    """A browser must not guess what an answer is: pages, JSON, figures and errors alike."""
    for path in ("/", "/health", "/metrics", "/openapi.json", "/nowhere"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff"
    assert client.post("/recommend", json={}).headers["x-content-type-options"] == "nosniff"
