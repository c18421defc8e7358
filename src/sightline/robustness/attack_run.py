"""Attacking a run: the curve over eps, whether to believe it, and a picture, written where the page finds them."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import progress
from ..attacks import Attack, format_eps, make_attack, parse_eps, require_gradient
from ..classifier import Classifier
from ..data import to_tensor
from ..errors import RecipeError
from ..files import atomic_replace, write_json
from ..inference import match_labels
from ..runs import Subject, open_subject, sample_images
from ..types import Findings
from .masking import check_masking, masking_remarks
from .plots import draw_robustness
from .robust_accuracy import RobustCurve, describe_attack, robust_curve, sort_epsilons

ROBUSTNESS_FILE, ROBUSTNESS_PICTURE = "robustness.json", "robustness.png"

MAX_MASKING_IMAGES = 100
"""Images on which masking is looked for."""

Epsilons = str | float | Sequence[float]


def attack_run(
    run: Path | str,
    data: str | None = None,
    *,
    by: str | Attack = "pgd",
    eps: Epsilons = 8 / 255,
    limit: int | None = 1000,
    checks: bool = True,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
) -> Findings:
    """Robust accuracy of a run (or bundle) on its test images (or those of ``data``), about ``limit`` of them.

    ``eps`` is in pixels of [0, 1]: one (8 / 255, or "8/255"), of which a quarter and a half are measured too, or
    several ("2/255,8/255"). With ``checks`` also signs of masked gradients are looked for. A run keeps the
    numbers, attack by attack, in ``robustness.json``, and the last picture in ``robustness.png``; ``out`` gets the
    picture too. Raises SightlineError, each with its remedy, before any work where it cannot be done.
    """
    chosen, radii = make_attack(by), parse_epsilons(eps)
    if chosen.needs_gradient:
        require_gradient(Classifier.load(run), type(chosen).__name__)
    subject = open_subject(run, data, limit=limit, seed=seed, device=device)
    at = ", ".join(map(format_eps, radii))
    progress.notify(
        f"Attacking {len(subject.images):,} images by {describe_attack(chosen)} at eps {at} ({chosen.norm})."
    )
    curve = robust_curve(subject.classifier, subject.images, chosen, radii, fit_on=subject.validation)
    found = _add_masking_checks(curve, subject, seed) if checks else curve.findings()
    found = replace(found, values={**found.values, "sample": subject.sentence})
    _write_results(subject.run and subject.run.folder, found, curve, out)
    return found


def parse_epsilons(eps: Epsilons) -> list[float]:
    """The radii meant: of a single one also a quarter and a half. Raises RecipeError for what is no radius.

    >>> epsilons("0.3")
    [0.075, 0.15, 0.3]
    """
    if isinstance(eps, str):
        given = [parse_eps(word) for word in eps.split(",") if word.strip()]
    else:
        given = [float(eps)] if isinstance(eps, int | float) else [float(one) for one in eps]
    for one in given:
        if not 0 <= one < float("inf"):
            raise RecipeError(f"eps is {one:g}: it must be above 0, such as 8/255 or 0.3.")
    radii = sort_epsilons(given)
    return radii if len(given) > 1 else [radii[0] / 4, radii[0] / 2, radii[0]]


def _add_masking_checks(curve: RobustCurve, subject: Subject, seed: int) -> Findings:
    """The curve's findings with what the checks for masking say, at the largest eps."""
    found, classifier = curve.findings(), subject.classifier
    if not classifier.differentiable:
        return found
    some, _ = sample_images(subject.images, MAX_MASKING_IMAGES, seed)
    images = to_tensor(some[np.arange(len(some))], classifier.device)
    labels = torch.from_numpy(match_labels(classifier, some)).to(classifier.device)
    progress.notify(f"Looking for signs of masked gradients on {len(some)} of them (--no-checks leaves it out).")
    checks = check_masking(classifier, images, labels, curve.points[-1].eps, norm=curve.attack.norm, seed=seed)
    said = masking_remarks(checks)
    values = {"masking": {"n": len(some), "suspected": bool(said), "checks": [one.as_json() for one in checks]}}
    return replace(found, values={**found.values, **values}, remarks=(*found.remarks, *said))


def load_robustness(folder: Path) -> dict[str, Any]:
    """What a run's ``robustness.json`` holds, by attack; empty where there is none to read."""
    with suppress(OSError, ValueError):
        content = json.loads((folder / ROBUSTNESS_FILE).read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("attacks"), dict):
            return content["attacks"]
    return {}


def findings_json(found: Findings) -> Mapping[str, Any]:
    """The findings as one object."""
    return {**found.values, "remarks": [vars(remark) for remark in found.remarks]}


def _write_results(folder: Path | None, found: Findings, curve: RobustCurve, out: Path | None) -> None:
    places = [*([folder / ROBUSTNESS_PICTURE] if folder else []), *([out] if out else [])]
    picture = draw_robustness(curve)
    for place in places:
        with atomic_replace(place) as temporary:
            picture.save(temporary)
    if folder is not None:
        attacks = {**load_robustness(folder), found.values["attack"]: dict(findings_json(found))}
        write_json(folder / ROBUSTNESS_FILE, {"attacks": attacks})
