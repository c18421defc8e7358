"""Add classes from 20 images each: ``learn`` compared with fine-tuning and retraining: accuracy and seconds.

    python benchmarks/learning.py [FOLDER_OF_ZIPS] [--seeds 5] [--sets mnist waste]

mnist: LeNet-5 is trained on digits 0 to 7, 300 images each; 8 and 9 come with 20 images each; all 10,000 test images.
waste: published weights know five kinds of waste; the sixth comes with 20 photos; all test photos. Which classes are
new is drawn by the seed. Each seed draws other images. Seconds of ``lda`` are from the images' features to the
classifier, tested; those of features are apart.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from record import Notebook, record, shared

from sightline.continual import learn
from sightline.metrics import seeds_interval
from sightline.runtime import permutation
from sightline.sources import find
from sightline.training import Recipe, train

NEW_IMAGES = 20
WAYS = ("lda", "ranpac", "replay")


def main() -> None:
    """Measure what is not there yet; print means over the seeds with intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=("mnist", "waste"), default=["mnist"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-learning")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    book = Notebook(asked.work / "learning.jsonl", fresh=asked.fresh)
    figures = {}
    for name in asked.sets:
        rows = [measure(book, shared(asked.data), name, seed) for seed in range(asked.seeds)]
        figures[name] = {"seeds": asked.seeds, "before": mean([row["before"] for row in rows])}
        for way in rows[0]["ways"]:
            figures[name][way] = {
                what: mean([row["ways"][way][what] for row in rows]) for what in rows[0]["ways"][way]
            }
        figures[name]["kept"] = [row["chosen"] for row in rows]
    record("learning", figures)


def mean(values):
    """The mean over the seeds, with its interval where there are several."""
    return seeds_interval(values).as_json() if len(values) > 1 else values[0]


def measure(book, data, name, seed):
    """One seed: the base run, then ``learn`` by every way; remembered."""
    known = book.find(set=name, seed=seed)
    if known is not None:
        return known
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        archive = data / {"mnist": "mnist_png.zip", "waste": "waste_jpg.zip"}[name]
        source = find(archive)
        order = permutation(len(source.classes), seed, 93)
        fresh = set(order[: 2 if name == "mnist" else 1].tolist()) if name == "waste" else {8, 9}
        write_images(source, folder, fresh, None if name == "waste" else 300, seed)
        recipe = Recipe(seed=seed) if name == "waste" else Recipe(model="lenet5", epochs=12, seed=seed)
        run = train(folder / "old", recipe, out=folder / "run")
        before = (run.classifier.predict(sorted((folder / "old" / "test").rglob("*.*g"))), run.classifier.classes)
        truth = [path.parent.name for path in sorted((folder / "old" / "test").rglob("*.*g"))]
        right = float(np.mean([one.label == t for one, t in zip(before[0], truth, strict=True)]))
        began = time.perf_counter()
        found = learn(folder / "run", folder / "new", by=WAYS, full=True, out=folder / "learned", seed=seed)
        ways = {}
        n_old, n_new = len(truth), sum(1 for _ in (folder / "new" / "test").rglob("*.*g"))
        for one in found.outcomes:
            whole = (one.old.value * n_old + one.new.value * n_new) / (n_old + n_new)
            ways[one.strategy] = {
                "old": one.old.value,
                "new": one.new.value,
                "all": whole,
                "old_change": one.change.value,
                "negative_flips": one.negative_flips,
                "seconds": one.seconds,
            }
        line = {"set": name, "seed": seed, "before": right, "ways": ways, "chosen": found.chosen}
        line["seconds"] = time.perf_counter() - began
    book.add(line)
    print(line, flush=True)
    return line


def write_images(source, folder, fresh, count, seed):
    """Class folders of the old classes and of the new ones, with the archive's own test images."""
    splits = source.columns["split"]
    for k, name in enumerate(source.classes):
        for part in ("train", "test"):
            own = np.flatnonzero((source.labels == k) & (splits == part))
            if part == "train":
                most = NEW_IMAGES if k in fresh else count
                own = own[permutation(len(own), seed, 94, k)][:most]
            place = folder / ("new" if k in fresh else "old") / part / str(name)
            place.mkdir(parents=True)
            for row in own.tolist():
                (place / Path(str(source.files[row])).name).write_bytes(source.read(row))


if __name__ == "__main__":
    main()
