"""What each corruption costs, and a run's mean corruption error.

    python benchmarks/corruptions.py [RUN] [--images 1000]

Milliseconds for 1,000 images, severity 3, in batches, one process: random RGB images of 32 x 32 and of 224 x 224
(32 of these are timed). With a RUN its classifier is tested on that many of its test images, as by
``sightline evaluate RUN --corruptions``.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from record import record

from sightline import runtime
from sightline.robustness import CORRUPTIONS, evaluate_corruptions
from sightline.runs import open_subject

ROUNDS = 5
TIMED = {32: 256, 224: 32}
"""Images of each side that are timed."""


def costs(side: int, count: int) -> dict[str, float]:
    """Milliseconds for 1,000 images under each corruption."""
    images = torch.rand(count, 3, side, side, generator=runtime.make_generator(0))

    def candidate(member):
        return lambda: member(images, 3, runtime.make_generator(1))

    times = runtime.time_interleaved({name: candidate(member) for name, member in CORRUPTIONS.items()}, ROUNDS)
    return {name: round(statistics.median(each) / count * 1e6, 1) for name, each in times.items()}


def tested(run: Path, limit: int) -> dict[str, Any]:
    """The run's accuracies and its mean corruption error."""
    subject = open_subject(run, limit=limit)
    shift = evaluate_corruptions(subject.classifier, subject.images, sample=subject.sentence)
    return {"architecture": subject.classifier.architecture.name, **shift.as_json()}


def main() -> None:
    """Time every member; test the run, where one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    given = parser.parse_args()
    figures: dict[str, Any] = {f"ms_per_1000_at_{side}": costs(side, count) for side, count in TIMED.items()}
    if given.run:
        figures["run"] = tested(given.run, given.images)
    record("corruptions", figures)


if __name__ == "__main__":
    main()
