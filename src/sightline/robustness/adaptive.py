"""What a defence is worth: attacked by who does not know it, by who does, and through the mean of what it draws.

Also the signs that a defence only hides its gradient (Athalye et al. 2018).
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .. import runtime
from ..attacks import (
    BALLS,
    Attack,
    check_eps,
    cross_entropy_loss,
    find_attack,
    is_correct,
    loss_gradient,
    require_gradient,
)
from ..checks import check_int
from ..classifier import Classifier, frozen_eval
from ..errors import RecipeError
from ..layers import Network
from ..metrics import wilson
from ..preprocessing import PixelFilter, Preprocessing
from ..types import Interval, Remark

EOT_DRAWS = 10
"""Forward passes that an adaptive attack on a stochastic classifier averages at each step."""

MASKING_TOLERANCE = 0.03
"""Share of the images by which the stronger of two attacks may do worse, by chance."""

MASKING_QUERIES = 500
"""Queries per image of the decision attack in the checks for masked gradients."""


class EOTClassifier(Classifier):
    """Expectation over transformation: a stochastic classifier whose logits are the mean of ``draws`` passes.

    Its gradients are therefore averages over the noise (Athalye, Engstrom, Ilyas and Kwok 2018). Where no gradient
    is recorded it answers as the classifier does. It shares all modules with the classifier.
    """

    def __init__(self, classifier: Classifier, draws: int = EOT_DRAWS) -> None:
        super().__init__(
            classifier.preprocessing,
            classifier.network,
            architecture=classifier.architecture,
            classes=classifier.classes,
            geometry=classifier.geometry,
            temperature=classifier.temperature,
            provenance=classifier.provenance,
        )
        self.draws = check_int("draws", draws, 1, error=RecipeError)
        self.training = classifier.training

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The mean logits; a single pass where no gradient is recorded."""
        if not torch.is_grad_enabled():
            return super().forward(pixels)
        total = super().forward(pixels)
        for _ in range(self.draws - 1):
            total = total + super().forward(pixels)
        return total / self.draws


def attack_view(classifier: Classifier, draws: int = EOT_DRAWS) -> Classifier:
    """The classifier that an adaptive attack should use: averaged (EOT) if it is stochastic, else unchanged."""
    return EOTClassifier(classifier, draws) if classifier.stochastic else classifier


def strip_defences(classifier: Classifier) -> Classifier:
    """A copy without pixel filters and weight noise: what an attacker sees who does not know of them."""
    bare = copy.deepcopy(classifier)
    for module in bare.modules():
        if isinstance(module, Preprocessing):
            module.steps = nn.ModuleList(step for step in module.steps if not isinstance(step, PixelFilter))
        elif isinstance(module, Network):
            module.noise = None
    return bare


