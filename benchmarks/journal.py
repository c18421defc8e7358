"""What a journal costs: an id, a prediction in the spool or directly in the database, a correction on disk.

    python benchmarks/journal.py [--url postgresql://...] [--rounds 5] [--count 20000] [--out FILE]

Medians of the rounds, in microseconds of wall time per prediction; ``drained`` is predictions per second from the
spool to the database, ``insert_directly`` what a request would wait for without a spool.
"""

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import RESULTS, record

from sightline.journal import Journal, PredictionRecord, new_prediction_id
from sightline.journal.image_store import strip_metadata


class IdleJournal(Journal):
    """A journal whose thread is idle, so that one thing is measured at a time."""

    def _run(self) -> None:
        self._stop.wait()


def predictions(count: int, image: bytes | None = None) -> list[PredictionRecord]:
    """Predictions as a service records them."""
    return [
        PredictionRecord(
            new_prediction_id(), time.time(), 3, "aeroplane", 0.9375, False, "ab" * 32, "subject-17", None, image
        )
        for _ in range(count)
    ]


def spent(act: Callable[[], object], count: int) -> float:
    """Microseconds per prediction, of ``count``."""
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) / count * 1e6


def jpeg() -> bytes:
    """A JPEG of 32 x 32 pixels with EXIF."""
    import io

    from PIL import Image

    exif = Image.Exif()
    exif[0x010E] = "somewhere"
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "jpeg", exif=exif)
    return stream.getvalue()


def one_round(url: str | None, count: int) -> dict[str, float]:
    """Measure each figure once."""
    image = jpeg()
    plain, batched, pictured = predictions(count), predictions(count), predictions(count // 10, image)
    found = {
        "id": spent(lambda: [new_prediction_id() for _ in range(count)], count),
        "strip": spent(lambda: [strip_metadata(image) for _ in range(count // 10)], count // 10),
    }
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        with IdleJournal.open(url or site, site=site, keep_images=True) as journal:
            found["record"] = spent(lambda: [journal.record((one,)) for one in plain], count)
            eights = [batched[i : i + 8] for i in range(0, count, 8)]
            found["record_in_eights"] = spent(lambda: [journal.record(some) for some in eights], count)
            found["drained"] = 1e6 / spent(journal.flush, 2 * count)
            found["record_with_image"] = spent(lambda: [journal.record((one,)) for one in pictured], len(pictured))
            found["drained_with_images"] = 1e6 / spent(journal.flush, len(pictured))
            direct, direct_eights = predictions(count // 10), predictions(count // 10)
            found["insert_directly"] = spent(
                lambda: [journal._writer._write([one]) for one in direct], len(direct)
            )
            eights = [direct_eights[i : i + 8] for i in range(0, len(direct_eights), 8)]
            found["insert_directly_in_eights"] = spent(
                lambda: [journal._writer._write(some) for some in eights], len(direct_eights)
            )
            some = plain[:200]
            found["correct"] = spent(lambda: [journal.correct(one.id, "ship") for one in some], len(some))
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rounds = [one_round(given.url, given.count) for _ in range(given.rounds)]
    medians = {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}
    kind = "postgresql" if given.url else "sqlite"
    how: dict[str, Any] = {"database": kind, "sqlite": sqlite3.sqlite_version, "rounds": given.rounds}
    record("journal", how | medians, given.out or RESULTS / f"journal-{kind}.json")


if __name__ == "__main__":
    main()
