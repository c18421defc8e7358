"""Training images/s from a folder: Sightline against PyTorch, timm, Lightning, fastai, skorch, Ultralytics, Keras.

    python benchmarks/throughput.py [--data FOLDER_OF_ZIPS] [--nets lenet5 resnet20 resnet18] [--peers plain ...]

The same network (parameter counts are compared), batch and augmentation, each side used as its own
documentation has it (``peers/with_*.py``), in an environment of its own that this script makes. Every
measurement is a process of its own; sides take turns, round by round; medians. Files are in the page cache; the
one-off decoding of sides that decode once (ours, Keras, Ultralytics) is not in their figure: time_to_accuracy.py
has it. ``plain`` is a tutorial's PyTorch; a ``+`` gives a peer our precision and memory layout. A peer with worker
processes is tried with 0 and 2 in the first round, and goes on with the better: its median keeps that lucky first.

Stopped, it goes on where it was (``throughput.jsonl`` in --work). A peer that cannot be installed or fails is
said, and counts for nothing. Three rounds of everything take about half an hour on two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from environments import NotInstalled, python_of, unpack
from peers.networks import NETWORKS, parameters, training_flop
from peers.task import CASES
from record import Notebook, record, shared

SCRIPTS = Path(__file__).parent / "peers"
PATIENCE = 900
"""Seconds after which a measurement is given up."""


@dataclass(frozen=True)
class Side:
    """One row of the table."""

    peer: str | None
    """Whose environment it needs; None for ours."""
    script: str
    workers: tuple[int, ...] = (0,)
    as_ours: bool = False
    """Whether it is given our precision and memory layout."""


SIDES = {
    "ours": Side(None, "with_sightline.py"),
    "plain": Side("plain", "with_plain.py", (0, 2)),
    "plain+": Side("plain", "with_plain.py", (0, 2), as_ours=True),
    "timm": Side("timm", "with_timm.py", (0, 2)),
    "lightning": Side("lightning", "with_lightning.py", (0, 2)),
    "fastai": Side("fastai", "with_fastai.py", (0, 2)),
    "skorch": Side("skorch", "with_skorch.py", (0, 2)),
    "ultralytics": Side("ultralytics", "with_ultralytics.py"),
    "keras": Side("keras", "with_keras.py"),
    "keras+": Side("keras", "with_keras.py", as_ours=True),
}

QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
"""Peers talk to nobody and install nothing while they are measured."""


class Failed(Exception):
    """A measurement that gave no figure."""


def main() -> None:
    """Unpack, install, take turns, print the ratios."""
    asked = arguments()
    book = Notebook(asked.work / "throughput.jsonl", fresh=asked.fresh)
    figures = {}
    for net in asked.nets:
        folder = unpack(shared(asked.data) / CASES[net].archive, asked.work)
        contest = Contest(net, folder, asked, book)
        for number in range(1, asked.rounds + 1):
            contest.round(number)
        figures[net] = contest.summary()
        show(net, figures[net])
    record("throughput", figures, asked.out)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds mnist_png.zip and cifar10_jpg.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--nets", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--peers", nargs="+", default=list(SIDES)[1:], choices=list(SIDES)[1:])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="measured steps of every network, for a quick look")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier start measured")
    parser.add_argument("--out", type=Path, help="result file; benchmarks/results/throughput.json")
    return parser.parse_args()


@dataclass
class Contest:
    """All sides on one network."""

    net: str
    folder: Path
    asked: argparse.Namespace
    book: Notebook
    absent: dict[str, str] = field(default_factory=dict)
    """Sides that gave no figure, and why."""

    @property
    def steps(self) -> int:
        """Measured steps."""
        return self.asked.steps or CASES[self.net].steps

    def round(self, number: int) -> None:
        """Every side once (in the first round, with each number of workers), and the machine's limit."""
        key = {"net": self.net, "side": "matmul", "round": number}
        if self.book.find(**key) is None:
            self.book.add(answer_of([sys.executable, str(SCRIPTS / "matmul.py")], self.asked.work), **key)
        ours = None
        for name in ("ours", *self.asked.peers):
            if name in self.absent or (SIDES[name].as_ours and (ours is None or same_as_plain(name, ours))):
                continue
            for workers in SIDES[name].workers if number == 1 else (self.best_workers(name),):
                try:
                    found = self.measure(name, workers, number, ours)
                except (Failed, NotInstalled) as error:
                    self.absent[name] = str(error).replace(str(self.asked.work), "WORK")[:300]
                    print(f"{self.net:9} {name} is left out: {self.absent[name]}", flush=True)
                    break
                ours = found["precision"] if name == "ours" else ours
                said = f"{name:12} {workers} workers {found['images_per_second']:9.0f} images/s"
                print(f"{self.net:9} round {number} {said}  {found['precision']}", flush=True)

    def measure(self, name: str, workers: int, number: int, ours: str | None) -> dict[str, Any]:
        """One measurement, made or remembered."""
        key = {"net": self.net, "side": name, "steps": self.steps, "workers": workers, "round": number}
        known = self.book.find(**key)
        if known is not None:
            return known
        side = SIDES[name]
        python = sys.executable if side.peer is None else str(python_of(side.peer, self.asked.work))
        given = arithmetic(ours or "") if side.as_ours else ["float32", "contiguous"]
        task = [self.net, str(self.folder), str(self.steps), str(workers), *given]
        found = answer_of([python, str(SCRIPTS / side.script), *task], self.asked.work)
        wanted = parameters(NETWORKS[self.net]())
        if found["parameters"] != wanted:
            raise Failed(f"its network has {found['parameters']:,} parameters, not {wanted:,}")
        return self.book.add(found, **key)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What was measured of a side."""
        found = self.book.all(net=self.net, side=name, steps=self.steps)
        return [row for row in found if row["round"] <= self.asked.rounds]

    def best_workers(self, name: str) -> int:
        """The faster number of workers in the first round."""
        first = [row for row in self.rows(name) if row["round"] == 1]
        return max(first, key=lambda row: row["images_per_second"])["workers"]

    def summary(self) -> dict[str, Any]:
        """Medians, ratios, and our share of what the machine can multiply."""
        measured = [name for name in ("ours", *self.asked.peers) if name not in self.absent and self.rows(name)]
        sides = {name: self.side(name) for name in measured}
        case = CASES[self.net]
        flop = training_flop(NETWORKS[self.net](), case.channels, case.size)
        gflops = [row["gflops"] for row in self.book.all(net=self.net, side="matmul")]
        limits = {precision: max(found[precision] for found in gflops) for precision in gflops[0]}
        found = {
            "sides": sides,
            "not_measured": self.absent,
            "training_gflop_per_image": round(flop / 1e9, 5),
            "matmul_gflops": limits,
        }
        if "ours" not in sides:
            return found
        ours = sides["ours"]
        ratios = {name: round(ours["median"] / sides[name]["median"], 2) for name in measured if name != "ours"}
        share = ours["median"] * flop / 1e9 / limits[arithmetic(ours["precision"])[0]]
        return {**found, "ours_over": ratios, "ours_share_of_matmul": round(share, 3)}

    def side(self, name: str) -> dict[str, Any]:
        """The figures of one side."""
        workers = self.best_workers(name)
        rows = [row for row in self.rows(name) if row["workers"] == workers]
        rates = [row["images_per_second"] for row in rows]
        return {
            "median": round(statistics.median(rates), 2),
            "images_per_second": rates,
            "workers": workers,
            "precision": rows[-1]["precision"],
            "version": rows[-1]["version"],
        }


def answer_of(words: list[str], work: Path) -> dict[str, Any]:
    """The last line a script prints, as JSON; raises Failed with the last line of its complaint."""
    places = {"SIGHTLINE_CACHE": str(work / "cache"), "YOLO_CONFIG_DIR": str(work / "yolo")}
    try:
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=PATIENCE, env=os.environ | QUIET | places
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise Failed(f"no answer in {PATIENCE} seconds") from error
    except (IndexError, json.JSONDecodeError) as error:
        raise Failed((done.stderr.strip() or "it said nothing").splitlines()[-1]) from error


def same_as_plain(name: str, ours: str) -> bool:
    """Whether our choice is what the peer does anyway; Keras has its own memory layout."""
    precision, layout = arithmetic(ours)
    return precision == "float32" and (layout == "contiguous" or name == "keras+")


def arithmetic(said: str) -> list[str]:
    """Precision and memory layout, without what else was said of a side."""
    return said.partition(",")[0].split()


def show(net: str, found: dict[str, Any]) -> None:
    """The table of one network."""
    print(f"\n{net}: images/s, median of rounds; ours over it; precision")
    for name, side in sorted(found["sides"].items(), key=lambda item: -item[1]["median"]):
        ratio = found.get("ours_over", {}).get(name, "")
        print(f"  {name:12} {side['median']:9.0f} {ratio:>6}  {side['precision']:22} {side['version']}")
    for name, why in found["not_measured"].items():
        print(f"  {name:12} not measured: {why}")
    if "ours_share_of_matmul" in found:
        share, limits = found["ours_share_of_matmul"], found["matmul_gflops"]
        print(f"  ours is at {share:.1%} of what a matrix product reaches here, in GFLOP/s: {limits}\n")


if __name__ == "__main__":
    main()