@dataclass(frozen=True)
class AdaptiveEvaluation:
    """Accuracy on the same images, without an attack and under three attackers of equal strength."""

    eps: float
    clean: Interval
    oblivious: Interval
    """Attacked through a copy without its defences."""
    adaptive: Interval
    """Attacked through them: BPDA where a filter has no gradient, one draw where it is random."""
    eot: Interval
    """Attacked through the mean of ``draws`` passes; equal to ``adaptive`` for a deterministic classifier."""
    draws: int

    @property
    def worst(self) -> Interval:
        """What the defence is worth: the lowest of the three."""
        return min((self.oblivious, self.adaptive, self.eot), key=lambda one: one.value)

    def as_json(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        rows = {name: getattr(self, name).as_json() for name in ("clean", "oblivious", "adaptive", "eot")}
        return {"eps": self.eps, "draws": self.draws, "n": self.clean.n, **rows}


def evaluate_adaptive(
    classifier: Classifier,
    images: Float[Tensor, "B C H W"],
    labels: Int[Tensor, " B"],
    eps: float,
    by: Attack,
    *,
    draws: int = EOT_DRAWS,
    batch_size: int = 256,
    seed: int = 0,
) -> AdaptiveEvaluation:
    """Attack the classifier three times with the same attack, each time knowing more about its defences.

    Every attacked image is classified by the whole classifier. ``draws`` passes are averaged by the third
    attacker. torch's global generator is seeded with ``seed`` meanwhile. Raises GradientError where the attack
    needs gradients and there are none.
    """
    views = {
        "oblivious": strip_defences(classifier),
        "adaptive": classifier,
        "eot": EOTClassifier(classifier, draws),
    }
    if classifier.stochastic:
        by = by.without_early_stop()  # through the copy without noise too, so that all three work as hard
    correct: dict[str, list[Tensor]] = {name: [] for name in ("clean", *views)}
    classifier.eval()
    with torch.random.fork_rng(devices=[]):
        runtime.seed_torch(seed)
        for rows in torch.arange(len(images)).split(batch_size):
            some, wanted = images[rows], labels[rows]
            correct["clean"].append(is_correct(classifier, some, wanted))
            for name, view in views.items():
                if name == "eot" and not classifier.stochastic:
                    correct[name].append(correct["adaptive"][-1])
                else:
                    correct[name].append(is_correct(classifier, by(view, some, wanted, eps), wanted))
    counted = {name: int(torch.cat(parts).sum()) for name, parts in correct.items()}
    return AdaptiveEvaluation(
        eps=eps, draws=draws, **{name: wilson(c, len(images)) for name, c in counted.items()}
    )


@dataclass(frozen=True)
class MaskingCheck:
    """One thing that holds where gradients are not masked."""

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
    """Compare attacks of different strength on the correctly classified images; a failed check suggests masking.

    The attacks are the family's first of each kind. A stronger attack may leave up to 3 % of the images (at least
    one) more correct than a weaker one. Passing proves nothing: only the usual faults are found. Raises
    GradientError, and RecipeError for an impossible eps.
    """
    check_eps(eps, images, norm)
    require_gradient(classifier, "A check for masked gradients")
    with frozen_eval(classifier):
        good = is_correct(classifier, images, labels)
    images, labels = images[good], labels[good]
    n = len(images)
    if not n or not eps:
        return ()

    def attack(kind: str, reach: float = eps, **fields: Any) -> Bool[Tensor, " B"] | None:
        by = find_attack(kind, norm=norm, seed=seed, **fields)
        if by is None:
            return None
        with frozen_eval(classifier):
            return is_correct(classifier, by(attack_view(classifier), images, labels, reach), labels)

    def count(correct: Bool[Tensor, " B"] | None) -> int:
        return 0 if correct is None else int(correct.sum())

    slack = max(1.0, MASKING_TOLERANCE * n)
    strong = attack("iterative", steps=40)
    assert strong is not None
    left = count(strong)
    weaker = (
        ("many steps beat one", "FGSM", attack("one-step")),
        ("more steps do not hurt", "PGD-10", attack("iterative", steps=10)),
        ("an attack beats noise", "noise", attack("noise", tries=10)),
    )
    checks = [
        MaskingCheck(
            name, left <= count(weak) + slack, f"PGD-40 leaves {left} images right, {word} {count(weak)}."
        )
        for name, word, weak in weaker
        if weak is not None
    ]
    huge = count(attack("iterative", BALLS[norm].max_eps(images), steps=40))
    with frozen_eval(classifier):
        slope, _, _ = loss_gradient(classifier, images.clone(), labels, cross_entropy_loss)
    steepest = slope.abs().amax((1, 2, 3))
    flat = int((~(steepest > 0) | ~torch.isfinite(steepest)).sum())
    checks += [
        MaskingCheck(
            "a huge eps breaks everything",
            huge <= slack,
            f"With every image within reach PGD-40 leaves {huge} of {n} right.",
        ),
        MaskingCheck("there are gradients", flat <= slack, f"{flat} of {n} images have a gradient of 0 or none."),
    ]
    images, labels = images[strong], labels[strong]  # hundreds of queries an image, only where they can matter
    if find_attack("decision", norm=norm) is not None:
        beaten = left - count(attack("decision", queries=MASKING_QUERIES)) if left else 0
        checks.append(
            MaskingCheck(
                "answers alone do not beat gradients",
                beaten <= slack,
                f"An attack that only asks for answers fools {beaten} of the {left} images that PGD-40 leaves "
                "right.",
            )
        )
    return tuple(checks)


def masking_remarks(checks: tuple[MaskingCheck, ...]) -> tuple[Remark, ...]:
    """A warning that names the failed checks; nothing where all passed."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return ()
    reasons = " ".join(check.sentence for check in failed)
    return (
        Remark(
            "warning",
            "The gradients of this classifier look masked, so its accuracy under gradient attacks is too "
            f"optimistic: {reasons} Attack it with --by apgd and --by rays too, and believe the lowest number.",
        ),
    )
