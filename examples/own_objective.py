"""Your own loss and your own augmentation, in the one training loop: python examples/own_objective.py

An objective is any (classifier, batch) -> loss, an augmentation any (batch, generator) -> batch. Here digits
are learnt with a black square over them; checkpoints, best epoch, calibration and bundle come with `train`.
"""

import tempfile
from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.data import Shuffle, iterate_batches
from sightline.training import Recipe, train
from sightline.types import Dataset


def cover(batch: Batch, generator: Generator, side: int = 10) -> Batch:
    """A black square of ``side`` pixels somewhere in each image (Cutout: DeVries & Taylor 2017)."""
    count, _, height, width = batch.pixels.shape
    top, left = (torch.randint(0, n - side + 1, (count, 1), generator=generator) for n in (height, width))
    y, x = torch.arange(height), torch.arange(width)
    inside = ((y >= top) & (y < top + side))[:, None, :, None] & ((x >= left) & (x < left + side))[:, None, None]
    return replace(batch, pixels=batch.pixels.masked_fill(inside, 0.0))


def focal(classifier: Classifier, batch: Batch) -> Tensor:
    """-(1 - p) log p of the true class: easy images count less (Lin et al. 2017, equation 4, gamma 1)."""
    log_p = F.log_softmax(classifier(batch.pixels).float(), 1).gather(1, batch.labels[:, None])
    return -((1 - log_p.exp()) * log_p).mean()


def accuracy(classifier: Classifier, data: Dataset) -> float:
    """Share of covered images it names rightly."""
    covered = iterate_batches(data, 64, order=Shuffle(1), augment=cover)
    right = [classifier.eval()(batch.pixels).argmax(1) == batch.labels for batch in covered]
    return torch.cat(right).float().mean().item()


with tempfile.TemporaryDirectory() as place:
    recipe = Recipe(model="lenet5", epochs=8)
    plain = train("digits", recipe, out=f"{place}/plain")
    print(
        f"Trained as usual, it names {accuracy(plain.classifier, plain.splits.test):.1%} of covered test digits."
    )
    ours = train("digits", recipe, out=f"{place}/ours", objective=focal, augment=cover)
    print(f"Trained with the square and the focal loss, {accuracy(ours.classifier, ours.splits.test):.1%}.")
