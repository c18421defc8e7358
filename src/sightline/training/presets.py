"""Recipes that were measured: the shortest way to a good classifier on well-known data, and on data like them.

Each docstring says what was measured and how, or that it was not yet; benchmarks/presets.py measures it.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from statistics import median
from typing import Literal

from .recipe import Recipe, parse_duration

WIDTH_COSTS = {0.25: 0.13, 0.5: 0.31, 0.75: 0.57, 1.0: 1.0}
"""Width of ``fastcnn`` -> time of a training step as a share of that at full width (``benchmarks/preset_widths.py
--costs``, a Xeon with AVX-512).
"""

MIN_EPOCHS = {0.25: 1, 0.5: 6, 0.75: 8, 1.0: 10}
"""Width of ``fastcnn`` -> epochs without which a narrower network learns more in the same time.

Seed 0 on CIFAR-10, validation images (``benchmarks/presets.py cifar10-fast --budgets 5m 10m --width ...``). In 5
minutes: 85.1 % with a quarter of the width and 16 epochs, 87.0 % with half and 10, 86.5 % with three quarters and 5.
In 10 minutes: 89.5 % with three quarters and 11, 88.8 % with all and 7.
"""

CIFAR10_IMAGES, TRAINING_SHARE = 45_000, 0.85
"""Images that are trained on, and the part of a budget that trains on them."""


def mnist_fast() -> Recipe:
    """Digits and the like in seconds.

    Measured on MNIST, two cores with AVX2 (no bfloat16), seeds 0 to 4: 99.14 % of the test images on the mean
    (95 % interval over seeds 99.11 to 99.16), 0.45 to 1.03 core minutes each (``benchmarks/presets.py
    mnist-fast``).
    """
    return Recipe(model="lenet5", epochs=2, augment=("shift:1",), batch_size=64, lr=0.1)


def mnist_best() -> Recipe:
    """Digits and the like as well as two cores can in some minutes.

    Measured on MNIST, seeds 0 to 4: 99.65 % of the test images on the mean (95 %
    interval over seeds 99.59 to 99.72), 5.1 to 5.7 core minutes each on a processor with AVX2 and no bfloat16
    (``benchmarks/presets.py mnist-best``).
    """
    return Recipe(
        model="fastcnn:widths=(16,32,64):eps=1e-12",
        epochs=12,
        augment=("affine:10:0.1:0.08",),
        batch_size=128,
        lr=0.2,
        label_smoothing=0.1,
        progressive_from=20,
        ema_decay=0.999,
    )


def cifar10_fast() -> Recipe:
    """Small colour photographs in five minutes of the machine at hand, from the command to the report.

    The width of the network is the largest that trains for ``MIN_EPOCHS`` epochs in that time, by a measurement of
    some seconds; epochs fill the time. Measured on CIFAR-10 as JPEG, seed 0: 87.1 % of the test images in 4.4
    minutes of two cores with AVX-512 bfloat16, half the width and 10 epochs
    (``benchmarks/presets.py cifar10-fast --budgets 5m --width 0.5 --seeds 0``).
    """
    return cifar10_within("5m")


def cifar10_best() -> Recipe:
    """Small colour photographs as well as half an hour of the machine at hand can, from the command to the report.

    Width and epochs as in ``cifar10_fast``. Measured on CIFAR-10 as JPEG, seed 0: 90.7 % of the test images in 27.9
    minutes of two cores with AVX-512 bfloat16, the full width and 20 epochs (``benchmarks/presets.py cifar10-best
    --seeds 0``).
    """
    return cifar10_within("30m")


def mnist_robust() -> Recipe:
    """Digits that stay right when every pixel may change by 0.3.

    Measured on MNIST, seed 0: 98.8 % of the test images, 93.9 % under PGD-40 with steps of 0.01, 92.0 % under five
    restarts of it and 90.5 % under APGD, in 8.3 minutes of one thread with AVX2 (``benchmarks/robust_mnist.py``).
    """
    return Recipe(
        normalize="none",
        model="strided-cnn",
        epochs=14,
        augment=(),
        batch_size=128,
        loss="adversarial:0.3:4:step=0.1:warmup_epochs=3",
        optimizer="adam",
        lr=0.005,
        weight_decay=0.0,
        warmup=0.4,
    )


def cifar10_within(budget: str, precision: Literal["float32", "bfloat16"] | None = None) -> Recipe:
    """The recipe of ``cifar10_fast`` and ``cifar10_best`` for any budget, such as "10m".

    ``precision`` "float32" or "bfloat16" is used, and the width is chosen for it; None is the faster one.
    """
    from .build import count_passes  # imports torch, without which the command line lists presets

    recipe = Recipe(
        model="fastcnn:eps=1e-12",
        size=32,
        budget=budget,
        precision=precision,
        augment=("alternating-flip", "shift:2"),
        flip_tta=True,
        batch_size=256,
        lr=0.4,
        bias_lr=16.0,
        momentum=0.85,
        weight_decay=0.0013,
        label_smoothing=0.2,
        schedule="linear",
        progressive_from=20,
    )
    passes = TRAINING_SHARE * parse_duration(budget) * _images_per_second(precision) / CIFAR10_IMAGES
    widths = [
        width for width, cost in WIDTH_COSTS.items() if passes / cost >= count_passes(recipe, MIN_EPOCHS[width])
    ]
    return recipe.replace(model=f"fastcnn:width={max(widths, default=min(WIDTH_COSTS)):g}:eps=1e-12")


@cache
def _images_per_second(precision: str | None) -> float:
    """Rate at which ``fastcnn`` at its full width trains here on 32 x 32 pixels; None is the faster precision."""
    import torch

    from .. import runtime
    from ..models import NETWORKS

    with torch.random.fork_rng(devices=[]):
        network = NETWORKS["fastcnn"].make(10, 3, (32, 32))
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    pixels = torch.zeros(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def step(precision: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            network.logits(pixels).square().mean().backward()

    precisions = [precision] if precision else ["float32"] + ["bfloat16"] * runtime.has_bfloat16()
    trials = {precision: partial(step, precision) for precision in precisions}
    with runtime.keep_freed_memory():
        times = runtime.time_interleaved(trials, 3, seconds=2.0, give_up=1.5)
    return len(pixels) / min(median(each) for each in times.values() if each)


PRESETS: Mapping[str, Callable[[], Recipe]] = {
    "mnist-fast": mnist_fast,
    "mnist-best": mnist_best,
    "cifar10-fast": cifar10_fast,
    "cifar10-best": cifar10_best,
    "mnist-robust": mnist_robust,
}
"""Name -> the recipe; ``sightline train DATA --preset NAME``."""
