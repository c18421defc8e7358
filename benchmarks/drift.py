"""False alarms and delays of the drift detector, next to a window test that is looked at again and again.

    python benchmarks/drift.py [--streams 1000] [--answers 3000] [--shifted 40] [--stop-after MINUTES] [--data FOLDER]

Answers are real: a third party's ResNet-20 on the test images of CIFAR-10, as sketches with the channels of the
product (probability of each class, confidence, energy, distance to the classes, eight projections, numbers of the
image). It may not answer "truck", the class never seen. 1,000 images fit the projection; the reference, 1,000 others,
and each quiet stream are drawn without replacement from the rest. Shifted streams turn after 1,000 quiet answers:
JPEG, noise and blur at two severities, two classes three times as often, a tenth and a third of trucks. ``fixed
ranks`` is the detector with ranks among the reference alone, whose promise does not hold. The window test is
Kolmogorov-Smirnov on the last 200 answers, every 50 answers, once at 1 % a look and once corrected for all looks and
channels (Bonferroni). The detector alarms at a capital of 100 (1 % of all streams, at any number of looks), and at a
mean of 100,000 answers to a false alarm (``detector``). Streams are kept in ``--work``: a benchmark that was stopped
goes on.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from cifar import open_third_party_resnet20
from record import Notebook, record, shared
from scipy.stats import binom, kstwobign

from sightline.data import to_tensor
from sightline.journal import Projection, Reference, make_sketches
from sightline.metrics import Bets, ScoreRanks
from sightline.robustness import CORRUPTIONS

REFERENCE, WINDOW, EVERY, QUIET_FIRST, SHIFTED = 1000, 200, 50, 1000, 2000
UNSEEN, FREQUENT = "truck", ("cat", "dog")
CHUNK = 50
WAYS = ("capital 100", "detector", "fixed ranks", "window 1 %", "window corrected")


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--answers", type=int, default=3000)
    parser.add_argument("--shifted", type=int, default=40)
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="minutes")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "sightline-drift")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier start measured")
    asked = parser.parse_args()
    deadline = time.time() + 60 * asked.stop_after
    book = Notebook(asked.work / "drift.jsonl", fresh=asked.fresh)
    quiet, shifts = open_pools(shared(asked.data), asked.work)
    unseen = shifts["unseen class"][len(quiet) :]
    shifts["unseen class, a third"] = np.concatenate([quiet[: 2 * len(unseen)], unseen])
    todo = [("quiet", i) for i in range(asked.streams // CHUNK)] + [(name, 0) for name in shifts]
    for name, chunk in todo:
        key = {"name": name, "chunk": chunk, "answers": asked.answers, "shifted": asked.shifted}
        if book.find(**key) is None:
            if time.time() > deadline:
                raise SystemExit(1)
            chance = np.random.default_rng([2, chunk])
            if name == "quiet":
                book.add({"alarms": count_alarms(quiet, asked.answers, chance)}, **key)
            else:
                book.add({"delays": measure_delays(quiet, shifts[name], asked.shifted, chance)}, **key)
            print(book.lines[-1], flush=True)
    parts = [
        next(book.all(name="quiet", chunk=i, answers=asked.answers))["alarms"]
        for name, i in todo
        if name == "quiet"
    ]
    figures = {
        "streams": CHUNK * len(parts),
        "answers": asked.answers,
        "channels": quiet.shape[1],
        "alarms": {way: sum(one[way] for one in parts) for way in WAYS},
        "allowed": int(binom.ppf(0.999, CHUNK * len(parts), 0.01)),
        "delays": {name: next(book.all(name=name, shifted=asked.shifted))["delays"] for name in shifts},
    }
    record("drift", figures)


def open_pools(data: Path, work: Path):
    """Scores (N, Q) of quiet images, and of each kind of shifted ones; computed once."""
    held = work / "pools.npz"
    if held.is_file():
        pools = dict(np.load(held))
        return pools.pop("quiet"), pools
    run = open_third_party_resnet20(data)
    classifier, test = run.classifier.eval(), run.splits.test
    gone = classifier.classes.index(UNSEEN)
    classes = tuple(name for name in classifier.classes if name != UNSEEN)
    order = np.random.default_rng(0).permutation(np.flatnonzero(test.labels != gone))
    fitted, others = order[:1000], order[1000:]
    labels = np.array([classes.index(test.classes[k]) for k in test.labels[fitted]])
    features, _ = answer(classifier, test[fitted], gone)
    projection = Projection.fit(features, labels, len(classes))

    def sketch(pixels):
        found, logits = answer(classifier, pixels, gone)
        chances = torch.softmax(logits / classifier.temperature, 1).numpy()
        energy = -torch.logsumexp(logits, 1).numpy()
        sides = [(pixels.shape[2], pixels.shape[1], 0)] * len(pixels)
        return make_sketches(chances, energy, projection.project(found, len(pixels)), pixels, sides)

    plain = sketch(test[others])
    scores = Reference(classes, projection, plain, labels).scores
    pools = {"quiet": scores(plain)}
    for name in ("jpeg", "gaussian-noise", "defocus-blur"):
        for severity in (1, 3):
            changed = CORRUPTIONS[name](to_tensor(test[others], torch.device("cpu")), severity, torch.Generator())
            pixels = (changed * 255).round().byte().permute(0, 2, 3, 1).numpy()
            pools[f"{name} {severity}"] = scores(sketch(pixels))
    often = np.isin(test.labels[others], [test.classes.index(name) for name in FREQUENT])
    pools["class mix"] = pools["quiet"][np.repeat(np.arange(len(others)), np.where(often, 3, 1))]
    trucks = np.flatnonzero(test.labels == gone)[: len(others) // 9]
    pools["unseen class"] = np.concatenate([pools["quiet"], scores(sketch(test[trucks]))])
    work.mkdir(parents=True, exist_ok=True)
    np.savez(held, allow_pickle=False, **pools)
    return pools.pop("quiet"), pools


def answer(classifier, pixels, gone):
    """Features, and logits of the classes that it may answer."""
    with torch.inference_mode():
        parts = [
            classifier.features_and_logits(to_tensor(pixels[i : i + 250], torch.device("cpu")))
            for i in range(0, len(pixels), 250)
        ]
    features, logits = (torch.cat(some) for some in zip(*parts, strict=True))
    kept = [k for k in range(logits.shape[1]) if k != gone]
    return features.numpy(), logits[:, kept]


def count_alarms(pool, answers, chance):
    """Of ``CHUNK`` quiet streams, how many have at least one alarm, by way."""
    alarms = dict.fromkeys(WAYS, 0)
    for _ in range(CHUNK):
        drawn = chance.permutation(len(pool))[: REFERENCE + answers]
        reference, stream = pool[drawn[:REFERENCE]], pool[drawn[REFERENCE:]]
        capital, detector = run_detector(reference, stream, chance)
        fixed, _ = run_detector(reference, stream, chance, fixed=True)
        looks = run_windows(reference, stream)
        alarms["capital 100"] += bool((capital >= 100).any())
        alarms["detector"] += bool((detector >= 100_000).any())
        alarms["fixed ranks"] += bool((fixed >= 100).any())
        alarms["window 1 %"] += bool((looks.min(1) < 0.01).any())
        alarms["window corrected"] += bool((looks.min(1) < 0.01 / looks.size).any())
    return alarms


def measure_delays(quiet, shifted, streams, chance):
    """Median answers from the change to the first alarm after it, None where most streams have none."""
    delays = {"capital 100": [], "detector": [], "window corrected": []}
    for _ in range(streams):
        drawn = chance.permutation(len(quiet))[: REFERENCE + QUIET_FIRST]
        reference = quiet[drawn[:REFERENCE]]
        after = shifted[chance.integers(0, len(shifted), SHIFTED)]
        stream = np.concatenate([quiet[drawn[REFERENCE:]], after])
        capital, detector = run_detector(reference, stream, chance)
        looks = run_windows(reference, stream)
        ends = WINDOW + EVERY * np.arange(len(looks))
        answers = np.arange(1, len(stream) + 1)
        delays["capital 100"].append(first(answers, capital >= 100))
        delays["detector"].append(first(answers, detector >= 100_000))
        delays["window corrected"].append(first(ends, looks.min(1) < 0.01 / looks.size))
    middle = {name: float(np.median(each)) for name, each in delays.items()}
    return {name: value if np.isfinite(value) else None for name, value in middle.items()}


def first(answers, alarms):
    """Answers from the change to the first alarm after it."""
    hits = answers[alarms & (answers > QUIET_FIRST)]
    return hits[0] - QUIET_FIRST if len(hits) else np.inf


def run_detector(reference, stream, chance, *, fixed=False):
    """Capital and evidence after each answer; ``fixed`` ranks among the reference alone."""
    bets, ranks = Bets.start(reference.shape[1]), ScoreRanks.of(reference)
    ties, p = chance.random(stream.shape), None
    if fixed:
        ordered = np.sort(reference, 0)
        above = [
            len(reference) - np.searchsorted(one, s, "right") for one, s in zip(ordered.T, stream.T, strict=True)
        ]
        equal = [
            np.searchsorted(one, s, "right") - np.searchsorted(one, s, "left")
            for one, s in zip(ordered.T, stream.T, strict=True)
        ]
        p = (np.stack(above, 1) + ties * (np.stack(equal, 1) + 1)) / (len(reference) + 1)
    capital, detector = np.zeros(len(stream)), np.zeros(len(stream))
    for i, score in enumerate(stream):
        bets.bet(ranks.add(score, ties[i]) if p is None else p[i])
        capital[i], detector[i] = bets.capital, bets.evidence
    return capital, detector


def run_windows(reference, stream):
    """The p-value of each channel at each look (two-sample Kolmogorov-Smirnov, its limiting distribution)."""
    ends = np.arange(WINDOW, len(stream) + 1, EVERY)
    apart = np.zeros((len(ends), reference.shape[1]))
    for channel, ordered in enumerate(np.sort(reference, 0).T):
        for look, end in enumerate(ends):
            window = np.sort(stream[end - WINDOW : end, channel])
            both = np.concatenate([ordered, window])
            shares = [np.searchsorted(one, both, "right") / len(one) for one in (ordered, window)]
            apart[look, channel] = np.abs(shares[0] - shares[1]).max()
    return kstwobign.sf(apart * np.sqrt(REFERENCE * WINDOW / (REFERENCE + WINDOW)))


if __name__ == "__main__":
    main()
