"""Streams of tasks: every strategy on Split and Permuted MNIST, Split CIFAR-10, photos and waste; published figures.

    python experiments/continual.py [--suites split-class ...] [--seeds 5] [--workers 2] [--stop-after MINUTES]

- split-class: 5 tasks of 2 digits, any digit may be asked for. MLP 400-400, Adam at 1e-3, 2,000 steps a task of 128
  images (van de Ven and Tolias 2019), memory 500. ``icarl`` by both of van de Ven's protocols: 2,000 exemplars in all
  (2019), and 100 for each class (van de Ven et al. 2022).
- split-task: the same, the task of an image is known. The weight of EWC is the best of a grid on validation images.
- split-online: 1,000 images a task, seen once, in batches of 10 new and 10 remembered images, SGD at 0.1, MLP 400-400,
  memory 500 (Aljundi et al. 2019).
- permuted: 10 permutations of the pixels, 1,000 images a task, seen once, MLP 100-100, SGD at 0.1, batches of 10,
  memory 500 (Lopez-Paz and Ranzato 2017, Aljundi et al. 2019). ``rotated``: the same with 10 rotations.
- cifar-online: 5 tasks of 2 classes, each image seen once, batches of 10 new and 10 remembered images, memory 500,
  ResNet-20 rather than the papers' slim ResNet-18, on JPEGs rather than PNGs.
- cifar-reduced: the same with 2,000 images a task, and a quarter of GDumb's passes: what ``make proof`` has time for.
- waste, photos: tasks of 2 classes (waste) and of 1 (photos) on the features of the embedded backbone, which are kept
  in 8 bits; a linear layer learns. Memory 5 images a class.

All strategies of a suite learn the same images in the same order of tasks with the same seeds. Of each class 5 % of
the training images (15 % of waste and photos) are for validation: they choose the weight of EWC and, for the row
``default``, between the ways of ``learn``. The test images choose nothing.

Each measurement is a line of ``results/continual.jsonl``: a run that was stopped goes on; ``--again gdumb`` measures a
strategy again. ``--workers`` processes of one thread each measure at once. After ``--stop-after`` minutes no
measurement begins, and the exit status is 1. Seconds are of the processor. The tables are in
``results/continual.json`` and, between marks, in ``docs/continual.md``.
"""

import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, Notebook, arguments, keep, told

from sightline.choose import choose
from sightline.continual import (
    DEFAULT_WAYS,
    STREAMS,
    Stream,
    StreamComparison,
    StreamResult,
    hold_out,
    parse_strategies,
    run_stream,
)
from sightline.data import load_dataset, nested_subset
from sightline.features import embed_cached
from sightline.metrics import seeds_interval
from sightline.training import Recipe, build_published_start
from sightline.types import Dataset, Geometry


@dataclass(frozen=True)
class Entry:
    """A row of a suite's table."""

    strategy: str
    published: str = ""
    grid: tuple[str, ...] = ()
    """Words of which the best on validation images of the first seed is measured."""
    memory: int | None = None
    per_class: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)
    """What differs from the suite's recipe."""


@dataclass(frozen=True)
class Suite:
    """A stream, how it is learned, and by which strategies."""

    stream: str
    data: str
    recipe: Recipe
    entries: tuple[Entry, ...]
    images: int | None = None
    """Training images a task; None for all."""
    memory: int = 500
    online: bool = False
    validation: float = 0.05
    minutes: float = 1.0
    """Processor minutes of a measurement on a Xeon with AMX, about."""


SGD = Recipe(
    model="mlp:hidden=[400,400]", optimizer="sgd:nesterov=False", momentum=0.0, weight_decay=0.0, lr=0.1, warmup=0.0,
    schedule="constant", batch_size=20, epochs=1, augment=(), normalize="none", precision="float32",
)  # fmt: skip
ADAM = SGD.replace(optimizer="adam", lr=1e-3, batch_size=128, epochs=1000, steps=2000)
FULL = {"steps": None, "epochs": 1}
"""For strategies that train on passes over their memory, or that learn by a recipe of their own."""
ALONE = {"batch_size": 10}
"""For strategies that replay nothing, where the others learn 10 new images a step."""
HEADS = (Entry("lda"), Entry("means"), Entry("ranpac"))
ONLINE_HEADS = tuple(replace(one, recipe=ALONE) for one in HEADS)

