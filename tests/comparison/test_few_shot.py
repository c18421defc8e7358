"""Episodes, the glyphs they are drawn from, and the learning curve of a computed head."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from sightline.comparison import classify_by_head, head_curve_run, measure_episodes, measure_head_curve
from sightline.comparison.head_curve import extrapolate
from sightline.errors import DataError, RecipeError
from sightline.sources.glyphs import glyphs
from sightline.training import Recipe, train
from sightline.training.heads import ClassMeans, LinearDiscriminant, LinearProbeHead


def blobs(rng, classes, count, width=8, apart=3.0):
    centres = rng.normal(size=(classes, width)) * apart / width**0.5
    labels = np.repeat(np.arange(classes), count)
    return (centres[labels] + rng.normal(size=(len(labels), width))).astype(np.float32), labels


def test_prototypes_in_episodes_are_scikit_learns_nearest_centroid():
    features, labels = blobs(np.random.default_rng(0), 12, 30)
    centre = features.mean(0)

    def prepare(x):
        return (x - centre) / np.linalg.norm(x - centre, axis=1, keepdims=True)

    def oracle(support, known, queries):
        return NearestCentroid().fit(prepare(support), known).predict(prepare(queries))

    def discriminant(support, known, queries):
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(support, known).predict(queries)

    classifiers = {
        "ours": classify_by_head(ClassMeans(), centre),
        "centroids": oracle,
        "lda": classify_by_head(LinearDiscriminant(0.1)),
        "sklearn lda": discriminant,
    }
    found = measure_episodes(features, labels, classifiers, ways=4, shots=5, episodes=40, queries=10)
    assert found["ours"] == found["centroids"]
    assert found["lda"].value == pytest.approx(found["sklearn lda"].value, abs=0.002)
    assert found["ours"].n == 40
    assert 0.6 < found["ours"].value < 1


def test_the_half_width_is_the_published_one():
    """1.96 sd / sqrt(n): .0160 for sd .20 and 600 episodes."""
    rng = np.random.default_rng(1)
    rates = iter(np.clip(rng.normal(0.5, 0.2, 600), 0, 1))

    def guess(_, __, queries):
        right = round(next(rates) * len(queries))
        return np.where(np.arange(len(queries)) < right, np.repeat(np.arange(2), len(queries) // 2), 5)

    features, labels = blobs(rng, 2, 60)
    found = measure_episodes(features, labels, {"guess": guess}, ways=2, queries=50)["guess"]
    assert found.value - found.low == pytest.approx(0.0160, abs=0.001)


def test_a_query_in_its_own_support_is_right():
    """One shot, and every class has the same picture over and over."""
    features = np.repeat(np.eye(6, dtype=np.float32), 5, axis=0)
    labels = np.repeat(np.arange(6), 5)
    heads = {"means": classify_by_head(ClassMeans()), "probe": classify_by_head(LinearProbeHead())}
    found = measure_episodes(features, labels, heads, ways=3, queries=4, episodes=5)
    assert {one.value for one in found.values()} == {1.0}


def test_impossible_episodes_are_one_sentence():
    features, labels = blobs(np.random.default_rng(0), 3, 10)
    with pytest.raises(DataError, match="Only 3 classes have the 10 images"):
        measure_episodes(features, labels, {}, ways=4, shots=1, queries=9)
    with pytest.raises(RecipeError, match="at least 2 ways"):
        measure_episodes(features, labels, {}, ways=1)


@pytest.fixture(scope="module")
def novel():
    return glyphs("novel", 1)


def test_glyphs_are_characters_split_by_character(novel):
    base = glyphs(variants=1)
    assert not set(base.classes) & set(novel.classes)
    assert len(base.classes) + len(novel.classes) > 1000
    assert "U+0041" in (*base.classes, *novel.classes)
    for one in (base, novel):
        assert one.images.shape[1:] == (28, 28)
        counts = np.bincount(one.labels)
        assert counts.min() >= 12
        assert one.images.max(axis=(1, 2)).min() > 100  # no picture is blank
        assert set(one.splits) == {"train", "val", "test"}
        trained = np.bincount(one.labels[one.splits == "train"], minlength=len(one.classes))
        assert trained.min() >= 8


def test_glyphs_are_the_same_again(novel):
    again = glyphs("novel", 1)
    assert again.fingerprint() == novel.fingerprint()
    with pytest.raises(ValueError, match="at least 1 variant"):
        glyphs("novel", 0)


def test_pixels_tell_glyphs_apart(novel):
    """Nearest means of raw pixels are far above chance: a class is one shape in several typefaces."""
    pixels = novel.images.reshape(len(novel.images), -1).astype(np.float32) / 255
    found = measure_episodes(
        pixels, novel.labels, {"means": classify_by_head(ClassMeans())}, queries=5, episodes=30
    )
    assert found["means"].value > 0.45


def test_a_power_law_is_found_again():
    images = np.array([10.0, 20, 40, 80])
    errors = 0.05 + 2 * images**-0.9
    found = extrapolate(images, errors[None], np.full(4, 0.01), np.array([160.0, 320]))[0]
    np.testing.assert_allclose(found, 0.05 + 2 * np.array([160.0, 320]) ** -0.9, atol=1e-6)
    flat = extrapolate(images, np.full((1, 4), 0.2), np.full(4, 0.01), np.array([320.0]))
    assert flat[0, 0] == pytest.approx(0.2)
    rising = extrapolate(images, np.array([[0.1, 0.2, 0.3, 0.4]]), np.full(4, 0.01), np.array([320.0]))
    assert rising[0, 0] == pytest.approx(0.25)  # a curve that gets worse is taken for a flat one


def test_the_interval_covers_what_more_images_bring():
    """Twelve worlds: the accuracy with twice the images, by drawing them, is in the interval."""
    covered = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        features, labels = blobs(rng, 3, 1120, width=20, apart=2.0)
        order = rng.permutation(3 * 1120)
        known, test = order[:60], order[-2000:]
        curve = measure_head_curve(ClassMeans(), features[known], labels[known], 3)
        rates = []
        for part in order[: 12 * 120].reshape(12, 120):
            head = ClassMeans().fit(features[part], labels[part], 3, seed=0)
            logits = features[test] @ head.weight.numpy().T + head.bias.numpy()
            rates.append((logits.argmax(1) == labels[test]).mean())
        covered += curve.then.low <= np.mean(rates) <= curve.then.high
        assert curve.more == 20
    assert covered >= 10


@pytest.mark.parametrize(("apart", "count", "said"), [(9.0, 200, "hardly help"), (1.0, 8, "cannot tell")])
def test_flat_and_noisy_curves_say_so(apart, count, said):
    features, labels = blobs(np.random.default_rng(3), 2, count, apart=apart)
    assert said in measure_head_curve(ClassMeans(), features, labels, 2).sentence


def test_a_run_with_a_computed_head_has_a_curve_in_its_report(tmp_path, cli):
    start = train("digits", Recipe(model="lenet5", epochs=1, seed=1, limit=600), out=tmp_path / "start")
    assert head_curve_run(start) is None
    words = ("--method", "prototypes", "--limit", 600, "--weights", start.folder)
    answer = cli("train", "digits", *words, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "more images a class would bring about" in answer.out
    assert "Would more images help?" in (tmp_path / "run" / "report.html").read_text()
    again = cli("evaluate", tmp_path / "run", "--learning-curve")
    assert again.code == 0, again.err
    assert "more images a class would bring about" in again.out
