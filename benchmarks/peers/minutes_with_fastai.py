"""fastai: the recipe of its first lesson, ``vision_learner`` and ``fine_tune(n)``, the weights put in by timm.

It has no time limit. So n is the largest whose epochs fit: batches of both phases and of prediction are timed on
a learner that is thrown away, and that does not count. Where not even ``fine_tune(1)`` fits, the head alone is trained
for the epochs that fit, at least one.
"""

import time
from typing import Any

import pytorch_peers  # noqa: F401  # torchvision must be repaired first
import torch
from minutes import NETWORK, SIZE, Answer, Asked, main

# isort: split
from fastai.vision.all import Callback, CancelFitException, ImageDataLoaders, Resize, error_rate, vision_learner

TIMED_BATCHES = 3
HEAD_RATE = 2e-3  # what fine_tune trains the head with


class Watch(Callback):
    """Ends training after some batches, of which the first is not timed."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def after_batch(self) -> None:
        """One batch is done."""
        self.ends.append(time.perf_counter())
        if len(self.ends) > TIMED_BATCHES:
            raise CancelFitException

    @property
    def seconds(self) -> float:
        """Of a batch."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def run(asked: Asked) -> Answer:
    """Train as many epochs as fit."""
    torch.manual_seed(0)
    loaders = ImageDataLoaders.from_folder(
        asked.folder, train="train", valid="val", item_tfms=Resize(SIZE), device=torch.device("cpu")
    )
    began = time.perf_counter()
    frozen, full, predicted = pace(asked, loaders)
    untimed = time.perf_counter() - began
    batches = len(loaders.train)
    validation, test = predicted * len(asked.images("val")), predicted * len(asked.images("test"))
    left = 60 * asked.minutes - test
    head = batches * frozen + validation
    epochs = int((left - head) / (batches * full + validation))
    learner = learn(asked, loaders)
    with learner.no_bar(), learner.no_logging():
        if epochs >= 1:
            recipe = f"fine_tune({epochs})"
            learner.fine_tune(epochs)
        else:
            recipe = f"the head alone, fit_one_cycle({max(1, int(left / head))})"
            learner.fit_one_cycle(max(1, int(left / head)), HEAD_RATE)
        probabilities, _ = learner.get_preds(dl=loaders.test_dl(asked.images("test")))
    return Answer([loaders.vocab[k] for k in probabilities.argmax(1)], recipe, untimed)


def learn(asked: Asked, loaders: Any) -> Any:
    """The learner of the lesson; fastai takes mean and deviation from timm's card."""
    overlay = {"file": str(asked.weights)}
    return vision_learner(loaders, NETWORK, metrics=error_rate, pretrained_cfg_overlay=overlay)


def pace(asked: Asked, loaders: Any) -> tuple[float, float, float]:
    """Seconds of a batch with the body frozen, of one without, and of predicting an image."""
    found = []
    learner = learn(asked, loaders)
    with learner.no_bar(), learner.no_logging():
        for prepare in (learner.freeze, learner.unfreeze):
            prepare()
            watch = Watch()
            learner.fit(1, 1e-6, cbs=[watch])
            found.append(watch.seconds)
        some = asked.images("train")[:128]
        began = time.perf_counter()
        learner.get_preds(dl=loaders.test_dl(some))
    return found[0], found[1], (time.perf_counter() - began) / len(some)


if __name__ == "__main__":
    main("fastai", run)
