"""What a service's answers cost while ``improve`` runs on the same machine.

    python benchmarks/improve_load.py [--rate 40] [--seconds 20] [--data FOLDER]

A ResNet-20 is served from a site; JPEGs of CIFAR-10 come at ``--rate`` a second, whatever the answers take. Their
latency is measured for ``--seconds`` while nothing else runs, then while ``sightline improve`` learns 400 labels, then
quietly again. ``ratio`` is the 99th percentile meanwhile, divided by that of the quieter of the two quiet times.
"""

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cifar import publish_resnet20, read_test_files
from record import record, shared

from sightline.journal import Journal, PredictionRecord, QueueEntry, draw_number, new_prediction_id

LABELS = 400


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=40)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--data", type=Path)
    asked = parser.parse_args()
    data = shared(asked.data)
    files = read_test_files(data, 20)
    with tempfile.TemporaryDirectory() as folder:
        site = publish_resnet20(data, Path(folder), epochs=2, limit=6000)
        fill_journal(site, files)
        command = [sys.executable, "-c", "import sys; from sightline.cli import main; sys.exit(main())"]
        served = [*command, "serve", str(site), "--port", "0", "--json"]
        with subprocess.Popen(served, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
            assert service.stdout is not None
            host = json.loads(service.stdout.readline())["url"].removeprefix("http://")
            try:
                ask(host, files, asked.rate, until_after(5))
                quiet = [ask(host, files, asked.rate, until_after(asked.seconds))]
                began = time.perf_counter()
                with subprocess.Popen([*command, "improve", str(site), "--json"], text=True) as working:
                    busy = ask(host, files, asked.rate, lambda: working.poll() is not None)
                spent = time.perf_counter() - began
                quiet.append(ask(host, files, asked.rate, until_after(asked.seconds)))
            finally:
                service.terminate()
    p99 = [float(np.quantile(one, 0.99)) for one in quiet]
    during = float(np.quantile(busy, 0.99))
    figures = {
        "rate": asked.rate,
        "improve_seconds": round(spent, 1),
        "requests": len(busy),
        "p50_ms": {"quiet": round(float(np.median(quiet[0])), 2), "during": round(float(np.median(busy)), 2)},
        "p99_ms": {"quiet": [round(one, 2) for one in p99], "during": round(during, 2)},
        "ratio": round(during / min(p99), 2),
    }
    record("improve_load", figures)


def until_after(seconds: float) -> Callable[[], bool]:
    """A question that is answered yes after a time."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() > end


def fill_journal(site: Path, files: list[tuple[bytes, str]]) -> None:
    """Answers with images and labels, a tenth of them drawn at random."""
    with Journal.open(site, keep_images=True) as journal:
        records = [
            PredictionRecord(new_prediction_id(), time.time(), 1, label, 0.5, False, None, image=data)
            for data, label in files[:LABELS]
        ]
        journal.record(records)
        journal.flush()
        for one in records:
            drawn = draw_number(one.id) < 0.1
            journal.add_to_queue([QueueEntry(one.id, "audit" if drawn else "margin", 0.1 if drawn else 0.0)])
            journal.review([one.id], "confirmed", one.label, by="oracle")


def ask(host: str, files: list[tuple[bytes, str]], rate: float, is_over: Callable[[], bool]) -> list[float]:
    """Milliseconds of each answer, from when its request was due: two connections take turns."""
    spent: list[float] = []
    lock, number, began = threading.Lock(), [0], time.perf_counter()

    def work() -> None:
        connection = http.client.HTTPConnection(host)
        while not is_over():
            with lock:
                i, number[0] = number[0], number[0] + 1
            due = began + i / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            connection.request("POST", "/predict", files[i % len(files)][0])
            connection.getresponse().read()
            spent.append(1000 * (time.perf_counter() - due))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return spent


if __name__ == "__main__":
    main()
