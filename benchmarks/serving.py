"""Answers/s of a service: Sightline against LitServe, BentoML, a plain FastAPI endpoint, bare onnxruntime.

    python benchmarks/serving.py [--data FOLDER_OF_ZIPS] [--model resnet20 --size 32] [--int8] [--rounds 3]

Everyone answers with the same exported file, the same JPEG decoder, uvloop and httptools, on the same JPEG
images of the working size, as raw bodies and as base64 in JSON, over 1, 8 and 32 open connections. Sightline
runs as it comes: ``sightline serve SITE``, with its journal, its limits and its metrics. Each peer has an
environment of its own and is tuned first: every setting of its grid below is tried at each concurrency, the
trials are printed, and it is measured with the one that was best there, which no single server of it could
have. Sides take turns, round by round; medians. The load comes from one process (``load.py``) on the same
cores, and costs everyone the same.

Stopped, it goes on where it was (``serving-*.jsonl`` in --work). ResNet-20 at 32 pixels has a third party's
weights; other networks have random ones, which take as long, but for ``--model pretrained --size 224``, the published
backbone that photos get by default. ``--quick`` tries everything once, for a second.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bare_onnx import bare, labels, onnx_of, site_of
from environments import NotInstalled, python_of
from record import Notebook, record, shared
from services import (
    SIGHTLINE,
    NotServing,
    answer_of,
    bodies,
    bundle,
    free_port,
    python_environment,
    request_for,
    serving,
)

HERE = Path(__file__).parent
KINDS, CONNECTIONS = ("raw", "json"), (1, 8, 32)
Setting = dict[str, str | int | float]

LITSERVE: tuple[Setting, ...] = (
    {"workers": 1, "threads": 1},
    {"workers": 1, "threads": 2},
    {"workers": 2, "threads": 1},
    {"workers": 2, "threads": 1, "fast": 1},
    {"workers": 1, "threads": 2, "batch": 8, "timeout": 0},
    {"workers": 2, "threads": 1, "batch": 8, "timeout": 0},
    {"workers": 1, "threads": 2, "batch": 32, "timeout": 0.002},
    {"workers": 2, "threads": 1, "batch": 32, "timeout": 0.002},
    {"workers": 2, "threads": 1, "servers": 1, "batch": 8, "timeout": 0},
)
"""``workers`` processes that answer, ``servers`` that speak HTTP (as many unless said), ``timeout`` seconds."""

BENTOML: tuple[Setting, ...] = (
    {"mode": "batch", "workers": 1, "threads": 2},
    {"mode": "batch", "workers": 2, "threads": 1},
    {"mode": "batch", "workers": 2, "threads": 1, "batch": 8},
    {"mode": "one", "workers": 1, "threads": 2},
    {"mode": "one", "workers": 2, "threads": 1},
    {"mode": "asgi", "workers": 1, "threads": 1},
    {"mode": "asgi", "workers": 1, "threads": 2},
    {"mode": "asgi", "workers": 2, "threads": 1},
)
"""``mode`` is explained in ``peers/bentoml_server.py``; ``batch`` is 32 unless said."""

NAIVE: tuple[Setting, ...] = (
    {"workers": 1, "threads": 1},
    {"workers": 1, "threads": 2},
    {"workers": 2, "threads": 1},
)


@dataclass(frozen=True)
class Side:
    """One of those compared."""

    grid: tuple[Setting, ...] = ({},)
    """Settings it may be measured with."""
    environment: str | None = None
    """Whose Python runs it; None for ours."""


SIDES = {
    "sightline": Side(),
    "litserve": Side(LITSERVE, "litserve"),
    "bentoml": Side(BENTOML, "bentoml"),
    "naive": Side(NAIVE),
}


def main() -> None:
    """Install, tune, take turns, print the ratios."""
    asked = arguments()
    word = f"{asked.model}-{asked.size}" + ("-int8" if asked.int8 else "") + ("-quick" if asked.quick else "")
    contest = Contest(asked, Notebook(asked.work / f"serving-{word}.jsonl", fresh=asked.fresh))
    for name in [name for name in asked.sides if len(SIDES[name].grid) > 1]:
        contest.tune(name)
    for number in range(1, asked.rounds + 1):
        contest.round(number)
    figures = contest.summary()
    show(figures)
    record(f"serving-{word}" if word != "resnet20-32" else "serving", figures, asked.out)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds cifar10_jpg.zip and photos_jpg.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--connections", nargs="+", type=int, default=list(CONNECTIONS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--trial", type=float, default=1.5, help="seconds of each trial of a setting")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.seconds, asked.trial = 1, 1.0, 0.5
    return asked


class Contest:
    """One network, all sides."""

    def __init__(self, asked: argparse.Namespace, book: Notebook):
        self.asked, self.book = asked, book
        data = shared(asked.data)
        run = bundle(asked.model, asked.size, data, asked.work, int8=asked.int8)
        archive = data / ("cifar10_jpg.zip" if asked.size == 32 else "photos_jpg.zip")
        self.bodies = bodies(archive, asked.work, size=None if asked.size == 32 else asked.size)
        self.images = [path.read_bytes() for path in sorted(self.bodies.iterdir())]
        self.site = site_of(run, asked.work)
        self.file = onnx_of(self.site)
        self.labels = labels(self.file, self.images)
        self.absent: dict[str, str] = {}

    # Tuning.

    def tune(self, name: str) -> None:
        """Try every setting of a peer, for each kind of body."""
        for kind in self.asked.kinds:
            for setting in SIDES[name].grid:
                key = {"what": "trial", "side": name, "kind": kind, "setting": setting}
                if self.book.find(**key) is None and name not in self.absent:
                    found = self.measured(name, kind, setting, self.asked.connections, self.asked.trial)
                    self.book.add({"found": found}, **key)
                    print(f"{name} {kind} {setting}: {brief(found)}", flush=True)

    def best(self, name: str, kind: str, connections: int) -> Setting | None:
        """The setting with the highest rate there; None where none worked."""
        trials = list(self.book.all(what="trial", side=name, kind=kind))
        rates = {json.dumps(one["setting"]): rate(one["found"], connections) for one in trials}
        chosen = max(rates, key=lambda word: rates[word], default=None)
        if not trials and len(SIDES[name].grid) == 1:
            return SIDES[name].grid[0]
        return json.loads(chosen) if chosen and rates[chosen] > 0 else None

    # Rounds.

    def round(self, number: int) -> None:
        """Every side once, in an order that turns with the rounds."""
        names = (
            self.asked.sides[number % len(self.asked.sides) :] + self.asked.sides[: number % len(self.asked.sides)]
        )
        for kind in self.asked.kinds:
            if self.book.find(what="bare", round=number, kind=kind) is None:
                found = bare(self.file, self.images, 0.25 if self.asked.quick else 1.0)
                self.book.add({"found": found}, what="bare", round=number, kind=kind)
            for name in names:
                for setting, at in self.plan(name, kind):
                    key = {"what": "round", "round": number, "side": name, "kind": kind, "setting": setting}
                    if self.book.find(**key, at=at) is None:
                        found = self.measured(name, kind, setting, at, self.asked.seconds)
                        self.book.add({"found": found}, **key, at=at)
                        print(f"round {number} {name} {kind} {setting}: {brief(found)}", flush=True)

    def plan(self, name: str, kind: str) -> Iterator[tuple[Setting, list[int]]]:
        """Each setting to start this side with, and the concurrencies to measure it at."""
        chosen = [
            (json.dumps(best), at)
            for at in self.asked.connections
            if (best := self.best(name, kind, at)) is not None
        ]
        for word, pairs in groupby(sorted(chosen), key=lambda pair: pair[0]):
            yield json.loads(word), [at for _, at in pairs]

    def measured(self, name: str, kind: str, setting: Setting, at: list[int], seconds: float) -> dict[str, Any]:
        """Start it, see that it answers rightly, load it; why not, where it cannot."""
        port, sent = free_port(), body_kind(name, kind, setting)
        try:
            command, settings, cwd = self.command(name, kind, setting, port)
            probe = request_for(self.images[0], sent)
            with serving(command, probe, port=port, settings=settings, cwd=cwd) as one:
                found: dict[str, Any] = {"right": self.right(port, sent)}
                for connections in at:
                    found[str(connections)] = load(port, self.bodies, sent, connections, seconds)
                return found | {"memory_mb": one.memory_mb(), "start_seconds": round(one.seconds, 2)}
        except NotInstalled as error:
            self.absent[name] = str(error)
            return {"failed": f"not installed: {error}"}
        except (NotServing, OSError, subprocess.SubprocessError) as error:
            return {"failed": str(error)[:300]}

    def command(
        self, name: str, kind: str, setting: Setting, port: int
    ) -> tuple[list[Any], dict[str, str], Path | None]:
        """How a side is started."""
        if name == "sightline":
            return [*SIGHTLINE, "serve", self.site, "--port", str(port)], {}, None
        side, words = SIDES[name], {"model": self.file, "kind": kind, "port": port, **setting}
        python = sys.executable if side.environment is None else python_of(side.environment, self.asked.work)
        settings = python_environment(words) | {
            "OMP_NUM_THREADS": "1",
            "BENTOML_HOME": str(self.asked.work / "bentoml"),
        }
        if name == "bentoml":
            words = [python, "-m", "bentoml", "serve", "bentoml_server:Recogniser", "--host", "127.0.0.1"]
            return [*words, "--port", str(port), "--working-dir", HERE / "peers"], settings, HERE / "peers"
        return [python, HERE / "peers" / f"{name}_server.py"], settings, HERE / "peers"

    def right(self, port: int, sent: str) -> float:
        """The share of images that are answered with the file's own label."""
        few = self.images[:32]
        said = [label_in(answer_of(port, request_for(data, sent))[1]) for data in few]
        return sum(a == b for a, b in zip(said, self.labels, strict=False)) / len(few)

    # What came out.

    def summary(self) -> dict[str, Any]:
        """Medians, ratios, and the share of bare onnxruntime."""
        cells = {
            f"{kind}, {at}": self.cell(kind, at) for kind in self.asked.kinds for at in self.asked.connections
        }
        trials = [{k: v for k, v in line.items() if k != "what"} for line in self.book.all(what="trial")]
        return {
            "model": f"{self.asked.model} at {self.asked.size}" + (", int8" if self.asked.int8 else ""),
            "rounds": self.asked.rounds,
            "cells": cells,
            "bare": {kind: self.bare(kind) for kind in self.asked.kinds},
            "trials": [trial_line(one) for one in trials],
            "not_measured": self.absent,
        }

    def cell(self, kind: str, at: int) -> dict[str, Any]:
        """All sides for one kind of body and one concurrency."""
        sides: dict[str, Any] = {}
        for name in self.asked.sides:
            rows = [line for line in self.book.all(what="round", side=name, kind=kind) if str(at) in line["found"]]
            if rows:
                sides[name] = {
                    **{key: _median(row["found"][str(at)][key] for row in rows) for key in FIGURES},
                    "of_rounds": [row["found"][str(at)]["per_second"] for row in rows],
                    "bad": sum(sum(row["found"][str(at)]["bad"].values()) for row in rows),
                    "right": min(row["found"]["right"] for row in rows),
                    "setting": rows[-1]["setting"],
                    "memory_mb": _median(row["found"]["memory_mb"] for row in rows),
                }
        ours = sides.get("sightline")
        found: dict[str, Any] = {"sides": sides}
        if ours:
            others = {name: side for name, side in sides.items() if name != "sightline"}
            found["ours_over"] = {
                name: round(ours["per_second"] / each["per_second"], 2) for name, each in others.items()
            }
            found["p99_over"] = {name: round(ours["p99_ms"] / each["p99_ms"], 2) for name, each in others.items()}
            raw = self.bare(kind)
            found["share_of_bare"] = {
                name: round(ours["per_second"] / raw[name], 3) for name in raw if "run" in name
            }
            if at == 1:
                found["overhead_ms"] = round(ours["p50_ms"] - raw["one image, ms"], 3)
        return found

    def bare(self, kind: str) -> dict[str, float]:
        """Images/s of onnxruntime without any service, medians of rounds."""
        rows = [line["found"] for line in self.book.all(what="bare", kind=kind)]
        return {name: _median(row[name] for row in rows) for name in rows[0]} if rows else {}


