"""``select`` fills the queue of a site, people answer it, and ``summarise_reviews`` says what their answers show."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..choose import choose
from ..continual import looks_alike
from ..errors import ChoiceError, JournalError
from ..files import read_csv_rows, read_json_object, write_csv, write_json
from ..journal import (
    REVIEW_KINDS,
    Journal,
    JournalRow,
    QueuedAnswer,
    QueueEntry,
    Review,
    ReviewKind,
    decode_sketches,
    draw_number,
)
from ..serving import Release, current_release
from .drift import DRIFT_FOLDER, change_scores, examine_drift, read_reference
from .opinions import agreement, answers_needed, audit_accuracy, half_width_after, settle_labels
from .selection import REASONS, Candidates, Pick, merge_picks

DEFAULT_REASONS = ("audit", "margin", "far", "drifted", "abstained")
"""The reasons by which answers are queued by default."""

DEFAULT_QUEUE = 100
"""Answers that wait at most, but for the audit, of which none is left out."""

MAX_SELECTED_ANSWERS = 5000
"""Latest answers among which the reasons choose, but for the audit."""

FEEDBACK_FILE = "feedback.json"
"""Of a site: up to when its answers were drawn for the audit."""

LATE_SECONDS = 3600.0
"""Seconds by which an answer may reach the database after younger ones."""

_PAGE_ROWS = 5000


def select(
    site: Path | str, *, journal: Journal, count: int = DEFAULT_QUEUE, by: Sequence[str] = DEFAULT_REASONS
) -> dict[str, int]:
    """Queue answers of the current release that deserve a person's minute; return how many, by reason.

    Args:
        site: the folder of the service.
        journal: its open journal; answers without a kept image cannot be shown.
        count: answers that wait at most; the audit is queued whole.
        by: words of ``REASONS``: audit:0.02 draws two in a hundred.

    Raises ChoiceError for an unknown word, JournalError where the journal does not answer.
    """
    site, release = Path(site), current_release(site)
    reasons = {word.partition(":")[0]: choose(REASONS, word, "reason") for word in by}
    share = max((one.share for one in reasons.values()), default=0.0)
    state = read_json_object(site / FEEDBACK_FILE)
    since = state.get("audited", {}).get(str(release.number), 0.0) - LATE_SECONDS
    asked = journal.queued(waiting=False)
    known = {name for _, name in asked} | {one.row.image for one in journal.reviews()}
    drawn, latest, begun = [], [], time.time()
    for row in _list_answers(journal, release.number, since):
        if row.image is None or row.image in known:
            continue
        known.add(row.image)
        if draw_number(row.id) < share:
            drawn.append(row)
        elif len(latest) < MAX_SELECTED_ANSWERS:
            latest.append(row)
    room = max(0, count - len(journal.queued()))
    rows = [*latest[::-1], *drawn[::-1]]
    picks: dict[str, Sequence[Pick]] = {
        why: [Pick(len(latest) + i, share) for i in range(len(drawn))] for why, one in reasons.items() if one.share
    }
    others = {why: one for why, one in reasons.items() if not one.share}
    found = merge_picks(picks)
    if others and latest and room:
        candidates = _open_candidates(site, journal, release, rows[: len(latest)], drifted="drifted" in others)
        some = {why: one.pick(candidates, -(-room // len(others))) for why, one in others.items()}
        found = merge_picks(picks | some)
        missing = room - (len(found) - len(drawn))
        if missing > 0:  # a reason that finds few leaves its share to the others
            taken = {i for _, one in found for i in (one.position, *one.followers)}
            more = merge_picks({why: one.pick(candidates, room) for why, one in others.items()})
            found += [(why, Pick(one.position)) for why, one in more if one.position not in taken][:missing]
    entries, counts = [], Counter[str]()
    for why, one in found:
        id = rows[one.position].id
        entries.append(QueueEntry(id, why, one.chance))
        entries += [QueueEntry(rows[i].id, why, 0.0, id) for i in one.followers]
        counts[why] += 1
    journal.add_to_queue(entries)
    if share:
        audited = {**state.get("audited", {}), str(release.number): begun}
        write_json(site / FEEDBACK_FILE, {**state, "audited": audited})
    return dict(counts)


def _list_answers(journal: Journal, release: int, since: float) -> Iterator[JournalRow]:
    """The answers of a release, newest first: at least the latest, and all after ``since``."""
    before, read = None, 0
    while page := journal.predictions(limit=_PAGE_ROWS, release=release, before=before):
        yield from page
        before, read = page[-1].id, read + len(page)
        if read >= MAX_SELECTED_ANSWERS and page[-1].at < since:
            return


def _open_candidates(
    site: Path, journal: Journal, release: Release, rows: Sequence[JournalRow], *, drifted: bool
) -> Candidates:
    """What the reasons see of answers: their sketches; of those without one, the confidence alone."""
    confidence = np.array([row.confidence or 0.0 for row in rows])
    common: dict[str, Any] = {
        "ids": tuple(row.id for row in rows),
        "abstained": np.array([row.abstained for row in rows], bool),
        "changed": np.full(len(rows), -np.inf),
    }
    nothing = Candidates(
        probabilities=np.stack([confidence, 1 - confidence], 1), features=np.zeros((len(rows), 0)),
        distances=np.zeros(len(rows)), **common,
    )  # fmt: skip
    try:
        reference = read_reference(release, site / DRIFT_FOLDER)
    except JournalError:
        return nothing
    last = journal.last_sketch_number()
    held = {
        one.id: one.values
        for one in journal.latest_sketch_rows(release.number, until=last, limit=2 * MAX_SELECTED_ANSWERS)
    }
    known = np.array([row.id in held for row in rows], bool)
    if not known.any():
        return nothing
    sketches = decode_sketches(
        [held[row.id] for row in rows if row.id in held], len(reference.classes),
        reference.projection.components.shape[1],
    )  # fmt: skip
    before, now = (reference.scores(one) for one in (reference.sketches, sketches))
    if drifted and examine_drift(site, journal=journal, release=release.number).alarm:
        common["changed"][known] = change_scores(before, now)
    probabilities = np.zeros((len(rows), max(2, sketches["probabilities"].shape[1])), np.float32)
    probabilities[:, :2] = nothing.probabilities
    probabilities[known, : sketches["probabilities"].shape[1]] = sketches["probabilities"]
    features = np.zeros((len(rows), sketches["projection"].shape[1]), np.float32)
    features[known] = sketches["projection"]
    distances = np.zeros(len(rows))
    if "distance to the classes" in reference.channels:
        column = reference.channels.index("distance to the classes")
        common |= {
            "far": float(np.quantile(before[:, column], 0.99)),
            "radius": float(np.median(before[:, column])),
        }
        distances[known] = now[:, column]
    return Candidates(probabilities=probabilities, features=features, distances=distances, **common)


# Answers of people


def review_answer(
    journal: Journal,
    id: str,
    word: str,
    *,
    classes: Sequence[str],
    by: str | None = None,
    followers: Sequence[str] = (),
    new_class: bool = False,
) -> list[Review]:
    """Record what a person says of an answer: a class, ``none of these`` or ``unusable``.

    Args:
        journal: an open journal.
        id: the answer.
        word: the right class, which may be new, or one of the two words.
        classes: the classes that are known.
        by: who says it.
        followers: answers that get the same review.
        new_class: whether a class that looks like a known one is another thing.

    Raises ChoiceError for a class that is probably a slip of the pen, UnknownPrediction for an unknown id.
    """
    word = word.strip()
    if not word:
        raise ChoiceError("An answer needs the right class, or 'none of these', or 'unusable'.")
    rows = [journal.find_row(one) for one in (id, *followers)]
    kinds: dict[str, ReviewKind] = {one.id: _kind_of(one, word, classes, new_class) for one in rows}
    found = []
    for kind in REVIEW_KINDS:
        if ids := [one for one, its in kinds.items() if its == kind]:
            found += journal.review(ids, kind, None if kind in REVIEW_KINDS[3:] else word, by=by)
    return found


def _kind_of(row: JournalRow, word: str, classes: Sequence[str], new_class: bool) -> ReviewKind:
    for kind in REVIEW_KINDS[3:]:
        if word == kind:
            return kind
    if word == row.label:
        return "confirmed"
    if word in classes:
        return "corrected"
    if not new_class and (meant := next((one for one in classes if looks_alike(word, one)), None)) is not None:
        raise ChoiceError(
            f"There is no class '{word}', but a class '{meant}': write that, or, if '{word}' is another thing, say "
            "that it is a new class (--new-class)."
        )
    return "new class"


def known_classes(site: Path | str, reviews: Sequence[Review]) -> tuple[str, ...]:
    """The classes of the current release, then those that people named since."""
    named = [one.label for one in reviews if one.label is not None]
    return tuple(dict.fromkeys((*current_release(site).facts["classes"], *sorted(set(named)))))


def summarise_reviews(site: Path | str, *, journal: Journal, more: int = 30) -> dict[str, Any]:
    """What waits, what was said, the accuracy now, and what ``more`` answers of the audit would bring; JSON-ready."""
    release, reviews = current_release(site), journal.reviews()
    accuracy, settled = audit_accuracy(reviews, release.number), settle_labels(reviews)
    narrower = half_width_after(accuracy, more)
    needed = answers_needed(accuracy)
    counted = journal.count()
    notes = []
    if counted["predictions"] and not counted["images"]:
        notes.append("No images are kept, so nothing can be shown: sightline serve SITE --keep-images")
    if contradictory := sum(one.contradictory for one in settled):
        notes.append(f"People contradict each other about {contradictory} images: they are not learned from.")
    return {
        "release": release.number,
        "classes": list(known_classes(site, reviews)),
        "queue": journal.count_queue(),
        "reviews": dict(Counter(one.kind for one in reviews)),
        "accuracy": accuracy.as_json(),
        "more": {"answers": more, "half_width": narrower, "needed_for_5_points": needed},
        "agreement": agreement(reviews),
        "images": counted["images"],
        "image_bytes": counted["image_bytes"],
        "notes": notes,
    }


def describe_shown(shown: QueuedAnswer) -> dict[str, Any]:
    """What a person sees of a queued answer: without the answer itself where it would bias them. JSON-ready."""
    reason, row = REASONS[shown.why], shown.row
    seen = {} if reason.blind else {"label": row.label, "confidence": row.confidence}
    return {
        "id": row.id,
        "why": shown.why,
        "sentence": reason.sentence,
        "blind": reason.blind,
        "until": shown.until,
        "followers": list(shown.followers),
        **seen,
    }


# Tables, for people who answer elsewhere


def export_queue(journal: Journal, out: Path) -> int:
    """Write the waiting answers to a CSV with an empty column ``answer``; return how many."""
    rows: list[list[object]] = [["id", "image", "why", "answer"]]
    for id, _ in journal.queued():
        row = journal.find_row(id)
        rows.append([id, journal.image_path(row) or "", "", ""])
    write_csv(out, rows)
    return len(rows) - 1


def import_answers(
    journal: Journal, table: Path, *, classes: Sequence[str], by: str | None = None, new_class: bool = False
) -> int:
    """Record the answers in a CSV with columns ``id`` and ``answer``; empty answers are skipped. Returns how many.

    All rows are checked before one is recorded. Raises JournalError that names the row.
    """
    try:
        rows = read_csv_rows(table)
    except (OSError, UnicodeDecodeError) as error:
        raise JournalError(f"'{table}' cannot be read: give the CSV that `review SITE export` wrote.") from error
    if not rows or not {"id", "answer"} <= rows[0].keys():
        raise JournalError(f"'{table}' needs the columns id and answer: `review SITE export` writes them.")
    given = [(i, row["id"], row.get("answer", "").strip()) for i, row in enumerate(rows, 2)]
    given = [(i, id, word) for i, id, word in given if word]
    for i, id, word in given:
        try:
            _kind_of(journal.find_row(id), word, classes, new_class)
        except (ChoiceError, JournalError) as error:
            raise JournalError(f"Row {i} of '{table}': {error} Nothing was recorded.") from error
    for _, id, word in given:
        review_answer(journal, id, word, classes=classes, by=by, new_class=new_class)
    return len(given)
