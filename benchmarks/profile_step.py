"""Where the time of a training step goes: shares by kind of operator, and the share of the machine's limit.

    python benchmarks/profile_step.py [--models lenet5 resnet20 ...] [--precision float32] [--fused] [--threads 1]

Steps on random images, in channels_last, with ``torch.profiler``: self time of each operator, summed by kind. The
limit is the rate of a matrix product of 1024 x 1024 in the same precision, measured in turn; the share is of three
times the operations of the forward pass. Loading and augmentation are not in a step (``benchmarks/loader.py``: 0.3 % of
one of ResNet-20). Precision by default: bfloat16 where the processor multiplies it.
"""

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fused import random_classifier
from record import record
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sightline import runtime
from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.features import embedding_precision
from sightline.training import CrossEntropy, to_memory_format
from sightline.training.gradients import build_gradients

CASES = {
    "lenet5": (128, 32),
    "resnet20": (128, 32),
    "resnet18": (64, 32),
    "fastcnn:width=0.5": (128, 32),
    "timm:tf_efficientnet_lite0": (16, 224),
}
"""Network -> images of a batch, and their side in pixels."""

KINDS = {
    "convolution, backward": ("convolution_backward", "DepthwiseConvolutionBackward"),
    "convolution": ("conv", "DepthwiseConvolution"),
    "norm, addition and activation, fused": ("_NormAct",),
    "norm": ("batch_norm",),
    "activation": ("relu", "gelu", "silu", "threshold_backward", "clamp", "hardtanh"),
    "addition": ("aten::add", "aten::sum", "AccumulateGrad"),
    "pooling": ("pool", "MaxPool", "aten::mean"),
    "linear layers and loss": ("mm", "linear", "loss", "softmax"),
    "optimiser": ("sgd", "_foreach", "Optimizer"),
    "casts, copies and fills": ("copy", "to", "fill", "zero", "empty", "contiguous", "clone", "pad", "slice"),
}
"""Kind -> what the name of its operators contains; the first that fits counts."""

STEPS = 3


def main() -> None:
    """Profile each network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CASES))
    parser.add_argument("--precision", choices=("float32", "bfloat16"))
    parser.add_argument("--fused", action="store_true")
    parser.add_argument("--threads", type=int, default=runtime.cpu_count())
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/profile_step.json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    figures: dict[str, Any] = {"threads": asked.threads}
    for word in asked.models:
        size, side = CASES.get(word, (128, 32))
        classifier = random_classifier(word, side)
        precision = asked.precision or str(embedding_precision(classifier)).removeprefix("torch.")
        figures[f"{word}, {precision}{', fused' * asked.fused}"] = found = measure(
            classifier, size, precision, asked.fused
        )
        print(word, precision, found, flush=True)
    record("profile_step", figures, asked.out)


def measure(classifier: Classifier, size: int, precision: str, fused: bool) -> dict[str, Any]:
    """Images/s, the share of the machine's limit, and shares of a step's time by kind, in percent."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    own = to_memory_format(classifier, "channels_last").train()
    side = classifier.geometry.size
    batch = Batch(torch.rand(size, 3, *side), torch.randint(10, (size,)), torch.arange(size), classes=10)
    batch = replace(batch, pixels=batch.pixels.contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(own.parameters(), lr=0.001, momentum=0.9, fused=True)
    with (
        build_gradients(own, bfloat16=precision == "bfloat16", fused=fused) as gradients,
        runtime.keep_freed_memory(),
    ):

        def step() -> None:
            gradients(CrossEntropy(), batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        with FlopCounterMode(display=False) as counter:
            own.eval()(batch.pixels[:1])  # forward alone: torch miscounts the gradient of grouped convolutions
        own.train()
        step()
        began = now()
        for _ in range(STEPS):
            step()
        rate = STEPS * size / (now() - began)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            step()
            step()
    times: Counter[str] = Counter()
    for event in profiler.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(times.values())
    limit = product_rate(precision)
    return {
        "images_per_second": round(rate, 1),
        "product_gflops": round(limit / 1e9),
        "percent_of_limit": round(100 * 3 * counter.get_total_flops() * rate / limit, 1),
        "percent_of_time": {kind: round(100 * spent / total, 1) for kind, spent in times.most_common()},
    }


def kind_of(operator: str) -> str:
    """The kind that an operator's time counts for."""
    return next(
        (kind for kind, words in KINDS.items() if any(word in operator for word in words)), "Python and other"
    )


def product_rate(precision: str) -> float:
    """FLOP/s of a matrix product."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    a = torch.randn(1024, 1024, dtype=getattr(torch, precision))
    took = []
    for _ in range(4):
        began = now()
        a @ a
        took.append(now() - began)
    return 2 * 1024**3 / min(took)


if __name__ == "__main__":
    main()
