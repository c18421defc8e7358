"""Labels that a choice by close calls saves, compared with labels drawn at random.

    python benchmarks/selection.py [--sets waste mnist] [--seeds 5] [--data FOLDER]

A linear classifier (scikit-learn's logistic regression) on fixed features: of the embedded backbone (waste), or of the
first 64 principal components of the pixels (mnist, 6,000 images). It starts from 60 labels and gets 40 more in each of
six rounds, chosen among images that it has not seen by ``REASONS["margin"]``, by the same without thinning, or at
random. A third of the images is for testing and chooses nothing. ``saved`` is the share of labels fewer than random
choice has at its end that a way needs to be as accurate, by linear interpolation between rounds; below 0 where it needs
more. Intervals are Student's over the seeds, which all ways share.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from record import record, shared
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from sightline.data import load_dataset
from sightline.features import embed_cached
from sightline.feedback import REASONS, Candidates
from sightline.metrics import seeds_interval
from sightline.training import build_published_start
from sightline.types import Geometry

START, ROUND, ROUNDS = 60, 40, 6
WAYS = ("random", "margin", "margin alone")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["waste", "mnist"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    figures = {}
    for name in asked.sets:
        features, labels = load_features(shared(asked.data), name)
        curves = {way: [learn_curve(way, features, labels, seed) for seed in range(asked.seeds)] for way in WAYS}
        saved = {
            way: seeds_interval([saved_share(*both) for both in zip(curves[way], curves["random"], strict=True)])
            for way in WAYS[1:]
        }
        figures[name] = {
            "labels": [START + ROUND * k for k in range(ROUNDS + 1)],
            "accuracy": {way: np.mean(some, 0).round(4).tolist() for way, some in curves.items()},
            "saved": {way: one.as_json() for way, one in saved.items()},
        }
        print(name, figures[name]["saved"], flush=True)
    record("selection", figures)


def load_features(data: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of all images."""
    if name == "mnist":
        images = load_dataset(data / "mnist_png.zip", Geometry(size=(28, 28), channels=1))
        images = images.subset(np.random.default_rng(0).permutation(len(images))[:6000])
        pixels = images[:].reshape(len(images), -1) / 255
        return PCA(64, random_state=0).fit_transform(pixels), images.labels
    images = load_dataset(
        data / f"{name}_jpg.zip", Geometry(size=(224, 224), resize_mode="crop", crop_fraction=0.875)
    )
    backbone = build_published_start(images, torch.device("cpu"))
    return embed_cached(backbone, images), images.labels


def learn_curve(way: str, features: np.ndarray, labels: np.ndarray, seed: int) -> list[float]:
    """Test accuracy with 60, 100, ... labels."""
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(labels))
    test, pool = order[: len(order) // 3], order[len(order) // 3 :]
    chosen, pool = pool[:START], pool[START:]
    white = PCA(32, whiten=True, random_state=0).fit(features[order[len(order) // 3 :]]).transform(features)
    found = []
    for number in range(ROUNDS + 1):
        scale = features[chosen].std() or 1.0
        model = LogisticRegression(max_iter=300).fit(features[chosen] / scale, labels[chosen])
        found.append(float((model.predict(features[test] / scale) == labels[test]).mean()))
        if number == ROUNDS:
            return found
        if way == "random":
            picks = np.arange(ROUND)  # the pool is in random order
        else:
            candidates = Candidates(
                ids=tuple(f"{i:032x}" for i in pool), probabilities=model.predict_proba(features[pool] / scale),
                features=white[pool], distances=np.zeros(len(pool)), abstained=np.zeros(len(pool), bool),
                changed=np.full(len(pool), -np.inf),
            )  # fmt: skip
            reason = REASONS["margin"](surplus=5 if way == "margin" else 1)
            picks = np.array([one.position for one in reason.pick(candidates, ROUND)])
        chosen, pool = np.concatenate([chosen, pool[picks]]), np.delete(pool, picks)
    return found


def saved_share(curve: list[float], random: list[float]) -> float:
    """Share of labels fewer than random choice has at its end, to be as accurate; accuracies are made to rise."""
    labels, rising = START + ROUND * np.arange(ROUNDS + 1), np.maximum.accumulate(curve)
    if rising[-1] < random[-1]:  # how many more it would need, by the last slope
        slope = max(1e-4, (rising[-1] - rising[0]) / (labels[-1] - labels[0]))
        return float(-(random[-1] - rising[-1]) / slope / labels[-1])
    return float(1 - np.interp(random[-1], rising, labels) / labels[-1])


if __name__ == "__main__":
    main()
