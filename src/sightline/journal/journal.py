"""The journal: every answer and every correction, in a database, and nothing acknowledged is lost.

Answers go to this process's spool first (``spool``), so that no request waits for a database; a thread takes them
on. Corrections and erasures go to the database before they are acknowledged.
"""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from sqlalchemy import Connection, insert, inspect, select

from .. import progress
from ..errors import JournalError
from ..files import explain_write_errors
from ..types import Dataset, Geometry
from . import erasure, queries
from .database import Database, connect_database
from .image_store import ImageStore
from .records import Correction, JournalRow, PredictionRecord, UnknownPrediction, database_safe_text
from .spool import Spool, list_set_aside, segment_mentions
from .tables import SCHEMA_HEAD, corrections, predictions
from .writer import JournalWriter

JOURNAL_FILE = "journal.sqlite"

_POLL_SECONDS, _MAX_RETRY_SECONDS = 0.3, 5.0
"""Seconds between two looks at the spool, and between two tries while the database is away."""

_MAX_ID_LENGTH = 40

_UNKNOWN = "There is no prediction of this id."

_INHERIT_SECONDS = 15.0
"""Seconds after which the spools of dead processes are looked for again."""


class Journal:
    """A journal, open. Safe to share between threads; each process opens its own."""

    def __init__(self, database: Database, site: Path, *, keep_images: bool, quota: float, limit: int):
        """What ``open`` calls; ``quota`` and ``limit`` (of the spool) in bytes."""
        self._database, self._site = database, site
        self._kept = ImageStore(site / "images")
        self._spool = Spool(site / "spool", images=keep_images, limit=limit)
        self._intake = JournalWriter(database, self._spool, self._kept, quota=quota)
        self._stop = Event()
        self._trouble: str | None = None
        self._thread = Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Journal({self._database.name!r})"

    @classmethod
    def open(
        cls,
        where: Path | str,
        *,
        site: Path | str | None = None,
        keep_images: bool = False,
        quota_mb: float = 1000,
        spool_mb: float = 256,
    ) -> "Journal":
        """The journal of a site folder, or in the database of a URL; made or brought up to date where needed.

        ``site`` is where spool and kept images (at most ``quota_mb`` of them) lie: the site folder itself unless
        told otherwise, and needed beside a URL. Raises JournalError, in one sentence, for a database that is
        unreachable, unwritable, full or of a newer release, and OutputError where the folder cannot be written.
        """
        if isinstance(where, str) and "://" in where:
            if site is None:
                raise JournalError("A journal by URL needs a folder for its spool and images: name a site.")
            database = connect_database(where)
        else:
            site = Path(where) if site is None else Path(site)
            with explain_write_errors(Path(where)):
                Path(where).mkdir(parents=True, exist_ok=True)
            database = connect_database(Path(where) / JOURNAL_FILE)
        try:
            _migrate_if_needed(database)
            return cls(
                database, Path(site), keep_images=keep_images, quota=quota_mb * 1e6, limit=int(spool_mb * 1e6)
            )
        except BaseException:
            database.close()
            raise

    # answers

    def record(self, entries: Sequence[PredictionRecord]) -> None:
        """Write answers down, in the order given, so that they outlive this process; never waits for the database.

        Raises JournalError where the spool is full (the database was away for long) or the disk is: then none is.
        """
        if entries:
            self._spool.append(entries)

    @property
    def waiting(self) -> int:
        """Answers of this process that are not in the database yet."""
        return self._spool.waiting

    @property
    def healthy(self) -> bool:
        """Whether the database took what it was given last."""
        return self._trouble is None

    @property
    def last_error(self) -> str | None:
        """Why it is not healthy, in a sentence."""
        return self._trouble

    @property
    def dropped_images(self) -> int:
        """Images this process was to keep and did not: no room was left, or they could not be read."""
        return self._intake.dropped_images + self._spool.dropped_images

    def flush(self) -> None:
        """Bring everything that waits, of this process and of dead ones, to the database; raises JournalError."""
        self._intake.drain(inherit=True)

    def close(self) -> None:
        """Bring what waits to the database, where it answers, and let go; what is left the next one brings."""
        self._stop.set()
        self._thread.join()
        with suppress(JournalError):
            self.flush()
        self._spool.close()
        self._database.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # corrections

    def correct(self, id: str, label: str, *, by: str | None = None) -> Correction:
        """Note the right label of an answer; it is on the disk when this returns.

        The label that counts already is not noted twice. Raises UnknownPrediction, and Unavailable where the
        database is away: then nothing was noted.
        """
        said = database_safe_text(label) or ""
        if len(id) > _MAX_ID_LENGTH or database_safe_text(id) != id:
            raise UnknownPrediction(_UNKNOWN)
        for last in (False, True):
            with self._database.write_transaction(sure=True) as connection:
                if found := _insert_correction(connection, id, said, by):
                    return found
            if not last:
                self._intake.drain_mentions(json.dumps(id).encode())
        raise UnknownPrediction(_UNKNOWN)

    # erasure

    def erase(self, subject: str) -> int:
        """Remove the images and hashes of a subject's answers; a mark stays in each row. How many rows.

        The very same images go where they were kept under another name too. Raises Unavailable.
        """
        subject = database_safe_text(subject) or ""
        word = json.dumps(subject).encode()
        self._intake.drain_mentions(word)
        for aside in list_set_aside(self._spool.folder):
            if segment_mentions(aside, word):
                progress.notify(
                    f"'{aside}' was set aside earlier and tells of this subject too: remove it by hand."
                )
        return erasure.erase_subject(self._database, self._kept, subject)

    def retain(self, days: float) -> int:
        """Remove the images and hashes of answers older than this; the rows stay. How many rows."""
        if not days >= 0:
            raise JournalError(f"--days is {days:g}: it must be a number of days, 0 or more.")
        self.flush()
        return erasure.erase_before(self._database, self._kept, time.time() - 86_400 * days)

    # reading

    def predictions(
        self,
        *,
        limit: int = 100,
        before: str | None = None,
        label: str | None = None,
        release: int | None = None,
        abstained: bool | None = None,
        corrected: bool | None = None,
        subject: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[JournalRow]:
        """The newest answers that are in the database, newest first; ``before`` an id, for the next page.

        ``since`` (inclusive) and ``until`` (exclusive) are seconds since 1970. Raises Unavailable.
        """
        with self._database.read_transaction() as connection:
            return queries.query_rows(
                connection,
                limit=limit,
                before=before,
                label=label,
                release=release,
                abstained=abstained,
                corrected=corrected,
                subject=subject,
                since=since,
                until=until,
            )

    def count(self) -> dict[str, int]:
        """How many answers, corrected ones, erased ones and kept images the database holds."""
        with self._database.read_transaction() as connection:
            return queries.count_rows(connection)

    def dataset(self, *, geometry: Geometry, corrected_only: bool = True, least: float = 0.9) -> Dataset:
        """The kept images, labelled by their latest correction, as ``data.load_dataset`` gives any other data set.

        Unless ``corrected_only``, answers with a confidence of at ``least`` that nobody corrected count as right.
        The columns hold ``release``, ``prediction`` and, where subjects are known, ``group``. Raises DataError where there is no such image.
        """
        return queries.build_dataset(
            self.labelled_rows(corrected_only=corrected_only, least=least), self._site, geometry
        )

    def labelled_rows(self, *, corrected_only: bool = True, least: float = 0.9) -> list[JournalRow]:
        """The rows of ``dataset``, the right label as their ``correction``; each image once."""
        with self._database.read_transaction() as connection:
            return queries.query_labelled_rows(connection, None if corrected_only else least)

    def image_path(self, row: JournalRow) -> Path | None:
        """Where the kept image of a row lies."""
        path = None if row.image is None else self._kept.path(row.image)
        return path if path is not None and path.is_file() else None

    def _run(self) -> None:
        pause, looked = _POLL_SECONDS, -_INHERIT_SECONDS
        while not self._stop.is_set():
            inherit = time.monotonic() - looked > _INHERIT_SECONDS
            try:
                self._intake.drain(inherit=inherit)
                looked = time.monotonic() if inherit else looked
                self._trouble, pause = None, _POLL_SECONDS
            except Exception as error:  # nothing is lost by trying again, all would be by giving up
                if self._trouble is None:
                    progress.notify(f"{error} Answers wait in '{self._spool.folder}' until it does.")
                self._trouble, pause = str(error), min(2 * pause, _MAX_RETRY_SECONDS)
            self._stop.wait(pause)


def _migrate_if_needed(database: Database) -> None:
    with database.read_transaction() as connection:
        if inspect(connection).has_table("alembic_version"):
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalars().all()
            if found == [SCHEMA_HEAD]:
                return
    from .migrations import migrate

    with database.write_transaction(sure=True) as connection:
        migrate(connection, database.name)


def _insert_correction(connection: Connection, id: str, label: str, by: str | None) -> Correction | None:
    """The correction, noted unless it counts already; None where the answer is not in the database."""
    if connection.scalar(select(predictions.c.id).where(predictions.c.id == id)) is None:
        return None
    latest = (
        select(corrections).where(corrections.c.prediction == id).order_by(corrections.c.number.desc()).limit(1)
    )
    known = connection.execute(latest).first()
    if known is not None and known.label == label:
        return Correction(id, label, known.at, known.by, already=True)
    now = time.time()
    connection.execute(insert(corrections).values(prediction=id, label=label, at=now, by=by))
    return Correction(id, label, now, by, already=False)
