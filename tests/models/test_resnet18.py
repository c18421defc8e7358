"""ResNet-18 against a plain re-reading of its publication, with torchvision's names."""

import pytest
import torch
from torch.nn import functional as F

from sightline.models import build, load_weights, parse_architecture

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def published_names():
    """The names of torchvision's ``resnet18().state_dict()``, in its order."""
    names = ["conv1.weight", *(f"bn1.{part}" for part in NORM)]
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at = f"layer{stage}.{block}"
            for i in (1, 2):
                names += [f"{at}.conv{i}.weight", *(f"{at}.bn{i}.{part}" for part in NORM)]
            if stage > 1 and block == 0:
                names += [f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{part}" for part in NORM)]
    return [*names, "fc.weight", "fc.bias"]


def reference(t, x, large):
    """ResNet-18 in eval mode, from its tensors: 3x3 everywhere, or 7x7 with a 3x3 pool first."""

    def normed(x, name):
        weight, bias, mean, var = (t[f"{name}.{part}"] for part in NORM[:4])
        shape = (1, -1, 1, 1)
        scaled = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
        return scaled * weight.view(shape) + bias.view(shape)

    x = F.conv2d(x, t["conv1.weight"], stride=2 if large else 1, padding=3 if large else 1)
    x = normed(x, "bn1").relu()
    x = F.max_pool2d(x, 3, 2, 1) if large else x
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normed(F.conv2d(x, t[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1").relu()
            y = normed(F.conv2d(y, t[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if stride == 2:
                x = normed(F.conv2d(x, t[f"{at}.downsample.0.weight"], stride=2), f"{at}.downsample.1")
            x = (x + y).relu()
    return x.mean((2, 3)) @ t["fc.weight"].T + t["fc.bias"]


@pytest.mark.parametrize(("side", "classes"), [(32, 10), (96, 20)])
def test_a_file_with_the_names_of_torchvision_gives_the_published_answers(side, classes, tmp_path):
    network = build(parse_architecture("resnet18", classes=classes, channels=3, size=(side, side))).eval()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: value.clone() for name, value in zip(published_names(), network.state_dict().values(), strict=True)
    }
    for value in tensors.values():
        if value.ndim == 1:  # norms and the bias: away from 0 and 1, so that each one counts
            value.add_(torch.rand(value.shape, generator=generator), alpha=0.2)
    torch.save(tensors, tmp_path / "resnet18.pth")
    report = load_weights(network, tmp_path / "resnet18.pth")
    assert report.initial == report.ignored == ()
    pixels = torch.randn(2, 3, side, side, generator=generator)
    with torch.no_grad():
        expected = reference({n: v.double() for n, v in tensors.items()}, pixels.double(), side == 96)
        ours = network(pixels)
    assert torch.allclose(ours.double(), expected, atol=1e-4 * expected.abs().max().item())


def test_a_head_without_bias_may_be_initialised(tmp_path):
    """What the file's other classes leave untouched names only tensors the network has."""
    five, seven = (
        build(parse_architecture("fastcnn:width=0.1", classes=n, channels=3, size=(16, 16))) for n in (5, 7)
    )
    torch.save(five.state_dict(), tmp_path / "five.pth")
    report = load_weights(seven, tmp_path / "five.pth")
    assert report.initial == ("head.weight",)
    assert torch.equal(seven.groups[2].conv2.weight, five.groups[2].conv2.weight)
