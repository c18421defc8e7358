"""The compiled kernels against torch's own modules in float64, and what happens where there are none."""

import copy
import shutil
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sightline import runtime
from sightline.errors import GradientError
from sightline.layers import (
    FusableSequential,
    FusedKernels,
    count_fusable,
    fused_norm,
    kernel_layout,
    max_pool2,
    native,
    norm_act,
)
from sightline.layers.fused_norm import kernel_error, open_kernels

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Largest difference from float64, as a share of the largest value."""

PATTERNS = [(None, False), (F.relu, False), (F.relu, True), (F.relu6, False), (F.gelu, False), (F.silu, False)]
SHAPES = [(2, 16, 1, 1), (3, 4, 5, 7), (4, 64, 9, 6), (2, 512, 3, 3), (5, 12, 33, 31)]


class Counting:
    """The library, with the calls of its kernels counted."""

    def __init__(self, library):
        self.library, self.norms, self.pools, self.relu_pools = library, 0, 0, 0

    def sightline_norm(self, *given):
        self.norms += 1
        return self.library.sightline_norm(*given)

    def sightline_pool(self, *given):
        self.pools += 1
        return self.library.sightline_pool(*given)

    def sightline_relu_pool(self, *given):
        self.relu_pools += 1
        return self.library.sightline_relu_pool(*given)


@pytest.fixture
def calls(kernels, monkeypatch):
    counting = Counting(kernels)
    monkeypatch.setattr(fused_norm, "open_kernels", lambda: (counting, ""))
    return counting


@pytest.fixture
def forgotten():
    """Kernels are looked for afresh, in this test and after it."""
    open_kernels.cache_clear()
    yield
    open_kernels.cache_clear()


def drawn(shape, dtype, *, offset=1.0, seed=0):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + offset
    return made.to(dtype).contiguous(memory_format=torch.channels_last)


def make_norm(channels, seed=5):
    norm, generator = nn.BatchNorm2d(channels, momentum=0.3), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels, generator=generator))
        norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


def run(norm, x, add, grad, act, *, fused):
    given = [each.clone().requires_grad_() for each in (x, add) if each is not None]
    if fused:
        with FusedKernels():
            out = norm_act(norm, given[0], add=given[1] if add is not None else None, act=act)
    else:
        out = norm(given[0]) + (given[1] if add is not None else 0)
        out = out if act is None else act(out)
    grads = torch.autograd.grad(out, [*given, norm.weight, norm.bias], grad)
    return [out.detach(), *grads, norm.running_mean, norm.running_var]


def difference(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize(("act", "adds"), PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_is_the_modules_in_float64(shape, act, adds, dtype, calls):
    x, other, grad = (drawn(shape, dtype, seed=seed) for seed in range(3))
    norm = make_norm(shape[1])
    twin = copy.deepcopy(norm).double()
    found = run(norm, x, other if adds else None, grad, act, fused=True)
    wanted = run(twin, x.double(), other.double() if adds else None, grad.double(), act, fused=False)
    assert calls.norms == 2  # forward and backward
    assert int(norm.num_batches_tracked) == 1
    if shape[2] == 1:  # two values a channel: their gradient is a difference of almost equal numbers
        found, wanted = [found[i] for i in (0, -2, -1)], [wanted[i] for i in (0, -2, -1)]
    if dtype is torch.bfloat16 and act in (
        F.relu,
        F.relu6,
    ):  # an output that rounds across a kink has another gradient
        near = [(wanted[0] - kink).abs() < 1e-2 for kink in (0, 6)]
        grad = grad.masked_fill((near[0] & (wanted[0] != 0)) | near[1], 0)
        found = run(copy.deepcopy(make_norm(shape[1])), x, other if adds else None, grad, act, fused=True)
        twin = make_norm(shape[1]).double()
        wanted = run(twin, x.double(), other.double() if adds else None, grad.double(), act, fused=False)
    for one, other_one in zip(found, wanted, strict=True):
        assert difference(one, other_one) < BOUNDS[dtype]


def test_statistics_survive_a_mean_far_from_zero(calls):
    x = drawn((8, 16, 20, 20), torch.float32, offset=500.0)
    norm, twin = make_norm(16), make_norm(16).double()
    with FusedKernels():
        norm_act(norm, x)
    twin(x.double())
    assert calls.norms == 1
    torch.testing.assert_close(norm.running_var.double(), twin.running_var, rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_mean.double(), twin.running_mean, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
def test_the_result_does_not_depend_on_threads(dtype, calls):
    x, other, grad = (drawn((16, 32, 24, 24), dtype, seed=seed) for seed in range(3))
    threads, found = torch.get_num_threads(), {}
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found[count] = run(make_norm(32), x, other, grad, F.relu, fused=True)
    finally:
        torch.set_num_threads(threads)
    assert calls.norms == 6
    for count in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(found[1], found[count], strict=True))


def test_what_is_no_number_stays_none(calls):
    x = drawn((2, 16, 4, 4), torch.float32)
    x[0, 3, 0, 0] = torch.nan
    for dtype, act in product(BOUNDS, (F.relu, F.gelu)):
        with FusedKernels():
            out = norm_act(make_norm(16), x.to(dtype), act=act)
        assert out[:, 3].isnan().all()
        assert out[:, [0, 1, 2, *range(4, 16)]].isfinite().all()
    assert calls.norms == 4


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (3, 20, 7, 5), (1, 4, 2, 3)], ids=str)
def test_the_pool_is_torchs_bit_for_bit(shape, dtype, calls):
    x = drawn(shape, dtype).mul(2).round()  # many equal values: the first of them counts
    fused, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    with FusedKernels():
        found = max_pool2(fused)
    wanted = F.max_pool2d(plain, 2)
    grad = drawn(wanted.shape, dtype, seed=1)
    found.backward(grad)
    wanted.backward(grad)
    assert calls.pools == 2
    assert torch.equal(found, wanted)
    assert torch.equal(fused.grad, plain.grad)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", [(2, 6, 28, 28), (3, 16, 10, 10), (2, 3, 7, 9), (1, 5, 2, 3)], ids=str)
def test_relu_and_mean_pool_are_torchs_bit_for_bit(shape, dtype, calls):
    x = drawn(shape, dtype, offset=0.0).contiguous()
    x[0, 0, 0] = 0.0  # the gradient of a ReLU at 0 is 0
    x[0, 1, 0, 0] = torch.nan
    layers = FusableSequential(nn.ReLU(), nn.AvgPool2d(2))
    fused, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    with FusedKernels():
        found = layers(fused)
    assert calls.relu_pools == 1
    wanted = layers(plain)
    grad = drawn(wanted.shape, dtype, seed=1)
    found.backward(grad)
    wanted.backward(grad)
    assert calls.relu_pools == 2
    assert torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))
    assert torch.equal(fused.grad, plain.grad)


@pytest.mark.parametrize(
    "pair",
    [
        (nn.ReLU(), nn.AvgPool2d(3)),
        (nn.ReLU(), nn.AvgPool2d(2, stride=1)),
        (nn.ReLU(), nn.AvgPool2d(2, padding=1)),
        (nn.ReLU(), nn.AvgPool2d(2, ceil_mode=True)),
        (nn.ReLU(), nn.MaxPool2d(2)),
        (nn.ReLU6(), nn.AvgPool2d(2)),
    ],
    ids=str,
)
def test_other_pools_stay_plain(pair, calls):
    layers, x = FusableSequential(*pair), drawn((2, 6, 7, 7), torch.float32).contiguous()
    with FusedKernels():
        found = layers(x)
    assert calls.relu_pools == 0
    assert torch.equal(found, layers(x))
    assert kernel_layout(layers) is None


def test_grey_images_with_the_strides_of_channels_last_are_fused_too(calls):
    layers = FusableSequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2)
    )
    x = torch.rand(2, 28, 28, 1, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    assert x.stride()[1] == 1
    with FusedKernels():
        found = layers(x)
    assert calls.relu_pools == 2
    torch.testing.assert_close(found, layers(x))


def test_kernels_work_norms_in_channels_last_and_relu_and_pool_contiguous():
    pair = FusableSequential(nn.ReLU(), nn.AvgPool2d(2))
    assert kernel_layout(pair) == "contiguous"
    assert kernel_layout(nn.Sequential(pair, nn.BatchNorm2d(16))) == "channels_last"
    assert kernel_layout(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))) is None


def test_a_second_derivative_is_refused(calls):
    x = drawn((2, 16, 4, 4), torch.float32).requires_grad_()
    with FusedKernels():
        norm, pool = norm_act(make_norm(16), x), max_pool2(x)
        mean = FusableSequential(nn.ReLU(), nn.AvgPool2d(2))(x.contiguous())
    for out in (norm, pool, mean):
        with pytest.raises(GradientError, match="fused_kernels = false"):
            torch.autograd.grad(out.sum(), x, create_graph=True)
    assert (calls.norms, calls.pools, calls.relu_pools) == (1, 1, 1)


def test_frozen_parameters_get_no_gradient(calls):
    norm, x = make_norm(16).requires_grad_(False), drawn((2, 16, 4, 4), torch.float32).requires_grad_()
    with FusedKernels():
        norm_act(norm, x).sum().backward()
    assert calls.norms == 2
    assert norm.weight.grad is None
    assert x.grad is not None


def other_cases():
    watched = make_norm(16)
    watched.register_forward_hook(lambda *_: None)
    channels_last = drawn((2, 16, 4, 4), torch.float32)
    cumulative = make_norm(16)
    cumulative.momentum = None
    return {
        "evaluation": (make_norm(16).eval(), channels_last),
        "contiguous": (make_norm(16), channels_last.contiguous()),
        "float64": (make_norm(16).double(), channels_last.double()),
        "odd channels": (make_norm(6), drawn((2, 6, 4, 4), torch.float32)),
        "a hook that watches the norm": (watched, channels_last),
        "a cumulative average, as update_bn takes": (cumulative, channels_last),
        "another norm": (nn.GroupNorm(4, 16), channels_last),
    }


@pytest.mark.parametrize("case", other_cases())
def test_elsewhere_the_plain_modules_run(case, calls):
    norm, x = other_cases()[case]
    wanted = F.relu(copy.deepcopy(norm)(x))
    with FusedKernels():
        found = norm_act(norm, x)
    assert calls.norms == 0
    assert torch.equal(found, wanted)


def test_without_kernels_the_operators_are_those_of_before():
    norm, x, other = make_norm(16), *(drawn((2, 16, 4, 4), torch.float32, seed=seed) for seed in (0, 1))
    wanted = F.relu(copy.deepcopy(norm)(x) + other)
    assert torch.equal(norm_act(norm, x, add=other), wanted)
    assert torch.equal(max_pool2(x), F.max_pool2d(x, 2))


def test_kernels_end_with_their_context_and_belong_to_their_thread(calls):
    from concurrent.futures import ThreadPoolExecutor

    x = drawn((2, 16, 4, 4), torch.float32)
    with FusedKernels(), ThreadPoolExecutor(1) as pool:
        pool.submit(norm_act, make_norm(16), x).result()
    norm_act(make_norm(16), x)
    assert calls.norms == 0


def test_a_sequence_fuses_norms_with_the_activations_after_them(calls):
    def layers():
        torch.manual_seed(0)
        parts = (
            nn.Conv2d(4, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU6(),
            nn.Conv2d(16, 8, 1),
            nn.BatchNorm2d(8),
            nn.Dropout(0),
        )
        return FusableSequential(*parts)

    x, sequence, twin = drawn((2, 4, 6, 6), torch.float32), layers(), layers()
    assert [*sequence.state_dict()] == [*nn.Sequential(*layers()).state_dict()]
    assert count_fusable(sequence) == 2
    sequence.to(memory_format=torch.channels_last)
    with FusedKernels():
        found = sequence(x)
    assert calls.norms == 2
    torch.testing.assert_close(found, twin(x), rtol=1e-4, atol=1e-5)


def test_without_a_compiler_training_goes_on(monkeypatch, tmp_path, forgotten):
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    library, why = open_kernels()
    assert library is None
    assert "this machine has no C++ compiler" in why
    x = drawn((2, 16, 4, 4), torch.float32)
    with FusedKernels():
        assert torch.equal(norm_act(make_norm(16), x), F.relu(make_norm(16)(x)))


@pytest.mark.parametrize(
    ("script", "said"),
    [("echo broken >&2; exit 1", "failed: broken"), ("exit 0", "could not be written or loaded")],
)
def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path, forgotten, script, said):
    compiler = tmp_path / "broken++"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{script}\n')
    compiler.chmod(0o755)
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setenv("CXX", str(compiler))
    library, why = open_kernels()
    assert library is None
    assert said in why
    assert why.count(".") >= 1
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_cache_that_cannot_be_written_is_said(kernels, monkeypatch, tmp_path, forgotten):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path / "cache")
    library, why = open_kernels()
    assert library is None
    assert "could not be written or loaded" in why


def test_a_damaged_library_is_made_again(kernels, monkeypatch, tmp_path, forgotten):
    made = native.library_path(fused_norm.KERNEL_SOURCE)
    monkeypatch.setattr(runtime, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(native, "_compile", lambda _, to: shutil.copy(made, to))
    path = native.library_path(fused_norm.KERNEL_SOURCE)
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    assert open_kernels()[1] == ""
    assert path.read_bytes() == made.read_bytes()


def test_a_cache_of_another_machine_is_not_used(kernels, monkeypatch):
    here = native.library_path(fused_norm.KERNEL_SOURCE)
    monkeypatch.setattr(native, "_processor_facts", lambda: ("another",))
    assert native.library_path(fused_norm.KERNEL_SOURCE) != here
    assert native.library_path(Path(__file__)) != native.library_path(fused_norm.KERNEL_SOURCE)


def test_a_kernel_that_disagrees_is_refused(kernels, monkeypatch, forgotten):
    assert kernel_error(kernels) < 1

    class Wrong(Counting):
        def sightline_norm(self, half, _, *given):
            self.library.sightline_norm(half, 0, *given)  # forgets the activation

    class WrongPool(Counting):
        def sightline_relu_pool(self, half, back, x, grad, out, *given):
            self.library.sightline_relu_pool(half, back, x, x if back else grad, out, *given)

    assert 10 < kernel_error(Wrong(kernels)) < float("inf")
    assert kernel_error(WrongPool(kernels)) == float("inf")
    monkeypatch.setattr(fused_norm, "kernel_error", lambda _: float("nan"))
    library, why = open_kernels()
    assert library is None
    assert "times what is allowed" in why
