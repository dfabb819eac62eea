"""`setrec serve` as a process, on a real checkpoint: answers of Recommender, changes, takeovers, the end and a new start."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from setrec import Recommender
from setrec.cli import main
from setrec.serve.options import ServeOptions
from tests.conftest import TrainedRun
from tests.serve_fake import TOKEN, WITH_TOKEN

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
WEB = httpx.Client(timeout=120)  # of a machine that may be busy with other tests


@contextmanager
def served(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The server of folder/model.ckpt, and its address."""
    words = ["serve", "--ckpt_path", str(folder / "model.ckpt"), "--port", "0", *more]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *words], cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"SETREC_TOKEN": TOKEN},
    )  # fmt: skip
    try:
        said = []
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            found = re.match(r"serving at (\S+)", line)
            if found:
                break
        else:
            pytest.fail("the server didn't start: " + "".join(said))
        threading.Thread(target=process.stdout.read, daemon=True).start()  # or its log would fill the pipe
        yield process, found.group(1)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def folder(tiny_run: TrainedRun, tmp_path: Path) -> Path:
    """A folder with a copy of the checkpoint, so that what the server keeps beside it stays in the test."""
    shutil.copy(tiny_run.checkpoint, tmp_path / "model.ckpt")
    return tmp_path


def figure(url: str, name: str) -> float:
    """A line of /metrics."""
    (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", WEB.get(f"{url}/metrics").text, re.MULTILINE)
    return float(value)


def test_a_life(folder: Path) -> None:
    """Answers, new items, a takeover under load, a broken checkpoint, SIGTERM with requests in flight, a restart."""
    recommender = Recommender.load(folder / "model.ckpt")
    own = [item.id for item in recommender.search("", limit=30)]
    histories = [own[i : i + 1 + i % 6] for i in range(25)]
    new = [{"id": "NEW", "title": recommender.search("", 1)[0].title}, {"id": "NEW2", "title": "another one"}]
    with served(folder, "--max_waiting", "10000") as (process, url):
        body = {"histories": histories, "k": 5, "explain": True, "beta": 0.3}
        found = WEB.post(f"{url}/recommend", json=body).json()["recommendations"]
        expected = recommender.recommend(histories, k=5, explain=True, beta=0.3)
        for there, here in zip(found, expected, strict=True):
            assert [item["id"] for item in there["items"]] == [item.id for item in here.items]
            for a, b in zip(there["items"], here.items, strict=True):
                assert a["score"] == pytest.approx(b.score, abs=1e-5)
                assert sum(a["why"]["parts"].values()) == pytest.approx(a["score"], abs=1e-4)

        assert WEB.post(f"{url}/items", json={"items": new}, headers=WITH_TOKEN).status_code == 201
        assert WEB.delete(f"{url}/items", params={"id": ["NEW2", own[0]]}, headers=WITH_TOKEN).status_code == 200
        only = {"histories": [[]], "candidates": ["NEW", "NEW2", own[0]]}
        (answer,) = WEB.post(f"{url}/recommend", json=only).json()["recommendations"]
        assert [item["id"] for item in answer["items"]] == ["NEW"]
        assert not answer["items"][0]["warm"]

        # a takeover and a refusal while requests go on
        shutil.copy(folder / "model.ckpt", folder / "next.ckpt")
        (folder / "broken.ckpt").write_bytes((folder / "model.ckpt").read_bytes()[:20_000])
        stop, statuses, generations, lists = threading.Event(), [], set(), []

        def ask() -> None:
            while not stop.is_set():
                answer = WEB.post(f"{url}/recommend", json=only)
                statuses.append(answer.status_code)
                generations.add(answer.json()["generation"])
                lists.append([item["id"] for item in answer.json()["recommendations"][0]["items"]])

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for thread in askers:
            thread.start()
        refused = WEB.post(f"{url}/model/reload", json={"path": "broken.ckpt"}, headers=WITH_TOKEN)
        taken = WEB.post(f"{url}/model/reload", json={"path": "next.ckpt"}, headers=WITH_TOKEN)
        time.sleep(0.2)
        stop.set()
        for thread in askers:
            thread.join()
        assert refused.status_code == 422
        assert "broken.ckpt" in refused.json()["error"]
        assert taken.status_code == 200
        assert taken.json()["generation"] == 1
        assert set(statuses) == {200}
        assert generations == {0, 1}
        assert all(one == ["NEW"] for one in lists)

        # SIGTERM while many wait
        answers: list[Any] = []
        large = {"histories": [own[i % 20 : i % 20 + 10] for i in range(512)], "k": 3, "explain": True}
        waiting = [
            threading.Thread(target=lambda: answers.append(WEB.post(f"{url}/recommend", json=large))) for _ in range(12)
        ]
        for thread in waiting:
            thread.start()
        in_flight = 0.0
        while in_flight + len(answers) < 12:
            in_flight = figure(url, "setrec_requests_in_flight") - 1  # this question is one of them
        assert in_flight > 0
        process.send_signal(signal.SIGTERM)
        for thread in waiting:
            thread.join()
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
        assert [answer.status_code for answer in answers].count(200) == 12
        assert all(len(answer.json()["recommendations"]) == 512 for answer in answers)

    with served(folder, "--allowed_hosts", "shop.example,*.test") as (process, url):
        for host, status in (("localhost", 200), ("shop.example:80", 200), ("a.test", 200), ("evil.example", 400)):
            assert WEB.get(f"{url}/health", headers={"host": host}).status_code == status
        (answer,) = WEB.post(f"{url}/recommend", json=only).json()["recommendations"]
        assert [item["id"] for item in answer["items"]] == ["NEW"]
        assert WEB.get(f"{url}/model").json()["info"]["n_items"] == 80
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM


def error_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_wrong_options_end_with_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = ["--ckpt_path", str(folder / "model.ckpt")]
    assert "no such file" in error_of(["--ckpt_path", str(folder / "nothing.ckpt")], capsys)
    assert "--max_batch is 0" in error_of([*path, "--max_batch", "0"], capsys)
    assert "--client_timeout is 0" in error_of([*path, "--client_timeout", "0"], capsys)
    assert "--max_connections is 0" in error_of([*path, "--max_connections", "0"], capsys)
    assert "--allowed_hosts 'http://x' is no name" in error_of([*path, "--allowed_hosts", "a.b,http://x"], capsys)
    assert "--watch is -1" in error_of([*path, "--watch=-1"], capsys)
    assert "--port is 99999" in error_of([*path, "--port", "99999"], capsys)
    assert "--host nowhere.invalid" in error_of([*path, "--host", "nowhere.invalid"], capsys)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "give another --port" in error_of([*path, "--port", str(taken.getsockname()[1])], capsys)
    (folder / "broken.ckpt").write_text("no checkpoint")
    assert "broken.ckpt" in error_of(["--ckpt_path", str(folder / "broken.ckpt"), "--port", "0"], capsys)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for module in ("server", "supervisor", "worker"):
        monkeypatch.delitem(sys.modules, f"setrec.serve.{module}", raising=False)
    assert "pip install 'setrec[serve]'" in error_of(path, capsys)


def test_it_listens_on_this_machine_only_unless_told() -> None:
    assert ServeOptions().host == "127.0.0.1"
