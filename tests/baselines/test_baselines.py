"""The classical methods: features against other people's code, and laws over every classifier of the family."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import eval_jacobi

from sightline import runtime
from sightline.baselines import (
    BASELINES,
    DEFAULT_BASELINES,
    FEATURES,
    extract_features,
    fit_baseline,
    parse_baseline,
    parse_features,
)
from sightline.classifier import Classifier
from sightline.data import load_dataset
from sightline.data.loader import to_tensor
from sightline.data.splits import split
from sightline.errors import BundleError, ChoiceError, TrainingError
from sightline.inference import predict_logits
from sightline.models import NETWORKS, build, parse_architecture
from sightline.models.handcrafted import (
    HANDCRAFTED_FEATURES,
    HOG,
    LBP,
    EdgeStrength,
    hu_moments,
    sobel,
    zernike_moments,
    zernike_radial,
)
from sightline.preprocessing import Preprocessing
from sightline.types import Geometry

GEOMETRY = Geometry(size=(16, 16), channels=1)


@pytest.fixture(scope="module")
def digits():
    return split(load_dataset("digits", GEOMETRY), seed=3)


@pytest.fixture(scope="module")
def network_bundle(tmp_path_factory):
    """A small network, untrained, as a bundle."""
    plan = parse_architecture("resnet20", classes=4, channels=1, size=(16, 16))
    torch.manual_seed(5)
    made = Classifier(Preprocessing(), build(plan), architecture=plan, classes=list("abcd"), geometry=GEOMETRY)
    return made.save(tmp_path_factory.mktemp("network") / "bundle")


def pictures(count=6, channels=1, size=(28, 28), seed=0):
    """Smooth blobs with noise: decoded images, as uint8 and as a batch."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    centres = rng.uniform(0.3, 0.7, (count, 2, channels)) * np.array(size)[None, :, None]
    blobs = np.exp(-((rows[..., None] - centres[:, None, None, 0]) ** 2 / 60))
    blobs = blobs * np.exp(-((columns[..., None] - centres[:, None, None, 1]) ** 2 / 25))
    pixels = (blobs * 200 + rng.uniform(0, 55, (count, *size, channels))).astype(np.uint8)
    return pixels, to_tensor(pixels)


# features


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_feature_is_a_vector_per_image(name, channels, tmp_path):
    word = name
    if name == "embedding":
        plan = parse_architecture("lenet5", classes=3, channels=channels, size=(28, 28))
        geometry = Geometry(size=(28, 28), channels=channels)
        made = Classifier(Preprocessing(), build(plan), architecture=plan, classes=list("abc"), geometry=geometry)
        word = f"embedding:{made.save(tmp_path / 'bundle')}"
    (feature,) = parse_features(word)
    batch = pictures(channels=channels)[1]
    extremes = torch.stack([torch.zeros(channels, 28, 28), torch.ones(channels, 28, 28)])
    batch = torch.cat([batch, extremes]).contiguous(memory_format=torch.channels_last)
    vectors = feature(batch)
    assert vectors.dtype == torch.float32
    assert vectors.shape[0] == 8
    assert vectors.isfinite().all()
    assert torch.equal(vectors, feature(batch))
    alone = torch.cat([feature(batch[i : i + 1]) for i in range(8)])
    assert torch.allclose(alone, vectors, atol=1e-5)
    assert not torch.allclose(vectors[0], vectors[1])


@pytest.mark.parametrize("name", HANDCRAFTED_FEATURES)
def test_a_feature_is_rebuilt_from_its_config(name):
    feature = HANDCRAFTED_FEATURES[name]()
    assert HANDCRAFTED_FEATURES[name](**feature.config()) == feature
    with pytest.raises(dataclasses.FrozenInstanceError):
        feature.anything = 1


