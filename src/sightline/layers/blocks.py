"""What networks are made of: the base class, stems, and attention inside a convolutional block."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_number
from ..errors import BundleError, RecipeError
from .fused_norm import FusableSequential
from .noise import WeightNoise
from .quantised import ActivationRounding
from .whitening import Whitening

ImageSize = Sequence[int]
"""(height, width) of the images, in pixels."""

LARGE_IMAGE_SIDE = 96
"""Shorter side, in pixels, from which a network's stem downsamples."""


class Network(nn.Module, ABC):
    """``pixels (B C H W) -> logits (B K)``: a subclass writes ``logits`` and puts its last layer at ``head``."""

    head: nn.Linear

    flip_tta: bool = False
    """Whether answers in eval mode are the mean over an image and its mirror image."""

    differentiable: bool = True
    """Whether logits have a gradient with respect to the pixels."""

    export_refusal: str = ""
    """Why the network cannot be exported, and what to do instead; empty where it can."""

    notes: tuple[str, ...] = ()
    """Sentences about what the network does to images of this size before its first block."""

    key_prefixes: tuple[tuple[str, str], ...] = ()
    """(foreign prefix, our prefix) pairs for third-party checkpoints; the first matching prefix is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.noise: WeightNoise | None = None
        """Noise in the weights, in training and at inference; None without."""
        self.rounding: ActivationRounding | None = None
        """Rounding of activations to 256 levels, in an int8 network; None in a float one."""

    @property
    def n_classes(self) -> int:
        """Number of classes K."""
        return self.head.out_features

    @abstractmethod
    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits of one pass, without noise, flips or rounding: what a subclass defines."""

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits, with noise in the weights where the network has it."""
        if self.noise is None:
            return self.forward_clean(pixels)
        return self.noise.forward_noisy(self, self.forward_clean, pixels)

    def embed(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """Features of preprocessed pixels: the input of the last layer, without noise in the weights.

        With flip test-time augmentation, in eval mode, the mean over an image and its mirror image. Raises
        BundleError where the network has no last layer.
        """
        return self._watch_head(self.forward_clean, pixels)[0]

    def features_and_logits(
        self, pixels: Float[Tensor, "B C H W"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B K"]]:
        """Features and logits of one pass over preprocessed pixels, both with noise where the network has it.

        Raises BundleError where the network has no last layer.
        """
        return self._watch_head(self, pixels)

    def _watch_head(self, run: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the last layer while ``run(pixels)``, averaged over its passes, and the result."""
        seen: list[Tensor] = []
        watching = get_head(self).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            result = run(pixels)
        finally:
            watching.remove()
        return seen[0] if len(seen) == 1 else torch.stack(seen).mean(0), result

    def member_list(self) -> list[Any]:
        """The classifiers an ensemble combines, each with ``preprocessing`` and ``network``; else empty."""
        return []

    def forward_clean(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits without noise in the weights; with ``flip_tta`` in eval mode, the mean over both flips."""
        if self.flip_tta and not self.training:
            return (self._forward_once(pixels) + self._forward_once(pixels.flip(3))) / 2
        return self._forward_once(pixels)

    def _forward_once(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.logits(pixels) if self.rounding is None else self.rounding.forward_rounded(self.logits, pixels)

    def init_from_data(self, pixels: Float[Tensor, "B C H W"]) -> None:
        """Set data-dependent weights, such as a whitening, from preprocessed training images."""

    def save_extra_files(self, folder: Path) -> None:
        """Write into a bundle's folder what tensors cannot hold, such as a scikit-learn estimator."""

    def load_extra_files(self, folder: Path) -> None:
        """Read what ``save_extra_files`` wrote."""

    def load_published(self) -> str:
        """Load the published weights the architecture asks for; returns a sentence about them, or ""."""
        return ""


def get_head(network: Network) -> nn.Linear:
    """The layer whose outputs are the logits; raises BundleError where there is none, as in an ensemble."""
    try:
        return network.head
    except AttributeError as error:
        raise BundleError(
            f"{type(network).__name__} has no last layer of its own: start from a single network instead."
        ) from error


def is_large(size: ImageSize) -> bool:
    """Whether images of this size are downsampled before the first block."""
    return min(size) >= LARGE_IMAGE_SIDE


def stem_pools(size: ImageSize) -> nn.Sequential:
    """2x2 max pools that, after a stride-2 stem, leave a shorter side of at most 64 pixels."""
    side, layers = (min(size) + 1) // 2, []
    while side > 64:
        side, layers = side // 2, [*layers, nn.MaxPool2d(2)]
    return nn.Sequential(*layers)


def downscaling_notes(size: ImageSize) -> tuple[str, ...]:
    """A sentence on how a stride-2 stem and ``stem_pools`` downsample such images; none for small images."""
    if not is_large(size):
        return ()
    factor = 2 ** (1 + len(stem_pools(size)))
    return (f"Images of {size[0]} x {size[1]} pixels are shrunk by {factor} before the first block.",)


def upsample_to_side(pixels: Float[Tensor, "B C H W"], least: int) -> Float[Tensor, "B C H2 W2"]:
    """The images, enlarged bilinearly where needed to a shorter side of ``least`` pixels."""
    height, width = pixels.shape[2:]
    short = min(height, width)
    if short >= least:
        return pixels
    size = [round(side * least / short) for side in (height, width)]
    return F.interpolate(pixels, size, mode="bilinear", align_corners=False)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    then: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """A convolution padded to keep the size (divided by ``stride``), batch norm, and the activation ``then``."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return FusableSequential(convolution, nn.BatchNorm2d(outputs), *([then()] if then else []))


def scale_widths(widths: Sequence[int], factor: float) -> list[int]:
    """``widths`` times ``factor``, rounded; raises RecipeError where a layer would be left without channels."""
    made = [round(width * factor) for width in widths]
    if min(made) < 1:
        raise RecipeError(f"width must be a factor that leaves every layer at least one channel, not {factor}.")
    return made


def make_dropout(share: float) -> nn.Dropout:
    """Dropout that zeroes this share of its inputs in training; raises RecipeError outside [0, 1)."""
    return nn.Dropout(check_number("dropout", share, 0, below=1, error=RecipeError))


def init_he_fan_out(module: nn.Module) -> None:
    """He initialisation (arXiv 1502.01852), fan-out mode, of every convolution in ``module``; biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not isinstance(layer, Whitening):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            with torch.no_grad():
                layer.weight.mul_(layer.groups**0.5)  # torch counts the outputs of all groups
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SqueezeExcite(nn.Module):
    """Squeeze and excitation: ``x * sigmoid(W2 act(W1 mean(x)))`` (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.relu):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.activation = activation

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The features with each channel multiplied by a factor in (0, 1)."""
        scale = self.fc2(self.activation(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class CBAM(nn.Module):
    """Attention over channels, then over positions (Woo et al. 2018, arXiv 1807.06521, equations 2 and 3).

    ``x' = x * sigmoid(MLP(mean) + MLP(max))``, over places; then ``x' * sigmoid(conv 7x7([mean, max]))``, over
    channels.
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.where = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The features with each channel and each position multiplied by a factor in (0, 1)."""
        seen = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        mean, most = (self.fc2(F.relu(self.fc1(each))) for each in seen)
        x = x * torch.sigmoid(mean + most)
        places = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.where(places))


def no_attention(channels: int) -> nn.Module:
    """The identity."""
    del channels
    return nn.Identity()


def se_block(channels: int) -> nn.Module:
    """Squeeze and excitation with a hidden layer of ``channels / 16``, at least 4."""
    return SqueezeExcite(channels, max(4, channels // 16))


def cbam_block(channels: int) -> nn.Module:
    """CBAM with a hidden layer of ``channels / 16``, at least 4."""
    return CBAM(channels, max(4, channels // 16))
