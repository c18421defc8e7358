"""The task every peer is given, and the stopwatch it is measured with.

Batches of 128 drawn at random from a folder of images, shifted (and for photographs mirrored) at random,
one step of SGD with Nesterov momentum each. The first quarter as many steps again are warm-up.
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

BATCH, LR, MOMENTUM, WEIGHT_DECAY = 128, 0.01, 0.9, 5e-4
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Case:
    """Images of one kind."""

    archive: str
    size: int
    channels: int
    shift: int
    """Pixels of zero padding on each side, before a random crop of the old size."""
    mirror: bool
    steps: int
    """Measured, after ``steps // 4`` (at least one) to warm up."""


CASES = {
    "lenet5": Case("mnist_png.zip", 28, 1, shift=2, mirror=False, steps=120),
    "resnet20": Case("cifar10_jpg.zip", 32, 3, shift=4, mirror=True, steps=12),
    "resnet18": Case("cifar10_jpg.zip", 32, 3, shift=4, mirror=True, steps=3),
}


@dataclass(frozen=True)
class Asked:
    """One measurement: the network, the folder that holds ``train/<class>/*``, and how."""

    net: str
    folder: Path
    steps: int
    workers: int
    precision: str
    """float32 or bfloat16."""
    layout: str
    """contiguous or channels_last."""

    @property
    def case(self) -> Case:
        """What the network is trained on."""
        return CASES[self.net]

    @property
    def warm(self) -> int:
        """Steps before the clock starts."""
        return max(1, self.steps // 4)


class Clock:
    """Counts steps; the time of the measured ones."""

    def __init__(self, asked: Asked):
        self.warm, self.last, self.step = asked.warm, asked.warm + asked.steps, 0
        self.started = self.ended = 0.0

    def tick(self) -> bool:
        """A step is done; whether that was the last."""
        self.step += 1
        if self.step == self.warm:
            self.started = time.perf_counter()
        if self.step == self.last:
            self.ended = time.perf_counter()
        return self.step >= self.last

    @property
    def rate(self) -> float:
        """Images/s."""
        return (self.last - self.warm) * BATCH / (self.ended - self.started)


@dataclass(frozen=True)
class Answer:
    """What a measurement found."""

    images_per_second: float
    parameters: int
    precision: str | None = None
    """Where it is not what was asked for: "float32 channels_last"."""


def main(package: str, run: Callable[[Asked], Answer]) -> None:
    """Measure as the command line says (net, folder, steps, workers, precision, layout), print one JSON object."""
    net, folder, steps, workers, precision, layout = sys.argv[1:]
    answer = run(Asked(net, Path(folder), int(steps), int(workers), precision, layout))
    said = {
        "images_per_second": round(answer.images_per_second, 2),
        "precision": answer.precision or f"{precision} {layout}",
        "parameters": answer.parameters,
        "version": f"{package} {importlib.metadata.version(package)}",
    }
    print(json.dumps(said), flush=True)
