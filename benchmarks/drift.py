"""False alarms and delays of the drift detector, next to a window test that is looked at again and again.

    python benchmarks/drift.py [--streams 1000] [--answers 2000] [--shifted 40]

Scores are real: a linear classifier of digits (scikit-learn, 400 training images) on the images it was not trained on,
with replacement where a stream is longer than these. Three numbers a stream: confidence, and the probabilities of two
classes. Quiet streams and their reference come from one pool. Shifted streams turn to blurred, noisy, dark or unseen
images after 500 quiet answers. The window test is Kolmogorov-Smirnov on the last 200 answers, every 50 answers, once
at 1 % a look and once corrected for the looks and channels (Bonferroni).
"""

import argparse

import numpy as np
from record import record
from scipy.ndimage import gaussian_filter
from scipy.stats import binom, ks_2samp
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from sightline.metrics import Bets, ScoreRanks

REFERENCE, WINDOW, EVERY, QUIET_FIRST = 300, 200, 50, 500


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--shifted", type=int, default=40)
    asked = parser.parse_args()
    quiet, shifts = make_pools()
    figures = {"quiet": measure_quiet(quiet, asked.streams, asked.answers), "delays": {}}
    print(figures["quiet"], flush=True)
    for name, pool in shifts.items():
        figures["delays"][name] = measure_delay(quiet, pool, asked.shifted)
        print(name, figures["delays"][name], flush=True)
    record("drift", figures)


def make_pools():
    """Scores of held-out digits, and of changed ones."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.data[order], digits.target[order]
    known = labels != 9  # the nine is the class never seen
    train = np.flatnonzero(known)[:400]
    others = np.setdiff1d(np.flatnonzero(known), train)
    model = LogisticRegression(C=0.01, max_iter=500).fit(images[train], labels[train])

    def scores(pictures):
        found = model.predict_proba(pictures.reshape(len(pictures), -1))
        return np.stack([found.max(1), found[:, 0], found[:, 1]], 1)

    chance, held = np.random.default_rng(1), images[others].reshape(-1, 8, 8)
    changed = {
        "blurred": gaussian_filter(held, (0, 0.8, 0.8)),
        "noisy": held + chance.normal(0, 3, held.shape),
        "darker": held * 0.7,
        "a tenth unseen class": np.concatenate(
            [held, np.resize(images[~known], (len(held) // 9, 64)).reshape(-1, 8, 8)]
        ),
    }
    return scores(held), {name: scores(one) for name, one in changed.items()}


def measure_quiet(pool, streams, answers):
    """Streams with at least one alarm; without replacement as far as the pool reaches."""
    chance, alarms = (
        np.random.default_rng(2),
        {"capital 100": 0, "detector": 0, "window 1 %": 0, "window corrected": 0},
    )
    answers = min(answers, len(pool) - REFERENCE)
    for _ in range(streams):
        drawn = chance.permutation(pool)[: REFERENCE + answers]
        capital, detector = run_detector(drawn[:REFERENCE], drawn[REFERENCE:], chance)
        alarms["capital 100"] += bool((capital >= 100).any())
        alarms["detector"] += bool((detector >= 100_000).any())
        looks = run_windows(drawn[:REFERENCE], drawn[REFERENCE:])
        alarms["window 1 %"] += bool((looks.min(1) < 0.01).any())
        alarms["window corrected"] += bool((looks.min(1) < 0.01 / looks.size).any())
    return {
        "streams": streams,
        "answers": answers,
        "alarms": alarms,
        "allowed": int(binom.ppf(0.999, streams, 0.01)),
    }


def measure_delay(quiet, shifted, streams):
    """Median answers from the change to the alarm; infinite where it was not found in 1,500."""
    chance, delays = np.random.default_rng(3), {"detector": [], "window corrected": []}
    for _ in range(streams):
        before = chance.permutation(quiet)[: REFERENCE + QUIET_FIRST]
        after = chance.choice(shifted, 1500)
        stream = np.concatenate([before[REFERENCE:], after])
        _, detector = run_detector(before[:REFERENCE], stream, chance)
        hits = np.flatnonzero(detector >= 100_000)
        delays["detector"].append(hits[0] - QUIET_FIRST if len(hits) else np.inf)
        looks = run_windows(before[:REFERENCE], stream)
        ends = WINDOW + EVERY * np.arange(len(looks))
        hits = np.flatnonzero((looks.min(1) < 0.01 / looks.size) & (ends > QUIET_FIRST))
        delays["window corrected"].append(ends[hits[0]] - QUIET_FIRST if len(hits) else np.inf)
    return {name: float(np.median(each)) for name, each in delays.items()}


def run_detector(reference, answers, chance):
    """Capital and evidence after each answer."""
    ranks, bets = ScoreRanks.of(reference), Bets.start(reference.shape[1])
    capital, detector = [], []
    for score in answers:
        bets.bet(ranks.add(score, chance.random(len(score))))
        capital.append(bets.capital)
        detector.append(bets.evidence)
    return np.array(capital), np.array(detector)


def run_windows(reference, answers):
    """The p-value of each channel at each look."""
    ends = range(WINDOW, len(answers) + 1, EVERY)
    return np.array(
        [
            [ks_2samp(a, b).pvalue for a, b in zip(reference.T, answers[end - WINDOW : end].T, strict=True)]
            for end in ends
        ]
    )


if __name__ == "__main__":
    main()
