"""Statistics of batch norms in another world: torch's own batch norm is the oracle."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from helpers.pruned_classifiers import images, make
from sightline.adaptation import ADAPTERS, parse_adapter
from sightline.adaptation.batch_norm import AdaBN, Interpolate, Tent, check_mixed, mean_entropy
from sightline.data import to_tensor
from sightline.errors import ChoiceError, DataError

TARGET = images(120, seed=5)


@pytest.fixture(scope="module")
def source():
    drawn = make("small-cnn")
    with torch.no_grad():  # its answers are of all classes
        drawn.network.head.bias -= drawn(to_tensor(TARGET[:])).mean(0)
    return drawn


def norms(classifier):
    return [m for m in classifier.modules() if isinstance(m, nn.BatchNorm2d)]


def statistics(classifier):
    return [value for norm in norms(classifier) for value in (norm.running_mean, norm.running_var)]


def test_adabn_takes_the_statistics_that_torch_takes(source):
    expected = copy.deepcopy(source)
    for norm in norms(expected):
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        expected(to_tensor(TARGET[:]))
    for mine, theirs in zip(statistics(AdaBN()(source, TARGET)), statistics(expected), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_order_of_the_images_does_not_matter(source):
    mixed = TARGET.subset(np.random.default_rng(0).permutation(len(TARGET)))
    for mine, theirs in zip(statistics(AdaBN()(source, TARGET)), statistics(AdaBN()(source, mixed)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_interpolation_lies_between_source_and_target(source):
    target = statistics(AdaBN()(source, TARGET))
    for share, adapter in (
        (0.0, Interpolate(0.0)),
        (1.0, Interpolate(1.0)),
        (0.3, Interpolate(0.3)),
        (0.5, Interpolate()),
    ):
        for mine, one, other in zip(
            statistics(adapter(source, TARGET)), statistics(source), target, strict=True
        ):  # fmt: skip
            torch.testing.assert_close(mine, torch.lerp(one, other, share))


def test_the_default_share_grows_with_the_images_up_to_a_half():
    assert [Interpolate().target_share(n) for n in (10, 20, 50, 100, 10_000)] == pytest.approx(
        [1 / 6, 2 / 7, 0.5, 0.5, 0.5]
    )


@pytest.mark.parametrize("word", ["interpolate", "adabn", "tent:batch_size=60"])
def test_no_label_is_read_and_the_source_stays(word, source):
    before = copy.deepcopy(source.state_dict())
    noise = replace(TARGET, labels=np.random.default_rng(1).integers(0, 4, len(TARGET)))
    one, other = parse_adapter(word)(source, TARGET).state_dict(), parse_adapter(word)(source, noise).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(torch.equal(before[name], value) for name, value in source.state_dict().items())
    changed = {name.rpartition(".")[2] for name in one if not torch.equal(one[name], before[name])}
    allowed = {"running_mean", "running_var", "num_batches_tracked"}
    assert (
        {"running_mean", "running_var"} <= changed <= allowed | ({"weight", "bias"} if "tent" in word else set())
    )


@pytest.mark.parametrize("word", ADAPTERS)
def test_networks_without_batch_norm_are_refused_by_name(word):
    with pytest.raises(DataError, match=r"lenet5 has no batch norm.*sightline learn"):
        parse_adapter(word)(make("lenet5", side=28), images(300, side=28))


def test_too_few_images_are_refused(source):
    with pytest.raises(DataError, match="9 unlabelled images are too few"):
        Interpolate()(source, images(9))
    with pytest.raises(DataError, match="whole batch of 200 target images, but there are 120"):
        Tent()(source, TARGET)
    with pytest.raises(ValueError, match="batch_size"):
        Tent(batch_size=49)
    with pytest.raises(ChoiceError, match="Did you mean 'adabn'"):
        parse_adapter("adabm")


def test_tent_takes_the_step_that_torch_takes(source):
    pixels = to_tensor(TARGET[:])
    expected = copy.deepcopy(source)
    learnt = []
    for norm in norms(expected):
        norm.train()
        learnt += [norm.weight, norm.bias]
    optimizer = torch.optim.Adam(learnt, lr=0.01)
    wanted = []
    for batch in (pixels[:60], pixels[60:]):
        answers = expected(batch)
        wanted.append(answers.detach())
        optimizer.zero_grad()
        torch.distributions.Categorical(logits=answers).entropy().mean().backward()
        optimizer.step()
    adapted = copy.deepcopy(source)
    found = list(Tent(lr=0.01, batch_size=60).stream(adapted, (pixels[:60], pixels[60:])))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[1], wanted[0])
    fixed = {name for name, _ in source.named_parameters()} - {
        name for name, module in source.named_modules() if isinstance(module, nn.BatchNorm2d)
        for name in (f"{name}.weight", f"{name}.bias")
    }  # fmt: skip
    assert fixed
    assert all(torch.equal(source.state_dict()[name], adapted.state_dict()[name]) for name in fixed)
    assert all(p.requires_grad for p in adapted.parameters())


def test_answers_of_one_class_are_refused():
    mixed = torch.eye(4).repeat(25, 1)
    check_mixed(mixed, 1)
    one = torch.zeros(100, 4)
    one[:, 2] = 1
    with pytest.raises(DataError, match=r"100% of the answers to batch 3 are one class.*mix the images"):
        check_mixed(one, 3)


def test_entropy_is_that_of_torch():
    logits = torch.randn(7, 5)
    torch.testing.assert_close(
        mean_entropy(logits), torch.distributions.Categorical(logits=logits).entropy().mean()
    )
