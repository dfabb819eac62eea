"""What a shop's page asks a server with a fake model: filters, similar and popular items, changed attributes, what changed."""

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from setrec.errors import DataError
from setrec.inference.journal import Journal
from setrec.inference.journal_lines import sum_of
from setrec.serve import freshness
from setrec.serve.model_holder import ModelHolder
from tests.serve_fake import WITH_TOKEN, holder_of, ids, write_checkpoint


def names(answer: Any) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_options_reach_the_model(client: TestClient, holder: ModelHolder) -> None:
    body = {
        "histories": [[]], "k": 3, "filter": "colour = 'blue' and price > 10", "diversity": 0.3, "caps": {"colour": 2},
        "boosts": [{"filter": "in_stock", "add": 0.5}],
    }  # fmt: skip
    assert ids(client.post("/v1/recommend", json=body)) == ["A005", "A007", "A009"]
    condition, diversity, caps, boosts = holder.current.recommender.rules[-1]  # type: ignore[attr-defined]
    assert (condition, diversity, caps) == (body["filter"], 0.3, {"colour": 2})
    assert [(boost.filter, boost.add) for boost in boosts] == [("in_stock", 0.5)]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"filter": "size > 3"}, "no such column; it has id (text), title (text), colour (text), price (number)"),
        ({"filter": ""}, "filter"),
        ({"filter": "x" * 2001}, "filter"),
        ({"diversity": 2}, "diversity"),
        ({"caps": {"colour": 0}}, "caps.colour"),
        ({"caps": {str(i): 1 for i in range(6)}}, "caps"),
        ({"boosts": [{"filter": "in_stock", "add": 1e9}]}, "boosts[0].add"),
        ({"boosts": [{"filter": "in_stock", "add": 1.0}] * 2}, "each filter once"),
        ({"boosts": [{"filter": "in_stock", "add": 1.0}] * 6}, "boosts"),
        ({"diversity": 0.5, "k": 500, "histories": [[]] * 5}, "with explain or diversity"),
    ],
)
def test_wrong_options_get_a_sentence(client: TestClient, wrong: dict[str, Any], says: str) -> None:
    answer = client.post("/v1/recommend", json={"histories": [[]]} | wrong)
    assert answer.status_code == 422
    assert says in answer.json()["error"]


def test_an_item_and_what_is_similar(client: TestClient) -> None:
    item = client.get("/v1/items/A005").json()
    attributes = {"colour": "blue", "price": 12.5, "in_stock": True}
    assert item == {"id": "A005", "title": "toy train 5", "warm": True, "events": 3, "attributes": attributes}
    found = client.get("/v1/items/A005/similar", params={"by": "slots", "limit": 2, "filter": "in_stock"})
    assert names(found) == ["A019", "A017"]
    assert found.json()["by"] == "slots"
    assert found.json()["items"][1] == {"id": "A017", "title": "toy train 17", "warm": True, "similarity": 0.5}
    assert "counts no co-occurrence" in client.get("/v1/items/A005/similar?by=co_occurrence").json()["error"]
    assert client.get("/v1/items/A005/similar?by=taste").status_code == 422
    for path in ("/v1/items/nope", "/v1/items/nope/similar"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["error"]) == (404, "'nope' is not in the catalogue.")


def test_lists_take_filters_and_limits(client: TestClient) -> None:
    assert names(client.get("/v1/popular?limit=2")) == ["A000", "A001"]
    assert names(client.get("/v1/latest", params={"limit": 2, "filter": "price < 10"})) == ["A003", "A002"]
    assert names(client.get("/v1/items", params={"search": "train 1", "filter": "price < 26"})) == ["A001", "A010"]
    assert client.get("/v1/popular?filter=size").status_code == 422
    assert client.get("/v1/latest?limit=0").status_code == 422


def test_items_with_any_name_can_be_reached(client: TestClient) -> None:
    odd = ["popular", "latest", "a/b", "similar", "x", "x/similar", "/", "ü", "50%", "50%25", "x y?#%", "100% / z"]
    new = {"items": [{"id": own, "title": f"odd {own}"} for own in odd]}
    assert client.post("/v1/items", json=new, headers=WITH_TOKEN).status_code == 201
    for own in odd:
        assert client.get(f"/v1/items/{quote(own, safe='')}").json()["title"] == f"odd {own}"
        assert names(client.get(f"/v1/items/{quote(own, safe='')}/similar?limit=1"))
    assert client.get("/v1/items/a/b").json()["id"] == "a/b"  # where it is not ambiguous
    assert "similarity" in client.get("/v1/items/x/similar").text
    assert client.get("/v1/items/%ff").json()["error"].startswith("The id of the item must have")
    assert names(client.get("/v1/latest?limit=1")) == ["100% / z"]


