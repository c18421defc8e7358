"""Several processes on one study, one thread each; all end with the one that started them."""

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
from ..training import prepare
from .config import StudyConfig
from .study_store import StudyStore
from .trial import SplitsCache, run_trials

PARENT_POLL_SECONDS = 1.0
"""Seconds between two looks whether the parent is still there."""


def run_workers(job: StudyConfig, workers: int) -> int:
    """Work on the study in so many new processes and wait for them; their words are said as they come.

    Returns how many were lost without a word: what they left is for the caller to finish. The SightlineError of
    one is raised here once the others have ended; Interrupted where they were stopped.
    """
    letter = pickle.dumps((job, os.getpid()))
    with ExitStack() as stack:
        crew = [stack.enter_context(_spawn_worker(letter)) for _ in range(workers)]
        ears = [threading.Thread(target=_relay_output, args=(one,), daemon=True) for one in crew]
        for ear in ears:
            ear.start()
        try:
            answers = [_read_answer(one) for one in crew]
        except KeyboardInterrupt:
            for one in crew:  # a terminal's Ctrl-C has reached them too; another program's signal has not
                one.send_signal(signal.SIGTERM)
            answers = [_read_answer(one) for one in crew]
        for ear in ears:
            ear.join()
    _raise_worker_error(answers)
    lost = sum(one.returncode != 0 for one in crew)
    if lost:
        progress.notify(
            f"{lost} of {workers} workers ended without a word, as when memory runs out; going on without."
        )
    return lost


def _spawn_worker(letter: bytes) -> "subprocess.Popen[bytes]":
    """A new process that reads its job from stdin: an address with a password is nobody else's business."""
    source = str(Path(__file__).parents[2])
    paths = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    one = subprocess.Popen(
        [sys.executable, "-c", "from sightline.tuning.workers import worker_main; worker_main()"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert one.stdin is not None
    one.stdin.write(letter)
    one.stdin.close()
    return one


def _read_answer(one: "subprocess.Popen[bytes]") -> bytes:
    """What a worker has to say at its end: an error, or nothing."""
    assert one.stdout is not None
    return one.stdout.read()


def _relay_output(one: "subprocess.Popen[bytes]") -> None:
    assert one.stderr is not None
    for line in one.stderr:
        progress.notify(line.decode(errors="replace").rstrip("\n"))


def _raise_worker_error(answers: list[bytes]) -> None:
    told = [json.loads(answer) for answer in answers if answer.strip()]
    found = [vars(errors)[one["kind"]](one["text"]) for one in told]
    if other := [error for error in found if not isinstance(error, Interrupted)]:
        raise other[0]
    if found:
        raise found[0]


def worker_main() -> None:
    """What a worker does: its job from stdin, then trials; an error goes to stdout as one JSON object."""
    import torch

    job, parent = pickle.loads(sys.stdin.buffer.read())  # from the process that started this one
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    try:
        run_trials(job, StudyStore(job.url, job.name, job.folder), load_splits(job))
    except SightlineError as error:
        sys.stdout.write(json.dumps({"kind": type(error).__name__, "text": str(error)}))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stdout.write(json.dumps({"kind": "Interrupted", "text": "Stopped. Go on with the same command."}))
        sys.exit(1)


def load_splits(job: StudyConfig) -> SplitsCache:
    """The job's images, read again by this process: decoded they are already."""
    recipe, splits, _ = prepare(job.build_recipe(job.space.costly_point()))
    return SplitsCache(recipe, splits)


def _exit_with_parent(parent: int) -> None:
    """Stop as if asked to, when the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
