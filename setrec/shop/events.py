"""Users and their events."""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from setrec.shop.database import Database
from setrec.shop.erasure import rewrite
from setrec.shop.tables import ANSWERS, EVENTS, FEEDBACK, TOMBSTONES, USERS

SCHEMA = {"user": pl.String, "item": pl.String, "time": pl.Int64, "kind": pl.String}
HISTORY = 2_000  # most items of a history
_IN = 500  # most values of one IN (...)
_PIECE = 100_000  # rows of a table that are read at a time
_LEAST_KEY = 1 << 56  # so that the key of a user is eight bytes of chance


class Event(NamedTuple):
    """Something that a user did with an item."""

    user: str
    item: str
    time: int  # microseconds since 1970, UTC
    kind: str = ""
    id: str | None = None  # the caller's own id of the event
    answer: str | None = None  # the id of the recommendation that it follows


class KeyedHistory(NamedTuple):
    """The newest events of a user, oldest first: in the order of time, then of arrival."""

    key: int | None  # of the user; None: not known
    items: list[str]
    kinds: list[str]  # of each event; "" where it has none


class Added(NamedTuple):
    """What became of some events."""

    stored: int
    duplicates: int  # were there already, or stand twice among them


class EventStore:
    """Users and their events in a database. Any number of threads and processes may use it at the same time.

    An event with an own id is the same event as any other with that id. Without one, events that agree in user, item, time and kind
    are the same. The first one stays; adding it again changes nothing, so a caller that got no answer may send it again.

    Args:
        database: an open database, or what `Database` takes.

    Raises:
        ConfigError: see `Database`.
    """

    def __init__(self, database: Database | str | Path) -> None:
        self.database = database if isinstance(database, Database) else Database(database)

    def close(self) -> None:
        """Close all connections."""
        self.database.close()

    # ------------------------------------------------------------------------------------------------------- writing
    def add(self, events: Sequence[Event]) -> Added:
        """Store events; afterwards they are committed and on the disk.

        Raises:
            StoreError: the database fails; nothing was stored.
        """
        return self.add_groups([events])[0]

    def add_groups(self, groups: Sequence[Sequence[Event]]) -> list[Added]:
        """Store several groups of events in one transaction, which the disk has to sync once; the counts of each group.

        Raises:
            StoreError: the database fails; nothing was stored.
        """
        with self.database.write() as connection:
            keys = _keys(connection, {event.user for group in groups for event in group})
            new = {
                user: _new_key()
                for user in dict.fromkeys(e.user for group in groups for e in group)
                if user not in keys
            }
            if new:
                connection.execute(USERS.insert(), [{"id": user, "key": key} for user, key in new.items()])
                keys |= new
            rows: dict[bytes, dict[str, Any]] = {}
            marks = []  # of each group
            for group in groups:
                marks.append([_mark(event, keys[event.user]) for event in group])
                for event, mark in zip(group, marks[-1], strict=True):
                    rows.setdefault(mark, _row(event, keys[event.user], mark))
            stored = self._insert(connection, list(rows.values()))
            followed = [row for mark, row in rows.items() if mark in stored and row["answer"] is not None]
            _add_feedback(connection, followed)
        counts = []
        for own in marks:
            n = len(stored & set(own))
            stored -= set(own)  # an event in two groups counts for the first
            counts.append(Added(n, len(own) - n))
        return counts

    def _insert(self, connection: sa.Connection, rows: list[dict[str, Any]]) -> set[bytes]:
        """Insert events that are not there yet; their marks."""
        if not rows:
            return set()
        dialect = sqlite if self.database.is_sqlite else postgresql
        statement = dialect.insert(EVENTS).on_conflict_do_nothing().returning(EVENTS.c.mark)
        return {bytes(mark) for mark in connection.scalars(statement, rows)}

    def delete(self, user: str) -> int:
        """Erase a user; see `delete_many`. Returns how many events there were."""
        return self.delete_many([user])[0]

    def delete_many(self, users: Sequence[str]) -> list[int]:
        """Erase users: their events, answers, feedback and ids, also from the free space of the files.

        What stays of each is a hash of the id, keyed by a secret of this database, until `settle`: it tells `setrec update` whom
        to leave out of data that was prepared before.

        Returns:
            For each user, the number of rows that were deleted; 0: nothing was known of this user.

        Raises:
            StoreError: the database fails. If it fails after the deletion, erase again: the files are then cleared.
        """
        now = time.time_ns() // 1000
        counts = []
        with self.database.write() as connection:
            keys = _keys(connection, set(users))
            for user in users:
                key = keys.pop(user, None)  # a user named twice is gone the second time
                counts.append(0 if key is None else _delete(connection, key))
                mark = self._tombstone(user)
                connection.execute(TOMBSTONES.delete().where(TOMBSTONES.c.mark == mark))
                connection.execute(TOMBSTONES.insert().values(mark=mark, time=now))
        rewrite(self.database)
        return counts

    # ------------------------------------------------------------------------------------------------------- reading
    def history(self, user: str, limit: int = HISTORY) -> list[str]:
        """The items of a user's newest events, oldest first: in the order of time, then of arrival."""
        return self.histories([user], limit)[0]

    def histories(self, users: Sequence[str], limit: int = HISTORY) -> list[list[str]]:
        """The histories of several users, all from one moment; [] for those who are not known."""
        return [one.items for one in self.keyed_histories(users, limit)]

    def keyed_histories(self, users: Sequence[str], limit: int = HISTORY) -> list[KeyedHistory]:
        """The histories of several users with their keys, all from one moment; no key and no events for those who are not known.

        Raises:
            StoreError: the database fails.
        """
        with self.database.read() as connection:
            keys = _keys(connection, set(users))
            found = {}
            for user, key in keys.items():
                events = connection.execute(_NEWEST, {"user": key, "n": limit}).all()[::-1]
                found[user] = KeyedHistory(key, [event.item for event in events], [event.kind for event in events])
        return [found.get(user, KeyedHistory(None, [], [])) for user in users]

    def user(self, user: str) -> dict[str, Any] | None:
        """All that is kept of a user; None: nothing is.

        Returns:
            {"id", "events": [{"item", "time", "kind", "id", "answer"}], "answers": [...], "feedback": [...]}, each in the order of
            time, then of arrival; times in microseconds.
        """
        with self.database.read() as connection:
            key = _keys(connection, {user}).get(user)
            if key is None:
                return None
            c, a, f = EVENTS.c, ANSWERS.c, FEEDBACK.c
            own = sa.select(a.id).where(a.user_key == key)
            events = sa.select(c.item, c.time, c.kind, c.own_id.label("id"), c.answer).order_by(c.time, c.seq)
            answers = sa.select(a.id, a.variant, a.time, a.model, a["items"]).order_by(a.time, a.id)
            feedback = sa.select(f.answer, f.item, f.kind, f.time).order_by(f.time)
            return {
                "id": user,
                "events": _rows(connection, events.where(c.user_key == key)),
                "answers": [
                    row | {"items": json.loads(row["items"])}
                    for row in _rows(connection, answers.where(a.user_key == key))
                ],
                "feedback": _rows(connection, feedback.where((f.user_key == key) | f.answer.in_(own))),
            }

    def table(self, after: int | None = None, until: int | None = None) -> pl.DataFrame:
        """All events, in the order of arrival.

        Args:
            after: only those after the event with this number; see `last`.
            until: only those up to this number.

        Returns:
            Columns user (text), item (text), time (int64, microseconds since 1970, UTC), kind (text).
        """
        c = EVENTS.c
        query = sa.select(USERS.c.id, c.item, c.time, c.kind).join(USERS, USERS.c.key == c.user_key).order_by(c.seq)
        query = query if after is None else query.where(c.seq > after)
        query = query if until is None else query.where(c.seq <= until)
        pieces = [pl.DataFrame(schema=SCHEMA)]
        with self.database.read() as connection:
            for rows in connection.execution_options(yield_per=_PIECE).execute(query).partitions():
                pieces.append(pl.DataFrame([tuple(row) for row in rows], SCHEMA, orient="row"))
        return pl.concat(pieces)

    def last(self) -> int:
        """The number of the newest event, 0 if there is none. Numbers grow in the order of arrival and are never used again."""
        with self.database.read() as connection:
            return connection.scalar(sa.select(sa.func.max(EVENTS.c.seq))) or 0

    def counts(self) -> dict[str, int]:
        """The numbers of users and events."""
        with self.database.read() as connection:
            return {
                table.name: connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0
                for table in (USERS, EVENTS)
            }

    def popular(self, since: int, limit: int = 20) -> list[tuple[str, int]]:
        """The items with the most events since a time, each with their number; of equally many, the lower id first."""
        n = sa.func.count().label("n")
        query = sa.select(EVENTS.c.item, n).where(EVENTS.c.time >= since).group_by(EVENTS.c.item)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(n.desc(), EVENTS.c.item).limit(limit))
            return [(item, count) for item, count in rows]

    # ------------------------------------------------------------------------------------------------------- erasure
    def erased(self, users: Iterable[str]) -> list[str]:
        """Those of some users who were erased and are not settled. They may have new events since."""
        with self.database.read() as connection:
            marks = {bytes(mark) for mark in connection.scalars(sa.select(TOMBSTONES.c.mark))}
        return [user for user in users if self._tombstone(user) in marks] if marks else []

    def settle(self, before: int) -> None:
        """Forget that users were erased before a time, in microseconds: no prepared data holds them any more."""
        with self.database.write() as connection:
            connection.execute(TOMBSTONES.delete().where(TOMBSTONES.c.time < before))

    def _tombstone(self, user: str) -> bytes:
        return hmac.digest(self.database.salt, user.encode(), "sha256")


