"""Add classes from 20 images each: ``learn`` compared with fine-tuning and retraining: accuracy and seconds.

    python benchmarks/learning.py [FOLDER_OF_ZIPS] [--seeds 5] [--sets mnist waste more many] [--ways lda ranpac replay]
    python benchmarks/learning.py --costs
    python benchmarks/learning.py --heads | --kinds

mnist: LeNet-5 is trained on digits 0 to 7, 300 images each; 8 and 9 come with 20 images each; all 10,000 test images.
waste: a last layer on published weights knows five kinds of waste; the sixth comes with 20 photos; all test photos.
Without retraining, which takes half an hour. Which class is new is drawn by the seed. Each seed draws other images.
Seconds of ``lda`` are from the images' features to the classifier, tested; those of features are apart.
more: LeNet-5 is trained on 300 images of each digit, and 30 more of each come: seconds of ``replay`` as a share of
those of training by the same recipe on all of them. many: the same with 3,000 images of each digit, and 300 more
(learning_many.json).
Results of other --ways are recorded as learning_ways.json, by the same images and seeds.

--costs: milliseconds of a training step and bytes of memory of every strategy, the steps of all taken in turn: LeNet-5,
batches of 64, five old and five new digits, 500 images remembered; as a multiple of a step of fine-tuning.

--heads: heads computed from features of the embedded backbone, by which rules were chosen: of the *training* photos of
waste 30 % of each kind are held out; of the others one kind has 17, each kind in turn, by --seeds draws.
--kinds: the heads chosen so, on the test photos of waste: each kind in turn is the new one, with 20 photos.
"""

import argparse
import copy
import shutil
import tempfile
import time
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from record import Notebook, record, shared

from sightline.continual import DEFAULT_WAYS, STRATEGIES, Past, Task, learn
from sightline.continual.protocol import learn_task
from sightline.continual.statistics import FeatureStatistics, RidgeStatistics, random_projection
from sightline.data import load_dataset, nested_subset
from sightline.features import embed_cached
from sightline.metrics import seeds_interval
from sightline.runtime import permutation
from sightline.sources import find
from sightline.training import (
    Recipe,
    build_classifier,
    build_published_start,
    resolve,
    solve_discriminant,
    start_training,
    train,
)
from sightline.training.gradients import SingleReplica
from sightline.types import Geometry, Splits

NEW_IMAGES = 20
MORE = ("more", "many")
"""Sets in which a tenth as many images come of every class."""
PHOTO = Geometry(size=(224, 224), channels=3, resize_mode="crop", crop_fraction=0.875, interpolation="bicubic")
"""As the card of the embedded weights says."""
ROUNDS, ROUND_STEPS = 5, 10


