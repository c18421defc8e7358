"""The run folder: what training writes, and where.

``recipe.toml environment.json notes.json split.csv train_batch.png history.csv curves.png
training.json last.ckpt classifier/ log.txt``; later verbs add to it. Never overwritten unless asked.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt64
from numpy import ndarray

from .. import progress, runtime
from ..batches import Batch
from ..errors import DataError
from ..files import check_output, explain_write_errors, read_csv_rows, write_csv, write_json, write_text
from ..types import Splits
from .recipe import Recipe


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and how its files are written."""

    path: Path

    @property
    def bundle(self) -> Path:
        """The classifier's folder."""
        return self.path / "classifier"

    @property
    def onward(self) -> str:
        """The command that continues it when it was interrupted."""
        return f"sightline train --resume {self.path}"

    @property
    def checkpoint(self) -> Path:
        """All that an exact resume needs."""
        return self.path / "last.ckpt"

    def read_recipe(self) -> Recipe:
        """The resolved recipe; raises DataError where this is no run folder."""
        file = self.path / "recipe.toml"
        if not file.is_file():
            raise DataError(f"'{self.path}' is no run: it has no recipe.toml. `sightline runs` lists the runs.")
        return Recipe.from_toml(file)

    def read_facts(self) -> dict[str, Any]:
        """The values of ``training.json``; empty while training has not finished."""
        file = self.path / "training.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def read_split(self) -> list[dict[str, str]]:
        """The rows of ``split.csv``: file, label (empty where unlabelled), split and, but for old runs, digest."""
        file = self.path / "split.csv"
        return read_csv_rows(file) if file.is_file() else []

    def read_digests(self, *splits: str) -> UInt64[ndarray, " N"] | None:
        """Hashes of the images of these splits; None where they were not kept (an old run, a bundle)."""
        rows = self.read_split()
        if not rows or "digest" not in rows[0]:
            return None
        return np.array([int(row["digest"], 16) for row in rows if row["split"] in splits], np.uint64)

    def read_fingerprint(self) -> str | None:
        """The fingerprint of the images that the run began with; None in old runs."""
        file = self.path / "environment.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return found.get("data_fingerprint")

    def log(self, text: str, *, aloud: bool = True) -> None:
        """Append a sentence to ``log.txt`` and, if ``aloud``, print it."""
        if aloud:
            progress.notify(text)
        with explain_write_errors(self.path), (self.path / "log.txt").open("a", encoding="utf-8") as log:
            log.write(text + "\n")

    def write_header(self, recipe: Recipe, splits: Splits, notes: Sequence[str]) -> None:
        """Write what is known before the first step: recipe, environment, notes and split."""
        for note in notes:
            self.log(note, aloud=False)
        write_text(self.path / "recipe.toml", recipe.to_toml())
        environment = {**runtime.environment(), "data_fingerprint": splits.train.fingerprint}
        write_json(self.path / "environment.json", environment)
        self.write_notes(notes)
        self._write_split(splits)

    def write_notes(self, notes: Sequence[str]) -> None:
        """Write ``notes.json``: what a reader of the report must know, in sentences."""
        write_json(self.path / "notes.json", list(notes))

    def read_notes(self) -> list[str]:
        """The sentences of ``notes.json``; empty where there is none."""
        file = self.path / "notes.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []

    def _write_split(self, splits: Splits) -> None:
        rows: list[tuple[str, ...]] = [("file", "label", "split", "digest")]
        for name, part in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
            labels = np.asarray([*part.classes, ""])[part.labels]  # the label -1 takes the last entry
            digests = [f"{digest:016x}" for digest in part.digests.tolist()]
            rows += zip(part.files, labels, [name] * len(part), digests, strict=True)
        write_csv(self.path / "split.csv", rows)

    def write_train_batch(self, batch: Batch, classes: Sequence[str]) -> None:
        """Draw the first training batch as the network sees it, after augmentation."""
        from ..pictures import contact_sheet

        images = (batch.pixels[:32].float() * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        labels = batch.labels if batch.labels.ndim == 1 else batch.labels.argmax(1)
        sheet = contact_sheet(list(images), [classes[int(i)] for i in labels[: len(images)]])
        with explain_write_errors(self.path):
            sheet.save(self.path / "train_batch.png")

    def write_curves(self, history: Sequence[dict[str, Any]]) -> None:
        """Draw loss and accuracy over the epochs."""
        from ..pictures import plot_history

        if history:
            with explain_write_errors(self.path):
                plot_history(history).save(self.path / "curves.png")


class SilentRunFolder(RunFolder):
    """A run among many trials or folds: prints nothing and draws no curves."""

    def log(self, text: str, *, aloud: bool = True) -> None:
        """Append to ``log.txt`` only."""
        del aloud
        super().log(text, aloud=False)

    def write_curves(self, history: Sequence[dict[str, Any]]) -> None:
        """Nothing."""


def check_run_folder(out: Path | None, *, overwrite: bool) -> None:
    """Raise OutputError where ``out`` holds something that may not be replaced."""
    if out is not None:
        check_output(out, overwrite=overwrite, marker="recipe.toml", kind="a run")


def create_run_folder(out: Path | None, name: str, *, overwrite: bool = False) -> RunFolder:
    """Make the folder of a new run: ``out``, or ``runs/<name>`` with a number where that exists.

    Raises OutputError where ``out`` exists (unless ``overwrite`` and it is a run) or cannot be written.
    """
    check_run_folder(out, overwrite=overwrite)
    if out is not None:
        with explain_write_errors(out):
            if (out / "recipe.toml").is_file():
                shutil.rmtree(out)
            out.mkdir(parents=True, exist_ok=True)
        return RunFolder(out)
    first = Path("runs") / name
    for number in count(1):
        path = first if number == 1 else first.with_name(f"{name}-{number}")
        with explain_write_errors(path), suppress(FileExistsError):  # another run may take the name first
            path.mkdir(parents=True)
            return RunFolder(path)
    raise AssertionError("count does not end")
