"""From raw files to prepared data: what is kept, and when it is prepared again."""

import json
from pathlib import Path

import numpy as np
import pytest

from setrec.cf import CFFile, CooccurrenceSVD
from setrec.data import (
    Catalogue,
    Cleaning,
    Histories,
    LeaveOneOut,
    OfficialRelease,
    SyntheticWorld,
    TimeRatioSplit,
    prepare,
)
from setrec.data.preparation import Preparation
from setrec.errors import DataError
from setrec.text import TfidfSVD
from tests.raw_data import Fixed, official, run


def test_prepared_data_comes_back(tiny_release, tmp_path):
    folder = tmp_path / "data" / "tiny"
    preparation = official(tiny_release, cf=[CFFile(), CooccurrenceSVD(width=8)])
    assert prepare.prepare("tiny", folder, preparation, tiny_release)
    items, histories = Catalogue.load(folder), Histories.load(folder)
    log = OfficialRelease().read(tiny_release)
    assert items.ids == log.items["id"].to_list()
    assert np.array_equal(items.text.numpy(), np.load(tiny_release / "text.npy"))
    assert [table.shape for table in items.cf] == [(40, 64), (40, 8)]
    assert items.present[0].equal(items.warm)
    assert items.warm.sum() == 32
    assert items.count.sum() == len(log.train.items)
    for split, expected in ((histories.train, log.train), (histories.test, log.test)):
        assert np.array_equal(split.offsets, expected.offsets)
        assert np.array_equal(split.items, expected.items)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {
        "users": 60, "items": 40, "warm": 32, "cold": 8, "train": len(log.train.items),
        "validation": len(log.validation.items), "test": len(log.test.items),
    }  # fmt: skip
    assert manifest["cf"][0]["present"] == 32
    assert set(manifest["sources"]) == {path.name for path in tiny_release.iterdir()}
    assert sorted(path.name for path in folder.parent.iterdir()) == [".tiny.lock", "tiny"]


def test_skipped_when_nothing_changed_and_repeated_when_something_did(tiny_release, tmp_path):
    folder = tmp_path / "tiny"
    assert prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    before = Catalogue.load(folder).fingerprint

    def again(raw: Path | None = tiny_release, **changed) -> bool:
        return prepare.prepare("tiny", folder, official(tiny_release, **changed), raw)

    assert not again()
    assert not again(raw=None)  # the raw files are not needed any more
    assert not again(cleaning=Cleaning(k_core=9), split=LeaveOneOut(), paper_ids=True)  # a release comes split
    assert again(cf=[CooccurrenceSVD(width=8)])
    assert Catalogue.load(folder).fingerprint != before
    assert again(text=TfidfSVD(width=4, min_df=1))
    assert again(text=TfidfSVD(width=5, min_df=1))
    assert again()
    assert Catalogue.load(folder).fingerprint == before
    np.save(tiny_release / "text.npy", np.load(tiny_release / "text.npy") + 1)
    assert again()
    assert Catalogue.load(folder).fingerprint != before
    (folder / "items.parquet").write_bytes(b"damaged")
    with pytest.raises(DataError, match="pass --data.raw DIR"):
        again(raw=None)
    assert again()


def test_an_event_log_is_prepared_again_when_the_split_changes(tmp_path):
    preparation = Preparation(SyntheticWorld(users=60, items=40), None, [], Cleaning(), TimeRatioSplit(), False)
    assert prepare.prepare("w", tmp_path / "w", preparation, None)
    assert not prepare.prepare("w", tmp_path / "w", preparation, None)
    assert prepare.prepare("w", tmp_path / "w", preparation._replace(split=TimeRatioSplit(test_share=0.1)), None)
    assert prepare.prepare("w", tmp_path / "w", preparation._replace(cleaning=Cleaning(k_core=3)), None)


def test_missing_raw_folder(tmp_path):
    with pytest.raises(DataError, match=r"there is no folder .*nowhere; pass --data.raw DIR"):
        prepare.prepare("tiny", tmp_path / "tiny", official(tmp_path), tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"'tiny' is not prepared .* needs raw files; pass --data.raw DIR"):
        prepare.prepare("tiny", tmp_path / "tiny", official(tmp_path), None)
    with pytest.raises(DataError, match=r"training_dict.npy does not exist"):
        prepare.prepare(
            "tiny",
            tmp_path / "tiny",
            Preparation(OfficialRelease(), None, [], Cleaning(), TimeRatioSplit(), False),
            tmp_path,
        )


def test_items_without_a_row_or_twice_in_the_table(tmp_path):
    events = [("u", f"i{t}", t) for t in range(10)]
    items, _ = run(tmp_path, Fixed(events, [("i3", "three", "about three"), ("never", "", "")]))
    assert items.titles == ["", "", "", "three", "", "", "", "", "", ""]
    with pytest.raises(DataError, match="item 'i3' is there twice"):
        run(tmp_path, Fixed(events, [("i3", "a", ""), ("i3", "b", "")]), name="y")
