"""Every ratio of our speed to the alternative's, in one table, with the machine and the day of each.

    python benchmarks/all.py [--measure] [--only throughput decoding] [--data FOLDER_OF_ZIPS]

Ratios are read from ``results``, where each script keeps what it measured. ``--measure`` first runs the scripts whose
figures come from another machine, one after the other; those of this machine stay, so that a start that was stopped
goes on. A ratio above 1 is in our favour. Figures of other machines are marked.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import RESULTS, shared
from rich.console import Console
from rich.table import Table

from sightline import runtime

Ratios = Iterator[tuple[str, float]]


def of_sides(figures: dict[str, Any], rate: str = "median") -> Ratios:
    """Ours against every other side of every row."""
    for row, measured in figures.get("cells", figures).items():
        sides = {name: side[rate] for name, side in measured.get("sides", {}).items() if side.get(rate)}
        ours = sides.pop("ours", None) or sides.pop("sightline", None)
        for name, theirs in sides.items():
            if ours:
                yield f"{row} against {name}", ours / theirs


def of_requests(figures: dict[str, Any]) -> Ratios:
    """Answers a second against every other service's."""
    return of_sides(figures, "per_second")


def of_decoding(figures: dict[str, Any]) -> Ratios:
    """Files a second against Pillow's."""
    for row, measured in figures.items():
        yield f"{row} against Pillow", measured["times"]


def of_embedding(figures: dict[str, Any]) -> Ratios:
    """Photos a second against a DataLoader with the same network."""
    for row in ("times the plain loop", "times the plain loop in channels_last"):
        for precision, ratio in figures[row].items():
            yield f"{precision} against {row.removeprefix('times ')}", ratio


def of_replicas(figures: dict[str, Any]) -> Ratios:
    """Two replicas of one thread against one network of two."""
    for network, measured in figures.items():
        for precision, found in measured.items() if isinstance(measured, dict) else ():
            yield f"{network} {precision}, replicas against one network", found["ratio"]


def of_explanations(figures: dict[str, Any]) -> Ratios:
    """Masked images in a batch against one by one."""
    yield "in batches against one by one", figures["at_once_is_faster_by"]


def of_time(figures: dict[str, Any]) -> Ratios:
    """Seconds to an accuracy."""
    found = figures["times_faster"]
    yield from found.items() if isinstance(found, dict) else (("against plain PyTorch", found),)


def of_predict(figures: dict[str, Any]) -> Ratios:
    """Whole commands against scripts."""
    for case, measured in figures.items():
        for what, ratio in measured["ratios"].items():
            yield f"{case}: {what}", ratio


def of_stores(figures: dict[str, Any]) -> Ratios:
    """Building a store on all cores against one."""
    for archive, measured in figures.items():
        if "times_one_core" in measured:
            yield f"{archive}: all cores against one", measured["times_one_core"]


def of_near_duplicates(figures: dict[str, Any]) -> Ratios:
    """The exact search against the sorted window, which it replaced."""
    for row, measured in figures.items():
        yield f"{row} images against the sorted window", 1 / measured["ratio"]


@dataclass(frozen=True)
class Benchmark:
    """A script whose figures hold ratios."""

    command: str
    """Its file and arguments; DATA is the folder of datasets."""
    result: str
    ratios: Callable[[dict[str, Any]], Ratios]


BENCHMARKS = {
    "throughput": Benchmark("throughput.py --data DATA", "throughput", of_sides),
    "decoding": Benchmark("decoding.py DATA", "decoding", of_decoding),
    "stores": Benchmark("stores.py DATA", "stores", of_stores),
    "near-duplicates": Benchmark("near_duplicates.py DATA --images 200000", "near_duplicates", of_near_duplicates),
    "predict": Benchmark("predict.py --data DATA", "predict", of_predict),
    "embedding": Benchmark("embedding.py DATA", "embedding", of_embedding),
    "replicas": Benchmark("replicas.py", "replicas", of_replicas),
    "mnist": Benchmark(
        "time_to_accuracy.py mnist --data DATA --target 0.985", "time_to_accuracy_mnist_0.985", of_time
    ),
    "cifar10": Benchmark("time_to_accuracy.py cifar10 --data DATA", "time_to_accuracy_cifar10", of_time),
    "explanations": Benchmark("explanations.py", "explanations", of_explanations),
    "serving": Benchmark("serving.py --data DATA", "serving", of_requests),
    "serving-int8": Benchmark("serving.py --data DATA --int8", "serving-resnet20-32-int8", of_requests),
    "serving-photos": Benchmark(
        "serving.py --data DATA --model resnet18 --size 224", "serving-resnet18-224", of_requests
    ),
    "serving-pretrained": Benchmark(
        "serving.py --data DATA --model pretrained --size 224", "serving-pretrained-224", of_requests
    ),
}


def read(benchmark: Benchmark) -> dict[str, Any] | None:
    """What the script recorded; None where it has not run."""
    file = RESULTS / f"{benchmark.result}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def is_here(found: dict[str, Any] | None) -> bool:
    """Whether figures come from this processor, with as many cores."""
    here = runtime.environment()
    return found is not None and all(found["machine"].get(key) == here[key] for key in ("processor", "cores"))


def measure(name: str, benchmark: Benchmark, data: Path) -> None:
    """Run the script; its output is shown, and a failure ends only this one."""
    words = [str(data) if word == "DATA" else word for word in benchmark.command.split()]
    print(f"\n{name}: python benchmarks/{benchmark.command}", flush=True)
    code = subprocess.run(
        [sys.executable, str(Path(__file__).parent / words[0]), *words[1:]], check=False
    ).returncode
    if code:
        print(f"{name} ended with exit code {code}: its row keeps the earlier figures.", flush=True)


def main() -> None:
    """Measure what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=[*BENCHMARKS])
    parser.add_argument("--data", type=Path, default=os.environ.get("SIGHTLINE_DATA"))
    asked = parser.parse_args()
    table = Table("benchmark", "what", "ratio", "processor", "day", box=None, header_style="bold")
    for name in asked.only:
        benchmark = BENCHMARKS[name]
        if asked.measure and not is_here(read(benchmark)):
            measure(name, benchmark, shared(asked.data))
        found = read(benchmark)
        if found is None:
            table.add_row(name, "not measured", "", "", "")
            continue
        machine = found["machine"]
        where = f"{machine['processor']}, {machine['cores']} cores{'' if is_here(found) else ' (another machine)'}"
        for what, ratio in benchmark.ratios(found["figures"]):
            table.add_row(name, what, f"{ratio:.2f}", where, found["date"])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
