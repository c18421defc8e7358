"""The plain way in torch: Pillow, a module in eval mode, a softmax. WEIGHTS FOLDER OUT SIZE BATCH."""

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from networks import ResNet, resnet20
from PIL import Image
from torch import nn
from torch.nn import functional as F

weights, folder, out, size, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
saved = torch.load(weights, weights_only=True)


class ResNet18(ResNet):
    """ResNet-18 with the stem for photos."""

    def __init__(self, classes: int):
        super().__init__(2, (64, 128, 256, 512), "B")
        self.conv1, self.pool = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.head(self.blocks(self.pool(F.relu(self.bn1(self.conv1(x))))).mean((2, 3)))


network = resnet20() if size == 32 else ResNet18(len(saved["classes"]))
network.load_state_dict(dict(zip(network.state_dict(), saved["tensors"], strict=True)))
network.eval()
mean, std = (torch.tensor(saved[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
paths = sorted(Path(folder).iterdir())
with Path(out).open("w", newline="") as stream, torch.inference_mode():
    rows = csv.writer(stream)
    for start in range(0, len(paths), batch):
        some = paths[start : start + batch]
        images = [Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR) for path in some]
        pixels = (
            torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
        )
        answers = torch.softmax(network((pixels - mean) / std) / saved["temperature"], 1)
        rows.writerows(
            [path, saved["classes"][row.argmax()], row.max().item()]
            for path, row in zip(some, answers, strict=True)
        )
