"""The journal: every prediction and every correction, in a database; nothing that was acknowledged is lost.

Predictions go to this process's spool first, so that no request waits for a database; a thread moves them on.
Corrections and erasures are in the database before they are acknowledged.
"""

import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Unpack

from sqlalchemy import Connection

from .. import progress
from ..errors import DataError, JournalError
from ..files import explain_write_errors
from ..types import Dataset, Geometry
from . import erasure, statements
from .database import Database, connect_database, migrate
from .image_store import ImageStore
from .records import (
    Correction,
    Erasure,
    JournalRow,
    PredictionRecord,
    RowConditions,
    SketchRow,
    UnknownPrediction,
    database_safe_text,
)
from .reviews import (
    LEASE_SECONDS,
    QueuedAnswer,
    QueueEntry,
    Review,
    ReviewKind,
    add_to_queue,
    check_kind,
    count_queue,
    find_queued,
    insert_review,
    lease_answers,
    query_queue,
    query_reviews,
)
from .spool import Spool, list_set_aside, segment_mentions

JOURNAL_FILE, EXPORTS_FILE = "journal.sqlite", "exports.jsonl"

_POLL_SECONDS, _MAX_RETRY_SECONDS = 0.3, 5.0
"""Seconds between two looks at the spool, and at most between two attempts while the database is unavailable."""

_MAX_ID_LENGTH = 40
"""Characters of a prediction's id that the database stores."""

_SEGMENT_SECONDS = 10.0
"""Seconds that an erasure waits for other processes to remove their segments of the spool."""

_INHERIT_SECONDS = 15.0
"""Seconds between two searches for the spools of dead processes."""


