"""What every experiment does: trainings that are kept as they end, paired statistics, a small file of results."""

import argparse
import base64
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from scipy.stats import binomtest, ttest_rel

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from record import Notebook, record, shared

from sightline.comparison.learning_curve import nested_subset
from sightline.inference import predict_logits
from sightline.metrics import seeds_interval
from sightline.training import Recipe, read_splits
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Splits

RESULTS = Path(__file__).parent / "results"

WAY: dict[str, Any] = {"precision": "float32", "memory_format": "channels_last", "cpu_replicas": 1}
"""Set, so that no training is another one where another way measures faster."""


def arguments(description: str | None, **more: Any) -> argparse.Namespace:
    """The command line all experiments share, and flags of one's own (name=options of add_argument)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist_png.zip and cifar10_jpg.zip")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-experiments")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier start measured")
    for name, options in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    asked = parser.parse_args()
    asked.data = shared(asked.data)
    return asked


def notebook(name: str, asked: argparse.Namespace) -> Notebook:
    """Where an experiment keeps the trainings it has done."""
    return Notebook(asked.work / f"{name}.jsonl", fresh=asked.fresh)


def keep(name: str, figures: dict[str, Any]) -> None:
    """Print the results and write them to ``experiments/results``."""
    record(name, figures, RESULTS / f"{name}.json")


def images(recipe: Recipe, data: Path, count: int | None = None) -> Splits:
    """A dataset split by the recipe's seed, with about ``count`` of its training images, a share of each class."""
    splits, _ = read_splits(recipe.replace(data=str(data)))
    if count is None or count >= len(splits.train):
        return splits
    chosen = nested_subset(splits.train.labels, count / len(splits.train), recipe.seed)
    return replace(splits, train=splits.train.subset(chosen))


def trained(recipe: Recipe, splits: Splits) -> dict[str, Any]:
    """Train, and test once: accuracies, and which test images were answered rightly."""
    with tempfile.TemporaryDirectory() as place:
        run = train_on_splits(splits, recipe.replace(**WAY), SilentRunFolder(Path(place)))
    logits, labels = predict_logits(run.classifier, splits.test)
    answers = logits.argmax(1)
    right = (answers == labels).numpy()
    return {
        "val_accuracy": run.facts["val_accuracy"],
        "test_accuracy": float(right.mean()),
        "seconds": run.facts["seconds"],
        "right": base64.b64encode(np.packbits(right).tobytes()).decode("ascii"),
        "n": len(right),
        "answers": np.bincount(labels.numpy() * logits.shape[1] + answers.numpy(), minlength=logits.shape[1] ** 2)
        .reshape(logits.shape[1], -1)
        .tolist(),
    }


def right(line: dict[str, Any]) -> ndarray:
    """Which test images a kept training answered rightly."""
    bits = np.frombuffer(base64.b64decode(line["right"]), np.uint8)
    return np.unpackbits(bits, count=line["n"]).astype(bool)


def paired(changed: Sequence[dict[str, Any]], usual: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``changed`` against ``usual``, seed by seed: mean difference with Student's interval, paired t, McNemar.

    McNemar is exact, on the images of all seeds together; seeds share test images, so it is the more hopeful one.
    """
    before, after = ([line["test_accuracy"] for line in lines] for lines in (usual, changed))
    change = seeds_interval([a - b for a, b in zip(after, before, strict=True)])
    gained = sum(int((right(a) & ~right(b)).sum()) for a, b in zip(changed, usual, strict=True))
    lost = sum(int((~right(a) & right(b)).sum()) for a, b in zip(changed, usual, strict=True))
    return {
        "points": round(100 * change.value, 3),
        "interval_95_points": [round(100 * change.low, 3), round(100 * change.high, 3)],
        "paired_t_p": float(ttest_rel(after, before).pvalue),
        "gained": gained,
        "lost": lost,
        "mcnemar_p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }


def mean(lines: Sequence[dict[str, Any]], what: str = "test_accuracy") -> dict[str, Any]:
    """Mean over the seeds with Student's interval."""
    values = [line[what] for line in lines]
    if len(values) == 1:
        return {"mean": values[0], "values": values}
    found = seeds_interval(values, bounds=(0, 1))
    return {
        "mean": round(found.value, 5),
        "interval_95": [round(found.low, 5), round(found.high, 5)],
        "values": values,
    }


def changed(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says beyond the defaults, for the record."""
    usual = vars(Recipe())
    return json.loads(json.dumps({k: v for k, v in vars(recipe).items() if v != usual[k] and k != "seed"}))


def told(recipe: Recipe) -> str:
    """A recipe as a key of the notebook: what it says beyond the defaults, which later fields do not change."""
    usual = vars(Recipe())
    return str({name: value for name, value in vars(recipe).items() if value != usual[name]})
