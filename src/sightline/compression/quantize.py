"""int8 by calibration: norms are folded, weights become codes, activations get the levels a sample asks for."""

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
from ..types import Dataset, Splits

ACTIVATION_BINS = 2048
"""Of each activation's histogram."""

PERCENTILE_TAIL = 1e-4
"""Share of the values that ``percentile`` may leave outside, at both ends together."""

MSE_SPAN_SHARES = torch.linspace(0.3, 1, 71)
"""Of the whole span, that ``mse`` tries."""

CALIBRATION_BATCH_SIZE = 64

PLAIN_FORWARDS = (nn.Conv2d.forward, nn.Linear.forward, SparseConv2d.forward, SparseLinear.forward)
"""Layers that do with their weights what torch's own do, and no more."""


@dataclass
class ActivationHistogram:
    """The values of one activation over a sample."""

    low: float = float("inf")
    high: float = float("-inf")
    counts: Tensor = field(default_factory=lambda: torch.zeros(ACTIVATION_BINS))

    def update_range(self, x: Tensor) -> None:
        """Take in the smallest and the largest."""
        low, high = x.aminmax()
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def update_counts(self, x: Tensor) -> None:
        """Take in how often each value comes, once the ends are known."""
        if self.high > self.low:
            self.counts += torch.histc(x.flatten().float(), ACTIVATION_BINS, self.low, self.high).cpu()

    @property
    def bin_centers(self) -> Float[Tensor, " bins"]:
        """Values in the middle of the bins."""
        width = (self.high - self.low) / ACTIVATION_BINS
        return self.low + width * (torch.arange(ACTIVATION_BINS) + 0.5)


Span = tuple[float, float]


def minmax_span(seen: ActivationHistogram) -> Span:
    """From the smallest to the largest value."""
    return seen.low, seen.high


def percentile_span(seen: ActivationHistogram) -> Span:
    """All values but the share ``CUT`` at the ends."""
    below = seen.counts.cumsum(0) / seen.counts.sum().clamp_min(1)
    kept = seen.bin_centers[(below >= PERCENTILE_TAIL / 2) & (below <= 1 - PERCENTILE_TAIL / 2)]
    return (float(kept[0]), float(kept[-1])) if len(kept) > 1 else minmax_span(seen)


def mse_span(seen: ActivationHistogram) -> Span:
    """The share of the whole span that leaves the least squared error."""
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
"""How the values of a sample become the span of an activation's levels."""


@dataclass(frozen=True)
class Int8:
    """int8 weights and activations, calibrated on ``images`` training images.

    ``bits`` are those of a weight: 7 are right on every processor, 8 only on those with VNNI (see ``MOST``).
    ``by`` is one of ``SPANS``, or auto: all are tried, and the one whose answers about as many other training
    images are nearest to the float network's (least Kullback-Leibler divergence) is kept. ``heals`` asks for a
    training of biases and gains afterwards; codes of weights stay. Raises ValueError for an impossible value.
    """

    by: str = "auto"
    images: int = 256
    bits: int = 7
    heals: bool = False

    def __post_init__(self):
        if self.by not in {"auto", *CALIBRATORS}:
            raise ValueError(
                f"there is no calibration '{self.by}'. {suggest(str(self.by), ['auto', *CALIBRATORS])}"
            )
        check_int("images", self.images, 1)
        if self.bits not in MAX_WEIGHT_CODE:
            raise ValueError(f"bits is 7, or 8 for processors with VNNI, not {self.bits}")

    def __call__(self, classifier: Classifier, data: Splits) -> Classifier:
        """A new classifier in int8; the given one is left alone.

        Raises DataError for calibration images that are missing or of another geometry, BundleError for a network
        that cannot be quantised.
        """
        check_calibration_images(classifier, data.train)
        check_quantizable(classifier.network)
        sample, others = _draw_samples(data.train, self.images)
        made, arguments = quantize_weights(classifier, sample, self.bits)
        seen = _observe_activations(made, sample)
        made.network.rounding = ActivationRounding(len(seen)).to(classifier.device)
        names = [*CALIBRATORS] if self.by == "auto" else [self.by]
        distances = {name: _set_spans(made, seen, name, classifier, others) for name in names}
        best = min(distances, key=lambda name: distances[name])
        if best != names[-1]:
            _set_spans(made, seen, best, classifier, others)
        said = {"by": best, "bits": self.bits, "calibration_images": len(sample), "divergence_nats": distances}
        return _with_quantised_surgery(made, {**arguments, "sites": len(seen)}, said)


def check_calibration_images(classifier: Classifier, images: Dataset) -> None:
    """Raise DataError where these images cannot calibrate the classifier."""
    if not len(images):
        raise DataError("There are no training images to calibrate int8 on: give data with a training part.")
    if images.geometry != classifier.geometry:
        raise DataError(
            f"The images to calibrate on were decoded as {images.geometry}, but the classifier expects "
            f"{classifier.geometry}: load them with the classifier's geometry."
        )


