"""skorch: a NeuralNetClassifier over a folder."""

import torch
from networks import parameters
from pytorch_peers import images, network
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback
from task import BATCH, LR, MOMENTUM, WEIGHT_DECAY, Answer, Asked, Clock, main


class Watch(Callback):
    """Ends training when the clock says so; skorch stops quietly at a KeyboardInterrupt."""

    def __init__(self, clock: Clock):
        self.clock = clock

    def on_batch_end(self, *_: object, **__: object) -> None:
        """One step is done."""
        if self.clock.tick():
            raise KeyboardInterrupt


def run(asked: Asked) -> Answer:
    """Train until the clock stops."""
    model, clock = network(asked), Clock(asked)
    net = NeuralNetClassifier(
        model,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=MOMENTUM,
        optimizer__nesterov=True,
        optimizer__weight_decay=WEIGHT_DECAY,
        lr=LR,
        batch_size=BATCH,
        max_epochs=1,
        train_split=None,
        iterator_train__shuffle=True,
        iterator_train__drop_last=True,
        iterator_train__num_workers=asked.workers,
        callbacks=[Watch(clock)],
        verbose=0,
        device="cpu",
    )
    net.fit(images(asked), y=None)
    return Answer(clock.rate, parameters(model))


if __name__ == "__main__":
    main("skorch", run)