@pytest.mark.parametrize(
    ("channels", "size", "cell", "orientations"),
    [(1, (28, 28), 4, 9), (3, (32, 32), 8, 6), (1, (30, 21), 5, 9), (3, (16, 16), 3, 12)],
)
def test_hog_is_that_of_scikit_image(channels, size, cell, orientations):
    from skimage.feature import hog

    pixels, batch = pictures(channels=channels, size=size)
    theirs = [
        hog(
            one[..., 0] / 255 if channels == 1 else one / 255,
            orientations=orientations,
            pixels_per_cell=(cell, cell),
            cells_per_block=(2, 2),
            channel_axis=None if channels == 1 else -1,
        )
        for one in pixels
    ]
    ours = HOG(orientations=orientations, cell=cell)(batch).numpy()
    assert ours == pytest.approx(np.stack(theirs), abs=2e-5)


@pytest.mark.parametrize(("radius", "grid"), [(1, 1), (1, 4), (2, 2), (1.5, 7)])
def test_lbp_is_that_of_scikit_image(radius, grid):
    from skimage.feature import local_binary_pattern

    pixels, batch = pictures()
    ours = LBP(radius=radius, grid=grid)(batch).numpy().reshape(len(pixels), 10, grid, grid)
    side = 28 // grid
    for one, found in zip(pixels, ours, strict=True):
        codes = local_binary_pattern(one[..., 0], 8, radius, "uniform").astype(int)
        for r in range(grid):
            for c in range(grid):
                cell = codes[r * side : (r + 1) * side, c * side : (c + 1) * side]
                shares = np.bincount(cell.ravel(), minlength=10) / cell.size
                assert found[:, r, c] == pytest.approx(shares, abs=1e-6)


def test_lbp_of_a_flat_image_treats_equal_pixels_as_equal():
    """Rounding must not make a neighbour of the same brightness darker: inside all 8 are as bright."""
    shares = LBP(grid=1)(torch.full((1, 1, 20, 20), 77 / 255))
    assert shares[0, 8].item() == pytest.approx(18 * 18 / 400)


def test_edges_are_those_of_scikit_image():
    from skimage.feature import canny
    from skimage.filters import sobel as their_sobel

    batch = pictures()[1]
    floats = batch[:, 0].double().numpy()
    assert sobel(batch[:, 0]).numpy() == pytest.approx(np.stack([their_sobel(f) for f in floats]), abs=1e-6)
    lines = np.stack([canny(f, sigma=1.5) for f in floats])
    assert 0 < lines.mean() < 0.5
    means = lines.reshape(len(lines), 14, 2, 14, 2).mean((2, 4)).reshape(len(lines), -1)
    assert EdgeStrength("canny", sigma=1.5)(batch).numpy() == pytest.approx(means)


def test_hu_moments_are_those_of_scikit_image():
    from skimage.measure import moments_central, moments_hu, moments_normalized

    images = pictures()[1][:, 0].double()
    theirs = [moments_hu(moments_normalized(moments_central(one))) for one in images.numpy()]
    assert hu_moments(images).numpy() == pytest.approx(np.stack(theirs), rel=1e-9, abs=1e-18)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 0), (4, 2), (5, 3), (8, 0), (8, 8), (11, 5)])
def test_zernike_polynomials_equal_jacobi(n, m):
    r = torch.linspace(0, 1, 50, dtype=torch.float64)
    k = (n - m) // 2
    jacobi = (-1) ** k * r.numpy() ** m * eval_jacobi(k, m, 0, 1 - 2 * r.numpy() ** 2)
    assert zernike_radial(r, n, m).numpy() == pytest.approx(jacobi, abs=1e-9)


