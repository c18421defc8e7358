"""Four hundred hostile files and two hundred hostile requests: everything is answered, in bounded memory and time.

    python proof/hostile.py [--connections 6]

All files and requests are made here, the same ones each time. ``sightline serve`` of a small classifier gets each
file as a body, then each request byte for byte, then 500 idle connections and 60 bodies that never end; meanwhile
and afterwards good images must be answered as before. No answer may be a 5xx or take more than 10 s, and resident
memory may not rise by more than 300 MB above the idle service. ``predict`` and ``check`` then read a folder of the
files, with names and special files on top, and must end with exit code 0 or 2 and without a traceback. Writes
``proof/results/hostile.json``.
"""

import argparse
import json
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from corpus import HOST, File, ask, hostile_files, hostile_requests, write_folder
from traffic import SIGHTLINE, Serving, free_port, keep, pictures, served, small_run

MAX_SECONDS = 10.0
"""Seconds within which every complete request must be answered."""

MAX_MEMORY_MB = 300.0
"""MB by which resident memory may rise above the idle service."""

IDLE_CONNECTIONS, SLOW_BODIES = 500, 60
"""Connections that send nothing, and bodies that never end."""

# The service


class Memory:
    """The most resident memory of a service while it is watched, in MB."""

    def __init__(self, one: Serving):
        self.one, self.peak, self._stop = one, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def now(self) -> float:
        """Resident memory of all processes of the service."""
        found = 0.0
        for pid in self.one.processes():
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                found += int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6
        return found

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, self.now())


def send(port: int, data: bytes) -> tuple[list[int], float]:
    """Send a request; the statuses that came back, and the seconds until the last of them.

    A request that asks for no end, or waits for more, is ended by this side a second after the last answer.
    """
    began, said = time.perf_counter(), b""
    seconds = 0.0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line, suppress(ConnectionError):
        with suppress(ConnectionError):
            line.sendall(data)
        line.settimeout(60 if b"Connection: close" in data[:10_000] else 1)
        with suppress(TimeoutError):
            while part := line.recv(1_000_000):
                said += part
                seconds = time.perf_counter() - began
    statuses = [int(each[:3]) for each in said.split(b"HTTP/1.1 ")[1:] if each[:3].isdigit()]
    return statuses, seconds


@contextmanager
def crowd(port: int) -> Iterator[None]:
    """Connections that send nothing, and bodies that never end."""
    head = b"POST /predict HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\nx"
    lines = [
        socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(IDLE_CONNECTIONS + SLOW_BODIES)
    ]
    try:
        for line in lines[IDLE_CONNECTIONS:]:
            line.sendall(head)
        yield
    finally:
        for line in lines:
            line.close()


def labels_of(port: int, images: list[bytes]) -> tuple[list[str], float]:
    """The service's answers to good images, and the seconds of the slowest."""
    from http.client import HTTPConnection

    labels, slowest = [], 0.0
    for image in images:
        began, line = time.perf_counter(), HTTPConnection("127.0.0.1", port, timeout=60)
        line.request("POST", "/predict", image)
        answer = json.loads(line.getresponse().read())
        labels.append(answer["predictions"][0]["label"] if "predictions" in answer else answer["detail"])
        slowest = max(slowest, time.perf_counter() - began)
        line.close()
    return labels, slowest


def attack_service(place: Path, run: Path, files: list[File], connections: int) -> dict[str, Any]:
    """What the service answers to everything."""
    from sightline.serving import publish

    publish(place / "site", run)
    good, port = pictures(20), free_port()
    one = served(place / "site", port, good[0])
    try:
        with Memory(one) as memory, ThreadPoolExecutor(connections) as pool:
            expected, _ = labels_of(port, good)
            idle = memory.now()
            found: dict[str, Any] = {"idle_mb": round(idle, 1)}
            named = [(name, ask("POST", "/predict", data, "application/octet-stream")) for name, data in files]
            for what, sent in (("files", named), ("requests", hostile_requests())):
                memory.peak = 0.0
                answers = list(pool.map(lambda each: send(port, each[1]), sent))
                statuses = Counter(status for many, _ in answers for status in many)
                pairs = list(zip(sent, answers, strict=True))
                found[what] = {
                    "sent": len(sent),
                    "statuses": {str(status): n for status, n in sorted(statuses.items())},
                    "without_an_answer": sum(not many for many, _ in answers),
                    "server_errors": [name for (name, _), (many, _) in pairs if any(s >= 500 for s in many)],
                    "slow": [name for (name, _), (_, seconds) in pairs if seconds > MAX_SECONDS],
                    "slowest_s": round(max(seconds for _, seconds in answers), 2),
                    "mb_above_idle": round(memory.peak - idle, 1),
                }
            memory.peak = 0.0
            with crowd(port):
                labels, slowest = labels_of(port, good)
            found["crowd"] = {
                "right": labels == expected,
                "slowest_s": round(slowest, 2),
                "mb_above_idle": round(memory.peak - idle, 1),
            }
            found["right_afterwards"] = labels_of(port, good)[0] == expected
    finally:
        found["exit_code"] = one.end()
        found["tracebacks"] = one.said.read_text(errors="replace").count("Traceback")
        found["errors_logged"] = one.said.read_text(errors="replace").count('"event": "error"')
    return found


def run_command(*words: str | Path) -> dict[str, Any]:
    """Exit code, seconds and tracebacks of a command."""
    began = time.perf_counter()
    done = subprocess.run(
        [*SIGHTLINE, *map(str, words)], capture_output=True, text=True, errors="replace", timeout=150, check=False
    )
    said = done.stdout + done.stderr
    return {
        "exit_code": done.returncode,
        "tracebacks": said.count("Traceback"),
        "seconds": round(time.perf_counter() - began, 1),
        "last_words": done.stderr.strip().splitlines()[-1][:300] if done.stderr.strip() else "",
    }


def main() -> None:
    """Make everything, send it, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=6, help="requests at a time")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    files = hostile_files()
    with TemporaryDirectory() as name:
        place = Path(name)
        os.environ["SIGHTLINE_CACHE"] = str(place / "cache")
        run = small_run(place)
        service = attack_service(place, run, files, asked.connections)
        entries = write_folder(place / "folder", files)
        commands = {
            "predict": run_command(
                "predict", run, place / "folder", "--format", "jsonl", "--out", place / "rows.jsonl"
            ),
            "check": run_command("check", place / "folder"),
        }
    parts = [service["files"], service["requests"]]
    passed = (
        parts[0]["sent"] >= 400
        and parts[1]["sent"] >= 200
        and not any(part["server_errors"] or part["slow"] for part in parts)
        and all(part["mb_above_idle"] <= MAX_MEMORY_MB for part in (*parts, service["crowd"]))
        and service["crowd"]["right"]
        and service["crowd"]["slowest_s"] <= MAX_SECONDS
        and service["right_afterwards"]
        and (service["exit_code"], service["tracebacks"], service["errors_logged"]) == (0, 0, 0)
        and all(done["exit_code"] in (0, 2) and not done["tracebacks"] for done in commands.values())
    )
    found = {"service": service, "folder": {"entries": entries, **commands}, "passed": passed}
    keep("hostile", found, asked.out)


if __name__ == "__main__":
    main()
