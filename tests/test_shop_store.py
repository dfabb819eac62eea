"""The store of users and events against a plain dict, in SQLite and in PostgreSQL; erasure to the last byte."""

import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from setrec.errors import ConfigError
from setrec.shop import erasure, events
from setrec.shop.answers import Answer, AnswerStore
from setrec.shop.database import Database, StoreError
from setrec.shop.events import Added, Event, EventStore
from tests.postgres import Postgres, postgres

USERS = st.sampled_from(["a", "b/c", "ü '%", "d" * 500])
EVENTS = st.builds(
    Event, USERS, st.sampled_from("xyz"), st.integers(0, 3), st.sampled_from(["", "buy"]),
    st.sampled_from([None, None, "1", "2"]), st.none(),
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as one:
        yield one


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventStore]:
    if request.param == "sqlite":
        one = EventStore(tmp_path / "shop.db")
    else:
        one = EventStore(emptied(request.getfixturevalue("server").url))
    yield one
    one.close()


class Model(RuleBasedStateMachine):
    """What the store does, and what a list of events does."""

    new: Callable[[], str]  # an empty database

    def __init__(self) -> None:
        super().__init__()
        self.url = type(self).new()
        self.store = EventStore(self.url)
        self.events: list[Event] = []
        self.gone: set[str] = set()

    @rule(groups=st.lists(st.lists(EVENTS, max_size=4), max_size=3))
    def add(self, groups: list[list[Event]]) -> None:
        expected = []
        for group in groups:
            stored = 0
            for event in group:
                known = [e for e in self.events if (e.id == event.id if event.id else e == event)]
                self.events += [] if known else [event]
                stored += not known
            expected.append(Added(stored, len(group) - stored))
        assert self.store.add_groups(groups) == expected

    @rule(user=USERS)
    def delete(self, user: str) -> None:
        self.store.delete(user)
        self.events = [event for event in self.events if event.user != user]
        self.gone.add(user)

    @rule()
    def start_again(self) -> None:
        self.store.close()
        self.store = EventStore(self.url)

    @invariant()
    def same(self) -> None:
        assert self.store.table().rows() == [event[:4] for event in self.events]
        for user in ("a", "b/c", "ü '%", "d" * 500, "nobody"):
            own = sorted((event for event in self.events if event.user == user), key=lambda event: event.time)
            assert self.store.history(user) == [event.item for event in own]
            assert self.store.history(user, 2) == [event.item for event in own][-2:]
            assert bool(self.store.erased([user])) == (user in self.gone)

    def teardown(self) -> None:
        self.store.close()


