"""The log of what was recommended, and what was said of it."""

import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl
import sqlalchemy as sa

from setrec.shop.database import Database
from setrec.shop.events import add_feedback
from setrec.shop.tables import ANSWERS, FEEDBACK, USERS

_DAY = 86_400_000_000  # microseconds
_IN = 500
_COLUMNS: dict[str, Any] = {
    "id": pl.String, "variant": pl.String, "user": pl.Int64, "time": pl.Int64, "model": pl.String, "n_items": pl.Int64,
    "items": pl.List(pl.String), "propensities": pl.List(pl.Float64),
}  # fmt: skip


class Answer(NamedTuple):
    """A recommendation as it was given."""

    id: str
    variant: str  # main, challenger, or shadow: computed for the same user, and not shown
    user_key: int | None  # None: the user is not known
    time: int  # microseconds since 1970, UTC
    generation: int
    model: str  # what was served
    k: int
    n_items: int  # of the catalogue
    items: list[str]  # best first
    scores: list[float]
    propensities: list[float] | None = None  # the probability with which each item got into the list; None: 1 for all


class AnswerStore:
    """The log in a database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, answers: Sequence[Answer]) -> None:
        """Write down answers, without those to users who were erased meanwhile.

        Raises:
            StoreError: the database fails; none was written.
        """
        with self.database.write() as connection:
            wanted = list({one.user_key for one in answers if one.user_key is not None})
            alive: set[int | None] = {None}
            for start in range(0, len(wanted), _IN):
                some = USERS.c.key.in_(wanted[start : start + _IN])
                alive |= set(connection.scalars(sa.select(USERS.c.key).where(some)))
            rows = [
                one._asdict() | {name: json.dumps(getattr(one, name)) for name in ("items", "scores")}
                | {"propensities": None if one.propensities is None else json.dumps(one.propensities)}
                for one in answers if one.user_key in alive
            ]  # fmt: skip
            if rows:
                connection.execute(ANSWERS.insert(), rows)

    def feedback(self, answer: str, item: str, kind: str, when: int) -> bool:
        """Write down that an item of an answer was taken; false: that was known already."""
        with self.database.write() as connection:
            return add_feedback(connection, answer, item, kind, when, None)

    def forget(self, days: float) -> int:
        """Delete the answers and the feedback of more than so many days ago; returns how many rows."""
        before = time.time_ns() // 1000 - int(days * _DAY)
        with self.database.write() as connection:
            return sum(
                connection.execute(table.delete().where(table.c.time < before)).rowcount
                for table in (ANSWERS, FEEDBACK)
            )

    def read(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The log and the feedback.

        Returns:
            Answers: id, variant, user (key), time, model, n_items, items (list), propensities (list or null). Feedback: answer,
            item, kind, time.
        """
        a, f = ANSWERS.c, FEEDBACK.c
        query = sa.select(a.id, a.variant, a.user_key, a.time, a.model, a.n_items, a["items"], a.propensities)
        with self.database.read() as connection:
            rows: list[tuple[Any, ...]] = [
                (*row[:6], json.loads(row[6]), None if row[7] is None else json.loads(row[7]))
                for row in connection.execute(query.order_by(a.time, a.id, a.variant))
            ]
            said = [
                tuple(row) for row in connection.execute(sa.select(f.answer, f.item, f.kind, f.time).order_by(f.time))
            ]
        schema = {"answer": pl.String, "item": pl.String, "kind": pl.String, "time": pl.Int64}
        return pl.DataFrame(rows, _COLUMNS, orient="row"), pl.DataFrame(said, schema, orient="row")