SUITES = {
    "split-class": Suite(
        "class:5", "mnist", ADAM,
        (
            Entry("finetune", "19.9"), Entry("ewc:weight=1e5:images=100", "20.0"), Entry("lwf", "23.9"), *HEADS,
            Entry("replay"), Entry("er-ace"), Entry("der"), Entry("mir"), Entry("a-gem"),
            Entry("icarl", "94.6 (memory 2,000)", memory=2000),
            Entry("icarl", "92.5 (100 a class)", memory=100, per_class=True),
            Entry("gdumb", "91.9", recipe=FULL), Entry("retrain", "97.9"),
        ),
    ),
    "split-task": Suite(
        "task:5", "mnist", ADAM,
        (
            Entry("finetune", "87.2"), Entry("lwf", "99.6"),
            Entry("ewc", "98.6", grid=tuple(f"ewc:weight={w}" for w in ("1e3", "1e4", "1e5", "1e6", "1e7"))),
            Entry("replay"), Entry("a-gem"), Entry("gem:size=100"),
        ),
    ),
    "split-online": Suite(
        "class:5", "mnist", SGD,
        (
            Entry("finetune", recipe=ALONE), Entry("replay:share=0.5", "82.1"), Entry("mir", "87.6"), Entry("er-ace"),
            Entry("der"), *ONLINE_HEADS, Entry("gdumb", recipe=FULL),
        ),
        images=1000, online=True, minutes=0.1,
    ),
    "permuted": Suite(
        "permuted:10", "mnist", SGD.replace(model="mlp:hidden=[100,100]"),
        (
            Entry("finetune", recipe=ALONE), Entry("ewc:weight=10", recipe=ALONE), Entry("lwf", recipe=ALONE),
            Entry("replay:share=0.5", "78.9"), Entry("mir", "80.1"), Entry("er-ace"), Entry("a-gem", recipe=ALONE),
            Entry("gem:size=50", "83 (20 tasks)", recipe=ALONE), *ONLINE_HEADS, Entry("gdumb", recipe=FULL),
        ),
        images=1000, online=True, minutes=0.2,
    ),
    "rotated": Suite(
        "rotated:10", "mnist", SGD.replace(model="mlp:hidden=[100,100]"),
        (
            Entry("finetune", recipe=ALONE), Entry("replay:share=0.5"), Entry("mir"),
            Entry("gem:size=50", "86 (20 tasks)", recipe=ALONE), *ONLINE_HEADS, Entry("gdumb", recipe=FULL),
        ),
        images=1000, online=True, minutes=0.3,
    ),
    "cifar-online": Suite(
        "class:5", "cifar10", SGD.replace(model="resnet20", lr=0.05, normalize="fitted", augment=("flip", "shift:4")),
        (
            Entry("finetune", "18.1", recipe=ALONE), Entry("replay:share=0.5", "49.4 (100 a class), 40.3 (20 a class)"),
            Entry("er-ace", "52.2 (100 a class), 42.6 (20 a class)"), Entry("mir", "40.0"), *ONLINE_HEADS,
            Entry("gdumb:passes=256:cutmix=True", "45.8", recipe=FULL),
        ),
        online=True, minutes=15,
    ),
    "waste": Suite(
        "class:3", "waste", SGD.replace(
            model="mlp:hidden=[]", optimizer="adam", lr=1e-3, batch_size=32, epochs=20, augment=("shift:0",)
        ),
        (
            Entry("finetune"), Entry("ewc:weight=100"), Entry("lwf"), *HEADS, Entry("replay"), Entry("er-ace"),
            Entry("der"), Entry("mir"), Entry("icarl"), Entry("gdumb"), Entry("retrain"),
        ),
        memory=30, validation=0.15, minutes=0.2,
    ),
}  # fmt: skip
SUITES["photos"] = replace(SUITES["waste"], stream="class:2", data="photos", memory=10)
SUITES["cifar-reduced"] = replace(
    SUITES["cifar-online"],
    entries=(
        Entry("finetune", recipe=ALONE), Entry("replay:share=0.5"), Entry("er-ace"), Entry("mir"), *ONLINE_HEADS,
        Entry("gdumb:passes=64:cutmix=True", recipe=FULL),
    ),
    images=2000,
    minutes=2.5,
)  # fmt: skip
FIRST = ("split-online", "waste", "photos", "split-task", "split-class", "permuted", "rotated")
"""All suites but Split CIFAR-10, which takes hours."""
REFERENCE = "finetune"
SIMPLE_STRATEGIES = ("lda", "means", "ranpac", "gdumb")
"""What the default must not be worse than."""
DOCS = Path(__file__).parents[1] / "docs"
PICTURED_SUITE = "split-online"
PICTURED_STRATEGIES = ("finetune", "lda", "replay:share=0.5", "mir")
PHOTO = Geometry(size=(224, 224), channels=3, resize_mode="crop", crop_fraction=0.875, interpolation="bicubic")
"""As the card of the embedded weights says."""


