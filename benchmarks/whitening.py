"""What ZCA whitening costs on CIFAR-10, 3,072 values per image: to fit, per batch, beside a step of ResNet-20.

    python benchmarks/whitening.py [FOLDER_OF_ZIPS]

Fitted to 45,000 training images, whole and with 512 leading directions. Batches of 128 in float32, medians of
seven rounds in turn. The share of a step is what to look at first: it is paid in every step and every answer.
"""

import statistics
import sys
import time

import torch
from record import record, shared

from sightline import runtime
from sightline.data.loader import to_tensor
from sightline.models import build, parse_architecture
from sightline.preprocessing import fit_preprocessing, forecast_fit
from sightline.training import Recipe, read_splits

ROUNDS, COUNT = 7, 128
WORDS = ("fitted", "gcn", "zca:eps=0.1", "zca:eps=0.1:rank=512")


def main() -> None:
    """Fit each, then time them and the step in turn."""
    data = shared(sys.argv[1] if len(sys.argv) > 1 else None) / "cifar10_jpg.zip"
    images = read_splits(Recipe(data=str(data), model="resnet20", val_fraction=0.1))[0].train
    pixels = to_tensor(images[:COUNT])
    network = build(parse_architecture("resnet20", classes=10, channels=3, size=(32, 32))).to(
        memory_format=torch.channels_last
    )
    figures, candidates = {}, {"step": lambda: network(pixels).logsumexp(1).sum().backward()}
    for words in WORDS:
        started = time.process_time()  # of all threads together: what one core would take
        step = fit_preprocessing(images, words, 3)
        figures[words] = {"fit_core_s": round(time.process_time() - started, 1)}
        if said := forecast_fit(words, images.geometry.shape, len(images)):
            figures[words]["forecast"] = said[0]
        candidates[words] = torch.no_grad()(lambda step=step: step(pixels))
    times = runtime.time_interleaved(candidates, ROUNDS)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for words in WORDS:
        figures[words]["batch_ms"] = round(medians[words] * 1000, 2)
        figures[words]["of_a_step"] = round(medians[words] / medians["step"], 4)
    record("whitening", {"images": len(images), "step_ms": round(medians["step"] * 1000, 1), "words": figures})


if __name__ == "__main__":
    main()
