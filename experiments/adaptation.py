"""Other worlds made of the data at hand: what each way to adapt gains, and what a few labels would.

    python experiments/adaptation.py [--parts jpeg corruptions framing mnist-m] [--seeds 3] [--data FOLDER_OF_ZIPS]

jpeg: a third party's ResNet-20, trained on lossless CIFAR-10, on the JPEG test images; statistics of batch norms from
unlabelled JPEG training images, 20 and 100 in 5 draws. corruptions: the same network under noise and blur at severity
5, statistics from 500 corrupted training images. framing: MNIST, box filtered to 8 x 8, and scikit-learn's digits,
before and after a crop to the digit. mnist-m: MNIST to MNIST-M (Ganin and Lempitsky), made with the photos, by the
terms of --adapt, the last epoch, weights as published or 1, chosen without a label of the target. The parts jpeg,
corruptions and mnist-m show what fine-tuning the last layer on 20 and on 200 labelled target images gives (5 draws).
Stopped, it goes on where it was.
"""

import io
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import WAY, arguments, keep, notebook, told
from numpy import ndarray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from sightline.adaptation.batch_norm import AdaBN, Interpolate, Tent
from sightline.adaptation.judging import features_and_logits, tune_last_layer
from sightline.classifier import Classifier
from sightline.comparison.candidates import pack_bits, unpack_bits
from sightline.data import load_dataset, to_tensor
from sightline.inference import predict_correct
from sightline.metrics import paired_difference, seeds_interval, wilson
from sightline.preprocessing import to_uint8
from sightline.robustness import CORRUPTIONS
from sightline.runtime import make_generator, permutation
from sightline.sources import find
from sightline.training import Recipe, train
from sightline.training.run import train_on_splits
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Dataset, Geometry, Splits

PARTS = ("jpeg", "corruptions", "framing", "mnist-m")
CORRUPTED = (
    "gaussian-noise",
    "shot-noise",
    "impulse-noise",
    "defocus-blur",
    "glass-blur",
    "motion-blur",
    "zoom-blur",
)
CORRUPTED += ("brightness", "contrast", "jpeg")
TERMS = ("none", "dann", "mcc", "coral")
SMALL = Recipe(model="small-cnn", batch_size=128, lr=0.01, augment=(), normalize="fitted", **WAY)
TRAINED, TARGETS, TESTED = 20_000, 20_000, 9_000
DRAWS, LABELS = 5, (20, 200)


def main() -> None:
    """Each part."""
    asked = arguments(
        __doc__,
        parts={"nargs": "*", "default": PARTS, "choices": PARTS},
        terms={"nargs": "*", "default": TERMS, "choices": TERMS},
        lr={"type": float, "default": 0.01, "help": "of MNIST-M: the peak rate"},
        epochs={"type": int, "default": 19, "help": "of MNIST-M: 19 are 3,000 steps"},
    )
    book, figures = notebook("adaptation", asked), {}
    for part in asked.parts:
        figures[part] = MEASURES[part](asked, book)
    keep("adaptation" if tuple(asked.parts) == PARTS else f"adaptation-{'-'.join(asked.parts)}", figures)


def third_party(data: Path) -> Classifier:
    """ResNet-20 as its authors trained it; nothing is trained."""
    weights = data.parent / "weights" / "resnet20-12fca82f.th"
    recipe = Recipe(model="resnet20", weights=str(weights), normalize="imagenet", epochs=0)
    with tempfile.TemporaryDirectory() as place:
        return train(data / "cifar10_jpg.zip", recipe, out=Path(place) / "run").classifier.eval()


def cifar(data: Path, split: str, count: int | None = None) -> Dataset:
    """JPEG images of a split, in random order."""
    images = load_dataset(find(data / "cifar10_jpg.zip"), Geometry(size=(32, 32)))
    chosen = np.flatnonzero(images.columns["split"] == split)
    return images.subset(chosen[permutation(len(chosen), 24)][:count])


def row(right: ndarray, before: ndarray) -> dict[str, Any]:
    """Accuracy, and the change in points, paired by image."""
    accuracy, change = wilson(float(right.sum()), len(right)), paired_difference(right, before)
    return {
        "accuracy": round(100 * accuracy.value, 2),
        "interval_95": [round(100 * one, 2) for one in (accuracy.low, accuracy.high)],
        "points": round(100 * change.value, 2),
        "points_95": [round(100 * one, 2) for one in (change.low, change.high)],
    }