def test_zernike_moments_are_invariant_to_rotation_and_contrast():
    images = pictures()[1][:, 0].double()
    found = zernike_moments(images, 8)
    assert found.shape == (6, 24)
    assert torch.allclose(zernike_moments(images.rot90(1, (1, 2)), 8), found, atol=1e-12)
    assert torch.allclose(zernike_moments(images * 0.3, 8), found, atol=1e-12)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    side = 200  # the wave R_22 cos(2 angle) in a disc has |A_22| = 1/2 of its height, and no other moment
    y, x = np.mgrid[:side, :side] * 2 / side - 1 + 1 / side
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    wave = torch.from_numpy((1 + radius**2 * np.cos(2 * angle)) * (radius <= 1))[None]
    strengths = zernike_moments(wave, 4)[0] * math.pi  # over the mass, pi times the mean 1
    members = [(n, m) for n in range(1, 5) for m in range(n % 2, n + 1, 2)]
    expected = [0.5 if member == (2, 2) else 0.0 for member in members]
    assert strengths.numpy() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("hogg", "Did you mean 'hog'"),
        ("hog:cells=3", "'hog' has no argument 'cells'. Did you mean 'cell'"),
        ("hog:orientations=0", "orientations must be a whole number of at least 1, not 0"),
        ("lbp:radius=0", "radius must be a number above 0"),
        ("edges:prewitt", "by must be one of sobel, canny, not 'prewitt'"),
        ("moments:legendre", "by must be one of both, hu, zernike"),
        ("moments:degree=40", "degree must be a whole number from 1 to 20"),
        ("pixels+", "There is no feature called ''"),
    ],
)
def test_impossible_features_are_refused(word, says):
    with pytest.raises(ChoiceError, match=says):
        parse_features(word)


def test_an_embedding_of_a_missing_run_or_other_geometry_is_refused(network_bundle, digits):
    with pytest.raises(BundleError, match="no run or bundle 'runs/absent'"):
        parse_features("embedding:runs/absent")
    with pytest.raises(ChoiceError, match="--size 16 --channels 1"):
        extract_features(
            parse_baseline(f"knn@embedding:{network_bundle}"),
            load_dataset("digits", Geometry(size=(28, 28), channels=1)),
        )
    with pytest.raises(TrainingError, match="hog needs two cells of 9 pixels a side, and the images have 16"):
        fit_baseline(digits, "naive-bayes@hog:cell=9")


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "timm"])
def test_every_network_has_an_embedding(name):
    """Its head on the embedding gives the logits."""
    from sightline.models.estimator import EmbeddingFeature

    channels, size = (3, (64, 64)) if name in {"table2", "alexnet"} else (1, (32, 32))
    plan = parse_architecture(name, classes=3, channels=channels, size=size)
    with torch.random.fork_rng():
        network = build(plan).eval()
    pixels = torch.rand(2, channels, *size)
    vectors = EmbeddingFeature(Preprocessing(), network, plan.config())(pixels)
    with torch.no_grad():
        assert torch.allclose(network.head(vectors), network(pixels), atol=1e-5)


# classifiers


@pytest.fixture(scope="module")
def fitted(digits):
    """Every baseline on the pixels of some digits."""
    few = dataclasses.replace(digits, train=digits.train.subset(np.arange(400)))
    quick = {"gradient-boosting": "gradient-boosting:rounds=15"}
    return {name: fit_baseline(few, quick.get(name, name)) for name in BASELINES}


@pytest.mark.parametrize("name", BASELINES)
def test_the_largest_logit_is_the_estimators_prediction(name, fitted, digits):
    classifier = fitted[name]
    logits, labels = predict_logits(classifier, digits.test)
    assert logits.shape == (len(digits.test), 10)
    assert logits.isfinite().all()
    network = classifier.network
    vectors = network.standardise(network.feature_vectors(to_tensor(digits.test[:]))).numpy()
    assert np.array_equal(logits.argmax(1).numpy(), network.estimator.predict(vectors))
    assert (logits.argmax(1) == labels).float().mean() > 0.6
    assert not network.differentiable
    assert classifier(to_tensor(digits.test[:3]).requires_grad_()).grad_fn is None


