"""Converts the JSON of earlier releases to the current layout, so that old runs still have a page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

    In format 1 the key of the evaluation was the name of its split, and the costs stood next to the metrics.
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
