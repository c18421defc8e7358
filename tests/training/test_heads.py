"""Heads computed on frozen features: against vectors and scikit-learn, and as ordinary classifiers in a run."""

import json
import pickle
import shutil
import socket
import time
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from helpers.tiny_classifiers import SETTLED
from sightline.classifier import Classifier
from sightline.cli.flags import RecipeFlags, recipe_from_flags
from sightline.data import survey
from sightline.errors import Interrupted, RecipeError
from sightline.inference import predict_logits
from sightline.sources import find
from sightline.training import BaseHook, Recipe, default_network, prepare, reopen, resolve, resume, train
from sightline.training import head_first as module
from sightline.training import run as module_of_run
from sightline.training.estimate import estimate_cost
from sightline.training.head_first import compare_with_head
from sightline.training.heads import ClassMeans, LinearDiscriminant
from sightline.training.plan import HEAD_METHODS
from sightline.training.rival import Rival, rival_recipe
from sightline.training.run_folder import RunFolder
from sightline.training.starts import FINE_TUNING, default_start

COMPUTED = [name for name, make in HEAD_METHODS.items() if make() is not None]


def blobs(classes, count=90, width=12, seed=0):
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).astype(np.int64)
    centres = rng.normal(size=(classes, width)) * 2
    return (centres[labels] + rng.normal(size=(count, width)) + 3).astype(np.float32), labels


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_head_learns_separated_classes_whatever_the_order(name, classes):
    features, labels = blobs(classes)
    head = HEAD_METHODS[name]().fit(features, labels, classes, seed=0)
    order = np.random.default_rng(1).permutation(len(labels))
    other = HEAD_METHODS[name]().fit(features[order], labels[order], classes, seed=0)
    logits = features @ head.weight.numpy().T + head.bias.numpy()
    again = features @ other.weight.numpy().T + other.bias.numpy()
    assert (logits.argmax(1) == labels).mean() > 0.97
    assert (logits.argmax(1) == again.argmax(1)).mean() > 0.98
    assert head.weight.dtype == head.bias.dtype == torch.float32


