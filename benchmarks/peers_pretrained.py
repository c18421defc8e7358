"""Photos in 1, 3 and 10 minutes: Sightline against fastai, Ultralytics and AutoGluon, from the same weights.

    python benchmarks/peers_pretrained.py [--data FOLDER_OF_ZIPS] [--tools ours fastai ...] [--minutes 1 3 10]
                                          [--sets photos waste] [--work FOLDER] [--fresh]

Every tool gets the same folder (a tenth of the training images is set aside as ``val``, the same for all; the test
images are only predicted), the same file of weights (EfficientNet-Lite0 by timm's names, written from the package that
we install) and the same minutes, by its own documented recipe: ``peers/minutes_with_*.py`` says which, and how the
weights are put in. ``ultralytics-yolo`` is Ultralytics' own command as it works without a network, from scratch; it
runs only where --tools names it.

Each cell is a process of its own, in an environment of its own that this script makes, with an empty cache; tools take
turns. A cell has the accuracy of its predictions on the test images by one scorer, with Wilson's 95 % interval, and
the minutes it really took: from after its imports, and from the command, to the predictions of the test images.
fastai has no time limit: its script finds out before how many epochs fit, and that time does not count.

Stopped, it goes on where it was (``peers_pretrained.jsonl`` in --work); cells that were recorded before stay in the
result file, and --fresh forgets both. A tool that cannot be installed or fails is
said in its place. Four tools in 1 and 3 minutes on both sets take about 45 minutes.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import NotInstalled, python_of, set_aside, unpack
from record import RESULTS, Notebook, record, shared
from safetensors.torch import save_file

from sightline.metrics import wilson
from sightline.models.pretrained import LITE0

SCRIPTS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Tool:
    """A row of the table."""

    title: str
    peer: str | None
    """Whose environment it needs; None for ours."""
    script: str
    more: tuple[str, ...] = ()


TOOLS = {
    "ours": Tool("Sightline", None, "minutes_with_sightline.py"),
    "fastai": Tool("fastai", "fastai", "minutes_with_fastai.py"),
    "ultralytics": Tool("Ultralytics' trainer", "ultralytics", "minutes_with_ultralytics.py"),
    "autogluon": Tool("AutoGluon", "autogluon", "minutes_with_autogluon.py"),
    "ultralytics-yolo": Tool(
        "Ultralytics, YOLO from scratch", "ultralytics", "minutes_with_ultralytics.py", ("--yolo",)
    ),
}

QUIET = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "HF_HUB_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Nobody talks to the network or installs anything while it is measured."""


class Failed(Exception):
    """A cell without predictions."""


def main() -> None:
    """Measure the cells that are not known yet, in turns; print and keep the table."""
    asked = arguments()
    asked.work = asked.work.resolve()
    book = Notebook(asked.work / "peers_pretrained.jsonl", fresh=asked.fresh)
    if not asked.fresh:
        book.lines = [cell for cell in recorded(asked.out) if not same_cell(book, cell)] + book.lines
    weights = asked.work / "tf_efficientnet_lite0.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in LITE0.load().items()}, weights)
    folders = {name: prepare(shared(asked.data) / f"{name}_jpg.zip", asked.work) for name in asked.sets}
    absent: dict[str, str] = {}
    for minutes in asked.minutes:
        for name, folder in folders.items():
            for tool in asked.tools:
                key = {"tool": tool, "minutes": minutes, "set": name}
                if book.find(**key) is not None:
                    continue
                print("Running", *key.values(), flush=True)
                try:
                    book.add(measure(TOOLS[tool], folder, weights, minutes, asked.work), **key)
                except (Failed, NotInstalled) as error:
                    absent[f"{tool}, {minutes:g} min, {name}"] = str(error).replace(str(asked.work), "WORK")[:300]
                    print(f"No predictions: {error}", flush=True)
    asked.minutes = sorted({*asked.minutes, *(cell["minutes"] for cell in book.lines)})
    keys = [(minutes, name, tool) for minutes in asked.minutes for name in ("photos", "waste") for tool in TOOLS]
    found = (book.find(tool=tool, minutes=minutes, set=name) for minutes, name, tool in keys)
    cells = [cell for cell in found if cell]
    record("peers_pretrained", {"cells": cells, "not_measured": absent}, asked.out)
    print(table(cells, asked))


def recorded(out: Path | None) -> list[dict[str, Any]]:
    """The cells of the result file: those of other minutes and sets stay in it."""
    file = out or RESULTS / "peers_pretrained.json"
    return json.loads(file.read_text(encoding="utf-8"))["figures"]["cells"] if file.exists() else []


