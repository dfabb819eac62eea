"""The catalogue of a server with a fake model: search, the token, added and removed items, the journal."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from setrec import Recommender
from setrec.errors import DataError
from setrec.inference.journal import Journal
from setrec.serve.app import create_app
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from tests.conftest import TrainedRun
from tests.serve_fake import TOKEN, WITH_TOKEN, holder_of, ids


def test_search_by_title(client: TestClient) -> None:
    found = client.get("/items", params={"search": "TRAIN 1", "limit": 3}).json()["items"]
    assert [item["id"] for item in found] == ["A001", "A010", "A011"]
    assert found[2] == {"id": "A011", "title": "toy train 11", "warm": False}
    assert client.get("/items", params={"limit": 0}).status_code == 422
    assert "limit" in client.get("/items", params={"limit": "many"}).json()["error"]


def test_items_are_added_recommended_and_removed(client: TestClient) -> None:
    new = {"items": [{"id": "N1", "title": "a new crane"}, {"id": "N2", "title": "another", "text": "a long text"}]}
    answer = client.post("/items", json=new, headers=WITH_TOKEN)
    assert (answer.status_code, answer.json()) == (201, {"ids": ["N1", "N2"]})
    assert ids(client.post("/recommend", json={"histories": [[]], "candidates": ["N1"]})) == ["N1"]
    again = client.post("/items", json=new, headers=WITH_TOKEN)
    assert again.status_code == 422
    assert "N1" in again.json()["error"]
    gone = client.delete("/items", params={"id": ["N1", "A002"]}, headers=WITH_TOKEN)
    assert (gone.status_code, gone.json()) == (200, {"ids": ["N1", "A002"]})
    assert ids(client.post("/recommend", json={"histories": [[]], "candidates": ["N1", "A002", "N2"]})) == ["N2"]
    missing = client.delete("/items", params={"id": ["A001", "N1"]}, headers=WITH_TOKEN)
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
def test_changes_need_the_token(client: TestClient, holder: ModelHolder, method: str, path: str, body: Any) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"authorization": ""}):
        answer = client.request(method, path, json=body, headers=headers)
        assert answer.status_code == 401
        assert "SETREC_TOKEN" in answer.json()["error"]
        assert answer.headers["www-authenticate"] == "Bearer"
    odd = client.request(method, path, json=body, headers={"authorization": b"Bearer \xe9\xff"})
    assert odd.status_code == 401
    assert holder.current.generation == 0
    assert "A001" in holder.current.recommender
    assert "N" not in holder.current.recommender


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nothing_can_be_changed(holder: ModelHolder, token: str | None) -> None:
    with TestClient(create_app(holder, token, ServeOptions())) as client:
        for headers in ({}, WITH_TOKEN, {"authorization": "Bearer "}):
            answer = client.post("/items", json={"items": [{"id": "N", "title": "t"}]}, headers=headers)
            assert answer.status_code == 403
            assert "SETREC_TOKEN" in answer.json()["error"]
        assert client.post("/recommend", json={"histories": [[]]}).status_code == 200


def test_changes_survive_a_restart(tmp_path: Path) -> None:
    holder = holder_of(tmp_path)
    holder.add([{"id": "N1", "title": "née\n\u2028", "text": None}, {"id": "N2", "title": "two", "text": "words"}])
    holder.remove(["N2", "A000"])
    again = holder_of(tmp_path)
    recommender = again.current.recommender
    assert recommender.titles["N1"] == "née\n\u2028"
    assert "N2" not in recommender
    assert "A000" not in recommender
    again.add([{"id": "A000", "title": "another one"}])  # removed, then added anew
    assert holder_of(tmp_path).current.recommender.titles["A000"] == "another one"


def test_fields_and_vectors_reach_the_encoder_also_after_a_restart(tmp_path: Path) -> None:
    holder = holder_of(tmp_path)
    given = [
        {"id": "N1", "title": "one", "fields": {"brand": "b", "id": "other"}},
        {"id": "N2", "title": "two", "vector": [1.0, 2.5]},
    ]
    with TestClient(create_app(holder, TOKEN, ServeOptions())) as client:
        mixed = client.post("/items", json={"items": given}, headers=WITH_TOKEN)
        assert mixed.status_code == 422
        for item in given:
            assert client.post("/items", json={"items": [item]}, headers=WITH_TOKEN).status_code == 201
        bad = client.post("/items", json={"items": [{"id": "N3", "title": "t", "vector": ["x"]}]}, headers=WITH_TOKEN)
        assert "items[0].vector[0]" in bad.json()["error"]
        spaces = client.post("/items", json={"items": [{"id": "  ", "title": "t"}]}, headers=WITH_TOKEN)
        assert "items[0].id" in spaces.json()["error"]
    for recommender in (holder.current.recommender, holder_of(tmp_path).current.recommender):
        assert recommender.added[-2:] == [
            {"id": "N1", "title": "one", "brand": "b"},
            {"id": "N2", "title": "two", "vector": [1.0, 2.5]},
        ]


def test_the_last_item_stays(client: TestClient, holder: ModelHolder) -> None:
    answer = client.delete("/items", params={"id": [f"A{i:03d}" for i in range(20)]}, headers=WITH_TOKEN)
    assert answer.status_code == 422
    assert "nothing would be left" in answer.json()["error"]
    assert not holder.journal.path.exists()


def test_half_a_line_is_dropped_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"add": [{"id": "N1", "title": "one"}]}\n{"add": [{"id": "N2", "ti')
    journal = Journal(path)
    assert list(journal.added) == ["N1"]
    journal.add([{"id": "N3", "title": "three"}])
    whole = Journal(path)
    assert list(whole.added) == ["N1", "N3"]
    path.write_text('{"add": []}\nnonsense\n')
    with pytest.raises(DataError, match="line 2"):
        Journal(path)


def test_two_servers_share_a_journal(tmp_path: Path) -> None:
    """Each knows what the other has answered before its own next answer; an id is given once; order is kept."""
    one, two = holder_of(tmp_path), holder_of(tmp_path)
    with (
        TestClient(create_app(one, TOKEN, ServeOptions())) as a,
        TestClient(create_app(two, TOKEN, ServeOptions())) as b,
    ):
        for title in ("first", "second"):  # the same id, removed and added again
            new = {"items": [{"id": "N1", "title": title}]}
            assert a.post("/items", json=new, headers=WITH_TOKEN).status_code == 201
            assert ids(b.post("/recommend", json={"histories": [[]], "candidates": ["N1"]})) == ["N1"]
            assert two.current.recommender.titles["N1"] == title
            assert b.post("/items", json=new, headers=WITH_TOKEN).status_code == 422
            if title == "first":
                assert b.delete("/items", params={"id": ["N1", "A001"]}, headers=WITH_TOKEN).status_code == 200
                assert ids(a.post("/recommend", json={"histories": [[]], "candidates": ["N1", "A001"]})) == []
    assert "A001" not in one.current.recommender
    again = holder_of(tmp_path).current.recommender
    assert again.titles == one.current.recommender.titles == two.current.recommender.titles


def test_a_journal_that_does_not_fit_is_told_and_answers_go_on(client: TestClient, holder: ModelHolder) -> None:
    with holder.journal.path.open("a") as file:
        file.write('{"add": [{"id": "N1", "title": "t"}]}\nnonsense\n')
    for _ in range(2):
        assert client.post("/recommend", json={"histories": [[]]}).status_code == 200
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert "line 2" in answer.json()["error"]
    assert client.post("/items", json={"items": [{"id": "N2", "title": "t"}]}, headers=WITH_TOKEN).status_code == 507


def test_a_change_that_cannot_be_kept_is_not_made(
    client: TestClient, holder: ModelHolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    client.post("/items", json={"items": [{"id": "N0", "title": "t"}]}, headers=WITH_TOKEN)
    before = holder.journal.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("setrec.inference.journal.os.fsync", full)
        answer = client.post("/items", json={"items": [{"id": "N", "title": "t"}]}, headers=WITH_TOKEN)
        assert answer.status_code == 507
        assert "No space left on device" in answer.json()["error"]
        assert client.delete("/items", params={"id": "A001"}, headers=WITH_TOKEN).status_code == 507
    assert "N" not in holder.current.recommender
    assert "A001" in holder.current.recommender
    assert holder.journal.path.read_bytes() == before


@pytest.mark.slow
def test_a_poisoned_vector_is_neither_served_nor_kept(tiny_run: TrainedRun, tmp_path: Path) -> None:
    """A real model: 422 and one sentence, the journal stays empty, answers go on; then its weights become NaN."""
    path = Path(shutil.copy(tiny_run.checkpoint, tmp_path / "model.ckpt"))
    journal = Journal(tmp_path / "items.jsonl")
    holder = ModelHolder(path, Recommender.load, journal, tmp_path)
    text = holder.current.recommender._snapshot.catalogue.text
    assert text is not None
    with TestClient(create_app(holder, TOKEN, ServeOptions()), raise_server_exceptions=False) as client:
        for value in ("3e38", "1e39", "-3e38", "NaN", "Infinity", "1e4"):
            vector = f"[{value}{', 0.0' * (text.shape[1] - 1)}]"
            answer = client.post(
                "/items", content=f'{{"items": [{{"id": "N", "title": "t", "vector": {vector}}}]}}',
                headers={**WITH_TOKEN, "content-type": "application/json"},
            )  # fmt: skip
            assert answer.status_code == 422, value
            assert "vector" in answer.json()["error"]
        assert not journal.path.exists()
        assert client.post("/recommend", json={"histories": [[]]}).status_code == 200
        assert client.get("/health").status_code == 200
        with torch.no_grad():
            holder.current.recommender._snapshot.restored.model.queries.fill_(float("nan"))
        assert client.post("/recommend", json={"histories": [[]]}).status_code == 503
        assert client.get("/health").status_code == 503
    # what an earlier version has kept is named
    journal.path.write_text(json.dumps({"add": [{"id": "N", "title": "t", "vector": [3e38] * text.shape[1]}]}) + "\n")
    with pytest.raises(DataError, match=r"items.jsonl cannot be added to this model .*'N'"):
        ModelHolder(path, Recommender.load, Journal(journal.path, writable=False), tmp_path)
