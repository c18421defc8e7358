"""Laws of every reason why an answer is shown, and what each one is for."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binom

from sightline.choose import choose
from sightline.errors import ChoiceError
from sightline.feedback import REASONS, Candidates, Pick
from sightline.feedback.selection import k_centre, merge_picks
from sightline.journal import new_prediction_id


def candidates(n, *, classes=4, dimensions=3, seed=0, **given):
    chance = np.random.default_rng(seed)
    features = chance.normal(size=(n, dimensions))
    facts = {
        "ids": tuple(new_prediction_id() for _ in range(n)),
        "probabilities": chance.dirichlet(np.full(classes, 0.5), n),
        "features": features,
        "distances": np.linalg.norm(features, axis=1) if dimensions else np.zeros(n),
        "far": 1.5,
        "abstained": chance.random(n) < 0.3,
        "changed": chance.normal(size=n),
    }
    return Candidates(**facts | given)


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize(
    ("n", "classes", "dimensions"), [(300, 4, 3), (300, 2, 0), (7, 2, 5), (1, 3, 2), (0, 2, 3)]
)
@pytest.mark.parametrize("count", [1, 10, 1000])
def test_every_reason_picks_different_answers_and_repeats_itself(name, n, classes, dimensions, count):
    given, reason = candidates(n, classes=classes, dimensions=dimensions), REASONS[name]()
    picks = reason.pick(given, count)
    assert picks == reason.pick(given, count)
    places = [one.position for one in picks] + [i for one in picks for i in one.followers]
    assert len(places) == len(set(places))
    assert all(0 <= i < n for i in places)
    assert len(picks) <= count
    assert all(0 <= one.chance <= 1 for one in picks)
    assert reason.sentence
    if name not in ("audit", "far") and n == 300:
        assert len(picks) == min(count, int(given.abstained.sum()) if name == "abstained" else count, 300)


def test_only_the_audit_is_random_and_blind():
    assert [name for name, kind in REASONS.items() if kind.blind] == ["audit"]
    given, share = candidates(3000), 0.05
    picks = REASONS["audit"](share).pick(given, 3000)
    assert {one.chance for one in picks} == {share}
    low, high = binom.ppf([1e-6, 1 - 1e-6], 3000, share)
    assert low <= len(picks) <= high
    half = REASONS["audit"](share / 2).pick(given, 3000)
    assert {one.position for one in half} < {one.position for one in picks}
    with pytest.raises(ChoiceError, match="above 0 and at most 1"):
        choose(REASONS, "audit:2", "reason")


def test_close_calls_are_the_smallest_margins():
    given = candidates(400)
    ordered = np.sort(given.probabilities, axis=1)
    smallest = np.argsort(ordered[:, -1] - ordered[:, -2])
    picks = [one.position for one in REASONS["margin"]().pick(given, 10)]
    assert picks[0] == smallest[0]
    assert set(picks) <= set(smallest[:50].tolist())
    assert {one.position for one in REASONS["margin"](surplus=1).pick(given, 10)} == set(smallest[:10].tolist())


def test_k_centre_covers_at_most_twice_as_badly_as_the_best_choice():
    features = np.random.default_rng(1).normal(size=(12, 2))
    apart = np.linalg.norm(features[:, None] - features, axis=2)
    best = min(apart[:, list(some)].min(1).max() for some in combinations(range(12), 3))
    chosen = k_centre(features, 3)
    assert len(set(chosen.tolist())) == 3
    assert apart[:, chosen].min(1).max() <= 2 * best + 1e-12


def test_one_answer_stands_for_a_cluster_of_unseen_things():
    chance = np.random.default_rng(2)
    known, first, second = (chance.normal(middle, 0.1, (n, 2)) for middle, n in ((0, 50), (8, 12), (-8, 5)))
    features = np.concatenate([known, first, second])
    given = candidates(67, dimensions=2, features=features, distances=np.linalg.norm(features, axis=1), far=1.0)
    picks = REASONS["far"]().pick(given, 10)
    assert len(picks) == 2
    groups = [{one.position, *one.followers} for one in picks]
    assert groups == [set(range(50, 62)), set(range(62, 67))]
    middle = first.mean(0)
    nearest = 50 + np.linalg.norm(first - middle, axis=1).argmin()
    assert np.linalg.norm(features[picks[0].position] - features[nearest]) < 0.1


def test_what_is_typical_of_a_change_needs_an_alarm():
    quiet = candidates(100, changed=np.full(100, -np.inf))
    assert REASONS["drifted"]().pick(quiet, 10) == []
    changed = np.where(np.arange(100) < 60, -5.0, 5.0)
    picks = REASONS["drifted"](surplus=4).pick(candidates(100, changed=changed), 10)
    assert all(one.position >= 60 for one in picks)


def test_reasons_take_turns_and_no_answer_is_shown_twice():
    found = merge_picks(
        {"audit": [Pick(3, 0.01)], "far": [Pick(1, 0, (3, 4)), Pick(4)], "margin": [Pick(1), Pick(2)]}
    )
    assert found == [("audit", Pick(3, 0.01)), ("far", Pick(1, 0, (4,))), ("margin", Pick(2))]