def main() -> None:
    """Measure what is not there yet; print means over the seeds with intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=("mnist", "waste", "more", "many"), default=["mnist"])
    parser.add_argument("--ways", nargs="+", default=[*DEFAULT_WAYS])
    parser.add_argument("--costs", action="store_true")
    parser.add_argument("--heads", action="store_true")
    parser.add_argument("--kinds", action="store_true")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-learning")
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    if asked.costs:
        record("learning_costs", measure_costs(shared(asked.data)))
        return
    if asked.heads:
        record("learning_heads", compare_heads(shared(asked.data), asked.seeds))
        return
    if asked.kinds:
        record("learning_kinds", compare_heads(shared(asked.data), asked.seeds, on_test=True))
        return
    book = Notebook(asked.work / "learning.jsonl", fresh=asked.fresh)
    figures = {}
    for name in asked.sets:
        rows = [measure(book, shared(asked.data), name, asked.ways, seed) for seed in range(asked.seeds)]
        for row in rows:
            row["ways"]["chosen"] = row["ways"][row["chosen"]]
        figures[name] = {"seeds": asked.seeds, "before": mean([row["before"] for row in rows])}
        for way in rows[0]["ways"]:
            figures[name][way] = {
                what: mean([row["ways"][way][what] for row in rows]) for what in rows[0]["ways"][way]
            }
        figures[name]["kept"] = [row["chosen"] for row in rows]
        if "replay" in asked.ways and "retraining_seconds" in rows[0]:
            figures[name]["retraining_seconds"] = mean([row["retraining_seconds"] for row in rows])
            figures[name]["replay_of_retraining"] = mean(
                [row["ways"]["replay"]["seconds"] / row["retraining_seconds"] for row in rows]
            )
    usual = "learning_many" if asked.sets == ["many"] else "learning"
    record(usual if tuple(asked.ways) == DEFAULT_WAYS else "learning_ways", figures)


def mean(values):
    """The mean over the seeds, with its interval where there are several."""
    return seeds_interval(values).as_json() if len(values) > 1 else values[0]


def measure(book, data, name, words, seed):
    """One seed: the base run, then ``learn`` by every way; remembered."""
    known = book.find(set=name, seed=seed, words=list(words))
    if known is not None:
        return known
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        archive = data / ("waste_jpg.zip" if name == "waste" else "mnist_png.zip")
        source = find(archive)
        order = permutation(len(source.classes), seed, 93)
        fresh = {"waste": set(order[:1].tolist()), "mnist": {8, 9}}.get(name, set())
        count = {"waste": None, "many": 3000}.get(name, 300)
        write_images(source, folder, fresh, count, seed, more=name in MORE)
        recipe = (
            Recipe(seed=seed, method="probe") if name == "waste" else Recipe(model="lenet5", epochs=12, seed=seed)
        )
        run = train(folder / "old", recipe, out=folder / "run")
        before = (run.classifier.predict(sorted((folder / "old" / "test").rglob("*.*g"))), run.classifier.classes)
        truth = [path.parent.name for path in sorted((folder / "old" / "test").rglob("*.*g"))]
        right = float(np.mean([one.label == t for one, t in zip(before[0], truth, strict=True)]))
        began = time.perf_counter()
        found = learn(
            folder / "run", folder / "new", by=words, full=name != "waste", out=folder / "learned", seed=seed
        )
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
        line = {
            "set": name,
            "seed": seed,
            "words": list(words),
            "before": right,
            "ways": ways,
            "chosen": found.chosen,
        }
        line["seconds"] = time.perf_counter() - began
        if name in MORE:
            for part in ("old", "new"):
                shutil.copytree(folder / part, folder / "both", dirs_exist_ok=True)
            began = time.perf_counter()
            train(folder / "both", recipe, out=folder / "retrained")
            line["retraining_seconds"] = time.perf_counter() - began
    book.add(line)
    print(line, flush=True)
    return line


def write_images(source, folder, fresh, count, seed, *, more):
    """Class folders of the old classes and of the new ones, with the archive's own test images.

    With ``more`` the new images are a tenth as many of every class, and a tenth of the test images.
    """
    splits = source.columns["split"]
    for k, name in enumerate(source.classes):
        for part in ("train", "test"):
            own = np.flatnonzero((source.labels == k) & (splits == part))
            own = own[permutation(len(own), seed, 94, k)]
            most = len(own) if part == "test" else NEW_IMAGES if k in fresh else count
            shares = {"new" if k in fresh else "old": own[:most]}
            if more:
                tenth = len(own) // 10 if part == "test" else count // 10
                shares = {"new": own[-tenth:], "old": own[:-tenth][:most]}
            for where, rows in shares.items():
                place = folder / where / part / str(name)
                place.mkdir(parents=True)
                for row in rows.tolist():
                    (place / Path(str(source.files[row])).name).write_bytes(source.read(row))


def compare_heads(data, seeds, *, on_test=False):
    """Recall of old kinds, of the new kind and of all, by rule, on held-out training photos or on the test photos."""
    images = load_dataset(data / "waste_jpg.zip", PHOTO)
    testing = images.columns["split"] == "test"
    if not on_test:
        images, testing = images.subset(~testing), np.zeros(int((~testing).sum()), bool)
    features = embed_cached(build_published_start(images, torch.device("cpu")), images)
    labels, count = images.labels, len(images.classes)
    projection = random_projection(features.shape[1], 1000, 0).numpy().T
    spent = {}
    for seed in range(seeds):
        for new in range(count):
            shown, held = [], []
            for k in range(count):
                own = np.flatnonzero((labels == k) & ~testing)
                own = own[permutation(len(own), seed, 95, new, k)]
                first = 0 if on_test else int(0.3 * len(own))
                few = NEW_IMAGES if on_test else 17
                held.append(np.flatnonzero((labels == k) & testing) if on_test else own[:first])
                shown.append(own[first : first + few] if k == new else own[first:])
            x, y = features[np.concatenate(shown)], labels[np.concatenate(shown)]
            tested, truth = features[np.concatenate(held)], labels[np.concatenate(held)]
            sums = FeatureStatistics.of(x, y, images.classes)
            heads = {"corrected, shrinkage D / (D + N)": sums.fit_lda()}
            if not on_test:
                plain = solve_discriminant(sums.means, sums.covariance(), np.full(count, 1 / count), 0.1)
                heads |= {
                    "plain rule, shrinkage 0.1": plain,
                    **{f"corrected, shrinkage {g}": sums.fit_lda(g) for g in (0.1, 0.3, 0.6)},
                }
            scores = {name: tested @ one.weight.numpy().T + one.bias.numpy() for name, one in heads.items()}
            weights, _ = RidgeStatistics.of(np.maximum(x @ projection, 0), y, images.classes).fit()
            scores["ranpac"] = np.maximum(tested @ projection, 0) @ weights
            for name, score in scores.items():
                recall = [float((score.argmax(1) == truth)[truth == k].mean()) for k in range(count)]
                old = [one for k, one in enumerate(recall) if k != new]
                for what, value in (("old", np.mean(old)), ("new", recall[new]), ("balanced", np.mean(recall))):
                    spent.setdefault(name, {}).setdefault(what, []).append(float(value))
                spent[name].setdefault(f"new: {images.classes[new]}", []).append(recall[new])
    return {name: {what: float(np.mean(values)) for what, values in one.items()} for name, one in spent.items()}


def measure_costs(data):
    """Milliseconds of a step, and bytes of memory, by strategy; of computed heads those of the whole lesson."""
    images = load_dataset(data / "mnist_png.zip", Geometry(size=(28, 28), channels=1))
    train = images.subset(images.columns["split"] == "train")
    train = train.subset(nested_subset(train.labels, 3000 / len(train), 0))
    old, new = train.subset(train.labels < 5), train.subset(train.labels >= 5)
    recipe = Recipe(model="lenet5", lr=0.02, batch_size=64, epochs=1, schedule="constant", warmup=0.0, augment=())
    plan = resolve(recipe.replace(size=28, channels=1)).fit_to(train)
    classifier, _ = build_classifier(plan, Splits(train, train, train), torch.device("cpu"))
    nothing = Past(images=old.subset(np.zeros(0, np.int64)), tasks=np.zeros(0, np.int64))
    first = Task(classifier=classifier, previous=None, new=old, past=nothing, plan=plan, memory_size=500)
    learn_task(STRATEGIES["finetune"](), first)
    steps, figures = {}, {}
    for word, kind in STRATEGIES.items():
        strategy = kind()
        if strategy.computes_head or word == "keep":
            began = time.perf_counter()
            task = replace(first, previous=classifier, new=train)
            if word != "keep":
                strategy.answer(task, strategy.remember(task))
            figures[word] = {"ms_a_lesson": 1000 * (time.perf_counter() - began)}
        past = strategy.remember(replace(first, classifier=copy.deepcopy(classifier)))
        figures.setdefault(word, {})["memory_bytes"] = past.memory_bytes
        task = replace(
            first, classifier=copy.deepcopy(classifier), previous=classifier, new=new, past=past, old_classes=range(5),
            plan=strategy.adjust(plan),
        )  # fmt: skip
        if not strategy.computes_head and (method := strategy.method(task)) is not None:
            state = start_training(task.classifier, task.plan, method)
            steps[word] = (state, method, SingleReplica(state.classifier))
    spent = {word: [] for word in steps}
    for number in range(ROUNDS):
        for word, (state, method, gradients) in steps.items():
            state.classifier.train()
            batches = islice(cycle(method.batches(number, 0)), ROUND_STEPS)
            began = time.perf_counter()
            for batch in batches:
                method.step(state, gradients, method.objective, batch)
            spent[word].append(1000 * (time.perf_counter() - began) / ROUND_STEPS)
    for word, values in spent.items():
        figures[word] |= {"ms_a_step": float(np.median(values[1:]))}
        figures[word]["of_a_finetuning_step"] = figures[word]["ms_a_step"] / float(
            np.median(spent["finetune"][1:])
        )
    return figures


if __name__ == "__main__":
    main()
