"""How fast images are embedded, against a plain loop and the machine's limit, and how soon kept features are there.

    python benchmarks/embedding.py [FOLDER_OF_ZIPS] [--images 256] [--rounds 3] [--second-use 10000]

The plain loop is what people write: Pillow, a Dataset of PyTorch with the transforms of the weights' card, a
DataLoader with its best number of workers, and the same network in float32, batches of 32, in torch's own memory
format and in channels_last. Ours starts from the same files: decoding, then the embedding, in both precisions. All
are measured in turn, in new processes for each round where they decode, and the median of the rounds counts.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from record import record, shared
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from sightline import runtime
from sightline.data import load_dataset
from sightline.features import embed_cached, embedding_precision, nearest_images
from sightline.features.embedding import Embedder
from sightline.training import build_published_start
from sightline.types import Dataset, Geometry

SIDE, CROP, MEAN, STD = 224, 0.875, 0.5, 0.5
GEOMETRY = Geometry(size=(SIDE, SIDE), channels=3, resize_mode="crop", crop_fraction=CROP, interpolation="bicubic")
PLAIN_BATCH = 32
QUANTILES = {"least": 0.0, "tenth": 0.1, "median": 0.5, "largest": 1.0}
GIGAFLOP_PER_IMAGE = 0.77
"""Multiplications and additions of EfficientNet-Lite0 at 224 pixels, twice timm's 0.385 G multiply-adds."""


class Files(TorchDataset[torch.Tensor]):
    """JPEG files of a zip, read with Pillow as the card of the weights says."""

    def __init__(self, archive: Path, names: list[str]):
        with zipfile.ZipFile(archive) as opened:
            self.data = [opened.read(name) for name in names]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = Image.open(io.BytesIO(self.data[index])).convert("RGB")
        side = round(CROP * min(image.size))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float().div_(255)
        return pixels.sub_(MEAN).div_(STD)


@torch.inference_mode()
def run_plain_loop(files: Files, body: nn.Module, workers: int, memory_format: torch.memory_format) -> float:
    """Images/s of the plain loop, from bytes to features."""
    loader = DataLoader(files, PLAIN_BATCH, num_workers=workers)
    began = time.perf_counter()
    for pixels in loader:
        body(pixels.contiguous(memory_format=memory_format))
    return len(files) / (time.perf_counter() - began)


def run_ours(archive: Path, classifier: Any, precision: torch.dtype) -> tuple[float, float]:
    """Images/s of ours, from the archive to features with an empty cache; and of the embedding alone."""
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        dataset = load_dataset(str(archive), GEOMETRY, cache=Path(cache))
        decoded = time.perf_counter()
        for _ in Embedder(classifier, dataset, precision)(np.arange(len(dataset))):
            pass
        ended = time.perf_counter()
        return len(dataset) / (ended - began), len(dataset) / (ended - decoded)


