"""The report page: one self-contained HTML file without scripts."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files as resources
from math import floor, sqrt
from pathlib import Path
from typing import Any

from .. import pictures
from ..errors import DataError
from ..files import atomic_replace, write_json, write_text
from .card import describe_calibration, describe_start, network_name, render_card
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
"""Maximum classes of a confusion matrix shown as a table; with more it is a picture."""


NO_PLOTS = "Curves and diagrams are not drawn, because the time budget was over: sightline report RUN draws them."
"""What a page without them says."""


def write_report(run: Path | str, verdicts: Sequence[Verdict] = (), *, plots: bool = True) -> Path:
    """Write ``report.html`` and its pictures from the results in a run folder, and the card into run and bundle.

    The page names absent results and begins with the `verdicts`. Without `plots` it has no curves and diagrams, which
    take most of the time, and says so. Returns the path of the page. Raises DataError if
    the folder does not exist, OutputError if it cannot be written.
    """
    evidence, folder = load_evidence(run), Path(run)
    page, drawn = folder / "report.html", _draw_pictures(evidence) if plots else {}
    for name, content in drawn.items():
        with atomic_replace(folder / f"{name}.png") as temporary:
            temporary.write_bytes(content)
    write_text(page, render_page(evidence, drawn, verdicts, plots=plots))
    if evidence.config:
        text = render_card(evidence.config, evidence.report, evidence.extras)
        write_text(folder / "README.md", text)
        if (folder / "classifier" / "model.safetensors").is_file():
            from ..classifier import write_bundle_card

            write_bundle_card(folder / "classifier", text)
    return page


def check_run(run: Path | str, required: Mapping[str, float]) -> list[Verdict]:
    """A verdict on each requirement, from the results in a run folder."""
    evidence = load_evidence(run)
    return check_requirements(required, evidence.measured, evidence.extras)


def attach_comparison(run: Path | str, comparison: Path | str) -> None:
    """Copy the ranking of a `sightline compare` folder into a run. Raises DataError if the folder has none."""
    file = Path(comparison) / "compare.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        known = {name: content[name] for name in ("n", "entrants", "sentences")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"'{comparison}' contains no finished comparison (compare.json): name a folder of `sightline compare`."
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


def read_page_part(name: str) -> str:
    """The text of a template of the page, or of its style: ``report.css``."""
    return resources("sightline.evidence").joinpath(name).read_text(encoding="utf-8")


@cache
def _page_template() -> Any:
    """Jinja's template, compiled once a process: that takes longer than filling it."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(read_page_part),
    )
    environment.filters |= {
        "share": format_percent,
        "number": format_metric,
        "count": format_count,
        "duration": format_duration,
    }
    return environment.get_template("page.html.jinja")


