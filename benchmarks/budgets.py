"""Whether a budget is kept and used: from the command to its report, on a quiet and on a busy machine.

    python benchmarks/budgets.py [--sets digits photos waste cifar10] [--budgets 30s 2m 10m] [--load quiet busy]

Every cell runs `sightline train DATA --budget B` as its users do, in a new process with an empty cache, and takes the
time of the clock. A busy machine is one on which two other processes compute without end; they are started and ended
here. Each cell has the load average from before it, by which one sees whether a quiet machine was quiet. A cell is met
where the command took no more than 115 % of its budget, and no less than 80 % unless the run says that more would not
pay. Each cell is kept in results/budgets.jsonl, and a benchmark that was stopped goes on; --fresh measures all cells
again. Exits 1 if a cell misses its budget.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from record import RESULTS, Notebook, record, shared

from sightline.training import parse_duration

DATA = {"digits": "digits", "photos": "photos_jpg.zip", "waste": "waste_jpg.zip", "cifar10": "cifar10_jpg.zip"}
BUSY_PROCESSES = 2
ENOUGH = ("more would gain little", "No fine-tuning: with", "gain nothing", "Stopped early")
"""Words by which a run says that it stopped because more did not pay."""


def main() -> None:
    """Measure the cells that are missing, then say what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--budgets", nargs="+", default=["30s", "2m", "10m"])
    parser.add_argument("--load", nargs="+", choices=("quiet", "busy"), default=["quiet", "busy"])
    parser.add_argument("--data", type=Path, default=os.environ.get("SIGHTLINE_DATA"))
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    book = Notebook(RESULTS / "budgets.jsonl", fresh=asked.fresh)
    for budget, load, name in product(asked.budgets, asked.load, asked.sets):
        key = {"set": name, "budget": budget, "load": load}
        if book.find(**key) is None:
            data = DATA[name] if name == "digits" else str(shared(asked.data) / DATA[name])
            others = {"load_average_before": round(os.getloadavg()[0], 2)}
            with keep_busy(BUSY_PROCESSES if load == "busy" else 0):
                print(describe(book.add(measure(data, budget) | others, **key)), flush=True)
    cells = list({(line["set"], line["budget"], line["load"]): line for line in book.lines}.values())
    missed = [f"{cell['set']} {cell['budget']} {cell['load']}" for cell in cells if not cell["met"]]
    print("\n".join(map(describe, cells)))
    record("budgets", {"cells": cells, "missed": missed})
    sys.exit(bool(missed))


@contextmanager
def keep_busy(processes: int) -> Iterator[None]:
    """So many other processes compute while the block runs, and no longer than this one lives."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(100_000))"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(data: str, budget: str) -> dict:
    """One command in a process of its own, and what it says of itself."""
    seconds = parse_duration(budget)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        verb = "import sys; from sightline.cli import main; sys.exit(main())"
        words = [sys.executable, "-c", verb, "train", data, "--budget", budget, "--out", str(run)]
        lines, silence, began = [], 0.0, time.monotonic()
        heard = began
        with subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"SIGHTLINE_CACHE": str(Path(place) / "cache")},
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                now = time.monotonic()
                silence, heard = max(silence, now - heard), now
                lines.append(line.rstrip())
        took = time.monotonic() - began
        if process.returncode:
            return {"met": False, "seconds": took, "share": took / seconds, "error": lines[-1:]}
        facts = json.loads((run / "training.json").read_text())
        notes = json.loads((run / "notes.json").read_text())
        test = json.loads((run / "report.json").read_text())["evaluation"]
    enough = [note for note in notes if any(word in note for word in ENOUGH)]
    share = took / seconds
    return {
        "met": share <= 1.15 and (share >= 0.8 or bool(enough)),
        "seconds": round(took, 1),
        "share": round(share, 3),
        "enough": enough,
        "longest_silence": round(silence, 1),
        "accuracy": test["accuracy"],
        "tested": test["n"],
        "epochs": facts["epochs"],
        "steps": facts["steps"],
        "images_per_second": facts["images_per_second"],
        "remarks": facts["remarks"],
    }


def describe(cell: dict) -> str:
    """A line of the table."""
    verdict = "met" if cell["met"] else "MISSED"
    more = f"accuracy {cell['accuracy']}, {cell['steps']} steps" if "accuracy" in cell else f"{cell['error']}"
    return (
        f"{cell['set']:8} {cell['budget']:>4} {cell['load']:5} {cell['seconds']:7.1f} s {cell['share']:6.1%} "
        f"{verdict:6}  {more}  {' '.join(cell.get('enough', []))}"
    )


if __name__ == "__main__":
    main()
