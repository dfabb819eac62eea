"""kill -9 of the server in a stream of events: what was acknowledged is there after the restart, and in the next answer."""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import TrainedRun
from tests.faults.conftest import TRIES
from tests.zygote import TOKEN, Zygote

pytestmark = [pytest.mark.fault, pytest.mark.process]


def test_acknowledged_events_survive(
    zygote: Zygote, run: TrainedRun, tmp_path: Path, tally: Callable[..., None]
) -> None:
    shutil.copy(run.checkpoint, tmp_path / "model.ckpt")
    words, headers = (
        ["serve", "--ckpt_path", str(tmp_path / "model.ckpt"), "--port", "0"],
        {"Authorization": f"Bearer {TOKEN}"},
    )
    acknowledged: list[int] = []
    for number in range(TRIES):
        zygote.begin("command", tmp_path / f"log{number}", words=words)
        with httpx.Client(base_url=f"{zygote.address()}/v1", headers=headers, timeout=60) as web:
            kept = web.get("/users/u").json().get("events", [])
            assert {int(event["id"]) for event in kept} >= set(acknowledged)
            if acknowledged:
                answer = web.get("/users/u/recommendations", params={"k": 1}).json()["recommendations"][0]
                assert f"last-{acknowledged[-1]}" in answer["unknown"]  # the model was given the newest event
            timer = threading.Timer(0.2 + 0.15 * (number % 4), zygote.kill)
            timer.start()
            limit = time.monotonic() + 60
            try:
                while time.monotonic() < limit:
                    own = len(acknowledged) + 1000 * (number + 1)
                    event = {"user": "u", "item": f"last-{own}", "time": own, "id": str(own)}
                    if web.post("/events", json={"events": [event]}).status_code == 201:
                        acknowledged.append(own)
            except httpx.HTTPError:
                pass
            timer.join()
        assert zygote.end().code == -9
        tally(tries=1, killed=1, survived=1)
    tally(acknowledged=len(acknowledged))
    assert acknowledged
