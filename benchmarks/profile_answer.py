"""Where the time of an answer goes, from socket to socket: microseconds of each part of ``POST /predict``.

    python benchmarks/profile_answer.py [--data FOLDER_OF_ZIPS] [--rounds 5] [--seconds 2]

ResNet-20 at 32 pixels, in the service as ``sightline serve SITE`` opens it. Parts are timed alone in one process,
one call after another; whole answers are timed by ``load.py`` over 1, 8 and 32 connections. What the parts of a raw
or JSON answer leave of its median over one connection is HTTP, the event loop and the client (``rest``); several
connections add two changes of thread. The journal's work behind an answer (sketch and database) is not part of
it, but takes the same cores.
"""

import argparse
import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from bare_onnx import site_of
from load import KINDS
from record import record, shared
from services import SIGHTLINE, bodies, bundle, free_port, request_for, serving

from serving import load
from sightline.data import decode
from sightline.journal import PredictionRecord
from sightline.serving.requests import PredictRequest, RankedPrediction, dump_json, parse_request, prediction_json
from sightline.serving.service import Service, ServiceSettings, new_prediction_id

CONNECTIONS = (1, 8, 32)
CALLS = 200
"""Calls of a part in a round."""
JOURNALLED = 500
"""Answers that the journal's writer moves in a round."""
SHARED_PARTS = ("authorization", "decoding and checks", "network", "ranking and batch", "journal", "response")


def median_us(what: Callable[[], object], calls: int) -> float:
    """The median time of a call, in microseconds."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        what()
        times.append(1e6 * (time.perf_counter() - began))
    return statistics.median(times)


def record_of(one: RankedPrediction, data: bytes) -> PredictionRecord:
    """What the journal is given of an answer."""
    return PredictionRecord(
        new_prediction_id(), time.time(), 1, one.label, one.confidence, one.abstained,
        hashlib.sha256(data).hexdigest(), None, None, None, sketch_inputs=one.sketch_inputs,
    )  # fmt: skip


def time_parts(service: Service, images: Sequence[bytes]) -> dict[str, float]:
    """Microseconds of each part, once."""
    engine, limits, journal = service.engine, service.limits, service.journal
    assert journal is not None
    headers = {kind: {b"content-type": KINDS[kind](b"")[0].encode(), b"host": b"127.0.0.1"} for kind in KINDS}
    each = cycle(images)
    json_bodies = cycle([KINDS["json"](data)[1] for data in images])
    pixels = cycle([decode(data, engine.geometry)[None] for data in images])
    (answer,) = engine.predict([PredictRequest([images[0]])], limits, exclusive=False)[0]
    assert isinstance(answer, RankedPrediction)
    runner = engine.shared_runner

    def respond() -> bytes:
        rows = [prediction_json(new_prediction_id(), answer)]
        return dump_json({"release": 1, "ms": 1.234, "predictions": rows})

    parts: dict[str, Callable[[], object]] = {
        "authorization": lambda: service.authorize(headers["raw"], "predict"),
        "parsing, raw": lambda: parse_request(headers["raw"], b"", next(each), limits),
        "parsing, json": lambda: parse_request(headers["json"], b"", next(json_bodies), limits),
        "decoding and checks": lambda: engine.decode_image(next(each), limits),
        "network": lambda: runner.outputs(next(pixels)),
        "engine": lambda: engine.predict([PredictRequest([next(each)])], limits, exclusive=False),
        "journal": lambda: journal.record([record_of(answer, next(each))]),
        "response": respond,
    }
    found = {name: median_us(part, CALLS) for name, part in parts.items()}
    found["ranking and batch"] = max(0.0, found.pop("engine") - found["decoding and checks"] - found["network"])
    journal.flush()
    for _ in range(JOURNALLED):
        journal.record([record_of(answer, next(each))])
    began = time.thread_time()  # its thread may take some of them first: a lower bound
    journal.flush()
    found["behind the answer: sketch and database"] = 1e6 * (time.thread_time() - began) / JOURNALLED
    return found


def time_answers(site: Path, folder: Path, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Rate, median and 99th percentile of whole answers, medians of rounds."""
    port = free_port()
    probe = request_for(next(folder.iterdir()).read_bytes(), "raw")
    cells = [(kind, count) for kind in ("raw", "json") for count in CONNECTIONS]
    rows: dict[str, list[dict[str, Any]]] = {f"{kind}, {count}": [] for kind, count in cells}
    with serving([*SIGHTLINE, "serve", site, "--port", str(port)], probe, port=port):
        for _ in range(rounds):
            for kind, count in cells:
                rows[f"{kind}, {count}"].append(load(port, folder, kind, count, seconds))
    return {
        where: {key: statistics.median(one[key] for one in some) for key in ("per_second", "p50_ms", "p99_ms")}
        for where, some in rows.items()
    }


def main() -> None:
    """Time the parts and the whole, print and record both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds cifar10_jpg.zip")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-benchmarks")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement of whole answers")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    data = shared(asked.data)
    folder = bodies(data / "cifar10_jpg.zip", asked.work)
    images = [path.read_bytes() for path in sorted(folder.iterdir())]
    with tempfile.TemporaryDirectory() as name:
        site = Path(name) / "site"  # a journal of its own
        shutil.copytree(site_of(bundle("resnet20", 32, data, asked.work), asked.work), site, symlinks=True)
        service = Service(ServiceSettings(path=site)).open()
        try:
            rounds = list(map(partial(time_parts, service), [images] * asked.rounds))
        finally:
            service.close()
        parts = {part: round(statistics.median(one[part] for one in rounds), 1) for part in rounds[0]}
        answers = time_answers(site, folder, asked.rounds, asked.seconds)
    for kind in ("raw", "json"):
        known = sum(parts[part] for part in (*SHARED_PARTS, f"parsing, {kind}"))
        parts[f"rest, {kind}, 1 connection"] = round(1e3 * answers[f"{kind}, 1"]["p50_ms"] - known, 1)
    for part, microseconds in parts.items():
        print(f"{part:45}{microseconds:9.1f} us")
    for where, one in answers.items():
        print(f"{where:12}{one['per_second']:8.0f}/s  p50 {one['p50_ms']:.2f} ms  p99 {one['p99_ms']:.2f} ms")
    record("profile_answer", {"parts_us": parts, "answers": answers}, asked.out)


if __name__ == "__main__":
    main()
