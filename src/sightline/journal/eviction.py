"""Which kept images make room for others: what people said and will say stays, a random share stays, the rest ages."""

import hashlib

from sqlalchemy import Connection, delete, select, update

from .database import corrections, images, predictions, queue, reviews
from .image_store import ImageStore

FREED_SHARE = 0.1
"""Share of the quota that is free after an eviction: evicting image by image would search the journal each time."""

RESERVOIR_SHARE = 0.5
"""Share of the room for unreviewed images that a random sample of all answers has; the newest have the other."""

_CHUNK = 400


def draw_number(id: str) -> float:
    """A number in [0, 1) that is random, the same at every call, and of no one's choosing: from a hash of the id.

    >>> round(draw_number("00"), 3)
    0.943
    """
    return int.from_bytes(hashlib.sha256(id.encode()).digest()[:6], "big") / 2**48


def evict_images(connection: Connection, store: ImageStore, quota: float, needed: int) -> int:
    """Remove images until a tenth of ``quota``, and ``needed``, is free (all in bytes); return the bytes that are left.

    Images that were reviewed or queued always stay. Of the others, half of the room belongs to those of the smallest
    ``draw_number``: a uniform sample of all answers there ever were, the audit among them. The other half belongs to
    the newest.
    """
    said = {
        *connection.scalars(select(reviews.c.prediction)),
        *connection.scalars(select(corrections.c.prediction)),
    }
    said.update(connection.scalars(select(queue.c.prediction)))
    chosen = select(predictions.c.id, images.c.name, images.c.bytes).join(
        images, images.c.name == predictions.c.image
    )
    sizes: dict[str, int] = {}
    newest: dict[str, str] = {}
    number: dict[str, float] = {}
    kept: set[str] = set()
    for id, name, size in connection.execute(chosen):
        sizes[name] = size
        newest[name] = max(id, newest.get(name, ""))
        number[name] = min(draw_number(id), number.get(name, 1.0))
        if id in said:
            kept.add(name)
    room = quota - max(FREED_SHARE * quota, needed) - sum(sizes[name] for name in kept)
    others = [name for name in sizes if name not in kept]
    for order, share in (
        (sorted(others, key=number.__getitem__), RESERVOIR_SHARE),
        (sorted(others, key=newest.__getitem__, reverse=True), 1.0),
    ):
        left = share * room
        for name in order:
            if name not in kept:
                left -= sizes[name]
                if left < 0:
                    break
                kept.add(name)
                room -= sizes[name]
    gone = [name for name in others if name not in kept]
    for i in range(0, len(gone), _CHUNK):
        some = gone[i : i + _CHUNK]
        connection.execute(update(predictions).where(predictions.c.image.in_(some)).values(image=None))
        connection.execute(delete(images).where(images.c.name.in_(some)))
    for name in gone:
        store.delete(name)
    return sum(sizes[name] for name in kept)