def emptied(url: str) -> str:
    store = EventStore(url)
    with store.database.write() as connection:
        connection.exec_driver_sql("TRUNCATE users, events, answers, feedback, tombstones")
    store.close()
    return url


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def test_the_store_is_a_list_of_events(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = str(tmp_path) if kind == "sqlite" else request.getfixturevalue("server").url

    class Kind(Model):
        new = staticmethod(lambda: f"{url}/{uuid4()}.db" if kind == "sqlite" else emptied(url))

    examples = 25 if kind == "sqlite" else 4
    Kind.TestCase.settings = settings(max_examples=examples, stateful_step_count=8, deadline=None, database=None)
    Kind.TestCase("runTest").debug()


def test_events_histories_and_export(store: EventStore) -> None:
    assert store.add([Event("u", "a", 5), Event("u", "b", 2, "buy", "7", "ANSWER"), Event("v", "a", 5)]) == Added(3, 0)
    assert store.add([Event("v", "zzz", 9, "", "7"), Event("u", "a", 5), Event("u", "a", 5, "buy")]) == Added(1, 2)
    first = store.last()
    assert store.histories(["u", "none", "v"]) == [["b", "a", "a"], [], ["a"]]
    store.add([Event("w", "c", 1)])
    assert store.table(after=first).rows() == [("w", "c", 1, "")]
    assert store.table(until=first).height == 4
    assert store.popular(2) == [("a", 3), ("b", 1)]
    assert store.counts() == {"users": 3, "events": 5}
    answers = AnswerStore(store.database)
    ((key, *_),) = store.keyed_histories(["u"])
    answers.add([Answer(own, "main", key, 3, 0, "m#1", 1, 9, ["b"], [0.5]) for own in ("ANSWER", "OTHER")])
    assert answers.feedback("OTHER", "b", "click", 4)
    assert not answers.feedback("OTHER", "b", "click", 5)
    kept = store.user("u")
    assert kept is not None
    assert kept["events"][0] == {"item": "b", "time": 2, "kind": "buy", "id": "7", "answer": "ANSWER"}
    assert [row["id"] for row in kept["answers"]] == ["ANSWER", "OTHER"]
    assert [row["answer"] for row in kept["feedback"]] == ["ANSWER", "OTHER"]
    assert store.delete("u") == 1 + 3 + 2 + 2
    assert store.user("u") is None
    answers.add([Answer("LATE", "main", key, 3, 0, "m#1", 1, 9, ["b"], [0.5])])  # it waited while the user was erased
    assert [len(one) for one in answers.read()] == [0, 0]
    last = store.last()
    store.delete("w")
    store.add([Event("x", "c", 1)])
    assert store.last() > last  # numbers are not used again
    assert store.erased(["u", "v", "w"]) == ["u", "w"]
    store.settle(1 << 62)
    assert store.erased(["u", "v", "w"]) == []


def test_writers_at_the_same_time_lose_nothing(store: EventStore) -> None:
    def write(name: str) -> None:
        for i in range(15):
            store.add([Event("shared", f"{name}{i}", i), Event(name, "a", i)])

    threads = [threading.Thread(target=write, args=(name,)) for name in "pqrs"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.counts() == {"users": 5, "events": 120}
    assert len(store.history("shared")) == 60


def fill(store: EventStore) -> list[str]:
    """Users with long ids, in an order by chance, so that pages are split and rows are moved, and answers that need pages of
    their own; the ids of those to erase."""
    chance = random.Random(1)
    users = [f"person-{i:05d}-{chance.getrandbits(64):x}" for i in range(400)]
    for part in range(6):
        chance.shuffle(users)
        store.add(
            [Event(user, f"thing-of-{user}", chance.randrange(10**6), "buy", f"own-{user}-{part}") for user in users]
        )
    AnswerStore(store.database).add([
        Answer(f"{user}'s", "main", key, 5, 0, "m", 100, 9, [f"shown-to-{user}", *["x" * 20] * 500], [0.5] * 501)
        for user, (key, *_) in zip(users[::3], store.keyed_histories(users[::3]), strict=True)
    ])  # fmt: skip
    return users[::40]


def clearing(how: str) -> Callable[[Database], None]:
    """What `rewrite` does to SQLite, or half of it."""

    def clear(database: Database) -> None:
        with database.alone() as connection:
            if "VACUUM" in how:
                connection.exec_driver_sql("VACUUM")
            if "log" in how:
                erasure._empty_log(connection)

    return clear


@pytest.mark.parametrize("half", ["", "VACUUM", "log"])
def test_sqlite_keeps_no_byte_of_an_erased_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str) -> None:
    """In the file, its free pages and its log. Half of the clearing leaves some, so this test can fail; without secure_delete,
    since with it the copies that moved rows leave are too rare (a key of 1,000 in a trial)."""

    def insecure(connection: Any, record: object) -> None:
        connection.execute("PRAGMA secure_delete=OFF")

    def left() -> int:
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # the server is still running
        assert b"person-" in content
        marks = [[user.encode(), key.to_bytes(8)] for user, key in zip(gone, keys, strict=True) if key is not None]
        assert len(marks) == len(gone)
        return sum(any(mark in content for mark in pair) for pair in marks)  # nor a row without a name

    store = EventStore(tmp_path / "shop.db")
    store.database.engine.dispose()
    sa.event.listen(store.database.engine, "connect", insecure)
    gone = fill(store)
    keys = [one.key for one in store.keyed_histories(gone)]
    with monkeypatch.context() as patch:
        patch.setattr(events, "rewrite", clearing(half))
        store.delete_many(gone)
    assert left() > len(gone) / 2
    store.delete_many(gone)  # erase again: all of it
    assert left() == 0
    store.close()


@pytest.mark.process
def test_postgresql_keeps_no_byte_of_an_erased_user_in_its_tables(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EventStore(server.url)
    gone = fill(store)
    with monkeypatch.context() as patch:
        patch.setattr(events, "rewrite", lambda database: None)
        store.delete_many(gone)

    def left() -> list[str]:
        server.stop()  # with a checkpoint
        server.start()
        found = {path for user in gone for path in holding(server.data, user)}
        return sorted(path for path in found if "/pg_wal/" not in path)

    assert left()  # deleting alone leaves them, so this test can fail
    store.delete_many(gone)
    store.close()
    assert left() == []
    assert holding(server.data / "base", "person-")


def holding(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold some bytes."""
    return subprocess.run(
        ["grep", "-rlaF", text, str(folder)], capture_output=True, text=True, check=False
    ).stdout.split()


def test_one_sentence_for_what_cannot_be_opened(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "new.db")
    with store.database.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(ConfigError, match="newer version of setrec"):
        Database(tmp_path / "new.db")
    (tmp_path / "text.db").write_text("no database, but a text of some length" * 99)
    with pytest.raises(ConfigError, match="not a database"):
        Database(tmp_path / "text.db")
    with pytest.raises(ConfigError, match="is no URL") as wrong:
        Database("postgresql://u:secret@host:port/x")
    assert "secret" not in str(wrong.value)
    with pytest.raises(ConfigError, match=r"cannot be opened") as closed:
        Database("postgresql://u:secret@127.0.0.1:1/x")
    assert "secret" not in str(closed.value)
    with pytest.raises(ConfigError, match="give a file"):
        Database("mysql://u:secret@host/x")


@pytest.mark.process
def test_postgresql_killed_loses_no_event(server: Postgres) -> None:
    store = EventStore(server.url)
    store.add([Event("kept", "a", i) for i in range(50)])
    server.kill()
    with pytest.raises(StoreError):
        store.add([Event("kept", "b", 1)])
    server.start()
    assert store.add([Event("kept", "b", 99)]) == Added(1, 0)
    assert store.history("kept") == ["a"] * 50 + ["b"]
    store.close()
