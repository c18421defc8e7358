"""What it costs to record answers for monitoring: time of a ResNet-20 request, and room in the journal.

    python benchmarks/recording.py [--requests 400] [--answers 50000] [--data FOLDER]

One release answers JPEGs of CIFAR-10 one at a time on one thread, in turn with a reference (a sketch is made and
recorded, as a service of a site does) and without. ``share`` is the median time of the first divided by that of the
second, minus 1. Room is the size of the database with sketches minus that of one without, for a million answers.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from cifar import publish_resnet20, read_test_files
from record import record, shared

from sightline.journal import Journal, PredictionRecord, new_prediction_id
from sightline.serving import current_release, open_engine
from sightline.serving.requests import PredictRequest, RequestLimits


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--answers", type=int, default=50_000)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    data = shared(asked.data)
    files = [image for image, _ in read_test_files(data, 25)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        site = publish_resnet20(data, place, epochs=1, limit=1200)
        figures = measure_time(site, files, asked.requests)
        figures |= measure_room(place, figures.pop("sketch"), asked.answers)
    record("recording", figures)


def measure_time(site: Path, files: list[bytes], requests: int) -> dict:
    """Medians of both, in microseconds, interleaved."""
    release = current_release(site)
    engines = [
        open_engine(release.onnx, release=1, threads=1, reference=reference)
        for reference in (release.reference(), None)
    ]
    spent: tuple[list[float], list[float]] = ([], [])
    sketch = b""
    with Journal.open(site) as journal:
        for i in range(requests + 50):
            for k, engine in enumerate(engines):
                request = PredictRequest([files[i % len(files)]])
                start = time.perf_counter()
                ((one,),) = engine.predict([request], RequestLimits())
                if one.sketch is not None:
                    sketch = one.sketch
                journal.record(
                    [
                        PredictionRecord(
                            new_prediction_id(), time.time(), 1, one.label, one.confidence, False, "ab" * 32,
                            sketch=one.sketch,
                        )
                    ]
                )  # fmt: skip
                if i >= 50:
                    spent[k].append(1e6 * (time.perf_counter() - start))
    with_sketch, without = (float(np.median(one)) for one in spent)
    return {
        "microseconds_with_sketch": round(with_sketch, 1),
        "microseconds_without": round(without, 1),
        "share": round(with_sketch / without - 1, 4),
        "sketch": sketch,
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
