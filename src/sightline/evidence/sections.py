"""Sections of the page: confidence, groups, attacks, corruptions, explanations, label issues, ..."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from .formatting import (
    ChartLine,
    format_count,
    format_interval,
    format_metric,
    format_percent,
    line_chart,
    round_up_axis_limit,
)

Section = Mapping[str, Any]


def build_sections(extras: Mapping[str, Any]) -> tuple[dict[str, Section], list[str]]:
    """A section for each result, by name, and the names of results that cannot be understood."""
    shown, damaged = {}, []
    for name, build in SECTION_BUILDERS.items():
        if not extras.get(name):
            continue
        try:
            shown[name] = build(extras[name])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            damaged.append(name)
    return shown, damaged


def with_embedded_images(shown: Any, *keys: str) -> list[Mapping[str, Any]]:
    """The entries whose pictures are embedded PNG images: the page must not load anything."""
    return [one for one in shown or () if all(_PNG_DATA_URL.fullmatch(str(one.get(key))) for key in keys)]


_PNG_DATA_URL = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]+")


def format_with_interval(value: Mapping[str, Any], digits: int = 1) -> str:
    """A share with its interval: ``97.0 % (95.8 - 97.9 %)``."""
    return (
        f"{format_percent(value['value'], digits)} ({format_interval(value, lambda v: format_percent(v, digits))})"
    )


def calibration_section(found: Mapping[str, Any]) -> Section:
    """Risk against coverage, the threshold for "unknown", and conformal sets."""
    curve, chosen = found["risk_coverage"], found.get("abstention")
    points = list(zip(curve["coverage"], curve["risk"], strict=True))
    top = round_up_axis_limit(max(0.002, *(risk for coverage, risk in points if coverage > 0.02)))
    picture = line_chart(
        [ChartLine("risk", points)],
        x="coverage: share of the images answered",
        y="risk: error rate among them",
        title="Error rate against the share of images answered, most confident first",
        write_x=lambda v: format_percent(v, 0),
        top=top,
    )
    kinds = [
        (
            name,
            format_percent(one["coverage"]),
            format_interval(one["intervals"]["coverage"], format_percent),
            f"{one['size']:.2f}",
            format_percent(one["empty"]),
        )
        for name, one in found["conformal"]["kinds"].items()
    ]
    return {
        "picture": picture,
        "n": found["n"],
        "held": found["n_validation"],
        "rows": [
            (format_percent(float(part), 0), format_percent(risk, 2)) for part, risk in found["risk_at"].items()
        ],
        "chosen": chosen
        and {
            "value": f"{chosen['threshold']:.3f}",
            "coverage": format_with_interval(chosen["test"]["coverage"]),
            "risk": format_with_interval(chosen["test"]["risk"], 2),
        },
        "kinds": kinds,
        "wanted": format_percent(1 - found["conformal"]["alpha"], 0),
        "remarks": found["conformal"]["remarks"],
        "before": format_percent(found["uncalibrated"]["ece"], 2),
        "after": format_percent(found["ece"], 2),
        "equal_mass": format_percent(found["ece_equal_mass"], 2),
    }


def groups_section(found: Mapping[str, Any]) -> Section:
    """Accuracy by group and the gaps, for each column."""
    columns = []
    for name, one in found.items():
        other = one.get("against") or {}
        after = {row["group"]: format_percent(row["accuracy"]) for row in other.get("groups", ())}
        rows = [
            {
                "group": row["group"],
                "n": row["n"],
                "small": row["small"],
                "accuracy": row["accuracy"],
                "interval": format_interval(row["intervals"]["accuracy"], format_percent),
                "after": after.get(row["group"]),
            }
            for row in one["groups"]
        ]
        gaps = [
            (title, format_with_interval(one[key]))
            for key, title in (
                ("gap", "Accuracy, best group minus worst"),
                ("demographic_parity", "Demographic parity difference, largest over classes"),
                ("equalised_odds", "Equalised odds difference, largest over classes"),
            )
            if one.get(key)
        ]
        columns.append(
            {"name": name, "rows": rows, "gaps": gaps, "against": other.get("run"), "remarks": one["remarks"]}
        )
    return {"columns": columns}


def format_radius(eps: float) -> str:
    """A radius as users write it.

    >>> format_radius(8 / 255), format_radius(0.3), format_radius(0)
    ('8/255', '0.3', '0')
    """
    levels = eps * 255
    whole = abs(levels - round(levels)) < 1e-6 and 0 < round(levels) < 64
    return f"{round(levels)}/255" if whole else f"{eps:.3g}"


def robustness_section(found: Mapping[str, Any]) -> Section:
    """Accuracy curves of the attacks, one chart per norm, and a table."""
    attacks = list(found["attacks"].values())
    norms = list(dict.fromkeys(one["norm"] for one in attacks))
    pictures = []
    for norm in norms:
        those = [one for one in attacks if one["norm"] == norm][:3]
        lines = [
            ChartLine(
                one["attack"],
                [(p["eps"], p["accuracy"]) for p in one["points"]],
                [(b["low"], b["high"]) for b in (p["intervals"]["accuracy"] for p in one["points"])],
            )
            for one in those
        ]
        longest = max(those, key=lambda one: one["points"][-1]["eps"])
        picture = line_chart(
            lines,
            x=f"radius of the attack ({norm}, pixels from 0 to 1)",
            y="accuracy",
            title=f"Accuracy under attack against the radius, {norm}",
            write_x=format_radius,
            ticks=[p["eps"] for p in longest["points"]],
        )
        pictures.append((picture, [line.name for line in lines]))
    rows = []
    for one in attacks:
        last, masking = one["points"][-1], one.get("masking")
        rows.append(
            {
                "name": one["attack"],
                "n": one["n"],
                "eps": f"{format_radius(last['eps'])} {one['norm']}",
                "clean": format_percent(one["points"][0]["accuracy"]),
                "robust": format_percent(last["accuracy"]),
                "interval": format_interval(last["intervals"]["accuracy"], format_percent),
                "masking": None if masking is None else ("suspected" if masking["suspected"] else "no sign"),
                "sample": one.get("sample", ""),
            }
        )
    remarks = [remark for one in attacks for remark in one.get("remarks", ())]
    return {
        "pictures": pictures,
        "rows": rows,
        "remarks": list(dict.fromkeys(one["text"] for one in remarks if one["level"] != "note")),
    }


def corruptions_section(found: Mapping[str, Any]) -> Section:
    """A shaded table of accuracy by corruption and severity."""
    rows = [
        (name, [(one["value"], format_percent(one["value"], 0).removesuffix(" %")) for one in cells])
        for name, cells in found["corruptions"].items()
    ]
    rows.sort(key=lambda row: sum(value for value, _ in row[1]))
    return {
        "rows": rows,
        "severities": list(range(1, 1 + max(len(cells) for _, cells in rows))),
        "sentence": found["sentence"],
        "sample": found["sample"],
        "error": format_with_interval(found["mean_corruption_error"]),
        "clean": found["clean"]["value"],
    }


def explanations_section(found: Mapping[str, Any]) -> Section:
    """Images with their saliency maps, errors first, and the faithfulness of the maps."""
    faithful = found.get("faithfulness")
    words = None
    if faithful:
        words = (
            f"Deletion: hiding the important pixels first leaves {format_metric(faithful['deletion_area'])} of "
            f"the prediction on average (with the map shifted: {format_metric(faithful['deletion_elsewhere'])}). "
            f"Insertion: showing them first gives {format_metric(faithful['insertion_area'])} (shifted: "
            f"{format_metric(faithful['insertion_elsewhere'])})."
        )
        if faithful.get("similarity_shuffled") is not None:
            alike = faithful["similarity_shuffled"]
            words += f" After shuffling the weights, the rank correlation with the original map is {alike:.2f}."
    return {
        "by": found["by"],
        "images": [
            {
                "image": one["image"],
                "heat": one["heat"],
                "answer": one["answer"],
                "wrong": one.get("label") is not None and one["label"] != one["answer"],
                "sentence": one["sentence"],
                "file": one["file"],
            }
            for one in with_embedded_images(found["images"], "image", "heat")
        ],
        "faithful": words,
        "remarks": [remark["text"] for remark in found["remarks"]],
    }


def label_issues_section(found: Mapping[str, Any]) -> Section:
    """The labels that look most wrong."""
    return {
        "sentence": found["sentence"],
        "rows": [
            (
                one["file"],
                one["label"],
                one["suggested"],
                format_percent(one["p_label"]),
                format_percent(one["p_suggested"]),
            )
            for one in found["suspects"][:20]
        ],
        "remarks": found["remarks"],
    }


def comparison_section(found: Mapping[str, Any]) -> Section:
    """The ranking of candidates."""
    return {
        "n": found["n"],
        "rows": [
            {
                "name": row["entrant"],
                "accuracy": format_percent(row["accuracy"]),
                "interval": format_interval(row["intervals"]["accuracy"], format_percent),
                "difference": "" if not row.get("difference") else f"{row['difference']['value'] * 100:+.1f}",
                "p": "" if row.get("p_holm") is None else f"{row['p_holm']:.2g}",
                "seconds": format_count(round(row["train_seconds"]))
                if row["train_seconds"] >= 10
                else f"{row['train_seconds']:.1f}",
                "ms": f"{row['ms_per_image']:.2g}",
            }
            for row in found["entrants"]
        ],
        "sentences": found["sentences"],
    }


def compression_section(found: Mapping[str, Any]) -> Section:
    """The small classifier compared with the original."""
    return {
        "parent": found["parent"],
        "by": ", then ".join(found["by"]),
        "rows": compression_rows(found),
        "sentences": [*found["sentences"], *([found["target"]["sentence"]] if found["target"] else [])],
        "remarks": found["notes"],
    }


def compression_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of a compression: (measure, original, small, ratio or difference)."""
    sides = found["original"], found["small"]
    rows = [
        (title, write(before), write(after), f"{after / before:.2f}x")
        for name, (title, write) in COMPRESSION_COSTS.items()
        if None not in (before := sides[0][name], after := sides[1][name])
    ]
    for before, after in zip(*(one["latency"] for one in sides), strict=True):
        size = before["batch_size"]
        times = [f"{one['p50_ms']:.2f} ms, p95 {one['p95_ms']:.2f}" for one in (before, after)]
        ratio = found["latency_ratio"][str(size)]
        change = f"{ratio['value']:.2f}x ({ratio['low']:.2f} - {ratio['high']:.2f})"
        rows.append(("Single image" if size == 1 else f"{size} images per batch", times[0], times[1], change))
    first, second = (format_with_interval(one["intervals"]["accuracy"], 2) for one in sides)
    points = {edge: f"{found['accuracy_difference'][edge] * 100:+.2f}" for edge in ("value", "low", "high")}
    rows.append(("Accuracy", first, second, f"{points['value']} ({points['low']} to {points['high']})"))
    rows.append(("McNemar's p", "", "", f"{found['mcnemar_p']:.2g}"))
    rows.append(("Agreement of predictions", "", "", format_with_interval(found["agreement"], 2)))
    return rows


