"""Post-training int8: norms are folded, weights are quantised, activation ranges are calibrated on a sample."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..checks import check_int
from ..choose import suggest
from ..classifier import Classifier
from ..data import iterate_batches
from ..errors import BundleError, DataError
from ..inference import predict_logits
from ..layers import (
    MAX_ACTIVATION_CODE,
    MAX_WEIGHT_CODE,
    ActivationGrid,
    ActivationRounding,
    Int8Conv2d,
    Int8Layer,
    Int8Linear,
    Network,
    SparseConv2d,
    SparseLinear,
    collect_tensors,
    is_query,
    quantise_weight,
)
from ..models import SURGERY
from ..training import Recipe
from ..types import Dataset, Splits
from .compressor import Compressor, FineTuning, Original

ACTIVATION_BINS = 2048
"""Bins of each activation's histogram."""

PERCENTILE_TAIL = 1e-4
"""Share of the values that ``percentile`` cuts off, at both ends together."""

MSE_SPAN_SHARES = torch.linspace(0.3, 1, 71)
"""Shares of the whole range that ``mse`` tries."""

CALIBRATION_BATCH_SIZE = 64
"""Images per forward pass of the calibration."""

INT8_TRAINING: Mapping[str, Any] = {
    "precision": "float32",
    "memory_format": "contiguous",
    "cpu_replicas": 1,
    "fused_kernels": False,
    "weight_decay": 0.0,
}
"""Recipe fields of a training through the rounding: plain arithmetic, and no decay that pulls gains to zero."""

PLAIN_FORWARDS = (nn.Conv2d.forward, nn.Linear.forward, SparseConv2d.forward, SparseLinear.forward)
"""Forward methods of the layers that int8 replaces: those that use their weights as torch's own do."""


@dataclass
class ActivationHistogram:
    """The range of one activation over a sample, and its histogram."""

    low: float = float("inf")
    high: float = float("-inf")
    counts: Tensor = field(default_factory=lambda: torch.zeros(ACTIVATION_BINS))

    def update_range(self, x: Tensor) -> None:
        """Extend the range by the values of a batch."""
        low, high = x.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def update_counts(self, x: Tensor) -> None:
        """Count the values of a batch, once the range is known."""
        if self.high > self.low:
            self.counts += torch.histc(x.flatten().float(), ACTIVATION_BINS, self.low, self.high).cpu()

    @property
    def bin_centers(self) -> Float[Tensor, " bins"]:
        """The centre of each bin."""
        width = (self.high - self.low) / ACTIVATION_BINS
        return self.low + width * (torch.arange(ACTIVATION_BINS) + 0.5)


Span = tuple[float, float]
"""Lowest and highest value that an activation's levels cover."""


def minmax_span(seen: ActivationHistogram) -> Span:
    """From the smallest to the largest value."""
    return seen.low, seen.high


def percentile_span(seen: ActivationHistogram) -> Span:
    """All values but the share ``PERCENTILE_TAIL`` at the ends."""
    below = seen.counts.cumsum(0) / seen.counts.sum().clamp_min(1)
    kept = seen.bin_centers[(below >= PERCENTILE_TAIL / 2) & (below <= 1 - PERCENTILE_TAIL / 2)]
    return (float(kept[0]), float(kept[-1])) if len(kept) > 1 else minmax_span(seen)


def mse_span(seen: ActivationHistogram) -> Span:
    """The share of the whole range with the smallest squared rounding error."""
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    lows, highs, x = low * MSE_SPAN_SHARES[:, None], high * MSE_SPAN_SHARES[:, None], seen.bin_centers
    scale = ((highs - lows) / MAX_ACTIVATION_CODE).clamp_min(1e-12)
    zero = (-lows / scale).round().clamp(0, MAX_ACTIVATION_CODE)
    back = ((x / scale).round() + zero).clamp(0, MAX_ACTIVATION_CODE).sub(zero) * scale
    best = int(((back - x).square() @ seen.counts).argmin())
    return float(lows[best]), float(highs[best])


