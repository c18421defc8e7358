"""What the live curves of a training cost: processor seconds of the studio with a browser that watches, and without.

    python benchmarks/studio_curves.py [--budget 2m] [--rounds 3] [--out FILE]

The same training (the built-in digits, from scratch) is started by the studio's form in turn with its page open in
headless Chromium and without. ``cost`` is what the server needs more while somebody watches, as a share of the
training's processor seconds; those of the browser are the watcher's. Linux only.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record
from studio_grid import running_studio

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.studio_browser import open_browser
from sightline.studio import Jobs

MAX_COST = 0.01


def processor_seconds(pid: int) -> tuple[float, float]:
    """Seconds of the processor that a process used, and those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    own, system, children, of_children = (int(one) / os.sysconf("SC_CLK_TCK") for one in fields[11:15])
    return own + system, children + of_children


def main() -> None:
    """Train in turn with and without a watcher."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", default="2m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[bool, list[tuple[float, float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder, open_browser() as browser:
        site = Path(folder) / "site"
        with running_studio(site) as (address, pid):
            home, page = address.split("/sign-in")[0], browser.new_page()
            headers = {"origin": home.removesuffix("/studio")}
            page.goto(address)
            page.wait_for_url("**/studio")
            data = page.request.post(f"{home}/data", form={"place": "digits"}, headers=headers).url.rpartition(
                "/"
            )[2]
            for turn in range(2 * asked.rounds):
                watched = turn % 2 == 0
                page.goto("about:blank")
                own, children = processor_seconds(pid)
                form = {"data": data, "budget": asked.budget, "start": "scratch"}
                run = page.request.post(f"{home}/train", form=form, headers=headers).url
                began = time.perf_counter()
                if watched:
                    page.goto(run)
                while Jobs(site / "studio" / "jobs").latest(active=True):
                    time.sleep(0.5)
                time.sleep(1)
                after = processor_seconds(pid)
                found[watched].append((after[0] - own, after[1] - children, time.perf_counter() - began))
                print("watched" if watched else "alone", found[watched][-1], flush=True)
    figures: dict[str, Any] = {"rounds": asked.rounds, "budget": asked.budget}
    for watched, rows in found.items():
        names = ("server", "training", "clock")
        figures["watched" if watched else "alone"] = {
            f"{name}_seconds": round(statistics.median(column), 2)
            for name, column in zip(names, zip(*rows, strict=True), strict=True)
        }
    more = figures["watched"]["server_seconds"] - figures["alone"]["server_seconds"]
    figures["cost"] = round(max(0.0, more) / figures["alone"]["training_seconds"], 4)
    figures["met"] = figures["cost"] < MAX_COST
    record("studio_curves", figures, asked.out)


if __name__ == "__main__":
    main()
