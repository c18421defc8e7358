"""Limits in words, made from what was measured: of groups, attacks and bad pictures."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .trust import pixels
from .words import share, spelled


def known_limits(extras: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing another verb found, and one for what nobody looked at."""
    said, silent = [], []
    for name, (what, words) in LIMITS.items():
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


def _groups(found: Mapping[str, Any]) -> list[str]:
    return [
        f"By {column}: worst is '{one['worst_group']}' with {share(one['worst_accuracy'])}, "
        f"{share(one['gap']['value'])} below the best (interval {spelled(one['gap'], share)})."
        for column, one in found.items()
        if one.get("worst_group") and one.get("gap")
    ]


def _attacks(found: Mapping[str, Any]) -> list[str]:
    one = min(found["attacks"].values(), key=lambda each: each["points"][-1]["accuracy"])
    last = one["points"][-1]
    return [
        f"Under attack ({one['attack']}, {pixels(last['eps'])} {one['norm']}) {share(last['accuracy'])} of the "
        f"answers stay right ({spelled(last, share)})."
    ]


def _corruptions(found: Mapping[str, Any]) -> list[str]:
    means = {name: sum(one["value"] for one in cells) / len(cells) for name, cells in found["corruptions"].items()}
    worst = min(means, key=means.__getitem__)
    return [
        f"On damaged images it errs in {share(found['mean_corruption_error']['value'])} of the cases on average; "
        f"worst is {worst}, where {share(means[worst])} are right."
    ]


LIMITS = {
    "groups": ("groups of people or things", _groups),
    "robustness": ("deliberate attacks", _attacks),
    "corruptions": ("damaged images", _corruptions),
}
"""What another verb found -> what it is about, and its sentences."""