def same_cell(book: Notebook, cell: dict[str, Any]) -> bool:
    """Whether the notebook has measured this cell again."""
    return book.find(**{word: cell[word] for word in ("tool", "minutes", "set")}) is not None


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds photos_jpg.zip and waste_jpg.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--tools", nargs="+", default=list(TOOLS)[:4], choices=list(TOOLS))
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 3.0, 10.0])
    parser.add_argument("--sets", nargs="+", default=["photos", "waste"], choices=("photos", "waste"))
    parser.add_argument("--fresh", action="store_true", help="forget what earlier starts measured")
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/peers_pretrained.json")
    return parser.parse_args()


def prepare(archive: Path, work: Path) -> Path:
    """The archive as a folder of train, val and test."""
    return set_aside(unpack(archive, work), work / f"{archive.stem}_split")


def measure(tool: Tool, folder: Path, weights: Path, minutes: float, work: Path) -> dict[str, Any]:
    """One cell: accuracy, minutes, and what was done."""
    python = sys.executable if tool.peer is None else str(python_of(tool.peer, work))
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=work) as place:
        places = {"SIGHTLINE_CACHE": f"{place}/cache", "YOLO_CONFIG_DIR": f"{place}/yolo"}
        words = [python, str(SCRIPTS / tool.script), str(folder), str(weights), f"{minutes:g}", f"{place}/out"]
        started = time.time()
        try:
            done = subprocess.run(
                [*words, *tool.more],
                check=False,
                capture_output=True,
                text=True,
                timeout=600 + 180 * minutes,
                env=os.environ | QUIET | places,
                cwd=place,
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"no answer in {error.timeout:.0f} seconds") from error
        try:
            said = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, json.JSONDecodeError) as error:
            raise Failed((done.stderr.strip() or "it said nothing").splitlines()[-1]) from error
        accuracy = score(Path(place, "out", "predictions.csv"), folder / "test")
    for listing in folder.glob("*.cache"):  # Ultralytics'; the next cell begins with an empty cache
        listing.unlink()
    return {
        "accuracy": accuracy,
        "minutes_used": round((said["ready"] - said["began"] - said["untimed"]) / 60, 2),
        "minutes_with_imports": round((said["ready"] - started - said["untimed"]) / 60, 2),
        "recipe": said["recipe"],
        "version": said["version"],
        "load_before": round(busy, 2),
    }


def score(predictions: Path, test: Path) -> dict[str, float]:
    """Accuracy of a file of names and classes against the folders of the test images, every one of which it names."""
    with predictions.open(newline="", encoding="utf-8") as file:
        said = dict(csv.reader(file))
    images = {image.relative_to(test).as_posix(): image.parent.name for image in test.glob("*/*")}
    if said.keys() != images.keys():
        raise Failed(f"it predicted {len(said)} images, not the {len(images)} of the test")
    found = wilson(sum(said[name] == label for name, label in images.items()), len(images))
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def table(cells: list[dict[str, Any]], asked: argparse.Namespace) -> str:
    """The cells as Markdown: accuracy, interval and minutes used; bold where ours is neither ahead nor within."""
    columns = [(name, minutes) for name in asked.sets for minutes in asked.minutes]
    lines = ["| | " + " | ".join(f"{name}, {minutes:g} min" for name, minutes in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    known = {(cell["tool"], cell["set"], cell["minutes"]): cell for cell in cells}
    for tool in asked.tools:
        row = [TOOLS[tool].title]
        for column in columns:
            cell, ours = known.get((tool, *column)), known.get(("ours", *column))
            row.append(in_words(cell, ours) if cell else "-")
        lines.append("| " + " | ".join(row) + " |")
    recipes = {f"{TOOLS[cell['tool']].title}: {cell['version']}, {cell['recipe']}" for cell in cells}
    return "\n".join([*lines, "", *(f"- {recipe}" for recipe in sorted(recipes))])


def in_words(cell: dict[str, Any], ours: dict[str, Any] | None) -> str:
    """One cell; bold where its accuracy is above the interval of ours."""
    rate = cell["accuracy"]
    value, low, high = (100 * rate[name] for name in ("value", "low", "high"))
    words = f"{value:.1f} [{low:.1f}, {high:.1f}]"
    ahead = ours is not None and rate["value"] > ours["accuracy"]["high"]
    return f"{f'**{words}**' if ahead else words} in {cell['minutes_used']:.1f} min"


if __name__ == "__main__":
    main()