def pack(archive: Path, count: int, folder: Path) -> tuple[Path, list[str]]:
    """An archive of the first ``count`` photos, and their names."""
    small = folder / "photos.zip"
    with zipfile.ZipFile(archive) as opened, zipfile.ZipFile(small, "w") as made:
        photos = [name for name in opened.namelist() if name.endswith(".jpg")]
        names = photos[:: max(1, len(photos) // count)][:count]
        for name in names:
            made.writestr(name, opened.read(name))
    return small, names


def in_turn(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """The results of each way in each round, interleaved."""
    found: dict[str, list[Any]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, run in ways.items():
            found[name].append(run())
            print(f"round {number + 1}, {name}: {found[name][-1]}", flush=True)
    return found


@torch.inference_mode()
def machine_limits(seconds: float = 1.0) -> dict[str, float]:
    """GFLOP/s of a large matrix product, and of a dense 3x3 and a depthwise convolution, in both precisions."""
    limits = {}
    for precision in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048).to(precision)
        x = torch.randn(8, 128, 56, 56).to(precision).contiguous(memory_format=torch.channels_last)
        dense = nn.Conv2d(128, 128, 3, padding=1).to(precision).to(memory_format=torch.channels_last)
        deep = nn.Conv2d(128, 128, 3, padding=1, groups=128).to(precision).to(memory_format=torch.channels_last)
        products = 2 * 9 * 128 * 8 * 56 * 56
        for name, run, flop in (
            ("matrix product", lambda a=a: a @ a, 2 * 2048**3),
            ("3x3 convolution", lambda f=dense, x=x: f(x), 128 * products),
            ("depthwise 3x3 convolution", lambda f=deep, x=x: f(x), products),
        ):
            run()
            best, ends = float("inf"), time.perf_counter() + seconds
            while time.perf_counter() < ends:
                began = time.perf_counter()
                run()
                best = min(best, time.perf_counter() - began)
            limits[f"{name}, {str(precision)[6:]}"] = round(flop / best / 1e9, 1)
    return limits


def timed(run: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def second_use(count: int, classifier: Any, dataset: Dataset) -> dict[str, float]:
    """Seconds of a second ``embed_cached`` of the same images: in this process, and in a new one.

    The images repeat a few photos: the time of a second use does not depend on what they show.
    """

    class Repeated:
        shape = (count, SIDE, SIDE, 3)

        def __init__(self, few: np.ndarray):
            self.few = few

        def __getitem__(self, rows: Any) -> np.ndarray:
            return self.few[np.asarray(rows) % len(self.few)]

    many = replace(
        dataset.subset(np.arange(count) % len(dataset)), pixels=Repeated(dataset[:32]), rows=np.arange(count)
    )
    with tempfile.TemporaryDirectory() as folder:
        first = timed(lambda: embed_cached(classifier, many, cache=Path(folder), quiet=True))
        again = median(timed(lambda: embed_cached(classifier, many, cache=Path(folder))) for _ in range(3))
    return {"images": count, "first seconds": round(first, 2), "second use in process, seconds": round(again, 4)}


def whole_command(archive: Path) -> dict[str, float]:
    """Seconds of ``sightline check DATA --deep``: with an empty cache, and the second time."""
    code = "import sys; from sightline.cli import main; main(sys.argv[1:])"
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", code, "check", str(archive), "--deep", "--out-dir", f"{folder}/out"]
        environment = {**os.environ, "SIGHTLINE_CACHE": folder}

        def run() -> None:
            subprocess.run(words, env=environment, check=True, capture_output=True)

        return {"check --deep, first": round(timed(run), 1), "check --deep, second": round(timed(run), 1)}


def precisions_agree(classifier: Any, dataset: Dataset) -> dict[str, float]:
    """Cosines of bfloat16 and float32 features of the same images."""
    one, two = (
        np.concatenate([*Embedder(classifier, dataset, precision)(np.arange(len(dataset)))])
        for precision in (torch.float32, torch.bfloat16)
    )
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    return {"least cosine": round(float(cosines.min()), 4), "mean cosine": round(float(cosines.mean()), 5)}


def copies_look_alike(classifier: Any, dataset: Dataset) -> dict[str, dict[str, float]]:
    """Cosines of features: of each photo and the most alike other one, and of 50 photos and their changed copies."""
    features = np.concatenate([*Embedder(classifier, dataset)(np.arange(len(dataset)))])
    rows = np.linspace(0, len(dataset) - 1, min(50, len(dataset))).astype(int)
    edge = SIDE // 20
    copies = {
        "mirrored": dataset[rows][:, :, ::-1],
        "cropped to 90 %": np.stack(
            [
                np.asarray(
                    Image.fromarray(one[edge:-edge, edge:-edge]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                )
                for one in dataset[rows]
            ]
        ),
    }
    found = {"nearest other photo": nearest_images(features, 1)[1][:, 0]}
    for name, pixels in copies.items():
        changed = replace(dataset.subset(rows), pixels=pixels, rows=np.arange(len(rows)))
        other = np.concatenate([*Embedder(classifier, changed)(np.arange(len(rows)))])
        norms = np.linalg.norm(features[rows], axis=1) * np.linalg.norm(other, axis=1)
        found[name] = (features[rows] * other).sum(1) / norms
    return {
        name: {word: round(float(np.quantile(cosines, at)), 3) for word, at in QUANTILES.items()}
        for name, cosines in found.items()
    }


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--second-use", type=int, default=10_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        archive, names = pack(shared(asked.data) / "photos_jpg.zip", asked.images, Path(folder))
        dataset = load_dataset(str(archive), GEOMETRY, cache=Path(folder))
        figures = measure(asked, archive, names, dataset)
    record("embedding", figures)


def measure(asked: argparse.Namespace, archive: Path, names: list[str], dataset: Dataset) -> dict[str, Any]:
    """All figures."""
    classifier = build_published_start(dataset, torch.device("cpu"))
    files, body = Files(archive, names), classifier.network.body  # type: ignore[attr-defined]
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    trials = {
        (workers, name): run_plain_loop(files, body.to(memory_format=kind), workers, kind)
        for workers in range(runtime.cpu_count() + 1)
        for name, kind in formats.items()
    }
    best = {name: max((w for w, n in trials if n == name), key=lambda w: trials[w, name]) for name in formats}
    ways: dict[str, Callable[[], Any]] = {
        f"plain loop, {name}": lambda name=name, kind=kind: run_plain_loop(
            files, body.to(memory_format=kind), best[name], kind
        )
        for name, kind in formats.items()
    }
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    for name, precision in precisions.items():
        ways[f"ours, {name}"] = lambda p=precision: run_ours(archive, classifier, p)
    found = in_turn(ways, asked.rounds)
    rates = {
        name: median(one if isinstance(one, float) else one[0] for one in each) for name, each in found.items()
    }
    alone = {name: median(one[1] for one in found[f"ours, {name}"]) for name in precisions}
    limits = machine_limits()
    plain = rates["plain loop, contiguous"]
    faster_plain = max(plain, rates["plain loop, channels_last"])
    return {
        "images": len(names),
        "cores": runtime.cpu_count(),
        "threads": torch.get_num_threads(),
        "chosen precision": str(embedding_precision(classifier))[6:],
        "workers of the plain loop": best,
        "images/s, decoding included": {name: round(rate, 1) for name, rate in rates.items()},
        "times the plain loop": {name: round(rates[f"ours, {name}"] / plain, 2) for name in precisions},
        "times the plain loop in channels_last": {
            name: round(rates[f"ours, {name}"] / faster_plain, 2) for name in precisions
        },
        "images/s, embedding alone": {name: round(rate, 1) for name, rate in alone.items()},
        "GFLOP/s limits": limits,
        "share of the matrix product's limit": {
            name: round(rate * GIGAFLOP_PER_IMAGE / limits[f"matrix product, {name}"], 3)
            for name, rate in alone.items()
        },
        "precisions": precisions_agree(classifier, dataset),
        "cosines": copies_look_alike(classifier, dataset),
        "second use": second_use(asked.second_use, classifier, dataset),
        "commands": whole_command(archive),
    }


if __name__ == "__main__":
    main()
