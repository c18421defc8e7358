"""The review queue: one image at a time by keyboard, or many at once."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from ..errors import ChoiceError, SightlineError
from ..feedback import (
    REASONS,
    half_width_after,
    known_classes,
    review_answer,
    select,
    settle_labels,
    summarise_reviews,
)
from ..journal import JournalRow, QueuedAnswer, Review
from ..metrics import anytime_interval
from ..serving import PredictRequest, RankedPrediction, RequestError
from .visit import Page, PageRoute, Visit

MANY_IMAGES = 24
"""Images that are shown at once, where one key answers all that are marked."""

FILL_SECONDS = 20.0
"""Seconds between two searches for answers that deserve a review, where nothing waits."""

MIN_TOLD_ANSWERS = 10
"""Random answers from which the accuracy is told: fewer say next to nothing."""

PLANNED_ANSWERS = 30
"""Answers whose value is announced before a person begins."""

OPEN_REASONS = tuple(why for why, reason in REASONS.items() if not reason.blind)
"""Reasons whose images show what was answered."""


@dataclass(frozen=True)
class ReviewItem:
    """An answer as a person sees it."""

    row: JournalRow
    why: str
    followers: tuple[str, ...]
    said: str | None
    """What this person said of it before."""

    @property
    def blind(self) -> bool:
        """Whether the answer is hidden, because people confirm what they see."""
        return self.why not in OPEN_REASONS

    @property
    def sentence(self) -> str:
        """Why it is shown."""
        return REASONS[self.why].sentence


def _require_release(visit: Visit) -> None:
    if visit.studio.service.release is None:
        raise RequestError(404, "Nothing answers yet, so there is nothing to review: publish a run first.")


def _lease(visit: Visit, count: int, reasons: Sequence[str] = ()) -> list[QueuedAnswer]:
    """The next answers for this person; where none waits, some are looked for."""
    found = visit.journal.lease(count, visit.session.name, reasons=reasons)
    looked = visit.studio.moments
    if not found and time.monotonic() - looked.get("fill", -FILL_SECONDS) >= FILL_SECONDS:
        looked["fill"] = time.monotonic()
        if any(select(visit.site, journal=visit.journal).values()):
            found = visit.journal.lease(count, visit.session.name, reasons=reasons)
    return found


def _mine(visit: Visit) -> list[Review]:
    """What this person said, the latest first."""
    return [one for one in visit.journal.reviews() if one.by == visit.session.name][::-1]


def _find_item(visit: Visit, id: str) -> ReviewItem:
    """A queued answer by its id; raise RequestError (404)."""
    if (found := visit.journal.find_queued(id)) is None:
        raise RequestError(404, "There is no answer with this id in the queue.")
    mine = next((one for one in _mine(visit) if one.row.id == id), None)
    return ReviewItem(found.row, found.why, found.followers, mine and (mine.label or mine.kind))


def _rank(visit: Visit, row: JournalRow) -> RankedPrediction | None:
    """What the current release says of the image of an answer; None if the image is gone or unreadable."""
    if (path := visit.journal.image_path(row)) is None:
        return None
    engine = visit.studio.service.engine
    found = engine.predict(
        [PredictRequest([path.read_bytes()], top=3)], visit.studio.service.limits, exclusive=False
    )
    return found[0][0] if isinstance(found[0][0], RankedPrediction) else None


def _show(
    visit: Visit, item: ReviewItem | None, *, problem: str = "", typed: str = "", saved: str = ""
) -> Response:
    """The card of one answer, alone for htmx, in its page otherwise."""
    ranked = None if item is None else _rank(visit, item.row)
    classes = known_classes(visit.site, visit.journal.reviews())
    likely = [] if item is None or item.blind or ranked is None else ranked.top[:2]
    queue = visit.journal.count_queue()
    values: dict[str, Any] = {
        "item": item, "keys": number_keys(classes, likely), "classes": classes,
        "problem": problem, "typed": typed, "saved": saved,
        "waiting": sum(one["waiting"] for one in queue.values()), "done": sum(one["done"] for one in queue.values()),
        "kept": visit.studio.service.settings.keep_images,
    }  # fmt: skip
    part = "hx-request" in visit.request.headers
    if not part:
        values["value"] = describe_value(visit)
    return visit.render("_review.html.jinja" if part else "review.html.jinja", **values)


def number_keys(
    classes: Sequence[str], likely: Sequence[tuple[str, float]]
) -> list[tuple[str, str, float | None]]:
    """(key, class, probability) of the classes that have a number key: the likely ones, or the first nine.

    Where classes are called 0 to 9, a key means the class of its name and nothing else.
    """
    if named := [name for name in classes if len(name) == 1 and name in "0123456789"]:
        shares = dict(likely)
        return [(name, name, shares.get(name)) for name in sorted(named)]
    if likely:
        return [(str(i), name, share) for i, (name, share) in enumerate(likely, 1)]
    return [(str(i), name, None) for i, name in enumerate(classes, 1)] if len(classes) < 10 else []


def describe_value(visit: Visit) -> dict[str, Any]:
    """What is known of the accuracy, and what the next answers would bring."""
    found = summarise_reviews(visit.site, journal=visit.journal, more=PLANNED_ANSWERS)
    accuracy = found["accuracy"]
    labels = sum(one.label is not None for one in settle_labels(visit.journal.reviews()))
    told = accuracy["n"] >= MIN_TOLD_ANSWERS
    later = found["more"]["half_width"] if told else half_width_after(anytime_interval(0, 0), PLANNED_ANSWERS)
    return {
        **found, "n": accuracy["n"], "told": told, "labels": labels, "planned": PLANNED_ANSWERS,
        "now": (accuracy["high"] - accuracy["low"]) / 2, "later": later,
    }  # fmt: skip


def show_review(visit: Visit) -> Response:
    """The next answer, or the one of the parameter ``id``."""
    _require_release(visit)
    if id := visit.text("id"):
        return _show(visit, _find_item(visit, id))
    found = _lease(visit, 1)
    item = ReviewItem(found[0].row, found[0].why, found[0].followers, None) if found else None
    return _show(visit, item)


def go_back(visit: Visit) -> Response:
    """The answer that this person reviewed last, or before ``id``: what is said now replaces what was said."""
    _require_release(visit)
    ids = list(dict.fromkeys(one.row.id for one in _mine(visit)))
    here = visit.text("id")
    left = ids[ids.index(here) + 1 :] if here in ids else ids
    if not left:
        raise RequestError(404, "You have not answered anything before this.")
    return _show(visit, _find_item(visit, left[0]))


def take_answer(visit: Visit) -> Response:
    """Record what a person says of an answer, and of the marked ones that look like it; show the next one."""
    _require_release(visit)
    id, typed = visit.text("id"), visit.text("typed").strip()
    new = visit.text("new").strip()  # a name that looks like a class was confirmed
    word = new or visit.text("answer").strip() or typed
    followers = [one for one in visit.form.getlist("followers") if isinstance(one, str)][:50]
    item = _find_item(visit, id)
    if not set(followers) <= set(item.followers):
        raise RequestError(409, "Someone else answered the others meanwhile: this image is shown again.")
    classes = known_classes(visit.site, visit.journal.reviews())
    try:
        said = review_answer(
            visit.journal, id, word, classes=classes, by=visit.session.name, followers=followers,
            new_class=bool(new),
        )  # fmt: skip
    except ChoiceError as error:
        return _show(visit, item, problem=str(error).replace(" (--new-class)", ""), typed=word)
    if "hx-request" not in visit.request.headers:
        return visit.redirect("/review")
    found = _lease(visit, 1)
    following = ReviewItem(found[0].row, found[0].why, found[0].followers, None) if found else None
    many = f" ({len(said)} images)" if len(said) > 1 else ""
    return _show(visit, following, saved=f"{said[0].label or said[0].kind}{many}")


def show_many(visit: Visit) -> Response:
    """Many answers at once, grouped by what was answered."""
    _require_release(visit)
    found = sorted(_lease(visit, MANY_IMAGES, OPEN_REASONS), key=lambda one: one.row.label)
    classes = known_classes(visit.site, visit.journal.reviews())
    return visit.render("review_many.html.jinja", items=found, classes=classes, keys=number_keys(classes, ()))


def answer_many(visit: Visit) -> Response:
    """Record one word for all marked answers."""
    _require_release(visit)
    ids = [one for one in visit.form.getlist("ids") if isinstance(one, str)][:MANY_IMAGES]
    word = visit.text("answer").strip() or visit.text("typed").strip()
    if not ids:
        raise RequestError(422, "No image is marked: mark those that are of one class, then say which.")
    classes = known_classes(visit.site, visit.journal.reviews())
    for id in ids:
        _find_item(visit, id)
    review_answer(
        visit.journal, ids[0], word, classes=classes, by=visit.session.name, followers=ids[1:],
        new_class=bool(visit.text("new_class")),
    )  # fmt: skip
    return visit.redirect("/review/many")


def show_image(visit: Visit) -> Response:
    """The image of a queued answer, without metadata."""
    row = _find_item(visit, visit.request.path_params["id"]).row
    if (path := visit.journal.image_path(row)) is None:
        raise RequestError(404, "The image of this answer is not kept any more.")
    kinds = {".jpg": "image/jpeg", ".png": "image/png", ".tif": "image/tiff"}
    headers = {"cache-control": "private, max-age=600"}  # short: an erasure removes images
    return Response(path.read_bytes(), media_type=kinds[path.suffix], headers=headers)


def show_beside(visit: Visit) -> Response:
    """Where the classifier looked, and the nearest training images: parts of the card that may take a moment."""
    item = _find_item(visit, visit.request.path_params["id"])
    service, heat, neighbours, why = visit.studio.service, "", None, ""
    ranked = _rank(visit, item.row)
    if ranked is not None:
        try:
            if not item.blind:
                heat = service.heatmaps.draw(service.engine, [ranked])[0]
        except RequestError as error:
            why = error.detail
        try:
            neighbours = visit.studio.neighbours.nearest(ranked.pixels)
        except SightlineError as error:
            why = str(error)
    waits = ranked is not None and neighbours is None and not why
    return visit.render(
        "_beside.html.jinja", item=item, heat=heat, neighbours=neighbours, why=why, waits=waits,
        label=ranked.label if ranked else "",
    )  # fmt: skip


REVIEW_PAGE = Page(
    "Review",
    (
        PageRoute("GET", "/review", show_review, "review"),
        PageRoute("GET", "/review/back", go_back, "review"),
        PageRoute("GET", "/review/many", show_many, "review"),
        PageRoute("POST", "/review/many", answer_many, "review"),
        PageRoute("POST", "/review/answers", take_answer, "review"),
        PageRoute("GET", "/review/images/{id}", show_image, "review"),
        PageRoute("GET", "/review/beside/{id}", show_beside, "review"),
    ),
)