_NEWEST = (
    sa.select(EVENTS.c.item, EVENTS.c.kind)
    .where(EVENTS.c.user_key == sa.bindparam("user"))
    .order_by(EVENTS.c.time.desc(), EVENTS.c.seq.desc())
    .limit(sa.bindparam("n"))
)


def _new_key() -> int:
    return _LEAST_KEY + secrets.randbelow((1 << 63) - _LEAST_KEY)


def _keys(connection: sa.Connection, users: Collection[str]) -> dict[str, int]:
    """The keys of those users who are known."""
    found: dict[str, int] = {}
    wanted = list(users)
    for start in range(0, len(wanted), _IN):
        some = USERS.c.id.in_(wanted[start : start + _IN])
        for own, key in connection.execute(sa.select(USERS.c.id, USERS.c.key).where(some)):
            found[own] = key
    return found


def _mark(event: Event, key: int) -> bytes:
    """Equal for equal events: 16 bytes."""
    parts = ["id", event.id] if event.id is not None else ["", str(key), str(event.time), event.kind, event.item]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).digest()


def _row(event: Event, key: int, mark: bytes) -> dict[str, Any]:
    return {
        "user_key": key, "time": event.time, "item": event.item, "kind": event.kind, "own_id": event.id,
        "answer": event.answer, "mark": mark,
    }  # fmt: skip


