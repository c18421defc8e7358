"""Tuning and comparing a computed head: the images are embedded once, whatever the number of trials or folds."""

import numpy as np
import pytest

from helpers.attacked_classifiers import digits, trained
from helpers.photo_folder import write_photos
from helpers.tiny_classifiers import SETTLED
from sightline.comparison import cross_validate
from sightline.errors import SightlineError
from sightline.features.embedding import Embedder
from sightline.inference import predict_logits
from sightline.training import Recipe
from sightline.tuning import tune


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    """Rows that were embedded, with an empty cache."""
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    seen, original = [], Embedder.embed_batch

    def counted(self, rows):
        seen.extend(self.dataset.rows[rows].tolist())
        return original(self, rows)

    monkeypatch.setattr(Embedder, "embed_batch", counted)
    return seen


@pytest.fixture
def base(tmp_path):
    return Recipe(weights=str(trained().save(tmp_path / "start")), method="probe", limit=600, size=8)


def test_a_study_of_penalties_embeds_once_and_the_best_is_a_run(base, embedded, tmp_path):
    found = tune("digits", base, ["method.penalty=0.0003,0.01,3.0"], by="grid", out=tmp_path / "study")
    assert len(embedded) == len(set(embedded))
    scores = {row["method.penalty"]: row["val_accuracy"] for row in found.rows}
    assert len(scores) == 3
    assert min(scores.values()) > 0.5
    assert found.best["val_accuracy"] == max(scores.values())
    assert found.winner is not None
    assert found.winner.facts["head"]["penalty"] == found.best["method.penalty"]


def test_a_study_of_photos_starts_from_published_weights(tmp_path):
    """Each trial on pixels as their card says, and judged by validation images also where images are few."""
    photos = write_photos(tmp_path / "photos", 20)
    base = Recipe(size=64, method="probe", **SETTLED)
    found = tune(photos, base, ["method.penalty=0.01,1.0"], by="grid", out=tmp_path / "study")
    assert [row["state"] for row in found.rows] == ["finished", "finished"]
    assert found.best["val_accuracy"] > 0.5
    assert found.winner.recipe.model.startswith("timm:tf_efficientnet_lite0")
    assert found.winner.recipe.val_fraction == 0.1
    assert found.winner.classifier.geometry.resize_mode == "crop"
    assert found.winner.facts["val_accuracy"] == found.best["val_accuracy"]


def test_a_penalty_of_zero_is_refused_in_one_sentence(base, tmp_path):
    with pytest.raises(SightlineError, match="penalty"):
        tune("digits", base, ["method.penalty=0,1"], by="grid", out=tmp_path / "study")


def test_folds_of_a_head_share_one_pass_and_are_tested_as_the_network_answers(
    base, embedded, tmp_path, monkeypatch
):
    dataset = digits()[2].subset(np.arange(300))
    from sightline.comparison import candidates

    kept, original = {}, candidates.predict_logits_cached

    def compared(classifier, images):
        kept[len(kept)] = (original(classifier, images), predict_logits(classifier, images)[0])
        return kept[len(kept) - 1][0]

    monkeypatch.setattr(candidates, "predict_logits_cached", compared)
    found = cross_validate(dataset, "small-cnn", folds=3, recipe=base.replace(limit=None))
    assert sorted(set(embedded)) == sorted(dataset.rows.tolist())
    assert len(embedded) == len(set(embedded))
    assert len(kept) == 3
    assert found.accuracy.value > 0.8
    for ours, plain in kept.values():
        assert (ours.argmax(1) == plain.argmax(1)).float().mean() > 0.97
