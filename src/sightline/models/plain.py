"""Networks without shortcuts or branches: a perceptron, LeNet-5, VGG and the plain networks of the source papers."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_int
from ..choose import lookup
from ..errors import RecipeError
from ..layers import (
    FusableSequential,
    ImageSize,
    Network,
    downscaling_notes,
    he_normal,
    init_he_fan_out,
    is_large,
    make_dropout,
    scale_widths,
    stem_pools,
)

N_PLAIN_STAGES = 3
"""Stages of a plain network; from one to the next the channels double and the side halves."""


class MLP(Network):
    """Flatten, then hidden layers with ReLU, then the head."""

    def __init__(self, inputs: int, hidden: Sequence[int], classes: int, dropout: float):
        super().__init__()
        layers: list[nn.Module] = []
        widths = [inputs, *hidden]
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU(), make_dropout(dropout)]
        self.hidden = nn.Sequential(*layers)
        he_normal(self.hidden)
        self.head = nn.Linear(widths[-1], classes)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.hidden(pixels.flatten(1)))


def mlp(
    classes: int, channels: int, size: ImageSize, hidden: Sequence[int] = (256, 128), dropout: float = 0.0
) -> Network:
    """Small multilayer perceptron: fast, and blind to the positions of pixels."""
    if any(width < 1 for width in hidden):
        raise RecipeError(f"hidden lists the width of each layer, 1 or more, not {list(hidden)}.")
    return MLP(channels * size[0] * size[1], hidden, classes, dropout)


LENET_POOLS: dict[str, type[nn.AvgPool2d | nn.MaxPool2d]] = {
    "avg": nn.AvgPool2d,
    "max": nn.MaxPool2d,
}


class LeNet5(Network):
    """LeNet-5 (LeCun, Bottou, Bengio, Haffner 1998): conv 6@5x5, pool, conv 16@5x5, pool, 120, 84, K.

    As built today: ReLU, pools without parameters, a dense second convolution.
    """

    def __init__(self, classes: int, channels: int, size: ImageSize, pool: str, dropout: float):
        super().__init__()
        # The original took 32x32: digits of 28x28 with 2 pixels of border.
        padding = 2 if min(size) < 32 else 0
        height, width = (((side + 2 * padding - 4) // 2 - 4) // 2 for side in size)
        _check_image_size("lenet5", height, width, size, 12)
        shrink = lookup(LENET_POOLS, pool, "pooling")
        self.features = FusableSequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, 6, 5, padding=padding),
                relu1=nn.ReLU(),
                pool1=shrink(2),
                conv2=nn.Conv2d(6, 16, 5),
                relu2=nn.ReLU(),
                pool2=shrink(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(16 * height * width, 120),
                relu3=nn.ReLU(),
                dropout1=make_dropout(dropout),
                fc2=nn.Linear(120, 84),
                relu4=nn.ReLU(),
                dropout2=make_dropout(dropout),
            )
        )
        self.head = nn.Linear(84, classes)
        he_normal(self.features)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.features(pixels))


def lenet5(classes: int, channels: int, size: ImageSize, pool: str = "avg", dropout: float = 0.0) -> Network:
    """LeNet-5 with ReLU: the classic for digits, seconds to train (``pool``: avg or max)."""
    return LeNet5(classes, channels, size, pool, dropout)


class PlainNetwork(Network):
    """Any features ``(B, F)``, then the head."""

    def __init__(self, features: nn.Sequential, width: int, classes: int):
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, classes)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.features(pixels))


def small_cnn(
    classes: int, channels: int, size: ImageSize, padding: str = "same", dropout: float = 0.2
) -> Network:
    """Small network of source paper 002: one 5x5 convolution, batch norm, pool, 128 hidden units.

    ``padding`` is same or valid; the paper does not say which. Batch norm follows the ReLU, as printed.
    """
    if padding not in ("same", "valid"):
        raise RecipeError(f"padding is same or valid, not '{padding}'.")
    lost = 0 if padding == "same" else 4
    height, width = ((side - lost) // 2 for side in size)
    _check_image_size("small-cnn", height, width, size, lost + 2)
    features = FusableSequential(
        OrderedDict(
            conv=nn.Conv2d(channels, 32, 5, padding=padding),
            relu1=nn.ReLU(),
            bn=nn.BatchNorm2d(32),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc=nn.Linear(32 * height * width, 128),
            relu2=nn.ReLU(),
            dropout=make_dropout(dropout),
        )
    )
    he_normal(features)
    return PlainNetwork(features, 128, classes)


def table2(classes: int, channels: int, size: ImageSize, dropout: float = 0.0) -> Network:
    """Network of Table II of source papers 003 and 004: two 3x3 convolutions, pools, 128 hidden units."""
    height, width = (side // 4 for side in size)
    _check_image_size("table2", height, width, size, 4)
    features = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 32, 3, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc=nn.Linear(64 * height * width, 128),
            relu3=nn.ReLU(),
            dropout=make_dropout(dropout),
        )
    )
    he_normal(features)
    return PlainNetwork(features, 128, classes)


def strided_cnn(classes: int, channels: int, size: ImageSize, width: int = 16, dropout: float = 0.0) -> Network:
    """Two 4x4 convolutions of stride 2 and 100 hidden units: the usual network of adversarially trained digits.

    Wong and Kolter 2018 (arXiv 1711.00851), Wong et al. 2020; torch's own initial weights, as theirs. ``width``
    channels, then twice as many.
    """
    check_int("width", width, 1, error=RecipeError)
    height, breadth = (side // 2 // 2 for side in size)
    _check_image_size("strided-cnn", height, breadth, size, 4)
    features = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, width, 4, 2, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(width, 2 * width, 4, 2, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(2 * width * height * breadth, 100),
            relu3=nn.ReLU(),
            dropout=make_dropout(dropout),
        )
    )
    return PlainNetwork(features, 100, classes)


def plain_cnn(
    classes: int,
    channels: int,
    size: ImageSize,
    depth: int = 10,
    kernel: int = 3,
    width: int = 32,
    batch_norm: bool = True,
    dropout: float = 0.0,
) -> Network:
    """Plain network of any depth and filter size, for Table III of source papers 003 and 004.

    ``depth`` weighted layers: convolutions of ``kernel`` x ``kernel`` in three stages of ``width``, 2 and 4
    times ``width`` channels, max pools between the stages, the mean, the head.
    """
    check_int("depth", depth, 2, error=RecipeError)
    check_int("width", width, 1, error=RecipeError)
    if check_int("kernel", kernel, 1, error=RecipeError) % 2 == 0:
        raise RecipeError(f"kernel is the side of the filters in pixels and must be odd, not {kernel}.")
    stages = [step * N_PLAIN_STAGES // (depth - 1) for step in range(depth - 1)]
    layers: list[nn.Module] = []
    side, shrunk = min(size), is_large(size)
    for step, (before, stage) in enumerate(pairwise([0, *stages])):
        if stage > before and (shrunk or side >= 4):
            layers.append(nn.MaxPool2d(2))
            side //= 2
        inputs = width * 2 ** stages[step - 1] if step else channels
        stride = 2 if shrunk and step == 0 else 1
        outputs = width * 2**stage
        layers.append(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not batch_norm))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
        layers += [stem_pools(size)] if stride == 2 else []
    features = FusableSequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), make_dropout(dropout))
    init_he_fan_out(features)
    return PlainNetwork(features, width * 2 ** stages[-1], classes)


def _check_image_size(name: str, height: int, width: int, size: ImageSize, least: int) -> None:
    if min(height, width) < 1:
        raise RecipeError(
            f"{name} needs images of at least {least}x{least} pixels, not {size[0]}x{size[1]}: "
            "choose a larger --size, or --model mlp."
        )


VGG_WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each stage, which ends with a pool."""


