"""Which answers deserve a person's minute: a family of reasons, each of which picks among the latest answers.

A good classifier and some hundred labels a week: what pays are its close calls, thinned (Cluster-Margin, Citovsky et
al. 2021), things far from every class in clusters, what a drift brought, and a random share that alone says how good
it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from ..journal import draw_number

MAX_CLUSTERED = 400
"""Answers that are clustered at once; the time grows with the square."""

MAX_FOLLOWERS = 20
"""Answers that one stands for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """N answers that may be shown to a person, newest last."""

    ids: tuple[str, ...]
    probabilities: Float[ndarray, "N K"]
    """Of the classes, or of the most likely ones; two columns at least."""
    features: Float[ndarray, "N P"]
    """Whitened; without columns for a network without features."""
    distances: Float[ndarray, " N"]
    """To the nearest class mean; 0 without features."""
    far: float = np.inf
    """Distance beyond which one in a hundred of the reference images lies."""
    radius: float = 1.0
    """Median distance of the reference images to their nearest class mean."""
    abstained: Bool[ndarray, " N"]
    changed: Float[ndarray, " N"]
    """Score that separates an answer from the reference, after an alarm; minus infinity without one."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def margins(self) -> Float[ndarray, " N"]:
        """Largest minus second largest probability."""
        best = np.partition(self.probabilities, -2, axis=1)
        return best[:, -1] - best[:, -2]


@dataclass(frozen=True)
class Pick:
    """A chosen answer."""

    position: int
    chance: float = 0.0
    """Probability with which it was chosen; 0 where nothing random chose it."""
    followers: tuple[int, ...] = ()
    """Positions of answers that it stands for."""


class Reason(Protocol):
    """Why answers are shown to a person."""

    sentence: ClassVar[str]
    """What the person reads."""
    blind: ClassVar[bool]
    """Whether the answer itself is hidden: people confirm what they see."""

    @property
    def share(self) -> float:
        """Fraction of all answers that the reason takes at random; 0 where it picks among the latest."""
        return 0.0

    def pick(self, candidates: Candidates, count: int) -> Sequence[Pick]:
        """Choose at most ``count`` different answers, the most valuable first."""
        ...


@dataclass(frozen=True)
class Audit:
    """A random share of all answers, by a hash of the id, so that no one can steer it."""

    share: float = 0.01
    sentence: ClassVar[str] = "chosen at random, to measure the accuracy"
    blind: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"the share of the audit is {self.share}: it must be above 0 and at most 1")

    def pick(self, candidates: Candidates, count: int) -> Sequence[Pick]:
        """The oldest ones of the share."""
        drawn = [i for i, id in enumerate(candidates.ids) if draw_number(id) < self.share]
        return [Pick(i, self.share) for i in drawn[:count]]


@dataclass(frozen=True)
class Margin(Reason):
    """Close calls between two classes, spread over the space of features."""

    surplus: int = 5
    """Close calls that are considered for each one that is picked."""
    sentence: ClassVar[str] = "a close call between two classes"
    blind: ClassVar[bool] = False

    def pick(self, candidates: Candidates, count: int) -> Sequence[Pick]:
        """The smallest margins, thinned by k-centre."""
        order = np.argsort(candidates.margins, kind="stable")[: self.surplus * count]
        return [Pick(int(order[i])) for i in k_centre(candidates.features[order], count)]


@dataclass(frozen=True)
class Far(Reason):
    """Things far from every class, in clusters: one answer may label many."""

    sentence: ClassVar[str] = "unlike every class that it knows"
    blind: ClassVar[bool] = False

    def pick(self, candidates: Candidates, count: int) -> Sequence[Pick]:
        """The middle of each cluster, the largest cluster first."""
        order = np.argsort(-candidates.distances, kind="stable")[:MAX_CLUSTERED]
        far = order[candidates.distances[order] > candidates.far]
        found = []
        for members in cluster(candidates.features[far], np.sqrt(2) * candidates.radius):
            apart = _distances(candidates.features[far[members]], candidates.features[far[members]])
            near = members[np.argsort(apart[apart.sum(1).argmin()], kind="stable")]
            leader, *others = far[near].tolist()
            found.append(Pick(leader, followers=tuple(others[:MAX_FOLLOWERS])))
        return found[:count]


@dataclass(frozen=True)
class Drifted(Reason):
    """What is typical of a change, after the drift detector raised an alarm."""

    surplus: int = 5
    sentence: ClassVar[str] = "typical of what changed"
    blind: ClassVar[bool] = False

    def pick(self, candidates: Candidates, count: int) -> Sequence[Pick]:
        """Of the answers most unlike the reference, the one nearest to the centre of each of ``count`` clusters."""
        order = np.argsort(-candidates.changed, kind="stable")[: self.surplus * count]
        order = order[np.isfinite(candidates.changed[order])]
        if len(order) <= count or not candidates.features.shape[1]:
            return [Pick(int(i)) for i in order[:count]]
        from sklearn.cluster import KMeans

        features = candidates.features[order]
        found = KMeans(count, random_state=0).fit(features)
        apart = _distances(found.cluster_centers_, features)
        sizes = np.bincount(found.predict(features), minlength=count)
        chosen = dict.fromkeys(int(order[apart[k].argmin()]) for k in np.argsort(-sizes, kind="stable"))
        return [Pick(i) for i in chosen]


@dataclass(frozen=True)
class Abstained(Reason):
    """Answers below the classifier's threshold, spread over the space of features."""

    surplus: int = 5
    sentence: ClassVar[str] = "it did not know"
    blind: ClassVar[bool] = False

    def pick(self, candidates: Candidates, count: int) -> Sequence[Pick]:
        """The least confident ones, thinned by k-centre."""
        places = np.flatnonzero(candidates.abstained)
        confidence = candidates.probabilities[places].max(1, initial=0)
        order = places[np.argsort(confidence, kind="stable")[: self.surplus * count]]
        return [Pick(int(order[i])) for i in k_centre(candidates.features[order], count)]


