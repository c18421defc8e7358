"""TensorFlow's padding "SAME": as many outputs as inputs per stride, one pixel more on the right and below."""

from collections.abc import Sequence

from torch import nn


def has_same_padding(conv: nn.Module) -> bool:
    """Whether a convolution is timm's ``Conv2dSame``, which pads when it is called; ``padding`` does not show it."""
    return type(conv).__name__ == "Conv2dSame"  # timm is imported in one place only


def same_margin(conv: nn.Conv2d, size: Sequence[int]) -> tuple[int, int, int, int]:
    """Pixels to add left, right, above and below an image of ``size`` (height, width), as ``F.pad`` takes them."""
    down, across = (
        max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
        for side, kernel, stride, dilation in zip(size, conv.kernel_size, conv.stride, conv.dilation, strict=True)
    )
    return across // 2, across - across // 2, down // 2, down - down // 2
