"""Files of earlier releases are read in the layout of this one."""

import json

import pytest

from sightline.evidence import load_evidence, read_report
from sightline.evidence.load import upgrade_intervals, upgrade_report
from sightline.evidence.requirements import check_requirements

OLD_REPORT = {
    "format": 1,
    "run": "x",
    "test": {
        "split": "test",
        "n": 90,
        "accuracy": 0.9,
        "intervals": {"accuracy": {"low": 0.8, "high": 0.95, "n": 90}},
        "classes": ["cat", "dog"],
        "per_class": [{"class": "cat", "recall": 0.9, "intervals": {"recall": {"low": 0.7, "high": 1.0, "n": 9}}}],
        "device": "cpu",
        "latency_ms": 0.3,
        "parameters": 12,
        "inference_memory_of": "process",
        "remarks": [],
    },
    "training": {"seconds": 1.0},
    "confused": [1],
    "confusable": [2],
    "cells": [3],
    "given": {"licence": {"MIT": 5}},
}


def test_a_report_of_format_1_has_the_keys_of_format_2():
    found = upgrade_report(OLD_REPORT)
    assert "test" not in found
    evaluation = found["evaluation"]
    assert evaluation["split"] == "test"
    assert evaluation["intervals"] == {"accuracy": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 90}}
    assert evaluation["per_class"][0]["intervals"]["recall"]["value"] == 0.9
    assert evaluation["efficiency"] == {
        "device": "cpu",
        "latency_ms": 0.3,
        "parameters": 12,
        "inference_memory_kind": "process",
    }
    assert "latency_ms" not in evaluation
    renamed = [
        found[name] for name in ("top_confusions", "confusable_pairs", "confusion_examples", "usage_rights")
    ]
    assert renamed == [[1], [2], [3], {"licence": {"MIT": 5}}]
    assert upgrade_report(found) == found
    assert OLD_REPORT["test"]["latency_ms"] == 0.3  # the argument is not changed


def test_an_old_report_of_another_split_and_one_without_an_evaluation():
    other = {"val": OLD_REPORT["test"] | {"split": "val"}}
    assert upgrade_report(other)["evaluation"]["split"] == "val"
    assert upgrade_report({"training": {"seconds": 1.0}}) == {"training": {"seconds": 1.0}}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"eps": 0.1, "accuracy": 0.5, "low": 0.4, "high": 0.6},
            {"eps": 0.1, "accuracy": 0.5, "intervals": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}},
        ),
        (
            {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 10},
            {
                "accuracy": 0.5,
                "n": 10,
                "intervals": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}},
            },
        ),
        (
            {"coverage": 0.9, "interval": {"low": 0.8, "high": 1.0, "n": 9}},
            {"coverage": 0.9, "intervals": {"coverage": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 9}}},
        ),
    ],
)
def test_flat_intervals_become_nested(old, new):
    assert upgrade_intervals([{"row": old}]) == [{"row": new}]
    assert upgrade_intervals(new) == new


def test_a_run_folder_of_an_earlier_release_is_read(tmp_path):
    assert read_report(tmp_path) == {}
    (tmp_path / "report.json").write_text(json.dumps(OLD_REPORT))
    points = [{"eps": e, "accuracy": 0.9 - e, "low": 0.7 - e, "high": 0.95 - e} for e in (0.0, 0.1)]
    (tmp_path / "robustness.json").write_text(json.dumps({"attacks": {"pgd": {"points": points}}}))
    evidence = load_evidence(tmp_path)
    assert evidence.measured == read_report(tmp_path)["evaluation"]
    verdicts = check_requirements({"latency_ms": 1.0, "robust_accuracy": 0.5}, evidence.measured, evidence.extras)
    assert [verdict.value for verdict in verdicts] == [0.3, pytest.approx(0.8)]
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(ValueError, match="not a JSON object"):
        read_report(tmp_path)