def main() -> None:
    """Measure what is not there yet, and write a table for each suite."""
    asked = arguments(
        __doc__,
        suites={"nargs": "+", "choices": list(SUITES), "default": FIRST},
        workers={"type": int, "default": 1, "help": "processes that measure at once"},
        again={"nargs": "+", "default": [], "help": "strategies to measure again"},
        only={"nargs": "+", "default": [], "help": "measure these strategies alone"},
        stop_after={"type": float, "default": float("inf"), "help": "minutes after which no measurement begins"},
    )
    book = Notebook(RESULTS / "continual.jsonl", fresh=asked.fresh)
    deadline = time.time() + 60 * asked.stop_after
    for name in asked.suites:
        suite = SUITES[name]
        grids = [
            (name, replace(suite, entries=()), replace(entry, strategy=word), 0)
            for entry in suite.entries
            for word in entry.grid
        ]
        measure_all(book, asked, grids, deadline)
        suite = replace(suite, entries=tuple(pick(book, name, suite, entry) for entry in suite.entries))
        order = [(name, suite, entry, seed) for seed in range(asked.seeds) for entry in suite.entries]
        measure_all(book, asked, order, deadline)
        keep("continual", summarise(book, asked.seeds))
        if time.time() > deadline:
            raise SystemExit(1)


Cell = tuple[str, Suite, Entry, int]


def key_of(cell: Cell) -> dict[str, Any]:
    """What a measurement is found by."""
    name, suite, entry, seed = cell
    memory = f"{entry.memory or suite.memory}{' a class' if entry.per_class else ''}"
    recipe = told(suite.recipe.replace(**entry.recipe))
    images = f"{suite.images or 'all'} images, {suite.validation:.0%} validation"
    return {
        "suite": name,
        "strategy": entry.strategy,
        "memory": memory,
        "seed": seed,
        "protocol": f"{suite.stream} {images} {recipe}",
    }


def measure_all(book: Notebook, asked: Any, cells: list[Cell], deadline: float) -> None:
    """Measure the cells that are not in the notebook, the workers at once; prints each, and the time left.

    None begins after ``deadline``, in seconds of the clock.
    """
    cells = [one for one in cells if not asked.only or one[2].strategy.split(":")[0] in asked.only]
    open_cells = [
        one for one in cells if book.find(**key_of(one)) is None or one[2].strategy.split(":")[0] in asked.again
    ]
    if not open_cells:
        return
    name, minutes = open_cells[0][0], sum(one[1].minutes for one in open_cells) / asked.workers
    print(f"{name}: {len(open_cells)} of {len(cells)} to measure, about {minutes:.0f} minutes.", flush=True)
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(asked.workers, torch.set_num_threads, (1,)) as pool:
        work = [(asked.data, one, deadline) for one in open_cells]
        for done, line in enumerate(pool.imap_unordered(measure, work), 1):
            if line is None:
                continue
            book.add(line)
            left = (time.perf_counter() - began) / done * (len(open_cells) - done) / 60
            print(
                f"{name} {line['strategy']} ({line['memory']}) seed {line['seed']}: {line['average_accuracy']:.1%}, "
                f"{line['cpu_seconds']:.0f} s; {done} of {len(open_cells)}, {left:.0f} minutes left",
                flush=True,
            )


