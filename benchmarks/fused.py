"""What fused norms, additions and activations give: a training step with the compiled kernels and without.

    python benchmarks/fused.py [--models resnet20 resnet18 fastcnn:width=0.5] [--rounds 5] [--batch 128]

Steps on random images of 32 x 32 pixels (what they show does not matter), forward, backward and update, all ways in
turn in one process, medians over the rounds: plain PyTorch (float32, contiguous), the same in channels_last and, where
the processor multiplies it, bfloat16, and that with the fused kernels. With ``--threads 1`` the time is the
processor's, which hardly changes where other programs share the cores.
"""

import argparse
import copy
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import record

from sightline import runtime
from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.features import embedding_precision
from sightline.layers import open_kernels
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import MEMORY_FORMATS, CrossEntropy, to_memory_format
from sightline.training.gradients import build_gradients
from sightline.types import Geometry

STEPS = 6
"""Timed steps of one way in one round, after two that are not counted."""


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet18", "fastcnn:width=0.5", "fastcnn"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=runtime.cpu_count())
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/fused.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if why := open_kernels()[1]:
        parser.error(why)
    figures: dict[str, Any] = {"threads": asked.threads, "batch": asked.batch}
    for word in asked.models:
        figures[word] = measure(word, asked.rounds, asked.batch)
        print(word, figures[word], flush=True)
    record("fused", figures, asked.out)


def measure(word: str, rounds: int, size: int) -> dict[str, Any]:
    """Images/s of each way, and the ratios of the fused way to the others."""
    classifier = random_classifier(word)
    precision = str(embedding_precision(classifier)).removeprefix("torch.")
    ways = [
        ("float32", "contiguous", False),
        ("float32", "channels_last", False),
        ("float32", "channels_last", True),
    ]
    if precision == "bfloat16":
        ways += [("bfloat16", "channels_last", False), ("bfloat16", "channels_last", True)]
    batch = Batch(
        pixels=torch.rand(size, 3, 32, 32),
        labels=torch.randint(10, (size,)),
        index=torch.arange(size),
        classes=10,
    )
    with runtime.keep_freed_memory():
        rates: dict[Any, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, seen in rates.items():
                seen.append(rate(classifier, batch, *way))
    found = {way: statistics.median(each) for way, each in rates.items()}
    named = {" ".join((*way[:2], "fused" * way[2])).strip(): round(value) for way, value in found.items()}
    best = found[ways[-1]]
    return {
        "images_per_second": named,
        "fused over plain": round(best / found[ways[0]], 2),
        "fused over the same unfused": round(best / found[ways[-2]], 2),
        "fused over unfused, float32": round(found[ways[2]] / found[ways[1]], 2),
    }


def random_classifier(word: str, side: int = 32) -> Classifier:
    """A network with random weights for square colour images, ten classes."""
    torch.manual_seed(0)
    architecture = parse_architecture(word, classes=10, channels=3, size=(side, side))
    return Classifier(
        Preprocessing(), build(architecture), architecture=architecture, classes=tuple(map(str, range(10))),
        geometry=Geometry(size=(side, side), channels=3),
    )  # fmt: skip


def rate(classifier: Classifier, batch: Batch, precision: str, layout: str, fused: bool) -> float:
    """Images/s over ``STEPS``."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    own = to_memory_format(copy.deepcopy(classifier), layout).train()
    batch = replace(batch, pixels=batch.pixels.contiguous(memory_format=MEMORY_FORMATS[layout]))
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01, momentum=0.9, fused=True)
    with build_gradients(own, bfloat16=precision == "bfloat16", fused=fused) as gradients:
        began = now()
        for step in range(STEPS + 2):
            if step == 2:
                began = now()
            gradients(CrossEntropy(), batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return STEPS * len(batch) / (now() - began)


if __name__ == "__main__":
    main()
