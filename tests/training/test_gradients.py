"""A batch whole, in pieces and shared by replicas: the same gradient."""

import copy

import pytest
import torch

from sightline.training import build_classifier, build_method, prepare, resolve
from sightline.training.gradients import (
    FastDepthwise,
    Replicas,
    SingleReplica,
    build_gradients,
    is_stochastic,
    split_batch,
)
from sightline.training.losses import CrossEntropy
from sightline.training.recipe import Recipe


def made(model, **changes):
    """A classifier in training and one batch for it."""
    recipe = Recipe(
        data="digits", model=model, size=16, limit=300, batch_size=48, epochs=1, lr=0.1, augment=(), **changes
    )
    plan, splits, _ = prepare(resolve(recipe))
    classifier, _ = build_classifier(plan, splits, torch.device("cpu"))
    method = build_method(plan, splits, torch.device("cpu"))
    return classifier.train(), next(iter(method.batches(0, 0)))


def grads(classifier):
    return {name: p.grad.clone() for name, p in classifier.named_parameters()}


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("way", ["pieces", "replicas"])
def test_parts_give_the_gradient_of_the_whole(way, count):
    classifier, batch = made("mlp")
    whole, parted = copy.deepcopy(classifier), copy.deepcopy(classifier)
    loss = SingleReplica(whole)(CrossEntropy(), batch)
    with build_gradients(parted, **{way: count}) as work:
        other = work(CrossEntropy(), batch)
    assert other.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, grad in grads(whole).items():
        torch.testing.assert_close(grads(parted)[name], grad, rtol=1e-4, atol=1e-6, msg=name)


def test_replicas_are_two_halves_worked_apart():
    """With batch norm: each half by itself, in plain torch, gradients and statistics averaged."""
    classifier, batch = made("resnet20")
    halves = [copy.deepcopy(classifier) for _ in range(2)]
    for half, share in zip(halves, split_batch(batch, 2), strict=True):
        CrossEntropy()(half, share).backward()
    with Replicas(classifier, 2) as work:
        work(CrossEntropy(), batch)
    for name, grad in grads(classifier).items():
        mean = (grads(halves[0])[name] + grads(halves[1])[name]) / 2
        torch.testing.assert_close(grad, mean, rtol=1e-4, atol=1e-6, msg=name)
    first, second = (dict(half.named_buffers()) for half in halves)
    for name, buffer in classifier.named_buffers():
        if buffer.is_floating_point():
            torch.testing.assert_close(buffer, (first[name] + second[name]) / 2, msg=name)


def test_replicas_share_weights_and_repeat():
    classifier, batch = made("resnet20")
    twin = copy.deepcopy(classifier)
    for one in (classifier, twin):
        moves = torch.optim.SGD(one.parameters(), lr=0.1)
        with Replicas(one, 2) as work:
            for _ in range(3):
                work(CrossEntropy(), batch)
                moves.step()
                moves.zero_grad()
            for own, first in zip(work.copies[1].parameters(), one.parameters(), strict=True):
                assert own.data_ptr() == first.data_ptr()
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name]), name


def test_replicas_leave_the_threads_as_they_were():
    classifier, batch = made("mlp")
    before = torch.get_num_threads()
    with Replicas(classifier, 2) as work:
        work(CrossEntropy(), batch)
        assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError):
        work(CrossEntropy(), batch)  # its threads have ended


@pytest.mark.parametrize("threads", [2, 3])
def test_each_replica_has_one_thread(threads):
    """Before and after an operator that is worth splitting: torch sets a thread's number at its first one."""
    classifier, batch = made("mlp")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with Replicas(classifier, 2) as work:
            for _ in range(2):
                assert [pool.submit(torch.get_num_threads).result() for pool in work.pools] == [1, 1]
                [pool.submit(torch.rand(600, 600).matmul, torch.rand(600, 600)).result() for pool in work.pools]
                work(CrossEntropy(), batch)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_networks_that_draw_are_known():
    assert not is_stochastic(made("mlp")[0])
    assert is_stochastic(made("mlp", dropout=0.2)[0])


def test_the_last_images_are_not_lost():
    _, batch = made("mlp")
    assert sum(len(piece) for piece in split_batch(batch, 7)) == len(batch)
    assert torch.equal(torch.cat([piece.index for piece in split_batch(batch, 7)]), batch.index)
    assert len(split_batch(batch, 1000)) == len(batch)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"),
    [(3, 1, 1, (9, 9)), (5, 2, 2, (11, 11)), (3, 2, 0, (10, 10)), (5, 2, (2, 1), (12, 9)), (1, 1, 1, (6, 6))],
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_fast_gradient_of_depthwise_convolutions_is_torchs(kernel, stride, padding, size, bias):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(8, 8, kernel, stride, padding, groups=8, bias=bias)
    pixels = torch.randn(4, 8, *size, requires_grad=True)
    wanted = layer(pixels)
    weights = torch.randn_like(wanted)
    inputs = [pixels, *layer.parameters()]
    exact = torch.autograd.grad((wanted * weights).sum(), inputs)
    with torch.autocast("cpu", torch.bfloat16), FastDepthwise():
        made = layer(pixels)
    fast = torch.autograd.grad((made.float() * weights).sum(), inputs)
    for one, other in zip((made.float(), *fast), (wanted, *exact), strict=True):
        assert (one - other).norm() < 0.01 * other.norm()
