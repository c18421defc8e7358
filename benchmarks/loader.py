"""What loading and augmenting a batch costs beside a training step of ResNet-20 on CIFAR-10, in one process.

    python benchmarks/loader.py [FOLDER_OF_ZIPS]

Batches of 128 with flip and shift:4, prepared as training does; each figure is the median of five rounds in turn.
"""

import statistics
import sys
import time
from itertools import islice

import torch
from record import record, shared

from sightline.training import Recipe, build_classifier, build_method, prepare, resolve, to_memory_format

BATCHES, STEPS, ROUNDS = 60, 4, 5


def main() -> None:
    """Time the batches alone, then the steps alone, in turn."""
    data = shared(sys.argv[1] if len(sys.argv) > 1 else None) / "cifar10_jpg.zip"
    plan, splits, _ = prepare(resolve(Recipe(data=str(data), model="resnet20", memory_format="channels_last")))
    classifier = to_memory_format(build_classifier(plan, splits, torch.device("cpu"))[0], "channels_last").train()
    method = build_method(plan, splits, torch.device("cpu"))
    moves = plan.build_optimizer(classifier)
    batch = next(iter(method.batches(0, 0)))
    loading, stepping = [], []
    for number in range(ROUNDS + 1):  # the first round warms up
        started = time.perf_counter()
        for _ in islice(method.batches(number, 0), BATCHES):
            pass
        loading.append((time.perf_counter() - started) / BATCHES)
        started = time.perf_counter()
        for _ in range(STEPS):
            method.objective(classifier, batch).backward()
            moves.step()
            moves.zero_grad()
        stepping.append((time.perf_counter() - started) / STEPS)
    load, step = statistics.median(loading[1:]), statistics.median(stepping[1:])
    record(
        "loader",
        {
            "loading_and_augmenting_ms": round(load * 1000, 3),
            "step_ms": round(step * 1000, 1),
            "share_of_a_step": round(load / step, 4),
        },
    )


if __name__ == "__main__":
    main()
