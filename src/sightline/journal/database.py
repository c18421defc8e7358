"""The journal's database, SQLite or PostgreSQL: its tables, their migrations, and durable transactions."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from ..errors import JournalError
from .records import DatabaseUnavailable

SCHEMA_HEAD = "0003"
"""Newest revision in ``migrations/versions``, which leads to the tables below."""

MIGRATIONS_FOLDER = Path(__file__).with_name("migrations")
"""Alembic's script directory."""

LOCK_TIMEOUT_SECONDS = 10
"""Seconds a writer waits for another one (SQLite)."""

_ADVISORY_LOCK = 0x5167_4C69
"""Key of the PostgreSQL advisory lock that serialises writers, as SQLite does by itself."""

_WRITABLE = "make its folder writable, copy the site to one that is, or give --journal the URL of another database"

_TRANSIENT_SQLITE_ERRORS = {
    "full": "free some space",
    "locked": "wait until the process that writes to it ends",
    "readonly": _WRITABLE,
    "read-only": _WRITABLE,
    "unable to open": _WRITABLE,
    "disk i/o": "free some space, or move the site to another disk",
}
"""Words in SQLite's messages for conditions that may pass, and what to do about each."""

metadata = MetaData()

predictions = Table(
    "predictions",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("at", Double, nullable=False),  # seconds since 1970
    Column("release", Integer, nullable=False),
    Column("label", String(500), nullable=False),
    Column("confidence", Double, nullable=False),
    Column("abstained", Boolean, nullable=False),
    Column("sha256", String(64)),  # of the bytes received
    Column("subject", String(500)),
    Column("source", String(500)),
    Column("image", String(80)),  # name in images/
    Column("erased_at", Double),
    Index("predictions_at", "at"),
    Index("predictions_subject", "subject"),
)
"""Served predictions. Only erasure updates a row, and only ``sha256``, ``image`` and ``erased_at``."""

corrections = Table(
    "corrections",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("prediction", String(40), ForeignKey("predictions.id"), nullable=False),
    Column("label", String(500), nullable=False),
    Column("at", Double, nullable=False),
    Column("by", String(64)),  # name of an API key
    Index("corrections_prediction", "prediction"),
)
"""Corrected labels; of several for one prediction the latest counts. Rows are never updated."""

