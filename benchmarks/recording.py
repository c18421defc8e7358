"""What it costs to record answers for monitoring: time of a ResNet-20 request, and room in the journal.

    python benchmarks/recording.py [--blocks 12] [--answers 50000] [--data FOLDER]

One release answers JPEGs of CIFAR-10 one at a time on one thread, in turn with a reference (the journal's thread makes
and stores a sketch, as a service of a site does) and without. Blocks of 500 requests alternate, each longer than the
thread's pause, so that what it does behind the answers falls on its own kind. ``share`` is the median time of a request
of the first kind divided by that of the second, minus 1: what an answer waits. ``share_of_mean`` is that of the means,
and ``share_of_processor`` that of all processor time, the thread's included. Room is the size of the database with
sketches minus that of one without, for a million answers.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from cifar import publish_resnet20, read_test_files
from record import record, shared

from sightline.journal import Journal, PredictionRecord, new_prediction_id, sketch_answers
from sightline.serving import current_release, open_engine
from sightline.serving.requests import PredictRequest, RequestLimits

_BLOCK_REQUESTS = 500


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--answers", type=int, default=50_000)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    data = shared(asked.data)
    files = [image for image, _ in read_test_files(data, 25)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        site = publish_resnet20(data, place, epochs=1, limit=1200)
        figures = measure_time(site, files, asked.blocks)
        figures |= measure_room(place, figures.pop("sketch"), asked.answers)
    record("recording", figures)


def measure_time(site: Path, files: list[bytes], blocks: int) -> dict:
    """Times of a request of both kinds, in microseconds; blocks in turn, the first of each not counted."""
    release = current_release(site)
    engines = [
        open_engine(release.onnx, release=1, threads=1, reference=reference)
        for reference in (release.reference(), None)
    ]
    spent: tuple[list[float], list[float]] = ([], [])
    processor = [0.0, 0.0]
    inputs = None
    with Journal.open(site) as journal:
        for block in range(blocks + 1):
            for k, engine in enumerate(engines):
                began, times = time.process_time(), []
                for i in range(_BLOCK_REQUESTS):
                    request = PredictRequest([files[i % len(files)]])
                    start = time.perf_counter()
                    ((one,),) = engine.predict([request], RequestLimits())
                    journal.record(
                        [
                            PredictionRecord(
                                new_prediction_id(), time.time(), 1, one.label, one.confidence, False, "ab" * 32,
                                sketch_inputs=one.sketch_inputs,
                            )
                        ]
                    )  # fmt: skip
                    times.append(1e6 * (time.perf_counter() - start))
                    inputs = one.sketch_inputs or inputs
                journal.flush()
                if block:
                    processor[k] += time.process_time() - began
                    spent[k].extend(times)
        stored = len(journal.sketch_rows(1, limit=10**6))
    if stored != _BLOCK_REQUESTS * (blocks + 1):
        raise SystemExit(f"{stored} sketches were stored, not one for each answer.")
    with_sketch, without = (float(np.median(one)) for one in spent)
    return {
        "requests": len(spent[0]),
        "microseconds_with_sketch": round(with_sketch, 1),
        "microseconds_without": round(without, 1),
        "share": round(with_sketch / without - 1, 4),
        "share_of_mean": round(float(np.mean(spent[0]) / np.mean(spent[1])) - 1, 4),
        "share_of_processor": round(processor[0] / processor[1] - 1, 4),
        "sketch": sketch_answers([inputs])[0],
    }


def measure_room(place: Path, sketch: bytes, answers: int) -> dict:
    """Bytes of a sketch, and megabytes that a million of them add to a journal."""
    sizes = []
    for kind in (sketch, None):
        site = place / ("with" if kind else "without")
        with Journal.open(site) as journal:
            for _ in range(0, answers, 500):
                journal.record(
                    [
                        PredictionRecord(
                            new_prediction_id(), time.time(), 1, "frog", 0.9, False, "ab" * 32, sketch=kind
                        )
                        for _ in range(500)
                    ]
                )
            journal.flush()
        with Journal.open(site) as journal:
            journal._database.overwrite_erased()
        sizes.append((site / "journal.sqlite").stat().st_size)
    return {"sketch_bytes": len(sketch), "mb_per_million": round((sizes[0] - sizes[1]) / answers, 1)}


if __name__ == "__main__":
    main()
