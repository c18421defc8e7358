"""Robust accuracy: the share of images still classified correctly under an attack, over eps, with intervals."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from .. import progress
from ..attacks import Attack, check_eps, format_eps, require_gradient
from ..classifier import Classifier
from ..data import to_tensor
from ..errors import RecipeError
from ..inference import match_labels
from ..metrics import wilson
from ..types import Dataset, Findings, Interval, Remark
from .adaptive import attack_view

ATTACK_BATCH_SIZE = 250
"""Images per attacked batch."""

MAX_ATTACK_EXAMPLES = 8
"""Misclassified images kept for a picture."""

MAX_FITTING_IMAGES = 1000
"""Images that a universal perturbation is fitted on, at most."""


@dataclass(frozen=True)
class CurvePoint:
    """Robust accuracy at one eps."""

    eps: float
    accuracy: Interval
    """Share of images classified correctly, with Wilson's interval."""
    seconds: float


@dataclass(frozen=True, eq=False)
class AttackExample:
    """An image before and after a successful attack."""

    file: str
    eps: float
    original: UInt8[ndarray, "H W C"]
    attacked: Float[ndarray, "H W C"]
    """In [0, 1]: rounding to whole grey values might undo the attack."""
    label: str
    answer: str
    confidence: float


@dataclass(frozen=True, eq=False, kw_only=True)
class RobustCurve:
    """Robust accuracy of a classifier on N images under one attack."""

    attack: Attack
    points: tuple[CurvePoint, ...]
    """The first is at eps 0: the accuracy without an attack."""
    broken_eps: Float[ndarray, " N"]
    """The smallest eps tried at which each image was misclassified: 0 without an attack, inf for never."""
    examples: tuple[AttackExample, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The result at the largest eps, in words."""
        first, last = self.points[0].accuracy, self.points[-1].accuracy
        return (
            f"Of {first.n:,} images {first.value:.1%} are classified correctly; {last.value:.1%} "
            f"({last.low:.1%} to {last.high:.1%}) still are when {describe_attack(self.attack)} may change "
            f"them by {format_eps(self.points[-1].eps)} ({self.attack.norm})."
        )

    def findings(self) -> Findings:
        """Numbers for programs and sentences for people."""
        values: dict[str, Any] = {
            "attack": describe_attack(self.attack),
            "norm": self.attack.norm,
            "n": len(self.broken_eps),
            "accuracy": self.points[0].accuracy.value,
            "robust_accuracy": self.points[-1].accuracy.value,
            "eps": self.points[-1].eps,
            "points": [
                {
                    "eps": one.eps,
                    "accuracy": one.accuracy.value,
                    "intervals": {"accuracy": one.accuracy.as_json()},
                    "seconds": round(one.seconds, 3),
                }
                for one in self.points
            ],
        }
        remarks = (Remark("note", self.sentence), *(Remark("note", text) for text in self.notes))
        return Findings("robustness", values, remarks)


def describe_attack(attack: Attack) -> str:
    """The attack as Python code, with its steps and the fields that differ from their defaults.

    >>> from sightline.attacks import PGD
    >>> describe_attack(PGD(norm="l2"))
    "PGD(steps=40, norm='l2')"
    """
    made: Any = attack
    shown = [f for f in fields(made) if f.repr and (f.name == "steps" or vars(made)[f.name] != f.default)]
    return f"{type(made).__name__}({', '.join(f'{f.name}={vars(made)[f.name]!r}' for f in shown)})"


def robust_curve(
    classifier: Classifier,
    dataset: Dataset,
    attack: Attack,
    epsilons: Sequence[float],
    *,
    fit_on: Dataset | None = None,
) -> RobustCurve:
    """Attack every image at each eps, in rising order, and measure the accuracy that is left.

    An image misclassified at one eps counts as misclassified at every larger one, because the larger ball contains
    the smaller. A stochastic classifier is attacked through the mean of several draws (EOT).

    Args:
        epsilons: radii in pixels of [0, 1], in the attack's norm.
        fit_on: images that a universal perturbation is fitted on, at most 1,000 of them; by default ``dataset``.

    Raises RecipeError for an impossible eps, DataError for images that do not fit the classifier, GradientError;
    all before any work.
    """
    labels = match_labels(classifier, dataset)
    radii = sort_epsilons(epsilons)
    if attack.needs_gradient:
        require_gradient(classifier, "This attack")
    check_eps(radii[-1], to_tensor(dataset[:1]), attack.norm)
    classifier.eval()
    if classifier.stochastic:
        attack = (
            attack.without_early_stop()
        )  # as the attack does by itself: so the findings name what was carried out
    broken = np.full(len(dataset), np.inf)
    found: list[AttackExample] = []
    notes = ["The universal perturbation was fitted on the very images it was tested on."] if attack.fits else []
    if attack.fits and fit_on is not None:
        count = min(MAX_FITTING_IMAGES, len(fit_on))
        notes = [f"The universal perturbation was fitted on {count:,} other images."]
    with progress.progress_bar("Attacking", len(dataset) * (len(radii) + 1)) as advance:
        points = []
        for eps in (0.0, *radii):
            started = time.perf_counter()
            left = np.flatnonzero(np.isinf(broken))
            one = attack
            if attack.fits and eps:
                images = fit_on or dataset
                some = np.unique(np.linspace(0, len(images) - 1, MAX_FITTING_IMAGES).round().astype(np.int64))
                pixels = to_tensor(images[some], classifier.device)
                known = torch.from_numpy(match_labels(classifier, images)[some]).to(classifier.device)
                one = attack.fit(attack_view(classifier), pixels, known, eps)
            advance(len(dataset) - len(left))
            for rows in np.array_split(left, range(ATTACK_BATCH_SIZE, len(left), ATTACK_BATCH_SIZE)):
                wrong, shown = _attack_batch(
                    classifier, dataset, labels, rows, one, eps, MAX_ATTACK_EXAMPLES if eps else 0
                )
                broken[rows[wrong]] = eps
                found += shown
                advance(len(rows), f"eps {format_eps(eps)}")
            right = int(np.isinf(broken).sum())
            points.append(CurvePoint(eps, wilson(right, len(dataset)), time.perf_counter() - started))
    return RobustCurve(
        attack=attack,
        points=tuple(points),
        broken_eps=broken,
        examples=tuple(_select_examples(found)),
        notes=tuple(notes),
    )


def sort_epsilons(epsilons: Sequence[float]) -> list[float]:
    """The radii in rising order without duplicates; RecipeError unless all are above 0."""
    radii = sorted({float(eps) for eps in epsilons})
    if not radii or not radii[0] > 0:
        given = ", ".join(map(format_eps, radii)) or "nothing"
        raise RecipeError(f"eps must be above 0, such as 8/255 or 0.3, not {given}.")
    return radii


def _attack_batch(
    classifier: Classifier,
    dataset: Dataset,
    labels: Int[ndarray, " N"],
    rows: Int[ndarray, " b"],
    attack: Attack,
    eps: float,
    shown: int,
) -> tuple[ndarray, list[AttackExample]]:
    """Which of these rows are misclassified after the attack, and examples of them."""
    if not len(rows):
        return np.zeros(0, dtype=bool), []
    originals = dataset[rows]
    pixels = to_tensor(originals, classifier.device)
    truth = torch.from_numpy(labels[rows]).to(classifier.device)
    moved = attack(attack_view(classifier), pixels, truth, eps) if eps else pixels
    with torch.inference_mode():
        answers = classifier.probabilities(moved)
    wrong = (answers.argmax(1) != truth).cpu().numpy()
    examples = []
    for i in np.flatnonzero(wrong)[:shown]:
        best = int(answers[i].argmax())
        examples.append(
            AttackExample(
                file=str(dataset.files[rows[i]]),
                eps=eps,
                original=originals[i],
                attacked=moved[i].permute(1, 2, 0).cpu().numpy(),
                label=classifier.classes[int(truth[i])],
                answer=classifier.classes[best],
                confidence=float(answers[i, best]),
            )
        )
    return wrong, examples


def _select_examples(found: Sequence[AttackExample]) -> list[AttackExample]:
    """MAX_ATTACK_EXAMPLES examples of as many classes as possible, the smallest change of each class first."""
    seen: dict[str, int] = {}
    ranked = []
    for one in sorted(found, key=lambda each: each.eps):
        seen[one.label] = seen.get(one.label, 0) + 1
        ranked.append((seen[one.label], one.label, one))
    return [one for _, _, one in sorted(ranked, key=lambda each: each[:2])][:MAX_ATTACK_EXAMPLES]
