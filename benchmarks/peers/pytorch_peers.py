"""What peers built on PyTorch share: the network, the optimiser, images in a folder by torchvision."""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import torch
from networks import NETWORKS
from task import LR, MEAN, MOMENTUM, STD, WEIGHT_DECAY, Asked
from torch import nn


def repair_torchvision() -> None:
    """Beside a CPU build of torch, torchvision's compiled half may not load; its schemas are then missing."""
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    assert found.origin is not None
    try:
        for library in Path(found.origin).parent.glob("_C*.so"):
            ctypes.CDLL(str(library))
        torch.ops.torchvision.nms  # noqa: B018, looks it up
    except (OSError, AttributeError, RuntimeError):
        schemas = torch.library.Library("torchvision", "FRAGMENT")
        schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(schemas)


_KEPT: list[Any] = []  # a torch library is undone when it is collected

repair_torchvision()


def network(asked: Asked) -> nn.Module:
    """The network, in the memory layout asked for."""
    layout = torch.channels_last if asked.layout == "channels_last" else torch.contiguous_format
    return NETWORKS[asked.net]().to(memory_format=layout)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of the task."""
    return torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)


def transforms(asked: Asked, *, tensors: bool = True) -> list[Any]:
    """Augmentation of one image; with ``tensors`` also its way to a normalised tensor."""
    from torchvision import transforms as T

    case = asked.case
    chain = [T.Grayscale()] if case.channels == 1 else []
    chain += [T.RandomHorizontalFlip()] if case.mirror else []
    chain += [T.RandomCrop(case.size, padding=case.shift)]
    if tensors:
        chain += [T.ToTensor(), T.Normalize((MEAN,) * case.channels, (STD,) * case.channels)]
    return chain


def images(asked: Asked) -> Any:
    """The training folder as torchvision reads it."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import Compose

    return ImageFolder(str(asked.folder / "train"), Compose(transforms(asked)))
