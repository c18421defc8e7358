"""What keeping freed memory for the next step is worth: training images/s with and without it, in turn.

    python benchmarks/memory.py [--rounds 5]

Steps on random images, each run a process of its own, the two sides in turn, medians and their ratio.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

CASES = {"lenet5": (1, 28), "resnet20": (3, 32)}
SECONDS = 6
BATCH = 128


def main() -> None:
    """Take turns and record the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        print(json.dumps(rate(*asked.worker)))
        return
    from record import record

    found = {}
    for net in CASES:
        rates: dict[str, list[float]] = {"given back": [], "kept": []}
        for _ in range(asked.rounds):
            for side, values in rates.items():
                words = [sys.executable, __file__, "--worker", net, side]
                values.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout))
        medians = {side: statistics.median(values) for side, values in rates.items()}
        found[net] = {"images_per_second": rates, "ratio": medians["kept"] / medians["given back"]}
    record("memory", found)


def rate(net: str, side: str) -> float:
    """Images/s of training steps with all threads."""
    import torch
    from torch.nn import functional as F

    from sightline import runtime
    from sightline.models import build, parse_architecture

    channels, size = CASES[net]
    network = build(parse_architecture(net, classes=10, channels=channels, size=(size, size)))
    network = network.to(memory_format=torch.channels_last).train()
    moves = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    images = torch.rand(BATCH, channels, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))

    def step() -> None:
        F.cross_entropy(network(images), labels).backward()
        moves.step()
        moves.zero_grad()

    with runtime.keep_freed_memory() if side == "kept" else nullcontext():
        for _ in range(3):
            step()
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            step()
            count += 1
        return count * BATCH / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
