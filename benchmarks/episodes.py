"""Few-shot episodes on glyphs that the network never saw: class means against the nearest neighbour and regressions.

    python benchmarks/episodes.py [--episodes 600] [--epochs 8] [--embedded]

A small network learns the 1,141 base characters of the embedded set `glyphs`; episodes are of its novel characters,
5 and 20 ways, 1 and 5 shots, 15 queries a class, the same for every classifier. The interval is over episodes of one
network. With ``--embedded`` the features are those of the embedded EfficientNet-Lite0 instead, enlarged to 64 pixels.
scikit-learn's NearestCentroid, LogisticRegression and KNeighborsClassifier run on features centred by the mean of the
base characters and normalised, as our prototypes do.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
from record import record
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from sightline.comparison import classify_by_head, measure_episodes
from sightline.data import load_dataset
from sightline.features import embed_cached
from sightline.training import HEAD_METHODS, Recipe, train

LITE0 = "timm:tf_efficientnet_lite0.in1k:pretrained=True"


def main() -> None:
    """Train on the base characters, then measure on the novel ones."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--embedded", action="store_true")
    asked = parser.parse_args()
    recipe = Recipe(model="small-cnn", epochs=asked.epochs, limit=None)
    if asked.embedded:
        recipe = Recipe(model=LITE0, method="prototypes", size=64, limit=3500)
    with tempfile.TemporaryDirectory() as place:
        run = train("glyphs", recipe, out=Path(place) / "run")
        novel = load_dataset("glyphs:novel", run.classifier.geometry)
        base = run.splits.train.subset(np.arange(0, len(run.splits.train), 20 if not asked.embedded else 1))
        features, centre = embed_cached(run.classifier, novel), embed_cached(run.classifier, base).mean(0)

    def by_scikit_learn(make):
        def classify(support, labels, queries):
            shown, wanted = (x - centre for x in (support, queries))
            shown, wanted = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (shown, wanted))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NearestCentroid divides by zero deviations at one shot, unused
                return make().fit(shown, labels).predict(wanted)

        return classify

    classifiers = {
        "prototypes": classify_by_head(HEAD_METHODS["prototypes"]()),
        "prototypes, centred": classify_by_head(HEAD_METHODS["prototypes"](), centre),
        "lda, centred": classify_by_head(HEAD_METHODS["lda"](), centre),
        "nearest neighbour": by_scikit_learn(lambda: KNeighborsClassifier(1)),
        "NearestCentroid": by_scikit_learn(NearestCentroid),
        "LogisticRegression": by_scikit_learn(lambda: LogisticRegression(C=100, max_iter=200)),
    }
    figures: dict[str, object] = {"base_classes": len(run.classifier.classes), "novel_classes": len(novel.classes)}
    for ways, shots in ((5, 1), (5, 5), (20, 1), (20, 5)):
        found = measure_episodes(
            features, novel.labels, classifiers, ways=ways, shots=shots, episodes=asked.episodes
        )
        figures[f"{ways} ways, {shots} shots"] = {name: one.as_json() for name, one in found.items()}
        shown = (f"{name} {one.value:.4f} +- {one.value - one.low:.4f}" for name, one in found.items())
        print(ways, shots, *shown, sep=", ", flush=True)
    record("episodes-embedded" if asked.embedded else "episodes", figures)


if __name__ == "__main__":
    main()
