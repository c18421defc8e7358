"""``improve``: what people said is learned, judged, and released if it earns it; or the reasons why not.

One candidate at a time, in ``site/improve/NNNN``, stage by stage; a process that is killed leaves a stage that the next
call repeats. Every candidate is learned from the base run, the last one that was not made here: nothing erodes over a
chain of small steps, and what was erased is in no later release.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from .. import progress
from ..classifier import Classifier
from ..continual import DEFAULT_MEMORY_IMAGES, learn
from ..errors import ReleaseError
from ..files import explain_write_errors, read_csv_rows, read_json_object, write_json
from ..journal import CANDIDATES_FOLDER, Journal
from ..models import MEMORY_FOLDER, Memory
from ..runs import open_run
from ..serving import (
    Release,
    append_audit,
    current_release,
    list_releases,
    load_release,
    previous_numbers,
    promote,
    publish,
    rollback,
)
from ..training import Run
from .gate import GateRules
from .judging import Judged, find_regression, judge_release
from .lessons import VALIDATION_SHARE, FieldImages, collect_field_images

ImproveDecision = Literal["promoted", "kept", "cannot tell", "nothing to learn", "waits", "rolled back"]

MIN_NEW_LABELS = 10
"""Labelled images that must come, or go, before another candidate is worth its look at the test set."""

STAGES = ("collect", "learn", "check", "judge", "release")
"""What is done to a candidate, in order."""

FIRST_COOL_DOWN_DAYS = 1.0
"""Days without a release after the first rollback; each further one doubles them."""

STATE_FILE, JOB_FILE, TABLE_FILE = "state.json", "job.json", "images.csv"


@dataclass(frozen=True)
class Improvement:
    """What ``improve`` did, and why."""

    decision: ImproveDecision
    reasons: tuple[str, ...]
    release: int
    """The release that answers now."""
    labels: int = 0
    """Images with labels of people that the candidate learned from."""
    judged: Judged | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The values as one JSON object."""
        return {**vars(self), "reasons": list(self.reasons), "judged": self.judged and self.judged.as_json()}


def improve(
    site: Path | str,
    *,
    journal: Journal,
    by: Sequence[str] = (),
    rules: GateRules | None = None,
    removed: Sequence[str] = (),
    memory: int = DEFAULT_MEMORY_IMAGES,
    minimum: int = MIN_NEW_LABELS,
    seed: int = 0,
    on_stage: Callable[[str], None] | None = None,
) -> Improvement:
    """Learn what people said of a service's answers, judge the result, and release it if it earns that.

    Call it as often as wanted: without new labels it does nothing, and what was interrupted goes on.

    Args:
        site: the folder of a service whose current release was published from a run.
        journal: its open journal.
        by: ways to learn, words of ``continual.STRATEGIES``; default those of ``learn``.
        rules: what a candidate may lose.
        removed: classes whose loss is ordered.
        memory: old images that may be shown again.
        minimum: labels that must come before another candidate is made.
        seed: of every draw.
        on_stage: called with a word of ``STAGES`` when that stage begins.

    Raises ReleaseError where another ``improve`` runs, or the current release has no run; DataError where the images
    of that run are gone.
    """
    site, began = Path(site).resolve(), time.perf_counter()
    folder = site / CANDIDATES_FOLDER
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ReleaseError(f"Another process improves '{site}' at the moment: wait until it has ended.") from error
    with lock, _cache_in(site):
        work = _Work(
            site,
            journal,
            by,
            rules or GateRules(),
            tuple(removed),
            memory,
            minimum,
            seed,
            on_stage or (lambda _: None),
        )
        return replace(work.run(), seconds=round(time.perf_counter() - began, 2))


