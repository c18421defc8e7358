"""The verb ``learn``: new classes, renamed, merged, removed and forgotten ones, chains, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from helpers.tiny_classifiers import SETTLED
from sightline.classifier import Classifier
from sightline.continual import FeatureStatistics, learn
from sightline.continual import lesson as module
from sightline.errors import ChoiceError, DataError, Interrupted, OutputError, RecipeError
from sightline.evaluation import evaluate_uncertainty_run
from sightline.features import embed_cached
from sightline.sources import USUAL_LABELS, find, read_places, write_joined
from sightline.training import Recipe, reopen, train

RECIPE = Recipe(
    model="mlp:hidden=[48]", epochs=8, batch_size=32, lr=0.1, normalize="fitted", augment=(), loss="cross-entropy",
    **SETTLED,
)  # fmt: skip


def write_digits(folder, wanted):
    """PNG files: ``wanted`` maps a place below the folder to (digit, first, last)."""
    digits = load_digits()
    for place, (digit, first, last) in wanted.items():
        (folder / place).mkdir(parents=True)
        for number in np.flatnonzero(digits.target == digit)[first:last]:
            pixels = (digits.images[number] * 15.9).astype(np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on four digits, images of two more (20 to train on, 40 to test), and one of a known class."""
    folder = tmp_path_factory.mktemp("learning")
    write_digits(folder / "old", {f"d{d}": (d, 0, 70) for d in range(4)})
    write_digits(
        folder / "new", {f"train/d{d}": (d, 0, 20) for d in (4, 5)} | {f"test/d{d}": (d, 20, 60) for d in (4, 5)}
    )
    write_digits(folder / "more", {"d0": (0, 70, 90)})
    train(folder / "old", RECIPE, out=folder / "run")
    return folder


@pytest.fixture(scope="module")
def learned(home):
    return learn(home / "run", home / "new", out=home / "learned", full=True)


def test_new_classes_are_known_and_old_ones_not_forgotten(home, learned):
    assert learned.run.classifier.classes == ("d0", "d1", "d2", "d3", "d4", "d5")
    found = {one.strategy: one for one in learned.outcomes}
    assert list(found) == ["lda", "replay", "finetune", "retrain"]
    kept = found[learned.chosen]
    assert learned.chosen in ("lda", "replay")
    assert kept.new.value > found["finetune"].new.value
    assert kept.old.value > 0.85
    assert kept.new.n == 80
    assert kept.validation > found["finetune"].validation
    written = json.loads((home / "learned" / "learning.json").read_text())
    assert written["chosen"] == learned.chosen
    assert [one["strategy"] for one in written["outcomes"]] == list(found)


def test_the_new_run_is_a_run_like_any_other(home, learned):
    run = reopen(home / "learned")
    assert run.splits.train.classes == run.classifier.classes
    assert len(run.splits.test) == len(learned.run.splits.test)
    np.testing.assert_array_equal(run.splits.train.digests, learned.run.splits.train.digests)
    assert run.recipe.data.endswith("images.sources")
    files = sorted((home / "new" / "test" / "d4").glob("*.png"))
    answers = [one.label for one in run.classifier.predict(files)]
    assert np.mean([label == "d4" for label in answers]) > 0.7
    assert run.classifier.provenance["parent"] == "run"
    assert run.classifier.provenance["learned"][0]["new_images"] > 20


def test_the_old_run_is_untouched(home, learned):
    assert Classifier.load(home / "run").classes == ("d0", "d1", "d2", "d3")


def test_negative_flips_are_counted_and_shown(home, learned):
    before = Classifier.load(home / "run")
    test = learned.run.splits.test.subset(learned.run.splits.test.labels < 4)
    x = torch.from_numpy(test[:]).permute(0, 3, 1, 2).float() / 255
    was, now = (np.array(one.classes)[one.eval()(x).argmax(1).numpy()] for one in (before, learned.run.classifier))
    truth = np.array(test.classes)[test.labels]
    flips = int(((was == truth) & (now != truth)).sum())
    kept = next(one for one in learned.outcomes if one.strategy == learned.chosen)
    assert kept.negative_flips == flips
    assert (home / "learned" / "negative_flips.png").exists() == (flips > 0)