sketches = Table(
    "sketches",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # in the order of insertion
    Column("prediction", LargeBinary, nullable=False),  # the 16 bytes of its id
    Column("release", Integer, nullable=False),
    Column("values", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""A sketch of each answer, for monitoring. Rows are never updated; erasure deletes them.

They have no index but ``number``: a million of them stay under 150 MB.
"""

images = Table(
    "images",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("bytes", Integer, nullable=False),
)
"""Kept images, so that all processes together respect one quota."""


reviews = Table(
    "reviews",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("prediction", String(40), ForeignKey("predictions.id"), nullable=False),
    Column("kind", String(20), nullable=False),  # one of REVIEW_KINDS
    Column("label", String(500)),  # the right class; none where there is none, or the image is unusable
    Column("why", String(20)),  # the reason it was queued; null for an unsolicited correction
    Column("chance", Double),  # probability with which it was chosen; 0 where nothing random chose it
    Column("at", Double, nullable=False),
    Column("by", String(64)),
    Index("reviews_prediction", "prediction"),
)
"""What people said of answers that they were shown. One with a label is a correction too. Rows are never updated."""

queue = Table(
    "queue",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order in which they are shown
    Column("prediction", String(40), ForeignKey("predictions.id"), nullable=False, unique=True),
    Column("why", String(20), nullable=False),
    Column("chance", Double, nullable=False),
    Column("leader", String(40)),  # the answer that stands for this one
    Column("at", Double, nullable=False),
    Column("leased_by", String(64)),
    Column("leased_until", Double),
    Column("done_at", Double),
)
"""Answers that wait for a person, or did. A lease keeps others from seeing the same image."""


class RejectedValue(JournalError):
    """The database cannot store this value; other rows are not affected."""


@dataclass(frozen=True, eq=False)
class Database:
    """Connections to one database."""

    name: str
    """Name for messages, without a password."""
    fast_engine: Engine
    """For predictions. Commits in SQLite survive a killed process; a power cut may undo the last moments."""
    durable_engine: Engine
    """For corrections and erasures: on disk when the commit returns."""

    @contextmanager
    def read_transaction(self) -> Iterator[Connection]:
        """Yield a connection that sees one consistent state; raise DatabaseUnavailable."""
        with _translate_errors(self.name), self.fast_engine.connect() as connection:
            yield connection.execution_options(reading=True)

    @contextmanager
    def write_transaction(self, *, durable: bool) -> Iterator[Connection]:
        """Yield a connection in the only write transaction; raise DatabaseUnavailable, with nothing written.

        ``durable`` means that the commit returns after the data is on disk.
        """
        engine = self.durable_engine if durable else self.fast_engine
        with _translate_errors(self.name), engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                if durable:  # overrides the server's own setting
                    connection.execute(text("SET LOCAL synchronous_commit = on"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            yield connection

    def overwrite_erased(self) -> str | None:
        """Remove what erased values leave in the files of the database; return what remains, in one sentence.

        SQLite's write-ahead log is moved into the file, which overwrites what it frees, and emptied. PostgreSQL
        writes the tables again without the old versions of their rows. Raise DatabaseUnavailable.
        """
        with _translate_errors(self.name), self.durable_engine.connect() as connection:
            raw = connection.connection
            if connection.dialect.name == "sqlite":
                (busy, *_) = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return (
                    f"'{self.name}-wal' holds erased hashes as long as another process reads the database: repeat "
                    "this command when it has ended."
                    if busy
                    else None
                )
            connection.execution_options(isolation_level="AUTOCOMMIT")
            for setting in ("statement_timeout = 0", f"lock_timeout = {1000 * LOCK_TIMEOUT_SECONDS}"):
                connection.exec_driver_sql(f"SET {setting}")
            try:
                connection.exec_driver_sql("VACUUM (FULL, ANALYZE) predictions, images, sketches")
            finally:
                connection.invalidate()  # its settings are for this statement only
            return (
                f"The write-ahead log of the server of {self.name}, its replicas and its backups hold erased hashes "
                "until they are recycled: ask its administrator."
            )

    def insert_ignore(self, table: Table) -> Any:
        """Return an INSERT that skips rows whose key exists."""
        dialect = sqlite if self.fast_engine.dialect.name == "sqlite" else postgresql
        return dialect.insert(table).on_conflict_do_nothing()

    def close(self) -> None:
        """Close the connections."""
        for engine in (self.fast_engine, self.durable_engine):
            with suppress(SQLAlchemyError):
                engine.dispose()


def connect_database(where: Path | str) -> Database:
    """Return the database at a path (SQLite) or a URL, not connected yet; raise JournalError for any other URL."""
    url = _parse_url(where)
    if url.get_backend_name() == "sqlite":
        path = Path(url.database or "")
        if not path.exists():
            with suppress(OSError):  # SQLite reports it when it connects
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        options = {"timeout": LOCK_TIMEOUT_SECONDS}
        fast, durable = (create_engine(url, hide_parameters=True, connect_args=options) for _ in range(2))
        _set_pragmas(fast, synchronous="NORMAL")
        _set_pragmas(durable, synchronous="FULL")
        return Database(str(path), fast, durable)
    options = {
        "connect_timeout": 5,
        "tcp_user_timeout": 10_000,
        "application_name": "sightline",
        "options": "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000",
    }
    try:
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=options)
    except ModuleNotFoundError as error:
        raise JournalError(
            "A journal in PostgreSQL needs its driver: pip install 'sightline[postgresql]'"
        ) from error
    port = f":{url.port}" if url.port else ""
    return Database(f"postgresql://{url.host or 'localhost'}{port}/{url.database or ''}", engine, engine)


def migrate(database: Database) -> None:
    """Create the tables, or bring them to ``SCHEMA_HEAD``; raise JournalError if a newer release changed them."""
    with database.read_transaction() as connection:
        if _revisions(connection) == [SCHEMA_HEAD]:
            return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with database.write_transaction(durable=True) as connection:  # another process may have migrated meanwhile
        for revision in _revisions(connection):
            if revision not in known:
                raise JournalError(
                    f"The journal '{database.name}' has schema {revision}, newer than this release reads "
                    f"({SCHEMA_HEAD}). Upgrade with: pip install --upgrade sightline"
                )
        config.attributes["connection"] = connection  # for migrations/env.py
        command.upgrade(config, "head")


def _revisions(connection: Connection) -> list[str]:
    """The Alembic revisions that a database is at; empty for a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return []
    return list(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all())


def _parse_url(where: Path | str) -> URL:
    if isinstance(where, Path):
        return URL.create("sqlite", database=str(where))
    with suppress(ArgumentError, NoSuchModuleError, ValueError):
        url = make_url(where)
        backend = url.get_backend_name()
        if backend in ("postgresql", "postgres"):
            return url.set(drivername="postgresql+psycopg")
        if backend == "sqlite" and url.database:
            return url.set(drivername="sqlite")
    raise JournalError(  # the URL is not repeated: it may contain a password
        "The journal's URL cannot be used: give postgresql://user:password@host/database or sqlite:////path/to/file."
    ) from None


def _set_pragmas(engine: Engine, *, synchronous: str) -> None:
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin in on_begin, not in the driver
        _use_write_ahead_log(connection)
        for pragma in (f"synchronous={synchronous}", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    def on_begin(connection: Connection) -> None:
        # A writer locks at once: a read transaction that wants to write later can only be refused.
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a database to its write-ahead log, where it is not; wait for others who do the same.

    SQLite refuses this switch at once when another process is about it, whatever the connection's timeout: two
    readers that both want to become the writer would wait for each other for ever.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Turn a driver's error into one sentence without statements, values or passwords."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = " ".join(str(cause).split())[:200].rstrip(".")
        if isinstance(cause, sqlite3.Error):
            remedies = [f": {do}" for word, do in _TRANSIENT_SQLITE_ERRORS.items() if word in reason.lower()]
            transient = bool(remedies)
            reason += "".join(remedies[:1])
        else:
            lost = isinstance(error, DBAPIError) and error.connection_invalidated
            transient = lost or isinstance(error, OperationalError | InterfaceError)
        if transient:
            raise DatabaseUnavailable(f"The journal's database '{name}' does not answer: {reason}.") from error
        kind = RejectedValue if isinstance(error, DataError | IntegrityError) else JournalError
        raise kind(f"The journal's database '{name}' refuses: {reason}.") from error
    except (OverflowError, UnicodeError) as error:
        raise RejectedValue(f"The journal's database '{name}' cannot hold this: {error}.") from error
    except PoolTimeout as error:
        raise DatabaseUnavailable(f"The journal's database '{name}' is too busy to answer.") from error
