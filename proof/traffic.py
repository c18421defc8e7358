"""What the proofs of the service share: what is served, callers that remember what they are told, the books."""

import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from load import Load, request
from record import record as _record
from services import SIGHTLINE, Serving, free_port, start, wait_for

RESULTS = Path(__file__).parent / "results"
IMAGES = 200


def keep(name: str, found: dict[str, Any], out: Path | None = None) -> None:
    """Write ``proof/results/<name>.json``, with machine, date and command; exit 1 where it is no proof."""
    _record(name, found, out or RESULTS / f"{name}.json")
    sys.exit(0 if found["passed"] else 1)


def small_run(place: Path, *, seed: int = 0) -> Path:
    """A classifier of digits, made in seconds."""
    from sightline.training import Recipe, train

    settled = {"precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1}
    recipe = Recipe(model="lenet5", epochs=1, limit=500, seed=seed, **settled)
    return train("digits", recipe, out=place / f"run{seed}").folder


def pictures(count: int = IMAGES) -> list[bytes]:
    """Digits as PNG files."""
    import io

    from PIL import Image

    from sightline.data import load_dataset
    from sightline.types import Geometry

    files = []
    for pixels in load_dataset("digits", Geometry(size=(28, 28), channels=1))[:count]:
        stream = io.BytesIO()
        Image.fromarray(pixels[..., 0]).save(stream, "png")
        files.append(stream.getvalue())
    return files


def served(site: Path, port: int, image: bytes, *words: str, settings: dict[str, str] | None = None) -> Serving:
    """``sightline serve`` of a site, once it answers."""
    one = start([*SIGHTLINE, "serve", site, "--port", str(port), *words], port=port, settings=settings)
    try:
        one.seconds = wait_for(one, request(image, "raw"))
    except BaseException:
        one.end(politely=False)
        raise
    return one


class Traffic:
    """Callers that ask and correct without pause, and remember every answer and every acknowledgement."""

    def __init__(
        self, port: int, images: Sequence[bytes], classes: Sequence[str], *, callers: int = 4, seed: int = 0
    ):
        self.port, self.images, self.classes, self.callers, self.seed = port, images, classes, callers, seed
        self.answered: set[str] = set()
        """Ids of predictions that came back."""
        self.acknowledged: dict[str, str] = {}
        """Corrections that were acknowledged: id to label."""
        self.refused: Counter[str] = Counter()
        """Answers other than 200, by what was asked and the status."""
        self.broken = 0
        """Requests without an answer: nobody there, or the connection was lost."""
        self.slowest = 0.0
        """Seconds of the slowest prediction."""
        self._turn, self._stop = threading.Lock(), threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Traffic":
        self._threads = [threading.Thread(target=self._call, args=(n,), daemon=True) for n in range(self.callers)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _call(self, number: int) -> None:
        dice, line = random.Random(f"{self.seed} {number}"), None
        while not self._stop.is_set():
            try:
                line = line or http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                self._once(line, dice)
            except (OSError, http.client.HTTPException):
                line = None
                with self._turn:
                    self.broken += 1
                time.sleep(0.05)

    def _once(self, line: http.client.HTTPConnection, dice: random.Random) -> None:
        began = time.perf_counter()
        found = self._ask(line, "/predict", dice.choice(self.images), "application/octet-stream")
        if found is None:
            return
        ids = [one["id"] for one in found["predictions"]]
        with self._turn:
            self.answered.update(ids)
            self.slowest = max(self.slowest, time.perf_counter() - began)
        if dice.random() < 0.3:
            said = {"id": ids[0], "label": dice.choice(self.classes)}
            if self._ask(line, "/feedback", json.dumps(said).encode(), "application/json") is not None:
                with self._turn:
                    self.acknowledged[said["id"]] = said["label"]

    def _ask(self, line: http.client.HTTPConnection, path: str, body: bytes, kind: str) -> Any:
        line.request("POST", path, body, {"Content-Type": kind})
        answer = line.getresponse()
        data = answer.read()
        if answer.status == 200:
            return json.loads(data)
        with self._turn:
            self.refused[f"{path} {answer.status}"] += 1
        time.sleep(0.02)
        return None


def books(traffic: Traffic, predictions: Sequence[str], corrections: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the callers were told, beside what the journal holds: ids of predictions; id and label of corrections.

    ``corrections`` are in the order they were written; each answer is corrected once, so none may be there twice.
    """
    kept, said = set(predictions), dict(corrections)
    lost = {id for id, label in traffic.acknowledged.items() if said.get(id) != label}
    return {
        "answered": len(traffic.answered),
        "answered_and_not_in_the_journal": len(traffic.answered - kept),
        "acknowledged_corrections": len(traffic.acknowledged),
        "acknowledged_and_not_in_the_journal": len(lost),
        "rows_twice": len(predictions) - len(kept) + len(corrections) - len(said),
        "rows": len(predictions),
        "refused": dict(traffic.refused),
        "without_an_answer": traffic.broken,
        "slowest_prediction_s": round(traffic.slowest, 3),
    }


def whole(found: dict[str, Any]) -> bool:
    """Whether the books say that nothing was lost and nothing doubled, and that there was something to lose."""
    wrong = ("answered_and_not_in_the_journal", "acknowledged_and_not_in_the_journal", "rows_twice")
    return (
        not any(found[name] for name in wrong) and found["answered"] > 0 and found["acknowledged_corrections"] > 0
    )


def of_sqlite(file: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The journal's predictions and corrections, read by SQLite itself."""
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(file)) as database:
        ids = [id for (id,) in database.execute("SELECT id FROM predictions")]
        return ids, database.execute("SELECT prediction, label FROM corrections ORDER BY number").fetchall()


__all__ = [
    "Load",
    "Serving",
    "Traffic",
    "books",
    "free_port",
    "keep",
    "of_sqlite",
    "pictures",
    "request",
    "served",
    "small_run",
    "whole",
]
