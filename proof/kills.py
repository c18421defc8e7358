"""A service killed at random moments under load, twenty times: nothing that was acknowledged may be lost.

    python proof/kills.py [--kills 20] [--workers 2] [--seed 0]

Four callers ask and correct without pause, while a publisher publishes, promotes and prunes releases. At random
moments one process of the service, or all of them at once, is killed (SIGKILL), every third time the publisher
too, in the middle of whatever it does. The service is started again by the same command each time all of it
died. In the end every id that was answered and every correction that was acknowledged must be in the journal,
once; every release must be whole; and after each kill the next start must answer. Writes
``proof/results/kills.json``.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from traffic import Serving, Traffic, books, free_port, keep, of_sqlite, pictures, served, small_run, whole

PUBLISHER = """
import sys
from pathlib import Path
from sightline.serving import releases
from sightline.serving import publish
site, runs = Path(sys.argv[1]), sys.argv[2:]
n = 0
while True:
    publish(site, runs[n % len(runs)], note="proof")
    releases.prune(site, keep=3)
    n += 1
"""


def main() -> None:
    """Kill, count, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        keep("kills", killed(Path(place), asked), asked.out)


def killed(place: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Everything but the record."""
    from sightline.serving import publish

    site, dice, images, port = place / "site", random.Random(asked.seed), pictures(), free_port()
    runs = [small_run(place, seed=seed) for seed in (0, 1)]
    publish(site, runs[0])
    classes = [str(digit) for digit in range(10)]
    words = ("--workers", str(asked.workers))
    service, publisher = served(site, port, images[0], *words), publishing(site, runs)
    seen: list[dict[str, Any]] = []
    try:
        with Traffic(port, images, classes, seed=asked.seed) as traffic:
            while len(seen) < asked.kills:
                time.sleep(dice.uniform(0.3, 2.5))
                if len(seen) % 3 == 2:
                    publisher.kill()
                    publisher.wait()
                    publisher = publishing(site, runs)
                service, kill = struck(service, dice, lambda: served(site, port, images[0], *words))
                kill["releases"] = releases_of(site)
                seen.append(kill)
                print(f"Kill {len(seen)}: {json.dumps(kill)}", flush=True)
            time.sleep(1)
    finally:
        publisher.kill()
        publisher.wait()
        code = service.end()
    found = {"kills": seen, "exit_code": code, **books(traffic, *of_sqlite(site / "journal.sqlite"))}
    found["releases_in_the_end"] = releases_of(site)
    broken = sum(kill["releases"]["damaged"] for kill in seen) + found["releases_in_the_end"]["damaged"]
    errors = sum(n for what, n in traffic.refused.items() if what.split()[-1][0] == "5" and "503" not in what)
    passed = whole(found) and not broken and not errors and code == 0
    return found | {"damaged_releases": broken, "server_errors": errors, "passed": passed}


def publishing(site: Path, runs: list[Path]) -> "subprocess.Popen[bytes]":
    """A process that publishes, promotes and prunes until it is killed."""
    words = [sys.executable, "-c", PUBLISHER, site, *runs]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def struck(service: Serving, dice: random.Random, again: Any) -> tuple[Serving, dict[str, Any]]:
    """Kill all of the service, or one of its processes; the service that answers afterwards, and what was done."""
    processes = [one for one in service.processes() if "resource_tracker" not in command_of(one)]
    victims = processes if len(processes) == 1 or dice.random() < 0.5 else [dice.choice(processes[1:])]
    for victim in victims:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    kill: dict[str, Any] = {"processes": len(processes), "killed": len(victims)}
    if victims == processes:
        service.end(politely=False)
        service.said.unlink(missing_ok=True)
        service = again()
        kill["seconds_to_answer_again"] = round(service.seconds, 2)
    return service, kill


def command_of(process: int) -> str:
    """The words a process was started with."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def releases_of(site: Path) -> dict[str, int]:
    """How many releases there are, and how many of them, or of ``current``, cannot be trusted."""
    from sightline.errors import SightlineError
    from sightline.serving import releases

    count = damaged = 0
    for number in releases.release_numbers(site):
        try:
            releases.verify(releases.load_release(site, number))
            count += 1
        except SightlineError:
            damaged += (site / "releases" / f"{number:04}").exists()  # else it was pruned meanwhile
    try:
        releases.current_release(site)
    except SightlineError:
        damaged += 1
    return {"whole": count, "damaged": damaged}


if __name__ == "__main__":
    main()
