"""Draws the pictures of docs/explanation.md: maps, changes and wishes of two networks.

    python docs/explanations.py [FOLDER_OF_ZIPS] [WEIGHTS_FILE]

``explain-digits.png``, ``counterfactual.png`` and ``wishes.png`` are of a LeNet-5 that is trained on the embedded
digits, so that they can be made anywhere; ``explain-cifar.png`` is of a third party's ResNet-20 on CIFAR-10, and
is left as it is where these are absent.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.explanation import counterfactual_run, explain_run, visualise_run
from sightline.training import Recipe, reopen, train

PICTURES = Path(__file__).parent / "pictures"
COLOURS = 256
"""Of the palette: it keeps the files small."""


def main() -> None:
    """Train, explain, draw."""
    shared = Path(__file__).parents[2] / "shared"
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else shared / "data"
    weights = Path(sys.argv[2]) if len(sys.argv) > 2 else shared / "weights" / "resnet20-12fca82f.th"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        of_digits(folder)
        if weights.is_file() and (data / "cifar10_jpg.zip").is_file():
            of_cifar(folder, data / "cifar10_jpg.zip", weights)


def of_digits(folder: Path) -> None:
    """A network of eight epochs on 16 x 16 pixels."""
    recipe = Recipe(model="lenet5", size=16, epochs=12, batch_size=32, augment=("shift:1", "rotate:8"))
    run = train("digits", recipe, out=folder / "digits").folder
    three, eight = files_of(run, {"3": 1, "8": 1}, folder)
    explain_run(run, [three, eight], by="all", out=folder / "explain-digits.png")
    counterfactual_run(run, [three, eight], "9", out=folder / "counterfactual.png")
    visualise_run(run, "all", out=folder / "wishes.png")
    for name in ("explain-digits.png", "counterfactual.png", "wishes.png"):
        keep(folder / name)


def of_cifar(folder: Path, data: Path, weights: Path) -> None:
    """Somebody else's network, as it is."""
    recipe = Recipe(model="resnet20", weights=str(weights), normalize="imagenet", epochs=0, limit=6000)
    run = train(data, recipe, out=folder / "cifar").folder
    chosen = files_of(run, {"dog": 1, "horse": 1, "ship": 1}, folder)
    explain_run(run, chosen, by="gradcam", out=folder / "explain-cifar.png")
    keep(folder / "explain-cifar.png")


def files_of(run: Path, wanted: dict[str, int], folder: Path) -> list[str]:
    """The first test images of these classes, as files."""
    test, found = reopen(run).splits.test, []
    for name, count in wanted.items():
        own = np.flatnonzero(test.labels == test.classes.index(name))[:count]
        for number, pixels in enumerate(test[own]):
            file = folder / f"{name}-{number}.png"
            Image.fromarray(pixels.squeeze()).save(file)
            found.append(str(file))
    return found


def keep(file: Path) -> None:
    """Put a picture beside the page, with fewer colours."""
    with Image.open(file) as picture:
        small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(PICTURES / file.name, optimize=True)


if __name__ == "__main__":
    main()
