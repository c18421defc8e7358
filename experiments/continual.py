"""Streams of tasks: every strategy on Split MNIST and Permuted MNIST, three on Split CIFAR-10, and published figures.

    python experiments/continual.py [--seeds 5] [--suites split-class split-task permuted cifar-online]

Protocols (``reference`` in the results names the published figure and its source):

- split-class: 5 tasks of 2 digits, any digit may be asked for, MLP 400-400, 2 epochs a task of all images (GDumb: 100
  of the memory, iCaRL: 4), memory 500.
- split-task: the same, the task of an image is known.
- permuted: 10 permutations of the pixels, MLP 100-100, 1,000 images a task, one pass, batches of 10, memory 500.
- cifar-online: 5 tasks of 2 classes, one pass, batches of 10 new and 10 remembered images, memory 500, ResNet-20
  rather than the papers' slim ResNet-18, on JPEGs rather than PNGs.

All strategies of a suite learn the same images in the same order of tasks with the same seeds.
"""

import time

import numpy as np
from common import arguments, keep, notebook

from sightline.continual import parse_strategies, permute_pixels, run_stream, split_by_class
from sightline.data import load_dataset, nested_subset
from sightline.metrics import seeds_interval
from sightline.training import Recipe
from sightline.types import Geometry

MLP = Recipe(
    model="mlp:hidden=[400,400]", optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.05, schedule="constant",
    warmup=0.0, batch_size=64, epochs=2, augment=(), normalize="none",
)  # fmt: skip
SUITES = {
    "split-class": {
        "recipe": MLP,
        "strategies": (
            "finetune", "ewc:weight=100", "lwf", "lda", "means", "ranpac", "gdumb", "replay", "er-ace", "der", "mir",
            "icarl", "a-gem", "retrain",
        ),
        "epochs": {"gdumb": 100, "icarl": 4},
        "published": {
            "finetune": "19.9 (van de Ven 2019)", "ewc:weight=100": "20.0 (van de Ven 2019)",
            "lwf": "23.9 (van de Ven 2019)", "gdumb": "91.9 (Prabhu 2020, MLP 400, memory 500)",
            "mir": "87.6 (Aljundi 2019, memory 500, 1,000 images a task, one pass)",
            "replay": "82.1 (Aljundi 2019, as mir)", "icarl": "94.6 (van de Ven 2019, memory 2,000)",
        },
    },
    "split-task": {
        "recipe": MLP,
        "strategies": ("finetune", "ewc:weight=100", "lwf", "replay", "a-gem", "gem:size=100"),
        "epochs": {},
        "published": {
            "finetune": "87.2 (van de Ven 2019)", "ewc:weight=100": "98.6 (van de Ven 2019)",
            "lwf": "99.6 (van de Ven 2019)",
        },
    },
    "permuted": {
        "recipe": MLP.replace(model="mlp:hidden=[100,100]", lr=0.1, batch_size=20, epochs=1),
        "strategies": ("finetune", "ewc:weight=10", "lwf", "replay:share=0.5", "mir", "gem:size=50", "a-gem", "er-ace"),
        "epochs": {},
        "published": {
            "gem:size=50": "83 (Lopez-Paz 2017, 20 tasks)", "mir": "80.1 (Aljundi 2019)",
            "replay:share=0.5": "78.9 (Aljundi 2019)",
        },
    },
    "cifar-online": {
        "recipe": Recipe(
            model="resnet20", optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.05, schedule="constant", warmup=0.0,
            batch_size=20, epochs=1, normalize="fitted",
        ),
        "strategies": ("finetune", "replay:share=0.5", "er-ace", "mir", "gdumb"),
        "epochs": {"gdumb": 30},
        "published": {
            "replay:share=0.5": "26.7 (20 a class), 38.7 (100 a class) (Caccia 2022)",
            "er-ace": "42.6 (20 a class), 52.2 (100 a class) (Caccia 2022)",
            "mir": "40.0 (Aljundi 2019, memory 500)", "gdumb": "45.8 (Prabhu 2020, memory 500)",
        },
    },
}  # fmt: skip


def main() -> None:
    """Run what is not there yet, and print a table for each suite."""
    asked = arguments(
        __doc__, suites={"nargs": "+", "choices": list(SUITES), "default": ["split-class", "split-task"]}
    )
    book = notebook("continual", asked)
    figures = {}
    for suite in asked.suites:
        plan = SUITES[suite]
        lines = {
            word: [measure(book, asked.data, suite, word, seed) for seed in range(asked.seeds)]
            for word in plan["strategies"]
        }
        naive = [line["average_accuracy"] for line in lines["finetune"]]
        table = {}
        for word, rows in lines.items():
            values = [row["average_accuracy"] for row in rows]
            table[word] = {
                "average_accuracy": seeds_interval(values).as_json() if len(values) > 1 else values[0],
                "over_finetune": float(np.mean(np.subtract(values, naive))),
                "forgetting": float(np.mean([row["forgetting"] for row in rows])),
                "seconds": float(np.mean([sum(row["seconds"]) for row in rows])),
                "memory_bytes": rows[0]["memory_bytes"],
                "published": plan["published"].get(word),
            }
        figures[suite] = {"seeds": asked.seeds, "strategies": table}
    keep("continual", figures)


def measure(book, data, suite, word, seed):
    """One strategy on one stream; remembered."""
    known = book.find(suite=suite, strategy=word, seed=seed)
    if known is not None:
        return known
    plan = SUITES[suite]
    recipe = plan["recipe"].replace(seed=seed, epochs=plan["epochs"].get(word, plan["recipe"].epochs))
    stream, online = make_stream(suite, data, seed), suite in ("permuted", "cifar-online") and word != "gdumb"
    (strategy,) = parse_strategies([word]).values()
    began = time.perf_counter()
    result = run_stream(strategy, stream, recipe, memory_size=500, online=online, name=word)
    line = {
        "suite": suite,
        "seed": seed,
        **result.as_json(),
        "strategy": word,
        "wall": time.perf_counter() - began,
    }
    book.add(line)
    print(f"{suite} {word} seed {seed}: {result.average_accuracy:.1%}, {line['wall']:.0f} s", flush=True)
    return line


def make_stream(suite, data, seed):
    """The images of a suite as tasks, their order drawn by the seed."""
    mnist = suite != "cifar-online"
    geometry = Geometry(size=(28, 28), channels=1) if mnist else Geometry(size=(32, 32), channels=3)
    images = load_dataset(data / ("mnist_png.zip" if mnist else "cifar10_jpg.zip"), geometry)
    train, test = (images.subset(images.columns["split"] == name) for name in ("train", "test"))
    if suite == "permuted":
        train = train.subset(nested_subset(train.labels, 1000 / len(train), seed))
        return permute_pixels(train, test, 10, seed=seed)
    return split_by_class(train, test, 5, seed=seed, kind="task" if suite == "split-task" else "class")


if __name__ == "__main__":
    main()