class VGG(Network):
    """VGG with batch norm (Simonyan and Zisserman 2014, arXiv 1409.1556), in its usual form for small images.

    Five stages of 3x3 convolutions with the tensor names of torchvision's ``vgg11_bn``, average pooling, two hidden
    layers of 512 in place of 4,096, as in chenyaofo/pytorch-cifar-models, and the head, there ``classifier.6``.
    """

    key_prefixes = (("classifier.6.", "head."),)

    def __init__(
        self, repeats: tuple[int, ...], classes: int, channels: int, size: ImageSize, dropout: float, width: float
    ):
        super().__init__()
        self.notes = downscaling_notes(size)
        widths = scale_widths(VGG_WIDTHS, width)
        layers: list[nn.Module] = []
        for outputs, count in zip(widths, repeats, strict=True):
            for _ in range(count):
                large = not layers and is_large(size)
                convolution = nn.Conv2d(channels, outputs, 3, 2 if large else 1, 1)
                relu = nn.Sequential(nn.ReLU(), *stem_pools(size)) if large else nn.ReLU()
                layers += [convolution, nn.BatchNorm2d(outputs), relu]
                channels = outputs
            # Rounded up, so that 28 pixels survive five pools; at 32 pixels it is the ordinary pool.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = FusableSequential(*layers)
        init_he_fan_out(self.features)
        (hidden,) = scale_widths((512,), width)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden),
            nn.ReLU(),
            make_dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            make_dropout(dropout),
        )
        he_normal(self.classifier)
        self.head = nn.Linear(hidden, classes)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        return self.head(self.classifier(self.features(pixels).mean((2, 3))))


def vgg11(classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0) -> Network:
    """VGG-11 with batch norm: eight 3x3 convolutions one after the other (width: a factor on the channels)."""
    return VGG((1, 1, 2, 2, 2), classes, channels, size, dropout, width)


def vgg13(classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0) -> Network:
    """VGG-13 with batch norm: ten 3x3 convolutions, 1.5 times the multiply-adds of VGG-11."""
    return VGG((2, 2, 2, 2, 2), classes, channels, size, dropout, width)


def vgg16(classes: int, channels: int, size: ImageSize, dropout: float = 0.5, width: float = 1.0) -> Network:
    """VGG-16 with batch norm: thirteen 3x3 convolutions, 15 million parameters."""
    return VGG((2, 2, 3, 3, 3), classes, channels, size, dropout, width)
