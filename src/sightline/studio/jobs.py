"""Jobs: commands that run as processes of their own, each with a folder that outlives this process."""

import fcntl
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DataError
from ..files import explain_write_errors, read_json_object, write_json
from .job_runner import JOB_FILE, LOCK_FILE, LOG_FILE, RESULT_FILE

JobState = Literal["waiting", "running", "done", "refused", "stopped", "failed", "lost"]
"""``refused`` is exit code 3: a gate or a requirement said no. ``lost`` is a process that ended without a word."""

JOB_STATES: dict[JobState, str] = {
    "waiting": "Waits for its turn",
    "running": "Running",
    "done": "Done",
    "refused": "Kept back",
    "stopped": "Stopped, with all work saved",
    "failed": "Failed",
    "lost": "Ended without a word",
}
"""The states of a job, and their names on a page."""

MAX_LISTED_JOBS = 200

MAX_LOG_BYTES = 200_000
"""Bytes of the end of a log that a page shows."""

_JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")

_STATE_OF_CODE: dict[int, JobState] = {0: "done", 3: "refused", 130: "stopped"}

_STEPS = re.compile(r"([\d,]+) of ([\d,]+)")


@dataclass(frozen=True)
class Job:
    """A command, and where it stands."""

    id: str
    folder: Path
    title: str
    words: tuple[str, ...]
    """The command after ``sightline``."""
    resume_words: tuple[str, ...]
    """The command that goes on where this one ended; empty if it cannot be repeated."""
    back: str
    """Path of the page where it was started."""
    action: str
    """Name of the form that started it; empty for none."""
    by: str | None
    at: float
    """Seconds since 1970; so are ``started`` and ``ended``."""
    started: float | None
    ended: float | None
    code: int | None
    """Exit code of the verb."""
    pid: int | None
    """Of the process that runs the verb."""
    state: JobState
    queued: bool
    """Whether it waits until no other job of this kind runs."""

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    @property
    def has_best(self) -> bool:
        """Whether it is a training that ended early, whose best epoch so far may be taken."""
        return self.state in ("stopped", "lost") and self.resume_words[:2] == ("train", "--resume")

    @property
    def command(self) -> str:
        """What a shell would run."""
        return shlex.join(("sightline", *self.words))

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return 0.0 if self.started is None else (self.ended or time.time()) - self.started

    @property
    def result(self) -> dict[str, Any]:
        """What the verb printed: empty before it is done."""
        return read_json_object(self.folder / RESULT_FILE)

    def log(self, start: int = 0) -> tuple[list[str], int]:
        """The complete lines of the log from byte ``start``, and the byte after them; without the signs of life."""
        try:
            with (self.folder / LOG_FILE).open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                begin = stream.seek(start if start else max(0, size - MAX_LOG_BYTES))
                text = stream.read(MAX_LOG_BYTES)
        except OSError:
            return [], start
        text = text[: text.rfind(b"\n") + 1]
        lines = text.decode("utf-8", "replace").splitlines()
        return [line for line in lines if not line.startswith("Still working.")], begin + len(text)

    @property
    def reason(self) -> str:
        """Why it ended, in one sentence; what it does while it runs."""
        lines, _ = self.log()
        if self.state == "done":  # the signs of progress are over
            lines = [line for line in lines if not (_STEPS.search(line) or line.startswith("Stage: "))]
        last = next((line for line in reversed(lines) if line.strip()), "").removeprefix("sightline: ")
        if self.state == "waiting":
            return "It starts when the job before it has ended."
        if self.state == "lost":
            return (
                "Its process ended without an exit code: the machine was switched off, or the process was killed."
            )
        if self.state == "failed" and (self.code or 0) < 0:
            return (
                f"The system ended it (signal {-(self.code or 0)}), most often because memory was short. Close other "
                "programs, or use fewer or smaller images."
            )
        if self.state == "stopped" and not last:
            return "It was stopped before it began."
        return last

    @property
    def steps(self) -> tuple[int, int] | None:
        """(done, total) of the step that the log names last; None if it names none."""
        for line in reversed(self.log()[0]):
            if found := _STEPS.search(line):
                done, total = (int(one.replace(",", "")) for one in found.groups())
                return (min(done, total), total) if total else None
            return None
        return None


