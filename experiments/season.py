"""A season of a service: ten rounds of traffic that changes, 200 answers reviewed in each, and four ways to go on.

    python experiments/season.py [--seeds 1] [--reduced] [--plot docs/pictures/season.png] [--stop-after MINUTES]

CIFAR-10 as JPEG. The base run knows 8 classes from 10,000 images; a round is 4,000 others. Ships arrive in round 2,
trucks in round 4; from round 5 a third of the images has Gaussian noise and a third defocus blur, both of severity 3.
After each round every way is tested on test images as they are in that round:

- never: the base run.
- naive: fine-tuning on each round's 200 labels alone, step by step (``learn --by finetune``).
- retrain: from random weights on the base images and all labels so far, each round.
- improve: a site with its journal; ``select`` chooses the 200 (a fifth of them is the audit: 1 % of all answers, drawn
  at random), ``improve`` does the rest.

naive and retrain get 200 labels drawn at random. Labels are the true ones. ``share`` is what improve gains over never,
divided by what retrain gains, of the mean accuracy of all rounds; ``time`` is improve's processor seconds divided by
retrain's. ``below`` counts promoted releases whose true accuracy, on that round's test images, lies below the anchor's
by more than the allowance.

``--reduced`` has 4 rounds of 800 with 100 labels, 2,000 base images and a tenth of the test images. Every round of
every way is a line of ``season.jsonl`` in ``--work``: a season that was stopped goes on. After ``--stop-after`` minutes
no round begins, and the exit status is 1.
"""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import WAY, arguments, keep, notebook
from numpy import ndarray
from PIL import Image

from sightline.classifier import Classifier
from sightline.continual import learn
from sightline.data import load_dataset, to_tensor
from sightline.feedback import DEFAULT_REASONS, improve, select
from sightline.feedback.gate import GateRules
from sightline.files import read_json_object, write_csv
from sightline.journal import Journal, PredictionRecord
from sightline.metrics import seeds_interval
from sightline.robustness import CORRUPTIONS
from sightline.serving import current_release, load_release, open_engine, publish
from sightline.serving.requests import PredictRequest, RequestLimits
from sightline.training import Recipe, train
from sightline.types import Geometry

WAYS = ("never", "naive", "retrain", "improve")
ARRIVALS = {"ship": 2, "truck": 4}
"""Classes that the base does not know, and the round in which each arrives."""
CORRUPTED_FROM = 5
ALLOWANCE = GateRules().allowance


@dataclass(frozen=True)
class Season:
    """How long it is."""

    name: str
    base: int
    rounds: int
    images: int
    labels: int
    epochs: int
    test: int

    @property
    def reasons(self) -> list[str]:
        """By which the labels of ``improve`` are chosen: a fifth of them is the audit."""
        return [f"audit:{self.labels / 5 / self.images}", *(one for one in DEFAULT_REASONS if one != "audit")]

    def corrupted(self, number: int) -> bool:
        """Whether images of a round have noise and blur."""
        return number >= (CORRUPTED_FROM if self.rounds > CORRUPTED_FROM else 3)

    def classes(self, number: int, names: tuple[str, ...]) -> list[str]:
        """The classes that are there in a round."""
        return [name for name in names if ARRIVALS.get(name, 0) <= number]


FULL = Season("full", base=10_000, rounds=10, images=4000, labels=200, epochs=12, test=10_000)
REDUCED = Season("reduced", base=2000, rounds=4, images=800, labels=100, epochs=6, test=1000)


