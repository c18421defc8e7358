"""Two releases on the same images: which answers change, and what the gate says."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_classifiers import SETTLED
from sightline.classifier import Classifier
from sightline.cli import main
from sightline.errors import DataError
from sightline.feedback import compare_releases, difference
from sightline.feedback.difference import open_release
from sightline.serving import load_release, publish
from sightline.training import Recipe, train


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Two releases: a trained classifier, and the same one that never answers 0."""
    place = tmp_path_factory.mktemp("site")
    recipe = Recipe(model="mlp", size=8, limit=900, epochs=5, batch_size=32, **SETTLED)
    run = train("digits", recipe, out=place / "run")
    publish(place / "site", run.folder)
    worse = shutil.copytree(run.folder, place / "worse")
    classifier = Classifier.load(worse)
    with torch.no_grad():
        classifier.network.head.bias[0] = -100
    shutil.rmtree(worse / "classifier")
    classifier.save(worse / "classifier")
    publish(place / "site", worse)
    return place / "site", run


def test_the_newly_wrong_are_the_zeros(site):
    place, run = site
    test = run.splits.test
    found = compare_releases(place, 1, 2)
    assert found.n == len(test)
    assert found.newly_wrong
    assert {one.label for one in found.newly_wrong} == {"0"}
    assert all(one.before == "0" != one.after for one in found.newly_wrong)
    assert {one.file for one in found.newly_wrong} <= set(test.files[test.labels == 0])
    assert (found.positions == np.flatnonzero(np.isin(test.files, [one.file for one in found.newly_wrong]))).all()
    assert found.accuracy[0] - found.accuracy[1] == pytest.approx(
        (len(found.newly_wrong) - len(found.newly_right)) / found.n
    )
    assert found.verdict.decision == "keep"
    assert any("class 0 is proven to lose" in reason for reason in found.verdict.reasons)


def test_a_group_of_a_table_may_block(site, tmp_path):
    """All zeros come from the old camera; the column ``station`` has one value, and compares nothing."""
    place, run = site
    test, rows = run.splits.test, ["path,label,camera,station"]
    for i, pixels in enumerate(test[:]):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{i}.png")
        label = test.classes[test.labels[i]]
        rows.append(f"{i}.png,{label},{'old' if label == '0' else 'new'},north")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    found = compare_releases(place, 1, 2, images=tmp_path / "images.csv")
    assert any("camera old is proven to lose" in reason for reason in found.verdict.reasons)
    assert not any("station" in reason for reason in (*found.verdict.reasons, *found.verdict.unproven))


def test_a_busy_machine_makes_no_release_look_slow(site, monkeypatch):
    """A clock that other programs stop for 4 ms in most answers of the second engine."""
    now, calls = [0.0], [0]

    class Runner:
        def __init__(self, pauses):
            self.pauses = pauses

        def probabilities(self, _images):
            calls[0] += 1
            now[0] += 0.001 + (0.004 if self.pauses and calls[0] % 10 else 0)

        outputs = probabilities

    monkeypatch.setattr(difference.time, "perf_counter", lambda: now[0])
    opened = open_release(load_release(site[0], 1))
    engines = [replace(opened, shared_runner=Runner(pauses)) for pauses in (False, True)]
    assert difference.time_answers(engines, [np.zeros((2, 4, 4, 1), np.uint8)] * 2) == pytest.approx([1, 1])


def test_the_reverse_is_promoted_or_cannot_be_told(site):
    place, _ = site
    found = compare_releases(place, 2, 1)
    assert not found.newly_wrong
    assert len(found.newly_right) == len(compare_releases(place, 1, 2).newly_wrong)
    assert found.verdict.decision != "keep", found.verdict.reasons


def test_the_command_lists_and_draws_what_is_newly_wrong(site, tmp_path, capsys):
    place, _ = site
    sheet = tmp_path / "flips.png"
    assert main(["releases", str(place), "diff", "1", "2", "--out", str(sheet)]) == 0
    out = capsys.readouterr().out
    assert "Newly wrong:" in out
    assert "keep the first release" in out
    with Image.open(sheet) as drawn:
        assert drawn.size[0] > 100
    assert main(["releases", str(place), "diff", "1", "2", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["newly_wrong_by_class"] == {"0": len(value["newly_wrong"])}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diff", "1"], "number of a release"),
        (["diff", "1", "x"], "'x' is not the number of a release"),
        (["diff", "1", "9"], "has no release 9"),
        (["diff", "1", "2", "--out", "a.jpg"], "is a .png"),
        (["promote", "1", "2"], "takes no second argument"),
    ],
)
def test_bad_words_get_one_sentence(site, words, message, capsys):
    assert main(["releases", str(site[0]), *words]) == 2
    assert message in capsys.readouterr().err


def test_without_its_run_a_release_asks_for_images(site, tmp_path):
    _, run = site
    publish(tmp_path / "site", run.folder / "classifier")
    publish(tmp_path / "site", run.folder / "classifier")
    with pytest.raises(DataError, match="--images"):
        compare_releases(tmp_path / "site", 1, 2)
