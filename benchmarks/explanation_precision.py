"""Explanations in bfloat16 against float32: time, and whether the maps and their tests agree.

    python benchmarks/explanation_precision.py [FOLDER_OF_ZIPS] [--images 16] [--photos 2] [--rounds 3]

Trained networks: ResNet-20 at 32 pixels (2 epochs on 10,000 images of CIFAR-10) and a head on the published
EfficientNet-Lite0 at 224 pixels (waste). Every method, with its own defaults, on test images, the two precisions in
turn; bfloat16 by autocast, as in training. Agreement: the rank correlation of the two maps of an image, and the share
of the tenth of its places with most evidence that both name. The test of a map, its deletion and insertion curves, is
measured in the same way: the largest difference of an area.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from record import record, shared
from torch import Tensor

from sightline import runtime
from sightline.choose import choose
from sightline.classifier import Classifier
from sightline.data import to_tensor
from sightline.errors import ChoiceError
from sightline.explanation import EXPLAINERS, reduce_channels
from sightline.explanation.faithfulness import measure_curves, rank_correlation
from sightline.training import Recipe, train

NETWORKS = {
    "resnet20 at 32": ("cifar10_jpg.zip", Recipe(model="resnet20", epochs=2, limit=10_000)),
    "published EfficientNet-Lite0 at 224": ("waste_jpg.zip", Recipe(epochs=0)),
}
TOP_SHARE = 0.1


def main() -> None:
    """Compare on both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=16, help="of 32 pixels")
    parser.add_argument("--photos", type=int, default=2, help="images of 224 pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    figures: dict[str, Any] = {"images": asked.images, "photos": asked.photos}
    for name, (data, recipe) in NETWORKS.items():
        with tempfile.TemporaryDirectory() as place:
            run = train(shared(asked.data) / data, recipe, out=Path(place) / "run")
            count = asked.images if run.classifier.geometry.size[0] < 64 else asked.photos
            chosen = run.splits.test.subset(np.linspace(0, len(run.splits.test) - 1, count).round().astype(int))
            figures[name] = compare(run.classifier, to_tensor(chosen[:]), asked.rounds)
    record("explanation_precision", figures, asked.out)


def compare(classifier: Classifier, images: Tensor, rounds: int) -> dict[str, Any]:
    """Every method that the network allows, and the curves of a Grad-CAM."""
    images = images.contiguous(memory_format=torch.channels_last)
    targets = classifier.probabilities(images).argmax(1)
    figures: dict[str, Any] = {}
    for name in EXPLAINERS:
        explainer = choose(EXPLAINERS, name, "explainer")

        def draw(explainer: Any = explainer) -> Tensor:
            return reduce_channels(explainer, explainer(classifier, images, targets)).float()

        try:
            draw()
        except ChoiceError:
            continue
        speed, (exact, rough) = in_both(draw, rounds)
        same = rank_correlation(exact, rough)
        places = top_places(exact) & top_places(rough)
        shared_places = places.sum(1) / top_places(exact).sum(1)
        figures[name] = speed | {
            "rank_correlation": {"median": round(float(np.median(same)), 4), "least": round(float(same.min()), 4)},
            "same_places": {
                "median": round(float(shared_places.median()), 3),
                "least": round(float(shared_places.min()), 3),
            },
        }
        print(name, figures[name], flush=True)
    found = reduce_channels(explainer := choose(EXPLAINERS, "gradcam", ""), explainer(classifier, images, targets))
    speed, (exact, rough) = in_both(lambda: measure_curves(classifier, images, targets, found), rounds)
    worst = max(
        np.abs(exact.deletion_area - rough.deletion_area).max(),
        np.abs(exact.insertion_area - rough.insertion_area).max(),
    )
    figures["curves"] = speed | {"largest_difference_of_an_area": round(float(worst), 4)}
    print("curves", figures["curves"], flush=True)
    return figures


def in_both(work: Callable[[], Any], rounds: int) -> tuple[dict[str, Any], tuple[Any, Any]]:
    """Milliseconds of this work in each precision, in turn, and what it returns in float32 and in bfloat16."""

    def in_bfloat16() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return work()

    times = runtime.time_interleaved({"float32": work, "bfloat16": in_bfloat16}, rounds)
    seconds = {way: median(taken) for way, taken in times.items()}
    speed = {
        "milliseconds": {way: round(1e3 * taken, 1) for way, taken in seconds.items()},
        "speedup": round(seconds["float32"] / seconds["bfloat16"], 2),
    }
    return speed, (work(), in_bfloat16())


def top_places(maps: Tensor) -> Tensor:
    """Which places (B, H * W) are among the tenth with most evidence."""
    flat = maps.flatten(1)
    least = flat.kthvalue(max(1, round((1 - TOP_SHARE) * flat.shape[1])), dim=1, keepdim=True).values
    return flat > least


if __name__ == "__main__":
    main()