class World:
    """The images of a season: the base, each round's traffic, and each round's test images."""

    def __init__(self, season: Season, data: Path, seed: int):
        images = load_dataset(data / "cifar10_jpg.zip", Geometry(size=(32, 32), channels=3))
        part = images.columns["split"]
        self.season, self.seed, self.names = season, seed, images.classes
        self.train, self.test = images.subset(part == "train"), images.subset(part == "test")
        self.left = np.random.default_rng(seed).permutation(len(self.train))
        self.truth = np.array(self.names)
        self.base = self._take(self.left, season.base, season.classes(0, self.names), self.train.labels)
        self.left = self.left[~np.isin(self.left, self.base)]
        self.traffic = []
        for number in range(1, season.rounds + 1):
            rows = self._take(self.left, season.images, season.classes(number, self.names), self.train.labels)
            self.left = self.left[~np.isin(self.left, rows)]
            self.traffic.append(np.random.default_rng([seed, number]).permutation(rows))

    def _take(self, rows: ndarray, count: int, classes: list[str], labels: ndarray) -> ndarray:
        """About equally many images of each class, the first ones."""
        each = [rows[labels[rows] == self.names.index(name)][: count // len(classes)] for name in classes]
        return np.concatenate(each)

    def round(self, number: int) -> tuple[ndarray, ndarray]:
        """Pixels (N H W C) and class names of a round's traffic."""
        rows = self.traffic[number - 1]
        return self._changed(self.train[rows], number), self.truth[self.train.labels[rows]]

    def label(self, id: str) -> str:
        """The true class of an answer, by its id."""
        number, i = int(id[4:8], 16), int(id[8:], 16)
        return str(self.truth[self.train.labels[self.traffic[number - 1][i]]])

    def tests(self, number: int) -> tuple[ndarray, ndarray]:
        """Pixels and class names of test images as they are in a round."""
        known = np.isin(self.truth[self.test.labels], self.season.classes(number, self.names))
        rows = np.flatnonzero(known)
        rows = np.random.default_rng(0).permutation(rows)[: self.season.test]
        return self._changed(self.test[rows], number), self.truth[self.test.labels[rows]]

    def _changed(self, pixels: ndarray, number: int) -> ndarray:
        if not self.season.corrupted(number):
            return pixels
        found = pixels.copy()
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        for k, name in enumerate(("gaussian-noise", "defocus-blur")):
            some = to_tensor(pixels[k::3], torch.device("cpu"))
            changed = CORRUPTIONS[name](some, 3, generator)
            found[k::3] = (changed * 255).round().byte().permute(0, 2, 3, 1).numpy()
        return found


def png(pixels: ndarray) -> bytes:
    """The bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def save_images(
    folder: Path, pixels: ndarray, labels: ndarray, split: ndarray | str
) -> list[tuple[str, str, str]]:
    """Write images; returns rows of a table."""
    folder.mkdir(parents=True, exist_ok=True)
    splits = np.full(len(labels), split, object) if isinstance(split, str) else split
    rows = []
    for i, one in enumerate(pixels):
        path = folder / f"{i}.png"
        path.write_bytes(png(one))
        rows.append((str(path), str(labels[i]), str(splits[i])))
    return rows


def make_table(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A table of images that ``train`` and ``learn`` read."""
    write_csv(path, [("path", "label", "split"), *rows])
    return path


def recipe(season: Season, seed: int) -> Recipe:
    """How the base and every retraining are trained."""
    return Recipe(model="resnet20", epochs=season.epochs, seed=seed, **WAY)


def accuracy(bundle: Path, pixels: ndarray, labels: ndarray) -> float:
    """Share of images whose class a classifier names."""
    classifier = Classifier.load(bundle).eval()
    names, right = np.array(classifier.classes), 0
    with torch.inference_mode():
        for i in range(0, len(pixels), 250):
            said = classifier(to_tensor(pixels[i : i + 250], torch.device("cpu"))).argmax(1).numpy()
            right += int((names[said] == labels[i : i + 250]).sum())
    return right / len(pixels)


class Player:
    """One seed of a season."""

    def __init__(self, season: Season, data: Path, work: Path, seed: int):
        self.season, self.seed = season, seed
        self.place = work / f"season-{season.name}-{seed}"
        self.world = World(season, data, seed)
        self.base_rows: list[tuple[str, str, str]] = []

    def prepare(self) -> None:
        """Write and train the base run, once."""
        labels = self.world.truth[self.world.train.labels[self.world.base]]
        draw = np.random.default_rng([self.seed, 99]).random(len(labels))
        split = np.where(draw < 0.8, "train", np.where(draw < 0.87, "val", "test")).astype(object)
        self.base_rows = save_images(self.place / "base", self.world.train[self.world.base], labels, split)
        table = make_table(self.place / "base.csv", self.base_rows)
        if not (self.place / "base-run" / "recipe.toml").is_file():
            train(table, recipe(self.season, self.seed), out=self.place / "base-run", overwrite=True)

    def random_labels(self, number: int) -> list[tuple[str, str, str]]:
        """A round's labels drawn at random."""
        pixels, labels = self.world.round(number)
        rows = np.random.default_rng([self.seed, number, 7]).permutation(len(labels))[: self.season.labels]
        return save_images(self.place / f"labels-{number}", pixels[rows], labels[rows], "train")

    def play(self, way: str, number: int) -> dict[str, Any]:
        """One round of one way: what it costs, and its accuracy afterwards."""
        began, facts = time.process_time(), {}
        if way == "never":
            bundle = self.place / "base-run" / "classifier"
        elif way == "naive":
            bundle = self._fine_tune(number)
        elif way == "retrain":
            bundle = self._retrain(number)
        else:
            bundle, facts = self._improve(number)
        seconds = facts.pop("seconds", time.process_time() - began)
        pixels, labels = self.world.tests(number)
        found = {"accuracy": accuracy(bundle, pixels, labels), "cpu_seconds": round(seconds, 1), **facts}
        if facts.get("decision") == "promoted":
            anchor = accuracy(load_release(self.place / "site", facts["anchor"]).bundle, pixels, labels)
            found["below_anchor"] = found["accuracy"] < anchor - ALLOWANCE
        return found

    def _fine_tune(self, number: int) -> Path:
        before = self.place / (f"naive-{number - 1}" if number > 1 else "base-run")
        table = make_table(self.place / f"labels-{number}.csv", self.random_labels(number))
        out = self.place / f"naive-{number}"
        if not (out / "recipe.toml").is_file():
            learn(before, table, by=["finetune"], out=out, seed=self.seed, device="cpu", held_out=(0.15, 0.0))
        return out / "classifier"

    def _retrain(self, number: int) -> Path:
        rows = [*self.base_rows, *(row for k in range(1, number + 1) for row in self.random_labels(k))]
        table = make_table(self.place / f"all-{number}.csv", rows)
        out = self.place / f"retrain-{number}"
        train(table, recipe(self.season, self.seed), out=out, overwrite=True)
        return out / "classifier"

    def _improve(self, number: int) -> tuple[Path, dict[str, Any]]:
        site = self.place / "site"
        if number == 1 and not (site / "current").is_file():
            publish(site, self.place / "base-run")
        pixels, _ = self.world.round(number)
        release = current_release(site)
        engine = open_engine(release.onnx, release=release.number, threads=1, reference=release.reference())
        files, answers = [png(one) for one in pixels], []
        for i in range(0, len(files), 64):
            answers += engine.predict([PredictRequest(files[i : i + 64])], RequestLimits())[0]
        records = []
        for i, (one, data) in enumerate(zip(answers, files, strict=True)):
            id = f"{self.seed:04x}{number:04x}{i:024x}"
            at = 1e9 + 86_400 * number + i
            records.append(
                PredictionRecord(
                    id,
                    at,
                    release.number,
                    one.label,
                    one.confidence,
                    one.abstained,
                    None,
                    image=data,
                    sketch_inputs=one.sketch_inputs,
                )
            )
        with Journal.open(site, keep_images=True, quota_mb=10_000) as journal:
            journal.record(records)
            journal.flush()
            before = time.process_time()  # a service answers anyway
            select(site, journal=journal, count=self.season.labels, by=self.season.reasons)
            asked = journal.queued()[: self.season.labels]
            for id, _ in asked:
                word, known = self.world.label(id), release.facts["classes"]
                confirmed = word == journal.find_row(id).label
                kind = "confirmed" if confirmed else "corrected" if word in known else "new class"
                journal.review([id], kind, word, by="oracle")
            anchor = _anchor(site)
            found = improve(site, journal=journal, seed=self.seed)
            spent = time.process_time() - before
        return current_release(site).bundle, {
            "seconds": spent,
            "decision": found.decision,
            "reasons": list(found.reasons),
            "release": found.release,
            "labels": len(asked),
            "anchor": anchor,
        }


def _anchor(site: Path) -> int:
    """The release that a candidate may not lose to, before it is judged."""
    return read_json_object(site / "improve" / "state.json").get("anchor") or current_release(site).number


def summarise(lines: list[dict[str, Any]], season: Season, seeds: list[int]) -> dict[str, Any]:
    """Accuracy by round and way, the share of the gap, the time, and releases below the anchor."""

    def curve(way: str, seed: int, what: str = "accuracy") -> list[float]:
        found = {one["round"]: one[what] for one in lines if (one["way"], one["seed"]) == (way, seed)}
        return [found[k] for k in range(1, season.rounds + 1)]

    shares, times = [], []
    for seed in seeds:
        mean = {way: float(np.mean(curve(way, seed))) for way in WAYS}
        shares.append((mean["improve"] - mean["never"]) / (mean["retrain"] - mean["never"]))
        times.append(sum(curve("improve", seed, "cpu_seconds")) / sum(curve("retrain", seed, "cpu_seconds")))
    ours = [one for one in lines if one["way"] == "improve" and one["seed"] in seeds]
    several = len(seeds) > 1
    return {
        "season": season.name,
        "seeds": seeds,
        "accuracy": {way: np.mean([curve(way, s) for s in seeds], 0).round(4).tolist() for way in WAYS},
        "share": shares,
        "share_interval": seeds_interval(shares).as_json() if several else None,
        "time": times,
        "promoted": sum(one["decision"] == "promoted" for one in ours),
        "below": sum(bool(one.get("below_anchor")) for one in ours),
        "decisions": [[one["seed"], one["round"], one["decision"], one["reasons"]] for one in ours],
    }


def plot(figures: dict[str, Any], path: Path) -> None:
    """Accuracy by round, one line for each way."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for way, values in figures["accuracy"].items():
        axes.plot(range(1, len(values) + 1), [100 * value for value in values], marker="o", label=way)
    axes.set(xlabel="round", ylabel="accuracy on test images of the round, %")
    axes.legend()
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def main() -> None:
    """Play what is missing, then print and keep the results."""
    asked = arguments(
        __doc__,
        reduced={"action": "store_true", "help": "a short season"},
        plot={"type": Path, "help": "a .png"},
        stop_after={"type": float, "default": float("inf"), "help": "minutes after which no round begins"},
    )
    deadline = time.time() + 60 * asked.stop_after
    season, book = REDUCED if asked.reduced else FULL, notebook("season", asked)
    for seed in range(asked.seeds):
        player = None
        for number in range(1, season.rounds + 1):
            for way in WAYS:
                key = {"season": season.name, "seed": seed, "way": way, "round": number}
                if book.find(**key) is None:
                    if time.time() > deadline:
                        raise SystemExit(1)
                    if player is None:
                        player = Player(season, asked.data, asked.work, seed)
                        player.prepare()
                    line = book.add(player.play(way, number), **key)
                    print(key, line["accuracy"], line["cpu_seconds"], line.get("decision", ""), flush=True)
    figures = summarise(list(book.all(season=season.name)), season, list(range(asked.seeds)))
    keep("season" if season is FULL else "season-reduced", figures)
    if asked.plot:
        plot(figures, asked.plot)


if __name__ == "__main__":
    main()
