"""The verb ``learn``: new classes, renamed, merged, removed and forgotten ones, chains, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.digit_folders import DIGITS_RECIPE, write_digits
from sightline.classifier import Classifier
from sightline.continual import FeatureStatistics, learn, learning
from sightline.continual import lesson as module
from sightline.continual.changes import looks_alike
from sightline.data import hash_file
from sightline.errors import ChoiceError, DataError, Interrupted, OutputError, RecipeError
from sightline.evaluation import evaluate_uncertainty_run
from sightline.features import embed_cached
from sightline.files import checksum
from sightline.inference import predict_correct
from sightline.sources import USUAL_LABELS, find, read_places, write_joined
from sightline.training import RunFolder, reopen, train


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on four digits, images of two more (20 to train on, 40 to test), and one of a known class."""
    folder = tmp_path_factory.mktemp("learning")
    write_digits(folder / "old", {f"d{d}": (d, 0, 70) for d in range(4)})
    write_digits(
        folder / "new", {f"train/d{d}": (d, 0, 20) for d in (4, 5)} | {f"test/d{d}": (d, 20, 60) for d in (4, 5)}
    )
    write_digits(folder / "more", {"d0": (0, 70, 90)})
    train(folder / "old", DIGITS_RECIPE, out=folder / "run")
    return folder


@pytest.fixture(scope="module")
def learned(home):
    return learn(home / "run", home / "new", out=home / "learned", full=True)


def test_new_classes_are_known_and_old_ones_not_forgotten(home, learned):
    assert learned.run.classifier.classes == ("d0", "d1", "d2", "d3", "d4", "d5")
    found = {one.strategy: one for one in learned.outcomes}
    assert list(found) == ["lda", "ranpac", "replay", "finetune", "retrain"]
    kept = found[learned.chosen]
    assert learned.chosen in ("lda", "ranpac", "replay")
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
        "to a class that is there": ({"rename": {"d0": "d1"}}, DataError, "--merge d0,d1=d1"),
        "merged unknown": ({"rename": {"d0": "x", "d8": "x"}}, DataError, "no class 'd8' to rename or merge"),
        "no such new class": ({**new, "new_classes": ["d44"]}, DataError, "no class 'd44'"),
        "a classifier without its run": ({**new, "run": home / "run" / "classifier"}, DataError, "name its run"),
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
        learn(**{"run": home / "run", "out": home / "refused", **arguments})
    assert not (home / "refused" / "recipe.toml").exists()


def test_two_images_of_a_class_are_learned_and_not_measured(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    write_digits(tmp_path / "few", {"d6": (6, 0, 2)})
    found = learn(home / "run", tmp_path / "few", by=["lda"], out=tmp_path / "out")
    assert found.run.classifier.classes[-1] == "d6"
    assert "fewer than 3 new images of d6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "other", "alike"),
    [
        ("Glass", "glass", True),
        ("card-board", "cardboard", True),
        ("plastics", "plastic", True),
        ("metla", "metal", False),  # a slip in so short a word is as well another word
        ("class 10", "class 11", False),
        ("cat", "cats", False),
        ("grass", "glass", False),
    ],
)
def test_names_that_are_likely_meant_to_be_one(name, other, alike):
    assert looks_alike(name, other) == alike


