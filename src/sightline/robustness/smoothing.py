"""Randomised smoothing: answers that no change within a certified radius can alter, with a bounded error rate."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from .. import progress, runtime
from ..classifier import Classifier
from ..errors import RecipeError
from ..metrics import wilson
from ..types import Interval
from .adaptive import strip_defences

ABSTAINS = -1
"""Answer of a smoothed classifier that abstains, in place of a class index."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """The smoothed classifier's answers to N images and their certified radii.

    g(x) = the most probable answer to x + sigma n, n ~ N(0, I). With probability 1 - ``alpha`` for each image,
    g(x + d) = ``answers`` for every change d of L2 length below ``radii``.
    """

    answers: Int[ndarray, " N"]
    """Class index, or ``ABSTAINS``."""
    radii: Float[ndarray, " N"]
    """L2, in pixels of [0, 1]; 0 where it abstains."""
    sigma: float
    draws: int
    alpha: float

    def accuracy(self, labels: Int[ndarray, " N"], radius: float = 0.0) -> Interval:
        """Certified accuracy: the share of images classified correctly under every change up to ``radius``."""
        held = (self.answers == labels) & (self.radii >= radius)
        return wilson(int(held.sum()), len(labels))


def certify(
    classifier: Classifier,
    images: Float[Tensor, "N C H W"],
    *,
    sigma: float | None = None,
    draws: int = 1000,
    first: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 256,
) -> Certificate:
    """The smoothed answer to each image and its certified radius: Cohen, Rosenfeld and Kolter 2019, algorithm 2.

    Args: sigma: standard deviation of the noise in pixels of [0, 1], by default that of the classifier's noise
        filter, which is removed meanwhile. draws: noisy copies that bound the probability of the class. first:
        other noisy copies that choose the class. alpha: probability per image that its certificate is wrong.

    Raises RecipeError for impossible arguments and for a classifier without noise where ``sigma`` is None.
    """
    sigma = _resolve_sigma(classifier, sigma, draws, first, alpha)
    bare = strip_defences(classifier).eval()
    answers, radii = np.full(len(images), ABSTAINS), np.zeros(len(images))
    with progress.progress_bar("Certifying", len(images)) as advance:
        for i, image in enumerate(images):
            chance = runtime.make_generator(seed, i)
            guess = int(_count_votes(bare, image, sigma, first, chance, batch_size).argmax())
            count = int(_count_votes(bare, image, sigma, draws, chance, batch_size)[guess])
            least = clopper_pearson_lower(count, draws, alpha)
            if least > 0.5:
                answers[i], radii[i] = guess, certified_radius(sigma, least)
            advance()
    return Certificate(answers, radii, sigma, draws, alpha)


def predict_smoothed(
    classifier: Classifier,
    images: Float[Tensor, "N C H W"],
    *,
    sigma: float | None = None,
    draws: int = 100,
    alpha: float = 0.001,
    seed: int = 0,
    batch_size: int = 256,
) -> Int[ndarray, " N"]:
    """The smoothed answers without radii: algorithm 1, PREDICT. Arguments and errors as for ``certify``.

    ``ABSTAINS`` where the two most frequent classes cannot be distinguished; another answer is not the most probable
    class with a probability of at most ``alpha``.
    """
    from scipy.stats import binomtest

    sigma = _resolve_sigma(classifier, sigma, draws, 1, alpha)
    bare = strip_defences(classifier).eval()
    answers = np.full(len(images), ABSTAINS)
    for i, image in enumerate(images):
        votes = _count_votes(bare, image, sigma, draws, runtime.make_generator(seed, i), batch_size)
        best, second = np.argsort(-votes, kind="stable")[:2]
        most, next_most = int(votes[best]), int(votes[second])
        if binomtest(most, most + next_most, 0.5).pvalue <= alpha:
            answers[i] = best
    return answers


def clopper_pearson_lower(count: int, n: int, alpha: float) -> float:
    """The lower Clopper-Pearson bound: the p at which ``count`` or more of n successes have probability alpha."""
    from scipy.special import betaincinv

    return float(betaincinv(count, n - count + 1, alpha)) if count else 0.0


def certified_radius(sigma: float, p: float) -> float:
    """``sigma Phi^-1(p)``: the L2 radius of an answer of probability at least p (Cohen et al., equation 3)."""
    from scipy.special import ndtri

    return max(0.0, sigma * float(ndtri(p)))


@torch.inference_mode()
def _count_votes(
    classifier: Classifier,
    image: Float[Tensor, "C H W"],
    sigma: float,
    count: int,
    generator: torch.Generator,
    batch_size: int,
) -> Int[ndarray, " K"]:
    """How often each class is the answer to ``count`` noisy copies of the image, not clipped to [0, 1]."""
    votes, device = np.zeros(len(classifier.classes), np.int64), classifier.device
    for start in range(0, count, batch_size):
        shape = (min(batch_size, count - start), *image.shape)
        noisy = image.to(device) + sigma * torch.randn(shape, generator=generator).to(device)
        votes += np.bincount(classifier(noisy).argmax(1).cpu().numpy(), minlength=len(votes))
    return votes


def _resolve_sigma(classifier: Classifier, sigma: float | None, draws: int, first: int, alpha: float) -> float:
    """``sigma``, or that of the classifier's noise filter; RecipeError for impossible arguments."""
    sigmas = [
        getattr(step, "sigma", None)
        for step in classifier.preprocessing.steps
        if getattr(step, "stochastic", False)
    ]
    own = [each for each in sigmas if isinstance(each, float)]
    if sigma is None and not own:
        raise RecipeError(
            "This classifier has no noise filter whose sigma could be used: give sigma, such as 0.25, and train "
            "the classifier for that noise with --normalize noise:0.25+fitted."
        )
    chosen = own[0] if sigma is None else sigma
    if not 0 < chosen <= 10:
        raise RecipeError(f"sigma is {chosen}: it must be a number of pixels above 0, such as 0.25.")
    if min(draws, first) < 1 or not 0 < alpha < 0.5:
        raise RecipeError(
            f"draws ({draws}) and first ({first}) must be at least 1, and alpha ({alpha}) between 0 and 0.5."
        )
    return chosen
