"""The model card: description, data, metrics and limitations of a classifier."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .formatting import METRIC_LABELS, format_count, format_interval, format_metric, format_percent
from .sections import format_radius


def render_card(
    config: Mapping[str, Any], report: Mapping[str, Any] | None = None, extras: Mapping[str, Any] | None = None
) -> str:
    """A model card in Markdown, with the YAML front matter that model hubs read.

    `config` is the ``config.json`` of a bundle; `report` the ``report.json`` of a run, without which the card
    states that nothing was measured; `extras` the results of other verbs. Names from the data are escaped: they
    cannot add markup or fields.
    """
    measured = (report or {}).get("evaluation") or {}
    geometry, provenance = config.get("geometry") or {}, config.get("provenance") or {}
    classes = [str(name) for name in config.get("classes", ())]
    title = f"{network_name(config) or 'image classifier'} for {len(classes)} classes"
    size = " x ".join(str(side) for side in geometry.get("size", ("?", "?")))
    colour = "grey" if geometry.get("channels") == 1 else "colour"
    names = ", ".join(_escape_markdown(name) for name in classes[:20]) + (", ..." if len(classes) > 20 else "")
    data = f"Trained on `{_escape_code(str(provenance.get('data') or 'unknown data'))}`"
    if (trained := provenance.get("train_images")) is not None:
        data += f" ({format_count(trained)} training images)"
    data += f"; tested on {format_count(measured['n'])} images it never saw." if "n" in measured else "."
    if way := provenance.get("semi_supervised"):
        data += f" It also learned from images without labels, by `{_escape_code(str(way))}`."
    if by := provenance.get("centred_by"):
        data += f" Features are centred by {format_count(by['images'])} unlabelled images of "
        data += f"`{_escape_code(str(by['data']))}`, of which {format_count(by['test_images'])} are test images."
    for step in provenance.get("adapted", ()):
        data += f" Then adapted ({_escape_code(str(step['by']))}) to {format_count(step['images'])} images of "
        data += f"`{_escape_code(str(step['target']))}` without labels, which labelled images of that world "
        data += "proved to help" if step["verified"] else "have not proved to help (unverified)"
        data += "; the temperature was fitted before."
    if provenance.get("data_fingerprint"):
        data += f" Fingerprint of the files: `{_escape_code(str(provenance['data_fingerprint']))}`."
    parts = [
        _front_matter(title, config, measured),
        f"# {_escape_markdown(title)}",
        f"An image classifier made with Sightline. It works on {size} {colour} pixels (images are resized with "
        f"'{_escape_markdown(str(geometry.get('fit', '?')))}') and predicts one of {len(classes)} classes: "
        f"{names}.",
        "## Data\n\n" + " ".join([data, *map(_escape_markdown, describe_start(config))]),
        "## Measured\n\n" + _metrics_section(measured),
        "## Use and limitations\n\n" + _limitations_section(config, measured, extras or {}),
        "## How to load it\n\n" + _LOADING_EXAMPLE,
    ]
    return "\n\n".join(parts) + "\n"


_LOADING_EXAMPLE = """```python
import sightline

classifier = sightline.load("THIS_FOLDER")
print(classifier.predict("image.jpg"))
```

