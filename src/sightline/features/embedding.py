"""The fast pass of a frozen backbone over images: fused convolutions, small batches, a stream of them for each core.

Each rule was measured (``benchmarks/embedding.py``) and depends on the machine alone, so that features repeat:
bfloat16 where the processor multiplies it, kernels in channels_last, batches whose pixels fit a core's second-level
cache, and a stream of batches for each core in place of operators split over cores. A stream decodes its own images,
so decoding overlaps with the network of the others.
"""

import copy
import time
from collections import Counter
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from .. import runtime
from ..classifier import Classifier
from ..data import to_tensor
from ..layers import has_same_padding, norm_affine, same_margin
from ..models import get_head
from ..types import Dataset

BATCH_BYTES = 2_408_448
"""Bytes of a batch's pixels: 4 images of 224 x 224 in float32, 8 in bfloat16. Larger batches leave the caches."""

MAX_EMBEDDING_BATCH = 128
"""Images of a batch, however small they are."""

ACCELERATOR_BATCH = 256
"""Images of a batch where the network is not on the CPU."""

MAX_FUSION_ERROR = 1e-3
"""Difference of a fused network's features, as a share of their length, from which it is not used."""


class Embedder:
    """Rows of a dataset -> features (n, D), float32: the classifier's, computed as fast as the machine allows.

    The classifier is not changed. ``precision`` None is that of ``embedding_precision``.
    """

    def __init__(self, classifier: Classifier, dataset: Dataset, precision: torch.dtype | None = None):
        self.dataset, self.device = dataset, classifier.device
        self.precision = precision or embedding_precision(classifier)
        self.preprocessing: Any = copy.deepcopy(classifier.preprocessing).eval()
        self.network: Any = copy.deepcopy(classifier.network).eval()
        self.width = get_head(classifier.network).in_features
        self.streams, self.batch_size, self.fused = 1, ACCELERATOR_BATCH, False
        if self.device.type == "cpu":
            each = int(np.prod(dataset.geometry.shape)) * self.precision.itemsize
            self.batch_size = min(MAX_EMBEDDING_BATCH, max(1, BATCH_BYTES // each))
            self._fuse()

    @torch.inference_mode()
    def _fuse(self) -> None:
        """Use a fused copy of the network, and a stream for each core, where its features are the same."""
        if self.network.rounding is not None or not self.network.differentiable:
            return
        pixels = self.preprocessing(to_tensor(self.dataset[:2]))
        wanted = self.network.embed(pixels)
        twin = copy.deepcopy(self.network)
        fuse_convolutions(twin, pixels, torch.float32)
        twin.head = nn.Identity()  # type: ignore[assignment]  its logits are its features then, without a hook
        found = twin.forward_clean(pixels)
        if found.shape != wanted.shape or (found - wanted).norm() > MAX_FUSION_ERROR * wanted.norm():
            return
        if self.precision is not torch.float32:
            twin = copy.deepcopy(self.network)
            fuse_convolutions(twin, pixels, self.precision)
            twin.head = nn.Identity()  # type: ignore[assignment]
        self.network, self.fused, self.streams = twin, True, torch.get_num_threads()

    @torch.inference_mode()
    def embed_batch(self, rows: Int[ndarray, " n"]) -> Float[Tensor, "n D"]:
        """The features of these images, in one batch."""
        pixels = to_tensor(self.dataset[rows], self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision is torch.bfloat16):
            pixels = self.preprocessing(pixels)
            found = self.network.forward_clean(pixels) if self.fused else self.network.embed(pixels)
        return found.float().cpu()

    def __call__(self, rows: Int[ndarray, " n"]) -> Generator[Float[ndarray, "b D"], None, None]:
        """The features of these images, batch by batch and in order."""
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        if self.streams == 1:
            yield from (self.embed_batch(batch).numpy() for batch in batches)
            return
        with runtime.single_threaded_pool(self.streams) as pool:
            yield from (found.numpy() for found in pool.map(self.embed_batch, batches))


def time_embedding(classifier: Classifier, dataset: Dataset) -> float:
    """Seconds in which these images are embedded, once kernels are compiled."""
    embedder, rows, took = Embedder(classifier, dataset), np.arange(len(dataset)), 0.0
    for _ in range(2):
        began = time.perf_counter()
        for _ in embedder(rows):
            pass
        took = time.perf_counter() - began
    return took


def embedding_precision(classifier: Classifier) -> torch.dtype:
    """bfloat16 where the device multiplies it natively, else float32.

    It depends on the machine alone, not on a measurement, so that features repeat.
    """
    return torch.bfloat16 if runtime.has_bfloat16(classifier.device.type) else torch.float32


def fuse_convolutions(network: nn.Module, example: Float[Tensor, "B C H W"], precision: torch.dtype) -> None:
    """Make each batch norm, and a ReLU after it, part of the convolution before it: inference only, in place.

    Which layer feeds which is seen in one pass over ``example``. What does not fit the pattern stays unchanged;
    the caller compares the results.
    """
    made: dict[int, nn.Module] = {}
    sizes: dict[nn.Module, torch.Size] = {}
    kept: list[Tensor] = []  # alive, so that no two have one id
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def watch(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        calls[module] += 1
        before = made.get(id(given[0]))
        if before is not None:
            pairs.append((before, module))
        if isinstance(module, nn.Conv2d):
            sizes[module] = given[0].shape
        made[id(result)] = module
        kept.append(result)

    wanted = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6)
    watching = [m.register_forward_hook(watch) for m in network.modules() if isinstance(m, wanted)]
    network(example)
    for each in watching:
        each.remove()
    names = {module: name for name, module in network.named_modules()}
    once = [(a, b) for a, b in pairs if calls[a] == calls[b] == 1]
    norms = {a: b for a, b in once if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)}
    after = {a: b for a, b in once if isinstance(a, nn.BatchNorm2d) and isinstance(b, nn.ReLU | nn.ReLU6)}
    for convolution, norm in norms.items():
        own = getattr(norm, "act", None)  # timm's norm has its activation inside
        then = after.get(norm) if own is None or isinstance(own, nn.Identity) else own
        if convolution.padding_mode != "zeros" or isinstance(convolution.padding, str) or norm.running_var is None:
            continue
        fits = then is None or type(then) in (nn.ReLU, nn.ReLU6)
        fused = FusedConvolution(convolution, norm, then if fits else None, sizes[convolution], precision)
        _put(network, names[convolution], fused)
        _put(network, names[norm], nn.Identity() if fits or own is None else own)
        if fits and then is not None and then is not own:
            _put(network, names[then], nn.Identity())


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, module)