def tent_online(classifier: Classifier, images: Dataset) -> ndarray:
    """Which answers of TENT, each given before the step on its batch, are right."""
    adapted = Interpolate(0.0)(classifier, images.subset(np.arange(100)))
    pixels = (to_tensor(images[start : start + 200]) for start in range(0, len(images), 200))
    return (torch.cat([*Tent().stream(adapted, pixels)]).argmax(1) == torch.from_numpy(images.labels)).numpy()


def with_labels(classifier: Classifier, pool: Dataset, test: Dataset) -> dict[str, Any]:
    """The last layer fine-tuned on a few labelled images of the pool: mean over draws, with Student's interval."""
    known, found = features_and_logits(classifier, test), {}
    f, z = features_and_logits(classifier, pool)
    labels = torch.from_numpy(pool.labels)
    before = float((known[1].argmax(1).numpy() == test.labels).mean())
    for count in LABELS:
        accuracies = []
        for draw in range(DRAWS):
            some = torch.from_numpy(permutation(len(pool), draw, count)[:count])
            weight, bias = tune_last_layer(f[some], z[some], labels[some])
            answers = (known[1] + known[0] @ weight.T + bias).argmax(1).numpy()
            accuracies.append(100 * float((answers == test.labels).mean()))
        mean = seeds_interval(accuracies)
        found[f"{count} labels"] = {
            "accuracy": round(mean.value, 2),
            "interval_95": [round(mean.low, 2), round(mean.high, 2)],
            "points": round(mean.value - 100 * before, 2),
        }
    return found


def measure_jpeg(asked: Any, book: Any) -> dict[str, Any]:
    """Lossless to JPEG. Each measurement is kept: which of the test images are then right."""
    classifier, test, pool = third_party(asked.data), cifar(asked.data, "test"), cifar(asked.data, "train", 10_000)

    def measure(what: str, compute: Callable[[], ndarray]) -> ndarray:
        line = book.find(part="jpeg", what=what)
        if line is None:
            line = book.add({"right": pack_bits(compute())}, part="jpeg", what=what)
            print(what, unpack_bits(line["right"], len(test)).mean(), flush=True)
        return unpack_bits(line["right"], len(test))

    def adapted(adapter: Any, count: int, draw: int = 0) -> ndarray:
        some = pool.subset(np.arange(count * draw, count * (draw + 1)))
        return predict_correct(adapter(classifier, some), test)

    before = measure("source", lambda: predict_correct(classifier, test))
    rows = {"source": row(before, before)}
    adapters = {"interpolate": Interpolate(), "adabn": AdaBN()}
    for count, draws in ((100, DRAWS), (20, DRAWS), (1000, 1), (10_000, 1)):
        for name, adapter in adapters.items():
            right = [
                measure(f"{name} {count} {draw}", partial(adapted, adapter, count, draw)) for draw in range(draws)
            ]
            rows[f"{name}, {count} images"] = row(np.mean(right, axis=0), before) | {
                "points_of_draws": [round(100 * float(each.mean() - before.mean()), 2) for each in right]
            }
    tents = {
        "tent, 10000 images, then tested": partial(adapted, Tent(), 10_000),
        "tent online, on the test images": partial(tent_online, classifier, test),
    }
    rows |= {what: row(measure(what, compute), before) for what, compute in tents.items()}
    if (line := book.find(part="jpeg", what="labels")) is None:
        few, half = cifar(asked.data, "train", 2000), Interpolate()(classifier, pool.subset(np.arange(100)))
        found = {
            f"{name}, last layer on {count}": each
            for name, one in (("source", classifier), ("interpolate", half))
            for count, each in with_labels(one, few, test).items()
        }
        line = book.add({"rows": found}, part="jpeg", what="labels")
    return rows | line["rows"]


def corrupted(images: Dataset, name: str, stream: int) -> Dataset:
    """The images under a corruption at severity 5, in memory."""
    parts = []
    for start in range(0, len(images), 256):
        generator = make_generator(24, start, stream)
        parts.append(to_uint8(CORRUPTIONS[name](to_tensor(images[start : start + 256]), 5, generator)))
    return replace(images, pixels=np.concatenate(parts), rows=np.arange(len(images)))