CALIBRATORS: Mapping[str, Callable[[ActivationHistogram], Span]] = {
    "minmax": minmax_span,
    "percentile": percentile_span,
    "mse": mse_span,
}
"""Name -> histogram of an activation -> the range its 256 levels cover."""


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
        made, arguments = quantize_weights(classifier, sample, self.bits)
        seen = _observe_activations(made, sample)
        made.network.rounding = ActivationRounding(len(seen)).to(classifier.device)
        names = [*CALIBRATORS] if self.by == "auto" else [self.by]
        distances = {name: _set_spans(made, seen, name, classifier, others) for name in names}
        best = min(distances, key=lambda name: distances[name])
        if best != names[-1]:
            _set_spans(made, seen, best, classifier, others)
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
def quantize_weights(classifier: Classifier, images: Dataset, bits: int) -> tuple[Classifier, dict[str, Any]]:
    """A copy with folded norms and int8 weights, activations still in floats; and the surgery's arguments."""
    made = copy.deepcopy(classifier).eval()
    network = made.network
    few = next(iterate_batches(images, min(8, len(images)), device=made.device)).pixels
    before = made(few)
    folded, lone = _match_norms(made, few)
    weights = _folded_weights(network, folded, lone)
    arguments = {"layers": [*_quantizable_layers(network)], "folded": [*folded], "lone": lone}
    SURGERY["quantised"](network, **arguments, sites=0)
    made.eval()
    folded_weights: dict[Int8Layer, Tensor] = {}
    for name, (weight, bias) in weights.items():
        layer = network.get_submodule(name)
        layer = next(layer.children()) if isinstance(layer, nn.Sequential) else layer
        assert isinstance(layer, Int8Conv2d | Int8Linear)
        quantise_weight(layer, weight, bias, bits)
        folded_weights[layer] = weight
    _check_folding(made, folded_weights, few, before)
    return made, arguments


def _quantizable_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that become int8, by name."""
    found = network.named_modules()
    return {n: m for n, m in found if isinstance(m, nn.Conv2d | nn.Linear) and type(m).forward in PLAIN_FORWARDS}


class _UseCounter(TorchFunctionMode):
    """Counts how many operations use each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_query(func):
            for one in collect_tensors((args, [*(kwargs or {}).values()])):
                self.count[one] = self.count[one] + 1 if one in self.count else 1
        return func(*args, **(kwargs or {}))


def _match_norms(classifier: Classifier, pixels: Float[Tensor, "B C H W"]) -> tuple[dict[str, str], list[str]]:
    """Batch norm -> the convolution whose output only it uses; and the batch norms without such a convolution."""
    network = classifier.network
    names: dict[nn.Module, str] = {layer: name for name, layer in _quantizable_layers(network).items()}
    norms: dict[nn.Module, str] = {m: name for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    made: list[tuple[Tensor, str]] = []
    asked: list[tuple[Tensor, str]] = []

    def after(layer: nn.Module, _: object, result: Tensor) -> None:
        made.append((result, names[layer]))

    def before(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        asked.append((given[0], norms[norm]))

    hooks = [layer.register_forward_hook(after) for layer in names if isinstance(layer, nn.Conv2d)]
    hooks += [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        with _UseCounter() as uses:
            classifier(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    sources = {norm: [name for result, name in made if result is given] for given, norm in asked}
    single = {norm for given, norm in asked if given in uses.count and uses.count[given] == 1}
    found = {norm: own[0] for norm, own in sources.items() if own and norm in single}
    return found, [norm for norm in sources if norm not in found]


def _folded_weights(
    network: nn.Module, folded: Mapping[str, str], lone: list[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and bias of each int8 layer: ``gamma / sqrt(v + eps) (W x - mean) + beta``, computed in float64."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in _quantizable_layers(network).items():
        weight = layer.weight.detach().double()
        found[name] = weight, weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    for norm, source in folded.items():
        factor, shift = _norm_affine(network.get_submodule(norm))
        weight, bias = found[source]
        found[source] = weight * factor.view(-1, 1, 1, 1), bias * factor + shift
    for norm in lone:
        factor, shift = _norm_affine(network.get_submodule(norm))
        found[norm] = factor.view(-1, 1, 1, 1), shift
    return {name: (weight.float(), bias.float()) for name, (weight, bias) in found.items()}


def _norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as a factor and a shift of each channel."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double()


def _check_folding(
    classifier: Classifier, weights: Mapping[Int8Layer, Tensor], pixels: Tensor, before: Tensor
) -> None:
    """Raise BundleError where folding changes the logits ``before``, the weights still in floats."""
    rounding = classifier.network.rounding
    assert rounding is not None
    rounding.observer = lambda *_: None
    for layer, weight in weights.items():
        layer.dequantise = lambda *_, weight=weight: weight
    after = classifier(pixels)
    for layer in weights:
        del layer.dequantise
    if not torch.allclose(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise BundleError(
            "Folding the batch norms changes this network's logits (it may call a convolution or a norm twice), "
            "so it cannot be int8: choose another compressor."
        )


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


@torch.no_grad()
def _set_spans(
    made: Classifier, seen: list[ActivationHistogram], by: str, parent: Classifier, images: Dataset
) -> float:
    """Set the ranges by ``by``; returns the mean divergence from the parent's answers on these images, in nats."""
    rounding = made.network.rounding
    assert rounding is not None
    for grid, one in zip(rounding.grids, seen, strict=True):
        assert isinstance(grid, ActivationGrid)
        grid.set_range(*CALIBRATORS[by](one))
    wanted, own = (torch.log_softmax(predict_logits(one, images)[0].double(), 1) for one in (parent, made))
    return float((wanted.exp() * (wanted - own)).sum(1).mean())
