"""The page: one self-contained HTML file, no scripts, nothing loaded from elsewhere."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from math import floor, sqrt
from pathlib import Path
from typing import Any

from .. import pictures
from ..errors import DataError
from ..files import atomic_replace, write_json, write_text
from .card import render_card
from .formatting import (
    METRIC_LABELS,
    format_count,
    format_duration,
    format_interval,
    format_magnitude,
    format_metric,
    format_percent,
)
from .load import EVIDENCE_FILES, Evidence, load_evidence
from .requirements import Verdict, check_requirements
from .sections import build_sections, missing_sections, with_embedded_images

MAX_CONFUSION_TABLE_CLASSES = 20
"""Up to this many classes the confusion matrix is a table one can read; beyond, a picture."""


def write_report(run: Path | str, verdicts: Sequence[Verdict] = ()) -> Path:
    """Write ``report.html`` and its pictures from what a run folder holds, and the card into run and bundle.

    What is absent is named on the page; ``verdicts`` head it. Returns the page's path; raises DataError where
    there is no such folder, OutputError where it cannot be written.
    """
    evidence = load_evidence(run)
    page, drawn = Path(run) / "report.html", _draw_pictures(evidence)
    for name, content in drawn.items():
        with atomic_replace(Path(run) / f"{name}.png") as temporary:
            temporary.write_bytes(content)
    write_text(page, render_page(evidence, drawn, verdicts))
    if evidence.config:
        text = render_card(evidence.config, evidence.report, evidence.extras)
        write_text(Path(run) / "README.md", text)
        _copy_card_to_bundle(Path(run) / "classifier", text)
    return page


def check_run(run: Path | str, wishes: Mapping[str, float]) -> list[Verdict]:
    """What a run's folder says to each wish."""
    evidence = load_evidence(run)
    return check_requirements(wishes, evidence.measured, evidence.extras)


def attach_comparison(run: Path | str, comparison: Path | str) -> None:
    """Keep the table of a folder that `sightline compare` made with a run; DataError where it is none."""
    file = Path(comparison) / "compare.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {name: content[name] for name in ("n", "entrants", "sentences")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{comparison}' holds no finished comparison (compare.json): name the folder of `sightline compare`."
        ) from error
    write_json(Path(run) / EVIDENCE_FILES["comparison"], known)


def _draw_pictures(evidence: Evidence) -> dict[str, bytes]:
    """The pictures that are also files of the run, as PNG."""
    drawn = {}
    if roc := evidence.report.get("roc"):
        drawn["roc"] = pictures.encode_png(pictures.plot_roc(roc["macro"], roc["classes"]))
    if curve := evidence.learning_curve:
        drawn["learning_curve"] = pictures.encode_png(pictures.plot_learning_curve(curve["sizes"]))
    return drawn


def _copy_card_to_bundle(bundle: Path, text: str) -> None:
    """Give the bundle the card too: it is what travels alone."""
    if (bundle / "model.safetensors").is_file():
        from ..classifier import write_bundle_card

        write_bundle_card(bundle, text)


def _css_width(png: bytes) -> int:
    """CSS pixels at which a picture's letters are as large as the page's: it has half as many again."""
    return int.from_bytes(png[16:20]) * 2 // 3


