"""bfloat16 for answers: labels of float32 whatever the margin, and a trial that refuses what is slower or differs."""

import os
import subprocess
import sys
import threading
import time
from math import inf

import numpy as np
import pytest
import torch
from torch import nn

from sightline import runtime
from sightline.mixed_precision import MAX_CONFIDENCE_ERROR, MIN_MARGIN, MixedPrecision, make_answer


@pytest.fixture(scope="module")
def network():
    """An untrained network whose answers are spread over its classes, many of them close calls."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 3)
    ).requires_grad_(requires_grad=False)
    outputs = layers(torch.rand(64, 3, 12, 12, generator=torch.Generator().manual_seed(1)))
    layers[-1].weight *= 2 / outputs.std(0)[:, None]
    layers[-1].bias -= layers(torch.rand(64, 3, 12, 12)).mean(0)
    return lambda pixels: torch.softmax(layers(pixels).float(), 1)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(300, 3, 12, 12, generator=torch.Generator().manual_seed(2))


def decided(margin, threshold=0.0):
    mixed = MixedPrecision(threshold)
    mixed.margin = margin
    return mixed


def test_close_calls_are_those_of_float32_and_the_others_of_bfloat16(network, pixels):
    exact = network(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(pixels)
    error = float((exact - rounded).abs().max())
    found = decided(4 * error)(network, pixels)
    gaps = rounded.topk(2).values
    close = gaps[:, 0] - gaps[:, 1] < 4 * error
    assert 0 < int(close.sum()) < len(pixels)
    assert torch.equal(found[~close], rounded[~close])
    assert torch.allclose(found[close], exact[close], atol=1e-6)
    assert torch.equal(found.argmax(1), exact.argmax(1))
    assert not torch.equal(rounded.argmax(1), exact.argmax(1))  # else close calls would not matter


def test_abstentions_are_those_of_float32(network, pixels):
    exact = network(pixels).max(1).values
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(pixels).max(1).values
    error, between = (exact - rounded).abs().max(), (exact - rounded).abs().argmax()
    threshold = float((exact[between] + rounded[between]) / 2)  # on the other side for one of them
    found = decided(4 * float(error), threshold)(network, pixels).max(1).values
    assert torch.equal(found < threshold, exact < threshold)
    assert not torch.equal(rounded < threshold, exact < threshold)


def test_all_images_may_be_close_calls(network, pixels):
    assert torch.allclose(decided(2.0)(network, pixels), network(pixels), atol=1e-6)


def timed(network, *, slow, change=0.0):
    """The network, slow in one precision, and other by ``change`` in bfloat16."""

    def probabilities(pixels):
        reduced = torch.is_autocast_enabled("cpu")
        if slow == ("bfloat16" if reduced else "float32"):
            time.sleep(0.02)
        with torch.autocast("cpu", enabled=False):
            return network(pixels) + (change if reduced else 0)

    return probabilities


@pytest.mark.parametrize(
    ("slow", "change", "margin"),
    [
        ("float32", 0.0, MIN_MARGIN),
        ("float32", 0.9 * MAX_CONFIDENCE_ERROR, 3.6 * MAX_CONFIDENCE_ERROR),
        ("float32", 1.1 * MAX_CONFIDENCE_ERROR, inf),
        ("float32", float("nan"), inf),
        ("bfloat16", 0.0, inf),
    ],
)
def test_the_trial_takes_bfloat16_where_it_is_faster_and_agrees(network, pixels, capsys, slow, change, margin):
    mixed, probabilities = MixedPrecision(), timed(network, slow=slow, change=change)
    assert torch.equal(mixed(probabilities, pixels[:32]), network(pixels[:32]))
    assert mixed.margin == pytest.approx(margin)
    assert ("bfloat16" in capsys.readouterr().err) == (margin < inf)
    after = mixed(probabilities, pixels[:32])
    assert torch.equal(after.argmax(1), network(pixels[:32]).argmax(1))


def test_threads_wait_for_one_trial(network, pixels):
    mixed, calls = MixedPrecision(), []

    def probabilities(some):
        calls.append((threading.get_ident(), len(some)))
        time.sleep(0.01)
        return network(some)

    threads = [threading.Thread(target=mixed, args=(probabilities, pixels[:32])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({thread for thread, images in calls if images == 32 // 4}) == 1  # the trial has a quarter of them


def test_an_answer_takes_bytes_and_gives_probabilities(network):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), np.uint8)
    wanted = network(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    for mixed in (None, MixedPrecision()):
        found = make_answer(network, torch.device("cpu"), mixed)(images)
        assert np.allclose(found, wanted, atol=1e-6)


def test_a_processor_without_bfloat16_is_not_asked_for_it():
    flags = torch.cpu.get_capabilities()
    if flags.get("architecture") == "x86_64" and not (flags.get("avx512_bf16") or flags.get("amx_bf16")):
        assert not runtime.has_bfloat16()
    assert not runtime.has_bfloat16("mps")


def test_a_processor_that_lies_about_bfloat16_is_found_out():
    flags = torch.cpu.get_capabilities()
    if flags.get("architecture") != "x86_64" or not (flags.get("avx512_bf16") or flags.get("amx_bf16")):
        pytest.skip("this processor does not say that it multiplies bfloat16")
    code = "from sightline import runtime; print(runtime.has_bfloat16(), runtime.has_bfloat16())"
    withheld = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # oneDNN then emulates bfloat16, as if there were none
    found = subprocess.run([sys.executable, "-c", code], env=withheld, capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
    assert found.stderr.count("This processor says that it multiplies bfloat16, but") == 1