class Journal:
    """An open journal. Thread-safe; every process opens its own."""

    def __init__(self, database: Database, site: Path, *, keep_images: bool, quota: float, limit: int):
        """Called by ``open``; ``quota`` (kept images) and ``limit`` (spool) in bytes."""
        self._database, self._site = database, site
        self._images = ImageStore(site / "images")
        self._spool = Spool(site / "spool", images=keep_images, limit=limit)
        self._writer = statements.JournalWriter(database, self._spool, self._images, quota=quota)
        self._stop = Event()
        self._last_error: str | None = None
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
        """Open the journal of a site folder, or in the database of a URL; create or migrate its tables.

        ``site`` is the folder of spool and kept images (at most ``quota_mb`` of them); it defaults to the site
        folder and is required with a URL. Raise JournalError if the database is unreachable, unwritable, full or
        of a newer release, and OutputError if the folder cannot be written.
        """
        if isinstance(where, str) and "://" in where:
            if site is None:
                raise JournalError("A journal by URL needs a folder for its spool and images: give site=FOLDER.")
            database = connect_database(where)
        else:
            site = Path(where) if site is None else Path(site)
            with explain_write_errors(Path(where)):
                Path(where).mkdir(parents=True, exist_ok=True)
            database = connect_database(Path(where) / JOURNAL_FILE)
        try:
            migrate(database)
            return cls(
                database, Path(site), keep_images=keep_images, quota=quota_mb * 1e6, limit=int(spool_mb * 1e6)
            )
        except BaseException:
            database.close()
            raise

    # Predictions

    def record(self, records: Sequence[PredictionRecord]) -> None:
        """Append predictions, all or none, so that they outlive this process; never waits for the database.

        The thread that moves them makes their sketches. Raise JournalError if the spool is full (the
        database was unavailable for long) or the disk is full.
        """
        if records:
            self._spool.append(records)

    @property
    def waiting(self) -> int:
        """Number of predictions of this process that are not in the database yet."""
        return self._spool.waiting

    @property
    def healthy(self) -> bool:
        """Whether the last write to the database succeeded."""
        return self._last_error is None

    @property
    def last_error(self) -> str | None:
        """Why the last write to the database failed, in one sentence."""
        return self._last_error

    @property
    def dropped_images(self) -> int:
        """Number of images this process should have kept and did not: no room was left, or they are unreadable."""
        return self._writer.dropped_images + self._spool.dropped_images

    def flush(self) -> None:
        """Write everything that waits, of this process and of dead ones, to the database; raise JournalError."""
        self._writer.drain(inherit=True)

    def close(self) -> None:
        """Write what waits, if the database answers, and close; the next process that opens it writes the rest."""
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

    # Corrections and erasure

    def correct(self, id: str, label: str, *, by: str | None = None) -> Correction:
        """Record the right label of a prediction; it is on disk when this returns.

        Repeating the latest label adds nothing. Raise UnknownPrediction, and DatabaseUnavailable if the database
        does not answer: then nothing was recorded.
        """
        label = database_safe_text(label) or ""
        if len(id) <= _MAX_ID_LENGTH and database_safe_text(id) == id:
            for attempt in ("database", "spools"):
                if attempt == "spools":  # it may not have reached the database yet
                    self._writer.drain_mentions(json.dumps(id).encode())
                with self._database.write_transaction(durable=True) as connection:
                    if found := statements.insert_correction(connection, id, label, by):
                        return found
        raise UnknownPrediction("There is no prediction with this id.")

    def add_to_queue(self, entries: Sequence[QueueEntry]) -> int:
        """Queue answers for review, in this order; return how many are new and have an image."""
        with self._database.write_transaction(durable=True) as connection:
            return add_to_queue(connection, self._database, entries)

    def lease(
        self,
        count: int,
        by: str | None,
        *,
        seconds: float = LEASE_SECONDS,
        second: bool = False,
        reasons: Collection[str] = (),
    ) -> list[QueuedAnswer]:
        """Show the next queued answers, ``count`` at most, to a person, and to no one else for ``seconds``.

        ``second`` chooses among answers that one other person reviewed, ``reasons`` by why they were queued.
        """
        with self._database.write_transaction(durable=False) as connection:
            return lease_answers(connection, count, by, seconds=seconds, second=second, reasons=reasons)

    def review(
        self, ids: Sequence[str], kind: ReviewKind, label: str | None = None, *, by: str | None = None
    ) -> list[Review]:
        """Record what a person said of answers, all or none; it is on disk when this returns.

        A label is a correction too. What another person said of the same answer stays. Raise UnknownPrediction, and
        JournalError for a kind that does not exist or does not go with the label.
        """
        check_kind(kind, label)
        label = database_safe_text(label)
        self.flush()
        with self._database.write_transaction(durable=True) as connection:
            found = [insert_review(connection, id, kind, label, by) for id in ids]
            known = [one for one in found if one is not None]
            if len(known) < len(ids):
                raise UnknownPrediction("There is no prediction with this id.")
        return known

    def reviews(self) -> list[Review]:
        """Return everything that people said of answers, in order of time; corrections that were sent too."""
        with self._database.read_transaction() as connection:
            return query_reviews(connection)

    def count_queue(self) -> dict[str, dict[str, int]]:
        """Count answers that wait for a review and that had one (``waiting``, ``done``), by why they were queued."""
        with self._database.read_transaction() as connection:
            return count_queue(connection)

    def find_queued(self, id: str) -> QueuedAnswer | None:
        """Return an answer that was ever queued, leased or not; None if it was not, or is not in the database."""
        with self._database.read_transaction() as connection:
            return find_queued(connection, id)

    def queued(
        self, *, waiting: bool = True, id: str | None = None, leader: str | None = None
    ) -> list[tuple[str, str]]:
        """Return (id, image name) of answers that wait, or of all ever queued, in order; ``leader`` stands for some."""
        with self._database.read_transaction() as connection:
            return query_queue(connection, waiting=waiting, id=id, leader=leader)

    def erase(self, subject: str) -> Erasure:
        """Erase the images and hashes of a subject, and equal ones kept under another name.

        The rows stay, marked as erased. Images, spool, database and write-ahead log are overwritten or removed; the
        result says which copies are left. Raise DatabaseUnavailable, and OutputError if an image cannot be deleted.
        """
        subject = database_safe_text(subject) or ""
        done = self._erase(lambda connection: erasure.erase_subject(connection, self._images, subject))
        word = json.dumps(subject).encode()
        asides = [one for one in list_set_aside(self._spool.folder) if segment_mentions(one, word)]
        why = "could not be stored earlier and mentions this subject: delete it by hand."
        return Erasure(done.rows, (*done.remains, *(f"'{aside}' {why}" for aside in asides)))

    def retain(self, days: float) -> Erasure:
        """Erase the images and hashes of predictions older than ``days``, as ``erase`` does."""
        if not days >= 0:
            raise JournalError(f"--days is {days:g}: it must be a number of days, 0 or more.")
        until = time.time() - 86_400 * days
        return self._erase(lambda connection: erasure.erase_before(connection, self._images, until))

    def _erase(self, act: Callable[[Connection], int]) -> Erasure:
        """Erase rows and images by ``act``, which returns the number of rows; then every copy within reach."""
        self.flush()
        segments = self._writer.drain_mentions()  # of living processes: equal images under another name too
        with (
            explain_write_errors(self._images.folder),
            self._database.write_transaction(durable=True) as connection,
        ):
            rows = act(connection)
        cache, remains = self._site / statements.CACHE_FOLDER, []
        shutil.rmtree(cache, ignore_errors=True)
        if cache.exists():
            remains.append(f"'{cache}' holds decoded images and cannot be deleted: delete it by hand.")
        try:
            remains.append(self._database.overwrite_erased())
        except JournalError as error:
            remains.append(f"Erased hashes are left in the files of the database. {error} Repeat this command.")
        until = time.monotonic() + _SEGMENT_SECONDS
        while any(segment.exists() for segment in segments) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS / 3)
        remains += [
            f"'{segment}' may hold what was erased until its process has moved it: repeat this command when it ended."
            for segment in segments
            if segment.exists()
        ]
        remains += [
            f"'{accepted}' holds sketches of answers that were accepted as normal, erased ones perhaps among them: "
            "accept again (sightline drift SITE --accept), or delete it."
            for accepted in (self._site / "drift").glob("*-accepted.safetensors")
        ]
        with self._database.read_transaction() as connection:
            exported = [*erasure.exported_copies(connection, self._site / EXPORTS_FILE)]
        copies = (*erasure.released_copies(self._site), *exported)
        return Erasure(rows, (*filter(None, remains), *copies))

    def note_export(self, out: Path) -> None:
        """Remember a table or folder that rows or images were exported to, for the report of an erasure."""
        with explain_write_errors(self._site / EXPORTS_FILE), (self._site / EXPORTS_FILE).open("a") as stream:
            stream.write(json.dumps({"out": str(out.absolute())}) + "\n")

    # Reading

    def predictions(self, *, limit: int = 100, **conditions: Unpack[RowConditions]) -> list[JournalRow]:
        """Return the newest predictions in the database that satisfy all conditions, newest first.

        Conditions are ``label``, ``release``, ``abstained``, ``corrected``, ``subject``, ``since`` (inclusive) and
        ``until`` (exclusive) in seconds since 1970, and ``before``, an id, for the next page. Raise
        DatabaseUnavailable.
        """
        with self._database.read_transaction() as connection:
            return statements.query_rows(connection, limit, conditions)

    def count(self) -> dict[str, int]:
        """Count predictions, abstentions, corrected and erased predictions, kept images and their bytes."""
        with self._database.read_transaction() as connection:
            return statements.count_rows(connection)

    def count_between(self, edges: Sequence[float]) -> list[int]:
        """Count predictions between each two of these ascending moments, in seconds since 1970."""
        with self._database.read_transaction() as connection:
            return statements.count_between(connection, edges)

    def sketch_rows(self, release: int, *, after: int = 0, limit: int = 2000) -> list[SketchRow]:
        """Return the next sketches of a release's answers, stored after number ``after``, in the order of storing.

        Raise DatabaseUnavailable.
        """
        with self._database.read_transaction() as connection:
            return statements.query_sketches(connection, release, limit, after=after)

    def latest_sketch_rows(self, release: int, *, until: int, limit: int) -> list[SketchRow]:
        """Return the last sketches of a release's answers up to number ``until``, in the order of storing."""
        with self._database.read_transaction() as connection:
            return statements.query_sketches(connection, release, limit, until=until)

    def last_sketch_number(self) -> int:
        """Return the number of the newest sketch in the database; 0 without any."""
        with self._database.read_transaction() as connection:
            return statements.last_sketch_number(connection)

    def dataset(self, *, geometry: Geometry, corrected_only: bool = True, min_confidence: float = 0.9) -> Dataset:
        """Load the kept images, labelled by their latest correction, at the working size of ``geometry``.

        ``corrected_only=False`` adds uncorrected predictions of at least ``min_confidence`` with their own label.
        The columns are ``release``, ``prediction`` (the id) and, if subjects are known, ``group``. Raise DataError
        if there is no such image.
        """
        rows = self.labelled_rows(corrected_only=corrected_only, min_confidence=min_confidence)
        rows = [row for row in rows if self.image_path(row) is not None]
        if not rows:
            raise DataError(
                f"The journal of '{self._site}' has no labelled images: serve with --keep-images, and correct "
                "some answers."
            )
        return statements.build_dataset(f"journal of {self._site}", self._images, rows, geometry)

    def load_images(self, rows: Sequence[JournalRow], geometry: Geometry) -> Dataset:
        """Load the kept images of rows, labelled by their correction or else by their answer, at a working size."""
        return statements.build_dataset(f"journal of {self._site}", self._images, rows, geometry)

    def find_row(self, id: str) -> JournalRow:
        """Return the row of an answer; raise UnknownPrediction if it is not in the database."""
        with self._database.read_transaction() as connection:
            if row := statements.find_rows(connection, [id]).get(id):
                return row
        raise UnknownPrediction("There is no prediction with this id.")

    def labelled_rows(self, *, corrected_only: bool = True, min_confidence: float = 0.9) -> list[JournalRow]:
        """Return the rows that ``dataset`` uses, each image once."""
        with self._database.read_transaction() as connection:
            return statements.query_labelled_rows(connection, None if corrected_only else min_confidence)

    def image_path(self, row: JournalRow | SketchRow) -> Path | None:
        """Return the file of a row's kept image; None if there is none."""
        path = None if row.image is None else self._images.path(row.image)
        return path if path is not None and path.is_file() else None

    def _run(self) -> None:
        """Drain the spool until ``close``; retry with growing pauses while the database is unavailable."""
        pause, inherited_at = _POLL_SECONDS, -_INHERIT_SECONDS
        while not self._stop.is_set():
            inherit = time.monotonic() - inherited_at > _INHERIT_SECONDS
            try:
                self._writer.drain(inherit=inherit)
                inherited_at = time.monotonic() if inherit else inherited_at
                self._last_error, pause = None, _POLL_SECONDS
            except Exception as error:  # retrying loses nothing, giving up would lose all
                if self._last_error is None:
                    progress.notify(f"{error} Answers wait in '{self._spool.folder}' until it does.")
                self._last_error, pause = str(error), min(2 * pause, _MAX_RETRY_SECONDS)
            self._stop.wait(pause)
