"""One training over two hosts, as two network namespaces of this machine: it equals one host, and a lost one stops all.

    python proof/two_hosts.py [--seconds 30]

Two namespaces are joined by a cable (veth); torchrun starts two processes in each, and the four train LeNet-5 on the
digits with the global batches of one host. The weights must agree with those of one process within a stated bound.
Then the cable of one host is pulled in the middle of a training: every process on both sides must end within
``--seconds`` and a grace, with one sentence, and when the cable is back the run must go on with its next epoch. Needs
root and ``ip netns``; without, it says why and ends well. Writes ``proof/results/two_hosts.json``.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sightline import runtime
from sightline.classifier import Classifier

HOSTS = ("sightline-a", "sightline-b")
ADDRESSES = ("10.201.77.1", "10.201.77.2")
FLAGS = (
    "--model",
    "lenet5",
    "--size",
    "16",
    "--limit",
    "400",
    "--batch-size",
    "32",
    "--augment",
    "none",
    "--lr",
    "0.05",
)
FLAGS += ("--precision", "float32", "--memory-format", "contiguous", "--cpu-replicas", "1", "--seed", "0")
BOUND = 1e-3
"""Largest difference of a weight, relative to the largest of its tensor: rounding of other sums over two epochs."""
GRACE = 60.0
"""Seconds beyond ``--seconds`` in which every process must have ended."""
RESULTS = Path(__file__).parent / "results" / "two_hosts.json"


def main() -> None:
    """Train on one host and on two, compare; pull a cable, go on; record. Exit 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="without an answer, until a host counts as lost"
    )
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(two_hosts())
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip()
            print(f"Skipped: two network namespaces cannot be made ({reason}); this needs root and 'ip netns'.")
            return
        place = Path(stack.enter_context(TemporaryDirectory()))
        os.environ |= {"SIGHTLINE_CACHE": str(place / "cache"), "SIGHTLINE_LOST_SECONDS": f"{asked.seconds:g}"}
        found = {"equal": compare(place), "lost": lose_host(place, asked.seconds)}
    print(json.dumps(found, indent=2))
    passed = all(each["passed"] for each in found.values())
    command = " ".join(["python proof/two_hosts.py", *sys.argv[1:]])
    date = datetime.now(UTC).date().isoformat()
    value = {
        "command": command,
        "date": date,
        "machine": runtime.environment(),
        "passed": passed,
        "figures": found,
    }
    RESULTS.write_text(json.dumps(value, indent=2) + "\n")
    sys.exit(0 if passed else 1)


def ip(*words: str) -> None:
    """Run ``ip``; raises CalledProcessError with what it said."""
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Two namespaces with a cable between them."""
    with contextlib.ExitStack() as stack:
        for host in HOSTS:
            ip("netns", "add", host)
            stack.callback(subprocess.run, ["ip", "netns", "del", host], check=False, capture_output=True)
        ip("link", "add", "cable0", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable0", "netns", HOSTS[1])
        for host, address in zip(HOSTS, ADDRESSES, strict=True):
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "cable0")
            ip("-n", host, "link", "set", "cable0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield


def start(*words: str) -> list["subprocess.Popen[str]"]:
    """``sightline train`` with these words by torchrun on both hosts, two processes on each."""
    place = Path(sys.executable).parent
    started = []
    for rank, host in enumerate(HOSTS):
        launch = [str(place / "torchrun"), "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=2"]
        launch += [f"--master-addr={ADDRESSES[0]}", "--master-port=29400", "--no-python"]
        command = ["ip", "netns", "exec", host, *launch, str(place / "sightline"), "train", *words]
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable0", "OMP_NUM_THREADS": "1"}
        pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes))
    return started


def compare(place: Path) -> dict[str, Any]:
    """The same recipe on two hosts and on one process: the largest relative difference of a weight."""
    words = ("digits", *FLAGS, "--epochs", "2")
    both = start(*words, "--out", str(place / "two"))
    said = [each.communicate(timeout=600)[1] for each in both]
    if any(each.returncode for each in both):
        return {"passed": False, "said": [text[-2000:] for text in said]}
    one = [str(Path(sys.executable).parent / "sightline"), "train", *words, "--out", str(place / "one")]
    subprocess.run(one, check=True, capture_output=True)
    first, second = (Classifier.load(place / name).state_dict() for name in ("one", "two"))
    differences = [
        float((first[name] - second[name]).abs().max() / first[name].abs().max().clamp(min=1e-6))
        for name in first
        if first[name].is_floating_point()
    ]
    moved = torch.cat([tensor.flatten() for tensor in first.values() if tensor.is_floating_point()]).abs().sum()
    largest = max(differences)
    return {
        "passed": largest <= BOUND and bool(moved > 0) and len(first) == len(second),
        "largest_relative_difference": largest,
        "bound": BOUND,
        "tensors": len(differences),
    }


def lose_host(place: Path, seconds: float) -> dict[str, Any]:
    """Pull the cable in the third epoch; every process must end, say so, and the run must go on."""
    folder = place / "lost"
    both = start("digits", *FLAGS, "--epochs", "2000", "--out", str(folder))
    wait_for_epochs(folder, 3, both)
    ip("-n", HOSTS[1], "link", "set", "cable0", "down")
    began = time.monotonic()
    took, said = [], []
    for process in both:
        try:
            said.append(process.communicate(timeout=max(1.0, seconds + GRACE - (time.monotonic() - began)))[1])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            said.append(process.communicate()[1])
        took.append(round(time.monotonic() - began, 1))
    ip("-n", HOSTS[1], "link", "set", "cable0", "up")
    done = count_epochs(folder)
    sentences = [sorted({line for line in text.splitlines() if "all of them stopped" in line}) for text in said]
    again = start("--resume", str(folder))
    wait_for_epochs(folder, done + 3, again)
    for process in again:
        os.killpg(process.pid, 15)
    rest = [process.communicate(timeout=60)[1] for process in again]
    numbers = [int(row.split(",")[0]) for row in (folder / "history.csv").read_text().splitlines()[1:]]
    whole = numbers == list(range(1, len(numbers) + 1)) and len(numbers) > done
    ended = all(each <= seconds + GRACE for each in took)
    return {
        "passed": ended and whole and all(sentences),
        "lost_after_seconds": seconds,
        "ended_after_seconds": took,
        "said": sentences,
        "epochs_before": done,
        "epochs_after_going_on": len(numbers),
        "trace": [] if all(sentences) and whole else [text[-3000:] for text in (*said, *rest)],
    }


def count_epochs(folder: Path) -> int:
    """Rows of the run's history."""
    path = folder / "history.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def wait_for_epochs(folder: Path, epochs: int, processes: list["subprocess.Popen[str]"]) -> None:
    """Wait until the history has this many rows or a process ends, for five minutes at most."""
    deadline = time.monotonic() + 300
    while count_epochs(folder) < epochs and time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
