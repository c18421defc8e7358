"""Loads the results in a run folder. Absent or damaged files are named, never fatal."""

import csv
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..errors import DataError
from ..files import read_csv_rows

Parsed = TypeVar("Parsed")

EVIDENCE_FILES = {
    "calibration": "calibration.json",
    "groups": "groups.json",
    "robustness": "robustness.json",
    "corruptions": "corruptions.json",
    "explanations": "explanations/answers.json",
    "suspects": "suspects.json",
    "comparison": "comparison.json",
    "compression": "compression.json",
    "learning_curve": "learning_curve.json",
}
"""Result of another verb -> its file in the run. An absent one counts as not measured, not as missing."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything in a run folder that the page and the card show."""

    run: str
    """Name of the folder."""
    report: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, str]] = ()
    notes: Sequence[str] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Images by split and class."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """Results of other verbs, by the names of `EVIDENCE_FILES`."""
    train_batch: bytes | None = None
    """PNG of a training batch."""
    missing: tuple[str, ...] = ()
    """Files that are absent or cannot be read, each with the reason."""

    @property
    def measured(self) -> Mapping[str, Any]:
        """The evaluation in the report; empty where there is none."""
        evaluation = self.report.get("evaluation")
        return evaluation if isinstance(evaluation, dict) and "intervals" in evaluation else {}

    @property
    def learning_curve(self) -> Mapping[str, Any]:
        """Sizes and sentence of a finished learning curve; empty where there is none. Old reports hold it too."""
        curve = (self.extras.get("learning_curve") or {}).get("curve") or self.report.get("learning_curve")
        return curve if isinstance(curve, dict) else {}


def load_evidence(run: Path | str) -> Evidence:
    """Read a run folder. Raises DataError if it does not exist, and for nothing else."""
    folder = Path(run)
    if not folder.is_dir():
        raise DataError(f"There is no run '{run}': name a run folder. `sightline runs` lists the runs.")
    missing: list[str] = []

    def read(name: str, parse: Callable[[Path], Parsed], default: Parsed) -> Parsed:
        try:
            return parse(folder / name)
        except FileNotFoundError:
            missing.append(f"{name} (absent)")
        except (OSError, ValueError, TypeError, LookupError, csv.Error) as error:
            missing.append(f"{name} (cannot be read: {error})")
        return default

    report = read("report.json", lambda path: upgrade_report(_read_json_object(path)), {})
    training = report.get("training")
    if not isinstance(training, dict) or not training:  # not evaluated yet: read what training wrote
        training = {}
        with suppress(OSError, ValueError):
            training = _read_json_object(folder / "training.json")
    return Evidence(
        run=folder.resolve().name,
        report=report,
        config=read("classifier/config.json", _read_json_object, {}),
        recipe=read("recipe.toml", lambda path: tomllib.loads(path.read_text(encoding="utf-8")), {}),
        environment=read("environment.json", _read_json_object, {}),
        training=training,
        history=read("history.csv", _read_history, []),
        notes=read("notes.json", lambda path: list(map(str, json.loads(path.read_text(encoding="utf-8")))), []),
        counts=read("split.csv", _count_split, {}),
        train_batch=read("train_batch.png", _read_png, None),
        extras={
            name: read(file, _read_json_object, {})
            for name, file in EVIDENCE_FILES.items()
            if (folder / file).exists()
        },
        missing=tuple(missing),
    )


def _read_json_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return upgrade_intervals(value)


def _read_history(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        for value in row.values():
            float(value or "nan")  # a damaged table is named as a whole, not plotted in part
    return rows


def _count_split(path: Path) -> dict[str, dict[str, int]]:
    pairs = Counter((row["split"], row["label"]) for row in read_csv_rows(path))
    splits = sorted({split for split, _ in pairs}, key=lambda name: _ORDER.get(name, len(_ORDER)))
    return {split: {label: n for (s, label), n in sorted(pairs.items()) if s == split} for split in splits}


_ORDER = {"train": 0, "val": 1, "test": 2}


def _read_png(path: Path) -> bytes | None:
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError("it is not a PNG file")
    return content


# Files of earlier releases

_RENAMED_REPORT_KEYS = {
    "confused": "top_confusions",
    "confusable": "confusable_pairs",
    "cells": "confusion_examples",
    "given": "usage_rights",
}
"""Key of ``report.json`` in format 1 -> its key in format 2."""

_EFFICIENCY_KEYS = {
    "device": "device",
    "batch_size": "batch_size",
    "seconds_per_image": "seconds_per_image",
    "images_per_second": "images_per_second",
    "latency_ms": "latency_ms",
    "latency": "latency",
    "parameters": "parameters",
    "multiply_adds": "multiply_adds",
    "inference_memory_mb": "inference_memory_mb",
    "inference_memory_of": "inference_memory_kind",
}
"""Key of format 1's evaluation -> its key in format 2's ``efficiency``."""


def read_report(run: Path | str) -> dict[str, Any]:
    """A run folder's ``report.json``; empty where there is none. Raises ValueError where it is no JSON object."""
    path = Path(run) / "report.json"
    if not path.is_file():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(report, dict):
        raise ValueError("it is not a JSON object")
    return upgrade_report(report)


def upgrade_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """A ``report.json`` of any format as one of format 2.

    In format 1 the key of the evaluation was the name of its split, and the costs stood next to the metrics. The
    confusion matrix of many classes, of which the file has the cells above zero, becomes rows.
    """
    found: dict[str, Any] = {
        _RENAMED_REPORT_KEYS.get(str(name)) or str(name): one for name, one in upgrade_intervals(report).items()
    }
    if "evaluation" not in found:
        parts = {name: one for name, one in found.items() if isinstance(one, dict) and "intervals" in one}
        if not parts:
            return found
        split = "test" if "test" in parts else next(iter(parts))
        found["evaluation"] = {"split": split, **found.pop(split)}
    evaluation = found["evaluation"]
    if isinstance(evaluation, dict) and "efficiency" not in evaluation:
        costs = {new: evaluation.pop(old) for old, new in _EFFICIENCY_KEYS.items() if old in evaluation}
        evaluation |= {"efficiency": costs} if costs else {}
    if isinstance(evaluation, dict) and "confusion_cells" in evaluation:
        rows = [[0] * len(evaluation["classes"]) for _ in evaluation["classes"]]
        for row, column, images in evaluation.pop("confusion_cells"):
            rows[row][column] = images
        evaluation["confusion"] = rows
    return found


def upgrade_intervals(value: Any) -> Any:
    """Saved JSON with every interval as ``Interval.as_json`` writes it.

    Earlier releases wrote ``low`` and ``high`` next to ``accuracy``, or ``interval`` next to ``coverage``, and
    left the value out of ``intervals``.
    """
    if isinstance(value, list):
        return [upgrade_intervals(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: upgrade_intervals(one) for name, one in value.items()}
    if {"accuracy", "low", "high"} <= found.keys():
        bounds = {name: found.pop(name) for name in ("low", "high")} | ({"n": found["n"]} if "n" in found else {})
        found["intervals"] = {"accuracy": bounds}
    elif {"coverage", "interval"} <= found.keys():
        found["intervals"] = {"coverage": found.pop("interval")}
    if isinstance(intervals := found.get("intervals"), dict):
        found["intervals"] = {
            name: {"value": found.get(name), **bounds} if isinstance(bounds, dict) else bounds
            for name, bounds in intervals.items()
        }
    return found
