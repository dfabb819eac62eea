"""Takeovers with a fake model: another checkpoint comes into service while requests go on."""

import threading
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from setrec.inference.journal import Journal
from setrec.serve import model_holder
from setrec.serve.app import create_app
from setrec.serve.model_holder import ModelHolder
from setrec.serve.options import ServeOptions
from tests.serve_fake import TOKEN, WITH_TOKEN, FakeRecommender, write_checkpoint


def test_a_takeover_keeps_added_items_and_drops_nothing(tmp_path: Path, holder: ModelHolder) -> None:
    holder.current.recommender.delay = 0.01
    new = write_checkpoint(tmp_path / "new.ckpt", n_items=30, shift=5.0, delay=0.01)
    statuses: list[int] = []
    scores: set[tuple[int, float]] = set()
    stop = threading.Event()
    with TestClient(create_app(holder, TOKEN, ServeOptions())) as client:
        client.post(
            "/items", json={"items": [{"id": "N1", "title": "new"}, {"id": "A025", "title": "t"}]}, headers=WITH_TOKEN
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
            answer = client.post("/model/reload", json={"path": str(new)}, headers=WITH_TOKEN)
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
    answer = client.post("/model/reload", json={"path": str(broken)}, headers=WITH_TOKEN)
    assert answer.status_code == 422
    assert "broken.ckpt" in answer.json()["error"]
    assert client.get("/model").json()["generation"] == 0
    assert client.post("/recommend", json={"histories": [[]]}).status_code == 200
    assert 'setrec_takeovers_total{outcome="refused"} 1.0' in client.get("/metrics").text


def test_scores_that_are_not_finite_are_refused(client: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "diverged.ckpt"
    path.write_text('{"n_items": 5, "shift": NaN, "delay": 0, "fault": ""}')
    answer = client.post("/model/reload", json={"path": str(path)}, headers=WITH_TOKEN)
    assert answer.status_code == 422
    assert "not finite numbers" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.ckpt", "nowhere.ckpt", "a\0b", "a" * 3000])
def test_only_checkpoints_of_the_folder_can_be_named(
    client: TestClient, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    answer = client.post("/model/reload", json={"path": path}, headers=WITH_TOKEN)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("path: ")


def test_one_takeover_at_a_time(client: TestClient, holder: ModelHolder) -> None:
    with holder._taking_over:
        assert client.post("/model/reload", json={}, headers=WITH_TOKEN).status_code == 409
    assert client.post("/model/reload", json={}, headers=WITH_TOKEN).status_code == 200


def test_a_watched_checkpoint_is_taken_over_when_it_changes(holder: ModelHolder) -> None:
    path = holder.current.path
    with TestClient(create_app(holder, None, ServeOptions(watch=0.01))) as client:

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
        garbage = path.with_suffix(".part")
        garbage.write_text("garbage")
        garbage.replace(path)  # at once: a look between emptying and writing would see a third version
        wait_for('setrec_takeovers_total{outcome="refused"} 1.0')
        assert client.post("/recommend", json={"histories": [[]], "k": 1}).json()["generation"] == 1
        threading.Event().wait(0.1)  # refused once, not at every look
        assert 'setrec_takeovers_total{outcome="refused"} 1.0' in client.get("/metrics").text


def test_a_model_is_hashed_only_where_the_database_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    monkeypatch.setattr(model_holder, "file_hash", lambda path: (hashed.append(path), "0" * 64)[1])
    path = write_checkpoint(tmp_path / "model.ckpt")
    for named, times in ((False, 0), (True, 2)):
        holder = ModelHolder(path, FakeRecommender.load, Journal(tmp_path / "i.jsonl"), tmp_path, named=named)
        holder.take_over(path)
        assert len(hashed) == times