class FusedConvolution(nn.Module):
    """A convolution with a batch norm's statistics in its weights, and a ReLU, as one operator of oneDNN."""

    def __init__(
        self, conv: Any, norm: Any, then: nn.Module | None, size: torch.Size, precision: torch.dtype
    ) -> None:
        super().__init__()
        scale, shift = norm_affine(norm)
        bias = shift if conv.bias is None else shift + conv.bias * scale
        weight = conv.weight * scale[:, None, None, None]
        self.weight = weight.to(precision).contiguous(memory_format=torch.channels_last)
        self.bias = bias.to(precision)
        self.margin, padding = (0, 0, 0, 0), list(conv.padding)
        if has_same_padding(conv):
            self.margin = same_margin(conv, size[2:])
            padding = [0, 0]
        self.layout = (padding, list(conv.stride), list(conv.dilation), conv.groups)
        self.then = {
            nn.ReLU: ("relu", []), nn.ReLU6: ("hardtanh", [0.0, 6.0])
        }.get(type(then), ("none", []))  # fmt: skip
        if torch.backends.mkldnn.is_available():
            padded = [*size[:2], size[2] + sum(self.margin[2:]), size[3] + sum(self.margin[:2])]
            prepack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # type: ignore[attr-defined]
            self.weight = prepack(self.weight.to_mkldnn(), *self.layout, padded)

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D H2 W2"]:
        """The convolution, the norm and the ReLU."""
        pixels = pixels.to(self.bias.dtype)
        if any(self.margin):
            pixels = F.pad(pixels, self.margin)
        if self.weight.is_mkldnn:
            return torch.ops.mkldnn._convolution_pointwise(
                pixels, self.weight, self.bias, *self.layout, *self.then, ""
            )
        padding, stride, dilation, groups = self.layout
        found = F.conv2d(pixels, self.weight, self.bias, stride, padding, dilation, groups)
        kind, bounds = self.then
        return found if kind == "none" else found.clamp_(0, bounds[1] if bounds else None)
