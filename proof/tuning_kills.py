"""A study killed at ten random moments: no finished trial may be lost, changed or repeated.

    python proof/tuning_kills.py [--kills 10] [--trials 40] [--seed 0]

A process tunes the digits; at random moments it is killed (SIGKILL) and the same command is repeated. Before each
new start the database is read. At the end every trial must have ended, those that finished before a kill must be
unchanged, and no values may have been trained twice.
Writes ``proof/results/tuning_kills.json``.
"""

import argparse
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sightline import runtime

WORDS = ("digits", "--model", "lenet5", "--epochs", "6", "--batch-size", "64", "--by", "hyperband:startup=5")
WORDS += ("--search-space", "lr=0.001..0.5", "model.dropout=0..0.5", "--json")
WORDS += ("--precision", "float32", "--memory-format", "contiguous")
START = 4.0
"""Seconds within which a process is killed that is to die before it works."""

RESULTS = Path(__file__).parent / "results" / "tuning_kills.json"


def main() -> None:
    """Kill, count, compare, record; exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    words = (*WORDS, "--trials", str(asked.trials))
    with TemporaryDirectory() as place:
        os.environ["SIGHTLINE_CACHE"] = str(Path(place) / "cache")
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        started = time.perf_counter()
        begun(words, whole).communicate()
        took = time.perf_counter() - started
        kills = disturbed(words, killed, asked.kills, random.Random(asked.seed), took)
        found = verdict(killed, kills, asked.trials)
    record(found | {"kills": kills, "undisturbed_seconds": round(took, 1)}, asked)
    sys.exit(0 if found["passed"] else 1)


def begun(words: tuple[str, ...], folder: Path) -> "subprocess.Popen[str]":
    """The tuning, in a process of its own."""
    code = "import sys; from sightline.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "tune", *words, "--out", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def disturbed(
    words: tuple[str, ...], folder: Path, kills: int, dice: random.Random, took: float
) -> list[dict[str, Any]]:
    """Kill the study `kills` times, then let it end; returns what the database held after each kill.

    Every fourth process dies while it starts, the others at a random moment of their work.
    """
    seen: list[dict[str, Any]] = []
    while len(seen) < kills:
        before = attempts(folder)
        process, starting = begun(words, folder), len(seen) % 4 == 3
        while not starting and attempts(folder) <= before and process.poll() is None:
            time.sleep(0.05)
        after = dice.uniform(0, START if starting else 1.4 * took / kills)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        else:
            print(f"The study ended before kill {len(seen) + 1}: ask for fewer kills.")
            sys.exit(2)
        moment = "starting" if starting else "at work"
        kill = {"after_seconds": round(after, 2), "moment": moment, "state": states(folder)}
        print(f"Kill {len(seen) + 1}: {kill}", flush=True)
        seen.append(kill | {"outcomes": outcomes(folder)})
    begun(words, folder).communicate()
    return seen


def attempts(folder: Path) -> int:
    """Attempts at a trial that were begun so far."""
    found = rows(folder, "SELECT count(*) FROM trial_user_attributes WHERE key = 'host'")
    return found[0][0] if found else 0


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """Rows of the study's database, read by SQLite itself; none while there is no database."""
    if not (folder / "study.db").exists():
        return []
    with closing(sqlite3.connect(folder / "study.db")) as database:
        try:
            return database.execute(query).fetchall()
        except sqlite3.OperationalError:  # killed before its tables were made
            return []


def states(folder: Path) -> dict[str, int]:
    """How many trials are in each state."""
    return dict(rows(folder, "SELECT state, count(*) FROM trials GROUP BY state"))


def outcomes(folder: Path) -> dict[str, str]:
    """State, result and values of each finished attempt, by its number in the database."""
    query = """SELECT number, state, value,
        (SELECT group_concat(param_name || '=' || param_value, ' ') FROM
            (SELECT * FROM trial_params WHERE trial_id = trials.trial_id ORDER BY param_name))
        FROM trials LEFT JOIN trial_values USING (trial_id) WHERE state IN ('COMPLETE', 'PRUNED')"""
    return {str(number): f"{state} {value!r} {values}" for number, state, value, values in rows(folder, query)}


def verdict(killed: Path, kills: list[dict[str, Any]], trials: int) -> dict[str, Any]:
    """What must hold, and whether it does."""
    lost = changed = 0
    final = outcomes(killed)
    for kill in kills:
        before = kill.pop("outcomes")
        lost += sum(number not in final for number in before)
        changed += sum(number in final and final[number] != outcome for number, outcome in before.items())
    values = [outcome.split(" ", 2)[2] for outcome in final.values()]
    board = json.loads((killed / "tuning.json").read_text())["trials"]
    found = {
        "trials": len(board),
        "attempts": sum(states(killed).values()),
        "finished_trials_lost": lost,
        "finished_trials_changed": changed,
        "values_trained_twice": len(values) - len(set(values)),
        "all_trials_ended": sorted(row["trial"] for row in board) == list(range(trials))
        and {row["state"] for row in board} <= {"finished", "pruned"},
    }
    passed = not lost and not changed and not found["values_trained_twice"] and found["all_trials_ended"]
    return found | {"passed": passed}


def record(found: dict[str, Any], asked: argparse.Namespace) -> None:
    """Keep it with machine, date, seed and command."""
    content = {
        "command": f"python proof/tuning_kills.py --kills {asked.kills} --trials {asked.trials} --seed {asked.seed}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": runtime.environment(),
        "found": found,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
