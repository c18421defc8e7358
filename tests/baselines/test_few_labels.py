"""What the labels alone are worth: the classical methods that a semi-supervised run is compared with."""

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sightline.baselines import embed_published, measure_few_label_baselines
from sightline.baselines.few_labels import EnlargedPixels
from sightline.data import concat, strip_labels
from sightline.training import Recipe, read_splits


@pytest.fixture(scope="module")
def splits():
    """Digits: 100 with a label, 500 without."""
    whole = read_splits(Recipe(data="digits", size=8, channels=1))[0]
    few, more = whole.train.subset(np.arange(100)), strip_labels(whole.train.subset(np.arange(100, 600)))
    return replace(whole, train=concat([few, more]))


def test_on_pixels(splits):
    """As scikit-learn alone does it; the pool helps here, and its labels are gone."""
    found = measure_few_label_baselines(splits)
    assert set(found) == {"logistic regression on pixels", "label spreading on pixels"}
    train, test = splits.train.labelled, splits.test
    known, asked = (each[np.arange(len(each))].reshape(len(each), -1) / 255 for each in (train, test))
    oracle = LogisticRegression(C=0.1, max_iter=1000).fit(known, train.labels).score(asked, test.labels)
    assert found["logistic regression on pixels"].value == pytest.approx(oracle, abs=0.005)
    assert found["label spreading on pixels"].value > found["logistic regression on pixels"].value
    assert found["label spreading on pixels"].n == len(test)
    alone = measure_few_label_baselines(replace(splits, train=train))
    assert set(alone) == {"logistic regression on pixels"}


def test_small_images_are_enlarged_for_the_backbone(splits):
    few = splits.test.subset(np.arange(6))
    large = EnlargedPixels(few.pixels, 16)
    assert large.shape == (few.pixels.shape[0], 16, 16, 1)
    assert np.abs(large[few.rows].astype(float).mean((1, 2)) - few[np.arange(6)].mean((1, 2))).max() < 6
    features = embed_published(few)
    assert features.shape == (6, 1280)
    assert np.linalg.norm(features, axis=1) == pytest.approx(10, rel=1e-4)


def test_the_command_shows_them(tmp_path, cli):
    from sightline.sources import find

    source = find("digits")
    for row in range(180):
        place = tmp_path / "data" / (str(row % 3) if row < 90 else "unlabelled")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row}.png").write_bytes(source.read(row))
    answer = cli(
        "train", tmp_path / "data", "--model", "mlp", "--size", 8, "--epochs", 1, "--semi-supervised", "softmatch",
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert set(found["labels_alone"]) == {"logistic regression on pixels", "label spreading on pixels"}
    assert "softmatch" in (tmp_path / "run" / "classifier" / "README.md").read_text()
