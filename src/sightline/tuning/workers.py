"""Several processes on one study, one thread each; all of them end when the process that started them ends."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from .. import errors, progress
from ..errors import Interrupted, SightlineError
from ..training import prepare, resolve
from .study_store import StudyConfig, StudyStore
from .trial import SplitsCache, run_trials

PARENT_POLL_SECONDS = 1.0
"""Seconds between two checks whether the parent process still exists."""


def run_workers(config: StudyConfig, workers: int) -> int:
    """Run the trials of a study in new processes and wait for them; their messages are printed as they come.

    Returns the number of workers that died without a message: the caller finishes what they left. Raises the
    SightlineError of a worker once the others have ended, and Interrupted if they were stopped.
    """
    payload = pickle.dumps((config, os.getpid()))
    with ExitStack() as stack:
        processes = [stack.enter_context(_spawn_worker(payload)) for _ in range(workers)]
        relays = [threading.Thread(target=_relay_messages, args=(one,), daemon=True) for one in processes]
        for relay in relays:
            relay.start()
        try:
            answers = [_read_answer(one) for one in processes]
        except KeyboardInterrupt:
            for one in processes:  # a terminal's Ctrl-C has reached them too; another program's signal has not
                one.send_signal(signal.SIGTERM)
            answers = [_read_answer(one) for one in processes]
        for relay in relays:
            relay.join()
    found = [json.loads(answer) for answer in answers if answer.strip()]
    raised = [vars(errors)[one["kind"]](one["text"]) for one in found]
    if raised:
        raise next((error for error in raised if not isinstance(error, Interrupted)), raised[0])
    lost = sum(one.returncode != 0 for one in processes)
    if lost:
        progress.notify(
            f"{lost} of {workers} workers died without a message, perhaps because memory ran out. "
            "This process finishes their trials."
        )
    return lost


def _spawn_worker(payload: bytes) -> "subprocess.Popen[bytes]":
    """A new process that reads its settings from stdin: a command line would show the password in an address."""
    source = str(Path(__file__).parents[2])
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", "from sightline.tuning.workers import worker_main; worker_main()"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(payload)
    process.stdin.close()
    return process


def _read_answer(process: "subprocess.Popen[bytes]") -> bytes:
    """The error of a worker as JSON, read when it ends; empty if there was none."""
    assert process.stdout is not None
    return process.stdout.read()


def _relay_messages(process: "subprocess.Popen[bytes]") -> None:
    assert process.stderr is not None
    for line in process.stderr:
        progress.notify(line.decode(errors="replace").rstrip("\n"))


def worker_main() -> None:
    """Entry point of a worker: settings from stdin, then trials; an error goes to stdout as one JSON object."""
    import torch

    config, parent = pickle.loads(sys.stdin.buffer.read())  # from the process that started this one
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    try:
        store = StudyStore(config.url, config.name, config.folder, config.heartbeat_seconds)
        run_trials(config, store, load_splits(config))
    except SightlineError as error:
        sys.stdout.write(json.dumps({"kind": type(error).__name__, "text": str(error)}))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stdout.write(json.dumps({"kind": "Interrupted", "text": "Stopped. Continue with the same command."}))
        sys.exit(1)


def load_splits(config: StudyConfig) -> SplitsCache:
    """The images of the study, read by this process from the store of decoded images."""
    plan, splits, _ = prepare(resolve(config.build_recipe(config.space.costly_point())))
    return SplitsCache(plan.recipe, splits)


def _exit_with_parent(parent: int) -> None:
    """Stop this process, as if the user asked for it, when its parent no longer exists."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