COMPRESSION_COSTS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "file_mb": ("Exported file", lambda value: f"{value:.3f} MB"),
    "bundle_mb": ("Bundle", lambda value: f"{value:.3f} MB"),
    "parameters": ("Parameters", format_count),
    "nonzero": ("Nonzero parameters", format_count),
    "multiply_adds": ("Multiply-adds per image", format_count),
}
"""Cost of a classifier -> its title, and how it is written."""


SECTION_BUILDERS: Mapping[str, Callable[[Mapping[str, Any]], Section]] = {
    "calibration": calibration_section,
    "groups": groups_section,
    "robustness": robustness_section,
    "corruptions": corruptions_section,
    "explanations": explanations_section,
    "suspects": label_issues_section,
    "comparison": comparison_section,
    "compression": compression_section,
}
"""Result -> the function that builds its section."""


def missing_sections(extras: Mapping[str, Any]) -> list[str]:
    """What the page could show but was not measured, with the command that measures it."""
    return [f"{what} ({how})" for name, (what, how) in SECTION_COMMANDS.items() if not extras.get(name)]


SECTION_COMMANDS = {
    "calibration": ("confidence and conformal sets", "sightline evaluate RUN --risk 0.01"),
    "robustness": ("attacks", "sightline attack RUN"),
    "corruptions": ("corruptions", "sightline evaluate RUN --corruptions"),
    "explanations": ("explanations", "sightline report RUN --collect"),
    "groups": ("groups", "sightline evaluate RUN --group COLUMN"),
    "comparison": ("baselines", "sightline compare DATA, then sightline report RUN --compare-with FOLDER"),
}
"""Result -> its title, and the command that measures it."""
