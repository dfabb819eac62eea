"""The database: SQLite in a file, or PostgreSQL by URL; one code for both.

One writer at a time, in all processes: with SQLite by `BEGIN IMMEDIATE`, with PostgreSQL by an advisory lock. So the order of
arrival is the order of the commits, and who reads on from the last event that was seen misses none.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, make_url

from setrec.errors import ConfigError
from setrec.shop.tables import SETTINGS

BUSY = 30  # seconds that a writer waits for another
CONNECT = 5  # seconds for a connection to PostgreSQL, or requests would wait for a host that is gone
POOL = 16  # most connections of a process
MIGRATIONS = Path(__file__).with_name("migrations")
_LOCK = 5_283_017_664  # PostgreSQL's advisory lock of the writer: any number that other programs do not use


class StoreError(Exception):
    """The database cannot be read or written just now; nothing of the request was stored."""


class UnfinishedErasureError(StoreError):
    """A user's rows are deleted, but their bytes may still be in the files: erase again. Its sentence is for the caller."""


class Database:
    """A database of the newest form.

    Attributes:
        shown: its name for people, without a password.
        salt: a random secret of this database, for keyed hashes that all its servers agree on.

    Args:
        url: a file, sqlite:///FILE, or postgresql://USER@HOST/NAME.

    Raises:
        ConfigError: the URL cannot be read, a package is missing, the database cannot be opened or is of a newer version.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = _url(url)
        self.shown = self.url.database or "" if self.is_sqlite else self.url.render_as_string(hide_password=True)
        wait = (
            {"timeout": BUSY}
            if self.is_sqlite
            else {}
            if "connect_timeout" in self.url.query
            else {"connect_timeout": CONNECT}
        )
        options: dict[str, Any] = {"connect_args": wait, "pool_pre_ping": not self.is_sqlite}
        try:
            if self.is_sqlite:
                Path(self.shown).parent.mkdir(parents=True, exist_ok=True)
            # hide_parameters: or the log of an error would hold ids of users
            self.engine = sa.create_engine(self.url, hide_parameters=True, pool_size=POOL, max_overflow=0, **options)
            if self.is_sqlite:
                sa.event.listen(self.engine, "connect", _prepare_sqlite)
                sa.event.listen(self.engine, "begin", _begin_sqlite)
            with self.write() as connection:
                _migrate(connection, self.shown)
                self.salt = _salt(connection)
        except ModuleNotFoundError as error:
            raise ConfigError(f"--database {self.shown} needs {error.name}: pip install 'setrec[postgres]'.") from None
        except (sa.exc.DBAPIError, StoreError, OSError) as error:
            raise ConfigError(f"--database {self.shown} cannot be opened ({_reason(error)}).") from None

    @property
    def is_sqlite(self) -> bool:
        """Whether this is SQLite; else it is PostgreSQL."""
        return self.url.get_backend_name() == "sqlite"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection to read all that is committed by now.

        Raises:
            StoreError: the database fails.
        """
        with _failing(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction of the only writer; it is committed and on the disk at the end of the block.

        Raises:
            StoreError: the database fails; nothing was written.
        """
        with _failing(), self.engine.connect().execution_options(setrec_write=True) as connection, connection.begin():
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            yield connection

    @contextmanager
    def alone(self) -> Iterator[sa.Connection]:
        """A connection without a transaction, for VACUUM and its kind.

        Raises:
            StoreError: the database fails.
        """
        with _failing(), self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except (sa.exc.DBAPIError, sa.exc.TimeoutError) as error:
        raise StoreError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The first line of what a database says; it names no values."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0]


def _url(given: str | Path) -> URL:
    if isinstance(given, Path) or "://" not in given:
        return URL.create("sqlite", database=str(given))
    try:
        url = make_url(given.replace("postgres://", "postgresql://", 1))
    except (sa.exc.ArgumentError, ValueError):
        raise ConfigError("--database is no URL such as postgresql://user@host/name or sqlite:///file.") from None
    name = url.drivername.partition("+")[0]
    if name == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if name == "sqlite" and url.database not in (None, "", ":memory:"):
        return url.set(drivername="sqlite")
    raise ConfigError(f"--database {name}: give a file, sqlite:///FILE or postgresql://USER@HOST/NAME.")


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions begin in `_begin_sqlite`, not when Python's module thinks fit
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", "temp_store=MEMORY"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    options = connection.get_execution_options()
    if options.get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("setrec_write") else "BEGIN")


def _migrate(connection: sa.Connection, shown: str) -> None:
    """Bring a database to the newest form, within the transaction of the only writer.

    Raises:
        ConfigError: it is of a newer version than this program.
    """
    script = ScriptDirectory(str(MIGRATIONS), version_locations=[str(MIGRATIONS)])
    current = MigrationContext.configure(connection).get_current_revision()
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise ConfigError(
            f"--database {shown} was written by a newer version of setrec (its form is {current!r}); install that version."
        )
    if current == script.get_current_head():
        return

    def upgrade(revision: Any, context: object) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), script, fn=upgrade, destination_rev="head") as environment:
        environment.configure(connection=connection)
        environment.run_migrations()


def _salt(connection: sa.Connection) -> bytes:
    """The secret of this database, made with it."""
    found = connection.scalar(sa.select(SETTINGS.c.value).where(SETTINGS.c.name == "salt"))
    if found is None:
        found = secrets.token_bytes(32)
        connection.execute(SETTINGS.insert().values(name="salt", value=found))
    return bytes(found)
