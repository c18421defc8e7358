"""1 to 20 images a class, from the command to the report; and photos without labels that centre the features."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestCentroid

from sightline.classifier import Classifier
from sightline.data import load_dataset
from sightline.errors import DataError, RecipeError
from sightline.evaluation import evaluate_uncertainty_run
from sightline.features import embed_cached
from sightline.inference import embed, predict_logits
from sightline.models import get_head
from sightline.sources import find_unlabelled
from sightline.training import Recipe, reopen, train
from sightline.training.heads import ClassMeans, LinearDiscriminant, predict_left_out

SMALL = {"size": 64, "seed": 0}
COMPUTED = ("probe", "prototypes", "lda", "finetune")


def draw_photo(kind, rng):
    """A warm disc or cold stripes."""
    across, down = np.meshgrid(np.arange(96), np.arange(80))
    disc = (across - rng.integers(30, 60)) ** 2 + (down - rng.integers(30, 50)) ** 2 < 400
    stripes = (across // rng.integers(3, 7)) % 2 == 1
    mask, colour = ((disc, (220, 90, 40)), (stripes, (40, 90, 220)))[kind]
    pixels = np.where(mask[..., None], colour, 200) + rng.normal(0, 12, (80, 96, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Makes a folder with this many photos of each of two kinds."""

    def make(count):
        place, rng = tmp_path_factory.mktemp("few"), np.random.default_rng(count)
        for kind, name in enumerate(("disc", "stripe")):
            (place / name).mkdir()
            for number in range(count):
                draw_photo(kind, rng).save(place / name / f"{number}.png")
        return place

    return make


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Photos without labels, all in one folder, one of them twice."""
    place, rng = tmp_path_factory.mktemp("others"), np.random.default_rng(99)
    for number in range(16):
        draw_photo(number % 2, rng).save(place / f"{number}.png")
    shutil.copy(place / "3.png", place / "copy of 3.png")
    return place


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("count", [1, 3, 20])
def test_the_command_works_from_one_image_a_class(count, few, tmp_path, cli):
    answer = cli("train", few(count), "--size", 64, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "none is set aside for validation" in answer.err
    run = reopen(tmp_path / "run")
    assert len(run.splits.val) == 0
    assert run.recipe.method == ("prototypes" if count < 4 else "finetune")
    page = (tmp_path / "run" / "report.html").read_text()
    if count == 1:
        assert "Nothing is tested" in answer.out
        assert run.classifier.temperature == 1
        assert "Nothing has been measured yet" in page
    else:
        assert "Test on" in answer.out
        assert len(run.splits.test) >= 2


@pytest.mark.parametrize("method", COMPUTED)
@pytest.mark.parametrize("count", [1, 2])
def test_every_method_takes_one_image_a_class(count, method, few, tmp_path):
    run = train(few(count), Recipe(method=method, **SMALL), out=tmp_path / "run")
    fresh = load_dataset(few(6), run.classifier.geometry)
    logits, labels = predict_logits(run.classifier, fresh)
    assert (logits.argmax(1) == labels).float().mean() > 0.9
    with pytest.raises(DataError, match=r"no validation images.*--val-fraction"):
        evaluate_uncertainty_run(run, risk=0.1)


def test_confidence_is_calibrated_on_images_left_out(few, tmp_path):
    """The temperature is that of predictions by heads that had not seen the image."""
    run = train(few(5), Recipe(method="lda", **SMALL), out=tmp_path / "run")
    assert run.classifier.provenance["calibrated_on"] == "training images left out in turn"

    assert run.facts["val_accuracy"] is None
    assert run.facts["head"]["left_out_accuracy"] == 1.0


@pytest.mark.parametrize("head", [ClassMeans(), LinearDiscriminant()])
def test_an_image_left_out_is_not_seen(head):
    """With random labels it is right by chance at most, where a head that has seen it is always right."""
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(300, 400)).astype(np.float32), np.arange(300) % 3
    logits, same = predict_left_out(head, features, labels, 3, seed=0)
    assert np.array_equal(same, labels)
    assert (logits.argmax(1).numpy() == labels).mean() < 0.45
    fitted = head.fit(features, labels, 3, seed=0)
    seen = features @ fitted.weight.numpy().T + fitted.bias.numpy()
    assert (seen.argmax(1) == labels).mean() > 0.6
    assert len(predict_left_out(head, features[:3], labels[:3], 3, seed=0)[0]) == 0


@pytest.fixture(scope="module")
def centred(few, others, tmp_path_factory):
    """A run on three photos a class, and one each to test, centred by others."""
    recipe = Recipe(method="prototypes", unlabelled=str(others), **SMALL)
    return train(few(4), recipe, out=tmp_path_factory.mktemp("centred") / "run")


def test_the_centre_is_the_mean_of_all_photos_each_once(centred, others):
    classifier = centred.classifier
    found = load_dataset(find_unlabelled(others), classifier.geometry)
    assert len(found) == 17
    assert not found.is_labelled.any()
    distinct = np.unique(found.digests, return_index=True)[1]
    both = np.concatenate(
        [embed_cached(classifier, one) for one in (centred.splits.train, found.subset(distinct))]
    )
    np.testing.assert_allclose(get_head(classifier.network).centre, both.mean(0), atol=1e-5)
    assert classifier.provenance["centred_by"]["images"] == 16
    assert any("centred by 16 unlabelled photos" in note for note in centred.notes)


@pytest.mark.filterwarnings("ignore:.*zero standard deviation")
def test_prototypes_on_centred_features_are_scikit_learns_nearest_centroid(centred, few):
    classifier = centred.classifier
    centre = get_head(classifier.network).centre.numpy()

    def prepare(images):
        features = embed(classifier, images) - centre
        return features / np.linalg.norm(features, axis=1, keepdims=True)

    train_images, fresh = centred.splits.train, load_dataset(few(8), classifier.geometry)
    oracle = NearestCentroid().fit(prepare(train_images), train_images.labels)
    answers = predict_logits(classifier, fresh)[0].argmax(1).numpy()
    assert np.array_equal(answers, oracle.predict(prepare(fresh)))


def test_labels_of_the_unlabelled_change_nothing(centred, few, others, tmp_path):
    """The leak test: the same photos in folders of any class."""
    rng = np.random.default_rng(5)
    for file in sorted(others.iterdir()):
        folder = tmp_path / "sorted" / ("disc" if rng.random() < 0.5 else "stripe")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.name)
    again = train(few(4), centred.recipe.replace(unlabelled=str(tmp_path / "sorted")), out=tmp_path / "run")
    one, two = (dict(each.classifier.state_dict()) for each in (centred, again))
    centre = "network.head.centre"
    torch.testing.assert_close(one.pop(centre), two.pop(centre), rtol=1e-5, atol=1e-6)  # another order of the sum
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", COMPUTED)
def test_the_bundle_carries_the_centre(method, few, others, tmp_path):
    run = train(few(2), Recipe(method=method, unlabelled=str(others), **SMALL), out=tmp_path / "run")
    fresh = load_dataset(few(4), run.classifier.geometry)
    loaded = Classifier.load(run.folder)
    assert torch.equal(predict_logits(loaded, fresh)[0], predict_logits(run.classifier, fresh)[0])
    assert get_head(loaded.network).centre.abs().sum() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": "lenet5", "size": 28},
            "choose --method prototypes, probe, lda or finetune, or leave --unlabelled",
        ),
        ({"method": "prototypes", "unlabelled": "nowhere"}, "There is nothing at 'nowhere'"),
        ({"method": "prototypes", "val_fraction": 0.2}, "too few images to draw a .* split.*-fraction 0"),
        (
            {"epochs": 2, "val_fraction": 0.0, "test_fraction": 0.0},
            "val_fraction is 0, but training keeps the epoch",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(fields, message, few, others, tmp_path):
    recipe = Recipe(**{**SMALL, "unlabelled": str(others), **fields})
    with pytest.raises((DataError, RecipeError), match=message):
        train(few(5 if "model" in fields else 1), recipe, out=tmp_path / "run")


def test_a_folder_without_photos_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="no image in"):
        find_unlabelled(tmp_path)
