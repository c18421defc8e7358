"""Attack a run: robust accuracy over eps, checks for masked gradients, and a picture, written into the run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from .. import progress
from ..attacks import Attack, format_eps, make_attack, parse_eps, require_gradient
from ..classifier import Classifier
from ..data import to_tensor
from ..errors import RecipeError
from ..files import atomic_replace, read_json_object, write_json
from ..inference import match_labels
from ..pictures import PALETTE, contact_sheet
from ..runs import Subject, open_subject, sample_images
from ..types import Findings
from .adaptive import check_masking, masking_remarks
from .robust_accuracy import AttackExample, RobustCurve, describe_attack, robust_curve, sort_epsilons

if TYPE_CHECKING:
    from PIL.Image import Image

ROBUSTNESS_FILE, ROBUSTNESS_PICTURE = "robustness.json", "robustness.png"

MAX_MASKING_IMAGES = 100
"""Images that the checks for masked gradients use, at most."""

EXAMPLE_CELL = 112
"""Side of an example image in the picture, in pixels."""

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
    """Measure the robust accuracy of a run or bundle, on its own test images or on those of ``data``.

    Args: by: an attack, or its name with arguments: "pgd:40:restarts=5". eps: radii in pixels of [0, 1]. For a
        single one (8 / 255, or "8/255") a quarter and a half of it are measured too; several are given as
        "2/255,8/255". limit: about how many images, each class in its share; None for all. checks: also look for
        signs of masked gradients. out: a file for the picture.

    A run keeps the figures of each attack in ``robustness.json`` and the last picture in ``robustness.png``.
    Raises SightlineError before any work.
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
    folder, picture = subject.run and subject.run.folder, draw_robustness(curve)
    for place in [*([folder / ROBUSTNESS_PICTURE] if folder else []), *([out] if out else [])]:
        with atomic_replace(place) as temporary:
            picture.save(temporary)
    if folder is not None:  # the figures stand next to those of other attacks
        attacks = read_json_object(folder / ROBUSTNESS_FILE).get("attacks")
        attacks = attacks if isinstance(attacks, dict) else {}
        attacks[found.values["attack"]] = {**found.values, "remarks": [vars(remark) for remark in found.remarks]}
        write_json(folder / ROBUSTNESS_FILE, {"attacks": attacks})
    return found


def parse_epsilons(eps: Epsilons) -> list[float]:
    """The radii in rising order; for a single one a quarter and a half of it too. RecipeError for no radius.

    >>> parse_epsilons("0.3")
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
    """The curve's findings and those of the checks for masked gradients, at the largest eps."""
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


def draw_robustness(curve: RobustCurve) -> "Image":
    """The robust accuracy over eps and, below it, misclassified images: before, the enlarged change, after."""
    from PIL import Image

    above = draw_robust_curve(curve)
    if not curve.examples:
        return above
    below = draw_examples(curve.examples)
    width = max(above.width, below.width)
    whole = Image.new("RGB", (width, above.height + below.height), PALETTE["paper"])
    whole.paste(above, (0, 0))
    whole.paste(below, (0, above.height))
    return whole


def draw_examples(examples: tuple[AttackExample, ...]) -> "Image":
    """Three rows: the images, their changes (grey is none, black and white the largest), the attacked images."""
    shown = list(examples)
    enlarged = []
    for one in shown:
        change: Float[ndarray, "H W C"] = one.attacked - one.original.astype(np.float32) / 255
        most = max(float(np.abs(change).max()), 1e-6)
        enlarged.append(((change / most + 1) / 2 * 255).round().astype(np.uint8))
    after = [(one.attacked * 255).round().astype(np.uint8) for one in shown]
    captions = [one.label for one in shown]
    captions += [f"eps {format_eps(one.eps)}" for one in shown]
    captions += [one.label for one in shown]
    notes = ["" for _ in range(2 * len(shown))] + [f"→ {one.answer} ({one.confidence:.0%})" for one in shown]
    images = [*(one.original for one in shown), *enlarged, *after]
    return contact_sheet(images, captions, columns=len(shown), cell=EXAMPLE_CELL, notes=notes)


def draw_robust_curve(curve: RobustCurve) -> "Image":
    """Robust accuracy over eps with its 95 % intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(6.2, 3.0), dpi=144, layout="constrained", facecolor=PALETTE["paper"])
    panel = figure.subplots()
    radii = [one.eps for one in curve.points]
    values = [one.accuracy.value for one in curve.points]
    low = [one.accuracy.low for one in curve.points]
    high = [one.accuracy.high for one in curve.points]
    panel.fill_between(radii, low, high, color=PALETTE["blue"], alpha=0.18, linewidth=0, label="95 % interval")
    panel.plot(radii, values, color=PALETTE["blue"], marker="o", markersize=5, label="classified correctly")
    panel.set_xticks(radii, [format_eps(one) for one in radii])
    panel.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.4g} %")
    what = "largest change of a pixel" if curve.attack.norm == "linf" else "length of the change"
    panel.set(xlabel=f"{what} (eps)", ylim=(0, 1.02))
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    panel.grid(axis="y", color=PALETTE["line"], linewidth=0.7)
    panel.legend(frameon=False, fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
