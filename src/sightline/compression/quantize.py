"""Post-training int8: norms are folded, weights are quantised, activation ranges are calibrated on a sample."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..checks import check_int
from ..choose import suggest
from ..classifier import Classifier
from ..data import iterate_batches
from ..errors import BundleError, DataError
from ..inference import predict_logits
from ..layers import (
    MAX_WEIGHT_CODE,
    ActivationGrid,
    ActivationRounding,
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    Network,
    match_norms,
    quantise_weight,
)
from ..models import SURGERY
from ..training import Recipe
from ..types import Dataset, Splits
from .calibration import CALIBRATORS, ActivationHistogram, Span
from .compressor import Compressor, FineTuning, Original
from .folding import align_pixels, check_folding, float_weights, fold_norms, quantizable_layers

CALIBRATION_BATCH_SIZE = 64
"""Images per forward pass of the calibration."""

BIAS_CORRECTION_IMAGES = 64
"""Images whose mean activations correct the biases; a mean over all places needs few."""

INT8_TRAINING: Mapping[str, Any] = {
    "precision": "float32",
    "memory_format": "contiguous",
    "cpu_replicas": 1,
    "fused_kernels": False,
    "weight_decay": 0.0,
}
"""Recipe fields of a training through the rounding: plain arithmetic, and no decay that pulls gains to zero."""


@dataclass(frozen=True)
class Int8(Compressor):
    """int8 weights and activations, calibrated on ``images`` training images.

    Args:
        by: calibration of the activations, one of ``CALIBRATORS``; auto tries all and keeps the one whose answers
            on as many other training images have the smallest KL divergence from the float network's.
        images: training images to calibrate on, 1 or more.
        bits: of a weight: 7 is exact on every processor, 8 only with VNNI (see ``MAX_WEIGHT_CODE``).
        fine_tune: whether a training of biases and gains follows; the codes of the weights stay.
    """

    by: str = "auto"
    images: int = 256
    bits: int = 7
    fine_tune: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for an impossible value."""
        if self.by not in {"auto", *CALIBRATORS}:
            raise ValueError(
                f"there is no calibration '{self.by}'. {suggest(str(self.by), ['auto', *CALIBRATORS])}"
            )
        check_int("images", self.images, 1)
        if self.bits not in MAX_WEIGHT_CODE:
            raise ValueError(f"bits is 7, or 8 for processors with VNNI, not {self.bits}")

    def __call__(self, classifier: Classifier, data: Splits) -> Classifier:
        """A new classifier in int8.

        Raises DataError for calibration images that are missing or of another geometry, BundleError for a network
        that cannot be quantised.
        """
        check_calibration_images(classifier, data.train)
        check_quantizable(classifier.network)
        order = np.random.default_rng(8).permutation(len(data.train))
        sample, others = (
            data.train.subset(np.sort(part))
            for part in (order[: self.images], order[self.images : 2 * self.images])
        )
        others = others if len(others) else sample
        made, arguments, pixels = quantize_weights(classifier, sample, self.bits)
        seen = _observe_activations(made, sample)
        made.network.rounding = ActivationRounding(len(seen)).to(classifier.device)
        names = [*CALIBRATORS] if self.by == "auto" else [self.by]
        wanted, distances = predict_logits(classifier, others)[0], {}
        for name in names:
            _set_spans(made, seen, name, pixels)
            distances[name] = mean_divergence(wanted, predict_logits(made, others)[0])
        best = min(distances, key=lambda name: distances[name])
        _set_spans(made, seen, best, pixels)
        surgery = ("quantised", {**arguments, "sites": len(seen)})
        made.architecture = replace(made.architecture, surgery=(*made.architecture.surgery, surgery))
        made.answers = {}  # conformal sets, calibrated on the float network's answers
        made.provenance["int8"] = {
            "by": best,
            "bits": self.bits,
            "calibration_images": len(sample),
            "divergence_nats": distances,
        }
        return made

    def training(self, original: Original, settings: FineTuning) -> Recipe:
        """A fine-tuning through the rounding; of 0 epochs unless ``fine_tune``."""
        recipe = super().training(original, settings).replace(**INT8_TRAINING)
        return recipe if self.fine_tune else recipe.replace(epochs=0)


def check_calibration_images(classifier: Classifier, images: Dataset) -> None:
    """Raise DataError where there are no images, or of another geometry."""
    if not len(images):
        raise DataError("There are no training images to calibrate int8 on: name data with training images.")
    if images.geometry != classifier.geometry:
        raise DataError(
            f"The images to calibrate on were decoded as {images.geometry}, but the classifier expects "
            f"{classifier.geometry}: load them with the classifier's geometry."
        )


def check_quantizable(network: Network) -> None:
    """Raise BundleError where a network cannot be quantised."""
    if network.rounding is not None:
        raise BundleError("This classifier is int8 already: compress the one it was made from.")
    if network.noise is not None:
        raise BundleError(
            "This network adds noise to its weights, so it cannot be int8: train it without weight_noise."
        )
    if not network.differentiable:
        raise BundleError("This classifier has no network whose weights int8 could hold: compress a network.")


