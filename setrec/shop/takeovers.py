"""Which models began to serve, and when."""

from typing import NamedTuple

import sqlalchemy as sa

from setrec.shop.database import Database
from setrec.shop.tables import TAKEOVERS


class Takeover(NamedTuple):
    """A model that began to serve."""

    time: int  # microseconds since 1970, UTC
    checkpoint: str  # its path
    generation: int  # of its server, which counts from its start
    model: str  # the name and the hash of its files


class TakeoverStore:
    """The list in a database. All servers and workers of the database share it."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(self, takeover: Takeover) -> None:
        """Write down a model, unless it is the one written last: by another worker, or before a restart.

        Raises:
            StoreError: the database fails.
        """
        newest = sa.select(TAKEOVERS.c.model).order_by(TAKEOVERS.c.seq.desc()).limit(1)
        with self.database.write() as connection:
            if connection.scalar(newest) != takeover.model:
                connection.execute(TAKEOVERS.insert().values(takeover._asdict()))

    def newest(self, since: int, limit: int) -> list[Takeover]:
        """The models since a time, newest first.

        Raises:
            StoreError: the database fails.
        """
        columns = [TAKEOVERS.c[name] for name in Takeover._fields]
        query = sa.select(*columns).where(TAKEOVERS.c.time >= since).order_by(TAKEOVERS.c.seq.desc()).limit(limit)
        with self.database.read() as connection:
            return [Takeover(*row) for row in connection.execute(query)]
