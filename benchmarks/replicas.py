"""Whether replicas pay: one network on all threads against one replica for each thread, images/s of training.

    python benchmarks/replicas.py [--models lenet5 resnet20 fastcnn] [--rounds 5]

Steps of a batch of 128 images of 32 x 32 pixels (random: what they show does not matter), forward, backward and
update, in channels_last, both ways in turn in one process, medians over the rounds; in float32 and, where the processor
multiplies it, bfloat16.
"""

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from record import record

from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.features import embedding_precision
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import MEMORY_FORMATS, CrossEntropy, to_memory_format
from sightline.training.gradients import build_gradients
from sightline.types import Geometry

BATCH, STEPS = 128, 12


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet5", "resnet20", "fastcnn"])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "batch": BATCH}
    for word in asked.models:
        figures[word] = measure(word, asked.rounds)
    record("replicas", figures)


def measure(word: str, rounds: int) -> dict[str, dict[str, float]]:
    """Images/s of both ways in each precision, and their ratio."""
    torch.manual_seed(0)
    architecture = parse_architecture(word, classes=10, channels=3, size=(32, 32))
    classes = tuple(map(str, range(10)))
    classifier = Classifier(
        Preprocessing(), build(architecture), architecture=architecture, classes=classes,
        geometry=Geometry(size=(32, 32), channels=3),
    )  # fmt: skip
    batch = Batch(
        pixels=torch.rand(BATCH, 3, 32, 32).contiguous(memory_format=MEMORY_FORMATS["channels_last"]),
        labels=torch.randint(10, (BATCH,)),
        index=torch.arange(BATCH),
        classes=10,
    )
    found = {}
    for precision in dict.fromkeys((torch.float32, embedding_precision(classifier))):
        rates: dict[int, list[float]] = {1: [], torch.get_num_threads(): []}
        for _ in range(rounds):
            for replicas, seen in rates.items():
                seen.append(rate(classifier, batch, replicas, bfloat16=precision is torch.bfloat16))
        one, several = (statistics.median(each) for each in rates.values())
        name = str(precision).removeprefix("torch.")
        found[name] = {"one network": round(one), "replicas": round(several), "ratio": round(several / one, 3)}
        print(word, name, found[name], flush=True)
    return found


def rate(classifier: Classifier, batch: Batch, replicas: int, *, bfloat16: bool) -> float:
    """Images/s of ``STEPS`` steps after two that are not counted."""
    own = to_memory_format(copy.deepcopy(classifier), "channels_last").train()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.01, momentum=0.9)
    began = time.perf_counter()
    with build_gradients(own, bfloat16=bfloat16, pieces=1, replicas=replicas) as gradients:
        for step in range(STEPS + 2):
            if step == 2:
                began = time.perf_counter()
            gradients(CrossEntropy(), batch)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return STEPS * BATCH / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