def test_class_means_are_the_softmax_of_distances():
    """Snell et al. 2017, equation 2: the vector of two classes with means (0, 1) and (4, 1)."""
    support = np.array([[0, 0], [0, 2], [4, 0], [4, 2]], np.float32)
    head = ClassMeans().fit(support, np.array([0, 0, 1, 1]), 2, seed=0)
    queries = np.array([[1, 1], [3, 3], [2, 1]], np.float32)
    logits = torch.from_numpy(queries @ head.weight.numpy().T + head.bias.numpy())
    wanted = torch.tensor([0.99966465, 0.00033535, 0.5])
    assert torch.allclose(torch.softmax(logits, 1)[:, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_discriminant_is_scikit_learns(classes):
    features, labels = blobs(classes)
    head = LinearDiscriminant(shrinkage=0.3).fit(features, labels, classes, seed=0)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(features, labels)
    ours = torch.softmax(torch.from_numpy(features @ head.weight.numpy().T + head.bias.numpy()), 1)
    assert np.abs(ours.numpy() - oracle.predict_proba(features)).max() < 1e-4


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run whose features are worth something."""
    out = tmp_path_factory.mktemp("start") / "run"
    return train("digits", Recipe(model="small-cnn", epochs=3, seed=1, **SETTLED), out=out).folder


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_head_is_an_ordinary_run(name, start, tmp_path):
    recipe = Recipe(weights=str(start), method=name, epochs=0, seed=1, **SETTLED)
    run = train("digits", recipe, out=tmp_path / "run")
    assert run.facts["head"]["method"] == name
    assert run.facts["val_accuracy"] > 0.9
    loaded = Classifier.load(run.folder)
    one, two = (predict_logits(each, run.splits.test)[0] for each in (run.classifier, loaded))
    assert torch.equal(one, two)
    assert json.loads((run.folder / "training.json").read_text())["head"] == run.facts["head"]


def test_a_head_sees_the_images_that_the_budget_has_time_for(start, tmp_path):
    recipe = Recipe(weights=str(start), method="finetune", seed=1, **SETTLED)
    run = train("digits", recipe, out=tmp_path / "late", began=time.monotonic() - 3600)
    seen, images = run.facts["head"]["train_images"], len(run.splits.train)
    assert 10 <= seen < images / 2
    assert any(f"It saw {seen} of {images:,} training images" in note for note in run.notes)
    assert any(note.startswith("No fine-tuning: ") for note in run.notes)
    assert run.facts["val_accuracy"] > 0.5


def test_fine_tuning_that_does_not_help_leaves_the_head(start, tmp_path):
    recipe = Recipe(weights=str(start), method="finetune", epochs=1, lr=5.0, optimizer="sgd", seed=1, **SETTLED)
    run = train("digits", recipe, out=tmp_path / "run")
    assert run.facts["fine_tuning"]["kept"] is False
    assert run.facts["best_epoch"] == 0
    head = train("digits", recipe.replace(method="probe", epochs=0), out=tmp_path / "head")
    one, two = (predict_logits(each.classifier, run.splits.test)[0] for each in (run, head))
    assert torch.allclose(one, two, atol=1e-5)
    assert Classifier.load(run.folder).temperature == head.classifier.temperature


def test_fine_tuning_that_helps_is_kept(tmp_path):
    """From five features of a network that has hardly learned anything."""
    bottleneck = Recipe(model="mlp:hidden=[5]", epochs=1, lr=1e-4, seed=1, **SETTLED)
    weak = train("digits", bottleneck, out=tmp_path / "weak")
    recipe = Recipe(weights=str(weak.folder), method="finetune", epochs=15, lr=1e-2, augment=(), seed=1, **SETTLED)
    run = train("digits", recipe, out=tmp_path / "run")
    verdict = run.facts["fine_tuning"]
    assert verdict["kept"], verdict
    assert verdict["mended"] > verdict["broken"]
    assert verdict["reason"] in RunFolder(run.folder).read_notes()
    assert run.facts["best_epoch"] > 0


def test_a_head_without_errors_is_not_fine_tuned_unless_asked(start, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MIN_ERRORS_TO_FINE_TUNE", 10**6)
    recipe = Recipe(weights=str(start), method="finetune", seed=1, **SETTLED)
    run = train("digits", recipe, out=tmp_path / "run")
    assert run.recipe.epochs == 0
    assert any("No fine-tuning" in note for note in run.notes)


def test_the_comparison_is_paired(start, tmp_path):
    run = train(
        "digits", Recipe(weights=str(start), method="probe", epochs=0, seed=1, **SETTLED), out=tmp_path / "r"
    )
    logits, labels = predict_logits(run.classifier, run.splits.val)
    losses = torch.nn.functional.cross_entropy(logits / run.classifier.temperature, labels, reduction="none")
    head = module.HeadResult({}, losses, logits.argmax(1) == labels, 1.0, {})
    same = compare_with_head(run.classifier, run.splits, head)
    assert (same["kept"], same["mended"], same["broken"]) == (False, 0, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "lenet5", "method": "probe"}, "needs trained weights"),
        ({"model": "lenet5", "method": "prob"}, "Did you mean 'probe'"),
        ({"model": "lenet5", "normalize": "pretrained"}, "starts from no published weights"),
        ({"crop_fraction": 0.9}, "needs --resize-mode crop"),
        ({"from_scratch": True, "quality": "best"}, "leave one out"),
        ({"model": "timm:convnextv2_atto.fcmae_ft_in1k:pretrained=True"}, "cc-by-nc-4.0.*--accept-licence"),
    ],
)
def test_what_cannot_be_is_one_sentence(fields, message, tmp_path):
    with pytest.raises((RecipeError, Exception), match=message):
        train("digits", Recipe(epochs=1, **fields), out=tmp_path / "run")


@pytest.fixture
def photos(tmp_path):
    """Two kinds of pictures, large enough to be photos: warm discs and cold stripes."""
    rng = np.random.default_rng(0)
    across, down = np.meshgrid(np.arange(96), np.arange(80))
    for number in range(24):
        disc = ((across - rng.integers(30, 60)) ** 2 + (down - rng.integers(30, 50)) ** 2 < 400)[..., None]
        stripes = ((across // rng.integers(3, 7)) % 2)[..., None].astype(bool)
        for name, mask, colour in (("disc", disc, (220, 90, 40)), ("stripe", stripes, (40, 90, 220))):
            pixels = np.where(mask, colour, 200) + rng.normal(0, 12, (80, 96, 3))
            folder = tmp_path / "photos" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")
    return tmp_path / "photos"


def test_photos_start_from_the_embedded_weights_and_need_no_network(photos, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    run = train(photos, Recipe(size=64, seed=0), out=tmp_path / "run")
    recipe = run.recipe
    assert recipe.model.startswith("timm:tf_efficientnet_lite0")
    assert (recipe.method, recipe.resize_mode, recipe.crop_fraction) == ("finetune", "crop", 0.875)
    assert (recipe.interpolation, recipe.normalize) == ("bicubic", "pretrained")
    assert run.classifier.geometry.crop_fraction == 0.875
    assert run.facts["head"]["left_out_accuracy"] == 1.0
    assert run.classifier.provenance["weights"]["licence"] == "apache-2.0"
    again = train(photos, recipe, out=tmp_path / "again")
    one, two = (predict_logits(each.classifier, run.splits.test)[0] for each in (run, again))
    assert torch.equal(one, two)


TYPED = {"lr": 1e-3, "batch_size": 4, "augment": (), "cpu_replicas": 2}
"""A value that a user may type where a recipe's own default leaves the choice open."""


@pytest.mark.parametrize("field", FINE_TUNING)
def test_a_field_that_was_given_is_not_chosen_for_fine_tuning(field):
    """Given as the recipe's own default: by the constructor, ``replace``, a file or a flag, also to another process."""

    def chosen(recipe):
        sent = pickle.loads(pickle.dumps(recipe)).replace(method="finetune", **start)
        return {one.field: one.value for one in default_network(resolve(sent), train_images=100)}

    start = {"model": "timm:tf_efficientnet_lite0.in1k:pretrained=True", "size": 64, "channels": 3}
    assert chosen(Recipe())[field] == FINE_TUNING[field]
    value = vars(Recipe())[field] if vars(Recipe())[field] is not None else TYPED[field]
    file = Recipe(**tomllib.loads(f"{field} = {json.dumps(value)}"))
    flag = recipe_from_flags(RecipeFlags(**{field: value}), None)
    for given in (Recipe(**{field: value}), Recipe().replace(**{field: value}), file, flag):
        assert field not in chosen(given)
        assert chosen(given).keys() >= FINE_TUNING.keys() - {field}


def test_a_dry_run_tells_of_the_pretrained_start(photos):
    found = estimate_cost(photos, Recipe(size=64, epochs=1))
    assert found.values["recipe"]["model"].startswith("timm:tf_efficientnet_lite0")
    assert found.values["recipe"]["freeze"] == "early"
    assert any("only where it pays" in remark.text for remark in found.remarks)


@pytest.mark.parametrize(("images", "size"), [(2, None), (10**9, 128)])
def test_a_size_whose_features_fit_the_budget_is_chosen_and_said(photos, images, size):
    found = replace(survey(find(str(photos))), total=images)
    chosen = {each.field: each for each in default_start(resolve(Recipe()), found)}
    assert chosen["size"].value == (size or 224)
    assert ("a third of the budget of 10m" in chosen["size"].reason) == (size is not None)
    fixed = default_start(resolve(Recipe(epochs=3)), found)
    assert next(each.value for each in fixed if each.field == "size") == 224


@pytest.mark.parametrize(
    ("images", "asked", "mode"),
    [
        (48, {}, "crop"),
        (1000, {}, "squash"),
        (1000, {"method": "probe"}, "crop"),
        (1000, {"resize_mode": "pad"}, None),
    ],
)
def test_fine_tuning_on_many_photos_sees_whole_pictures(photos, images, asked, mode):
    found = replace(survey(find(str(photos))), total=images)
    chosen = {each.field: each.value for each in default_start(resolve(Recipe(**asked)), found)}
    assert chosen.get("resize_mode") == mode
    assert ("crop_fraction" in chosen) == (mode == "crop")


def test_from_scratch_is_the_way_back(photos, tmp_path):
    run = train(photos, Recipe(size=64, epochs=0, from_scratch=True), out=tmp_path / "run")
    assert run.recipe.model == "resnet20"
    assert run.recipe.method == "gradient"
    assert run.classifier.geometry.resize_mode == "squash"


def test_grey_photos_fold_the_first_layer(photos, tmp_path):
    run = train(photos, Recipe(size=64, channels=1, method="prototypes", val_fraction=0.1), out=tmp_path / "run")
    assert run.classifier.geometry.channels == 1
    assert run.facts["val_accuracy"] > 0.9


@pytest.mark.parametrize("better", [True, False])
def test_validation_decides_between_a_run_and_its_rival(better, start, tmp_path):
    """Also where the files of the better one were put in place halfway."""
    weak = train(
        "digits", Recipe(model="mlp:hidden=[5]", epochs=1, lr=1e-4, seed=1, **SETTLED), out=tmp_path / "weak"
    )
    strong = reopen(start)
    shutil.copytree(start, tmp_path / "strong")
    run, other = (weak, strong) if better else (strong, weak)
    folder = RunFolder(tmp_path / ("strong" if run is strong else "weak"))
    rival = Rival(folder)
    shutil.move(tmp_path / ("strong" if other is strong else "weak"), rival.path)
    rival.write_recipe(Recipe())
    rival.judge(run.classifier, run.splits, other.classifier, other.splits)
    if better:  # as if killed after two of the moves
        for name in ("classifier", "training.json"):
            place = folder.path / name
            shutil.rmtree(place) if place.is_dir() else place.unlink()
            shutil.move(rival.path / name, place)
    kept = resume(folder.path)
    assert kept.facts["from_scratch"]["kept"] is better
    assert kept.facts["from_scratch"]["pretrained_val_accuracy"] == pytest.approx(run.facts["val_accuracy"])
    assert kept.recipe.model == "small-cnn"
    assert not rival.path.exists()
    assert rival.read_recipe() is None
    assert sum("A small network from scratch" in note for note in folder.read_notes()) == 1


@pytest.fixture(scope="module")
def textures(tmp_path_factory):
    """40 grey pictures of two kinds: noise whose rows, or columns, are alike."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("textures")
    for number in range(20):
        for name, axis in (("rows", 0), ("columns", 1)):
            pixels = 128 + 12 * np.repeat(rng.normal(size=(64, 1)), 64, 1) + 40 * rng.normal(size=(64, 64))
            (folder / name).mkdir(exist_ok=True)
            image = Image.fromarray((pixels.T if axis else pixels).clip(0, 255).astype(np.uint8))
            image.save(folder / name / f"{number}.png")
    return folder


def test_a_run_and_its_rival_resume_wherever_they_were_stopped(textures, tmp_path, monkeypatch):
    """Stopped in fine-tuning, in the training of the rival, and before it is judged: the same classifier."""
    for name in ("rival.MIN_RIVAL_IMAGES", "head_first.MIN_ERRORS_TO_FINE_TUNE"):
        monkeypatch.setattr(f"sightline.training.{name}", 0)
    monkeypatch.setattr("sightline.training.defaults.MAX_DEFAULT_EPOCHS", 1)
    asked = Recipe(size=64, val_fraction=0.2, batch_size=8, budget="2h", seed=0, **SETTLED)
    whole = train(textures, asked, out=tmp_path / "whole")
    verdict = whole.facts["from_scratch"]
    assert {"kept", "val_accuracy", "pretrained_val_accuracy"} <= verdict.keys()
    assert verdict["reason"] in RunFolder(whole.folder).read_notes()
    assert whole.recipe.from_scratch is verdict["kept"]
    assert not (whole.folder / "from-scratch").exists()

    steps = []

    class Stop(BaseHook):
        def after_step(self, state):
            steps.append(state.step)
            state.interrupted = len(steps) in (1, 5)

    original = module_of_run.build_method
    stopped = lambda *a, **k: replace((made := original(*a, **k)), hooks={**made.hooks, "stop": Stop()})  # noqa: E731
    monkeypatch.setattr(module_of_run, "build_method", stopped)
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted, match="train --resume"):
        train(textures, asked, out=cut)
    assert not RunFolder(cut).read_facts()
    with pytest.raises(Interrupted, match=rf"from scratch was trained.*--resume {cut}$"):
        resume(cut)
    assert RunFolder(cut).read_facts()
    with monkeypatch.context() as patch:
        patch.setattr(Rival, "judge", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            resume(cut)
    kept = resume(cut)
    assert kept.facts["from_scratch"] == verdict
    for name, tensor in whole.classifier.state_dict().items():
        assert torch.equal(tensor, kept.classifier.state_dict()[name]), name
    with pytest.raises(RecipeError, match="is finished"):
        resume(cut)
    assert sorted(each.name for each in cut.iterdir()) == sorted(each.name for each in whole.folder.iterdir())


def test_a_rival_is_tried_on_many_images_unlike_photographs(photos, monkeypatch):
    asked = Recipe(data=str(photos))
    plan, splits, _ = prepare(resolve(asked.replace(size=64)))
    images = splits.train, len(splits.train)
    plan = plan.replace(method="finetune")
    assert rival_recipe(asked, plan, *images) is None, "few images"
    monkeypatch.setattr("sightline.training.rival.MIN_RIVAL_IMAGES", 10)
    found = rival_recipe(asked, plan, *images)
    assert (found.from_scratch, found.size, found.data) == (True, 64, str(photos))
    for changes in ({"model": "resnet20"}, {"method": "finetune"}, {"epochs": 3}):
        assert rival_recipe(asked.replace(**changes), plan, *images) is None
    monkeypatch.setattr("sightline.training.rival.MAX_RIVAL_SIDE", 64)
    assert rival_recipe(asked, plan, *images) is None, "photographs"
    assert rival_recipe(asked, plan.replace(channels=1), *images) is not None, "grey"
