"""Clearing the files of a database from what was deleted: both databases leave old copies of moved rows in unused space."""

import time

import sqlalchemy as sa

from setrec.shop.database import Database, UnfinishedErasureError
from setrec.shop.tables import ANSWERS, EVENTS, FEEDBACK, USERS

PATIENCE = 30.0  # seconds to wait for readers


def rewrite(database: Database) -> None:
    """Write the tables anew, without the space of deleted rows, and empty SQLite's log.

    SQLite: VACUUM and a checkpoint that truncates the log. PostgreSQL: VACUUM FULL, which keeps readers and writers waiting. Its
    write-ahead log holds the deleted rows until it is recycled; so do replicas and backups, of both.

    Raises:
        StoreError: the database fails.
        UnfinishedErasureError: it is read without pause; the rows are deleted, but their bytes may still be in the files.
    """
    with database.alone() as connection:
        if not database.is_sqlite:
            for table in (USERS, EVENTS, ANSWERS, FEEDBACK):
                connection.exec_driver_sql(f"VACUUM (FULL) {table.name}")
            return
        connection.exec_driver_sql("VACUUM")
        _empty_log(connection)


def _empty_log(connection: sa.Connection) -> None:
    end = time.monotonic() + PATIENCE
    while connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]:
        if time.monotonic() > end:
            raise UnfinishedErasureError(
                "The database is being read without pause, so its log cannot be emptied: erase again."
            )
        time.sleep(0.05)
