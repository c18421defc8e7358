"""The plain way to an accuracy, as PyTorch's own examples have it; run by time_to_accuracy.py.

Digits: LeNet-5, Adam 1e-3, no augmentation. Photographs: ResNet-20, SGD 0.1 with momentum 0.9 and decay 1e-4, a
tenth of the rate after half and three quarters of the epochs, mirroring and crops of a 4-pixel border. Batch
128, a DataLoader with 2 workers, float32.

    train_plain.py NET FOLDER EPOCHS SEED [SEED ...] [--until ACCURACY]

With --until, every seed's network is trained epoch by epoch in turn until their mean accuracy on ``val`` is
that, or EPOCHS are done. Prints one JSON object a line.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS
from pytorch_peers import transforms
from task import BATCH, Asked
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

STATISTICS = {1: ((0.1307,), (0.3081,)), 3: ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))}
WORKERS = 2


def loader(asked: Asked, part: str) -> DataLoader[Any]:
    """Batches of a part of the folder; only those of a recipe that augments are augmented."""
    case = asked.case
    chain = [T.Grayscale()] if case.channels == 1 else []
    if part == "train" and case.mirror:
        chain = transforms(asked, tensors=False)
    chain += [T.ToTensor(), T.Normalize(*STATISTICS[case.channels])]
    return DataLoader(
        ImageFolder(str(asked.folder / part), T.Compose(chain)),
        BATCH,
        shuffle=part == "train",
        num_workers=WORKERS,
        persistent_workers=part == "train",
    )


class Student:
    """A network and how it moves."""

    def __init__(self, asked: Asked, epochs: int, seed: int):
        torch.manual_seed(seed)
        self.asked, self.network = asked, NETWORKS[asked.net]()
        self.batches = loader(asked, "train")
        parameters, milestones = self.network.parameters(), []
        if asked.net == "lenet5":
            self.optimizer = torch.optim.Adam(parameters, lr=1e-3)
        else:
            self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
            milestones = [epochs // 2, epochs * 3 // 4]
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, milestones)

    def epoch(self) -> None:
        """One pass."""
        self.network.train()
        for pixels, labels in self.batches:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.network(pixels), labels).backward()
            self.optimizer.step()
        self.schedule.step()

    @torch.no_grad()
    def accuracy(self, part: str) -> float:
        """Share of a part's images that are answered right."""
        self.network.eval()
        content = loader(self.asked, part)
        right = sum(int((self.network(x).argmax(1) == y).sum()) for x, y in content)
        return right / len(content.dataset)  # type: ignore[arg-type]


def main() -> None:
    """Train; say when it ended; only then look at validation and test."""
    words = sys.argv[1:]
    until = float(words.pop()) if "--until" in words else None
    words = [word for word in words if word != "--until"]
    net, folder, epochs, *seeds = words
    asked = Asked(net, Path(folder), 0, WORKERS, "float32", "contiguous")
    students = [Student(asked, int(epochs), int(seed)) for seed in seeds]
    for number in range(1, int(epochs) + 1):
        for student in students:
            student.epoch()
        if until is not None:
            reached = [student.accuracy("val") for student in students]
            say(epoch=number, val_accuracy=reached)
            if sum(reached) / len(reached) >= until:
                break
    if until is None:
        say(trained=time.time(), cpu_seconds=sum(os.times()[:4]))
        (student,) = students
        say(val_accuracy=student.accuracy("val"), test_accuracy=student.accuracy("test"))


def say(**facts: Any) -> None:
    """A line of JSON."""
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
