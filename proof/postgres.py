"""PostgreSQL stopped and started under load: predictions go on, and nothing that was acknowledged is lost.

    python proof/postgres.py [--stops 5] [--seed 0]

A cluster of its own in a temporary folder, on a free port of the loopback. Four callers ask and correct without
pause; the database is stopped at random moments (in turn: orderly, at once as in a power cut, and by a signal to
its first process) and started again seconds later. While it is away every prediction must be answered (200), and a
correction is either in the database or told to come again (503). In the end every id that was answered and every
correction that was acknowledged must be in the database, once. Writes ``proof/results/postgres.json``.
"""

import argparse
import json
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from traffic import Traffic, books, free_port, keep, pictures, served, small_run, whole

PLACES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
WAYS = ("fast", "immediate", "kill")


class Cluster:
    """A PostgreSQL of our own."""

    def __init__(self, place: Path):
        found = shutil.which("initdb")
        self.bin = Path(found).parent if found else PLACES[0]
        self.place, self.port = place / "cluster", free_port()
        self.user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            shutil.chown(place, "postgres")
        self._run("initdb", "-D", self.place, "-A", "trust", "-U", "sightline", "-E", "UTF8", "--no-sync")
        self.start()
        self.ask("CREATE DATABASE journal", "postgres")

    @property
    def url(self) -> str:
        """What the service is given."""
        return f"postgresql+psycopg://sightline@127.0.0.1:{self.port}/journal"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -h 127.0.0.1 -k {self.place} -c fsync=off"
        self._run("pg_ctl", "-D", self.place, "-l", self.place / "log", "-w", "-o", options, "start")

    def stop(self, way: str = "fast") -> None:
        """Stop it: ``fast`` (orderly), ``immediate`` (as in a power cut), ``kill`` (SIGQUIT)."""
        if way == "kill":
            pid = int((self.place / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGQUIT)
            while Path(f"/proc/{pid}").exists() and (self.place / "postmaster.pid").exists():
                time.sleep(0.05)
        else:
            self._run("pg_ctl", "-D", self.place, "-m", way, "-w", "stop")

    def ask(self, query: str, database: str = "journal") -> list[tuple[Any, ...]]:
        """The rows of a query."""
        import psycopg

        words = {"host": "127.0.0.1", "port": self.port, "user": "sightline", "dbname": database}
        with psycopg.connect(**words, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *words: object) -> None:
        command = [str(self.bin / program), *map(str, words)]
        if os.geteuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", timeout=60)
        if done.returncode:
            sys.exit(f"{program}: {done.stderr.strip() or done.stdout.strip()}")


def main() -> None:
    """Stop, start, count, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stops", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not (shutil.which("initdb") or PLACES):
        sys.exit("PostgreSQL is not installed here: nothing to prove.")
    place = Path(mkdtemp(prefix="sightline-proof-"))
    place.chmod(0o755)
    try:
        found = stopped(place, asked)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    keep("postgres", found, asked.out)


def stopped(place: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Everything but the record."""
    from sightline.serving import publish

    site, dice, images, port = place / "site", random.Random(asked.seed), pictures(), free_port()
    publish(site, small_run(place))
    cluster, seen, service = Cluster(place), list[dict[str, Any]](), None
    try:
        service = served(site, port, images[0], settings={"SIGHTLINE_JOURNAL": cluster.url})
        with Traffic(port, images, [str(digit) for digit in range(10)], seed=asked.seed) as traffic:
            for number in range(asked.stops):
                time.sleep(dice.uniform(0.5, 2))
                seen.append(outage(cluster, traffic, WAYS[number % len(WAYS)], dice.uniform(1, 4)))
                print(f"Stop {number + 1}: {json.dumps(seen[-1])}", flush=True)
            time.sleep(2)
        code = service.end()
        rows = [id for (id,) in cluster.ask("SELECT id FROM predictions")]
        corrections = cluster.ask("SELECT prediction, label FROM corrections ORDER BY number")
        version = cluster.ask("SHOW server_version")[0][0]
    finally:
        if service is not None:
            service.end()
        cluster.stop("immediate")
    found = {"postgresql": version, "stops": seen, "exit_code": code, **books(traffic, rows, corrections)}
    bad = sum(n for what, n in traffic.refused.items() if what != "/feedback 503") + traffic.broken
    meanwhile = min(stop["answered_meanwhile"] for stop in seen)
    passed = whole(found) and not bad and meanwhile > 0 and code == 0
    return found | {"predictions_refused_or_unanswered": bad, "passed": passed}


def outage(cluster: Cluster, traffic: Traffic, way: str, seconds: float) -> dict[str, Any]:
    """Stop the database for so long; how many predictions were answered meanwhile."""
    cluster.stop(way)
    before, refused = len(traffic.answered), traffic.refused["/feedback 503"]
    time.sleep(seconds)
    meanwhile, later = len(traffic.answered) - before, traffic.refused["/feedback 503"] - refused
    cluster.start()
    return {
        "way": way,
        "seconds": round(seconds, 2),
        "answered_meanwhile": meanwhile,
        "corrections_refused": later,
    }


if __name__ == "__main__":
    main()
