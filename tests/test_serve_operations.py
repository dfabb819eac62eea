"""Health of life and readiness, request ids, JSON logs, traces, the token in a file, the files of docs/deploy."""

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from setrec.errors import ConfigError
from setrec.serve.app import create_app
from setrec.serve.guard import token_of_environment
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from setrec.serve.request_ids import JsonLines, request_id
from setrec.serve.tracing import start_tracing

DEPLOY = Path(__file__).parents[1] / "docs/deploy"


def test_life_is_not_readiness(client: TestClient, holder: ModelHolder) -> None:
    for path in ("/health/live", "/health/ready", "/v1/health/live", "/v1/health/ready"):
        assert client.get(path).json() == {"status": "ok"}
    holder.answered -= 60
    holder.current.recommender.fault = "recommend"
    calls = len(holder.current.recommender.calls)
    assert client.get("/health/live").status_code == 200
    assert len(holder.current.recommender.calls) == calls
    assert client.get("/health/ready").status_code == 503
    holder.current.recommender.fault = ""
    service = client.app.state.service
    service.draining = True
    assert client.get("/health/ready").json() == {"error": "The server is ending."}
    assert client.get("/health/live").status_code == 200
    service.draining = False

    async def database() -> str:
        return "The database cannot be reached."

    service.checks.append(database)
    assert client.get("/health/ready").json() == {"error": "The database cannot be reached."}


def test_every_answer_has_a_request_id(client: TestClient, holder: ModelHolder) -> None:
    assert client.get("/health/live", headers={"x-request-id": "a-b_c.1:2"}).headers["x-request-id"] == "a-b_c.1:2"
    for wrong in ("a b", "x" * 65, "", 'a"', "a/b"):
        given = client.get("/nowhere", headers={"x-request-id": wrong}).headers["x-request-id"]
        assert len(given) == 32
        assert given != wrong
    holder.current.recommender.fault = "recommend"
    answer = client.post("/recommend", json={"histories": [[]]}, headers={"x-request-id": "mine"})
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "mine"


def test_a_log_line_is_one_object() -> None:
    request_id.set("r1")
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "two\nlines %s", ("é",), None)
    text = JsonLines().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["message"], line["request_id"]) == ("error", "two\nlines é", "r1")
    assert line["time"].endswith("+00:00")
    request_id.set("")


def test_a_request_has_spans_without_its_body_and_path(holder: ModelHolder) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    with TestClient(create_app(holder, None, ServeOptions(), provider=provider)) as client:
        client.post("/v1/recommend", json={"histories": [["SECRET"]]}, headers={"traceparent": parent})
        client.get("/SECRET?user=SECRET")
    wait, model, request, nowhere = spans.get_finished_spans()
    assert [wait.name, model.name, nowhere.name] == ["wait for the batch", "model", "GET none"]
    assert request.name in ("POST /v1/recommend", "POST /recommend")
    assert format(request.context.trace_id, "032x") == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert wait.parent.span_id == model.parent.span_id == request.context.span_id
    assert request.start_time <= wait.start_time <= wait.end_time == model.start_time <= model.end_time
    assert request.attributes["http.response.status_code"] == 200
    assert "SECRET" not in "".join(one.to_json() for one in (wait, model, request, nowhere))


def test_no_traces_without_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert start_tracing() is None


def test_the_token_comes_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETREC_TOKEN", "one")
    assert token_of_environment() == "one"
    monkeypatch.setenv("SETREC_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="cannot be read"):
        token_of_environment()
    (tmp_path / "token").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        token_of_environment()
    (tmp_path / "token").write_text("two\n")
    assert token_of_environment() == "two"


def test_the_files_to_deploy_are_whole(client: TestClient) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert {one if isinstance(one, str) else one["source"] for one in service.get("secrets", [])} <= set(
            compose["secrets"]
        )
        assert set(service.get("depends_on", [])) <= set(compose["services"])
        for volume in service.get("volumes", []):
            place = volume.split(":")[0]
            assert place in compose["volumes"] or place.startswith("${") or (DEPLOY / place).exists(), volume
    known = set(ServeOptions.__dataclass_fields__) | {"ckpt_path", "database"}
    words = compose["services"]["setrec"]["command"]
    assert words[0] == "serve"
    assert {word.removeprefix("--").partition("=")[0] for word in words[1:]} <= known
    for path in DEPLOY.rglob("*.y*ml"):
        assert yaml.safe_load(path.read_text())
    metrics = client.get("/metrics").text
    board = json.loads((DEPLOY / "grafana/dashboards/setrec.json").read_text())
    for panel in board["panels"]:
        for target in panel["targets"]:
            for name in re.findall(r"setrec_\w+", target["expr"]):
                assert (
                    f"# TYPE {name.removesuffix('_bucket').removesuffix('_sum').removesuffix('_count')}" in metrics
                ), name
