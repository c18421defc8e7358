"""fastai: ImageDataLoaders from a folder, item transforms, a Learner."""

from functools import partial

import torch
from networks import parameters
from pytorch_peers import network
from task import BATCH, LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY, Answer, Asked, Clock, main

# isort: split
# Only now: torchvision must be repaired first.
from fastai.vision.all import (
    Callback,
    CancelFitException,
    CropPad,
    CrossEntropyLossFlat,
    FlipItem,
    ImageDataLoaders,
    Learner,
    Normalize,
    OptimWrapper,
    PILImage,
    PILImageBW,
    RandomCrop,
)


class Watch(Callback):
    """Ends training when the clock says so."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def after_batch(self) -> None:
        """One step is done."""
        if self.clock.tick():
            raise CancelFitException


def run(asked: Asked) -> Answer:
    """Train until the clock stops."""
    case = asked.case
    items = [CropPad(case.size + 2 * case.shift), RandomCrop(case.size)]
    loaders = ImageDataLoaders.from_folder(
        asked.folder,
        train="train",
        valid="test",
        img_cls=PILImageBW if case.channels == 1 else PILImage,
        item_tfms=[*items, FlipItem(0.5)] if case.mirror else items,
        batch_tfms=[Normalize.from_stats((MEAN,) * case.channels, (STD,) * case.channels, cuda=False)],
        bs=BATCH,
        num_workers=asked.workers,
        device=torch.device("cpu"),
    )
    model, clock = network(asked), Clock(asked)
    optimizer = partial(
        OptimWrapper, opt=torch.optim.SGD, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )
    learner = Learner(loaders, model, loss_func=CrossEntropyLossFlat(), opt_func=optimizer, cbs=[Watch(clock)])
    with learner.no_bar(), learner.no_logging():
        learner.fit(1, LR)
    return Answer(clock.rate, parameters(model))


if __name__ == "__main__":
    main("fastai", run)
