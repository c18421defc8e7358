"""From a folder of your own images to a trained, tested classifier and its answers.

    python examples/own_images.py FOLDER [IMAGE ...]

FOLDER holds a folder of images for each class. Without it, a small one is drawn: 80 discs, 80 rings.
The run and its report.html are written to runs/; an earlier run is never overwritten.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sightline.evaluation import evaluate_run
from sightline.evidence import write_report
from sightline.training import Recipe, train


def draw(folder: Path, per_class: int = 80) -> Path:
    """Draw discs and rings of random place, size and colour."""
    random = np.random.default_rng(0)
    for name in ("disc", "ring"):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            ground, paint = (tuple(random.integers(low, low + 90, 3).tolist()) for low in (0, 150))
            picture = Image.new("RGB", (40, 32), ground)
            radius, x, y = random.integers([6, 12, 12], [11, 28, 20]).tolist()
            corners = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(picture).ellipse(corners, paint if name == "disc" else None, paint, width=3)
            picture.save(folder / name / f"{number:03d}.png")
    return folder


def main(folder: Path, images: list[Path], recipe: Recipe) -> None:
    """Train, test, report, predict."""
    run = train(folder, recipe)
    tested = evaluate_run(run)
    print(f"\nAccuracy on test images, with its 95 % interval: {tested.metrics['accuracy']}")
    print(f"The report: {write_report(run.folder)}\n")
    for answer in run.classifier.predict(images or [folder / file for file in tested.files[::5]]):
        print(answer.error or f"{answer.file}: {answer.label}, {answer.confidence:.1%}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]], Recipe())  # everything is chosen
    else:
        with tempfile.TemporaryDirectory() as place:
            main(draw(Path(place, "drawn")), [], Recipe(model="lenet5", size=32, epochs=12))
