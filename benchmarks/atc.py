"""Accuracy without labels (ATC) over 75 corruption cells, and where it fails.

    python benchmarks/atc.py [--images 1000] [--data FOLDER]

A third party's ResNet-20, its temperature fitted on validation images. ATC's threshold comes from 5,000 clean
test images, the estimates are of ``--images`` others in 15 corruptions at 5 severities. ``error_points`` is the mean
absolute difference between estimate and truth over the cells, also for the alternatives: average confidence, DoC, and
ATC by negative entropy in the place of confidence.
Unseen class: the network may not answer "truck", and a tenth, a fifth and a half of the images are trucks.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from cifar import open_third_party_resnet20
from record import record, shared

from sightline.data import to_tensor
from sightline.metrics import estimate_accuracy
from sightline.robustness import CORRUPTIONS

UNSEEN = "truck"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    data = shared(asked.data)
    run = open_third_party_resnet20(data)
    classifier, test = run.classifier.eval(), run.splits.test
    order = np.random.default_rng(0).permutation(len(test))
    clean, others = test.subset(order[:5000]), test.subset(order[5000 : 5000 + asked.images])
    known = probabilities(classifier, to_tensor(clean[:], classifier.device))
    right = known.argmax(1) == clean.labels
    pixels = to_tensor(others[:], classifier.device)
    cells = []
    for number, (name, member) in enumerate(CORRUPTIONS.items()):
        for severity in range(1, 6):
            changed = member(pixels, severity, torch.Generator().manual_seed(10 * number + severity))
            said = probabilities(classifier, (changed * 255).round() / 255)
            truth = float((said.argmax(1) == others.labels).mean())
            found = estimate_accuracy(known.max(1), right, said.max(1), entropies=(entropy(known), entropy(said)))
            by_confidence = estimate_accuracy(known.max(1), right, said.max(1)).atc
            cells.append(
                {"cell": f"{name} {severity}", "truth": truth, **vars(found), "atc_confidence": by_confidence}
            )
            print(cells[-1], flush=True)
    ways = [key for key in cells[0] if key not in ("cell", "truth")]
    figures = {
        "cells": len(cells),
        "error_points": error_points(cells, ways),
        "error_points_without_noise": error_points([one for one in cells if "noise" not in one["cell"]], ways),
        "worst": max(cells, key=lambda one: abs(one["atc"] - one["truth"])),
        "unseen": measure_unseen(classifier, clean, test.subset(order[5000:])),
    }
    record("atc", figures)


def error_points(cells, ways) -> dict[str, float]:
    """The mean absolute error of each way, in points."""
    return {way: round(100 * float(np.mean([abs(one[way] - one["truth"]) for one in cells])), 2) for way in ways}


def entropy(said: np.ndarray) -> np.ndarray:
    """Of each row of probabilities."""
    return -(said * np.log(said.clip(1e-30))).sum(1)


def measure_unseen(classifier, clean, others) -> list[dict]:
    """Estimate and truth where a share of the images is of a class that the network may not answer."""
    gone = classifier.classes.index(UNSEEN)
    kept = clean.subset(clean.labels != gone)
    known = probabilities(classifier, to_tensor(kept[:], classifier.device), gone)
    right = known.argmax(1) == kept.labels
    seen, unseen = (np.flatnonzero((others.labels == gone) == flag) for flag in (False, True))
    found = []
    for share in (0.1, 0.2, 0.5):
        count = min(len(unseen), int(len(seen) * share / (1 - share)))
        mixed = others.subset(np.concatenate([seen[: int(count * (1 - share) / share)], unseen[:count]]))
        said = probabilities(classifier, to_tensor(mixed[:], classifier.device), gone)
        truth = float((said.argmax(1) == mixed.labels).mean())
        estimate = estimate_accuracy(known.max(1), right, said.max(1), entropies=(entropy(known), entropy(said)))
        found.append({"share": share, "n": len(mixed), "truth": truth, "atc": estimate.atc})
    return found


def probabilities(classifier, pixels, without: int | None = None) -> np.ndarray:
    """Of the classes, after temperature; a class ``without`` a chance has 0."""
    parts = []
    with torch.inference_mode():
        for some in pixels.split(250):
            logits = classifier(some) / classifier.temperature
            if without is not None:
                logits[:, without] = -torch.inf
            parts.append(torch.softmax(logits, 1).numpy())
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
