"""Limits in words, made from what was measured: of groups, attacks and bad pictures."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .formatting import format_interval, format_percent
from .sections import format_radius


def list_limitations(extras: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing another verb found, and one for what nobody looked at."""
    said, silent = [], []
    for name, (what, words) in LIMITATIONS.items():
        found = None
        with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):  # damaged: as if not measured
            found = words(extras[name]) if extras.get(name) else None
        if found:
            said += found
        else:
            silent.append(what)
    if silent:
        said.append(
            f"Nothing was measured about {', '.join(silent[:-1])}{' or ' if silent[1:] else ''}{silent[-1]}."
        )
    return said


def _group_limitations(found: Mapping[str, Any]) -> list[str]:
    return [
        f"By {column}: worst is '{one['worst_group']}' with {format_percent(one['worst_accuracy'])}, "
        f"{format_percent(one['gap']['value'])} below the best (interval {format_interval(one['gap'], format_percent)})."
        for column, one in found.items()
        if one.get("worst_group") and one.get("gap")
    ]


def _attack_limitations(found: Mapping[str, Any]) -> list[str]:
    one = min(found["attacks"].values(), key=lambda each: each["points"][-1]["accuracy"])
    last = one["points"][-1]
    return [
        f"Under attack ({one['attack']}, {format_radius(last['eps'])} {one['norm']}) {format_percent(last['accuracy'])} of the "
        f"answers stay right ({format_interval(last['intervals']['accuracy'], format_percent)})."
    ]


def _corruption_limitations(found: Mapping[str, Any]) -> list[str]:
    means = {name: sum(one["value"] for one in cells) / len(cells) for name, cells in found["corruptions"].items()}
    worst = min(means, key=means.__getitem__)
    return [
        f"On damaged images it errs in {format_percent(found['mean_corruption_error']['value'])} of the cases on average; "
        f"worst is {worst}, where {format_percent(means[worst])} are right."
    ]


LIMITATIONS = {
    "groups": ("groups of people or things", _group_limitations),
    "robustness": ("deliberate attacks", _attack_limitations),
    "corruptions": ("damaged images", _corruption_limitations),
}
"""What another verb found -> what it is about, and its sentences."""