def check_quantizable(network: Network) -> None:
    """Raise BundleError where a network cannot be made int8."""
    if network.rounding is not None:
        raise BundleError("This classifier is int8 already: compress the one it was made from.")
    if network.noise is not None:
        raise BundleError("Noise in the weights is drawn in floats, so this network cannot be int8.")
    if not network.differentiable:
        raise BundleError("This classifier has no weights of its own that int8 could hold: compress a network.")


def _draw_samples(images: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Images to calibrate on and as many others to choose by (the same ones where there are no others)."""
    order = np.random.default_rng(8).permutation(len(images))
    first, second = np.sort(order[:count]), np.sort(order[count : 2 * count])
    return images.subset(first), images.subset(second if len(second) else first)


@torch.no_grad()
def quantize_weights(classifier: Classifier, images: Dataset, bits: int) -> tuple[Classifier, dict[str, Any]]:
    """A copy with norms folded and weights as codes, activations still floats; and the surgery's arguments."""
    made = copy.deepcopy(classifier).eval()
    network = made.network
    few = next(iterate_batches(images, min(8, len(images)), device=made.device)).pixels
    before = made(few)
    folded, lone = _match_norms(made, few)
    weights = _folded_weights(network, folded, lone)
    arguments = {"layers": [*_quantizable_layers(network)], "folded": [*folded], "lone": lone}
    SURGERY["quantised"](network, **arguments, sites=0)
    made.eval()
    layers = {name: _int8_layer(network.get_submodule(name)) for name in weights}
    for name, layer in layers.items():
        quantise_weight(layer, *weights[name], bits)
    _check_folding(made, {layer: weights[name][0] for name, layer in layers.items()}, few, before)
    return made, arguments


def _quantizable_layers(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers that become int8."""
    found = network.named_modules()
    return {n: m for n, m in found if isinstance(m, nn.Conv2d | nn.Linear) and type(m).forward in PLAIN_FORWARDS}


def _int8_layer(layer: nn.Module) -> Int8Layer:
    """The int8 layer that is this one, or its first part."""
    layer = next(layer.children()) if isinstance(layer, nn.Sequential) else layer
    assert isinstance(layer, Int8Conv2d | Int8Linear)
    return layer


class _UseCounter(TorchFunctionMode):
    """Counts how often each tensor is used."""

    def __init__(self) -> None:
        super().__init__()
        self.count = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_query(func):
            for one in collect_tensors((args, [*(kwargs or {}).values()])):
                self.count[one] = self.count[one] + 1 if one in self.count else 1
        return func(*args, **(kwargs or {}))


def _match_norms(classifier: Classifier, pixels: Float[Tensor, "B C H W"]) -> tuple[dict[str, str], list[str]]:
    """Batch norms by the convolution whose result only they are given; and those that are given another thing."""
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
    """Weight and bias of each layer to come: ``gamma / sqrt(v + eps) (W x - mean) + beta``, in float64."""
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
    """Factor and shift of each channel that a batch norm is in eval mode."""
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
    """Raise BundleError where the network, with its folded weights still in floats, gives other logits."""
    rounding = classifier.network.rounding
    assert rounding is not None
    rounding.observer = _ignore_note
    for layer, weight in weights.items():
        layer.dequantise = _constant_weight(weight)
    after = classifier(pixels)
    for layer in weights:
        del layer.dequantise
    if not torch.allclose(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise BundleError(
            "Its layers do not do what int8 needs (a convolution or a batch norm is used twice, perhaps), so this "
            "network cannot be int8."
        )


def _ignore_note(site: int, x: Tensor) -> None:
    del site, x


def _constant_weight(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda *_: weight


@torch.no_grad()
def _observe_activations(classifier: Classifier, images: Dataset) -> list[ActivationHistogram]:
    """What each activation is over these images, its float values, in two passes."""
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
    """Put the levels where ``by`` says; how far the answers about these images are from the parent's, in nats."""
    rounding = made.network.rounding
    assert rounding is not None
    for grid, one in zip(rounding.grids, seen, strict=True):
        assert isinstance(grid, ActivationGrid)
        grid.set_range(*CALIBRATORS[by](one))
    wanted, own = (torch.log_softmax(predict_logits(one, images)[0].double(), 1) for one in (parent, made))
    return float((wanted.exp() * (wanted - own)).sum(1).mean())


def _with_quantised_surgery(made: Classifier, arguments: Mapping[str, Any], said: Mapping[str, Any]) -> Classifier:
    """The classifier with its surgery and how it was calibrated; sets that were calibrated on floats are gone."""
    plan = made.architecture
    made.architecture = replace(plan, surgery=(*plan.surgery, ("quantised", dict(arguments))))
    made.answers = {}
    made.provenance["int8"] = dict(said)
    return made
