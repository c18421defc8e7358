"""Batch norm, addition and activation as one operator while training on the CPU, and the pool before or after it.

A network writes ``norm_act(norm, x, add=..., act=F.relu)`` for ``act(norm(x) + add)``. Within ``FusedKernels``, where
the tensors fit, a compiled kernel computes the same in two passes over memory in place of four to six, forward and
backward. Elsewhere (evaluation, export, explanation, other devices) the plain modules run.
"""

import math
import threading
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_void_p
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import GradientError
from .native import KernelError, library_path, load_library

KERNEL_SOURCE = Path(__file__).with_suffix(".cpp")

ACTIVATION_CODES: dict[Any, int] = {
    None: 0, F.relu: 1, nn.ReLU: 1, F.relu6: 2, nn.ReLU6: 2, F.gelu: 3, F.silu: 4, nn.SiLU: 4
}  # fmt: skip
"""Function or type of module -> its number in the kernel."""

CHANNEL_MULTIPLE = 4
"""The kernel works on tensors whose channels are a multiple of this."""

MAX_KERNEL_ERROR = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest difference from the plain modules, as a share of the largest value, at which a kernel is used. bfloat16
rounds to 2^-8; the plain modules round up to three times where the kernel rounds once."""

_active = threading.local()


class FusedKernels:
    """While entered, by this thread, ``norm_act``, ``max_pool2`` and ``FusableSequential`` use the compiled kernels."""

    def __enter__(self) -> "FusedKernels":
        _active.library = open_kernels()[0]
        return self

    def __exit__(self, *_: object) -> None:
        _active.library = None


def are_kernels_compiled() -> bool:
    """Whether the compiled kernels are in the cache, so that trying them costs nothing."""
    try:
        return library_path(KERNEL_SOURCE).exists()
    except KernelError:
        return False


def count_fusable(network: nn.Module) -> int:
    """Batch norms of the network that the kernels can work."""
    return sum(_is_plain_norm(module) for module in network.modules())


def kernel_layout(network: nn.Module) -> Literal["channels_last", "contiguous"] | None:
    """Memory format in which kernels work the network: contiguous where it has a ReLU and a mean pool and no norm.

    None where there is nothing for a kernel.
    """
    if count_fusable(network):
        return "channels_last"
    sequences = (module for module in network.modules() if isinstance(module, FusableSequential))
    return "contiguous" if any(_is_relu_pool(*pair) for each in sequences for pair in pairwise(each)) else None


def norm_act(
    norm: nn.Module,
    x: Float[Tensor, "B C H W"],
    *,
    attend: nn.Module | None = None,
    add: Float[Tensor, "B C H W"] | None = None,
    act: Callable[[Tensor], Tensor] | None = F.relu,
) -> Float[Tensor, "B C H W"]:
    """``act(attend(norm(x)) + add)``, as one operator where kernels are active and ``attend`` is the identity."""
    library = getattr(_active, "library", None)
    if library is not None and isinstance(attend, nn.Identity | None) and _fits(norm, x, add, act):
        return _apply(library, norm, x, add, ACTIVATION_CODES[act])
    if getattr(norm, "is_folded", False) and isinstance(attend, nn.Identity | None):
        x = x if add is None else x.add_(add)
        return x if act is None else F.relu_(x) if act is F.relu else act(x)
    y = norm(x) if attend is None else attend(norm(x))
    y = y if add is None else y + add
    return y if act is None else act(y)


class FoldedNorm(nn.Identity):
    """In place of a batch norm that its convolution has taken in: what it is given may be overwritten."""

    is_folded = True


def max_pool2(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
    """``F.max_pool2d(x, 2)``, by a kernel where kernels are active."""
    library = getattr(_active, "library", None)
    if library is None or not _fits_memory(x) or min(x.shape[2:]) < 2:
        return F.max_pool2d(x, 2)
    return _MaxPool2.apply(x, library)  # type: ignore[return-value]


class FusableSequential(nn.Sequential):
    """``nn.Sequential`` in which pairs of modules are one operator where kernels are active.

    These are a batch norm and the activation after it, and a ReLU and the 2 x 2 mean pool after it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The modules' composition."""
        library = getattr(_active, "library", None)
        if library is None:
            return super().forward(input)
        modules, x, i = [*self], input, 0
        if x.ndim == 4 and x.shape[1] == 1 and kernel_layout(self) == "contiguous":
            # Grey images may have the strides of channels_last, which convolutions keep.
            x = x.flatten(1).view(x.shape)
        while i < len(modules):
            module, then = modules[i], modules[i + 1] if i + 1 < len(modules) else None
            if _is_relu_pool(module, then) and _fits_relu_pool(x):
                x = cast(Tensor, _ReluMeanPool2.apply(x, library))
                i += 2
                continue
            act = type(then) if type(then) in ACTIVATION_CODES and not _is_watched(then) else None
            fits = _fits(module, x, None, act)
            x = _apply(library, module, x, None, ACTIVATION_CODES[act]) if fits else module(x)
            i += 2 if fits and act else 1
        return x