class Jobs:
    """The jobs of a site."""

    def __init__(self, folder: Path):
        """``folder`` holds a folder for each job; it is made when the first one starts."""
        self.folder = folder

    def start(
        self, words: Sequence[str], *, title: str, back: str, action: str = "", by: str | None = None,
        queued: bool = False,
        resume_words: Sequence[str] = (),
    ) -> Job:  # fmt: skip
        """Run ``sightline WORDS --json`` as a process of its own.

        Args:
            words: the verb and its arguments; they reach the verb as a list, never through a shell. ``{job}`` in one
                is replaced by the job's folder.
            title: what a person calls it.
            back: the page to return to.
            action: the name of the form, which knows how its result is shown.
            by: who started it.
            queued: whether it waits until no other queued job runs.
            resume_words: the command that goes on where this one ended.

        Raises OutputError if its folder cannot be written.
        """
        id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        path = self.folder / id
        words, resume_words = ([one.replace("{job}", str(path)) for one in some] for some in (words, resume_words))
        facts = {
            "title": title, "words": [*words], "resume_words": [*resume_words], "back": back, "action": action,
            "by": by, "at": time.time(), "queued": queued, "cwd": str(Path.cwd()),
        }  # fmt: skip
        with explain_write_errors(path):
            path.mkdir(parents=True)
            write_json(path / JOB_FILE, facts)
            with (path / LOCK_FILE).open("w") as alive, (path / LOG_FILE).open("ab") as log:
                fcntl.flock(alive, fcntl.LOCK_EX)  # the process inherits the locked file: there is no gap
                process = subprocess.Popen(
                    [sys.executable, "-m", "sightline.studio.job_runner", str(path.resolve()), str(alive.fileno())],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                    pass_fds=(alive.fileno(),), start_new_session=True,
                )  # fmt: skip
        threading.Thread(target=process.wait, name=f"job-{id}", daemon=True).start()  # takes its exit code
        return self.find(id)

    def find(self, id: str) -> Job:
        """The job of this id; raise DataError if there is none."""
        facts = read_json_object(self.folder / id / JOB_FILE) if _JOB_ID.fullmatch(id) else {}
        if not facts:
            raise DataError("There is no job of this name: it may have been removed.")
        path, code = self.folder / id, facts.get("code")
        if code is not None:
            state = _STATE_OF_CODE.get(code, "failed")
        elif not is_locked(path / LOCK_FILE):
            again = read_json_object(path / JOB_FILE)  # it may have ended between the two looks
            code = again.get("code")
            facts, state = again, "lost" if code is None else _STATE_OF_CODE.get(code, "failed")
        else:
            state = "waiting" if facts["queued"] and facts.get("started") is None else "running"
        return Job(
            id=id, folder=path, state=state, code=code, title=facts["title"], words=tuple(facts["words"]),
            resume_words=tuple(facts["resume_words"]), back=facts["back"], action=facts["action"], by=facts["by"],
            at=facts["at"], started=facts.get("started"), ended=facts.get("ended"), pid=facts.get("pid"),
            queued=facts["queued"],
        )  # fmt: skip

    def latest(self, *, active: bool = False) -> list[Job]:
        """The latest jobs, newest first; ``active`` are those that wait or run."""
        names = sorted((p.name for p in self.folder.glob("*") if _JOB_ID.fullmatch(p.name)), reverse=True)
        found = []
        for name in names[:MAX_LISTED_JOBS]:
            with suppress(DataError, KeyError):
                found.append(self.find(name))
        return [job for job in found if job.active or not active]

    def stop(self, id: str) -> None:
        """Ask a job to save its work and end, as Ctrl-C does; raise DataError if there is no such job."""
        until = time.monotonic() + 5
        while (job := self.find(id)).active and job.pid is None and time.monotonic() < until:
            time.sleep(0.05)  # its process has just been started
        if job.active and job.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(job.pid, signal.SIGINT)

    def resume(self, id: str, *, by: str | None = None, take_best: bool = False) -> Job:
        """Go on where a job ended, as a new one; ``take_best`` ends a training with the best epoch that it has.

        Raise DataError if it has not ended, cannot be repeated, or has no best epoch.
        """
        job = self.find(id)
        if job.active or not job.resume_words:
            raise DataError(f"'{job.title}' cannot go on: it {'has not ended' if job.active else 'is complete'}.")
        if take_best and not job.has_best:
            raise DataError(f"'{job.title}' has no best epoch to take: only a training that was stopped has.")
        words = (*job.resume_words, "--take-best") if take_best else job.resume_words
        return self.start(
            words,
            title=job.title,
            back=job.back,
            action=job.action,
            by=by,
            queued=job.queued,
            resume_words=job.resume_words,
        )


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock: the job is alive."""
    try:
        with path.open("r") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
