"""What each augmentation costs for a batch of 128 RGB images of 32x32, in one process.

    python benchmarks/augmentations.py

Pixels are random and channels_last, as training on a CPU has them. Each figure is the median of nine rounds in
turn; the share is that of a step of ResNet-20 in float32, the forward and backward pass, timed in the same run.
"""

import statistics

import torch
from record import record

from sightline import runtime
from sightline.augmentation import AUGMENTATIONS
from sightline.batches import Batch
from sightline.models import build, parse_architecture

COUNT, SIZE, ROUNDS = 128, 32, 9


def main() -> None:
    """Time every member, and the step, in turn."""
    layout = torch.channels_last
    pixels = torch.rand(COUNT, 3, SIZE, SIZE, generator=runtime.make_generator(0)).contiguous(memory_format=layout)
    batch = Batch(pixels, torch.arange(COUNT) % 10, torch.arange(COUNT), classes=10)
    network = build(parse_architecture("resnet20", classes=10, channels=3, size=(SIZE, SIZE))).to(
        memory_format=layout
    )

    def step() -> None:
        torch.nn.functional.cross_entropy(network(batch.pixels), batch.labels).backward()

    def candidate(make):
        member = make()
        return lambda: member(batch, runtime.make_generator(1))

    candidates = {"step": step} | {name: candidate(make) for name, make in AUGMENTATIONS.items()}
    medians = {
        name: statistics.median(seconds) for name, seconds in runtime.time_interleaved(candidates, ROUNDS).items()
    }
    record(
        "augmentations",
        {
            "step_ms": round(medians["step"] * 1000, 1),
            "members": {
                name: {
                    "ms": round(medians[name] * 1000, 2),
                    "of_a_step": round(medians[name] / medians["step"], 4),
                }
                for name in AUGMENTATIONS
            },
        },
    )


if __name__ == "__main__":
    main()