def render_page(
    evidence: Evidence,
    drawn: Mapping[str, bytes] | None = None,
    verdicts: Sequence[Verdict] = (),
    *,
    plots: bool = True,
) -> str:
    """The page as HTML. Every name from the data is escaped; `drawn` are pictures that were drawn before."""
    measured, report = evidence.measured, evidence.report
    drawn = _draw_pictures(evidence) if drawn is None else drawn
    results, damaged = build_sections(evidence.extras)
    matrix = measured.get("confusion") or []
    reliability = None
    if plots and (bins := report.get("reliability")):
        picture = pictures.plot_reliability(bins["edges"], bins["counts"], bins["confidence"], bins["accuracy"])
        reliability = pictures.data_url(picture)
    # Letters in a picture are half as large again as those of the page, so it is shown at two thirds of its width.
    widths = {name: int.from_bytes(content[16:20]) * 2 // 3 for name, content in drawn.items()}
    return _page_template().render(
        evidence=evidence,
        results=results,
        damaged=[f"{EVIDENCE_FILES[name]} (cannot be understood)" for name in damaged],
        lacking=missing_sections(evidence.extras),
        verdicts=verdicts,
        measured=measured,
        facts=_headline_facts(evidence),
        cards=_headline_figures(evidence),
        caveats=[*_caveats(evidence), *([] if plots else [NO_PLOTS])],
        metrics=_metric_rows(measured),
        classes=_class_rows(measured),
        counts=_count_table(evidence.counts),
        given=report.get("usage_rights") or {},
        confusion=_confusion_table(measured, report),
        costs=_cost_rows(measured.get("efficiency") or {}, evidence.training),
        pairs=[
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
        ],
        mistakes=with_embedded_images(report.get("mistakes"), "image"),
        wrong=sum(sum(row) for row in matrix) - sum(row[i] for i, row in enumerate(matrix)),
        curves=pictures.data_url(pictures.plot_history(evidence.history)) if plots and evidence.history else None,
        reliability=reliability,
        calibration=describe_calibration(evidence.config) if "temperature" in evidence.config else "",
        drawn={name: (pictures.data_url(content), widths[name]) for name, content in drawn.items()},
        curve=evidence.learning_curve,
        train_batch=pictures.data_url(evidence.train_batch) if evidence.train_batch else None,
        recipe=_setting_rows(evidence.recipe),
        environment=_setting_rows(evidence.environment),
    )


def _headline_facts(evidence: Evidence) -> dict[str, Any]:
    """Values of the headline and the line below it."""
    config, measured = evidence.config, evidence.measured
    provenance = config.get("provenance") or {}
    geometry = config.get("geometry") or {}
    accuracy = (measured.get("intervals") or {}).get("accuracy")
    digits = 2 if measured.get("n", 0) >= 5000 else 1
    return {
        "headline": format_percent(measured["accuracy"], digits) if measured else None,
        "between": format_interval(accuracy, lambda v: format_percent(v, digits)) if accuracy else None,
        "split": {"val": "validation"}.get(measured.get("split", "test"), measured.get("split", "test")),
        "model": network_name(config) or evidence.recipe.get("model"),
        "classes": len(config.get("classes") or measured.get("classes") or ()),
        "size": " × ".join(str(side) for side in geometry.get("size") or ()),
        "data": evidence.recipe.get("data") or provenance.get("data"),
        "trained": sum(evidence.counts.get("train", {}).values()) or provenance.get("train_images"),
        "created": str(evidence.report.get("created") or "")[:10],
    }


def _headline_figures(evidence: Evidence) -> list[tuple[str, str, str]]:
    """The figures shown large: (value, name, remark)."""
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
        alone = (
            f"{format_duration(costs['latency_ms'] / 1000)} for a single image" if "latency_ms" in costs else ""
        )
        if any(one.get("busy") for one in costs.get("latency") or ()):
            alone += " (on a busy machine)"
        cards.append((rate, "Images per second", alone))
    if "seconds" in training:
        count, best = training.get("epochs", "?"), training.get("best_epoch", "?")
        kept = f"best {best}" if best else "none better than its start"
        epochs = f"{count} epoch{'' if count == 1 else 's'}, {kept}" if count else "none"
        cards.append((format_duration(training["seconds"]), "Training", epochs))
    if "parameters" in costs:
        adds = costs.get("multiply_adds")
        cards.append(
            (
                format_count(costs["parameters"]),
                "Parameters",
                f"{format_magnitude(adds)} multiply-adds per image" if adds else "",
            )
        )
    return cards


def _caveats(evidence: Evidence) -> list[str]:
    """What a reader should know before trusting the numbers."""
    measured, found = evidence.measured, []
    if not measured:
        return ["Nothing has been measured yet: run sightline evaluate on this run."]
    n = measured["n"]
    if measured.get("split", "test") != "test":
        found.append(
            f"These are results on the {_headline_facts(evidence)['split']} images, which also selected the best "
            "epoch: expect a slightly lower accuracy on other images."
        )
    elif evidence.training.get("epochs"):
        found.append("The best epoch was selected on validation images; the test images selected nothing.")
    if n < 1000:
        found.append(
            f"Small test set: {format_count(n)} images. Differences within the intervals are not significant."
        )
    trained = _headline_facts(evidence)["trained"]
    if trained and trained < 2000:
        found.append(f"Small training set: {format_count(trained)} images. More images usually help most.")
    found += describe_start(evidence.config)
    found += [str(remark) for remark in measured.get("remarks") or ()]
    found.append(
        "Training and test images come from the same collection; images from another place, camera or time may be "
        "harder."
    )
    found.append("One training run, one seed: another seed gives a slightly different classifier.")
    return found


def _metric_rows(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the metrics table, with positions (in percent) on an axis from `low` to 1."""
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
    """Rows of the per-class table; a class without images has no recall."""
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
    """Rows of the efficiency table: (name, value, conditions)."""
    if "seconds_per_image" not in costs:
        return []
    where = f"on {costs.get('device', '?')}, images already decoded"
    rows = []
    for one in costs.get("latency") or ():
        what = "Single image" if one["batch_size"] == 1 else f"{one['batch_size']} images per batch"
        spread = f"median of {one['repetitions']}; 95 % within {format_duration(one['p95_ms'] / 1000)}"
        spread += "; other programs used the processor, so it may be faster" if one.get("busy") else ""
        rows.append((what, format_duration(one["p50_ms"] / 1000), spread))
    per_image = format_duration(costs["seconds_per_image"])
    rows.append(("Per image, many images", per_image, f"in batches of {costs.get('batch_size', '?')}, {where}"))
    if (memory := costs.get("inference_memory_mb")) is not None:
        whose = {"process": "growth of the process, without the network"}
        rows.append(
            ("Memory to predict a batch", f"{memory:,.0f} MB", whose.get(costs["inference_memory_kind"], ""))
        )
    if "multiply_adds" in costs:
        what = "convolutions and linear layers"
        rows.append(("Multiply-adds per image", format_count(costs["multiply_adds"]), what))
    rows.append(("Parameters", format_count(costs.get("parameters", "?")), ""))
    if memory := training.get("peak_memory_mb"):
        rows.append(("Memory to train", f"{memory:,.0f} MB", "peak of the process"))
    return rows


def _count_table(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any] | None:
    """Images by class (row) and split (column), with bars relative to the largest class."""
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
    """A table of shaded cells that open their images, or a picture if there are many classes."""
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
        # the square root makes rare confusions visible
        cells = [
            (n, "right" if i == j else "wrong", sqrt(n / total), f"cell-{i}-{j}" if (i, j) in known else None)
            for j, n in enumerate(counts)
        ]
        rows.append((name, cells))
    tilt = any(len(name) > 4 for name in classes)
    return {"picture": None, "classes": classes, "rows": rows, "tilt": tilt, "cells": opened}


def _setting_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Settings as rows of text; absent ones are left out."""
    return [
        (name, ", ".join(str(v) for v in value) if isinstance(value, list) else str(value))
        for name, value in values.items()
        if value is not None
    ]
