"""Draws docs/pictures/corruptions.png: an image under every corruption, at each severity.

    python docs/corruptions.py

The photograph is one of scikit-learn's sample images, so that the picture can be made anywhere.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from sightline.robustness import draw_corruptions

SIZE, CELL = 56, 112

COLOURS = 160
"""Of the palette: it keeps the file small."""


def main() -> None:
    """A row for each corruption."""
    cut = Image.fromarray(load_sample_image("china.jpg")).crop((170, 20, 560, 410))
    image = np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    target = Path(__file__).parent / "pictures" / "corruptions.png"
    draw_corruptions(image, cell=CELL).quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
