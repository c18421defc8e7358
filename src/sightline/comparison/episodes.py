"""Episodes: how well unseen classes are distinguished from a few images of each, on features that are computed."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy import ndarray

from ..errors import DataError, RecipeError
from ..layers import PrototypeHead
from ..training import HeadMethod
from ..types import Interval

EpisodeClassifier = Callable[
    [Float[ndarray, "S D"], Int[ndarray, " S"], Float[ndarray, "Q D"]], Int[ndarray, " Q"]
]
"""(support, its labels in [0, ways), queries) -> the answers."""


def measure_episodes(
    features: Float[ndarray, "N D"],
    labels: Int[ndarray, " N"],
    classifiers: Mapping[str, EpisodeClassifier],
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
) -> dict[str, Interval]:
    """Mean accuracy of each classifier over the same episodes, with its 95 % interval (1.96 sd / sqrt(episodes)).

    An episode draws ``ways`` classes, ``shots`` images of each to learn from and ``queries`` others of each to
    answer (Vinyals et al. 2016). The interval is over episodes of these features: not over trainings of the network,
    and too small where the classes are few, because episodes then share them. Raises RecipeError for impossible
    numbers, DataError where the classes or their images are too few.
    """
    if ways < 2 or min(shots, queries) < 1 or episodes < 2:
        raise RecipeError("An episode has at least 2 ways, 1 shot and 1 query, and a mean needs 2 episodes.")
    places = [np.flatnonzero(labels == label) for label in np.unique(labels[labels >= 0])]
    places = [place for place in places if len(place) >= shots + queries]
    if len(places) < ways:
        raise DataError(
            f"Only {len(places)} classes have the {shots + queries} images that an episode of {shots} shots and "
            f"{queries} queries takes, but it has {ways} ways: ask for fewer, or add images."
        )
    rng = np.random.default_rng(seed)
    rates = {name: np.empty(episodes) for name in classifiers}
    support, wanted = np.repeat(np.arange(ways), shots), np.repeat(np.arange(ways), queries)
    for episode in range(episodes):
        classes = rng.choice(len(places), ways, replace=False)
        drawn = np.stack([rng.choice(places[one], shots + queries, replace=False) for one in classes])
        shown, asked = features[drawn[:, :shots].ravel()], features[drawn[:, shots:].ravel()]
        for name, classify in classifiers.items():
            rates[name][episode] = (classify(shown, support, asked) == wanted).mean()
    return {name: interval_over_draws(found) for name, found in rates.items()}


def interval_over_draws(rates: Float[ndarray, " E"]) -> Interval:
    """The mean rate of E independent draws with its 95 % interval by the normal distribution, within [0, 1]."""
    mean, half = float(np.mean(rates)), 1.96 * float(np.std(rates, ddof=1)) / len(rates) ** 0.5
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half), len(rates))


def classify_by_head(head: HeadMethod, centre: Float[ndarray, " D"] | None = None) -> EpisodeClassifier:
    """The classifier of an episode whose last layer ``head`` computes, on features as a run prepares them.

    ``centre`` is the mean feature of unlabelled photos, as a run with ``--unlabelled`` has it.
    """

    def classify(support, labels, queries):
        ways = int(labels.max()) + 1
        layer = PrototypeHead(support.shape[1], ways, normalise=head.normalises or centre is not None)
        if centre is not None:
            layer.centre.copy_(torch.from_numpy(centre))
        shown, asked = (layer.prepare(torch.from_numpy(each)) for each in (support, queries))
        fitted = head.fit(shown.numpy(), labels, ways, seed=0)
        return F.linear(asked, fitted.weight, fitted.bias).argmax(1).numpy()

    return classify
