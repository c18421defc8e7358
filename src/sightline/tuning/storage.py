"""The database a study lives in: opened, and its complaints said in a sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

SQLITE_TIMEOUT_SECONDS = 30.0
"""Seconds a write waits for another process's to end, on SQLite."""

_REMEDIES = {
    "locked": "another program keeps it locked: close that, and give the same command again",
    "readonly": "it is read-only: change its permissions, or choose another --storage",
    "read-only": "it is read-only: change its permissions, or choose another --storage",
    "not a database": "it is not a database, or is damaged: choose another --storage",
    "malformed": "it is damaged: choose another --storage",
    "unable to open": "it cannot be opened: see that its folder exists and may be written, or choose another "
    "--storage",
    "connection refused": "no server answers there: start it, or correct the address",
    "resolve host": "nobody knows its host: correct the address",
    "translate host": "nobody knows its host: correct the address",
    "authentication failed": "the server refuses that user or password: correct them in the address",
    "password supplied": "the server asks for a password: write postgresql://user:password@host/name",
    "does not exist": "the server has no such database or user: create it, or correct the address",
    "timeout expired": "no server answers there in time: start it, or correct the address",
    "no longer compatible": "another version of Optuna made it: use that one, bring the database up to date with "
    "`optuna storage upgrade`, or choose another --storage",
    "can't locate revision": "another version of Optuna made it: use that one, or choose another --storage",
    "invalid literal": "that is no address of a database: write a file's path, or postgresql://user@host/name",
    "could not parse": "that is no address of a database: write a file's path, or postgresql://user@host/name",
    "can't load plugin": "nobody knows that kind of database: write a file's path, or postgresql://user@host/name",
    "failed to import": "its driver is not installed: pip install the one SQLAlchemy names for it",
    "no module named": "its driver is not installed: pip install the one SQLAlchemy names for it",
    "disk is full": "the disk is full: free some space, and give the same command again",
}


def database_url(storage: str | Path | None, folder: Path) -> str:
    """The SQLAlchemy URL of a storage: given, a SQLite file by its path, or ``study.db`` in the folder.

    Raises OutputError for a path that is a folder.
    """
    text = str(folder / "study.db") if storage is None else str(storage)
    if "://" not in text and Path(text).is_dir():
        raise OutputError(f"--storage is the folder '{text}': name a file in it, as '{Path(text) / 'study.db'}'.")
    return text if "://" in text else f"sqlite:///{Path(text).resolve()}"


def open_storage(url: str) -> "BaseStorage":
    """The storage behind a URL, with its tables. Raises OutputError with a remedy."""
    with explain_database_errors(url):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)  # trials are told of in our words
        waiting: dict[str, Any] = (
            {"connect_args": {"timeout": SQLITE_TIMEOUT_SECONDS}} if url.startswith("sqlite") else {}
        )
        try:
            return optuna.storages.get_storage(optuna.storages.RDBStorage(url, engine_kwargs=waiting))
        except (RuntimeError, ValueError, ImportError, AssertionError) as error:  # another version, no driver
            raise OutputError(_error_sentence(url, error)) from error


@contextmanager
def explain_database_errors(url: str) -> Iterator[None]:
    """Turn what a database complains of into an OutputError with a remedy."""
    from alembic.util import CommandError
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError, CommandError) as error:
        raise OutputError(_error_sentence(url, error)) from error


def _error_sentence(url: str, error: BaseException) -> str:
    cause: BaseException | None = error
    told: list[str] = []
    while cause is not None:
        told.append(" ".join(str(cause).split()))
        cause = cause.__cause__
    known = (remedy for sign, remedy in _REMEDIES.items() if any(sign in text.lower() for text in told))
    reason = next(known, f"it says '{told[-1].partition(' [SQL')[0]}': correct the address, or choose another")
    return f"The study's database '{redact_url(url)}' cannot be used: {reason}."


def redact_url(url: str) -> str:
    """The address as it may be shown: a file's path, or the URL without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):
        return url
    return parts.database or url if parts.drivername == "sqlite" else parts.render_as_string(hide_password=True)