def render_page(
    evidence: Evidence, drawn: Mapping[str, bytes] | None = None, verdicts: Sequence[Verdict] = ()
) -> str:
    """The page as HTML; every name from the data is escaped. ``drawn`` are pictures that are at hand."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_load_template),
    )
    environment.filters |= {
        "share": format_percent,
        "number": format_metric,
        "count": format_count,
        "duration": format_duration,
    }
    measured = evidence.measured
    drawn = _draw_pictures(evidence) if drawn is None else drawn
    trust, damaged = build_sections(evidence.extras)
    return environment.get_template("page.html.jinja").render(
        evidence=evidence,
        trust=trust,
        damaged=[f"{EVIDENCE_FILES[name]} (cannot be understood)" for name in damaged],
        lacking=missing_sections(evidence.extras),
        verdicts=verdicts,
        measured=measured,
        facts=_headline_facts(evidence),
        cards=_headline_figures(evidence),
        caveats=_caveats(evidence),
        metrics=_metric_rows(measured),
        classes=_class_rows(measured),
        counts=_count_table(evidence.counts),
        given=evidence.report.get("usage_rights") or {},
        confusion=_confusion_table(measured, evidence.report),
        costs=_cost_rows(measured.get("efficiency") or {}, evidence.training),
        pairs=_confusable_pairs(evidence.report),
        mistakes=_mistake_gallery(evidence.report),
        wrong=_count_errors(measured),
        curves=pictures.data_url(pictures.plot_history(evidence.history)) if evidence.history else None,
        reliability=_reliability_picture(evidence.report),
        drawn={name: (pictures.data_url(content), _css_width(content)) for name, content in drawn.items()},
        curve=evidence.learning_curve,
        train_batch=pictures.data_url(evidence.train_batch) if evidence.train_batch else None,
        recipe=_setting_rows(evidence.recipe),
        environment=_setting_rows(evidence.environment),
    )


def _load_template(name: str) -> str:
    return resources("sightline.evidence").joinpath(name).read_text(encoding="utf-8")


def _headline_facts(evidence: Evidence) -> dict[str, Any]:
    """The words of the headline and of the line under it."""
    config, architecture = evidence.config, evidence.config.get("architecture") or {}
    measured, provenance = evidence.measured, config.get("provenance") or {}
    geometry = config.get("geometry") or {}
    accuracy = (measured.get("intervals") or {}).get("accuracy")
    digits = 2 if measured.get("n", 0) >= 5000 else 1
    return {
        "headline": format_percent(measured["accuracy"], digits) if measured else None,
        "between": format_interval(accuracy, lambda v: format_percent(v, digits)) if accuracy else None,
        "split": {"val": "validation"}.get(measured.get("split", "test"), measured.get("split", "test")),
        "model": architecture.get("name") or evidence.recipe.get("model"),
        "classes": len(config.get("classes") or measured.get("classes") or ()),
        "size": " × ".join(str(side) for side in geometry.get("size") or ()),
        "data": evidence.recipe.get("data") or provenance.get("data"),
        "trained": sum(evidence.counts.get("train", {}).values()) or provenance.get("train_images"),
        "created": str(evidence.report.get("created") or "")[:10],
    }


def _headline_figures(evidence: Evidence) -> list[tuple[str, str, str]]:
    """The few figures shown large: (value, name, remark)."""
    measured, training = evidence.measured, evidence.training
    cards = []
    for name in ("balanced_accuracy", "f1_macro", "roc_auc_ovr", "ece"):
        if name in measured:
            write = (lambda value: f"{value:.3f}") if name == "roc_auc_ovr" else format_percent
            bounds = (measured.get("intervals") or {}).get(name)
            cards.append((write(measured[name]), METRIC_LABELS[name].title, format_interval(bounds, write)))
    costs = measured.get("efficiency") or {}
    if "images_per_second" in costs:
        rate = f"{costs['images_per_second']:,.0f}"
        alone = f"{costs['latency_ms']:.2g} ms for one image alone" if "latency_ms" in costs else ""
        cards.append((rate, "Images per second", alone))
    if "seconds" in training:
        cards.append((format_duration(training["seconds"]), "Training", _describe_epochs(training)))
    if "parameters" in costs:
        adds = costs.get("multiply_adds")
        cards.append(
            (
                format_count(costs["parameters"]),
                "Parameters",
                f"{format_magnitude(adds)} multiply-adds an image" if adds else "",
            )
        )
    return cards


def _describe_epochs(training: Mapping[str, Any]) -> str:
    """How long it was trained, and which epoch was kept."""
    count, best = training.get("epochs", "?"), training.get("best_epoch", "?")
    kept = f"best {best}" if best else "none better than its start"
    return f"{count} epoch{'' if count == 1 else 's'}, {kept}" if count else "none"


def _caveats(evidence: Evidence) -> list[str]:
    """What an honest reader should know before believing the numbers."""
    measured, found = evidence.measured, []
    if not measured:
        return ["Nothing has been measured yet: run sightline evaluate on this run."]
    n = measured["n"]
    if measured.get("split", "test") != "test":
        found.append(
            f"These are results on the {_headline_facts(evidence)['split']} images, which also chose the best epoch: "
            "expect a little less on images that were never used."
        )
    elif evidence.training.get("epochs"):
        found.append("Validation images chose the epoch that is kept; the test images chose nothing.")
    if n < 1000:
        found.append(f"Small test: {format_count(n)} images. Differences inside the intervals mean nothing.")
    trained = _headline_facts(evidence)["trained"]
    if trained and trained < 2000:
        found.append(f"Small data: {format_count(trained)} training images. More images usually help most.")
    found += [str(remark) for remark in measured.get("remarks") or ()]
    found.append(
        "Training and test images come from the same collection; images from another place, camera "
        "or time may be harder."
    )
    found.append("One training run, one seed: another seed gives a slightly different classifier.")
    return found


def _metric_rows(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the metrics table, with places (in percent) on an axis from ``low`` to 1."""
    intervals = measured.get("intervals") or {}
    shown = [name for name in METRIC_LABELS if name in measured and name in intervals]
    lows = [intervals[name]["low"] for name in shown if not METRIC_LABELS[name].lower]
    low = min(floor(min(lows, default=0) * 10) / 10, 0.9)

    def place(value: float) -> str:
        return f"{(value - low) / (1 - low) * 100:.2f}"

    rows = []
    for name in shown:
        bounds, metric = intervals[name], METRIC_LABELS[name]
        places = (place(bounds["low"]), place(measured[name]), place(bounds["high"]))
        rows.append(
            {
                "name": name,
                "first": metric.first,
                "title": metric.title,
                "means": metric.means,
                "value": format_metric(measured[name]),
                "interval": format_interval(bounds, format_metric),
                "n": format_count(bounds["n"]),
                "bar": None if metric.lower else places,
            }
        )
    return {"rows": rows, "low": format_percent(low, 0)}


