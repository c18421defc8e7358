"""Draws docs/pictures/augmentations.png: each augmentation of the same image, four times.

    python docs/augmentations.py

The two photographs are scikit-learn's sample images, so that the picture can be made anywhere.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_image

from sightline import pictures, runtime
from sightline.augmentation import AUGMENTATIONS, parse_policy
from sightline.batches import Batch
from sightline.data.loader import to_tensor

SIZE, GAP, LINE, TIMES, ACROSS = 56, 4, 22, 4, 3
SHOWN = {"mixup": "mixup:1"}
"""Shown with another magnitude than its own: the usual mixup is too weak to see in four images."""

COLOURS = 160
"""Of the palette: it keeps the file small."""


def photograph(name: str, box: tuple[int, int, int, int]) -> np.ndarray:
    """A square cut out of a sample image, SIZE x SIZE."""
    cut = Image.fromarray(load_sample_image(name)).crop(box)
    return np.asarray(cut.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def examples(word: str, flower: np.ndarray, temple: np.ndarray) -> np.ndarray:
    """Four results (4 H W C); what mixes images gets two different ones."""
    mixes = word.startswith(("mixup", "cutmix"))
    images = np.stack([temple if mixes and i % 2 else flower for i in range(TIMES)])
    batch = Batch(to_tensor(images), torch.arange(TIMES) % 2, torch.arange(TIMES), classes=2)
    pixels = parse_policy(word)(batch, runtime.make_generator(11)).pixels
    return (pixels.permute(0, 2, 3, 1) * 255).round().byte().numpy()


def main() -> None:
    """Draw the sheet: the photographs first, then a strip for each word."""
    flower, temple = photograph("flower.jpg", (190, 20, 590, 420)), photograph("china.jpg", (60, 10, 460, 410))
    strips = {"(as they are)": np.stack([flower, temple])}
    words = [SHOWN.get(word, word) for word in AUGMENTATIONS]
    strips |= {word: examples(word, flower, temple) for word in words}
    strip = TIMES * (SIZE + GAP) + 3 * GAP
    rows = -(-len(strips) // ACROSS)
    sheet = Image.new("RGB", (ACROSS * strip, rows * (SIZE + LINE) + GAP), pictures.PALETTE["paper"])
    draw = ImageDraw.Draw(sheet)
    for number, (word, images) in enumerate(strips.items()):
        left, top = number % ACROSS * strip + GAP, number // ACROSS * (SIZE + LINE) + GAP
        draw.text((left, top), word, fill=pictures.PALETTE["ink"], font_size=13)
        for place, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (left + place * (SIZE + GAP), top + LINE - GAP))
    target = Path(__file__).parent / "pictures" / "augmentations.png"
    sheet.quantize(COLOURS, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    main()
