"""Photos with no flags: from the command to the report; and how few photos are enough.

    python benchmarks/pretrained.py [FOLDER_OF_ZIPS] [--sets photos waste] [--draws 100]

First `sightline train photos_jpg.zip` and `sightline train waste_jpg.zip`, each with an empty cache: accuracy on the
test images with its 95 % interval, and seconds from the command to the report. Then heads on the kept features of the
photos from 1, 5 and 20 training images a class, drawn 100 times; the interval is over the draws. "centred" is by the
centre of a run with ``--unlabelled`` on all training photos. Cats and dogs are classes of ImageNet, so the
photos flatter; the kinds of waste are not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from record import record, shared

from sightline.comparison import classify_by_head, interval_over_draws
from sightline.features import embed_cached
from sightline.layers import PrototypeHead
from sightline.models import get_head
from sightline.training import Recipe, train
from sightline.training.heads import ClassMeans, LinearDiscriminant, LinearProbeHead

SHOTS = (1, 5, 20)
SLOW_DRAWS = 20
"""Draws of the heads that are fitted by iteration."""


def command(data: Path) -> dict[str, object]:
    """The command as a user gives it, in a process of its own, with an empty cache."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        words = [sys.executable, "-c", "from sightline.cli import main; import sys; sys.exit(main(sys.argv[1:]))"]
        environment = os.environ | {"SIGHTLINE_CACHE": f"{place}/cache"}
        subprocess.run([*words, "train", str(data), "--out", f"{place}/run"], env=environment, check=True)
        seconds = time.perf_counter() - began
        report = json.loads(Path(place, "run", "report.json").read_text(encoding="utf-8"))
        facts = json.loads(Path(place, "run", "training.json").read_text(encoding="utf-8"))
    measured = report["evaluation"]
    return {
        "seconds_to_report": round(seconds, 1),
        "accuracy": measured["intervals"]["accuracy"],
        "head": facts["head"],
        "fine_tuning": facts.get("fine_tuning"),
    }


def few_images(data: Path, draws: int) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy of each head from a few training images a class, on all test images; the interval is over draws."""
    with tempfile.TemporaryDirectory() as place:
        others = Path(place) / "others"  # all training photos, without their labels
        with zipfile.ZipFile(data) as archive:
            for name in archive.namelist():
                if name.startswith("train/") and name.endswith(".jpg"):
                    archive.extract(name, others)
        recipe = Recipe(method="prototypes", unlabelled=str(others))
        run = train(data, recipe, out=Path(place) / "run")
        known, last = run.splits.train, get_head(run.classifier.network)
        assert isinstance(last, PrototypeHead)
        centre = last.centre.numpy()
        features, test = embed_cached(run.classifier, known), embed_cached(run.classifier, run.splits.test)
    heads = {
        "prototypes": (classify_by_head(ClassMeans()), draws),
        "prototypes, centred": (classify_by_head(ClassMeans(), centre), draws),
        "probe": (classify_by_head(LinearProbeHead()), min(draws, SLOW_DRAWS)),
        "probe, centred": (classify_by_head(LinearProbeHead(), centre), min(draws, SLOW_DRAWS)),
        "lda": (classify_by_head(LinearDiscriminant()), min(draws, SLOW_DRAWS)),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for shots in SHOTS:
        for name, (classify, count) in heads.items():
            rng = np.random.default_rng(0)
            rates = np.empty(count)
            for draw in range(count):
                places = (np.flatnonzero(known.labels == k) for k in range(len(known.classes)))
                rows = np.concatenate([rng.choice(place, shots, replace=False) for place in places])
                rates[draw] = (classify(features[rows], known.labels[rows], test) == run.splits.test.labels).mean()
            found.setdefault(f"{shots} a class", {})[name] = interval_over_draws(rates).as_json()
            print(shots, name, interval_over_draws(rates), flush=True)
    return found


def main() -> None:
    """Run the commands, then the draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--sets", nargs="*", choices=("photos", "waste"), default=["photos", "waste"])
    asked = parser.parse_args()
    folder = shared(asked.data)
    figures: dict[str, object] = {name: command(folder / f"{name}_jpg.zip") for name in asked.sets}
    figures["few_photos"] = few_images(folder / "photos_jpg.zip", asked.draws)
    figures["precision"] = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    record("pretrained", figures)


if __name__ == "__main__":
    main()