def _add_feedback(connection: sa.Connection, rows: Sequence[dict[str, Any]]) -> None:
    """What events say of the answers that they follow; the first of equal ones stays."""
    for row in rows:
        add_feedback(connection, row["answer"], row["item"], row["kind"], row["time"], row["user_key"])


def add_feedback(connection: sa.Connection, answer: str, item: str, kind: str, when: int, key: int | None) -> bool:
    """Store that an item of an answer was taken; false: that is known already."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    values = {"answer": answer, "item": item, "kind": kind, "time": when, "user_key": key}
    statement = dialect.insert(FEEDBACK).values(values).on_conflict_do_nothing().returning(FEEDBACK.c.item)
    return connection.scalar(statement) is not None


def _delete(connection: sa.Connection, key: int) -> int:
    """Delete all rows of a user, also what was said of the answers that the user got."""
    of_user = sa.select(ANSWERS.c.id).where(ANSWERS.c.user_key == key)
    named = sa.select(FEEDBACK.c.answer).where(FEEDBACK.c.user_key == key)
    deleted = 0
    for answer in sorted({*connection.scalars(of_user), *connection.scalars(named)}):
        for table, column in ((ANSWERS, ANSWERS.c.id), (FEEDBACK, FEEDBACK.c.answer)):
            deleted += connection.execute(table.delete().where(column == answer)).rowcount
    deleted += connection.execute(EVENTS.delete().where(EVENTS.c.user_key == key)).rowcount
    return deleted + connection.execute(USERS.delete().where(USERS.c.key == key)).rowcount


def _rows(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(query).mappings()]