FIGURES = ("per_second", "p50_ms", "p90_ms", "p99_ms")


def _median(values: Any) -> float:
    return round(statistics.median(values), 3)


def label_in(body: bytes) -> str | None:
    """The label in whatever form a side answers."""
    try:
        found = json.loads(body)
    except ValueError:
        return None
    found = found[0] if isinstance(found, list) else found.get("predictions", [found])[0]
    return found.get("label")


def body_kind(name: str, kind: str, setting: Setting) -> str:
    """How a side wants its image sent: BentoML's batches are lists, and its lists of files are forms."""
    if name == "bentoml" and setting.get("mode") == "batch":
        return "json-list" if kind == "json" else "form-list"
    return kind


def load(port: int, folder: Path, kind: str, connections: int, seconds: float) -> dict[str, Any]:
    """A load by a process of its own."""
    words = [
        "--port",
        port,
        "--bodies",
        folder,
        "--kind",
        kind,
        "--connections",
        connections,
        "--seconds",
        seconds,
    ]
    command = [sys.executable, HERE / "load.py", *words, "--warm", max(0.3, min(1.0, seconds / 4))]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise NotServing(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def rate(found: dict[str, Any], connections: int) -> float:
    """Answers a second of a trial; 0 where it failed, answered wrongly or refused."""
    one = found.get(str(connections))
    return 0.0 if not one or one["bad"] or found["right"] < 0.95 else one["per_second"]


def brief(found: dict[str, Any]) -> str:
    """A trial in a line."""
    if "failed" in found:
        return found["failed"]
    each = [
        f"{at}: {one['per_second']:.0f}/s p99 {one['p99_ms']:.1f}" for at, one in found.items() if at.isdigit()
    ]
    return ", ".join(each) + f" | right {found['right']:.0%}, {found['memory_mb']:.0f} MB"


def trial_line(one: dict[str, Any]) -> str:
    """A trial as it is kept in the results."""
    return f"{one['side']} {one['kind']} {json.dumps(one['setting'])}: {brief(one['found'])}"


def show(figures: dict[str, Any]) -> None:
    """The table."""
    for where, cell in figures["cells"].items():
        print(f"\n{where} connections: answers/s, p50, p99 in ms; ours over it")
        for name, side in sorted(cell["sides"].items(), key=lambda item: -item[1]["per_second"]):
            ratio, setting = cell.get("ours_over", {}).get(name, ""), side["setting"] or ""
            latencies = f"{side['p50_ms']:8.2f} {side['p99_ms']:8.2f}"
            print(f"  {name:10} {side['per_second']:8.0f} {latencies} {ratio:>6}  {setting}")
    print(f"\n{json.dumps(figures['bare'])}")


if __name__ == "__main__":
    main()
