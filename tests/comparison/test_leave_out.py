"""Leave one domain out: no image of the domain is trained on, finished trainings are kept, and errors are named."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from helpers.tiny_classifiers import SETTLED
from sightline.cli import main
from sightline.comparison import leave_out as module
from sightline.comparison import leave_out_run
from sightline.errors import DataError
from sightline.training import Recipe, train

SITES = ("north", "south", "east")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Digits 0 and 1 of three sites; east's are negatives, so a network of the other two is wrong there."""
    folder = tmp_path_factory.mktemp("sites")
    digits = load_digits()
    rows = [("path", "label", "site", "one", "rare")]
    for number, index in enumerate(np.flatnonzero(digits.target < 2)[:240]):
        site = SITES[number % 3]
        pixels = (digits.images[index] * 15.9).astype(np.uint8)
        Image.fromarray(255 - pixels if site == "east" else pixels).save(folder / f"{number}.png")
        rows.append((f"{number}.png", f"d{digits.target[index]}", site, "same", str(min(number, 3))))
    with (folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    recipe = Recipe(model="mlp:hidden=[16]", size=8, epochs=4, batch_size=16, lr=0.1, augment=(), **SETTLED)
    return train(folder / "images.csv", recipe, out=folder / "run")


@pytest.fixture(scope="module")
def found(run):
    return leave_out_run(run, "site")


def test_every_site_is_tested_once_by_a_network_that_never_saw_it(run, found, monkeypatch):
    assert [one.domain for one in found.domains] == sorted(SITES)
    assert [one.accuracy.n for one in found.domains] == [80, 80, 80]
    by_site = {one.domain: one for one in found.domains}
    assert by_site["north"].accuracy.value > 0.9
    assert by_site["east"].accuracy.value < 0.75
    assert by_site["east"].inside.low > by_site["east"].accuracy.high
    assert "'east'" in found.sentences()[1]
    assert found.mean.value == pytest.approx(np.mean([one.accuracy.value for one in found.domains]))
    assert found.mean.n == 3
    assert sum(one.inside.n for one in found.domains) == len(run.splits.test)
    seen = []
    real = module.run_candidate_trial

    def watch(candidate, part, splits, folder, **how):
        sites = [{*one.columns["site"].tolist()} for one in (splits.train, splits.val, splits.test)]
        seen.append((part, sites))
        return real(candidate, part, splits, folder, **how)

    monkeypatch.setattr(module, "run_candidate_trial", watch)
    (run.folder / "leave-out-site" / "trials.json").unlink()
    leave_out_run(run, "site")
    for part, (trained, validated, tested) in seen:
        assert tested == {part}
        assert trained | validated == {*SITES} - {part}
    assert len(seen) == 3


def test_finished_trainings_are_not_repeated(run, found, monkeypatch):
    monkeypatch.setattr(module, "run_candidate_trial", None)
    assert leave_out_run(run, "site").as_json() == found.as_json()
    assert json.loads((run.folder / "leave_out.json").read_text())["column"] == "site"


def test_columns_that_cannot_be_left_out_are_refused(run):
    with pytest.raises(DataError, match=r"no column 'camera' to leave out values of. There are: .*one.*site"):
        leave_out_run(run, "camera")
    with pytest.raises(DataError, match="'one' has 1 values with 10 images or more: it takes 2 to 30"):
        leave_out_run(run, "one")
    with pytest.raises(DataError, match="'rare' has 1 values"):
        leave_out_run(run, "rare")


def test_the_command_shows_each_domain(run, found, capsys):
    assert main(["evaluate", str(run.folder), "--leave-out", "site"]) == 0
    printed = capsys.readouterr().out
    for word in (*SITES, "left out", "On a new site expect"):
        assert word in printed, word
    assert main(["evaluate", str(run.folder), "--leave-out", "site", "--group", "site"]) == 2
    assert "run one at a time" in capsys.readouterr().err
