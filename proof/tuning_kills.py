"""A tuning killed at ten random moments: no finished trial may be lost, changed or repeated.

    python proof/tuning_kills.py [--kills 10] [--seed 0]

A process tunes the digits; at random moments it is killed (SIGKILL) and the same command is given again. Before
each new start the database is read as it lies. In the end the study must hold every trial once, those that were
finished before a kill unchanged, and all of them equal to those of a study that nothing disturbed.
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

TRIALS = 40
WORDS = ("digits", "--model", "lenet5", "--epochs", "6", "--batch-size", "64", "--by", "hyperband:startup=5")
WORDS += ("--over", "lr=0.001..0.5", "model.dropout=0..0.5", "--trials", str(TRIALS), "--json")
WORDS += ("--precision", "float32", "--memory-format", "contiguous")
START = 4.0
"""Seconds within which a process is killed that is to die before it works."""

RESULTS = Path(__file__).parent / "results" / "tuning_kills.json"


def main() -> None:
    """Kill, count, compare, record; exit 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        os.environ["SIGHTLINE_CACHE"] = str(Path(place) / "cache")
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        started = time.perf_counter()
        begun(whole).communicate()
        took = time.perf_counter() - started
        kills = disturbed(killed, asked.kills, random.Random(asked.seed), took)
        found = verdict(outcomes(whole), outcomes(killed), kills)
    record(found | {"kills": kills, "undisturbed_seconds": round(took, 1)}, asked)
    sys.exit(0 if found["passed"] else 1)


def begun(folder: Path) -> "subprocess.Popen[str]":
    """The tuning, in a process of its own."""
    code = "import sys; from sightline.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", code, "tune", *WORDS, "--out", str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def disturbed(folder: Path, kills: int, dice: random.Random, took: float) -> list[dict[str, Any]]:
    """Kill the tuning so many times, then let it end; what the database held after each kill.

    Every fourth process dies while it starts, the others at a random moment of their work.
    """
    seen: list[dict[str, Any]] = []
    while len(seen) < kills:
        before = owners(folder)
        process, starting = begun(folder), len(seen) % 4 == 3
        while not starting and owners(folder) <= before and process.poll() is None:
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
    begun(folder).communicate()
    return seen


def owners(folder: Path) -> set[str]:
    """The processes that trials belong to."""
    found = rows(folder, "SELECT value_json FROM trial_user_attributes WHERE key = 'owner'")
    return {json.loads(value)["lock"] for (value,) in found}


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
    """State, result and values of each trial that ended, by its number."""
    query = """SELECT number, state, value,
        (SELECT group_concat(param_name || '=' || param_value, ' ') FROM
            (SELECT * FROM trial_params WHERE trial_id = trials.trial_id ORDER BY param_name))
        FROM trials LEFT JOIN trial_values USING (trial_id) WHERE state IN ('COMPLETE', 'PRUNED', 'FAIL')"""
    return {str(number): f"{state} {value!r} {values}" for number, state, value, values in rows(folder, query)}


def verdict(whole: dict[str, str], killed: dict[str, str], kills: list[dict[str, Any]]) -> dict[str, Any]:
    """What must hold, and whether it does."""
    lost = changed = 0
    for kill in kills:
        before = kill.pop("outcomes")
        lost += sum(number not in killed for number in before)
        changed += sum(killed.get(number) != outcome for number, outcome in before.items())
    found = {
        "trials": len(killed),
        "finished_trials_lost": lost,
        "finished_trials_changed": changed,
        "same_trials_as_undisturbed": killed == whole,
        "numbers_are_0_to_n": set(killed) == {str(number) for number in range(TRIALS)},
    }
    passed = not lost and not changed and killed == whole and found["numbers_are_0_to_n"]
    return found | {"passed": passed}


def record(found: dict[str, Any], asked: argparse.Namespace) -> None:
    """Keep it with machine, date, seed and command."""
    content = {
        "command": f"python proof/tuning_kills.py --kills {asked.kills} --seed {asked.seed}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": runtime.environment(),
        "found": found,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