def _is_watched(module: Any) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _is_relu_pool(module: Any, then: Any) -> bool:
    """Whether this is a ReLU and the mean of 2 x 2 pixels after it, neither of them watched."""
    if type(module) is not nn.ReLU or type(then) is not nn.AvgPool2d or _is_watched(module) or _is_watched(then):
        return False
    plain = not (then.padding or then.ceil_mode or then.divisor_override)
    return plain and then.kernel_size in (2, (2, 2)) and then.stride in (2, (2, 2))


def _fits_relu_pool(x: Tensor) -> bool:
    fits = x.device.type == "cpu" and x.dtype in MAX_KERNEL_ERROR and x.ndim == 4 and x.is_contiguous()
    return fits and bool(x.numel()) and min(x.shape[2:]) > 1


def _is_plain_norm(norm: Any) -> bool:
    """Whether this is a batch norm as torch has it, whose channels the kernel can work."""
    is_norm = isinstance(norm, nn.BatchNorm2d) and type(norm).forward is nn.BatchNorm2d.forward
    return is_norm and norm.num_features % CHANNEL_MULTIPLE == 0 and norm.momentum is not None


def _fits_memory(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.dtype not in MAX_KERNEL_ERROR or x.ndim != 4 or not x.numel():
        return False
    return x.shape[1] % CHANNEL_MULTIPLE == 0 and x.is_contiguous(memory_format=torch.channels_last)


def _fits(norm: Any, x: Tensor, add: Tensor | None, act: Any) -> bool:
    if act not in ACTIVATION_CODES or not _fits_memory(x) or not _is_plain_norm(norm) or not norm.training:
        return False
    if add is not None and (add.shape != x.shape or add.dtype != x.dtype or ACTIVATION_CODES[act] > 1):
        return False
    own = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    alike = all(each is None or (each.dtype is torch.float32 and each.is_contiguous()) for each in own)
    return alike and x.shape[0] * x.shape[2] * x.shape[3] > 1 and not _is_watched(norm)


def _apply(library: Any, norm: Any, x: Tensor, add: Tensor | None, act: int) -> Tensor:
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if add is not None:
        add = add.contiguous(memory_format=torch.channels_last)
    return _NormAct.apply(x, norm.weight, norm.bias, add, norm, act, library)  # type: ignore[return-value]


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _refuse_second_derivative() -> None:
    """Raise GradientError where the gradient is wanted with a graph: it would be silently without one."""
    if torch.is_grad_enabled():
        raise GradientError(
            "Fused kernels have no second derivative: train with fused_kernels = false in the recipe."
        )


class _NormAct(torch.autograd.Function):
    """The statistics of the batch, and the gradient through them."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Any, bias: Any, add: Any, norm: Any, act: int, library: Any
    ) -> Tensor:
        out, channels = torch.empty_like(x), x.shape[1]
        mean, rstd = torch.empty(2, channels)
        library.sightline_norm(
            x.dtype is torch.bfloat16, act, 0, x.numel() // channels, channels, x.data_ptr(), _address(add), None, None,
            _address(weight), _address(bias), mean.data_ptr(), rstd.data_ptr(), _address(norm.running_mean),
            _address(norm.running_var), norm.momentum, norm.eps, out.data_ptr(), None, None, None,
            torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, mean, rstd, None if add is None else out)
        ctx.act, ctx.library = act, library
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        x, weight, bias, mean, rstd, out = ctx.saved_tensors
        grad, channels = grads[0].contiguous(memory_format=torch.channels_last), x.shape[1]
        for_x, for_add = torch.empty_like(x), None if out is None else torch.empty_like(x)
        for_weight, for_bias = torch.empty(2, channels)
        ctx.library.sightline_norm(
            x.dtype is torch.bfloat16, ctx.act, 1, x.numel() // channels, channels, x.data_ptr(), _address(for_add),
            grad.data_ptr(), _address(out), _address(weight), _address(bias), mean.data_ptr(), rstd.data_ptr(), None,
            None, 0.0, 0.0, for_x.data_ptr(), _address(for_add), for_weight.data_ptr(), for_bias.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        wanted = ctx.needs_input_grad
        return (
            for_x, for_weight if wanted[1] else None, for_bias if wanted[2] else None, for_add, None, None, None,
        )  # fmt: skip


class _MaxPool2(torch.autograd.Function):
    """2 x 2 pixels, stride 2: one byte for each maximum is kept, not the eight of torch's index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, library: Any) -> Tensor:  # type: ignore[override]
        images, channels, height, width = ctx.shape = x.shape
        small = (images, channels, height // 2, width // 2)
        out = torch.empty(small, dtype=x.dtype, memory_format=torch.channels_last)
        which = torch.empty(small, dtype=torch.uint8, memory_format=torch.channels_last)
        library.sightline_pool(
            x.dtype is torch.bfloat16, 0, x.data_ptr(), out.data_ptr(), which.data_ptr(), images, height, width,
            channels, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(which)
        ctx.library = library
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivative()
        grad, (which,) = grads[0].contiguous(memory_format=torch.channels_last), ctx.saved_tensors
        images, channels, height, width = ctx.shape
        out = torch.empty(ctx.shape, dtype=grad.dtype, memory_format=torch.channels_last)
        ctx.library.sightline_pool(
            grad.dtype is torch.bfloat16, 1, grad.data_ptr(), out.data_ptr(), which.data_ptr(), images, height, width,
            channels, torch.get_num_threads(),
        )  # fmt: skip
        return out, None


class _ReluMeanPool2(torch.autograd.Function):
    """ReLU, then the mean of 2 x 2 pixels with stride 2, of contiguous tensors: the same bits as torch's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, library: Any) -> Tensor:  # type: ignore[override]
        images, channels, height, width = x.shape
        out = torch.empty((images, channels, height // 2, width // 2), dtype=x.dtype)
        library.sightline_relu_pool(
            x.dtype is torch.bfloat16, 0, x.data_ptr(), None, out.data_ptr(), images * channels, height, width,
            torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(x)
        ctx.library = library
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivative()
        grad, (x,) = grads[0].contiguous(), ctx.saved_tensors
        images, channels, height, width = x.shape
        out = torch.empty_like(x)
        ctx.library.sightline_relu_pool(
            x.dtype is torch.bfloat16, 1, x.data_ptr(), grad.data_ptr(), out.data_ptr(), images * channels, height,
            width, torch.get_num_threads(),
        )  # fmt: skip
        return out, None


@cache
def open_kernels() -> tuple[Any, str]:
    """The compiled library once it has agreed with the plain modules, or None; and why not, in a sentence, or ""."""
    try:
        library = load_library(KERNEL_SOURCE)
    except KernelError as error:
        return None, f"Training without fused kernels: {error}."
    library.sightline_norm.argtypes = [
        *[c_int] * 3,
        c_int64,
        c_int64,
        *[c_void_p] * 10,
        c_float,
        c_float,
        *[c_void_p] * 4,
        c_int,
    ]
    library.sightline_pool.argtypes = [c_int, c_int, *[c_void_p] * 3, *[c_int64] * 4, c_int]
    library.sightline_relu_pool.argtypes = [c_int, c_int, *[c_void_p] * 3, *[c_int64] * 3, c_int]
    library.sightline_norm.restype = library.sightline_pool.restype = library.sightline_relu_pool.restype = None
    error = kernel_error(library)
    if error == math.inf:
        return None, "Training without fused kernels: their results are not those of the plain modules."
    if not error <= 1:
        return None, f"Training without fused kernels: their error is {error:.1f} times what is allowed."
    return library, ""


def kernel_error(library: Any) -> float:
    """Largest difference from the plain modules, on random values, as a share of what ``MAX_KERNEL_ERROR`` allows.

    Infinite where a pool has other bits.
    """
    generator, worst = torch.Generator().manual_seed(0), 0.0
    cases = [(None, False), (F.relu, False), (F.relu, True), (F.relu6, False), (F.gelu, False), (F.silu, False)]
    for dtype, allowed in MAX_KERNEL_ERROR.items():
        for channels in (16, 12):  # both widths of the kernel's vectors
            drawn = [torch.randn(4, channels, 7, 6, generator=generator) + 1 for _ in range(3)]
            x, other, grad = (each.to(dtype).contiguous(memory_format=torch.channels_last) for each in drawn)
            for act, adds in cases:
                with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                    fast = _results(library, x, other if adds else None, grad, act)
                    plain = _results(None, x.float(), other.float() if adds else None, grad.float(), act)
                for found, wanted in zip(fast, plain, strict=True):
                    error = (found.float() - wanted).abs().max() / wanted.abs().max()
                    worst = max(worst, float(error.nan_to_num(torch.inf)) / allowed)
            same_maxima = _pools_alike(library, _MaxPool2, lambda x: F.max_pool2d(x, 2), x, grad)
            flat = x.contiguous()
            if not same_maxima or not _pools_alike(library, _ReluMeanPool2, _relu_mean_pool2, flat, grad):
                return math.inf
    return worst


def _relu_mean_pool2(x: Tensor) -> Tensor:
    return F.avg_pool2d(F.relu(x), 2)


def _pools_alike(library: Any, kernel: Any, plain: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> bool:
    """Whether a pool and its gradient have the same bits by the kernel and by plain modules."""
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        found, wanted = kernel.apply(ours, library), plain(theirs)
        grad = grad[..., : wanted.shape[2], : wanted.shape[3]]
        grads = [torch.autograd.grad(out, given, grad)[0] for out, given in ((found, ours), (wanted, theirs))]
        return torch.equal(found, wanted) and torch.equal(*grads)


def _results(library: Any, x: Tensor, add: Tensor | None, grad: Tensor, act: Any) -> list[Tensor]:
    """Output, gradients and running statistics of a batch norm on ``x``, by the library or by plain modules."""
    norm = nn.BatchNorm2d(x.shape[1])
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, x.shape[1]))
        norm.bias.copy_(torch.linspace(-0.5, 0.5, x.shape[1]))
    given = [each.clone().requires_grad_() for each in (x, add) if each is not None]
    if library is None:
        out = norm(given[0]) + (given[1] if add is not None else 0)
        out = out if act is None else act(out)
    else:
        out = _apply(library, norm, given[0], given[1] if add is not None else None, ACTIVATION_CODES[act])
    grads = torch.autograd.grad(out, [*given, norm.weight, norm.bias], grad)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [out.detach(), *grads, norm.running_mean, norm.running_var]
