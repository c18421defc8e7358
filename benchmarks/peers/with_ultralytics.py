"""Ultralytics: its classification trainer with our network and augmentation put in, by overriding its methods.

Its cache of decoded images in memory is on (of a part of the folder: filling it with all would only take
longer) and its deterministic mode off, which both make it faster. On a CPU it always loads in the training
process, and it always keeps a moving average of the weights.
"""

import tempfile
from contextlib import suppress
from typing import Any

import torch
from networks import parameters
from pytorch_peers import network, transforms
from task import BATCH, LR, MOMENTUM, WEIGHT_DECAY, Answer, Asked, Clock, main
from torch import Tensor, nn

# isort: split
# Only now: torchvision must be repaired first.
from torchvision.transforms import Compose
from ultralytics.models.yolo.classify import ClassificationTrainer


class Done(Exception):
    """Enough was measured."""


class Task(nn.Module):
    """The network, called as Ultralytics calls a model: with a batch, for its loss."""

    def __init__(self, asked: Asked):
        super().__init__()
        self.network = network(asked)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is logged."""
        loss = nn.functional.cross_entropy(self.network(batch["img"]), batch["cls"])
        return loss, {"loss": loss.detach()}


class Trainer(ClassificationTrainer):
    """The classification trainer on our task."""

    asked: Asked

    def setup_model(self) -> None:
        """Our network in place of a YOLO."""
        self.model = Task(self.asked)

    def build_dataset(self, img_path: str, mode: str = "train", batch: Any = None) -> Any:
        """Its dataset with our augmentation."""
        dataset = super().build_dataset(img_path, mode, batch)
        dataset.torch_transforms = Compose(transforms(self.asked))
        return dataset


def run(asked: Asked) -> Answer:
    """Train until the clock stops."""
    threads = torch.get_num_threads()
    clock = Clock(asked)
    with tempfile.TemporaryDirectory() as place:
        wanted = {
            "model": "yolo26n-cls.yaml",
            "data": str(asked.folder),
            "epochs": 1,
            "batch": BATCH,
            "imgsz": 32,
            "cache": "ram",
            "fraction": [4 * clock.last * BATCH, 2 * BATCH],
            "deterministic": False,
            "device": "cpu",
            "amp": False,
            "optimizer": "SGD",
            "lr0": LR,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY / 2,  # it multiplies by batch / nbs = 2
            "plots": False,
            "val": False,
            "save": False,
            "project": place,
            "verbose": False,
        }
        trainer = Trainer(overrides=wanted)
        trainer.asked = asked
        torch.set_num_threads(threads)

        def tick(_: Any) -> None:
            if clock.tick():
                raise Done

        trainer.add_callback("on_train_batch_end", tick)
        with suppress(Done):
            trainer.train()
        assert isinstance(trainer.model, Task)
        return Answer(clock.rate, parameters(trainer.model))


if __name__ == "__main__":
    main("ultralytics", run)
