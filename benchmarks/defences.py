"""What filters and noise are worth on MNIST, to attackers who know more and more; and what smoothing certifies.

    python benchmarks/defences.py [DATA] [--images 300]

Trains three classifiers of the same recipe (LeNet-5, 20,000 images, 6 epochs): plain, with noise at the input
(sigma 0.25), with noise in the weights (alpha 0.25 at first). Filters are put before the plain one, without
training for them. Each is attacked by PGD, 20 steps, eps 0.1, on the same test images: through a copy without
the defence, through it, and through the mean of ten draws. The one trained with input noise is then smoothed with
the same noise and certified.
"""

import argparse
import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record, shared
from torch import nn

from sightline.attacks.gradient import PGD
from sightline.classifier import Classifier
from sightline.data.loader import to_tensor
from sightline.inference import match_labels
from sightline.preprocessing import BitDepthFilter, JpegFilter, MedianFilter, NoiseFilter, PixelFilter
from sightline.robustness.adaptive import evaluate_adaptive
from sightline.robustness.smoothing import certify
from sightline.runs import sample_images
from sightline.training.recipe import Recipe
from sightline.training.run import Run, train

EPS, STEPS, CERTIFIED, RADII = 0.1, 20, 100, (0.0, 0.25, 0.5, 0.75)
RECIPE = Recipe(model="lenet5", size=28, channels=1, limit=20_000, epochs=6, batch_size=128, augment=("shift:2",))
TRAINED = {
    "plain": {},
    "trained with noise:0.25": {"normalize": "noise:0.25+fitted"},
    "trained with --weight-noise 0.25": {"weight_noise": 0.25},
}
FILTERS: dict[str, PixelFilter] = {
    "median:3": MedianFilter(3),
    "jpeg:30": JpegFilter(30),
    "bits:1": BitDepthFilter(1),
    "noise:0.25": NoiseFilter(0.25),
}
"""Put before the plain classifier."""


def behind(classifier: Classifier, step: PixelFilter) -> Classifier:
    """The classifier behind a filter."""
    defended = copy.deepcopy(classifier)
    defended.preprocessing.steps = nn.ModuleList([step, *defended.preprocessing.steps])
    return defended.eval()


def trained(data: Path, folder: Path) -> dict[str, Run]:
    """The three runs."""
    return {
        name: train(data, RECIPE.replace(**changes), out=folder / str(number), device="cpu")
        for number, (name, changes) in enumerate(TRAINED.items())
    }


def certified(classifier: Classifier, images: torch.Tensor, labels: np.ndarray) -> dict[str, Any]:
    """Certified accuracy at some radii."""
    found = certify(classifier, images[:CERTIFIED], draws=1000)
    rows = {str(r): found.accuracy(labels[:CERTIFIED], r) for r in RADII}
    return {
        "sigma": found.sigma,
        "draws": found.draws,
        "alpha": found.alpha,
        "n": CERTIFIED,
        "accuracy_at_radius": {
            r: {"value": one.value, "low": one.low, "high": one.high} for r, one in rows.items()
        },
    }


def main() -> None:
    """Train, attack, certify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--images", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = trained(shared(given.data) / "mnist_png.zip", Path(folder))
        some, _ = sample_images(runs["plain"].splits.test, given.images, 0)
        some = some.subset(mixed(len(some)))
        images, labels = to_tensor(some[np.arange(len(some))]), match_labels(runs["plain"].classifier, some)
        classifiers = {name: run.classifier for name, run in runs.items()}
        classifiers |= {f"plain behind {w}": behind(runs["plain"].classifier, f) for w, f in FILTERS.items()}
        rows = {}
        for name, one in classifiers.items():
            rows[name] = evaluate_adaptive(one, images, torch.from_numpy(labels), EPS, PGD(steps=STEPS)).as_json()
            print(name, {k: v["value"] for k, v in rows[name].items() if isinstance(v, dict)}, flush=True)
        radii = certified(classifiers["trained with noise:0.25"], images, labels)
    record("defences", {"eps": EPS, "steps": STEPS, "attackers": rows, "smoothing": radii})


def mixed(count: int) -> np.ndarray:
    """A fixed mixing, so that the first so many images are of all classes."""
    return np.random.default_rng(0).permutation(count)


if __name__ == "__main__":
    main()
