"""Scores of how usual an image is: their laws, their formulas, and AUROC as scikit-learn has it."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, mahalanobis
from scipy.special import logsumexp, softmax
from sklearn import metrics as sk
from sklearn.covariance import ShrunkCovariance

from helpers.tiny_classifiers import SETTLED
from sightline.choose import choose
from sightline.classifier import Classifier
from sightline.errors import ChoiceError, DataError
from sightline.evaluation import OOD_SCORES, evaluate_ood_run
from sightline.evaluation.ood import fit_score, score_dataset
from sightline.inference import embed
from sightline.metrics import ood_metrics
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import Recipe, train
from sightline.types import Geometry

WORDS = {"knn": "knn:k=3"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small network with dropout, trained on real digits."""
    recipe = Recipe(model="mlp:dropout=0.3", size=8, epochs=10, batch_size=32, lr=0.05, augment=(), **SETTLED)
    return train("digits", recipe, out=tmp_path_factory.mktemp("strange") / "run")


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def ready(run, name):
    return fit_score(choose(OOD_SCORES, WORDS.get(name, name), "score"), run.classifier, run.splits.train)


@pytest.mark.parametrize("name", OOD_SCORES)
def test_every_score_is_independent_of_the_batch(run, images, name):
    score = ready(run, name)
    with torch.inference_mode():
        values = score(run.classifier.eval(), images)
        assert values.shape == (5,)
        assert values.isfinite().all()
        assert torch.equal(values, score(run.classifier, images))
        if name != "dropout":  # its passes draw for the batch
            alone = torch.cat([score(run.classifier, images[i : i + 1]) for i in range(5)])
            torch.testing.assert_close(values, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", OOD_SCORES)
def test_every_score_separates_digits_from_noise(run, name):
    score = ready(run, name)
    noise = (torch.rand(150, 1, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    with torch.inference_mode():
        outside = score(run.classifier.eval(), noise).double().numpy()
    found = ood_metrics(score_dataset(score, run.classifier, run.splits.test), outside)
    assert found.auroc.value > 0.6, name


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_of_logits_by_their_formulas(images, classes):
    plan = parse_architecture("mlp", classes=classes, channels=1, size=(8, 8))
    torch.manual_seed(0)
    made = Classifier(
        Preprocessing(),
        build(plan),
        architecture=plan,
        classes=[str(k) for k in range(classes)],
        geometry=Geometry(size=(8, 8), channels=1),
        temperature=2.0,
    ).eval()
    with torch.inference_mode():
        z = made(images).double().numpy()
        got = {
            name: choose(OOD_SCORES, word, "score")(made, images).double().numpy()
            for name, word in (("msp", "max-softmax"), ("logit", "max-logit"), ("energy", "energy:3"))
        }
    np.testing.assert_allclose(got["msp"], softmax(z / 2, 1).max(1), rtol=1e-5)
    np.testing.assert_allclose(got["logit"], z.max(1), rtol=1e-5)
    np.testing.assert_allclose(got["energy"], 3 * logsumexp(z / 3, 1), rtol=1e-5)


def test_mahalanobis_equals_scikit_learns_shrunk_covariance(run, images):
    score = choose(OOD_SCORES, "mahalanobis:shrinkage=0.1", "score")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 7)) @ rng.normal(size=(7, 7))
    labels = rng.integers(0, 3, 300) * 2  # classes 1 and 3 are absent
    assert score.needs_fit
    known = score.fit(torch.from_numpy(x).float(), torch.from_numpy(labels))
    x = x.astype(np.float32).astype(np.float64)
    means = np.stack([x[labels == k].mean(0) for k in (0, 2, 4)])
    theirs = ShrunkCovariance(shrinkage=0.1, assume_centered=True).fit(x - means[labels // 2])
    new = rng.normal(size=(4, 7))
    wanted = [-min(mahalanobis(row, m, theirs.precision_) ** 2 for m in means) for row in new]
    whitened = torch.from_numpy(new) @ known.root
    got = -torch.cdist(whitened, known.means @ known.root).amin(1).square()
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-4)
    with torch.inference_mode():
        own = ready(run, "mahalanobis")
        features = run.classifier.eval().features(images).double()
        plain = torch.cdist(features @ own.root, own.means @ own.root).amin(1).square()
        torch.testing.assert_close(own(run.classifier, images), -plain.float(), rtol=1e-4, atol=1e-3)


def test_nearest_neighbours_are_a_plain_distance_matrix(run, images):
    score = ready(run, "knn")
    with torch.inference_mode():
        train = embed(run.classifier, run.splits.train).reshape(len(run.splits.train), -1)
        new = run.classifier.eval().features(images).numpy()
        got = score(run.classifier, images).numpy()
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (new, train)]
    np.testing.assert_allclose(-got, np.sort(cdist(*unit), 1)[:, 2], atol=1e-3)


def test_a_score_of_training_features_must_be_fitted(run, images):
    for name in ("mahalanobis", "knn"):
        with pytest.raises(DataError, match="fit it to some first"):
            choose(OOD_SCORES, name, "score")(run.classifier, images)
    with pytest.raises(DataError, match="choose a smaller k"):
        fit_score(choose(OOD_SCORES, "knn:k=5000", "score"), run.classifier, run.splits.train)


@pytest.mark.parametrize("word", ["energy:0", "mahalanobis:0", "knn:0", "knn:k=1.5", "dropout:1", "enrgy"])
def test_impossible_scores_are_refused(word):
    with pytest.raises(ChoiceError):
        choose(OOD_SCORES, word, "score")


@pytest.mark.parametrize("seed", range(5))
def test_ood_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(1.5, 1, 137).round(1), rng.normal(0, 1, 211).round(1)  # with ties
    found = ood_metrics(inside, outside)
    labels, scores = np.repeat([1, 0], [137, 211]), np.concatenate([inside, outside])
    assert found.auroc.value == pytest.approx(sk.roc_auc_score(labels, scores))
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    assert found.fpr95.value == pytest.approx(fpr[np.flatnonzero(tpr >= 0.95)[0]])
    assert (inside >= found.threshold).mean() >= 0.95
    assert found.auroc.low < found.auroc.value < found.auroc.high
    assert found.as_json()["positive"] == "in-distribution"
    turned = ood_metrics(-outside, -inside)
    assert turned.auroc.value == pytest.approx(found.auroc.value)  # the outliers as the positive side of -score


def test_ood_metrics_need_both_sides():
    with pytest.raises(ValueError, match="both sides"):
        ood_metrics(np.zeros(0), np.ones(3))
    with pytest.raises(ValueError, match="numbers"):
        ood_metrics(np.array([np.nan]), np.ones(3))


def test_ood_evaluation_of_a_run_from_the_command_line(cli, run):
    answer = cli("evaluate", run.folder, "--ood", "shapes:60")
    assert answer.code == 0, answer.err
    assert "(positives)" in answer.out
    saved = json.loads((run.folder / "outliers.json").read_text())
    assert saved["positive"] == "in-distribution"
    assert saved["n_outliers"] == 60
    names = [row["score"] for row in saved["scores"]]
    assert sorted(names) == sorted(OOD_SCORES)
    areas = [row["auroc"] for row in saved["scores"]]
    assert areas == sorted(areas, reverse=True)
    own = evaluate_ood_run(run, "digits", by=("max-softmax",))
    assert "classes that the classifier knows" in own["remarks"][0]


def test_scores_of_a_baseline_and_of_a_network_without_dropout():
    from sightline.baselines import fit_baseline
    from sightline.training import read_splits

    splits, _ = read_splits(Recipe(data="digits", size=8, channels=1, limit=300))
    made = fit_baseline(splits, "logistic-regression")
    for name in OOD_SCORES:
        score = choose(OOD_SCORES, WORDS.get(name, name), "score")
        if name == "dropout":
            with pytest.raises(DataError, match="this one has none"):
                score_dataset(score, made, splits.test)
        else:
            assert np.isfinite(score_dataset(fit_score(score, made, splits.train), made, splits.test)).all()
