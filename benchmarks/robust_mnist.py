"""The cheapest robust MNIST at eps 0.3: training minutes, accuracy, and what is left under attacks.

    python benchmarks/robust_mnist.py [FOLDER_OF_ZIPS] [--seeds 0] [--work FOLDER]

Two sides: `undefended`, the preset mnist-fast, and `robust`, the preset mnist-robust; with --sides one-step
also the same network attacked by a single step while training. On all 10,000 test images: PGD-40 with
steps of 0.01 from a random start, as published for this eps, and with five restarts; APGD; the curve over eps by
PGD-40. On 1,000 of them: RayS, which asks for answers only, and the checks for masked gradients. A run that was
stopped goes on where it was: the training from its checkpoint in --work, each finished measurement from
results/robust_mnist.jsonl.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, Notebook, record, shared

from sightline import runtime
from sightline.attacks import APGD, PGD, RayS
from sightline.data.loader import to_tensor
from sightline.robustness import check_masking, robust_curve
from sightline.runs import sample_images
from sightline.training import reopen, resume, train
from sightline.training.presets import PRESETS

SIDES = {
    "undefended": PRESETS["mnist-fast"],
    "robust": PRESETS["mnist-robust"],
    "one-step": lambda: PRESETS["mnist-robust"]().replace(loss="fast-adversarial:0.3"),
}
EPS = 0.3


def main() -> None:
    """Train what is missing, attack what is not yet attacked, say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["undefended", "robust"])
    parser.add_argument("--work", type=Path, default=runtime.cache_dir() / "robust_mnist")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    data = shared(asked.data) / "mnist_png.zip"
    book = Notebook(RESULTS / "robust_mnist.jsonl", fresh=asked.fresh)
    for side in asked.sides:
        for seed in asked.seeds:
            recipe = SIDES[side]().replace(seed=seed)
            key = {"side": side, "seed": seed, "recipe": words(recipe), "processor": runtime.processor_name()}
            run = trained(data, recipe, asked.work / f"{side}-{seed}")
            for name, measure in MEASURES.items():
                if book.find(**key, measure=name) is None:
                    started, worked = time.perf_counter(), time.process_time()
                    found = measure(run)
                    spent = {
                        "minutes": round((time.perf_counter() - started) / 60, 2),
                        "core_minutes": round((time.process_time() - worked) / 60, 2),
                    }
                    print(side, seed, name, found, spent, flush=True)
                    book.add({"found": found, **spent}, **key, measure=name)
    record("robust_mnist", summary(book))


def words(recipe) -> str:
    """What the recipe says beyond the defaults, the seed aside."""
    usual = vars(type(recipe)())
    return str({name: value for name, value in vars(recipe).items() if value != usual[name] and name != "seed"})


def trained(data: Path, recipe, folder: Path):
    """The run in this folder, of this recipe: finished, gone on with, or begun."""
    if (folder / "training.json").exists():
        return reopen(folder)
    if (folder / "last.ckpt").exists():
        return resume(folder)
    return train(data, recipe, out=folder, overwrite=folder.exists())


def clean(run) -> dict:
    """What training took and what it gave without an attacker."""
    right = robust_curve(run.classifier, run.splits.test, PGD(1), [1e-9]).points[0].accuracy
    return {
        "accuracy": right.value,
        "interval": [right.low, right.high],
        "training_minutes": round(run.facts["seconds"] / 60, 2),
        "epochs": run.facts["epochs"],
        "best_epoch": run.facts["best_epoch"],
        "images_per_second": run.facts["images_per_second"],
        "way": [run.recipe.precision, run.recipe.memory_format, run.recipe.cpu_replicas],
        "threads": torch.get_num_threads(),
    }


def under(attack, radii=(EPS,), limit: int | None = None):
    """Accuracy under an attack at each eps, on all test images or about so many."""

    def measure(run) -> dict:
        some, sample = sample_images(run.splits.test, limit, 0, "test images")
        points = robust_curve(run.classifier, some, attack, radii).points[1:]
        rows = {f"eps {p.eps:g}": [p.accuracy.value, p.accuracy.low, p.accuracy.high] for p in points}
        return {"attack": repr(attack), "sample": sample, "accuracy": rows}

    return measure


def masking(run) -> list:
    """The checks for masked gradients on 200 test images."""
    some, _ = sample_images(run.splits.test, 200, 0)
    images, labels = to_tensor(some[np.arange(len(some))]), torch.from_numpy(some.labels)
    return [check.as_json() for check in check_masking(run.classifier, images, labels, EPS)]


MEASURES = {
    "clean": clean,
    "PGD-40, last step": under(PGD(40, step=0.01, early_stop=False)),
    "PGD-40, 5 restarts": under(PGD(40, step=0.01, restarts=5)),
    "APGD": under(APGD(100)),
    "curve": under(PGD(40), (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)),
    "RayS": under(RayS(2000), limit=1000),
    "masking": masking,
}


def summary(book: Notebook) -> dict:
    """Each side's measurements of its preset as it is now."""
    found: dict = {}
    for side, make in SIDES.items():
        recipe = words(make())
        for line in book.all(side=side, recipe=recipe):
            spent = {"minutes": line["minutes"], "core_minutes": line["core_minutes"]}
            found.setdefault(f"{side}, seed {line['seed']}", {})[line["measure"]] = [line["found"], spent]
    return found


if __name__ == "__main__":
    main()