def _class_rows(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the per-class table; a class without images has no recall to show."""
    return [
        {
            "name": row["class"],
            "n": row["n"],
            "predicted": row["predicted"],
            "auc": None if row.get("roc_auc") is None else format_metric(row["roc_auc"]),
            "auc_interval": format_interval((row.get("intervals") or {}).get("roc_auc"), format_metric),
            "cells": [
                {
                    "value": row[key] if known else None,
                    "interval": format_interval((row.get("intervals") or {}).get(key), format_percent),
                }
                for key, known in (
                    ("recall", row["n"]),
                    ("precision", row["predicted"]),
                    ("f1", row["n"] or row["predicted"]),
                )
            ],
        }
        for row in measured.get("per_class") or ()
    ]


def _cost_rows(costs: Mapping[str, Any], training: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the table of costs: (what, how much, under which circumstances)."""
    if "seconds_per_image" not in costs:
        return []
    where = f"on {costs.get('device', '?')}, files already decoded"
    rows = []
    for one in costs.get("latency") or ():
        what = "One image alone" if one["batch_size"] == 1 else f"{one['batch_size']} images at once"
        spread = f"median of {one['repetitions']}; 19 in 20 within {format_duration(one['p95_ms'] / 1000)}"
        rows.append((what, format_duration(one["p50_ms"] / 1000), spread))
    per_image = format_duration(costs["seconds_per_image"])
    rows.append(("Each of many", per_image, f"in batches of {costs.get('batch_size', '?')}, {where}"))
    if (memory := costs.get("inference_memory_mb")) is not None:
        whose = {"process": "growth of the process, the network not counted"}
        rows.append(
            ("Memory to answer a batch", f"{memory:,.0f} MB", whose.get(costs["inference_memory_kind"], ""))
        )
    if "multiply_adds" in costs:
        what = "convolutions and linear layers"
        rows.append(("Multiply-adds for one image", format_count(costs["multiply_adds"]), what))
    rows.append(("Parameters", format_count(costs.get("parameters", "?")), ""))
    if memory := training.get("peak_memory_mb"):
        rows.append(("Memory to train", f"{memory:,.0f} MB", "of the process at its peak"))
    return rows


def _count_table(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any] | None:
    """Images by class (row) and split (column), with bars against the largest class."""
    if not counts:
        return None
    names = sorted({name for split in counts.values() for name in split})
    rows = [(name, [split.get(name, 0) for split in counts.values()]) for name in names]
    return {
        "splits": [{"val": "validation"}.get(split, split) for split in counts],
        "rows": rows,
        "totals": [sum(split.values()) for split in counts.values()],
        "most": max(sum(cells) for _, cells in rows),
    }


def _confusion_table(measured: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any] | None:
    """A table of shaded cells that open their images, or a picture where there are too many classes to read."""
    matrix, classes = measured.get("confusion"), measured.get("classes")
    if not matrix or not classes:
        return None
    if len(classes) > MAX_CONFUSION_TABLE_CLASSES:
        return {"picture": pictures.data_url(pictures.plot_confusion_matrix(matrix, classes))}
    opened = [
        {**cell, "examples": with_embedded_images(cell["examples"], "image")}
        for cell in report.get("confusion_examples") or ()
    ]
    known = {(cell["row"], cell["column"]) for cell in opened}
    rows = []
    for i, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        total = sum(counts) or 1
        # the square root lifts rare confusions into sight
        cells = [
            (n, "right" if i == j else "wrong", sqrt(n / total), f"cell-{i}-{j}" if (i, j) in known else None)
            for j, n in enumerate(counts)
        ]
        rows.append((name, cells))
    tilt = any(len(name) > 4 for name in classes)
    return {"picture": None, "classes": classes, "rows": rows, "tilt": tilt, "cells": opened}


def _count_errors(measured: Mapping[str, Any]) -> int:
    matrix = measured.get("confusion") or []
    return sum(sum(row) for row in matrix) - sum(row[i] for i, row in enumerate(matrix))


def _mistake_gallery(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The gallery."""
    return with_embedded_images(report.get("mistakes"), "image")


def _confusable_pairs(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Classes taken for each other; of each direction its mistakes, with examples."""
    return [
        {
            "count": pair["count"],
            "ways": [
                {**way, "examples": with_embedded_images(way.get("examples"), "image")}
                for way in pair["directions"]
                if way["count"]
            ],
            "names": (pair["directions"][0]["label"], pair["directions"][0]["predicted"]),
        }
        for pair in report.get("confusable_pairs") or ()
    ]


def _reliability_picture(report: Mapping[str, Any]) -> str | None:
    bins = report.get("reliability")
    if not bins:
        return None
    picture = pictures.plot_reliability(bins["edges"], bins["counts"], bins["confidence"], bins["accuracy"])
    return pictures.data_url(picture)


def _setting_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as rows of text; lists on one line, absent ones left out."""
    return [
        (name, ", ".join(str(v) for v in value) if isinstance(value, list) else str(value))
        for name, value in values.items()
        if value is not None
    ]