def measure_corruptions(asked: Any, book: Any) -> dict[str, Any]:
    """CIFAR-10 to its corruptions."""
    classifier, found = None, {}
    for name in CORRUPTED:
        if (kept := book.find(part="corruptions", name=name)) is None:
            classifier = classifier or third_party(asked.data)
            test = corrupted(cifar(asked.data, "test", 2000), name, 1)
            pool = corrupted(cifar(asked.data, "train", 500), name, 2)
            before = predict_correct(classifier, test)
            rows = {"source": row(before, before)}
            for word, adapter in (("interpolate", Interpolate()), ("adabn", AdaBN()), ("tent", Tent())):
                rows[word] = row(predict_correct(adapter(classifier, pool), test), before)
            rows |= with_labels(classifier, pool, test)
            kept = book.add({"rows": rows}, part="corruptions", name=name)
            print(name, {word: one["accuracy"] for word, one in rows.items()}, flush=True)
        found[name] = kept["rows"]
    return found


def crop_to_ink(pixels: ndarray, side: int = 8) -> ndarray:
    """Each image (N, H, W), cropped to what is brighter than a quarter of its maximum, squared and box filtered."""
    made = []
    for image in pixels:
        rows, columns = np.nonzero(image > image.max() / 4)
        part = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        made.append(np.asarray(Image.fromarray(part).resize((side, side), Image.Resampling.BOX), np.float64))
    return np.stack(made)


def measure_framing(asked: Any, book: Any) -> dict[str, Any]:
    """MNIST to scikit-learn's digits and back, as they are and cropped to the digit."""
    if (kept := book.find(part="framing")) is not None:
        return kept["rows"]
    mnist = load_dataset(find(asked.data / "mnist_png.zip"), Geometry(size=(28, 28), channels=1))
    mnist = mnist.subset(permutation(len(mnist), 24)[:10_000])
    digits = load_digits()
    raw = {"mnist": mnist[:][..., 0], "digits": (digits.images * 15.9).astype(np.uint8)}
    whole = [np.asarray(Image.fromarray(one).resize((8, 8), Image.Resampling.BOX), float) for one in raw["mnist"]]
    views = {
        "as they are": {"mnist": np.stack(whole), "digits": raw["digits"].astype(float)},
        "cropped": {name: crop_to_ink(one) for name, one in raw.items()},
    }
    labels = {"mnist": mnist.labels.astype(np.int64), "digits": digits.target}
    rows: dict[str, Any] = {}
    for framing, view in views.items():
        for source, target in (("mnist", "digits"), ("digits", "mnist")):
            x, y = (view[name].reshape(len(view[name]), -1) / 255 for name in (source, target))
            for aligned in (False, True):
                a, b = ((one - one.mean(0)) / (one.std(0) + 0.1) for one in (x, y)) if aligned else (x, y)
                for name, made in (
                    ("logistic regression", LogisticRegression(max_iter=2000)),
                    ("3-NN", KNeighborsClassifier(3)),
                ):
                    right = made.fit(a, labels[source]).predict(b) == labels[target]
                    key = f"{source} to {target}, {framing}{', standardised' * aligned}: {name}"
                    rows[key] = round(100 * float(right.mean()), 1)
                    print(key, rows[key], flush=True)
    return book.add({"rows": rows}, part="framing")["rows"]


def backgrounds(data: Path, split: str) -> list[ndarray]:
    """Colour photos of a split, in their own size."""
    with zipfile.ZipFile(data / "photos_jpg.zip") as archive:
        names = sorted(name for name in archive.namelist() if f"/{split}/" in f"/{name}" and name.endswith(".jpg"))
        return [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]


def mnist_m(grey: Dataset, photos: list[ndarray], seed: int) -> Dataset:
    """|crop of a photo - digit| for each channel, in memory."""
    rng, digits = np.random.default_rng([seed, 12]), grey[:].astype(np.int16)
    made = np.empty((len(grey), 28, 28, 3), np.uint8)
    for number, digit in enumerate(digits):
        photo = photos[rng.integers(len(photos))]
        top, left = (rng.integers(0, side - 28 + 1) for side in photo.shape[:2])
        made[number] = np.abs(photo[top : top + 28, left : left + 28].astype(np.int16) - digit)
    return coloured(grey, made)


