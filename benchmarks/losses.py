"""What a loss adds to a training step: each of them against cross-entropy, in turn, in one run.

    python benchmarks/losses.py [--rounds 200]

The losses alone, forward and backward from given logits, batch 128 and 10 classes; and as a share of a ResNet-20
step on 32 x 32 images of the same batch. Medians.
"""

import argparse
from statistics import median

import torch
from record import record

from sightline import runtime
from sightline.models import build, parse_architecture
from sightline.training import OBJECTIVES

BATCH, CLASSES = 128, 10

PLAIN = [name for name, make in OBJECTIVES.items() if make().on_logits]
"""Losses of logits alone; what robust ones cost is in benchmarks/robust_mnist.py."""


def main() -> None:
    """Time, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    asked = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, generator=generator).requires_grad_()
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)

    def alone(name: str):
        objective = OBJECTIVES[name]()
        return lambda: objective.of(logits, labels).backward()

    times = runtime.time_interleaved({name: alone(name) for name in PLAIN}, asked.rounds)
    step = median(runtime.time_interleaved({"step": network_step(labels)}, 15)["step"])
    usual = median(times["cross-entropy"])
    added = {name: median(found) - usual for name, found in times.items()}
    record(
        "losses",
        {
            "milliseconds": {name: round(1e3 * median(found), 4) for name, found in times.items()},
            "added_milliseconds": {name: round(1e3 * more, 4) for name, more in added.items()},
            "resnet20_step_milliseconds": round(1e3 * step, 2),
            "added_share_of_resnet20_step": {name: round(more / step, 5) for name, more in added.items()},
        },
    )


def network_step(labels: torch.Tensor):
    """Forward and backward of ResNet-20 with cross-entropy."""
    network = build(parse_architecture("resnet20", classes=CLASSES, channels=3, size=(32, 32)))
    network = network.to(memory_format=torch.channels_last)
    images = torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    objective = OBJECTIVES["cross-entropy"]()
    return lambda: objective.of(network(images), labels).backward()


if __name__ == "__main__":
    main()
