"""kill -9 at a random moment of every command that writes: what was there stays, what is there is whole."""

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
import torch
import yaml

from setrec import Recommender
from setrec.data.catalogue import Catalogue, Histories, read_manifest
from setrec.data.store import files_match, locked
from setrec.inference.versions import list_versions, read_version
from tests.conftest import TrainedRun
from tests.faults.conftest import TRIES, Kills, fit_words
from tests.zygote import TOKEN

pytestmark = [pytest.mark.fault, pytest.mark.process]

Tally = Callable[..., None]


def hidden(folder: Path) -> list[str]:
    """Names of hidden files and folders, without locks."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] == "." and path.suffix != ".lock")


def test_prepare(kills: Kills, tmp_path: Path, tally: Tally) -> None:
    folder = tmp_path / "tiny"
    kills.whole("prepare", root=str(tmp_path), k_core=1)
    for number in range(TRIES):
        done = kills.one("prepare", root=str(tmp_path), k_core=2 - number % 2)  # each replaces the one before
        with locked(folder):  # as the next command does
            manifest = read_manifest(folder)
            assert manifest is not None
            assert files_match(folder, manifest)
        assert Catalogue.load(folder).n_items == manifest["counts"]["items"]
        assert len(Histories.load(folder).ids) == manifest["counts"]["users"]
        assert hidden(tmp_path) == []
        tally(tries=1, killed=done.code == -9, survived=1)


def test_fit(kills: Kills, run: TrainedRun, tmp_path: Path, tally: Tally) -> None:
    shutil.copytree(run.data, tmp_path / "data" / run.data.name)
    kills.whole("command", words=fit_words(tmp_path))
    going_on: list[str] = []
    for _ in range(TRIES):
        done = kills.one("command", words=fit_words(tmp_path, *going_on))
        checkpoints = sorted(
            tmp_path.glob("lightning_logs/*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime
        )
        for path in checkpoints:
            assert torch.load(path, weights_only=True)["state_dict"]
        for path in tmp_path.glob("lightning_logs/*/config.yaml"):
            assert yaml.safe_load(path.read_text())["data"]["name"] == "tiny"
        going_on = [f"--ckpt_path={checkpoints[-1]}", "--trainer.max_epochs=9"] if checkpoints else []
        tally(tries=1, killed=done.code == -9, survived=1, checkpoints=len(checkpoints))
    last = next(path for path in reversed(checkpoints) if path.stem == "last")
    done = kills.zygote.run(
        "command", kills.log, words=fit_words(tmp_path, f"--ckpt_path={last}", "--trainer.max_epochs=10")
    )
    assert done.code == 0, done.said
    assert hidden(last.parent) == []  # what killed runs left is cleared


def test_publish(kills: Kills, run: TrainedRun, tmp_path: Path, tally: Tally) -> None:
    words = ["publish", "--ckpt_path", str(run.checkpoint), "--output", str(tmp_path / "published")]
    kills.whole("command", words=words)
    shutil.rmtree(tmp_path / "published")
    expected = Recommender.load(run.checkpoint).recommend([[]], k=3)
    for _ in range(TRIES):
        done = kills.one("command", words=words)
        there = (tmp_path / "published").exists()
        if there:
            found = Recommender.load(tmp_path / "published").recommend([[]], k=3)
            assert [item.id for item in found[0].items] == [item.id for item in expected[0].items]
            shutil.rmtree(tmp_path / "published")
        tally(tries=1, killed=done.code == -9, survived=1, published=there)
    kills.whole("command", words=words)
    assert hidden(tmp_path) == []


def test_add_items(kills: Kills, run: TrainedRun, tmp_path: Path, tally: Tally) -> None:
    model = tmp_path / "model.ckpt"
    shutil.copy(run.checkpoint, model)
    ids = []
    words = ["add-items", "--ckpt_path", str(model), "--items", str(tmp_path / "new.csv")]

    def new_file(number: int) -> None:
        (tmp_path / "new.csv").write_text(f"id,title\nN{number},a new garden lamp {number}\n")

    new_file(-1)
    kills.whole("command", words=words)
    ids.append("N-1")
    for number in range(TRIES):
        new_file(number)
        before = len(list_versions(model))
        done = kills.one("command", words=words)
        versions = list_versions(model)
        assert len(versions) - before in ((1,) if done.code == 0 else (0, 1))
        if len(versions) > before:
            ids.append(f"N{number}")
        added = read_version(versions[-1]).changes.added
        assert added is not None
        assert added["id"].to_list() == ids  # nothing that was added is lost
        tally(tries=1, killed=done.code == -9, survived=1, versions=len(versions) - before)
    assert len(Recommender.load(list_versions(model)[-1]).search("N", limit=1)) == 1
    new_file(TRIES)
    kills.whole("command", words=words)
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("histories", [True, False])
def test_predict(kills: Kills, run: TrainedRun, tmp_path: Path, tally: Tally, histories: bool) -> None:
    output = tmp_path / "out" / "predictions.parquet"
    if histories:
        item = Catalogue.load(run.data).ids[0]
        pl.DataFrame({"user_id": [f"u{n}" for n in range(40)], "history": [[item]] * 40}).write_parquet(
            tmp_path / "h.parquet"
        )
        words = ["predict", "--ckpt_path", str(run.checkpoint), "--histories", str(tmp_path / "h.parquet")]
        words += ["--output", str(output)]
    else:
        words = ["predict", "--ckpt_path", str(run.checkpoint), f"--predictions.output={output}"]
        words += [f"--trainer.default_root_dir={tmp_path}", "--trainer.logger=false", "--trainer.accelerator=cpu"]
        words += ["--trainer.enable_progress_bar=false"]
    kills.whole("command", words=words)
    whole = pl.read_parquet(output)
    for number in range(TRIES):
        if number % 2:
            output.unlink(missing_ok=True)
        before = output.exists()
        done = kills.one("command", words=words)
        if output.exists():
            assert pl.read_parquet(output).equals(whole)
        else:
            assert not before
            assert done.code == -9
        tally(tries=1, killed=done.code == -9, survived=1, written=output.exists())
    kills.whole("command", words=words)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_changes_of_a_served_catalogue(kills: Kills, run: TrainedRun, tmp_path: Path, tally: Tally) -> None:
    """A change that was answered is there after the next start; one that was not answered is there or not."""
    shutil.copy(run.checkpoint, tmp_path / "model.ckpt")
    words = ["serve", "--ckpt_path", str(tmp_path / "model.ckpt"), "--port", "0"]
    there: dict[str, bool] = {}  # own id -> whether it was added last, or removed
    doubtful, changes, number = "", 0, 0  # the item of the change that was not answered
    for _ in range(max(2, TRIES // 2)):
        kills.log.unlink(missing_ok=True)
        kills.zygote.begin("command", kills.log, words=words)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=kills.zygote.address(), headers=headers, timeout=60) as web:
            for own, present in there.items():
                found = web.get("/items", params={"search": f"fault {own},"}).json()["items"]
                assert [item["id"] for item in found] in ([[own], []] if own == doubtful else [[own] * present])
                there[own] = bool(found)
            end = threading.Timer(kills.random.uniform(0.05, 1.5), kills.zygote.kill)
            end.start()
            with suppress(httpx.TransportError):
                while True:
                    present = [own for own, is_there in there.items() if is_there]
                    if len(present) > 3:
                        doubtful = kills.random.choice(present)
                        answer = web.delete("/items", params={"id": [doubtful]})
                    else:
                        doubtful, number = f"N{number}", number + 1  # a new one: that before may be there, unanswered
                        title = f"fault {doubtful}, a garden lamp"
                        answer = web.post("/items", json={"items": [{"id": doubtful, "title": title}]})
                    assert answer.is_success, answer.text
                    there[doubtful] = not there.get(doubtful, False)
                    doubtful, changes = "", changes + 1
            if doubtful:
                there.setdefault(doubtful, False)
            end.join()
        assert kills.zygote.end().code == -9
        tally(tries=1, killed=1, survived=1)
    tally(changes=changes)


def test_update(kills: Kills, run: TrainedRun, tmp_path: Path, tally: Tally) -> None:
    """The link names a whole model at any moment, and the events of an update are there once, in the end."""
    link, ids = tmp_path / "current.ckpt", Catalogue.load(run.data).ids
    kills.zygote.run("command", kills.log, words=["update", "--current", str(link), "--publish", str(run.checkpoint)])
    words = ["update", "--current", str(link), "--events", str(tmp_path / "new.csv"), "--tolerance", "9"]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]

    def new_file(number: int) -> None:
        times = [2_000_000_000 + number * 1000 + row for row in range(40)]
        users = [f"n{number}-{row % 20}" for row in range(40)]
        table = pl.DataFrame({"user": users, "item": [ids[(row + number) % len(ids)] for row in range(40)]})
        table.with_columns(timestamp=pl.Series(times)).write_csv(tmp_path / "new.csv")

    new_file(-1)
    kills.whole("command", words=words)
    expected = 40
    for number in range(max(2, TRIES // 2)):
        before = link.resolve()
        new_file(number)
        done = kills.one("command", words=words)
        assert Recommender.load(link).recommend([[]], k=3)[0].items
        if done.code == -9 and link.resolve() == before:  # what cron does the next night
            kills.whole("command", words=words)
        expected += 40
        data = sorted(run.data.parent.glob("tiny.*"))[-1]
        histories = Histories.load(data)
        fresh = np.array([own.startswith("n") for own in histories.ids])
        kept = sum(int(rows.lengths[fresh].sum()) for rows in (histories.train, histories.validation))
        assert kept == expected
        tally(tries=1, killed=done.code == -9, survived=1, published=link.resolve() != before)