def coloured(grey: Dataset, pixels: ndarray) -> Dataset:
    """The images with other pixels of three channels."""
    return replace(grey, pixels=pixels, rows=np.arange(len(grey)), geometry=replace(grey.geometry, channels=3))


def measure_mnist_m(asked: Any, book: Any) -> dict[str, Any]:
    """MNIST to MNIST-M; training images, photos and test images of one never meet those of the other."""
    lines: dict[str, list[dict[str, Any]]] = {word: [] for word in asked.terms}
    recipe = SMALL.replace(epochs=asked.epochs, lr=asked.lr)
    for seed in range(asked.seeds):
        worlds = None
        for word in asked.terms:
            kept = book.find(part="mnist-m", seed=seed, word=word, recipe=told(recipe))
            if kept is None:
                worlds = worlds or make_worlds(asked.data, seed)
                kept = book.add(
                    train_for(word, recipe.replace(seed=seed), *worlds), part="mnist-m", seed=seed, word=word,
                    recipe=told(recipe),
                )  # fmt: skip
                print(seed, word, kept, flush=True)
            lines[word].append(kept)
    found = {}
    for word, own in lines.items():
        for name in own[0].keys() & {"accuracy", "source", "20 labels", "200 labels", "interpolate", "adabn"}:
            values = [line[name] for line in own]
            mean = seeds_interval(values) if len(values) > 1 else None
            gain = [a[name] - b["accuracy"] for a, b in zip(own, lines["none"], strict=True)]
            found[f"{word}: {name}"] = {
                "mean": round(float(np.mean(values)), 2),
                "interval_95": None if mean is None else [round(mean.low, 2), round(mean.high, 2)],
                "values": values,
                "points": round(float(np.mean(gain)), 2) if name != "source" else None,
            }
    return found


def make_worlds(data: Path, seed: int) -> tuple[Splits, Dataset, Dataset]:
    """MNIST's splits in three channels; target training images, of other digits; target test images."""
    grey = load_dataset(find(data / "mnist_png.zip"), Geometry(size=(28, 28), channels=1))
    train_rows, test_rows = (
        np.flatnonzero(grey.columns["split"] == name)[
            permutation(int((grey.columns["split"] == name).sum()), seed, 12)
        ]
        for name in ("train", "test")
    )
    own, val = train_rows[:TRAINED], train_rows[TRAINED : TRAINED + 2000]
    other = train_rows[TRAINED + 2000 : TRAINED + 2000 + TARGETS]
    three = [
        coloured(part, np.repeat(part[:], 3, axis=3))
        for part in (grey.subset(rows) for rows in (own, val, test_rows[:1000]))
    ]
    target = mnist_m(grey.subset(other), backgrounds(data, "train"), seed)
    test = mnist_m(grey.subset(test_rows[1000 : 1000 + TESTED]), backgrounds(data, "test"), seed + 1000)
    return Splits(*three), target, test


def train_for(word: str, recipe: Recipe, splits: Splits, target: Dataset, test: Dataset) -> dict[str, Any]:
    """One training, and its accuracy on target test images; then with statistics of 1,000 target images too."""
    with tempfile.TemporaryDirectory() as place:
        if word != "none":
            folder = Path(place) / "target"
            folder.mkdir()
            noise = permutation(len(target), 12) % 10  # a file of arrays has labels; these are noise
            np.savez(folder / "images.npz", images=target[:], labels=noise)
            recipe = recipe.replace(adapt=word, target=str(folder / "images.npz"))
        run = train_on_splits(splits, recipe, SilentRunFolder(Path(place) / "run"))
    found = {
        "accuracy": round(100 * float(predict_correct(run.classifier, test).mean()), 2),
        "source": round(100 * float(predict_correct(run.classifier, splits.test).mean()), 2),
        "seconds": round(run.facts["seconds"]),
        "remarks": list(run.facts["remarks"]),
    }
    found |= {name: one["accuracy"] for name, one in with_labels(run.classifier, target, test).items()}
    for name, adapter in (("interpolate", Interpolate()), ("adabn", AdaBN())):
        adapted = adapter(run.classifier, target.subset(np.arange(1000)))
        found[name] = round(100 * float(predict_correct(adapted, test).mean()), 2)
    return found


MEASURES: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "jpeg": measure_jpeg,
    "corruptions": measure_corruptions,
    "framing": measure_framing,
    "mnist-m": measure_mnist_m,
}

if __name__ == "__main__":
    main()
