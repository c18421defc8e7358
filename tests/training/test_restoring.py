"""Images are their bytes: a run goes on where they are copied, moved, touched, renamed or added to."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from helpers.tiny_classifiers import SETTLED
from sightline.errors import DataError, Interrupted, TrainingError
from sightline.evaluation import evaluate_on
from sightline.runs import open_moved_run, open_subject, trained_on
from sightline.training import Recipe, reopen, restoring, resume, run, train
from sightline.training.hooks import BaseHook

RECIPE = Recipe(model="mlp:hidden=[8]", size=12, epochs=2, batch_size=8, lr=0.05, augment="none", **SETTLED)


def plant(folder, count=20, seed=0):
    random = np.random.default_rng(seed)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02}.png")


@pytest.fixture
def made(tmp_path):
    plant(tmp_path / "data")
    return train(tmp_path / "data", RECIPE, out=tmp_path / "r")


def same_splits(one, other):
    for name in ("train", "val", "test"):
        ours, theirs = getattr(one.splits, name), getattr(other.splits, name)
        assert ours.digests.tolist() == theirs.digests.tolist()
        assert ours.labels.tolist() == theirs.labels.tolist()
        assert ours.classes == theirs.classes
        assert (ours[:] == theirs[:]).all()


def test_copied_and_touched_files_are_the_same_images(made, tmp_path):
    shutil.copytree(tmp_path / "data", tmp_path / "copy", copy_function=shutil.copy)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "copy").rename(tmp_path / "data")
    os.utime(tmp_path / "data/a/00.png", (1, 1))
    again = reopen(made.folder)
    same_splits(made, again)
    assert list(again.splits.test.files) == list(made.splits.test.files)


def test_added_renamed_and_sorted_files_leave_the_splits(made, tmp_path, capsys):
    plant(tmp_path / "more", count=2, seed=1)
    for file in (tmp_path / "more").rglob("*.png"):
        file.rename(tmp_path / "data" / file.parent.name / f"00-{file.name}")
    (tmp_path / "data/a/03.png").rename(tmp_path / "data/a/zebra.png")
    again = reopen(made.folder)
    same_splits(made, again)
    assert "4 images are not among those" in " ".join(again.notes)
    (tmp_path / "data/a/04.png").rename(tmp_path / "data/b/was-a.png")
    again = reopen(made.folder)
    same_splits(made, again)
    assert "1 image has another label now" in " ".join(again.notes)


def plant_twice(folder):
    """20 pictures a class, and each again in another file, nearly the same."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            pixels = (
                np.random.default_rng([number, ord(name)]).integers(0, 250, (6, 6, 3)).repeat(4, 0).repeat(4, 1)
            )
            for more in (0, 1):
                Image.fromarray((pixels + more).astype(np.uint8)).save(
                    folder / name / f"{number:02}{'xy'[more]}.png"
                )


def test_splits_that_another_release_drew_are_kept(tmp_path, monkeypatch):
    """It looked for no near duplicates among so many images: what it trained on must not be tested on now."""
    plant_twice(tmp_path / "data")
    monkeypatch.setattr(restoring, "MAX_NEAR_DUPLICATE_IMAGES", 10)
    monkeypatch.setattr(restoring, "NEAR_SEARCH_RATE", 1e-3)
    made = train(tmp_path / "data", RECIPE.replace(size=24), out=tmp_path / "r")
    assert "Near duplicates were not looked for: with 80 images that would take" in " ".join(made.notes)
    monkeypatch.undo()
    same_splits(made, reopen(made.folder))
    looked = train(tmp_path / "data", RECIPE.replace(size=24), out=tmp_path / "r2")
    assert not any("not looked for" in note for note in looked.notes)
    assert sorted(looked.splits.test.files) != sorted(made.splits.test.files)
    pictures = [{file[:-5] for file in part.files} for part in (looked.splits.train, looked.splits.test)]
    assert not set.intersection(*pictures)


def test_a_new_class_changes_nothing(made, tmp_path):
    plant(tmp_path / "more", count=2, seed=1)
    (tmp_path / "more/a").rename(tmp_path / "data/A first")
    same_splits(made, reopen(made.folder))


def test_the_limit_draws_what_it_drew(tmp_path):
    plant(tmp_path / "data")
    made = train(tmp_path / "data", RECIPE.replace(limit=30), out=tmp_path / "r")
    plant(tmp_path / "more", count=2, seed=1)
    (tmp_path / "more/a/00.png").rename(tmp_path / "data/a/000.png")
    same_splits(made, reopen(made.folder))


