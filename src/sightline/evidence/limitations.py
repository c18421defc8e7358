"""Limitations of a classifier in sentences, from what was measured: groups, attacks, corruptions."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .formatting import format_interval, format_percent
from .sections import format_radius


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
