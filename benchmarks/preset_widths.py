"""Which width of ``fastcnn`` to train on CIFAR-10 in a given time: validation accuracy of networks of equal cost.

    python benchmarks/preset_widths.py [0.25:12 0.5:6 0.75:3] [--seeds 0] [--data FOLDER_OF_ZIPS] [--fresh]

Each word is WIDTH:EPOCHS, trained as the presets ``cifar10-fast`` and ``cifar10-best`` train. Only validation images
are looked at, the best epoch counts, and the time is that of the processor, all threads together. A run that was
stopped goes on where it was (results/preset_widths.jsonl).
"""

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.training import PRESETS, train

EXECUTION = {"precision": "float32", "memory_format": "channels_last", "cpu_replicas": 1, "fused_kernels": True}
"""The same for all, so that their costs compare: a trial on a busy machine chooses by chance."""


def main() -> None:
    """Train what is missing, then print what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["0.25:12", "0.5:6", "0.75:3"], metavar="WIDTH:EPOCHS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
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


if __name__ == "__main__":
    main()
