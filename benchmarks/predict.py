"""Whole commands that classify a folder of files: ours, a ten-line onnxruntime script, a plain torch script.

    python benchmarks/predict.py [--data FOLDER_OF_ZIPS] [--rounds 3] [--cases cifar photos]

10,000 CIFAR-10 JPEGs with ResNet-20 (a third party's weights) and 200 photos at 224 with ResNet-18 (random weights,
which take as long, and a last layer that ``train --method probe`` fits to other photos, so that both classes are
answered: the record counts them). ``sightline predict`` answers with the run, in torch, and with the exported file.
All sides compute on all cores, in float32, the run in bfloat16 where ``predict`` chooses it, and take turns; seconds
from the start of the process to its end, medians of the rounds. A script is measured with the better of two batch
sizes, by its first round. The share of labels that are the torch script's and the largest difference of a confidence
are recorded. On photos a run may differ: it resamples by torch, an exported file and the scripts by Pillow, and large
JPEGs are decoded at a reduced scale.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import record, shared
from services import SIGHTLINE, bundle

PEERS = Path(__file__).parent / "peers"
CASES = {
    "cifar": ("resnet20", 32, "cifar10_jpg.zip", 10_000),
    "photos": ("resnet18", 224, "photos_jpg.zip", 200),
}
BATCHES = (16, 64)
"""Images of a batch that the scripts are tried with."""


def images(archive: Path, work: Path, count: int) -> Path:
    """A folder of that many files of the archive, those of a test split first; written once."""
    folder = work / f"files-{archive.stem}-{count}"
    if not folder.with_suffix(".done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive) as content:
            names = sorted(name for name in content.namelist() if name.endswith(".jpg"))
            names = sorted(names, key=lambda name: "test" not in name)[:count]
            for number, name in enumerate(names):
                (folder / f"{number:05}.jpg").write_bytes(content.read(name))
        folder.with_suffix(".done").touch()
    return folder


def written(run: Path, work: Path) -> tuple[Path, Path]:
    """The run's classifier as an ONNX file, and as weights for a plain torch script."""
    file, weights = work / f"{run.name}.onnx", work / f"{run.name}.pt"
    if not (file.exists() and weights.exists()):
        import torch

        from sightline.classifier import Classifier
        from sightline.formats import write_exported

        classifier = Classifier.load(run)
        write_exported(classifier, file)
        step: Any = classifier.preprocessing.steps[0]
        mean, std = step.statistics
        network = classifier.network.state_dict()
        torch.save(
            {
                "tensors": [*network.values()],
                "classes": list(classifier.classes),
                "temperature": classifier.temperature,
                "mean": list(mean),
                "std": list(std),
            },
            weights,
        )
    return file, weights


def answers(out: Path) -> dict[str, tuple[str, float]]:
    """Label and confidence of every file."""
    with out.open(newline="") as stream:
        rows = [row for row in csv.reader(stream) if row[0] != "file"]
    return {row[0]: (row[1], float(row[2])) for row in rows}


def seconds(words: Sequence[str | Path]) -> float:
    """How long a command takes, from its start to its end."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    began = time.perf_counter()
    subprocess.run([str(word) for word in words], env=environment, check=True)
    return time.perf_counter() - began


def case(name: str, data: Path, work: Path, rounds: int) -> dict[str, Any]:
    """All sides in turn."""
    model, size, archive, count = CASES[name]
    run = bundle(model, size, data, work, method="probe" if name == "photos" else None)
    folder, (file, weights) = images(data / archive, work, count), written(run, work)
    ours = [*SIGHTLINE, "predict"]
    end = ["--format", "csv", "--top", "1", "--out"]
    commands: dict[str, list[Any]] = {
        "run": [*ours, run, folder, *end],
        "onnx": [*ours, file, folder, *end],
    }
    for batch in BATCHES:
        for peer, given in (("onnxruntime", file), ("torch", weights)):
            commands[f"{peer}, {batch}"] = [sys.executable, PEERS / f"predict_{peer}.py", given, folder]
    times: dict[str, list[float]] = {side: [] for side in commands}
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for number in range(rounds):
        for side, words in commands.items():
            peer = side.partition(",")[0]
            tried = [times[f"{peer}, {batch}"] for batch in BATCHES] if "," in side else [times[side]]
            if number and times[side][0] > min(one[0] for one in tried):
                continue  # a script with the slower batch
            out = work / f"answers-{name}-{peer}.csv"
            rest = [out, size, side.partition(", ")[2]] if "," in side else [out]
            times[side].append(round(seconds([*words, *rest]), 2))
            found[peer] = answers(out)
            print(f"{name}, round {number + 1}, {side}: {times[side][-1]:.2f} s", flush=True)
    best = {
        side.partition(",")[0]: (round(statistics.median(took), 2), side, took)
        for side, took in times.items()
        if len(took) == rounds
    }
    plain = found["torch"]
    return {
        "files": len(plain),
        "labels": dict(Counter(label for label, _ in plain.values()).most_common()),
        "sides": {
            side: {"seconds": each[0], "setting": each[1], "rounds": each[2]} for side, each in best.items()
        },
        "ratios": {
            f"predict {own} against the {peer} script": round(best[peer][0] / best[own][0], 2)
            for own in ("onnx", "run")
            for peer in ("onnxruntime", "torch")
        },
        "labels as the torch script": {
            side: sum(given[file][0] == plain[file][0] for file in plain) / len(plain)
            for side, given in found.items()
        },
        "largest difference of a confidence": {
            side: max(abs(given[file][1] - plain[file][1]) for file in plain) for side, given in found.items()
        },
    }


def main() -> None:
    """Every case; the table's rows are the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    data = shared(asked.data)
    record("predict", {name: case(name, data, asked.work, asked.rounds) for name in asked.cases}, asked.out)


if __name__ == "__main__":
    main()
