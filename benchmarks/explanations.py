"""Explanations of many images at once against one at a time, and each method's cost, on ResNet-20, in one run.

    python benchmarks/explanations.py [--images 1000] [--rounds 3]

Grad-CAM of 1,000 images of 32 x 32: one call with all of them, one call for each, and Captum's both ways with the
same layer, in turn. Our layer is named, so that choosing it is not counted against the single calls. Then
milliseconds an image of every method in batches of 16. Medians.
"""

import argparse
from statistics import median

import torch
from captum.attr import LayerAttribution, LayerGradCam
from record import record

from sightline import runtime
from sightline.choose import choose
from sightline.classifier import Classifier
from sightline.errors import ChoiceError
from sightline.explanation import EXPLAINERS, GradCam
from sightline.models import build, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.types import Geometry

LAYER, BATCH = "layer3", 16


def resnet20() -> Classifier:
    """The network everything is measured on, in channels_last as batches are."""
    torch.manual_seed(0)
    plan = parse_architecture("resnet20", classes=10, channels=3, size=(32, 32))
    made = Classifier(
        Preprocessing([Normalise(mean=[0.5] * 3, std=[0.25] * 3)]),
        build(plan),
        architecture=plan,
        classes=[str(k) for k in range(10)],
        geometry=Geometry(size=(32, 32)),
    )
    return made.to(memory_format=torch.channels_last).eval()


def main() -> None:
    """Time, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    classifier, generator = resnet20(), torch.Generator().manual_seed(0)
    images = torch.rand(asked.images, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(10, (asked.images,), generator=generator)
    explainer, captum = GradCam(LAYER), LayerGradCam(classifier, classifier.network.layer3)

    def ours(size: int):
        for some, of in zip(images.split(size), targets.split(size), strict=True):
            explainer(classifier, some, of)

    def theirs(size: int):
        for some, of in zip(images.split(size), targets.split(size), strict=True):
            LayerAttribution.interpolate(captum.attribute(some, of), (32, 32), "bilinear")

    ways = {
        "ours_at_once": lambda: ours(asked.images),
        "ours_one_at_a_time": lambda: ours(1),
        "captum_in_batches_of_128": lambda: theirs(128),
        "captum_one_at_a_time": lambda: theirs(1),
    }
    seconds = {name: median(found) for name, found in runtime.time_interleaved(ways, asked.rounds).items()}
    record(
        "explanations",
        {
            "images": asked.images,
            "gradcam_seconds": {name: round(found, 3) for name, found in seconds.items()},
            "at_once_is_faster_by": round(seconds["ours_one_at_a_time"] / seconds["ours_at_once"], 2),
            "milliseconds_an_image": each_method(classifier, images[:BATCH], targets[:BATCH], asked.rounds),
        },
    )


def each_method(
    classifier: Classifier, images: torch.Tensor, targets: torch.Tensor, rounds: int
) -> dict[str, float]:
    """Every method that the network allows, with its own defaults."""
    members = {}
    for name in EXPLAINERS:
        explainer = choose(EXPLAINERS, name, "explainer")
        try:
            explainer(classifier, images[:1], targets[:1])
        except ChoiceError:
            continue
        members[name] = lambda explainer=explainer: explainer(classifier, images, targets)
    times = runtime.time_interleaved(members, rounds)
    return {name: round(1e3 * median(found) / len(images), 3) for name, found in times.items()}


if __name__ == "__main__":
    main()
