"""From raw events to prepared data: cleaning, splits, ids, the store, and what happens when something goes wrong."""

import json
import math
import multiprocessing
import os
import random
import resource
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file, save_file

from setrec.cf import CFFile, CooccurrenceSVD
from setrec.data import (
    Catalogue,
    Cleaning,
    EventLog,
    Histories,
    LeaveOneOut,
    OfficialRelease,
    Ragged,
    Reader,
    SyntheticWorld,
    TimeRatioSplit,
    TimestampSplit,
    catalogue,
    prepare,
    store,
)
from setrec.data.prepare import Preparation
from setrec.errors import DataError
from setrec.text import TextFile, TfidfSVD


class Fixed(Reader):
    """Events given by the test."""

    needs_raw: ClassVar[bool] = False

    def __init__(self, events: list[tuple], items: list[tuple] | None = None) -> None:
        self.events, self.items = events, items

    def read(self, raw: Path | None) -> EventLog:
        columns = ["user", "item", "time", "rating"][: len(self.events[0])]
        events = pl.DataFrame(self.events, schema=columns, orient="row", schema_overrides={"time": pl.Int64})
        names = [(i, f"title {i}", f"text {i}") for i in sorted({event[1] for event in self.events})]
        rows = self.items if self.items is not None else names
        items = pl.DataFrame(rows, schema=dict.fromkeys(("id", "title", "text"), pl.String), orient="row")
        return EventLog(events, items)


def run(tmp_path: Path, reader: Reader, cleaning=None, split=None, paper_ids=False, name="x", text=None, cf=()):
    preparation = Preparation(
        reader, text, list(cf), cleaning or Cleaning(k_core=0), split or TimeRatioSplit(), paper_ids
    )
    prepare.prepare(name, tmp_path / name, preparation, None)
    return Catalogue.load(tmp_path / name), Histories.load(tmp_path / name)


def as_dicts(histories: Histories) -> list[dict[str, list[int]]]:
    splits = (histories.train, histories.validation, histories.test)
    return [{own: split.row(u).tolist() for u, own in enumerate(histories.ids)} for split in splits]