def test_a_chain_of_lessons(home, learned):
    shutil.rmtree(home / "chain", ignore_errors=True)
    first = learn(home / "learned", rename={"d0": "zero"}, out=home / "chain" / "1")
    assert first.run.classifier.classes == ("zero", "d1", "d2", "d3", "d4", "d5")
    assert first.outcomes[0].negative_flips == 0  # a name changes no answer
    second = learn(
        home / "chain" / "1", rename={"d4": "late", "d5": "late"}, by=["keep", "lda"], out=home / "chain" / "2"
    )
    assert second.run.classifier.classes == ("zero", "d1", "d2", "d3", "late")
    assert second.outcomes[1].old.value > 0.8
    third = learn(home / "chain" / "2", remove=["d2"], out=home / "chain" / "3")
    run = reopen(third.run.folder)
    assert run.classifier.classes == run.splits.test.classes == ("zero", "d1", "d3", "late")
    assert len(run.splits.test) == len(third.run.splits.test)
    assert [step["by"] for step in run.classifier.provenance["learned"]][-1] == "keep"
    assert [name for name, _ in run.classifier.architecture.surgery] == ["head"]
    logits = run.classifier.network.head
    assert logits.out_features == 4


def test_more_images_of_a_known_class(home, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)  # of fine-tuning, shown to compare with
    found = learn(home / "run", home / "more", by=["lda"], out=home / "more-of-it")
    assert found.run.classifier.classes == ("d0", "d1", "d2", "d3")
    assert len(found.run.splits.train) > len(reopen(home / "run").splits.train)


def test_forgotten_images_leave_no_trace_in_the_last_layer(home):
    run = reopen(home / "run")
    gone = home / "gone"
    shutil.rmtree(gone, ignore_errors=True)
    gone.mkdir()
    chosen = run.splits.train.files[:9]
    for file in chosen:
        shutil.copy(home / "old" / file, gone / f"renamed-{file.replace('/', '-')}")
    found = learn(home / "run", forget=gone, out=home / "forgotten")
    left = found.run.splits.train
    assert len(left) == len(run.splits.train) - 9
    assert not set(chosen) & set(left.files)
    features = embed_cached(run.classifier, left)
    expected = FeatureStatistics.of(features, left.labels, left.classes).fit_lda()
    torch.testing.assert_close(found.run.classifier.network.head.weight, expected.weight, rtol=1e-4, atol=1e-4)
    assert "only --by retrain takes all their influence away" in found.sentences[-1]
    kept = FeatureStatistics.from_tensors(found.run.classifier.memory.statistics, left.classes)
    assert kept.counts.sum() == len(left)


