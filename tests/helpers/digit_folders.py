"""Folders of scikit-learn's digits as PNG files, and a recipe that learns them in a second."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from helpers.tiny_classifiers import SETTLED
from sightline.training import Recipe

DIGITS_RECIPE = Recipe(
    model="mlp:hidden=[48]", epochs=8, batch_size=32, lr=0.1, normalize="fitted", augment=(), loss="cross-entropy",
    **SETTLED,
)  # fmt: skip


def write_digits(folder, wanted):
    """PNG files: ``wanted`` maps a place below the folder to (digit, first, last)."""
    digits = load_digits()
    for place, (digit, first, last) in wanted.items():
        (folder / place).mkdir(parents=True)
        for number in np.flatnonzero(digits.target == digit)[first:last]:
            pixels = (digits.images[number] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{number}.png")
    return folder
