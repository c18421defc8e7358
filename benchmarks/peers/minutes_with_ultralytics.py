"""Ultralytics: ``classify train`` with its defaults and ``time=``.

Its command takes its own YOLO networks and torchvision's, not a file of timm's names, and downloads their weights. The
way it documents for other networks, a trainer whose ``get_model`` is overridden, takes ours: that is this script.
With ``--yolo`` at the end it is the command itself as it works without a network: the YOLO network from scratch.
"""

import sys
from typing import Any

import pytorch_peers  # noqa: F401  # torchvision must be repaired first
import timm
import torch
from minutes import NETWORK, Answer, Asked, main
from torch import Tensor, nn

# isort: split
from ultralytics import YOLO
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.nn.tasks import ClassificationModel

YOLO_NETWORK = "yolo26n-cls.yaml"


class Lite0(ClassificationModel):
    """The network, called as Ultralytics calls a model: pixels in [0, 1], logits in training, else both."""

    def __init__(self, weights: str, classes: int):
        nn.Module.__init__(self)
        overlay = {"file": weights}
        network = timm.create_model(NETWORK, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=classes)
        self.model = nn.Sequential(network)
        self.yaml = {"nc": classes, "channels": 3}
        self.stride = torch.tensor([1.0])
        self.names = {k: str(k) for k in range(classes)}

    def predict(self, x: Tensor, *_: Any, **__: Any) -> Any:
        """Logits or (probabilities, logits); mean and deviation of the weights' card are 0.5."""
        logits = self.model((x - 0.5) / 0.5)
        return logits if self.training else (logits.softmax(1), logits)


class Trainer(ClassificationTrainer):
    """The classification trainer with our weights."""

    weights = ""

    def get_model(self, *_: Any, **__: Any) -> Any:
        """Our network in place of a YOLO."""
        return Lite0(self.weights, self.data["nc"])


def run(asked: Asked, *, yolo: bool = False) -> Answer:
    """Train for the minutes, then take the best epoch by validation, as it does."""
    wanted = {
        "model": YOLO_NETWORK,
        "data": str(asked.folder),
        "time": asked.minutes / 60,
        "device": "cpu",
        "project": str(asked.place),
        "plots": False,
        "verbose": False,
    }
    Trainer.weights = str(asked.weights)
    trainer = (ClassificationTrainer if yolo else Trainer)(overrides=wanted)
    threads = torch.get_num_threads()
    trainer.train()
    torch.set_num_threads(threads)
    recipe = f"classify train time={asked.minutes:g}/60, {trainer.epoch + 1} epochs"
    recipe += f", {YOLO_NETWORK} from scratch" if yolo else ", by a trainer with get_model overridden"
    found = YOLO(trainer.best).predict([str(image) for image in asked.images("test")], stream=True, verbose=False)
    names = sorted(each.name for each in (asked.folder / "train").iterdir())
    return Answer([names[each.probs.top1] for each in found], recipe)


if __name__ == "__main__":
    scratch = sys.argv[-1] == "--yolo"
    sys.argv = [word for word in sys.argv if word != "--yolo"]
    main("ultralytics", lambda asked: run(asked, yolo=scratch))