def test_a_request_that_names_an_item_waits_until_it_is_encoded(
    client: TestClient, holder: ModelHolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has confirmed an item, and this one takes longer than a request waits in general."""
    monkeypatch.setattr(freshness, "LONGEST", 0.02)
    fake, slow = holder.current.recommender, threading.Event()
    add = fake.add_items
    monkeypatch.setattr(fake, "add_items", lambda *given, **more: (slow.wait(0.4), add(*given, **more))[1])
    other = Journal(tmp_path / "items.jsonl")

    def new(own: str) -> float:
        other.add([{"id": own, "title": own}])
        return time.monotonic()

    new("N1")
    assert client.get("/v1/items/N1").status_code == 200
    new("N2")
    asked = {"histories": [[]], "candidates": ["N2"], "unknown": "refuse"}
    assert client.post("/v1/recommend", json=asked).json()["recommendations"][0]["items"][0]["id"] == "N2"
    start = new("N3")
    assert client.post("/v1/recommend", json={"histories": [["A000"]]}).status_code == 200
    assert client.get("/v1/items/nope").status_code == 404 and time.monotonic() - start < 0.3  # noqa: PT018
    assert client.get("/v1/items/N3").status_code == 200


def test_patches_are_served_and_survive_restart_and_takeover(
    client: TestClient, holder: ModelHolder, tmp_path: Path
) -> None:
    patch = {
        "items": [{"id": "A001", "fields": {"price": 0.5, "title": "cheap"}}, {"id": "A001", "fields": {"sale": True}}]
    }
    assert client.patch("/v1/items", json=patch).status_code == 401
    assert client.patch("/v1/items", json=patch, headers=WITH_TOKEN).json() == {"ids": ["A001"]}
    assert names(client.get("/v1/items?filter=sale")) == ["A001"]
    client.post("/v1/items", json={"items": [{"id": "N", "title": "n"}]}, headers=WITH_TOKEN)
    client.patch("/v1/items", json={"items": [{"id": "N", "fields": {"price": 3}}]}, headers=WITH_TOKEN)
    client.patch("/v1/items", json={"items": [{"id": "A002", "fields": {"price": 3}}]}, headers=WITH_TOKEN)
    client.delete("/v1/items?id=A002", headers=WITH_TOKEN)
    before = holder.journal.path.read_bytes()
    wrong: list[dict[str, Any]] = [{"price": "dear"}, {"text": "other words"}, {"new": 10**400}, {}]
    for fields in wrong:
        answer = client.patch("/v1/items", json={"items": [{"id": "A003", "fields": fields}]}, headers=WITH_TOKEN)
        assert answer.status_code == 422
    assert (
        client.patch(
            "/v1/items", json={"items": [{"id": "no", "fields": {"price": 1}}]}, headers=WITH_TOKEN
        ).status_code
        == 404
    )
    assert holder.journal.path.read_bytes() == before
    holder.take_over(write_checkpoint(tmp_path / "next.ckpt"))
    for one in (holder, holder_of(tmp_path)):
        recommender = one.current.recommender
        assert recommender.item("A001").title == "cheap"
        assert recommender.item("A001").attributes["sale"] is True
        assert recommender.item("N").attributes["price"] == 3
        assert "A002" not in sum_of(one.journal.changes).patched


def test_a_patch_that_fits_no_more_stops_a_takeover(holder: ModelHolder, tmp_path: Path) -> None:
    with holder.journal.locked():
        holder.journal.append([{"patch": [{"id": "A001", "fields": {"price": "dear"}}]}])
    with pytest.raises(
        DataError,
        match="items in .*items.jsonl cannot be added to this model .*'price': the column holds number values",
    ):
        holder.take_over(write_checkpoint(tmp_path / "next.ckpt"))
    assert holder.current.generation == 0


def test_what_changed_is_told_newest_first(client: TestClient, holder: ModelHolder, tmp_path: Path) -> None:
    assert client.get("/v1/changes").json()["changes"] == []
    client.post("/v1/items", json={"items": [{"id": "N", "title": "new"}]}, headers=WITH_TOKEN)
    client.patch("/v1/items", json={"items": [{"id": "N", "fields": {"price": 1, "sale": True}}]}, headers=WITH_TOKEN)
    client.delete("/v1/items?id=A001&id=A002", headers=WITH_TOKEN)
    holder.take_over(write_checkpoint(tmp_path / "next.ckpt"))
    answer = client.get("/v1/changes").json()
    removed, patched, added = answer["changes"]
    assert (removed["kind"], removed["count"], removed["items"][0]) == ("removed", 2, {"id": "A001", "title": None})
    assert (patched["kind"], patched["fields"]) == ("patched", ["price", "sale"])
    assert (added["kind"], added["items"]) == ("added", [{"id": "N", "title": "new"}])
    assert abs(datetime.fromisoformat(added["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert [model["generation"] for model in answer["models"]] == [1, 0]
    assert len(client.get("/v1/changes?limit=1").json()["changes"]) == 1
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert client.get("/v1/changes", params={"since": later}).json() == {"changes": [], "models": []}
    earlier = (datetime.now(UTC) - timedelta(days=1)).replace(tzinfo=None).isoformat()
    assert len(client.get("/v1/changes", params={"since": earlier}).json()["changes"]) == 3
    assert client.get("/v1/changes?since=yesterday").status_code == 422


def test_lines_without_a_time_are_read(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    lines: list[Any] = [{"add": [{"id": "N1", "title": "one"}]}, {"patch": [{"id": "N1", "fields": {"price": 1}}]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    journal = Journal(path)
    assert sum_of(journal.changes).patched == {"N1": {"price": 1}}
    assert [change.time for change in journal.recent] == [None, None]
    journal.remove(["N1"])
    assert sum_of(journal.changes).patched == {}
    assert [change.kind for change in Journal(path, writable=False).recent] == ["added", "patched", "removed"]
    for wrong in (
        {"patch": [{"id": "N1"}]},
        {"patch": [], "remove": []},
        {"remove": ["x"], "time": "yesterday"},
        {"time": "x"},
    ):
        path.with_name("wrong.jsonl").write_text(json.dumps(wrong) + "\n")
        with pytest.raises(DataError, match="line 1"):
            Journal(path.with_name("wrong.jsonl"), writable=False)
