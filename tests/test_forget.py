"""forget: no byte of an erased user stays in prepared data and runs, and all that was trained on them loads."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from setrec import Recommender
from setrec.cli import main
from setrec.commands.forget import forget
from setrec.data.catalogue import Catalogue, Histories
from setrec.data.store import check_prepared
from setrec.errors import ConfigError, DataError
from setrec.files.hashes import read_sealed
from tests.conftest import TrainedRun


@pytest.fixture
def run(tiny_run: TrainedRun, tmp_path: Path) -> TrainedRun:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    relative = tiny_run.checkpoint.relative_to(tiny_run.folder)
    return TrainedRun(tmp_path / "run" / relative, tmp_path / "run/data/tiny", tmp_path / "run")


def holding(folder: Path, text: str) -> list[str]:
    """The files that hold a text, packed tables read too."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += str(pl.read_parquet(path).select(pl.col(pl.String)).rows()).encode()
        if text.encode() in content:
            found.append(path.name)
    return found


def test_no_byte_of_a_user_stays(run: TrainedRun) -> None:
    before, catalogue = Histories.load(run.data), Catalogue.load(run.data)
    tables = pl.read_parquet(next(run.folder.rglob("*/per_user.parquet")))
    tested = tables["user_id"].unique().sort().to_list()[0]
    other = next(own for own in before.ids if own != tested)
    assert {"users.parquet", "per_user.parquet", "hits.parquet"} <= set(holding(run.folder, tested))
    expected = Recommender.load(run.checkpoint, data=run.data).recommend([[]], k=3)

    main(["forget", "--data", f"[{run.data}]", "--runs", f"[{run.folder}]", "--users", f"[{tested},{other}]"])

    assert holding(run.folder, tested) == holding(run.folder, other) == []
    after = Histories.load(run.data)
    check_prepared(run.data)
    for u, own in enumerate(before.ids):
        gone = own in (tested, other)
        assert (after.ids[u] == own) == (not gone)
        for split in ("train", "validation", "test"):
            for what in (after, after.times):
                old = getattr(before if what is after else before.times, split).row(u).tolist()
                assert getattr(what, split).row(u).tolist() == ([] if gone else old)
    users = pl.read_parquet(run.data / "users.parquet")
    assert users["train"].list.len().to_list() == after.train.lengths.tolist()
    assert Catalogue.load(run.data).fingerprint == catalogue.fingerprint
    assert Recommender.load(run.checkpoint, data=run.data).recommend([[]], k=3) == expected
    for path in run.folder.rglob("*results.json"):
        read_sealed(path)
    main(
        ["report", f"--runs.a={run.checkpoint.parent.parent}", f"--output={run.folder / 'report'}"]
    )  # the hashes of the tables are right


def test_unknown_users_and_wrong_folders_are_one_sentence(run: TrainedRun) -> None:
    with pytest.raises(DataError, match="none of these users"):
        forget(["nobody"], [run.data])
    with pytest.raises(DataError, match="no prepared data"):
        forget(["nobody"], [run.folder])
    with pytest.raises(DataError, match="no such folder"):
        forget(["nobody"], [run.folder / "none"])
    with pytest.raises(ConfigError, match="--data"):
        forget(["nobody"], [])
