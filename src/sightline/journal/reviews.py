"""The SQL of reviews: a queue of answers that deserve a person's minute, leases on it, and what people said."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, exists, func, insert, or_, select, update

from ..errors import JournalError
from .database import Database, corrections, predictions, queue, reviews
from .records import JournalRow
from .statements import chunk_values, find_rows, insert_correction

ReviewKind = Literal["confirmed", "corrected", "new class", "none of these", "unusable"]

REVIEW_KINDS: tuple[ReviewKind, ...] = get_args(ReviewKind)
"""What a person may say of an answer; the first three come with a label."""

LEASE_SECONDS = 120.0
"""Seconds for which an image is shown to one person only."""


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """An answer to be queued."""

    id: str
    why: str
    """A word of the family of reasons."""
    chance: float
    """Probability with which it was chosen; 0 where nothing random chose it."""
    leader: str | None = None
    """The id of the answer that represents this one: its review may be copied to this one."""


@dataclass(frozen=True, slots=True)
class QueuedAnswer:
    """An answer that is shown to a person."""

    row: JournalRow
    why: str
    chance: float
    until: float
    """End of the lease, in seconds since 1970."""
    followers: tuple[str, ...]
    """Ids of waiting answers that this one stands for."""


@dataclass(frozen=True, slots=True)
class Review:
    """What one person said of one answer; a correction that was sent without being asked for has no ``why``."""

    row: JournalRow
    kind: ReviewKind
    label: str | None
    why: str | None
    chance: float | None
    at: float
    """Seconds since 1970."""
    by: str | None


def add_to_queue(connection: Connection, database: Database, entries: Sequence[QueueEntry]) -> int:
    """Queue answers, in this order; those that were queued before, or have no image, are skipped. Returns how many."""
    kept: set[str] = set()
    for some in chunk_values([one.id for one in entries]):
        known = select(queue.c.prediction).where(queue.c.prediction == predictions.c.id)
        kept.update(
            connection.scalars(
                select(predictions.c.id).where(
                    predictions.c.id.in_(some), predictions.c.image.is_not(None), ~exists(known)
                )
            )
        )
    now = time.time()
    rows = [
        {"prediction": one.id, "why": one.why, "chance": one.chance, "leader": one.leader, "at": now}
        for one in entries
        if one.id in kept
    ]
    if rows:
        connection.execute(database.insert_ignore(queue), rows)
    return len(rows)


def lease_answers(
    connection: Connection, count: int, by: str | None, *, seconds: float, second: bool, reasons: Collection[str]
) -> list[QueuedAnswer]:
    """Lease the next ``count`` answers to a person, or as many as wait.

    ``second`` asks for one that exactly one other person answered. A person without a name never gets what is leased.
    """
    now, t = time.time(), queue.c
    of_this = reviews.c.prediction == t.prediction
    free = or_(t.leased_until.is_(None), t.leased_until < now)
    if by is not None:
        free = or_(free, t.leased_by == by)
    wanted = [free, predictions.c.image.is_not(None)]
    if by is not None:
        wanted.append(~exists().where(of_this, reviews.c.by == by))
    if second:
        people = select(func.count(func.distinct(func.coalesce(reviews.c.by, "")))).where(of_this)
        wanted += [t.done_at.is_not(None), people.scalar_subquery() == 1]
    else:
        wanted += [t.done_at.is_(None), t.leader.is_(None)]
    if reasons:
        wanted.append(t.why.in_(list(reasons)))
    chosen = select(queue).join(predictions, predictions.c.id == t.prediction).where(*wanted)
    mine = (t.leased_by == by).desc().nulls_last() if by is not None else t.number
    found = connection.execute(chosen.order_by(mine, t.number).limit(count)).all()
    until = now + seconds
    connection.execute(
        update(queue)
        .where(t.number.in_([one.number for one in found]))
        .values(leased_by=by or "", leased_until=until)
    )
    rows = find_rows(connection, [one.prediction for one in found])
    shown = []
    for one in found:
        others = select(t.prediction).where(t.leader == one.prediction, t.done_at.is_(None)).order_by(t.number)
        followers = tuple(connection.scalars(others))
        shown.append(QueuedAnswer(rows[one.prediction], one.why, one.chance, until, followers))
    return shown


def find_queued(connection: Connection, id: str) -> QueuedAnswer | None:
    """Return a queued answer, waiting or done; None if it was never queued."""
    found = connection.execute(select(queue).where(queue.c.prediction == id)).first()
    if found is None:
        return None
    row = find_rows(connection, [id])[id]
    waiting = query_queue(connection, waiting=True, id=None, leader=id)
    return QueuedAnswer(row, found.why, found.chance, found.leased_until or 0.0, tuple(one for one, _ in waiting))


def insert_review(
    connection: Connection, id: str, kind: ReviewKind, label: str | None, by: str | None
) -> Review | None:
    """Add what a person said of an answer; None if the answer is not in the database.

    Why it was shown, and with which chance, is read from the queue; there it is done. Repeating one's latest words
    adds nothing.
    """
    row = find_rows(connection, [id]).get(id)
    if row is None:
        return None
    shown = connection.execute(select(queue).where(queue.c.prediction == id)).first()
    why, chance = (None, None) if shown is None else (shown.why, shown.chance)
    mine = reviews.c.by.is_(None) if by is None else reviews.c.by == by
    latest = connection.execute(
        select(reviews).where(reviews.c.prediction == id, mine).order_by(reviews.c.number.desc()).limit(1)
    ).first()
    if latest is not None and (latest.kind, latest.label) == (kind, label):
        return Review(row, kind, label, latest.why, latest.chance, latest.at, by)
    now = time.time()
    values = {"prediction": id, "kind": kind, "label": label, "why": why, "chance": chance, "at": now, "by": by}
    connection.execute(insert(reviews).values(values))
    if label is not None:
        insert_correction(connection, id, label, by)
    done = {"done_at": func.coalesce(queue.c.done_at, now), "leased_by": None, "leased_until": None}
    connection.execute(update(queue).where(queue.c.prediction == id).values(done))
    return Review(row, kind, label, why, chance, now, by)


def query_reviews(connection: Connection) -> list[Review]:
    """Return everything that people said, in order of time; unasked corrections are reviews without ``why``."""
    said = connection.execute(select(reviews).order_by(reviews.c.number)).all()
    known = {(one.prediction, one.by, one.label) for one in said}
    sent = [
        one
        for one in connection.execute(select(corrections).order_by(corrections.c.number))
        if (one.prediction, one.by, one.label) not in known
    ]
    rows = find_rows(connection, list(dict.fromkeys(one.prediction for one in (*said, *sent))))
    found = [
        Review(rows[one.prediction], one.kind, one.label, one.why, one.chance, one.at, one.by) for one in said
    ]
    found += [Review(rows[one.prediction], "corrected", one.label, None, None, one.at, one.by) for one in sent]
    return sorted(found, key=lambda one: one.at)


def count_queue(connection: Connection) -> dict[str, dict[str, int]]:
    """Return how many answers wait and are done, by why they were queued; followers are counted too."""
    chosen = select(queue.c.why, queue.c.done_at.is_(None).label("waits"), func.count().label("n"))
    found: dict[str, dict[str, int]] = {}
    for one in connection.execute(chosen.group_by(queue.c.why, queue.c.done_at.is_(None))):
        found.setdefault(one.why, {"waiting": 0, "done": 0})["waiting" if one.waits else "done"] = one.n
    return found


def query_queue(
    connection: Connection, *, waiting: bool, id: str | None, leader: str | None
) -> list[tuple[str, str]]:
    """Return (id, image) of queued answers, or of those that wait, in the order in which they are shown.

    Answers that another one stands for are those of a ``leader``.
    """
    chosen = select(queue.c.prediction, predictions.c.image).join(
        predictions, predictions.c.id == queue.c.prediction
    )
    if waiting:
        chosen = chosen.where(queue.c.done_at.is_(None), queue.c.leader.is_not_distinct_from(leader))
    if id is not None:
        chosen = chosen.where(queue.c.prediction == id)
    return [(one.prediction, one.image) for one in connection.execute(chosen.order_by(queue.c.number))]


def check_kind(kind: str, label: str | None) -> None:
    """Raise JournalError for an unknown kind, or one that does not go with ``label``."""
    if kind not in REVIEW_KINDS:
        raise JournalError(f"There is no kind of review '{kind}': use one of {', '.join(REVIEW_KINDS)}.")
    if (label is None) != (kind in REVIEW_KINDS[3:]):
        raise JournalError(f"A review of kind '{kind}' comes {'with a' if label is None else 'without'} label.")