def measure(work: tuple[Path, Cell, float]) -> dict[str, Any] | None:
    """One strategy on one stream; None after the deadline."""
    data, cell, deadline = work
    if time.time() > deadline:
        return None
    _, suite, entry, seed = cell
    (strategy,) = parse_strategies([entry.strategy]).values()
    stream = make_stream(data, suite, seed)
    began = time.process_time()
    result = run_stream(
        strategy,
        stream,
        suite.recipe.replace(seed=seed, **entry.recipe),
        memory_size=suite.memory if entry.memory is None else entry.memory,
        memory_per_class=entry.per_class,
        online=suite.online,
    )
    cpu = time.process_time() - began
    return {**result.as_json(), **key_of(cell), "cpu_seconds": round(cpu, 1), "load": round(os.getloadavg()[0], 1)}


def make_stream(data: Path, suite: Suite, seed: int) -> Stream:
    """The images of a suite as tasks, their order drawn by the seed, with images for validation."""
    train, test = load_parts(data, suite.data)
    if suite.images is not None and suite.stream.startswith(("permuted", "rotated")):
        share = suite.images / (1 - suite.validation) / len(train)
        train = train.subset(nested_subset(train.labels, share, seed))
    stream = choose(STREAMS, suite.stream, "stream")(train, test, seed)
    if suite.images is not None and stream.kind != "domain":
        few = [
            (a.subset(nested_subset(a.labels, min(1, suite.images / (1 - suite.validation) / len(a)), seed)), b)
            for a, b in stream.tasks
        ]
        stream = replace(stream, tasks=tuple(few))
    return hold_out(stream, suite.validation, seed)


@cache
def load_parts(data: Path, name: str) -> tuple[Dataset, Dataset]:
    """Training and test images: pixels, or features of the embedded backbone in 8 bits, as a square image."""
    archive = data / {"mnist": "mnist_png.zip", "cifar10": "cifar10_jpg.zip"}.get(name, f"{name}_jpg.zip")
    sizes = {"mnist": Geometry(size=(28, 28), channels=1), "cifar10": Geometry(size=(32, 32), channels=3)}
    images = load_dataset(archive, sizes.get(name, PHOTO))
    train, test = (images.subset(images.columns["split"] == part) for part in ("train", "test"))
    if name in sizes:
        return train, test
    backbone = build_published_start(train, torch.device("cpu"))
    features = [embed_cached(backbone, part) for part in (train, test)]
    scale = np.quantile(features[0], 0.999) / 255
    side = int(np.ceil(features[0].shape[1] ** 0.5))
    found = []
    for part, one in zip((train, test), features, strict=True):
        pixels = np.zeros((len(part), side * side), np.uint8)
        pixels[:, : one.shape[1]] = (one / scale).round().clip(0, 255)
        found.append(
            replace(
                part,
                pixels=pixels.reshape(-1, side, side, 1),
                rows=np.arange(len(part)),
                geometry=Geometry(size=(side, side), channels=1),
            )
        )
    return found[0], found[1]


def pick(book: Notebook, name: str, suite: Suite, entry: Entry) -> Entry:
    """The entry with the word of its grid that is best on validation images of the first seed."""
    if not entry.grid:
        return entry
    found = {word: book.find(**key_of((name, suite, replace(entry, strategy=word), 0))) for word in entry.grid}
    best = max(
        (word for word in entry.grid if found[word]), key=lambda word: found[word]["validation"], default=""
    )
    return replace(entry, strategy=best or entry.grid[0])


def count_seeds(book: Notebook, name: str, suite: Suite, entry: Entry, seeds: int) -> int:
    """The seeds from 0, without a gap, with which an entry was measured."""
    found = [book.find(**key_of((name, suite, entry, seed))) for seed in range(seeds)]
    return found.index(None) if None in found else seeds


