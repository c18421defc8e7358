"""Feature visualisation: an image, made from noise, that maximises the logit of a class or the output of a unit.

After Olah, Mordvintsev and Schubert (Distill, 2017): the image is optimised as a Fourier spectrum, so that every
frequency is as easy to change, and is turned, scaled and moved a little before each step.
"""

import difflib
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .. import progress, runtime
from ..augmentation import similarity_matrices, warp
from ..classifier import Classifier, frozen_eval
from ..errors import ChoiceError
from .activation_maps import as_feature_map, record_outputs
from .base import require_logit_gradient

MAX_TURN, MAX_ZOOM, MAX_MOVE = math.radians(8), 0.1, 0.06
"""Largest turn (radians), change of size and move (both as shares of the side) before each step."""

PIXEL_DEVIATION = 1.2
"""Standard deviation of every image before the sigmoid; without it images would end in black and white."""

COLOUR_CORRELATION = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))
"""A square root of the covariance of the colours of photographs (Olah et al. 2017, their code)."""


@dataclass(frozen=True, eq=False)
class FeatureVisualisation:
    """Images that activate a class or unit, and how strongly."""

    images: Float[Tensor, "B C H W"]
    before: Float[Tensor, " B"]
    """The activation by the noise at the start."""
    after: Float[Tensor, " B"]
    """The activation by the image: a logit, or the mean of a unit's map."""


def visualise_features(
    classifier: Classifier,
    targets: Int[Tensor, " B"],
    *,
    layer: str | None = None,
    steps: int = 200,
    rate: float = 0.05,
    seed: int = 0,
) -> FeatureVisualisation:
    """Images that maximise the logits of classes, or the units of a layer, by Adam on their Fourier spectrum.

    Args:
        targets: class indices, or units of ``layer``.
        layer: a module of the network, by name.
        steps: steps of Adam, at learning rate ``rate``.

    Returns images in [0, 1] of the classifier's working size. Raises ChoiceError for an unknown layer or unit,
    GradientError for a classifier without gradients.
    """
    require_logit_gradient(classifier, "Visualising")
    height, width = classifier.geometry.size
    channels, count, device = classifier.geometry.channels, len(targets), classifier.device
    random = runtime.make_generator(seed)
    drawn = torch.randn(count, channels, height, width // 2 + 1, 2, generator=random)
    down, along = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    # one over each frequency, so that a step changes all of them as in natural images
    scale = (1 / torch.hypot(down, along).clamp(min=1 / max(height, width)))[..., None].to(device)
    spectrum = drawn.to(device).requires_grad_()
    optimizer = torch.optim.Adam([spectrum], rate)
    with frozen_eval(classifier, weight_noise=False), progress.progress_bar("visualising", steps) as advance:
        before = _activations(classifier, _render(spectrum, scale, (height, width)), targets, layer).detach()
        for _ in range(steps):
            draws = torch.rand(count, 4, generator=random, dtype=torch.float64) * 2 - 1
            turns, sizes, moves = draws[:, 0] * MAX_TURN, 1 + draws[:, 1] * MAX_ZOOM, draws[:, 2:] * MAX_MOVE
            matrices = similarity_matrices(turns, sizes, moves, (height, width))
            seen = warp(_render(spectrum, scale, (height, width)), matrices, "edge")
            (spectrum.grad,) = torch.autograd.grad(-_activations(classifier, seen, targets, layer).sum(), spectrum)
            optimizer.step()
            advance()
        images = _render(spectrum, scale, (height, width)).detach()
        after = _activations(classifier, images, targets, layer).detach()
    return FeatureVisualisation(images, before, after)


def _render(
    spectrum: Float[Tensor, "B C H W2 2"], scale: Float[Tensor, "H W2 1"], size: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """The image in [0, 1] of a spectrum, its colours correlated as in photographs."""
    waves = torch.view_as_complex((spectrum * scale).contiguous())
    image = torch.fft.irfft2(waves, s=size, norm="ortho")
    image = image * (PIXEL_DEVIATION / image.std((1, 2, 3), keepdim=True).clamp(min=1e-12))
    if image.shape[1] == 3:
        mixing = image.new_tensor(COLOUR_CORRELATION) / max(
            math.hypot(*row) for row in zip(*COLOUR_CORRELATION, strict=True)
        )
        image = torch.einsum("bchw,dc->bdhw", image, mixing)
    return torch.sigmoid(image)


def _activations(
    classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"], layer: str | None
) -> Float[Tensor, " B"]:
    """The logit of each image's class, or the mean of its unit's map."""
    if layer is None:
        return classifier(images).float().gather(1, targets[:, None])[:, 0]
    known = [name for name, _ in classifier.network.named_modules() if name]
    if layer not in known:
        near = difflib.get_close_matches(layer, known, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"It has '{known[0]}' to '{known[-1]}'."
        raise ChoiceError(f"There is no layer called '{layer}'. {hint}")
    with record_outputs(classifier.network, [layer]) as seen:
        classifier(images)
    size = (images.shape[2], images.shape[3])
    total = torch.zeros(len(images), device=images.device)
    for output in seen.get(layer, []):
        maps = output if isinstance(output, Tensor) and output.ndim == 2 else as_feature_map(output, size)
        if maps is None:
            raise ChoiceError(f"The layer '{layer}' has no units to visualise: choose one of its parts.")
        if int(targets.max()) >= maps.shape[1]:
            raise ChoiceError(
                f"The layer '{layer}' has no unit {int(targets.max())}: it has {maps.shape[1]} units, from 0 to "
                f"{maps.shape[1] - 1}."
            )
        units = maps if maps.ndim == 2 else maps.mean((2, 3))
        total = total + units.float().gather(1, targets[:, None])[:, 0]
    return total