PLAIN = {
    "svm-rbf": ("svm.SVC", {"C": 10}),
    "svm-linear": ("svm.LinearSVC", {"C": 1, "max_iter": 10_000}),
    "naive-bayes": ("naive_bayes.GaussianNB", {}),
    "knn": ("neighbors.KNeighborsClassifier", {"n_neighbors": 5, "weights": "distance"}),
    "random-forest": ("ensemble.RandomForestClassifier", {"n_estimators": 100, "random_state": 0}),
    "decision-tree": ("tree.DecisionTreeClassifier", {"criterion": "entropy", "max_depth": 10, "random_state": 0}),
    "gradient-boosting": ("ensemble.HistGradientBoostingClassifier", {"max_iter": 15, "random_state": 0}),
    "logistic-regression": ("linear_model.LogisticRegression", {"max_iter": 1000}),
}


@pytest.mark.parametrize("name", BASELINES)
def test_accuracy_is_that_of_plain_scikit_learn(name, fitted, digits):
    """On the same images, with the settings one would write down; 270 test images make 4 points of noise."""
    from importlib import import_module

    where, settings = PLAIN[name]
    module, kind = where.rsplit(".", 1)
    train = digits.train.subset(np.arange(400))
    x, test = (part[:].reshape(len(part), -1) / 255 for part in (train, digits.test))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = vars(import_module(f"sklearn.{module}"))[kind](**settings).fit(x, train.labels)
    theirs = (plain.predict(test) == digits.test.labels).mean()
    logits, labels = predict_logits(fitted[name], digits.test)
    ours = (logits.argmax(1) == labels).float().mean().item()
    assert ours > theirs - 0.04


@pytest.mark.parametrize("name", BASELINES)
def test_two_classes_of_which_the_larger_index_can_win(name, digits):
    """K = 2 is the most common case, and where a decision is one number."""
    two = dataclasses.replace(
        digits, **{part: only(getattr(digits, part), (3, 8)) for part in ("train", "val", "test")}
    )
    word = "gradient-boosting:rounds=15" if name == "gradient-boosting" else name
    classifier = fit_baseline(two, word)
    logits, labels = predict_logits(classifier, two.test)
    network = classifier.network
    vectors = network.standardise(network.feature_vectors(to_tensor(two.test[:]))).numpy()
    assert np.array_equal(logits.argmax(1).numpy(), network.estimator.predict(vectors))
    assert (logits.argmax(1) == labels).float().mean() > 0.8


def only(dataset, which):
    """The images of these classes, which become the only ones."""
    part = dataset.subset(np.isin(dataset.labels, which))
    labels = np.searchsorted(which, part.labels)
    return dataclasses.replace(part, labels=labels, classes=tuple(dataset.classes[k] for k in which))


@pytest.mark.parametrize("name", ["svm-rbf", "knn", "logistic-regression"])
def test_a_class_without_training_images_is_never_predicted(name, digits):
    part = digits.train.subset(np.flatnonzero(digits.train.labels != 4)[:300])
    classifier = fit_baseline(dataclasses.replace(digits, train=part), name)
    logits, _ = predict_logits(classifier, digits.test)
    assert logits.shape[1] == 10
    assert (logits.argmin(1) == 4).all()
    assert classifier.classes[4] == "4"


