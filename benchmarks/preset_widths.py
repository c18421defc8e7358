"""Which width of ``fastcnn`` to train on CIFAR-10 in a given time: validation accuracy of networks of equal cost.

    python benchmarks/preset_widths.py [0.25:12 0.5:6 0.75:3] [--seeds 0] [--data FOLDER_OF_ZIPS] [--fresh]
    python benchmarks/preset_widths.py --costs

Each word is WIDTH:EPOCHS, trained as the presets ``cifar10-fast`` and ``cifar10-best`` train. Only validation images
are looked at, the best epoch counts, and the time is that of the processor, all threads together. A run that was
stopped goes on where it was (results/preset_widths.jsonl). --costs measures the time of a training step at each width
as a share of that at full width, and trains nothing.
"""

import argparse
import tempfile
import time
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import torch
from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.models import NETWORKS
from sightline.training import PRESETS, train
from sightline.training.presets import WIDTH_COSTS

EXECUTION = {"precision": "float32", "memory_format": "channels_last", "cpu_replicas": 1, "fused_kernels": True}
"""The same for all, so that their costs compare: a trial on a busy machine chooses by chance."""


def main() -> None:
    """Train what is missing, then print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["0.25:12", "0.5:6", "0.75:3"], metavar="WIDTH:EPOCHS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--costs", action="store_true")
    asked = parser.parse_args()
    if asked.costs:
        record("preset_width_costs", step_costs())
        return
    data = shared(asked.data) / "cifar10_jpg.zip"
    book = Notebook(RESULTS / "preset_widths.jsonl", fresh=asked.fresh)
    rows = []
    for seed, word in product(asked.seeds, asked.networks):
        width, epochs = word.split(":")
        key = {"width": float(width), "epochs": int(epochs), "seed": seed, "processor": runtime.processor_name()}
        if book.find(**key) is None:
            model = f"fastcnn:width={float(width):g}:eps=1e-12"
            recipe = PRESETS["cifar10-fast"]().replace(model=model, epochs=int(epochs), seed=seed, **EXECUTION)
            began = time.process_time()
            with tempfile.TemporaryDirectory() as place:
                run = train(data, recipe, out=Path(place) / "run")
            found = {
                "val_accuracy": run.facts["val_accuracy"],
                "core_minutes": (time.process_time() - began) / 60,
            }
            print(key | found, flush=True)
            book.add(found, **key)
        rows.append(book.find(**key))
    record("preset_widths", {"rows": rows})


def step_costs() -> dict[str, float]:
    """Time of a step of 128 images of 32 x 32 pixels in float32, as a share of that at full width."""
    steps = {}
    for width in WIDTH_COSTS:
        network = NETWORKS["fastcnn"].make(10, 3, (32, 32), width=width)
        pixels = torch.zeros(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        steps[f"{width:g}"] = partial(
            lambda network, pixels: network.logits(pixels).mean().backward(), network, pixels
        )
    seconds = {name: median(each) for name, each in runtime.time_interleaved(steps, 7).items()}
    return {name: round(each / seconds["1"], 3) for name, each in seconds.items()}


if __name__ == "__main__":
    main()