def random_events(seed: int, users: int = 40, items: int = 30, n: int = 600) -> list[tuple]:
    """Distinct (user, item) pairs with many ties in time, in no order, own ids that sort unlike numbers."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice(users * items, n, replace=False)
    times = rng.integers(1_000, 1_060, n)
    return [(f"u{pair // items}", f"B{pair % items}é", int(time)) for pair, time in zip(pairs, times, strict=True)]


def papers_recipe(events: list[tuple]) -> tuple[list[str], list[dict[int, list[int]]], list[str]]:
    """The paper's recipe once more, in plain Python. Returns users, the three dicts, the items' own ids in order."""
    times = sorted(time for _, _, time in events)
    test_num = int(0.17 * len(times))
    test_from, validation_from = times[-test_num], times[-math.ceil(1.8 * test_num)]
    of_user: dict[str, list[tuple]] = {}
    for event in events:
        of_user.setdefault(event[0], []).append(event)
    of_user = {user: sorted(rows, key=lambda e: e[2]) for user, rows in of_user.items()}
    of_user = {user: rows for user, rows in of_user.items() if sum(e[2] < validation_from for e in rows) >= 2}
    own_ids = sorted({item for rows in of_user.values() for _, item, _ in rows})
    random.seed(2023)
    random.shuffle(own_ids)
    number = {own: i for i, own in enumerate(own_ids)}
    dicts: list[dict[int, list[int]]] = [{}, {}, {}]
    for u, rows in enumerate(of_user.values()):
        for part in range(3):
            dicts[part][u] = [number[i] for _, i, t in rows if (t >= validation_from) + (t >= test_from) == part]
    return list(of_user), dicts, own_ids


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_papers_recipe(tmp_path, seed):
    events = random_events(seed)
    users, dicts, own_ids = papers_recipe(events)
    assert 5 < len(users) <= 40
    assert all(any(rows.values()) for rows in dicts)
    items, histories = run(tmp_path, Fixed(events), paper_ids=True)
    assert items.ids == own_ids
    assert histories.ids == users
    for split, expected in zip((histories.train, histories.validation, histories.test), dicts, strict=True):
        assert [split.row(u).tolist() for u in range(len(split))] == [expected[u] for u in range(len(users))]


def test_the_papers_recipe_by_hand(tmp_path):
    """12 events at times 1..12: test_num = int(2.04) = 2, so test from 11; ceil(3.6) = 4, so validation from 9."""
    events = [
        ("anna", "c", 1), ("ben", "a", 2), ("anna", "a", 3), ("cara", "d", 4), ("ben", "b", 5), ("anna", "b", 6),
        ("ben", "c", 7), ("anna", "e", 8), ("cara", "a", 9), ("anna", "f", 10), ("ben", "e", 11), ("cara", "g", 12),
    ]  # fmt: skip
    # cara has one training item and goes, with her the items d and g; sorted: a b c e f
    order = ["a", "b", "c", "e", "f"]
    random.Random(2023).shuffle(order)
    items, histories = run(tmp_path, Fixed(events), paper_ids=True)
    assert items.ids == order
    assert histories.ids == ["anna", "ben"]
    own = [{user: [items.ids[i] for i in row] for user, row in split.items()} for split in as_dicts(histories)]
    assert own == [
        {"anna": ["c", "a", "b", "e"], "ben": ["a", "b", "c"]},
        {"anna": ["f"], "ben": []},
        {"anna": [], "ben": ["e"]},
    ]
    assert items.count[items.ids.index("a")] == 2
    assert not items.warm[items.ids.index("f")]
    assert items.titles[items.ids.index("f")] == "title f"


def test_row_order_changes_nothing_without_paper_ids(tmp_path):
    events = random_events(3)
    first = run(tmp_path, Fixed(events), name="first")
    random.Random(0).shuffle(events)
    second = run(tmp_path, Fixed(events), name="second")
    assert first[0].ids == second[0].ids == sorted(first[0].ids)
    assert as_dicts(first[1]) == as_dicts(second[1])
    files = [read["files"] for name in ("first", "second") if (read := catalogue.read_manifest(tmp_path / name))]
    assert files[0] == files[1]  # byte for byte


def test_same_events_same_content_with_either_ids(tmp_path):
    events = [(f"u{i % 7}", f"i{i * 5 % 11}", i) for i in range(70)]  # no ties
    content = []
    for paper_ids in (True, False):
        items, histories = run(tmp_path, Fixed(events), paper_ids=paper_ids, name=str(paper_ids))
        content.append([{u: [items.ids[i] for i in r] for u, r in split.items()} for split in as_dicts(histories)])
    assert content[0] == content[1]


def test_timestamp_split(tmp_path):
    events = [("u", f"i{t}", t) for t in range(10)]
    items, histories = run(tmp_path, Fixed(events), split=TimestampSplit(4, 7))
    own = [[items.ids[i] for i in split["u"]] for split in as_dicts(histories)]
    assert own == [["i0", "i1", "i2", "i3"], ["i4", "i5", "i6"], ["i7", "i8", "i9"]]
    with pytest.raises(DataError, match="swap them"):
        run(tmp_path, Fixed(events), split=TimestampSplit(7, 4), name="y")


def test_leave_one_out(tmp_path):
    events = [("u", "a", 5), ("u", "b", 5), ("u", "c", 1), ("u", "d", 9), ("v", "a", 1), ("v", "b", 2), ("v", "c", 3)]
    items, histories = run(tmp_path, Fixed(events), split=LeaveOneOut())
    assert histories.ids == ["u"]  # v would have one training item
    own = [[items.ids[i] for i in split["u"]] for split in as_dicts(histories)]
    assert own == [["c", "a"], ["b"], ["d"]]  # the tie at time 5 goes by item


def test_too_few_events_for_the_ratio(tmp_path):
    with pytest.raises(DataError, match="4 events are too few"):
        run(tmp_path, Fixed([("u", "a", t) for t in range(4)]))


def naive_core(events: list[tuple], k: int) -> list[tuple]:
    while True:
        users, items = [e[0] for e in events], [e[1] for e in events]
        kept = [e for e in events if users.count(e[0]) >= k and items.count(e[1]) >= k]
        if kept == events:
            return events
        events = kept


def test_k_core():
    events = [e for e in random_events(4, n=400) if int(e[0][1:]) % 5 or e[2] % 3]
    frame = pl.DataFrame(events, schema=["user", "item", "time"], orient="row").with_row_index("row")
    expected = naive_core(events, 7)
    assert 0 < len(expected) < len(naive_core(events, 5))
    assert Cleaning(k_core=7).apply(frame).drop("row").rows() == expected


def test_cleaning_options():
    events = [("u", "a", 1, 5.0), ("u", "a", 1, 1.0), ("u", "b", 2, 2.0), ("u", "c", 3, 4.0), ("v", "a", 1, 4.0)]
    frame = pl.DataFrame(events, schema=["user", "item", "time", "rating"], orient="row").with_row_index("row")

    def rows(**options) -> list[int]:
        return Cleaning(**{"k_core": 0} | options).apply(frame)["row"].to_list()

    assert rows() == [0, 2, 3, 4]
    assert rows(drop_duplicates=False) == [0, 1, 2, 3, 4]
    assert rows(min_rating=4.0) == [0, 3, 4]
    assert rows(max_user_events=2) == [2, 3, 4]
    with pytest.raises(DataError, match="cleaning leaves none of 5 events"):
        rows(k_core=5)
    with pytest.raises(DataError, match="the events have no rating"):
        Cleaning(min_rating=3).apply(frame.drop("rating"))


def test_items_without_a_row_or_twice_in_the_table(tmp_path):
    events = [("u", f"i{t}", t) for t in range(10)]
    items, _ = run(tmp_path, Fixed(events, [("i3", "three", "about three"), ("never", "", "")]))
    assert items.titles == ["", "", "", "three", "", "", "", "", "", ""]
    with pytest.raises(DataError, match="item 'i3' is there twice"):
        run(tmp_path, Fixed(events, [("i3", "a", ""), ("i3", "b", "")]), name="y")


def official(tiny_release: Path, **changed) -> Preparation:
    preparation = Preparation(OfficialRelease(), TextFile("text.npy"), [CFFile()], Cleaning(), TimeRatioSplit(), False)
    return preparation._replace(**changed)


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


def test_another_folder_is_not_replaced(tiny_release, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(DataError, match="is not a prepared data set and would be replaced"):
        prepare.prepare("photos", folder, official(tiny_release), tiny_release)
    assert (folder / "cat.jpg").read_bytes() == b"cat"


def test_a_root_that_cannot_be_written(tiny_release, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot write to .*file .*choose another place with --data.root DIR"):
        prepare.prepare("tiny", tmp_path / "file" / "tiny", official(tiny_release), tiny_release)


@pytest.mark.parametrize("at", ["save_file", "manifest", "rename"])
def test_a_failed_write_changes_nothing(tiny_release, tmp_path, monkeypatch, at):
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = official(tiny_release, cf=[CooccurrenceSVD(width=8)])

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if at == "save_file":
            patch.setattr(store, "save_file", full)
        elif at == "manifest":
            patch.setattr(Path, "write_text", full)
        else:  # the older version is away already when the new one should take its place
            real, calls = os.replace, []

            def second_fails(source, target):
                calls.append(target)
                return full() if len(calls) == 2 else real(source, target)

            patch.setattr(os, "replace", second_fails)
        with pytest.raises(DataError, match=r"failed \(.*No space left on device.*nothing was changed"):
            prepare.prepare("tiny", folder, changed, tiny_release)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "release", "tiny"]
    assert prepare.prepare("tiny", folder, changed, tiny_release)


def _prepare_with_little_space(raw: Path, folder: Path, queue) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))  # writing more fails as on a full disk
    try:
        prepare.prepare("tiny", folder, official(raw), raw)
        queue.put("done")
    except DataError as error:
        queue.put(str(error))


@pytest.mark.process
def test_a_really_full_disk(tiny_release, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_prepare_with_little_space, args=(tiny_release, tmp_path / "tiny", queue))
    process.start()
    message = queue.get(timeout=60)
    process.join(timeout=60)
    assert "nothing was changed" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "release"]


def _prepare_and_count(raw: Path, folder: Path, gate, queue) -> None:
    gate.wait(60)
    queue.put(prepare.prepare("tiny", folder, official(raw), raw))


@pytest.mark.process
def test_two_processes_at_once(tiny_release, tmp_path):
    context = multiprocessing.get_context("spawn")
    gate, queue = context.Barrier(2), context.Queue()
    arguments = (tiny_release, tmp_path / "tiny", gate, queue)
    processes = [context.Process(target=_prepare_and_count, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    did = [queue.get(timeout=90) for _ in processes]
    for process in processes:
        process.join(timeout=60)
    assert sorted(did) == [False, True]  # one works, the other finds it done
    assert Catalogue.load(tmp_path / "tiny").n_items == 40


def test_what_a_killed_process_left_is_cleared(tiny_release, tmp_path):
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    folder.rename(tmp_path / ".tiny.old")  # killed between the two renames
    (tmp_path / ".tiny.new").mkdir()
    assert not prepare.prepare("tiny", folder, official(tiny_release), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tiny.lock", "release", "tiny"]


def test_a_matrix_made_for_other_items_is_refused(tiny_release, tmp_path):
    folder = tmp_path / "tiny"
    prepare.prepare("tiny", folder, official(tiny_release), tiny_release)
    for name in ("text.safetensors", "cf.safetensors"):
        tensors, good = load_file(folder / name), (folder / name).read_bytes()
        save_file(tensors, folder / name, {"ids_sha256": catalogue.ids_hash(["other", "items"])})
        with pytest.raises(DataError, match=f"{name} was made for other items"):
            Catalogue.load(folder)
        (folder / name).write_bytes(good)
    Catalogue.load(folder)


def test_loading_what_is_not_prepared(tmp_path):
    with pytest.raises(DataError, match="holds no prepared data"):
        Catalogue.load(tmp_path)


def test_ids_hash_tells_lists_apart():
    assert len({catalogue.ids_hash(ids) for ids in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"], [])}) == 5


def test_a_ragged_row_of_unequal_users(tmp_path):
    """Users without validation or test items come back as empty rows."""
    histories = run(tmp_path, Fixed(random_events(5)))[1]
    assert (histories.validation.lengths == 0).any() or (histories.test.lengths == 0).any()
    assert isinstance(histories.train, Ragged)
    assert len(histories.train) == len(histories.validation) == len(histories.test) == len(histories.ids)