@pytest.mark.parametrize("name", ["random-forest:trees=10", "svm-linear", "gradient-boosting:rounds=3"])
def test_equal_seeds_give_equal_classifiers(name, digits):
    few = dataclasses.replace(digits, train=digits.train.subset(np.arange(200)))
    one, two, three = (predict_logits(fit_baseline(few, name, seed=seed), few.test)[0] for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert name == "svm-linear" or not torch.equal(one, three)


def test_joined_features_have_equal_variance(digits):
    classifier = fit_baseline(digits, "svm-rbf@hog:cell=4+moments")
    network = classifier.network
    vectors = network.standardise(network.feature_vectors(to_tensor(digits.train[:])))
    hog, moments = vectors.split(network.widths, 1)
    assert moments.mean(0).abs().max() < 1e-3
    assert hog.min() == 0
    begin, says = 0, []
    for width in network.widths:
        says.append(vectors[:, begin : begin + width].var(0).sum().item())
        begin += width
    assert len(says) == 2
    assert says[0] == pytest.approx(says[1], rel=0.05)  # what never varies says nothing
    logits, labels = predict_logits(classifier, digits.test)
    assert (logits.argmax(1) == labels).float().mean() > 0.93


def test_hog_beats_pixels_where_there_are_few_images(digits):
    few = dataclasses.replace(digits, train=digits.train.subset(np.arange(120)))
    right = []
    for word in ("logistic-regression", "logistic-regression@hog"):
        logits, labels = predict_logits(fit_baseline(few, word), digits.test)
        right.append((logits.argmax(1) == labels).float().mean().item())
    assert right[1] > right[0]


def test_the_temperature_calibrates_decisions(fitted, digits):
    """A support vector machine's votes are no probabilities; the temperature of the validation images helps."""
    logits, labels = predict_logits(fitted["svm-linear"], digits.test)
    losses = [
        torch.nn.functional.cross_entropy(logits / t, labels).item() for t in (1, fitted["svm-linear"].temperature)
    ]
    assert losses[1] < losses[0]


def test_words_are_parsed_and_formatted():
    found = parse_baseline("svm-rbf:C=5@hog+lbp")
    assert (found.classifier, found.features) == ("svm-rbf:C=5", "hog+lbp")
    assert str(parse_baseline("knn:3")) == "knn:3"
    assert str(parse_baseline("knn", features="hog")) == "knn@hog"
    assert str(parse_baseline("knn@pixels", features="hog")) == "knn"
    assert set(DEFAULT_BASELINES) < set(BASELINES)
    assert len(DEFAULT_BASELINES) == 6


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("svm-rfb", "Did you mean 'svm-rbf'"),
        ("knn:neighbours=3", "'knn' has no argument 'neighbours'. Choose one of: k, p"),
        ("knn@hogg", "Did you mean 'hog'"),
        ("knn@", "names no features after the @"),
    ],
)
def test_unknown_words_are_refused(word, says):
    with pytest.raises(ChoiceError, match=says):
        parse_baseline(word)


@pytest.mark.parametrize("word", ["svm-rbf:C=-1", "knn:0", "random-forest:trees=0"])
def test_impossible_settings_are_refused(word, digits):
    with pytest.raises(TrainingError, match=f"The baseline '{word}' cannot be fitted: .*[^.]\\.$"):
        fit_baseline(digits, word)


def test_a_single_class_is_refused(digits):
    part = digits.train.subset(digits.train.labels == 1)
    with pytest.raises(TrainingError, match="cannot be fitted"):
        fit_baseline(dataclasses.replace(digits, train=part), "svm-rbf")


class Endless:
    """More images than any memory holds, drawn when asked for."""

    shape = (2 * 10**8, 16, 16, 1)

    def __getitem__(self, rows):
        raise AssertionError("nothing may be read of what does not fit")


def test_features_that_exceed_the_memory_are_refused_before_reading(digits):
    if runtime.available_memory() is None:
        pytest.skip("this system does not tell its free memory")
    many = np.broadcast_to(np.int64(1), 2 * 10**8)
    huge = dataclasses.replace(
        digits.train, pixels=Endless(), rows=many, labels=many, files=many, digests=many, columns={}
    )
    with pytest.raises(TrainingError, match=r"needs about [\d,.]+ GB of memory for 256 numbers of each of 200,"):
        fit_baseline(dataclasses.replace(digits, train=huge), "knn")


def test_a_fit_that_did_not_converge_gives_a_remark(digits):
    from sightline.baselines import estimators

    assert "max_iter" in estimators.logistic_regression().get_params()
    few = dataclasses.replace(digits, train=digits.train.subset(np.arange(200)))
    loose = fit_baseline(few, "svm-linear:C=100000.0")
    assert any("onverge" in remark for remark in loose.provenance["remarks"])
    assert fit_baseline(few, "svm-linear").provenance["remarks"] == []
