"""How much faster a classifier is evaluated with its batch norms folded into the convolutions, in float32.

    python benchmarks/folding.py [--rounds 5] [--out FILE]

`predict_logits`, which validates and calibrates, over random images in memory, compared with the same batches through
the network as it was trained: in turn in one process, all cores, medians. It also prints the largest difference of
a logit as a share of the largest logit.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from fused import random_classifier
from record import record

from sightline import runtime
from sightline.classifier import Classifier
from sightline.inference import MIN_IMAGES_TO_FOLD, map_batches, predict_logits
from sightline.types import Dataset

CASES = {"resnet20": (32, 4096), "resnet18": (32, 1024), "fastcnn:width=0.5": (32, 4096), "lenet5": (32, 8192)}
CASES |= {"timm:tf_efficientnet_lite0": (224, MIN_IMAGES_TO_FOLD)}
"""Network -> side in pixels, images."""


def main() -> None:
    """Measure each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/folding.json")
    asked = parser.parse_args()
    torch.set_num_threads(runtime.cpu_count())
    figures = {}
    for word, (side, count) in CASES.items():
        classifier = random_classifier(word, side).eval()
        figures[word] = found = measure(classifier, random_images(classifier, count), asked.rounds)
        print(word, found, flush=True)
    record("folding", figures, asked.out)


def random_images(classifier: Classifier, count: int) -> Dataset:
    """Images without a meaning, of the classifier's geometry."""
    return Dataset(
        pixels=np.random.default_rng(0).integers(0, 256, (count, *classifier.geometry.shape), np.uint8),
        rows=np.arange(count),
        labels=np.zeros(count, np.int64),
        classes=classifier.classes,
        files=np.array([f"{number}.png" for number in range(count)]),
        digests=np.arange(count, dtype=np.uint64),
        geometry=classifier.geometry,
        fingerprint="random",
    )


@torch.inference_mode()
def measure(classifier: Classifier, images: Dataset, rounds: int) -> dict[str, float]:
    """The gain in speed, and the difference of the logits."""
    plain = partial(map_batches, classifier, images, classifier)
    times = runtime.time_interleaved(
        {"folded": partial(predict_logits, classifier, images), "plain": plain}, rounds
    )
    logits, wanted = predict_logits(classifier, images)[0], plain()
    return {
        "images_per_second": round(len(images) / median(times["folded"]), 1),
        "speedup": round(median(times["plain"]) / median(times["folded"]), 2),
        "difference": float((logits - wanted).abs().max() / wanted.abs().max()),
    }


if __name__ == "__main__":
    main()
