"""The database a journal lives in: SQLite or PostgreSQL, opened so that what is acknowledged lasts."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, event, text
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

LOCK_TIMEOUT_SECONDS = 10
"""Seconds that a writer waits for another one."""

_ADVISORY_LOCK = 0x5167_4C69
"""Number of the lock of PostgreSQL under which journals are written, as SQLite's writers are, one by one."""

_TRANSIENT_SQLITE_ERRORS = ("full", "locked", "readonly", "read-only", "unable to open", "disk i/o")
"""Words of SQLite for what may pass."""


class RejectedValue(JournalError):
    """A value that this database cannot hold; others it may."""


@dataclass(frozen=True, eq=False)
class Database:
    """Connections to one database."""

    name: str
    """How it is called in messages: never with a password."""
    fast_engine: Engine
    """For predictions. SQLite's survive a killed process, and a power cut but for the last moments."""
    durable_engine: Engine
    """For corrections and erasures: on the disk when a commit returns."""

    @contextmanager
    def read_transaction(self) -> Iterator[Connection]:
        """A connection that sees one state; raises Unavailable where there is none."""
        with _translate_errors(self.name), self.fast_engine.connect() as connection:
            yield connection.execution_options(reading=True)

    @contextmanager
    def write_transaction(self, *, sure: bool) -> Iterator[Connection]:
        """A transaction that is the only one writing; raises Unavailable, and then nothing happened."""
        with (
            _translate_errors(self.name),
            (self.durable_engine if sure else self.fast_engine).begin() as connection,
        ):
            if connection.dialect.name == "postgresql":
                if sure:  # whatever the server's own setting is
                    connection.execute(text("SET LOCAL synchronous_commit = on"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
            yield connection

    def insert_ignore(self, table: Table) -> Any:
        """An INSERT that leaves alone what is there already."""
        kind = sqlite if self.fast_engine.dialect.name == "sqlite" else postgresql
        return kind.insert(table).on_conflict_do_nothing()

    def close(self) -> None:
        """Let the connections go."""
        for engine in (self.fast_engine, self.durable_engine):
            with suppress(SQLAlchemyError):
                engine.dispose()


def connect_database(where: Path | str) -> Database:
    """The database at a path or a URL, not yet looked into; raises JournalError for what is neither."""
    url = _parse_url(where)
    if url.get_backend_name() == "sqlite":
        return _connect_sqlite(url)
    options = "-c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000"
    given = {"connect_timeout": 5, "tcp_user_timeout": 10_000, "application_name": "sightline", "options": options}
    try:
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, connect_args=given)
    except ModuleNotFoundError as error:
        raise JournalError(
            "A journal in PostgreSQL needs its driver: pip install 'sightline[postgresql]'"
        ) from error
    return Database(_display_name(url), engine, engine)


def _parse_url(where: Path | str) -> URL:
    if isinstance(where, Path):
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(where)
        backend = url.get_backend_name()
        if backend in ("postgresql", "postgres"):
            return url.set(drivername="postgresql+psycopg")
        if backend == "sqlite" and url.database:
            return url.set(drivername="sqlite")
    except (ArgumentError, NoSuchModuleError, ValueError):
        backend = "that"
    raise JournalError(  # the URL itself is not repeated: it may hold a password
        "The journal's URL cannot be used: give postgresql://user:password@host/database or sqlite:////path/to/file."
    ) from None


def _display_name(url: URL) -> str:
    port = f":{url.port}" if url.port else ""
    return f"postgresql://{url.host or 'localhost'}{port}/{url.database or ''}"


def _connect_sqlite(url: URL) -> Database:
    path = Path(url.database or "")
    if not path.exists():
        with suppress(OSError):  # SQLite will say it
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    quick, sure = (
        create_engine(url, hide_parameters=True, connect_args={"timeout": LOCK_TIMEOUT_SECONDS}) for _ in range(2)
    )
    _set_pragmas(quick, "NORMAL")
    _set_pragmas(sure, "FULL")
    return Database(str(path), quick, sure)


def _set_pragmas(engine: Engine, durability: str) -> None:
    def opened(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in ("journal_mode=WAL", f"synchronous={durability}", "secure_delete=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    def begun(connection: Connection) -> None:
        # Whoever will write takes the lock at once: one that read first could only be refused.
        reading = connection.get_execution_options().get("reading")
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", opened)
    event.listen(engine, "begin", begun)


@contextmanager
def _translate_errors(name: str) -> Iterator[None]:
    """Turn what a driver says into one sentence, without statements, values or passwords."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        reason = " ".join(str(cause).split())[:200].rstrip(".")
        if _is_transient(error, cause, reason):
            raise DatabaseUnavailable(f"The journal's database '{name}' does not answer: {reason}.") from error
        kind = RejectedValue if isinstance(error, DataError | IntegrityError) else JournalError
        raise kind(f"The journal's database '{name}' refuses: {reason}.") from error
    except (OverflowError, UnicodeError) as error:
        raise RejectedValue(f"The journal's database '{name}' cannot hold this: {error}.") from error
    except PoolTimeout as error:
        raise DatabaseUnavailable(f"The journal's database '{name}' is too busy to answer.") from error


def _is_transient(error: BaseException, cause: BaseException | None, reason: str) -> bool:
    """Whether the same may work later."""
    if isinstance(cause, sqlite3.Error):
        return any(word in reason.lower() for word in _TRANSIENT_SQLITE_ERRORS)
    gone = isinstance(error, DBAPIError) and error.connection_invalidated
    return gone or isinstance(error, OperationalError | InterfaceError)