REASONS: Mapping[str, type[Reason]] = {
    "audit": Audit,
    "margin": Margin,
    "far": Far,
    "drifted": Drifted,
    "abstained": Abstained,
}
"""Why an answer is shown: ``--by audit:0.02 margin``."""


def merge_picks(picks: Mapping[str, Sequence[Pick]]) -> list[tuple[str, Pick]]:
    """(reason, pick) of several reasons in turn, in the order in which they are shown; no answer twice."""
    found: list[tuple[str, Pick]] = []
    taken: set[int] = set()
    for turn in zip_longest(*([(why, one) for one in some] for why, some in picks.items())):
        for why, one in filter(None, turn):
            if one.position not in taken:
                free = tuple(i for i in one.followers if i not in taken)
                taken |= {one.position, *free}
                found.append((why, Pick(one.position, one.chance, free)))
    return found


def k_centre(features: Float[ndarray, "N P"], count: int) -> Int[ndarray, " M"]:
    """Positions of at most ``count`` rows: the first one, then always the one farthest from those chosen.

    Greedy k-centre: every row is at most twice as far from a chosen one as the best choice allows (Gonzalez 1985).
    """
    if len(features) <= count or not features.shape[1]:
        return np.arange(min(count, len(features)))
    chosen = [0]
    apart = ((features - features[0]) ** 2).sum(1)
    while len(chosen) < count:
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, ((features - features[chosen[-1]]) ** 2).sum(1))
    return np.array(chosen)


def cluster(features: Float[ndarray, "N P"], apart: float) -> list[Int[ndarray, " M"]]:
    """Rows in clusters whose members are on average less than ``apart`` from each other, the largest first."""
    if len(features) < 2 or not features.shape[1]:
        return [np.array([i]) for i in range(len(features))]
    from scipy.cluster.hierarchy import fcluster, linkage

    labels = fcluster(linkage(features, "average"), apart, "distance")
    found = [np.flatnonzero(labels == one) for one in np.unique(labels)]
    return sorted(found, key=lambda members: (-len(members), int(members[0])))


def _distances(one: Float[ndarray, "A P"], other: Float[ndarray, "B P"]) -> Float[ndarray, "A B"]:
    return ((one[:, None] - other) ** 2).sum(2) ** 0.5
