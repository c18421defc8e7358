"""Waiting and memory: `--help`, the demo, the second start on MNIST, and the memory of training on CIFAR-10.

    python benchmarks/startup.py [FOLDER_OF_ZIPS] [--rounds 5]

Second start: from the command line's first instruction to the first training step, the store built before; in turn
with a process that only imports torch, the least it can take.
Memory: peak resident set of a process that trains ResNet-20 on all of CIFAR-10 for a hundred steps.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record, shared

FIRST_STEP = """
import sys, time
from sightline.training import hooks
from sightline import runtime
STEPS = int(sys.argv[1])
def stop(self, state):
    if state.step == 1:
        print("FIRST", time.time(), flush=True)
    if state.step == STEPS:
        print("PEAK", runtime.peak_memory_mb(), flush=True)
        state.interrupted = True
hooks.ProgressReporter.after_step = stop
from sightline.cli import main
main(sys.argv[2:])
"""


def main() -> None:
    """Measure each, several times, and keep the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    folder = shared(asked.data)
    script = Path(sys.executable).with_name("sightline")
    helps = [seconds([str(script), "--help"]) for _ in range(asked.rounds)]
    with tempfile.TemporaryDirectory() as place:
        demos = [seconds([str(script), "demo", "--out", f"{place}/{number}"]) for number in range(3)]
    mnist = ["train", str(folder / "mnist_png.zip"), "--epochs", "3"]
    first_step(mnist, 2)  # builds the store
    bare = [sys.executable, "-c", "import torch"]
    pairs = [(seconds(bare), first_step(mnist, 2)["seconds"]) for _ in range(asked.rounds)]
    torch, starts = zip(*pairs, strict=True)
    cifar = ["train", str(folder / "cifar10_jpg.zip"), "--model", "resnet20", "--epochs", "1"]
    peak = first_step(cifar, 100)["peak_mb"]
    record(
        "startup",
        {
            "help_seconds": {"median": statistics.median(helps), "all": helps},
            "demo_seconds": {"median": statistics.median(demos), "all": demos},
            "import_torch_seconds": {"median": statistics.median(torch), "all": torch},
            "second_start_seconds": {"median": statistics.median(starts), "all": starts},
            "cifar10_training_peak_mb": peak,
        },
    )


def seconds(words: list[str]) -> float:
    """Wall time of a command."""
    started = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    return round(time.perf_counter() - started, 3)


def first_step(words: list[str], steps: int) -> dict[str, float]:
    """Start the command line, watch for its first step, stop it after ``steps``."""
    with tempfile.TemporaryDirectory() as place:
        started = time.time()
        command = [sys.executable, "-c", FIRST_STEP, str(steps), *words, "--out", str(Path(place) / "run")]
        said = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ).stdout
    facts = dict(line.split() for line in said.splitlines() if line.startswith(("FIRST", "PEAK")))
    return {"seconds": round(float(facts["FIRST"]) - started, 3), "peak_mb": float(facts["PEAK"])}


if __name__ == "__main__":
    main()