def test_a_name_that_is_insisted_on_is_a_new_class(home, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    write_digits(tmp_path / "new", {"D3": (6, 0, 12)})
    found = learn(home / "run", tmp_path / "new", by=["lda"], new_classes=["D3"], out=tmp_path / "out")
    assert found.run.classifier.classes == ("d0", "d1", "d2", "d3", "D3")


def test_images_of_another_size_and_mode_and_a_class_of_one_image(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    rng = np.random.default_rng(0)
    for name, mode, size, count in (
        ("wide", "RGB", (40, 20), 6),
        ("clear", "RGBA", (9, 9), 6),
        ("single", "L", (8, 8), 1),
    ):
        (tmp_path / "new" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (size[1], size[0], 4), np.uint8)
            Image.fromarray(pixels, "RGBA").convert(mode).save(tmp_path / "new" / name / f"{number}.png")
    found = learn(home / "run", tmp_path / "new", by=["lda"], out=tmp_path / "out").run
    assert set(found.classifier.classes[4:]) == {"wide", "clear", "single"}
    assert found.splits.train.geometry == found.classifier.geometry
    assert "fewer than 3 new images of single" in capsys.readouterr().err


STEPS = 10


def take_step(place, number, home):
    """Step ``number`` of a chain of ten lessons of every kind, from the run of the step before."""
    run = place / str(number - 1) if number else home / "run"
    new = home / "by-digit" / str(number)
    changes = {
        0: {"new_data": new}, 1: {"new_data": new}, 2: {"rename": {"d0": "zero"}}, 3: {"new_data": new},
        4: {"rename": {"d4": "late", "d5": "late"}, "by": ["lda"]}, 5: {"forget": home / "some"},
        6: {"remove": ["d1"]}, 7: {"new_data": new}, 8: {"new_data": new, "by": ["replay", "lda"]},
        9: {"rename": {"zero": "0"}},
    }  # fmt: skip
    return learn(
        run, out=place / str(number), **{"by": ["lda"] if "new_data" in changes[number] else (), **changes[number]}
    )


@pytest.fixture(scope="module")
def lessons(home):
    for number, digits in {0: {4: 20}, 1: {5: 20}, 3: {6: 12}, 7: {7: 12}, 8: {7: 12, 2: 12}}.items():
        write_digits(
            home / "by-digit" / str(number),
            {f"d{d}": (d, 80 + number, 80 + number + n) for d, n in digits.items()},
        )
    (home / "some").mkdir()
    for file in reopen(home / "run").splits.train.files[:5]:
        shutil.copy(home / "old" / file, home / "some" / file.replace("/", "-"))
    return home


class Killed(BaseException):
    """What a killed process sees: nothing handles it."""


PHASES = {
    "begun": (module, "learn_task"),
    "learned": (learning, "recalibrate"),
    "saved": (learning, "write_json"),
    "listed": (RunFolder, "_write_split"),
}


def test_a_chain_of_ten_that_is_killed_in_each_phase_goes_on(lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    for number, (owner, name) in enumerate(PHASES.values()):
        real, before = (
            getattr(owner, name),
            checksums(lessons / "run" if not number else tmp_path / str(number - 1)),
        )

        def kill(*arguments, real=real, name=name, **more):
            if name == "write_json" and Path(arguments[0]).name != "learning.json":
                return real(*arguments, **more)
            raise Killed

        monkeypatch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            take_step(tmp_path, number, lessons)
        monkeypatch.setattr(owner, name, real)
        assert checksums(lessons / "run" if not number else tmp_path / str(number - 1)) == before
        take_step(tmp_path, number, lessons)
    for number in range(len(PHASES), STEPS):
        last = take_step(tmp_path, number, lessons).run
    assert last.classifier.classes == ("0", "d2", "d3", "late", "d6", "d7")
    lineage = last.classifier.provenance["learned"]
    assert [step["from"] for step in lineage] == ["run", *map(str, range(STEPS - 1))]
    run = reopen(tmp_path / str(STEPS - 1))
    assert run.classifier.classes == run.splits.test.classes == last.classifier.classes
    gone = {hash_file(file.read_bytes()) for file in (lessons / "some").iterdir()}
    assert not gone & {int(digest).to_bytes(8, "little") for digest in run.splits.train.digests}
    assert np.mean(predict_correct(run.classifier, run.splits.test)) > 0.7
    assert not list(tmp_path.glob("*/unfinished"))


def checksums(folder):
    return {file: checksum(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def test_without_old_images_only_sums(home, monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)
    found = learn(home / "run", home / "new", keep_images=False, out=home / "sums")
    assert [one.strategy for one in found.outcomes] == ["lda", "ranpac", "finetune"]
    assert found.run.classifier.memory.exemplars == {}
