"""Our way to an accuracy: a recipe file and a folder; run by time_to_accuracy.py.

    train_sightline.py FOLDER RECIPE.toml

Says when training ended (the bundle is saved by then), and only then looks at the test images.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from sightline.training import Recipe, train


def main() -> None:
    """Train, then test."""
    folder, recipe = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        run = train(folder, Recipe.from_toml(Path(recipe)), out=Path(place) / "run")
        ended = {"trained": time.time(), "cpu_seconds": sum(os.times()[:4])}
        facts = {name: run.facts[name] for name in ("val_accuracy", "images_per_second", "peak_memory_mb")}
        chosen = {"precision": f"{run.recipe.precision} {run.recipe.memory_format}"}

        from sightline.evaluation import evaluate

        test = evaluate(run.classifier, run.splits.test).metrics["accuracy"].value
    print(json.dumps({**ended, **facts, **chosen, "test_accuracy": test}), flush=True)


if __name__ == "__main__":
    main()
