"""A folder of pictures, large enough to be taken for photos."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(
    folder: Path, count: int = 24, names: tuple[str, str] = ("disc", "stripe"), seed: int = 0
) -> Path:
    """``count`` pictures each of warm discs and cold stripes, 96 x 80 pixels, in class folders."""
    rng = np.random.default_rng(seed)
    across, down = np.meshgrid(np.arange(96), np.arange(80))
    for number in range(count):
        disc = ((across - rng.integers(30, 60)) ** 2 + (down - rng.integers(30, 50)) ** 2 < 400)[..., None]
        stripes = ((across // rng.integers(3, 7)) % 2)[..., None].astype(bool)
        for name, mask, colour in zip(names, (disc, stripes), ((220, 90, 40), (40, 90, 220)), strict=True):
            pixels = np.where(mask, colour, 200) + rng.normal(0, 12, (80, 96, 3))
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number}.jpg")
    return folder
