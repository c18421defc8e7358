"""Recipes that were measured: the shortest way to a good classifier on well-known data, and on data like them.

Each docstring says what was measured and how, or that it was not yet; benchmarks/presets.py measures it.
"""

from collections.abc import Callable, Mapping

from .recipe import Recipe


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
    """Small colour photographs in minutes.

    Measured on CIFAR-10 as JPEG, seed 0: 84.3 % of the test images in 7.0 minutes on two cores with AVX2 and no
    bfloat16, 12.8 core minutes (``benchmarks/presets.py cifar10-fast --seeds 0``).
    """
    return _cifar10(epochs=5)


def cifar10_best() -> Recipe:
    """Small colour photographs as well as half an hour of one core can.

    Measured on CIFAR-10 as JPEG, seed 0: 87.2 % of the test images in 15.6 minutes on two cores with AVX2 and no
    bfloat16, 26.2 core minutes (``benchmarks/presets.py cifar10-best --seeds 0``).
    """
    return _cifar10(epochs=11)


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


def _cifar10(epochs: int) -> Recipe:
    return Recipe(
        model="fastcnn:width=0.5:eps=1e-12",
        epochs=epochs,
        augment=("alternating-flip", "shift:2"),
        flip_tta=True,
        batch_size=256,
        lr=0.4,
        momentum=0.85,
        weight_decay=0.0013,
        label_smoothing=0.2,
        schedule="linear",
        progressive_from=20,
    )


PRESETS: Mapping[str, Callable[[], Recipe]] = {
    "mnist-fast": mnist_fast,
    "mnist-best": mnist_best,
    "cifar10-fast": cifar10_fast,
    "cifar10-best": cifar10_best,
    "mnist-robust": mnist_robust,
}
"""Name -> the recipe; ``sightline train DATA --preset NAME``."""
