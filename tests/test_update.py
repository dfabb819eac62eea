"""update: a tiny shop whose model follows its events, or stays where it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from filelock import FileLock

from setrec import Recommender
from setrec.cf import CooccurrenceSVD, rotated
from setrec.cli import main, run
from setrec.commands import update, update_link, update_report, update_training
from setrec.commands.gate import is_gate_user, judge
from setrec.data import Cleaning, SETRecDataModule, SyntheticWorld
from setrec.data.catalogue import Catalogue, Histories
from setrec.data.grow import Newest, NewItems, grow, versions_of
from setrec.data.readers.base import EventLog
from setrec.data.store import check_prepared, locked, write
from setrec.errors import ConfigError, DataError
from setrec.evaluation.ranking_table import RankingTable
from setrec.files.hashes import read_sealed
from setrec.files.times import UNKNOWN
from setrec.inference.journal import Journal
from setrec.inference.journal_place import journal_path, share_journal
from tests.conftest import model

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu",
         "--trainer.logger=false"]  # fmt: skip
NOTHING = NewItems(pl.DataFrame(schema=dict.fromkeys(("id", "title", "text"), pl.String)), None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a fitted shop, the link to its model, and the files of two later periods."""
    folder = tmp_path_factory.mktemp("shop")
    log = SyntheticWorld(users=150, items=60, events=14).read(None)
    events = log.events.sort("time", maintain_order=True)
    n, first = len(events), events.head(len(events) * 6 // 10)["item"].cast(pl.String).unique().to_list()
    for number, (a, b) in enumerate(((0.0, 0.6), (0.6, 0.8), (0.8, 1.0))):
        events[int(n * a) : int(n * b)].write_csv(folder / f"events_{number}.csv")
    log.items.filter(pl.col("id").is_in(first)).write_csv(folder / "items_0.csv")
    log.items.filter(~pl.col("id").is_in(first)).write_csv(folder / "items_1.csv")
    names = {"events": "events_0.csv", "items": "items_0.csv", "user": "user", "item": "item", "timestamp": "time"}
    flags = [f"--data.reader.{name}={value}" for name, value in names.items()] + ["--data.reader.item_id=id"]
    flags += ["--data.reader.text_fields=[text]", "--data.cleaning.k_core=0", "--trainer.max_epochs=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # so that the checkpoint names its data relative to it
        run(["fit", "--data.name=shop", f"--data.raw={folder}", "--data.reader=TableFiles", *flags, *model(), *QUIET])
    return folder


@pytest.fixture
def shop(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy; its data is named relative to it."""
    for name in ("data", "lightning_logs"):
        shutil.copytree(made / name, tmp_path / name)
    for file in made.glob("*.csv"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    main(["update", "--publish", "lightning_logs/version_0/checkpoints/last.ckpt"])
    return tmp_path


def checkpoint_of(version: str) -> Path:
    path = update_report.path_of(Path(version), read_sealed(Path(version, "update.json")), "checkpoint")
    assert path is not None
    return path


def words(number: int, *more: str) -> list[str]:
    items = ["--items", "items_1.csv"] if number == 1 else []
    return ["--events", f"events_{number}.csv", *items, "--trainer.max_epochs", "1", *QUIET, *more]


def test_an_update_is_published_and_can_be_taken_back(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, before = Path("current.ckpt").resolve(), Catalogue.load("data/shop")
    report = update.from_words(words(1, "--tolerance", "9"))
    assert report is not None
    served = Path("current.ckpt").resolve()
    assert served == checkpoint_of("data/shop.002") != first
    assert read_sealed(Path("data/shop.002/update.json")) == report
    after, histories = Catalogue.load("data/shop.002"), Histories.load("data/shop.002")
    assert after.ids[: before.n_items] == before.ids  # rows stay
    assert report["added"]["items"] == after.n_items - before.n_items > 0
    old = Histories.load("data/shop")
    assert sum(len(rows.items) for rows in histories.times) == report["added"]["events"] + sum(
        len(r.items) for r in old.times
    )
    assert report["added"]["newest"] == len(histories.validation.items)
    check_prepared(Path("data/shop"))
    check_prepared(Path("data/shop.002"))
    own = after.ids[-1]
    assert own in Recommender.load("current.ckpt")
    assert Recommender.load("current.ckpt").recommend([[own], []], k=3)[0].items
    with pytest.raises(ConfigError, match="are in data/shop.002 already"):
        update.from_words(words(1))
    update.from_words(words(2, "--tolerance", "9"))
    assert list(versions_of(Path("data/shop"))) == [2, 3]
    main(["update", "--back"])
    assert Path("current.ckpt").resolve() == served
    main(["update", "--publish", "shop.003"])
    assert Path("current.ckpt").resolve().is_relative_to(Path("data/shop.003").resolve())
    main(["update", "--back"])
    main(["update", "--back"])
    assert Path("current.ckpt").resolve() == first
    with pytest.raises(ConfigError, match="nothing that was served before"):
        update.from_words(["--back=true"])
    assert "published: " in capsys.readouterr().out


def test_a_worse_model_is_not_published(shop: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    first = Path("current.ckpt").resolve()
    verdict = judge
    monkeypatch.setattr(update_training, "judge", lambda *given: verdict(*given)._replace(worse=True))
    with pytest.raises(SystemExit) as stop:
        main(["update", *words(1)])
    assert stop.value.code == update.REFUSED
    assert Path("current.ckpt").resolve() == first
    assert "NOT published" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(shop)
    report = update.from_words(words(2, "--keep", "1"))  # the events of the refused update are not lost
    assert report is not None
    assert report["base"] == "data/shop.002"
    assert not Path("data/shop.002").exists()
    users = set(pl.read_csv("events_1.csv")["user"])
    assert users <= set(Histories.load("data/shop.003").ids)


def test_items_of_a_version_of_the_catalogue_are_not_lost(shop: Path) -> None:
    recommender = Recommender.load(Path("current.ckpt").resolve())
    gone = Catalogue.load("data/shop").ids[0]
    recommender.add_items([{"id": "NEW", "title": "a garden lamp"}])
    recommender.remove_items([gone])
    recommender.save()
    report = update.from_words(words(1, "--tolerance", "9"))
    assert report is not None
    assert not recommender.journal.path.is_relative_to(shop / "lightning_logs")  # it is the one beside the link
    for path in ("current.ckpt", checkpoint_of("data/shop.002")):
        now = Recommender.load(path)
        assert "NEW" in now
        assert gone not in now


def test_a_moved_shop_finds_its_way_back(shop: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    update.from_words(words(1, "--tolerance", "9"))
    moved = tmp_path_factory.mktemp("elsewhere") / "shop"
    shutil.copytree(shop, moved, symlinks=True)
    shutil.rmtree(shop / "data")
    shutil.rmtree(shop / "lightning_logs")
    monkeypatch.chdir(moved)
    main(["update", "--publish", "shop.002"])
    assert Path("current.ckpt").resolve() == checkpoint_of("data/shop.002")
    main(["update", "--back"])
    assert Path("current.ckpt").resolve() == (moved / "lightning_logs/version_0/checkpoints/last.ckpt").resolve()
    assert str(shop) not in (moved / "data/shop.002/update.json").read_text()


@pytest.mark.parametrize("moment", ["before the link", "after the link"])
def test_a_kill_around_the_link_leaves_the_way_back(shop: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    first = Path("current.ckpt").resolve()

    def killed(*given: Path) -> str:
        if moment == "after the link":
            update_link.point(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(update, "point", killed)
    with pytest.raises(KeyboardInterrupt):
        update.from_words(words(1, "--tolerance", "9"))
    monkeypatch.undo()
    monkeypatch.chdir(shop)
    if moment == "before the link":
        assert Path("current.ckpt").resolve() == first
        update.from_words(words(1, "--tolerance", "9"))  # as cron does
        assert list(versions_of(Path("data/shop"))) == [2]
    else:
        assert Path("current.ckpt").resolve() != first
        with pytest.raises(ConfigError, match=r"are in data/shop.002 already"):
            update.from_words(words(1))
    main(["update", "--back"])
    assert Path("current.ckpt").resolve() == first


def test_a_link_takes_over_the_changes_of_its_checkpoint(made: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(made / "data", tmp_path / "data")
    shutil.copytree(made / "lightning_logs", tmp_path / "lightning_logs")
    own, link = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", tmp_path / "current.ckpt"

    def change(path: Path, name: str, version: bool = False) -> None:
        recommender = Recommender.load(path, data=tmp_path / "data/shop")
        line = {"add": [{"id": name, "title": f"a lamp {name}"}]}
        if version:
            recommender.add_items(line["add"])
            recommender.save()
        else:
            Journal(journal_path(path)).add(line["add"])

    def there(path: Path) -> set[str]:
        recommender = Recommender.load(path, data=tmp_path / "data/shop")
        return {name for name in "ABCDE" if name in recommender}

    change(own, "A", version=True)
    change(own, "B")
    assert str(update_link.point(link, own)).startswith("2 changes of the catalogue")
    assert there(link) == there(own) == {"A", "B"}
    change(own, "C")
    change(link, "D")
    assert there(link) == there(own) == {"A", "B", "C", "D"}
    assert journal_path(link) == journal_path(own) == tmp_path / "current.ckpt.items.jsonl"
    other = own.with_name("other.ckpt")
    shutil.copy(own, other)
    change(other, "E")
    for _ in range(2):  # the second time nothing is to be done
        update_link.point(link, other)
        assert there(link) == there(own) == there(other) == set("ABCDE")
    assert len(Journal(journal_path(link)).changes) == 5
    hand_made = tmp_path / "mine.ckpt"
    hand_made.symlink_to(own)
    assert there(hand_made) == set("ABCDE")


@pytest.mark.parametrize("moment", range(3))
def test_a_kill_while_journals_are_joined_loses_nothing(tmp_path: Path, monkeypatch, moment: int) -> None:
    own, link = tmp_path / "a.ckpt", tmp_path / "current.ckpt"
    own.touch()
    if moment:
        Journal(journal_path(link)).add([{"id": "L", "title": "l"}])
    Journal(journal_path(own)).add([{"id": "A", "title": "a"}])
    with monkeypatch.context() as patch:
        patch.setattr(
            "setrec.inference.journal_place.os.replace" if moment < 2 else "setrec.files.whole.os.replace", stop
        )
        with pytest.raises(KeyboardInterrupt):
            share_journal(link, own)
    share_journal(link, own)
    journal = Journal(journal_path(own))
    assert list(journal.added) == (["L", "A"] if moment else ["A"])
    assert len(journal.changes) == 1 + bool(moment)


def stop(*given: object, **more: object) -> None:
    raise KeyboardInterrupt


def test_two_at_once_and_leftovers(shop: Path) -> None:
    with FileLock(".current.ckpt.lock"), pytest.raises(ConfigError, match=r"another update of current.ckpt is running"):
        update.from_words(words(1))
    shutil.copytree("data/shop", "data/shop.002")  # as a killed update leaves it: no report
    manifest = json.loads(Path("data/shop.002/manifest.json").read_text()) | {"grown_from": ["x"]}
    Path("data/shop.002/manifest.json").write_text(json.dumps(manifest))
    report = update.from_words(words(1, "--tolerance", "9"))
    assert report is not None
    assert report["base"] == "data/shop"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give one of"),
        (["--events", "none.csv"], "no such file"),
        (["--events", "events_1.csv", "--share", "0"], "--share"),
        (["--events", "same.csv"], "nothing new"),
        (["--publish", "nothing"], "no such checkpoint"),
    ],
)
def test_what_is_wrong_is_one_sentence(shop: Path, given: list[str], message: str) -> None:
    known = Histories.load("data/shop").ids
    pl.read_csv("events_0.csv").filter(pl.col("user").is_in(known)).write_csv("same.csv")
    with pytest.raises((ConfigError, DataError), match=message):
        update.from_words(given)


# ------------------------------------------------------------------------------------------------------------- its parts
def log_of(rows: list[tuple[str, str, int]], timed: bool = True) -> EventLog:
    schema = {"user": pl.String, "item": pl.String, "time": pl.Int64}
    return EventLog(pl.DataFrame(rows, schema, orient="row"), NOTHING.table, timed=timed)


def grown(base: Path, log: EventLog, **more) -> tuple:
    made = grow(
        base, "x.002", log, NOTHING, [CooccurrenceSVD()], Cleaning(k_core=0), more.pop("newest", Newest(0.5)), "f"
    )
    return made, made.prepared


def test_new_events_stand_after_the_old_ones_by_time(made: Path) -> None:
    base, h = made / "data/shop", Histories.load(made / "data/shop")
    a, b, c = Catalogue.load(base).ids[:3]
    late = 1_700_000_000
    user = h.ids[0]
    early = int(h.times.train.row(0)[0] // 1_000_000) + 1  # between the user's first events
    rows = [
        (user, a, late),
        (user, b, late + 9),
        (user, "nobody knows it", late),
        ("new", c, late + 5),
        (user, c, early),
    ]
    found, p = grown(base, log_of(rows), newest=Newest(days=1 / 86_400 * 4))
    assert found.counts == {"events": 4, "users": 1, "items": 0, "newest": 2}
    assert found.dropped == {"of items that are not described": 1}
    assert (np.diff(p.times.train.row(0)) >= 0).all()
    assert p.train.row(0)[-1] == 0  # a
    assert p.validation.row(0).tolist() == [1]
    assert p.since[0] == 1 + list(p.times.train.row(0)).index(early * 1_000_000) - 1
    assert p.user_ids[-1] == "new"
    assert p.train.row(len(p.user_ids) - 1).tolist() == []
    assert (p.since[1:] == p.train.lengths[1:]).all()
    again, _ = grown(base, log_of([*rows, (user, a, late), (h.ids[1], b, late)]))
    assert again.dropped["drop_duplicates"] == 1


def test_events_without_times_come_in_their_order(made: Path) -> None:
    base, h = made / "data/shop", Histories.load(made / "data/shop")
    a, b = Catalogue.load(base).ids[:2]
    _, p = grown(base, log_of([(h.ids[0], b, 1), (h.ids[0], a, 2)], timed=False))
    assert p.train.row(0)[-1] == 1
    assert p.times.train.row(0)[-1] == UNKNOWN
    assert p.validation.row(0).tolist() == [0]


def test_a_rotation_brings_back_the_old_axes() -> None:
    rng = np.random.default_rng(0)
    old = rng.standard_normal((50, 8)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
    new = np.concatenate([old @ turn, rng.standard_normal((5, 8)).astype(np.float32)])
    found = rotated(new, old, np.arange(50))
    np.testing.assert_allclose(found[:50], old, atol=1e-5)
    np.testing.assert_allclose(found @ found.T, new @ new.T, atol=1e-4)


def test_worse_is_worse_beyond_chance() -> None:
    def table(hit: float, n: int) -> RankingTable:
        hits = (torch.rand(n, 3, 20, generator=torch.Generator().manual_seed(int(hit * 10))) < hit).to(torch.uint8)
        return RankingTable(np.arange(n), hits, None, torch.full((n, 3), 5, dtype=torch.int32), (5, 10, 20))

    assert judge(table(0.3, 400), table(0.1, 400), 0.02).worse
    assert not judge(table(0.1, 400), table(0.3, 400), 0.02).worse
    assert not judge(table(0.3, 400), table(0.1, 400), 0.9).worse
    half = is_gate_user([f"user {n}" for n in range(1000)]).mean()
    assert 0.4 < half < 0.6


def test_events_of_the_database_are_taken_once(shop: Path) -> None:
    pytest.importorskip("sqlalchemy")
    from setrec.shop.events import Event, EventStore

    rows = pl.read_csv("events_1.csv").iter_rows(named=True)
    events = [Event(row["user"], row["item"], row["time"] * 1_000_000, "buy") for row in rows]
    store = EventStore(Path("shop.db"))
    store.add(events)
    words = ["--database", "shop.db", "--items", "items_1.csv", "--trainer.max_epochs", "1", "--tolerance", "9", *QUIET]
    report = update.from_words(words)
    assert report is not None
    assert report["database"] == store.last() > 0
    histories = Histories.load("data/shop.002")
    assert histories.kind_names == ("", "buy")
    with pytest.raises(DataError, match="nothing new"):
        update.from_words(words)
    store.close()


def test_a_watching_server_sees_that_the_link_names_another_file(tmp_path: Path) -> None:
    from setrec.serve.file_watcher import file_state

    for name in "ab":
        (tmp_path / name).write_text(name)
    link, states = tmp_path / "current.ckpt", []
    for name in "aba":
        update_link.point(link, tmp_path / name)
        assert link.read_text() == name
        states.append(file_state(link))
    assert states[0] == states[2] != states[1]
    with pytest.raises(ConfigError, match="is a file"):
        update_link.point(tmp_path / "a", tmp_path / "b")


def test_replay_trains_on_new_events_and_some_old_ones(made: Path, tmp_path: Path) -> None:
    h = Histories.load(made / "data/shop")
    _, p = grown(made / "data/shop", log_of([(own, "?", 1) for own in h.ids[:1]] + new_rows(made)), newest=Newest(0.1))
    with locked(tmp_path / "x.002"):
        write(tmp_path / "x.002", p, {"text": None, "cf": [{}], "inputs": ""})
    counts = {}
    for replay in (None, 0.0, 0.3, 1.0):
        data = SETRecDataModule(name="x.002", root=str(tmp_path), prepared_only=True, replay=replay, max_history=500)
        data.setup()
        counts[replay] = int(sum(data.train_dataloader().rows.prefixes))
    assert counts[0.0] == int((p.train.lengths - p.since).sum())
    assert counts[0.0] < counts[0.3] < counts[1.0] == counts[None] == len(p.train.items)


def new_rows(made: Path) -> list[tuple[str, str, int]]:
    ids = Catalogue.load(made / "data/shop").ids
    return [("new", ids[n], 1_700_000_000 + n) for n in range(20)]