def summarise(book: Notebook, seeds: int) -> dict[str, Any]:
    """A table for each suite, of the seeds that most strategies have; also in the docs."""
    figures = {}
    for name, suite in SUITES.items():
        entries = [pick(book, name, suite, one) for one in suite.entries]
        seen = [count_seeds(book, name, suite, one, seeds) for one in entries]
        count = max(range(1, seeds + 1), key=lambda n: (sum(one >= n for one in seen), n))
        if seen[0] < count:
            continue
        results: dict[str, list[StreamResult]] = {}
        more: dict[str, dict[str, Any]] = {}
        for entry, measured in zip(entries, seen, strict=True):
            if measured < count:
                continue
            lines = [book.find(**key_of((name, suite, entry, seed))) for seed in range(count)]
            title = entry.strategy if entry.memory is None else f"{entry.strategy} ({lines[0]['memory']})"
            results[title] = [StreamResult.from_json(line) for line in lines]
            seconds = [line["cpu_seconds"] for line in lines]
            more[title] = {"published": entry.published, "cpu_seconds": round(float(np.mean(seconds)), 1)}
        ways = [one for way in DEFAULT_WAYS for one in results if one.split(":")[0] == way]
        if len(ways) == len(DEFAULT_WAYS):
            pairs = zip(*(results[way] for way in ways), strict=True)
            results["default"] = [max(each, key=lambda one: one.validation or 0.0) for each in pairs]
            spent = sum(more[way]["cpu_seconds"] for way in ways)
            kept = [one.strategy for one in results["default"]]
            simple = [one for one in results if one.split(":")[0] in SIMPLE_STRATEGIES]
            minus = {one: subtract(results["default"], results[one]) for one in simple}
            more["default"] = {"published": "", "cpu_seconds": round(spent, 1), "kept": kept, "minus": minus}
        comparison = StreamComparison(name, results, REFERENCE)
        rows = [{**row, **more[row["strategy"]]} for row in comparison.rows()]
        figures[name] = {"seeds": count, "strategies": rows}
        if name == PICTURED_SUITE:
            shown = {one: results[one] for one in PICTURED_STRATEGIES if one in results}
            picture = StreamComparison(name, shown, REFERENCE).plot()
            picture.save(DOCS / "pictures" / "continual.png")
    write_tables(figures)
    return figures


def subtract(some: Sequence[StreamResult], others: Sequence[StreamResult]) -> dict[str, Any]:
    """The difference of the average accuracies, paired by seed, with its interval where there are several seeds."""
    gains = [a.average_accuracy - b.average_accuracy for a, b in zip(some, others, strict=True)]
    if len(gains) > 1:
        return seeds_interval(gains, bounds=(-1, 1)).as_json()
    return {"value": gains[0], "low": None, "high": None}


def make_table(rows: list[dict[str, Any]]) -> str:
    """The rows of a suite as a table of Markdown, in percent and points."""
    heads = ("strategy", "accuracy, %", "minus `finetune`", "forgetting", "seconds", "kB", "published, %")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = [
            f"`{row['strategy']}`",
            percent(row["average_accuracy"]),
            "" if row["difference"] is None else percent(row["difference"], "+.1f"),
            f"{100 * row['forgetting']['value']:.1f}",
            f"{row['cpu_seconds']:.3g}",
            f"{row['memory_bytes'] / 1e3:,.0f}",
            row["published"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables(figures: dict[str, Any]) -> None:
    """Put each suite's table into the docs, between the marks of its name."""
    file = DOCS / "continual.md"
    text = file.read_text(encoding="utf-8")
    for name, found in figures.items():
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        if mark:
            seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
            minus = found["strategies"][-1].get("minus", {})
            gains = ", ".join(f"`{way}` {percent(gain, '+.1f')}" for way, gain in minus.items())
            gains = f" `default` minus others, in points, paired by seed: {gains}." if gains else ""
            table = f"\n{make_table(found['strategies'])}\n\n({seeds}.){gains}\n\n"
            text = before + mark + table + rest[rest.index("<!-- end -->") :]
    file.write_text(text, encoding="utf-8")


def percent(value: dict[str, Any], form: str = ".1f") -> str:
    """A mean with its interval, in percent."""
    middle = f"{100 * value['value']:{form}}"
    if value["low"] is None:
        return middle
    return f"{middle} [{100 * value['low']:{form}}, {100 * value['high']:{form}}]"


if __name__ == "__main__":
    main()