@torch.no_grad()
def quantize_weights(
    classifier: Classifier, images: Dataset, bits: int
) -> tuple[Classifier, dict[str, Any], Span | None]:
    """A copy with folded norms, int8 weights and corrected biases, activations still in floats.

    Returns the copy, the arguments of its surgery, and the range of the first site where it reads pixels whose 256
    values are levels.
    """
    made = copy.deepcopy(classifier).eval()
    network = made.network
    few = next(iterate_batches(images, min(8, len(images)), device=made.device)).pixels
    before = made(few)
    pixels = align_pixels(made, few)
    folded, lone = match_norms(network, quantizable_layers(network), lambda: made(few))
    weights = fold_norms(network, folded, lone)
    if pixels is not None:
        weight, bias = weights[pixels.reader]
        weights[pixels.reader] = weight, bias + pixels.shift * weight.flatten(1).sum(1)
    arguments = {"layers": [*quantizable_layers(network)], "folded": [*folded], "lone": lone}
    SURGERY["quantised"](network, **arguments, sites=0)
    made.eval()
    folded_weights: dict[Int8Layer, Tensor] = {}
    for name, (weight, bias) in weights.items():
        layer = network.get_submodule(name)
        layer = next(layer.children()) if isinstance(layer, nn.Sequential) else layer
        assert isinstance(layer, Int8Conv2d | Int8Linear)
        quantise_weight(layer, weight, bias, bits)
        folded_weights[layer] = weight
    check_folding(made, folded_weights, few, before)
    sample = images.subset(np.arange(min(BIAS_CORRECTION_IMAGES, len(images))))
    _correct_biases(made, folded_weights, sample)
    return made, arguments, None if pixels is None else pixels.span


@torch.no_grad()
def _correct_biases(made: Classifier, weights: Mapping[Int8Layer, Tensor], images: Dataset) -> None:
    """Take the mean effect of rounding the weights out of each bias (Nagel et al. 2019, arXiv 1906.04721, 4.2).

    The effect is measured on what enters the layer of the float network: computed from mean inputs alone, it would be
    wrong where borders of zeros are much of the picture.
    """
    errors = {layer: layer.weight - weight for layer, weight in weights.items()}
    effects: dict[nn.Module, list[Tensor]] = {layer: [] for layer in weights}

    def measure(layer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(layer, Int8Conv2d | Int8Linear)
        held, layer.dequantise = layer.dequantise, lambda *_: errors[layer]
        effect = layer.forward(given[0]).double()
        layer.dequantise = held
        effects[layer].append(
            effect.mean((0, 2, 3)) if isinstance(layer, nn.Conv2d) else effect.flatten(0, -2).mean(0)
        )

    hooks = [layer.register_forward_hook(measure) for layer in weights]
    with float_weights(made, weights):
        for batch in iterate_batches(images, CALIBRATION_BATCH_SIZE, device=made.device):
            made(batch.pixels)
    for hook in hooks:
        hook.remove()
    for layer, seen in effects.items():
        assert isinstance(layer, Int8Conv2d | Int8Linear)
        assert layer.bias is not None
        if seen:  # the layer adds its bias to the effect
            layer.bias.sub_((torch.stack(seen).mean(0) - layer.bias.double()).float())


@torch.no_grad()
def _observe_activations(classifier: Classifier, images: Dataset) -> list[ActivationHistogram]:
    """The histogram of each activation's float values over these images, in two passes."""
    rounding = classifier.network.rounding
    assert rounding is not None
    found: dict[int, ActivationHistogram] = {}
    notes = (
        lambda site, x: found.setdefault(site, ActivationHistogram()).update_range(x),
        lambda site, x: found[site].update_counts(x),
    )
    for note in notes:
        rounding.observer = note
        for batch in iterate_batches(images, CALIBRATION_BATCH_SIZE, device=classifier.device):
            classifier(batch.pixels)
    rounding.observer = None
    return [found.get(site, ActivationHistogram(0.0, 0.0)) for site in range(max(found) + 1)]


def _set_spans(made: Classifier, seen: list[ActivationHistogram], by: str, pixels: Span | None) -> None:
    """Set the ranges by ``by``; that of the first site is ``pixels`` where it reads them."""
    rounding = made.network.rounding
    assert rounding is not None
    for site, (grid, one) in enumerate(zip(rounding.grids, seen, strict=True)):
        assert isinstance(grid, ActivationGrid)
        grid.set_range(*(CALIBRATORS[by](one) if site or pixels is None else pixels))


def mean_divergence(wanted: Float[Tensor, "N K"], given: Float[Tensor, "N K"]) -> float:
    """The mean KL divergence of the answers to the logits ``given`` from those to ``wanted``, in nats."""
    first, second = (torch.log_softmax(logits.double(), 1) for logits in (wanted, given))
    return float((first.exp() * (first - second)).sum(1).mean())