def test_lost_and_edited_test_images_are_named(made, tmp_path):
    lost = made.splits.test.files[0]
    Image.new("RGB", (12, 12)).save(tmp_path / "data" / lost)
    with pytest.raises(DataError, match=rf"images changed.*1 of the 6 test images.*{lost}.*evaluate .* DATA"):
        reopen(made.folder)


def test_a_lost_training_image_is_a_note(tmp_path):
    plant(tmp_path / "data")
    made = train(tmp_path / "data", RECIPE, out=tmp_path / "r")
    (tmp_path / "data" / made.splits.train.files[0]).unlink()
    again = reopen(made.folder)
    assert again.splits.test.digests.tolist() == made.splits.test.digests.tolist()
    assert "1 of the 30 train images" in " ".join(again.notes)


def test_images_in_another_place(made, tmp_path):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"not at .*data' any more.*sightline evaluate .* DATA"):
        reopen(made.folder)
    same_splits(made, reopen(made.folder, tmp_path / "elsewhere"))
    subject = open_subject(made.folder, str(tmp_path / "elsewhere"))
    assert subject.run is not None
    assert subject.images.digests.tolist() == made.splits.test.digests.tolist()
    plant(tmp_path / "other", seed=5)
    assert open_moved_run(made.folder, tmp_path / "other") is None
    assert open_subject(made.folder, str(tmp_path / "other")).run is None


def test_trained_images_are_counted_whatever_their_names(made, tmp_path):
    (tmp_path / "month/a").mkdir(parents=True)
    (tmp_path / "month/b").mkdir()
    seen = [file for part in (made.splits.train, made.splits.val) for file in part.files.tolist()]
    for number, file in enumerate([*seen[:7], *made.splits.test.files.tolist()]):
        shutil.copy(tmp_path / "data" / file, tmp_path / "month" / file[0] / f"new-{number}.png")
    found = evaluate_on(made.folder, tmp_path / "month")
    assert "trained or validated on 7 of these 13 images" in " ".join(remark.text for remark in found.remarks)
    for place in (made.folder, made.folder / "classifier", made):
        assert trained_on(place, open_subject(made.folder, str(tmp_path / "month")).images).sum() == 7
    assert "on 7 of them" in open_subject(made.folder, str(tmp_path / "month")).sentence


def test_old_runs_know_names(made, tmp_path):
    file = made.folder / "split.csv"
    file.write_text("\n".join(line.rpartition(",")[0] for line in file.read_text().splitlines()) + "\n")
    plant(tmp_path / "more", count=1, seed=1)
    (tmp_path / "more/a/00.png").rename(tmp_path / "data/a/more.png")
    again = reopen(made.folder)
    same_splits(made, again)
    assert "kept no hashes" in " ".join(again.notes)


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A run stopped at its third step, and the same run in one go."""
    plant(tmp_path / "data")
    whole = train(tmp_path / "data", RECIPE, out=tmp_path / "whole")

    class Stop(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == 3

    with monkeypatch.context() as patch:
        original = run.build_method
        patch.setattr(run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": Stop()}))
        with pytest.raises(Interrupted):
            train(tmp_path / "data", RECIPE, out=tmp_path / "r")
    file = tmp_path / "r/last.ckpt"
    import torch

    saved = torch.load(file, weights_only=True)
    saved["hooks"].pop("stop", None)
    torch.save(saved, file)
    return whole


def equal(one, other):
    return all((a == b).all() for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_resume_goes_on_elsewhere_with_the_same_result(interrupted, tmp_path):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    plant(tmp_path / "more", count=1, seed=1)
    (tmp_path / "more/a/00.png").rename(tmp_path / "elsewhere/a/000.png")
    with pytest.raises(DataError, match=r"sightline train --resume .* DATA"):
        resume(tmp_path / "r")
    done = resume(tmp_path / "r", tmp_path / "elsewhere")
    assert equal(done.classifier, interrupted.classifier)
    same_splits(interrupted, done)
    same_splits(done, reopen(tmp_path / "r"))


def test_resume_goes_on_with_a_corrected_recipe(interrupted, tmp_path):
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    file = tmp_path / "r/recipe.toml"
    file.write_text(file.read_text().replace(str(tmp_path / "data"), str(tmp_path / "elsewhere")))
    assert equal(resume(tmp_path / "r").classifier, interrupted.classifier)


def test_resume_needs_every_image(interrupted, tmp_path):
    (tmp_path / "data" / interrupted.splits.train.files[3]).unlink()
    with pytest.raises(
        (DataError, TrainingError), match=r"1 of the 30 train images is not there any more.*train again"
    ):
        resume(tmp_path / "r")
