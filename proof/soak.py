"""A hundred thousand requests to one service: no error, no growing memory, and every id that was answered is kept.

    python proof/soak.py [--requests 100000] [--connections 16] [--run RUN]

``sightline serve SITE`` as it comes, asked by a process with so many open connections: raw bodies and JSON in
turn, and every fiftieth image a damaged one, which must be answered 422. Memory is that of all the service's
processes, after a warm-up of a tenth of the requests and in the end. Writes ``proof/results/soak.json``.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from traffic import Load, free_port, keep, of_sqlite, pictures, request, served, small_run

LEGS = 10
GROWTH = 0.05
"""Share by which memory may grow after the warm-up."""


class Heard:
    """What came back."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.statuses: Counter[int] = Counter()

    def __call__(self, status: int, body: bytes, _: float) -> None:
        """Take an answer."""
        self.statuses[status] += 1
        if status == 200:
            self.ids += [one["id"] for one in json.loads(body)["predictions"]]


def main() -> None:
    """Warm up, load, read the journal, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--run", type=Path, help="what is served; default: a small classifier of digits")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with TemporaryDirectory() as place:
        keep("soak", soaked(Path(place), asked), asked.out)


def soaked(place: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Everything but the record."""
    from sightline.serving import publish

    publish(place / "site", asked.run or small_run(place))
    images, port, heard = pictures(), free_port(), Heard()
    one = served(place / "site", port, images[0])
    first = 1  # the probe that said it is there
    load = Load(port, mixed(images), asked.connections, heard)
    legs = []
    try:
        for _ in range(LEGS):
            load.run(count=asked.requests // LEGS)
            legs.append(one.memory_mb())
    finally:
        code = one.end()
    kept, _ = of_sqlite(place / "site" / "journal.sqlite")
    growth = legs[-1] / legs[0] - 1
    wrong = {status: n for status, n in heard.statuses.items() if status not in (200, 422)}
    found = {
        "requests": sum(heard.statuses.values()),
        "statuses": {str(status): n for status, n in sorted(heard.statuses.items())},
        "errors": sum(wrong.values())
        + abs(heard.statuses[422] - LEGS * damaged(asked.requests // LEGS, len(images))),
        "ids_answered": len(heard.ids),
        "ids_twice": len(heard.ids) - len(set(heard.ids)),
        "ids_not_in_the_journal": len(set(heard.ids) - set(kept)),
        "rows_nobody_asked_for": len(kept) - first - len(heard.ids),
        "memory_mb": legs,
        "memory_growth": round(growth, 4),
        "exit_code": code,
    }
    zeros = ("errors", "ids_twice", "ids_not_in_the_journal", "rows_nobody_asked_for", "exit_code")
    return found | {"passed": not any(found[name] for name in zeros) and growth < GROWTH}


def mixed(images: list[bytes]) -> list[bytes]:
    """Requests of both kinds, every fiftieth with a damaged image."""
    kinds = ("raw", "json")
    bodies = [image[: len(image) // 2] if n % 50 == 49 else image for n, image in enumerate(images)]
    return [request(body, kinds[n % 2]) for n, body in enumerate(bodies)]


def damaged(requests: int, cycle: int) -> int:
    """How many of a leg's requests carry a damaged image."""
    return sum(n % cycle % 50 == 49 for n in range(requests))


if __name__ == "__main__":
    main()