def test_thresholds_and_sets_are_fitted_again(home, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    shutil.rmtree(home / "calibrated", ignore_errors=True)
    shutil.copytree(home / "run", home / "calibrated")
    evaluate_uncertainty_run(reopen(home / "calibrated"), coverage=0.8, save=True)
    old = Classifier.load(home / "calibrated")
    found = learn(home / "calibrated", home / "new", by=["lda"], out=home / "recalibrated").run.classifier
    assert old.threshold > 0
    assert found.threshold > 0
    assert found.threshold != old.threshold
    assert len(found.answers["conformal"]["per_class_images"]) == 6


def test_an_interrupted_training_goes_on(home, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 40)
    monkeypatch.chdir(home)
    whole = learn(home / "run", home / "new", by=["replay"], out=home / "whole")
    real = module.refine

    def stop_early(classifier, plan, splits, method, folder, *, resume):
        if folder.path.name != "replay" or resume:
            return real(classifier, plan, splits, method, folder, resume=resume)
        steps = iter(range(10**6))

        def step(state, gradients, objective, batch):
            if next(steps) == 20:
                state.interrupted = True
            return method.step(state, gradients, objective, batch)

        return real(classifier, plan, splits, replace(method, step=step), folder, resume=resume)

    monkeypatch.setattr(module, "refine", stop_early)
    with pytest.raises(Interrupted, match=r"nothing is lost\. Repeat the same command"):
        learn(home / "run", home / "new", by=["replay"])
    monkeypatch.setattr(module, "refine", real)
    assert not (home / "runs" / "run-learned" / "recipe.toml").exists()
    again = learn(home / "run", home / "new", by=["replay"])
    assert again.run.folder == Path("runs/run-learned")
    for one, other in zip(again.run.classifier.parameters(), whole.run.classifier.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_places_joined_into_one(home, tmp_path):
    places = [(str(home / part), USUAL_LABELS) for part in ("old", "new")]
    names = {"d1": "d0", "d4": "four"}
    file = write_joined(tmp_path / "all.sources", places, names=names, without=["d2"])
    source = find(file)
    assert source.classes == ("d0", "d3", "four", "d5")
    assert len(source) == 3 * 70 + 2 * 60
    assert source.read(len(source) - 1)[:4] == b"\x89PNG"
    assert set(source.columns["split"]) == {"train", "test"}
    assert read_places(file) == (places, names, ["d2"])
    file.write_text('{"sources": []}')
    with pytest.raises(DataError, match="does not say where images lie"):
        find(file)


def refused(home):
    """What cannot be done: arguments, kind of error, message."""
    new = {"new_data": home / "new"}
    return {
        "nothing": ({}, RecipeError, "nothing to learn"),
        "unknown class": ({"rename": {"d9": "x"}}, DataError, "no class 'd9' to rename"),
        "unknown removed": ({"remove": ["cat"]}, DataError, "no class 'cat' to remove"),
        "last but one": ({"remove": ["d1", "d2", "d3"]}, DataError, "Only the class 'd0' would be left"),
        "strategy": ({**new, "by": ["replai"]}, ChoiceError, "replay"),
        "small memory": (
            {**new, "by": ["replay"], "memory": 2},
            DataError,
            "smaller than one image",
        ),
        "no memory": ({**new, "memory": 0}, RecipeError, "at least one for each class"),
        "no images": (
            {**new, "by": ["replay"], "keep_images": False},
            RecipeError,
            "cannot work",
        ),
        "spelling": ({"new_data": home / "spelled"}, DataError, "knows 'd3'"),
        "all of a class": ({"forget": home / "old" / "d3"}, DataError, "No training image of 'd3' would be left"),
        "not among them": ({"forget": home / "new" / "train" / "d4"}, DataError, "None of the images"),
        "itself": ({**new, "out": home / "run"}, OutputError, "never changed"),
    }


@pytest.mark.parametrize("case", refused(Path()))
def test_what_cannot_be_learned(home, case):
    if not (home / "spelled").exists():
        write_digits(home / "spelled", {"D3 ": (3, 70, 80)})
    arguments, kind, message = refused(home)[case]
    with pytest.raises(kind, match=message):
        learn(home / "run", **{"out": home / "refused", **arguments})
    assert not (home / "refused" / "recipe.toml").exists()


def test_two_images_of_a_class_are_learned_and_not_measured(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    write_digits(tmp_path / "few", {"d6": (6, 0, 2)})
    found = learn(home / "run", tmp_path / "few", by=["lda"], out=tmp_path / "out")
    assert found.run.classifier.classes[-1] == "d6"
    assert "fewer than 3 new images of d6" in capsys.readouterr().err


def test_without_old_images_only_sums(home, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    found = learn(home / "run", home / "new", keep_images=False, out=home / "sums")
    assert [one.strategy for one in found.outcomes] == ["lda", "finetune"]
    assert found.run.classifier.memory.exemplars == {}
