"""Is a robust accuracy to be believed? Signs that a defence only hides its gradient (Athalye et al. 2018)."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..attacks import (
    BALLS,
    FGSM,
    PGD,
    Attack,
    RandomNoise,
    RayS,
    check_eps,
    cross_entropy_loss,
    is_correct,
    loss_gradient,
    require_gradient,
)
from ..classifier import Classifier, frozen_eval
from ..types import Remark
from .adaptive import attack_view

MASKING_TOLERANCE = 0.03
"""Share of the images by which the stronger attack may do worse, by chance."""

MASKING_QUERIES = 500
"""Answers that the black-box attack may ask for about one image."""


@dataclass(frozen=True)
class MaskingCheck:
    """One thing that holds where gradients tell the truth."""

    name: str
    passed: bool
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return vars(self).copy()


def check_masking(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, " B"],
    eps: float,
    *,
    norm: str = "linf",
    seed: int = 0,
) -> tuple[MaskingCheck, ...]:
    """What must hold of attacks on these images, those answered rightly: a failed check is a sign of masking.

    A stronger attack may leave up to 3 % of the images (at least one) more than a weaker one. Passing proves
    nothing: it only finds the usual faults. Raises GradientError, and RecipeError for an impossible eps.
    """
    check_eps(eps, images, norm)
    require_gradient(classifier, "A check for masked gradients")
    with frozen_eval(classifier):
        good = is_correct(classifier, images, labels)
    images, labels = images[good], labels[good]
    n = len(images)
    if not n or not eps:
        return ()
    most = BALLS[norm].max_eps(images)

    def after(attack: Attack, reach: float = eps) -> Bool[Tensor, " B"]:
        with frozen_eval(classifier):
            return is_correct(classifier, attack(attack_view(classifier), images, labels, reach), labels)

    slack = max(1.0, MASKING_TOLERANCE * n)
    strong = after(PGD(steps=40, norm=norm, seed=seed))
    counts = {
        "fgsm": after(FGSM(norm=norm)),
        "few": after(PGD(steps=10, norm=norm, seed=seed)),
        "noise": after(RandomNoise(tries=10, norm=norm, seed=seed)),
        "huge": after(PGD(steps=40, norm=norm, seed=seed), most),
    }
    left = {name: int(found.sum()) for name, found in counts.items()} | {"strong": int(strong.sum())}
    flat = _count_flat(classifier, images, labels)
    checks = [
        _compare_attacks(
            "many steps beat one", left["strong"] <= left["fgsm"] + slack, "PGD-40", "FGSM", left, "fgsm"
        ),
        _compare_attacks(
            "more steps do not hurt", left["strong"] <= left["few"] + slack, "PGD-40", "PGD-10", left, "few"
        ),
        _compare_attacks(
            "an attack beats noise", left["strong"] <= left["noise"] + slack, "PGD-40", "noise", left, "noise"
        ),
        MaskingCheck(
            "a huge eps breaks everything",
            left["huge"] <= slack,
            f"With every image within reach PGD-40 leaves {left['huge']} of {n} right.",
        ),
        MaskingCheck("there are gradients", flat <= slack, f"{flat} of {n} images have a gradient of 0 or none."),
    ]
    if norm == "linf":
        beaten = strong & ~after(RayS(queries=MASKING_QUERIES))
        checks.append(
            MaskingCheck(
                "answers alone do not beat gradients",
                int(beaten.sum()) <= slack,
                f"An attack that only asks for answers fools {int(beaten.sum())} of the {left['strong']} images "
                "that PGD-40 left right.",
            )
        )
    return tuple(checks)


def masking_remarks(checks: tuple[MaskingCheck, ...]) -> tuple[Remark, ...]:
    """A warning for what failed; nothing where nothing did."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return ()
    reasons = " ".join(check.sentence for check in failed)
    return (
        Remark(
            "warning",
            "The gradients of this classifier look masked, so its accuracy under gradient attacks flatters: "
            f"{reasons} Attack it with --by apgd and --by rays too, and believe the lowest number.",
        ),
    )


def _compare_attacks(
    name: str, passed: bool, strong: str, weak: str, left: dict[str, int], key: str
) -> MaskingCheck:
    return MaskingCheck(name, passed, f"{strong} leaves {left['strong']} images right, {weak} {left[key]}.")


def _count_flat(classifier: Classifier, images: Tensor, labels: Tensor) -> int:
    """Images whose loss has no slope at all, or one that is no number."""
    with frozen_eval(classifier):
        slope, _, _ = loss_gradient(classifier, images.clone(), labels, cross_entropy_loss)
    steepest = slope.abs().amax((1, 2, 3))
    return int((~(steepest > 0) | ~torch.isfinite(steepest)).sum())
