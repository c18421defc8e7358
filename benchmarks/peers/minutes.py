"""What each side of peers_pretrained.py is given, and what it answers.

    minutes_with_PEER.py FOLDER WEIGHTS MINUTES PLACE

FOLDER holds ``train``, ``val`` and ``test``; WEIGHTS is a safetensors file of timm's ``tf_efficientnet_lite0``; what a
side writes goes under PLACE, in the end ``predictions.csv`` with a name and a class for each test image. The test
images are only predicted.
"""

import csv
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

NETWORK = "tf_efficientnet_lite0"
SIZE = 224


@dataclass(frozen=True)
class Asked:
    """One measurement."""

    folder: Path
    weights: Path
    minutes: float
    place: Path

    def images(self, part: str) -> list[Path]:
        """The images of ``train``, ``val`` or ``test``; the folder of each is its class."""
        return sorted((self.folder / part).glob("*/*"))


@dataclass(frozen=True)
class Answer:
    """What a side predicts, and how it came to that."""

    classes: Iterable[str]
    """Of the test images, in their order."""
    recipe: str
    untimed: float = 0.0
    """Seconds that do not count: spent on finding out how many epochs fit."""


def main(package: str, run: Callable[[Asked], Answer]) -> None:
    """Train and predict; print when that began, when the predictions lay there, and how it was done."""
    folder, weights, minutes, place = sys.argv[1:]
    asked = Asked(Path(folder), Path(weights), float(minutes), Path(place))
    asked.place.mkdir(parents=True, exist_ok=True)
    began = time.time()
    answer = run(asked)
    with (asked.place / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        names = [image.relative_to(asked.folder / "test").as_posix() for image in asked.images("test")]
        csv.writer(file).writerows(zip(names, answer.classes, strict=True))
    said = {
        "began": began,
        "ready": time.time(),
        "untimed": round(answer.untimed, 2),
        "recipe": answer.recipe,
        "version": f"{package} {importlib.metadata.version(package)}",
    }
    print(json.dumps(said), flush=True)
