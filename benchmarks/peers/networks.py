"""The networks every PyTorch peer trains, in plain torch: the same layers and parameter counts as ours.

Nothing of Sightline is imported here, so that a peer's environment needs nothing of it either.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def lenet5() -> nn.Module:
    """LeNet-5 with ReLU and average pools, for 28x28x1."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: padded with zeros (option A), or a 1x1 convolution (B)."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.missing = stride, outputs - inputs
        self.shortcut = None
        if option == "B" and (stride > 1 or self.missing):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.missing:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return F.relu(y + x)


class ResNet(nn.Module):
    """A 3x3 stem, stages of blocks, the mean, a linear layer; for 32x32x3."""

    def __init__(self, depth: int, widths: tuple[int, ...], option: str):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        blocks, inputs = [], widths[0]
        for stage, outputs in enumerate(widths):
            for number in range(depth):
                blocks.append(Block(inputs, outputs, 2 if stage and not number else 1, option))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.blocks(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR-10 (He et al. 2015, section 4.2), shortcuts without parameters."""
    return ResNet(3, (16, 32, 64), "A")


def resnet18() -> nn.Module:
    """ResNet-18 with the 3x3 stem that is usual for CIFAR-10."""
    return ResNet(2, (64, 128, 256, 512), "B")


NETWORKS = {"lenet5": lenet5, "resnet20": resnet20, "resnet18": resnet18}


def parameters(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in network.parameters())


def training_flop(network: nn.Module, channels: int, size: int) -> int:
    """Floating point operations of training on one image: 2 per multiply-add, forward and two backward
    passes, less the gradient for the input of the first layer. Only convolutions and linear layers count.
    """
    products: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        del inputs
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        products.append(output[0].numel() * layer.weight[0].numel())

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    network.eval()(torch.zeros(1, channels, size, size))
    return 2 * (3 * sum(products) - products[0])