Images may have any size and format: the bundle contains the preprocessing."""


def _front_matter(title: str, config: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    """YAML front matter; strings are written as JSON, a subset of YAML, so that no name can escape its quotes."""
    data = str((config.get("provenance") or {}).get("data") or "images")
    lines = ["---", "library_name: sightline", "pipeline_tag: image-classification"]
    lines += ["tags:", "- image-classification", "- sightline", "metrics:"]
    names = [name for name in METRIC_LABELS if name in measured]
    lines += [f"- {name}" for name in names or ("accuracy",)]
    if names:
        lines += ["model-index:", f"- name: {json.dumps(title)}", "  results:"]
        lines += ["  - task:", "      type: image-classification"]
        lines += ["    dataset:", f"      name: {json.dumps(data)}", "      type: imagefolder"]
        lines += [f"      split: {json.dumps(str(measured.get('split', 'test')))}", "    metrics:"]
        for name in names:
            lines += [f"    - type: {name}", f"      value: {float(measured[name]):.6f}"]
    return "\n".join([*lines, "---"])


def _metrics_section(measured: Mapping[str, Any]) -> str:
    if not measured:
        return "Nothing yet: run `sightline evaluate` on this classifier."
    intervals = measured.get("intervals") or {}
    lines = ["| metric | value | 95 % interval | n |", "|---|---|---|---|"]
    for name, metric in METRIC_LABELS.items():
        if name in measured:
            bounds = intervals.get(name)
            lines.append(
                f"| {metric.title} (`{name}`) | {format_metric(measured[name])} | "
                f"{format_interval(bounds, format_metric)} | {format_count((bounds or measured)['n'])} |"
            )
    worst = sorted((row for row in measured.get("per_class", ()) if row["n"]), key=lambda row: row["recall"])
    if worst:
        weak = ", ".join(
            f"{_escape_markdown(row['class'])} ({format_percent(row['recall'])} of {row['n']})"
            for row in worst[:3]
        )
        lines += ["", f"Lowest recall: {weak}."]
    return "\n".join(lines)


def _limitations_section(config: Mapping[str, Any], measured: Mapping[str, Any], extras: Mapping[str, Any]) -> str:
    lines = [
        "It is meant for images like those it was trained on: same kinds of subject, camera and framing.",
        "It always predicts one of its classes, also for an image that shows none of them."
        if not config.get("threshold")
        else f"Below a confidence of {config['threshold']:.3g} it answers 'unknown'; it may still be confident "
        "about an image of another kind.",
    ]
    if "n" in measured:
        lines.append(
            "The numbers above come from the same collection as the training images; "
            "on images from elsewhere they may be lower."
        )
        if measured["n"] < 1000:
            lines.append(f"Only {format_count(measured['n'])} test images: mind the intervals.")
    if config.get("temperature") is not None:
        lines.append(describe_calibration(config))
    lines += list_limitations(extras)
    return "\n".join(f"- {line}" for line in lines)


def network_name(config: Mapping[str, Any]) -> str:
    """The network of a bundle, by timm's name where it is one of timm's."""
    made = config.get("architecture") or {}
    name = str(made.get("name") or "")
    return str((made.get("arguments") or {}).get("name") or name) if name == "timm" else name


def describe_start(config: Mapping[str, Any]) -> list[str]:
    """Whose weights a bundle started from, and which of its classes these knew already."""
    weights = (config.get("provenance") or {}).get("weights")
    if not isinstance(weights, Mapping):
        return []
    digest = f", sha256 {weights['sha256']}" if weights.get("sha256") else ""
    said = [
        f"It started from the published weights {weights.get('name')}, trained on {weights.get('trained_on')} "
        f"(licence {weights.get('licence') or 'unknown'}; {weights.get('source')}{digest})."
    ]
    if seen := [str(name) for name in weights.get("known_classes") or ()]:
        names = ", ".join(seen[:5]) + (", ..." if seen[5:] else "")
        said.append(
            f"ImageNet, from which they learned, has {names} among its own classes, so the accuracy is too "
            "optimistic: expect less on other subjects."
        )
    return said


def describe_calibration(config: Mapping[str, Any]) -> str:
    """What the confidence of a bundle was calibrated on."""
    images = (config.get("provenance") or {}).get("calibrated_on", "validation images")
    if images == "nothing":
        return (
            "Confidence was not calibrated, because there was one image a class: do not read it as a probability."
        )
    fitted = f"Confidence was calibrated on {_escape_markdown(str(images))}"
    return f"{fitted} (temperature {float(config['temperature']):.3g}). It is valid for similar images only."


def _escape_markdown(name: str) -> str:
    """A name from the data as plain Markdown text on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~$!])", r"\\\1", " ".join(name.split())).replace("\\<", "&lt;")


def _escape_code(name: str) -> str:
    """A name from the data for a code span on one line."""
    return " ".join(name.split()).replace("`", "'")


def list_limitations(extras: Mapping[str, Any]) -> list[str]:
    """A sentence for each measured limitation, and one that names what was not measured."""
    found, unmeasured = [], []
    for name, (subject, describe) in LIMITATIONS.items():
        sentences = None
        with suppress(
            KeyError, TypeError, ValueError, AttributeError, IndexError
        ):  # a damaged file counts as none
            sentences = describe(extras[name]) if extras.get(name) else None
        if sentences:
            found += sentences
        else:
            unmeasured.append(subject)
    if unmeasured:
        names = f"{', '.join(unmeasured[:-1])}{' or ' if unmeasured[1:] else ''}{unmeasured[-1]}"
        found.append(f"Nothing was measured about {names}.")
    return found


def group_limitations(found: Mapping[str, Any]) -> list[str]:
    """The worst group of each column."""
    return [
        f"By {column}: the worst group is '{one['worst_group']}' with {format_percent(one['worst_accuracy'])}, "
        f"{format_percent(one['gap']['value'])} below the best (95 % interval "
        f"{format_interval(one['gap'], format_percent)})."
        for column, one in found.items()
        if one.get("worst_group") and one.get("gap")
    ]


def attack_limitations(found: Mapping[str, Any]) -> list[str]:
    """Accuracy under the strongest attack."""
    one = min(found["attacks"].values(), key=lambda each: each["points"][-1]["accuracy"])
    last = one["points"][-1]
    return [
        f"Under attack ({one['attack']}, {format_radius(last['eps'])} {one['norm']}) "
        f"{format_percent(last['accuracy'])} of its predictions are correct (95 % interval "
        f"{format_interval(last['intervals']['accuracy'], format_percent)})."
    ]


def corruption_limitations(found: Mapping[str, Any]) -> list[str]:
    """Mean error, and the worst corruption."""
    means = {name: sum(one["value"] for one in cells) / len(cells) for name, cells in found["corruptions"].items()}
    worst = min(means, key=means.__getitem__)
    return [
        f"On corrupted images its mean error is {format_percent(found['mean_corruption_error']['value'])}; the "
        f"worst corruption is {worst}, with an accuracy of {format_percent(means[worst])}."
    ]


LIMITATIONS = {
    "groups": ("groups of people or things", group_limitations),
    "robustness": ("adversarial attacks", attack_limitations),
    "corruptions": ("corrupted images", corruption_limitations),
}
"""Result of another verb -> its subject, and the function that writes its sentences."""
