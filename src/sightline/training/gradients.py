"""The backward pass of a batch: whole, in pieces (gradient accumulation), or by replicas that share it."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from .. import runtime
from ..batches import Batch
from ..classifier import Classifier
from ..layers import FusedKernels, are_kernels_compiled, kernel_layout
from .losses import Objective
from .recipe import Recipe

Gradients = Callable[[Objective, Batch], Tensor]
"""``(objective, batch) -> loss ()``: adds the gradient to that of the parameters, returns the mean loss, detached."""


MIN_PIXELS_TO_COMPILE = 50_000_000
"""Pixels of all epochs together from which compiling the kernels, some 6 s once on a machine, pays: 49,000 images of
32 x 32, about a minute of ResNet-20."""


class SingleReplica:
    """One network, which works a batch at once or in ``pieces`` whose gradients add up: the same step in less memory.

    Only layers that compute statistics over the batch (batch norm) see the difference.
    """

    def __init__(
        self, classifier: Classifier, *, bfloat16: bool = False, pieces: int = 1, fused: bool = False
    ) -> None:
        self.classifier, self.bfloat16, self.pieces = classifier, bfloat16, pieces
        self.fused = (
            fused and getattr(classifier.network, "rounding", None) is None
        )  # rounding watches plain operators

    def __enter__(self) -> "SingleReplica":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self, objective: Objective, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss; gradients are in the parameters."""
        losses, kind = [], batch.pixels.device.type
        fast = FastDepthwise() if self.bfloat16 and kind == "cpu" else nullcontext()
        kernels = FusedKernels() if self.fused and kind == "cpu" else nullcontext()
        for piece in split_batch(batch, self.pieces):
            with torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16), fast, kernels:
                loss = objective(self.classifier, piece)
            if len(piece) < len(batch):
                loss = loss * (len(piece) / len(batch))
            loss.backward()
            losses.append(loss.detach())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


