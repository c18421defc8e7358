"""The process of one job: it waits for its turn, runs the verb, and writes how it ended.

It outlives the studio that started it. ``python -m sightline.studio.job_runner FOLDER FD`` is started by ``Jobs``;
FD is the locked file that shows that the job is alive, which the verb inherits too.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import read_json_object, write_json

JOB_FILE, LOG_FILE, RESULT_FILE, LOCK_FILE = "job.json", "log.txt", "result.json", "lock"
"""Files of a job's folder: what it is and where it stands, what it said (stderr), what it gave (stdout)."""

TURN_FILE = ".turn"
"""In the folder of all jobs: locked by the one whose turn it is."""

RUN_VERB = "import sys; from sightline.cli import main; sys.exit(main())"
"""What ``sightline`` is, for the interpreter that runs the studio."""

JOB_NICENESS = 10
"""Priority of a queued job, below that of the service, which answers while it runs."""

_TURN_SECONDS = 0.2
"""Seconds between two looks whether it is this job's turn."""


def run_job(folder: Path, alive: int) -> None:
    """Run the job in ``folder``; ``alive`` is the descriptor of its locked file."""
    stopped: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def stop(number: int, _: Any) -> None:
        stopped.append(number)
        if child is not None:
            child.send_signal(signal.SIGINT)

    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, stop)
    job = read_json_object(folder / JOB_FILE)

    def remember(**facts: Any) -> None:
        job.update(facts)
        write_json(folder / JOB_FILE, job)

    remember(pid=os.getpid())
    with (folder.parent / TURN_FILE).open("w") as turn:
        while job["queued"] and not stopped:
            with suppress(BlockingIOError):
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(_TURN_SECONDS)
        if stopped:
            remember(ended=time.time(), code=130)
            return
        remember(started=time.time())
        if job["queued"]:  # long work gives way to answers; short work does not
            with suppress(OSError):
                os.nice(JOB_NICENESS)
        with (folder / RESULT_FILE).open("wb") as result, (folder / LOG_FILE).open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-c", RUN_VERB, *job["words"], "--json"],
                stdin=subprocess.DEVNULL, stdout=result, stderr=log, cwd=job["cwd"], pass_fds=(alive,),
                env=os.environ | {"SIGHTLINE_LOG_SECONDS": "1"}, start_new_session=True,
            )  # fmt: skip
            if stopped:
                child.send_signal(signal.SIGINT)
            code = child.wait()
        remember(ended=time.time(), code=130 if stopped and code != 0 else code)


if __name__ == "__main__":
    run_job(Path(sys.argv[1]), int(sys.argv[2]))
