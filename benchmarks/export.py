"""What preprocessing, temperature and softmax inside an exported file cost: images/s against the bare network.

    python benchmarks/export.py [--rounds 15] [--nets lenet5 resnet20 resnet18]

The bare network is the same one given to torch's ONNX exporter as it is, float32 (N C H W) in, logits out: what
people export, and then prepare images for by hand. Both run in onnxruntime with one session each and as many
threads, in turn, on batches of 1 and of 32, in one process. Random weights: the sums are the same. The bare side
is given its floats ready made.
"""

import argparse
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import record

from sightline import runtime
from sightline.classifier import Classifier
from sightline.data import to_tensor
from sightline.exported_model import open_session
from sightline.formats import open_exported, write_exported
from sightline.layers import Network
from sightline.models import build, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.types import Geometry

CASES: dict[str, tuple[int, int]] = {"lenet5": (28, 1), "resnet20": (32, 3), "resnet18": (224, 3)}
"""Network -> side in pixels, channels."""
BATCHES = (1, 32)
Ask = Callable[[np.ndarray], Any]
ENOUGH = 0.1
"""Seconds that one measurement of a round takes, about."""


def fresh(name: str) -> Classifier:
    """A classifier with random weights."""
    side, channels = CASES[name]
    plan = parse_architecture(name, classes=10, channels=channels, size=(side, side))
    steps = Preprocessing([Normalise([0.45] * channels, [0.25] * channels)])
    geometry = Geometry(size=(side, side), channels=channels)
    classes = [str(k) for k in range(10)]
    made = Classifier(steps, build(plan), architecture=plan, classes=classes, geometry=geometry, temperature=1.3)
    return made.eval()


def bare(network: Network, pixels: torch.Tensor, path: Path) -> Path:
    """The network by itself, as torch exports it."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        torch.onnx.export(
            network, (pixels,), path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False
        )
    return path


def measured(name: str, place: Path, rounds: int) -> dict[str, Any]:
    """Images/s of both, at each batch size."""
    classifier, (side, channels) = fresh(name), CASES[name]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(BATCHES), side, side, channels), np.uint8)
    pixels = classifier.preprocessing(to_tensor(images)).contiguous()
    whole = open_exported(write_exported(classifier, place / f"{name}.onnx"))
    alone = open_session(bare(classifier.network, pixels[:2], place / f"{name}-bare.onnx"))
    given = alone.get_inputs()[0].name
    logits = torch.from_numpy(alone.run(None, {given: pixels.numpy()})[0])
    wanted = torch.softmax(logits / classifier.temperature, 1).numpy()
    assert np.abs(whole.probabilities(images) - wanted).max() < 1e-4, "they compute different things"
    sides = (whole.probabilities, lambda floats: alone.run(None, {given: floats}))
    return {str(size): _rates(*sides, images[:size], pixels[:size].numpy(), rounds) for size in BATCHES}


def _rates(whole: Ask, alone: Ask, images: np.ndarray, pixels: np.ndarray, rounds: int) -> dict[str, Any]:
    once = min(runtime.time_interleaved({"bare": lambda: alone(pixels)}, 3)["bare"])
    count = max(1, round(ENOUGH / once))

    def exported() -> None:
        for _ in range(count):
            whole(images)

    def network() -> None:
        for _ in range(count):
            alone(pixels)

    times = runtime.time_interleaved({"exported": exported, "bare": network}, rounds)
    rates = {side: statistics.median(len(images) * count / t for t in each) for side, each in times.items()}
    ratios = [b / e for e, b in zip(times["exported"], times["bare"], strict=True)]
    return {
        "images_per_second": {side: round(rate, 1) for side, rate in rates.items()},
        "exported_over_bare": round(statistics.median(ratios), 4),
        "of_rounds": [round(min(ratios), 4), round(max(ratios), 4)],
    }


def main() -> None:
    """Every network, both batch sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--nets", nargs="+", default=list(CASES), choices=list(CASES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures = {name: measured(name, Path(place), given.rounds) for name in given.nets}
    import onnxruntime

    record("export", {"onnxruntime": onnxruntime.__version__, "rounds": given.rounds, "nets": figures})


if __name__ == "__main__":
    main()