class Replicas:
    """Copies of the classifier that share each batch, one thread each; their weights are the same memory.

    No operator is split over threads, which may be faster on a CPU (``defaults.py`` measures whether it is). Batch norm
    sees the share of its replica; its running statistics are averaged after each step.
    """

    def __init__(
        self, classifier: Classifier, count: int, *, bfloat16: bool = False, pieces: int = 1, fused: bool = False
    ) -> None:
        copies = [classifier, *(copy.deepcopy(classifier) for _ in range(count - 1))]
        for twin in copies[1:]:  # the same memory, with gradients and buffers of its own
            for own, first in zip(twin.parameters(), classifier.parameters(), strict=True):
                own.data = first.data
        self.work = [SingleReplica(one, bfloat16=bfloat16, pieces=pieces, fused=fused) for one in copies]
        self.copies = copies
        self.parameters = [[*one.parameters()] for one in copies]
        threads = torch.get_num_threads()
        self.pools = [ThreadPoolExecutor(1, "replica", runtime.use_one_thread) for _ in copies]
        for pool in self.pools:
            pool.submit(int).result()  # the thread exists and has its setting
        torch.set_num_threads(threads)  # a thread's own setting becomes the default of later threads

    def __call__(self, objective: Objective, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss; gradients are in the parameters of the first copy."""
        shares = split_batch(batch, len(self.work))
        first = self.copies[0]
        for twin in self.copies[1:]:  # what is frozen in the first is frozen in all
            for own, module in zip(twin.modules(), first.modules(), strict=True):
                own.training = module.training
            for own, parameter in zip(twin.parameters(), first.parameters(), strict=True):
                own.requires_grad_(parameter.requires_grad)
        waiting = [
            pool.submit(work, objective, share)
            for pool, work, share in zip(self.pools, self.work, shares, strict=False)
        ]
        parts = [len(share) / len(batch) for share in shares]
        loss = sum((each.result() * part for each, part in zip(waiting, parts, strict=True)), torch.zeros(()))
        self._reduce(parts)
        return loss

    @torch.no_grad()
    def _reduce(self, parts: Sequence[float]) -> None:
        """The first copy's gradients and statistics become the weighted mean of all."""
        used = range(len(parts))
        grads = [[p.grad for p in self.parameters[i] if p.grad is not None] for i in used]
        for i in used:
            torch._foreach_mul_(grads[i], parts[i])
            if i:
                torch._foreach_add_(grads[0], grads[i])
                for p in self.parameters[i]:
                    p.grad = None
        buffers = [norm_statistics(one, moving=True) for one in self.copies]
        if buffers[0]:
            torch._foreach_mul_(buffers[0], parts[0])
            for i in used[1:]:
                torch._foreach_add_(buffers[0], buffers[i], alpha=parts[i])
            for one in buffers[1:]:
                torch._foreach_copy_(one, buffers[0])

    def __enter__(self) -> "Replicas":
        return self

    def __exit__(self, *_: object) -> None:
        """End the threads."""
        for pool in self.pools:
            pool.shutdown()


def build_gradients(
    classifier: Classifier, *, bfloat16: bool = False, pieces: int = 1, replicas: int = 1, fused: bool = False
) -> "SingleReplica | Replicas":
    """The backward pass of ``replicas`` copies, each of which works its share of a batch in ``pieces``.

    ``fused``: with compiled kernels for batch norms, where this machine has them.
    """
    if replicas > 1:
        return Replicas(classifier, replicas, bfloat16=bfloat16, pieces=pieces, fused=fused)
    return SingleReplica(classifier, bfloat16=bfloat16, pieces=pieces, fused=fused)


def split_batch(batch: Batch, count: int) -> list[Batch]:
    """The batch in at most ``count`` pieces of nearly equal length.

    ``view`` is cut with the images, ``beside`` at the same fractions: what is paired by position stays together.
    """
    if count == 1:
        return [batch]
    pieces = [_take_fraction(batch, i, count) for i in range(count)]
    return [piece for piece in pieces if len(piece)]


def _take_fraction(batch: Batch, i: int, count: int) -> Batch:
    """Piece ``i`` of ``count``."""
    rows = slice(len(batch) * i // count, len(batch) * (i + 1) // count)
    return replace(
        batch,
        pixels=batch.pixels[rows],
        labels=batch.labels[rows],
        index=batch.index[rows],
        group=None if batch.group is None else batch.group[rows],
        view=None if batch.view is None else batch.view[rows],
        beside=None if batch.beside is None else _take_fraction(batch.beside, i, count),
    )


def norm_statistics(*modules: nn.Module, moving: bool = False) -> list[Tensor]:
    """Running means and variances of batch norms: all that differs between copies whose weights are equal.

    ``moving``: only of norms in training mode.
    """
    layers = (layer for module in modules for layer in module.modules() if isinstance(layer, nn.BatchNorm2d))
    norms = [layer for layer in layers if layer.training or not moving]
    return [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]


def fused_kernels_may_help(classifier: Classifier, recipe: Recipe, image_passes: int) -> bool:
    """Whether fused kernels are worth measuring: layers on the CPU that they work, and kernels that are compiled or
    a training, of ``image_passes`` images in all epochs together, that is long enough to compile them for.
    """
    settled = recipe.precision and recipe.memory_format and recipe.cpu_replicas  # before there were kernels
    if recipe.fused_kernels is not None or settled or recipe.freeze_norms or classifier.device.type != "cpu":
        return False
    layout = kernel_layout(classifier.network)
    if layout is None or recipe.memory_format not in (None, layout):
        return False
    return image_passes * math.prod(classifier.geometry.size) >= MIN_PIXELS_TO_COMPILE or are_kernels_compiled()


def replicas_may_help(classifier: Classifier, recipe: Recipe, objective: Objective, beside: Any = None) -> bool:
    """Whether replicas are worth measuring, one for each thread: large batches on the CPU, exactly repeatable.

    ``beside`` is what says whether a batch may be cut, besides the objective.
    """
    threads = torch.get_num_threads()
    if classifier.device.type != "cpu" or threads == 1 or recipe.devices > 1:
        return False
    cuts = [objective, *filter(None, [beside])]
    repeatable = not (is_stochastic(classifier) or any(one.stochastic or one.across_images for one in cuts))
    return repeatable and (recipe.batch_size or 0) >= 16 * threads


def is_stochastic(network: nn.Module) -> bool:
    """Whether the network draws random numbers while training: replicas would draw them in no fixed order."""
    dropped = nn.modules.dropout._DropoutNd
    layers = [*network.modules()]
    return any(getattr(one, "stochastic", False) or (isinstance(one, dropped) and one.p > 0) for one in layers)


class FastDepthwise(TorchFunctionMode):
    """While entered, depthwise convolutions are bfloat16 with a backward pass that oneDNN does quickly on a CPU.

    Its own takes ten times the forward pass in bfloat16 for kernels of 5 pixels and for strides: most of a step of
    EfficientNet-Lite0 (torch 2.13).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """The call, or the same convolution with another backward pass."""
        if func is not F.conv2d or kwargs or len(args) != 7:
            return func(*args, **(kwargs or {}))
        pixels, weight, bias, stride, padding, dilation, groups = args
        depthwise = groups > 1 and groups == pixels.shape[1] == weight.shape[0] and _pair(dilation) == (1, 1)
        usual = isinstance(padding, str) or any(
            p >= k for p, k in zip(_pair(padding), weight.shape[2:], strict=True)
        )
        if not depthwise or usual or not torch.is_grad_enabled():
            return func(*args)
        made = _DepthwiseConvolution.apply(
            pixels.to(torch.bfloat16), weight.to(torch.bfloat16), _pair(stride), _pair(padding)
        )
        return made if bias is None else made + bias.to(made.dtype)[:, None, None]


class _DepthwiseConvolution(torch.autograd.Function):
    """The gradient for pixels is a convolution of stride 1; that for the kernels is computed in float32."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, pixels: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(pixels if weight.requires_grad else None, weight)
        ctx.stride, ctx.padding, ctx.shape = stride, padding, pixels.shape
        return torch.conv2d(pixels, weight, None, stride, padding, 1, pixels.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,), (pixels, weight) = grads, ctx.saved_tensors
        for_pixels = for_weight = None
        if ctx.needs_input_grad[0]:
            sizes = zip(ctx.shape[2:], weight.shape[2:], ctx.padding, strict=True)
            spread = grad
            if ctx.stride != (1, 1):  # zeros between the answers: then the stride is 1
                rows, columns = (side + 2 * pad - kernel + 1 for side, kernel, pad in sizes)
                spread = torch.zeros(*grad.shape[:2], rows, columns, dtype=grad.dtype)
                spread = spread.contiguous(memory_format=torch.channels_last)
                spread[:, :, :: ctx.stride[0], :: ctx.stride[1]] = grad
            around = [kernel - 1 - pad for kernel, pad in zip(weight.shape[2:], ctx.padding, strict=True)]
            for_pixels = torch.conv2d(spread, weight.flip(2, 3), None, 1, around, 1, grad.shape[1])
        if ctx.needs_input_grad[1]:
            for_weight = torch.ops.aten.convolution_backward(
                grad.float(), pixels.float(), weight.float(), None, ctx.stride, ctx.padding, (1, 1), False, (0, 0),
                grad.shape[1], (False, True, False),
            )[1].to(weight.dtype)  # fmt: skip
        return for_pixels, for_weight, None, None
