"""From the start of a service to its first answer, and the memory it takes: Sightline beside LitServe and BentoML.

    python benchmarks/serving_start.py [--data FOLDER_OF_ZIPS] [--rounds 5] [--sides sightline litserve bentoml]

ResNet-20 at 32 pixels from a site, as ``serving.py`` has it. The clock runs from the first instruction of the
command to the first image answered with 200, files in the page cache. Memory is that of all its processes, what
they share counted once: when it has answered once, and after a load over 8 connections. Sides take turns; medians.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from record import Notebook, record
from services import NotServing, free_port, request_for, serving

from serving import SIDES, Contest, Setting, body_kind, load

CHOSEN: dict[str, Setting] = {
    "sightline": {},
    "litserve": {"workers": 1, "threads": 2},
    "bentoml": {"mode": "batch", "workers": 1, "threads": 2},
    "naive": {"workers": 1, "threads": 1},
}
"""One setting of each: the fewest processes it can have."""


def main() -> None:
    """Start each, in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", nargs="+", default=list(CHOSEN), choices=list(SIDES))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.int8, asked.kinds, asked.connections = False, ["raw"], [8]
    contest = Contest(asked, Notebook(asked.work / "serving-start.jsonl", fresh=True))
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in asked.sides}
    for number in range(asked.rounds):
        for name in asked.sides:
            found[name].append(started(contest, name))
            print(f"round {number + 1} {name}: {found[name][-1]}", flush=True)
    figures = {name: summary(rows) for name, rows in found.items()}
    record(
        "serving_start",
        {"rounds": asked.rounds, "model": f"{asked.model} at {asked.size}", "sides": figures},
        asked.out,
    )


def started(contest: Contest, name: str) -> dict[str, Any]:
    """Start a side, ask once, load it a little."""
    setting, port = CHOSEN[name], free_port()
    sent = body_kind(name, "raw", setting)
    try:
        command, settings, cwd = contest.command(name, "raw", setting, port)
        with serving(command, request_for(contest.images[0], sent), port=port, settings=settings, cwd=cwd) as one:
            first = one.memory_mb()
            load(port, contest.bodies, sent, 8, 3.0)
            return {
                "seconds": round(one.seconds, 3),
                "memory_first_mb": first,
                "memory_loaded_mb": one.memory_mb(),
                "processes": len(one.processes()),
            }
    except NotServing as error:
        return {"failed": str(error)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of what worked."""
    good = [row for row in rows if "failed" not in row]
    if not good:
        return rows[-1]
    return {key: round(statistics.median(row[key] for row in good), 3) for key in good[0]} | {
        "all_seconds": [row["seconds"] for row in good]
    }


if __name__ == "__main__":
    main()