@contextmanager
def _cache_in(site: Path) -> Iterator[None]:
    """Keep decoded images in the site, where an erasure removes them."""
    before = os.environ.get("SIGHTLINE_CACHE")
    os.environ["SIGHTLINE_CACHE"] = str(site / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["SIGHTLINE_CACHE"]
        else:
            os.environ["SIGHTLINE_CACHE"] = before


@dataclass(frozen=True)
class _Work:
    """One call of ``improve``, which holds the lock."""

    site: Path
    journal: Journal
    by: Sequence[str]
    rules: GateRules
    removed: tuple[str, ...]
    memory: int
    minimum: int
    seed: int
    on_stage: Callable[[str], None]

    @property
    def folder(self) -> Path:
        return self.site / CANDIDATES_FOLDER

    @property
    def state(self) -> dict[str, Any]:
        """What is remembered between calls: labels and looks, the anchor, what was rolled back."""
        return read_json_object(self.folder / STATE_FILE)

    def remember(self, **facts: Any) -> None:
        write_json(self.folder / STATE_FILE, {**self.state, **facts})

    def run(self) -> Improvement:
        current = current_release(self.site)
        if (reason := self._check_current(current)) is not None:
            return Improvement("rolled back", (reason,), current_release(self.site).number)
        wait = self.state.get("cool_down", {}).get("until", 0) - time.time()
        if wait > 0:
            return Improvement(
                "waits", (f"A release was rolled back: {wait / 3600:.1f} hours are left.",), current.number
            )
        base = find_base(self.site, current)
        if self.state.get("base") != str(base):  # another run was published: a new chain
            self.remember(base=str(base), anchor=None, looks=0)
        self.on_stage("collect")
        run = open_run(base, device="cpu", remedy="publish the run itself")
        field = collect_field_images(self.journal, run.classifier.geometry)
        if (reason := self._why_not(base, field)) is not None or field is None:
            return Improvement("nothing to learn", (reason or "No answer was reviewed.",), current.number)
        job = self._open_job(base, field)
        known = read_json_object(job / JOB_FILE)
        if known["fingerprint"] in self.state.get("quarantine", []):
            reason = "The release that learned these images was rolled back: more answers make another candidate."
            return Improvement("nothing to learn", (reason,), current.number)
        candidate = self._make_candidate(job, base)
        labels = int(field.learned.sum())
        self.on_stage("judge")
        judged = self._judge(candidate, current, run, field)
        decision: ImproveDecision = judged.decision
        if decision == "promoted":
            self.on_stage("release")
            current = self._release(job, judged)
        self._finish(job, field, judged)
        return Improvement(decision, judged.verdict.reasons, current.number, labels, judged)

    def _why_not(self, base: Path, field: FieldImages | None) -> str | None:
        """Why there is nothing to learn; None where there is."""
        if field is None or not field.learned.any():
            return (
                "No kept image has a label that people agree on: serve with --keep-images, and answer with "
                f"sightline review {self.site} next"
            )
        done, count = self.state.get("done", {}), int(field.learned.sum())
        if done.get("base") != str(base):
            few = count < self.minimum
            return f"Only {count} images were labelled: {self.minimum} are worth a candidate." if few else None
        fingerprint = field.fingerprint(base)
        undecided = done.get("decision") == "cannot tell" and done.get("judges") != field.judges()
        erased = any(not Path(path).is_file() for path in done.get("paths", ()))
        if fingerprint == done["fingerprint"] and not undecided:
            return "Nothing was labelled since the last candidate."
        if abs(count - done["labels"]) < self.minimum and not undecided and not erased:
            return (
                f"{abs(count - done['labels'])} images were labelled since: {self.minimum} are worth a candidate."
            )
        return None

    def _open_job(self, base: Path, field: FieldImages) -> Path:
        """The folder of the candidate that learns these images: the one that was begun, or a new one."""
        fingerprint = field.fingerprint(base)
        jobs = sorted(path for path in self.folder.iterdir() if path.name.isdigit())
        for job in jobs[::-1]:
            known = read_json_object(job / JOB_FILE)
            if known.get("fingerprint") == fingerprint:
                return job
            if "released" not in known:  # of other images: it was interrupted, or not released
                shutil.rmtree(job, ignore_errors=True)
        job = self.folder / f"{max((int(path.name) for path in jobs), default=0) + 1:04d}"
        with explain_write_errors(job):
            job.mkdir(exist_ok=True)
        field.write_table(job / TABLE_FILE)
        write_json(job / JOB_FILE, {"fingerprint": fingerprint, "base": str(base), "time": time.time()})
        return job

    def _make_candidate(self, job: Path, base: Path) -> Release:
        """Learn, and export into a site of the candidate's own: what is judged is what would answer."""
        run = job / "run"
        if not (run / "recipe.toml").is_file():
            self.on_stage("learn")
            # A name that looks like another was questioned when it was given.
            labels = tuple(dict.fromkeys(row["label"] for row in read_csv_rows(job / TABLE_FILE)))
            learn(
                base, job / TABLE_FILE, by=self.by, new_classes=labels, memory=self.memory,
                naive=False, held_out=(VALIDATION_SHARE, 0.0), out=run, seed=self.seed,
            )  # fmt: skip
        place = job / "check"
        found = list_releases(place) if (place / "releases").is_dir() else []
        if found:
            return found[-1]
        self.on_stage("check")
        if (run / "classifier" / MEMORY_FOLDER).is_dir():  # every candidate begins at the base: it is not needed
            classifier = Classifier.load(run)
            classifier.memory = Memory()
            classifier.save(run / "classifier")
        return publish(place, run, promote=False)

    def _judge(self, candidate: Release, current: Release, run: Run, field: FieldImages) -> Judged:
        looks = self.state.get("looks", 0) + 1
        self.remember(looks=looks)
        # Spend the error of all looks there will ever be: 1/2 + 1/6 + 1/12 + ... = 1.
        level = 1 - (1 - self.rules.level) / (looks * (looks + 1))
        number, anchor = self.state.get("anchor"), None
        if number is not None and number != current.number:
            try:
                anchor = load_release(self.site, number)
            except ReleaseError:
                progress.notify(f"Release {number}, the best one, was pruned: the current one takes its place.")
        return judge_release(
            candidate, current, anchor, run.splits.test, field, removed=self.removed,
            rules=replace(self.rules, level=level),
        )  # fmt: skip

    def _release(self, job: Path, judged: Judged) -> Release:
        """Publish and promote, once, unless an image was erased meanwhile."""
        table = job / TABLE_FILE
        if not table.is_file() or any(not Path(row["path"]).is_file() for row in read_csv_rows(table)):
            shutil.rmtree(job, ignore_errors=True)
            raise ReleaseError(
                "Images that the candidate learned from were erased meanwhile, so it is not released: call improve "
                "again."
            )
        source, before = str(job / "run"), current_release(self.site)
        current, known = before, read_json_object(job / JOB_FILE)
        write_json(job / JOB_FILE, {"released": 0, **known})  # from now on a release may need this folder
        made = [one for one in list_releases(self.site) if one.facts.get("source") == source]
        if not made:
            current = publish(self.site, source, by="improve", note=f"improved: {judged.describe()}")
        elif current.facts.get("source") != source:  # a process was killed before it promoted it
            current = promote(self.site, made[-1].number, by="improve")
        append_audit(self.site, "improve", current.number, "improve", decision="promoted")
        if judged.is_best:
            self.remember(anchor=current.number)
        elif self.state.get("anchor") is None:
            self.remember(anchor=before.number)
        write_json(job / JOB_FILE, {**known, "released": current.number})
        return current

    def _finish(self, job: Path, field: FieldImages, judged: Judged) -> None:
        known = read_json_object(job / JOB_FILE)
        done = {
            "base": known["base"],
            "fingerprint": known["fingerprint"],
            "judges": field.judges(),
            "labels": int(field.learned.sum()),
            "decision": judged.decision,
            "paths": [str(path) for path, one in zip(field.paths, field.learned, strict=True) if one],
        }
        self.remember(done=done)
        write_json(job / JOB_FILE, {**known, "judged": judged.as_json()})
        if judged.decision != "cannot tell":  # that one may be judged again
            shutil.rmtree(job / "check", ignore_errors=True)

    def _check_current(self, current: Release) -> str | None:
        """Roll back a release that was made here and fails, is slow, or is proven worse; return why."""
        job = Path(str(current.facts.get("source"))).parent
        before = previous_numbers(self.site)
        if job.parent.name != CANDIDATES_FOLDER or not before:
            return None
        job = self.folder / job.name
        previous = load_release(self.site, before[0])
        if (reason := find_regression(current, previous, self.journal)) is None:
            return None
        state = self.state
        days = 2 * state.get("cool_down", {}).get("days", FIRST_COOL_DOWN_DAYS / 2)
        fingerprint = read_json_object(job / JOB_FILE).get("fingerprint")
        facts = {"cool_down": {"days": days, "until": time.time() + 86_400 * days}}
        self.remember(quarantine=[*state.get("quarantine", []), fingerprint], anchor=previous.number, **facts)
        rollback(self.site, by="improve")
        append_audit(self.site, "improve", previous.number, "improve", decision="rolled back", reason=reason)
        return reason


def find_base(site: Path, release: Release) -> Path:
    """The run that candidates are learned from: of the release, or the one that it learned from in turn.

    Raises ReleaseError where there is none.
    """
    source = Path(str(release.facts.get("source", "")))
    if source.parent.parent.name == CANDIDATES_FOLDER:
        job = site / CANDIDATES_FOLDER / source.parent.name
        source = Path(read_json_object(job / JOB_FILE).get("base", ""))
    if not (source / "recipe.toml").is_file():
        raise ReleaseError(
            f"Release {release.number} of '{site}' was not published from a run that is still there: publish its run, "
            "which has the images to learn from and to test on."
        )
    return source.resolve()
