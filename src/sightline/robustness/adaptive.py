"""What a defence is worth: attacked without it in sight, with it, and averaged over what it draws."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import runtime
from ..attacks import FGSM, PGD, Attack
from ..checks import check_int
from ..classifier import Classifier
from ..errors import RecipeError
from ..layers import Network
from ..metrics import wilson
from ..preprocessing import PixelFilter, Preprocessing
from ..types import Interval

EOT_DRAWS = 10
"""Passes that an attacker of a random defence averages at each look."""


class EOTClassifier(Classifier):
    """The same classifier as an attacker of its randomness sees it: each look is the mean of ``draws`` passes.

    Its gradients are averages over as many draws: expectation over transformation (Athalye, Engstrom, Ilyas and
    Kwok 2018). Where no gradient is asked for it answers as the classifier does. It shares all of its modules.
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
        """The mean logits; a single pass where nothing is differentiated."""
        if not torch.is_grad_enabled():
            return super().forward(pixels)
        total = super().forward(pixels)
        for _ in range(self.draws - 1):
            total = total + super().forward(pixels)
        return total / self.draws


def is_stochastic_classifier(classifier: nn.Module) -> bool:
    """Whether it draws when it answers: noise at its input or in its weights."""
    return any(getattr(module, "stochastic", False) for module in classifier.modules())


def attack_view(classifier: Classifier, draws: int = EOT_DRAWS) -> Classifier:
    """The classifier as an attacker who knows it sees it: averaged where it is random, else itself."""
    return EOTClassifier(classifier, draws) if is_stochastic_classifier(classifier) else classifier


def strip_defences(classifier: Classifier) -> Classifier:
    """A copy without filters of pixels and without noise: what an attacker sees who does not know of them."""
    bare = copy.deepcopy(classifier)
    for module in bare.modules():
        if isinstance(module, Preprocessing):
            module.steps = nn.ModuleList(step for step in module.steps if not isinstance(step, PixelFilter))
        elif isinstance(module, Network):
            module.noise = None
    return bare


def has_defences(classifier: Classifier) -> bool:
    """Whether ``undefended`` would take anything away."""
    return is_stochastic_classifier(classifier) or any(
        isinstance(module, PixelFilter) for module in classifier.modules()
    )


@dataclass(frozen=True)
class AdaptiveEvaluation:
    """A classifier's accuracy on the same images, as they are and under three attackers of equal strength."""

    eps: float
    clean: Interval
    oblivious: Interval
    """Attacked through a copy without its defences."""
    adaptive: Interval
    """Attacked through them: what has no gradient passes gradients on (BPDA), what is random is drawn once."""
    eot: Interval
    """Attacked through the mean of ``draws`` draws; where nothing is random that is the one before."""
    draws: int

    @property
    def worst(self) -> Interval:
        """What the defence is worth: the least of the three."""
        return min((self.oblivious, self.adaptive, self.eot), key=lambda one: one.value)

    def as_json(self) -> dict[str, Any]:
        """The same, JSON-ready."""
        seen = {"clean": self.clean, "unaware": self.oblivious, "aware": self.adaptive, "averaged": self.eot}
        rows = {name: one.as_json() for name, one in seen.items()}
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
    """Attack the classifier three times with the same attack, each time knowing more of its defences.

    Every attacked image is answered by the whole classifier. Raises GradientError where the attack needs gradients
    and there are none.
    """
    knows = {
        "unaware": strip_defences(classifier),
        "aware": classifier,
        "averaged": EOTClassifier(classifier, draws),
    }
    by = _without_early_stop(by) if is_stochastic_classifier(classifier) else by
    right: dict[str, list[Tensor]] = {name: [] for name in ("clean", *knows)}
    with torch.random.fork_rng(devices=[]):
        runtime.seed_torch(seed)
        for rows in torch.arange(len(images)).split(batch_size):
            some, wanted = images[rows], labels[rows]
            right["clean"].append(_is_correct(classifier, some, wanted))
            for name, seen in knows.items():
                if name == "averaged" and not is_stochastic_classifier(classifier):
                    right[name].append(right["aware"][-1])
                else:
                    right[name].append(_is_correct(classifier, by(seen, some, wanted, eps), wanted))
    counted = {name: int(torch.cat(parts).sum()) for name, parts in right.items()}
    return AdaptiveEvaluation(
        eps=eps, draws=draws, **{name: wilson(c, len(images)) for name, c in counted.items()}
    )


def _without_early_stop(by: Attack) -> Attack:
    """The same attack, going on after a lucky draw."""
    return replace(by, early_stop=False) if isinstance(by, FGSM | PGD) else by


@torch.inference_mode()
def _is_correct(classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    classifier.eval()
    return (classifier(images).argmax(1) == labels).cpu()
