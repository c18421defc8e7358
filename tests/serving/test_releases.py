"""Releases: numbered, whole or absent, the same bytes for ever, and one of them answers."""

import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
import torch

from helpers.tiny_classifiers import SETTLED
from sightline.baselines import fit_baseline
from sightline.classifier import Classifier
from sightline.compression import Int8
from sightline.data import load_dataset
from sightline.errors import BundleError, DataError, ReleaseError, RequirementNotMet
from sightline.formats import TorchRunner, open_exported
from sightline.models import Memory
from sightline.serving import publishing
from sightline.serving.publishing import publish
from sightline.serving.releases import (
    current_number,
    current_release,
    is_site,
    list_releases,
    load_release,
    lock_releases,
    pointer_stamp,
    previous_numbers,
    promote,
    prune,
    release_numbers,
    rollback,
    verify,
)
from sightline.training import Recipe, train
from sightline.types import Splits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(model="mlp", size=8, limit=300, epochs=1, batch_size=32, **SETTLED)
    return train("digits", recipe, out=tmp_path_factory.mktemp("run") / "digits").folder


@pytest.fixture(scope="module")
def plain(run, tmp_path_factory):
    """The bundle of a baseline: nothing of it is exported, so that it is published in no time."""
    some = load_dataset("digits", Classifier.load(run).geometry).subset(np.arange(300))
    return fit_baseline(Splits(some, some, some), "decision-tree").save(
        tmp_path_factory.mktemp("plain") / "bundle"
    )


@pytest.fixture(scope="module")
def template(run, plain, tmp_path_factory):
    """A site of three releases, the third of which answers: copied, never written to."""
    site = tmp_path_factory.mktemp("site") / "site"
    for number, source in ((1, plain), (2, run), (3, plain)):
        publish(site, source, note=f"number {number}")
    return site


@pytest.fixture
def site(template, tmp_path):
    return shutil.copytree(template, tmp_path / "site")


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_run_is_published_as_a_release(run, site):
    made = load_release(site, 2)
    assert (made.number, made.path) == (2, site / "releases" / "0002")
    assert is_site(site)
    assert current_release(site) == load_release(site, 3) == list_releases(site)[2]
    verify(made)
    facts = made.facts
    assert facts["note"] == "number 2"
    assert facts["source"] == str(run)
    assert facts["classes"] == list("0123456789")
    assert facts["onnx"]["sample"] == "validation images of the run"
    assert facts["onnx"]["agreement"] == 1
    assert facts["onnx"]["accuracy"] == facts["onnx"]["accuracy_before"]
    assert set(facts["files"]) == {*tree(made.path)} - {"release.json"}
    assert made.path.stat().st_mode == site.stat().st_mode
    assert not any(path.stat().st_mode & 0o222 for path in made.path.rglob("*") if path.is_file())


def test_bundle_and_onnx_file_answer_as_the_run(run, template):
    images = load_dataset("digits", Classifier.load(run).geometry)[:40]
    found = load_release(template, 2)
    ours = TorchRunner(Classifier.load(run)).probabilities(images)
    assert np.array_equal(TorchRunner(Classifier.load(found.bundle)).probabilities(images), ours)
    assert np.array_equal(
        TorchRunner(Classifier.load(found.path)).probabilities(images), ours
    )  # a release is a RUN
    assert found.onnx is not None
    assert np.abs(open_exported(found.onnx).probabilities(images) - ours).max() < 1e-4


def test_numbers_increase_and_the_newest_answers(site, plain):
    assert release_numbers(site) == [1, 2, 3]
    assert (current_number(site), previous_numbers(site)) == (3, [2, 1])
    assert publish(site, plain, promote=False).number == 4
    assert current_number(site) == 3
    shutil.rmtree(site / "releases" / "0004")
    assert publish(site, site / "releases" / "0001").number == 5  # no number is given twice
    assert [one.number for one in list_releases(site)] == [1, 2, 3, 5]


def test_rolling_back_gives_the_same_bytes(site, plain):
    held = tree(site / "releases" / "0003")
    publish(site, plain)
    assert rollback(site).number == 3
    assert tree(current_release(site).path) == held
    assert previous_numbers(site) == [2, 1]
    assert rollback(site).number == 2
    assert rollback(site).number == 1
    with pytest.raises(ReleaseError, match="no release to go back to"):
        rollback(site)
    assert promote(site, 3).number == current_number(site) == 3
    assert previous_numbers(site) == [1]


def test_the_stamp_changes_with_the_current_release_only(site, plain):
    seen = [pointer_stamp(site)]
    publish(site, plain, promote=False)
    assert pointer_stamp(site) == seen[0]
    for number in (1, 2, 1, 2):
        promote(site, number)
        seen.append(pointer_stamp(site))
    assert len(set(seen)) == len(seen)
    assert pointer_stamp(site / "nowhere") == ()


def test_the_audit_log_names_who_did_what(site):
    promote(site, 1, by="key:alice")
    rollback(site)
    lines = [json.loads(line) for line in (site / "releases.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines] == ["publish", "promote"] * 3 + ["promote", "rollback"]
    assert (lines[-2]["by"], lines[-2]["was"], lines[-2]["release"]) == ("key:alice", 3, 1)
    assert all(line["time"].endswith("+00:00") for line in lines)


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_prune_keeps_the_current_and_the_previous_release(site, keep):
    promote(site, 1)  # after 3
    gone = prune(site, keep=keep)
    assert gone == ([2] if keep == 1 else [])
    assert release_numbers(site) == [number for number in (1, 2, 3) if number not in gone]
    assert rollback(site).number == 3
    with pytest.raises(ReleaseError, match="--keep is 0"):
        prune(site, keep=0)


def test_rollback_skips_pruned_releases(site):
    prune(site, keep=1)
    assert release_numbers(site) == [2, 3]
    assert previous_numbers(site) == [2]
    with pytest.raises(ReleaseError, match=r"has no release 1. It has: 2, 3"):
        promote(site, 1)


# What is not what was published.


def _unlock(path):
    path.chmod(0o644)
    return path


def _change(name):
    def change(folder):
        data = bytearray(_unlock(folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def _rewrite(**facts):
    def change(folder):
        path = _unlock(folder / "release.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | facts))

    return change


def _link(folder):
    (folder / "model.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "elsewhere.onnx")


DAMAGES = {
    "config": (_change("classifier/config.json"), "changed: 'classifier/config.json'"),
    "weights": (_change("classifier/model.safetensors"), "changed: 'classifier/model.safetensors'"),
    "card": (_change("classifier/README.md"), "changed: 'classifier/README.md'"),
    "onnx": (_change("model.onnx"), "changed: 'model.onnx'"),
    "link": (_link, "changed: 'model.onnx'"),
    "missing": (lambda folder: (folder / "model.onnx").unlink(), "lacks its file 'model.onnx'"),
    "extra": (lambda folder: (folder / "extra.pkl").write_bytes(b""), "holds 'extra.pkl'"),
    "deeper": (lambda folder: (folder / "classifier" / "x").write_bytes(b""), "holds 'classifier/x'"),
    "newer": (_rewrite(format=99), "has format 99, newer than this Sightline reads"),
    "renumbered": (_rewrite(number=7), "is damaged"),
    "unlisted": (_rewrite(files={}), "lists no files"),
    "outside": (_rewrite(files={"../0001/model.onnx": "0"}), "lacks its file"),
    "empty": (lambda folder: _unlock(folder / "release.json").write_text(""), "is damaged"),
    "bare": (lambda folder: (folder / "release.json").unlink(), "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_release_never_answers(site, damage):
    change, message = DAMAGES[damage]
    change(site / "releases" / "0002")
    for way in (lambda: promote(site, 2), lambda: rollback(site), lambda: verify(load_release(site, 2))):
        with pytest.raises(ReleaseError, match=message):
            way()
        assert current_number(site) == 3
    assert [one.number for one in list_releases(site)] == [1, 2, 3]
    assert promote(site, 1).number == 1  # the others are none the worse


@pytest.mark.parametrize("text", ["", "{", "[]", '{"release": "x", "before": []}', '{"release": 1}'])
def test_a_damaged_pointer_is_refused(site, text):
    (site / "current").write_text(text)
    with pytest.raises(ReleaseError, match=r"'current' of .* is damaged"):
        current_release(site)


def test_a_folder_without_releases_is_refused(run, plain, tmp_path):
    for way in (list_releases, current_release, rollback, prune):
        with pytest.raises(ReleaseError, match="sightline releases"):
            way(tmp_path / "none")
    assert not is_site(tmp_path)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ReleaseError, match="is a run or a bundle, not a site"):
        publish(run, run)
    made = publish(tmp_path / "site", plain, promote=False)
    with pytest.raises(ReleaseError, match=r"No release of .* answers yet.*promote 1"):
        current_release(tmp_path / "site")
    assert promote(tmp_path / "site", 1) == made


# What cannot be published, or not with a file.


def leftovers(site):
    return [path.name for path in (site / "releases").iterdir() if not path.name.isdigit()]


def test_a_classifier_that_cannot_be_exported_is_published_without_a_file(site, plain):
    made = current_release(site)
    assert made.onnx is None
    assert made.facts["onnx"]["file"] is None
    assert "scikit-learn estimator" in made.facts["onnx"]["why"]
    verify(made)
    images = load_dataset("digits", Classifier.load(plain).geometry)[:40]
    answers = [TorchRunner(Classifier.load(place)).probabilities(images) for place in (plain, made.path)]
    assert np.array_equal(*answers)


def test_int8_is_published_as_int8(site, tmp_path):
    parent = Classifier.load(load_release(site, 2).bundle)
    digits = load_dataset("digits", parent.geometry)
    Int8(by="minmax", images=64)(parent, Splits(digits, digits, digits)).save(tmp_path / "small")
    made = publish(site, tmp_path / "small", images="digits")
    assert made.facts["onnx"]["int8"]
    assert made.facts["onnx"]["n"] == 1797
    assert made.facts["onnx"]["sample"] == "images of 'digits'"
    kinds = {node.op_type for node in onnx.load(made.onnx).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_a_memory_is_published_only_with_the_flag(site, plain, tmp_path):
    classifier = Classifier.load(plain)
    classifier.memory = Memory(
        statistics={"mean": torch.ones(3, 2)}, exemplars={classifier.classes[0]: ["ab" * 32]}
    )
    bundle = classifier.save(tmp_path / "bundle")
    before = release_numbers(site)
    with pytest.raises(ReleaseError, match=r"holds a memory: statistics .* and their hashes.*--with-memory"):
        publish(site, bundle)
    assert release_numbers(site) == before
    made = publish(site, bundle, with_memory=True)
    verify(made)
    assert {"classifier/memory/statistics.safetensors", "classifier/memory/exemplars.json"} <= set(
        made.facts["files"]
    )
    memory = Classifier.load(made.bundle).memory
    assert torch.equal(memory.statistics["mean"], torch.ones(3, 2))
    assert {name: list(hashes) for name, hashes in memory.exemplars.items()} == classifier.memory.exemplars
    again = publish(site, made.bundle, with_memory=True)  # a release can be published again
    assert Classifier.load(again.bundle).memory.exemplars == memory.exemplars


def test_an_onnx_file_that_differs_is_not_published(site, run, monkeypatch):
    monkeypatch.setattr(publishing, "FLOAT_LIMITS", dataclasses.replace(publishing.FLOAT_LIMITS, difference=-1.0))
    with pytest.raises(RequirementNotMet, match=r"other answers than the classifier.*Nothing is published"):
        publish(site, run)
    assert release_numbers(site) == [1, 2, 3]
    assert leftovers(site) == []


def test_only_classifiers_are_published(site, run, tmp_path):
    with pytest.raises(BundleError, match="There is no run or bundle"):
        publish(site, tmp_path / "nothing")
    bundle = shutil.copytree(run / "classifier", tmp_path / "bundle")
    _change("model.safetensors")(bundle)
    with pytest.raises(BundleError, match="wrong checksum"):
        publish(site, bundle)
    with pytest.raises(ReleaseError, match="is a file"):
        publish(site, site / "releases" / "0002" / "model.onnx")
    with pytest.raises(DataError):
        publish(site, run, images=tmp_path / "no-images")
    assert release_numbers(site) == [1, 2, 3]
    assert leftovers(site) == []


def test_a_run_without_its_images_is_compared_on_drawn_pictures(cli, run, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    recipe = (moved / "recipe.toml").read_text()
    (moved / "recipe.toml").write_text(recipe.replace('"digits"', '"/nowhere/at/all"'))
    answer = cli("releases", tmp_path / "site", "publish", moved)
    assert answer.code == 0, answer.err
    assert (
        "The ONNX file of release 1 gives the same prediction for 100.00% of 64 images (drawn pictures,"
        in answer.out
    )
    made = load_release(tmp_path / "site", 1)
    assert made.facts["onnx"]["sample"].startswith("drawn pictures, as the images of the run are not there")
    assert made.facts["onnx"]["agreement"] == 1


# Several at once, and one killed.

PUBLISHERS = """
import os, sys
from sightline.serving.publishing import publish
site, bundle, times, processes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
first = all(os.fork() for _ in range(processes - 1))  # after one import
for _ in range(times): os.write(1, b"%d\\n" % publish(site, bundle).number)
assert [os.wait()[1] for _ in range(processes - 1) if first] == [0] * (processes - 1) * first
"""


def publisher(site, bundle, times, processes=1):
    words = [sys.executable, "-c", PUBLISHERS, str(site), str(bundle), str(times), str(processes)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_concurrent_publishers_get_different_numbers(site, plain):
    both = publisher(site, plain, 2, processes=2)
    said = [int(word) for word in both.communicate(timeout=300)[0].split()]
    assert both.returncode == 0
    assert sorted(said) == [4, 5, 6, 7]
    assert release_numbers(site) == [1, 2, 3, 4, 5, 6, 7]
    assert current_number(site) in (6, 7)
    assert sorted([current_number(site), *previous_numbers(site)]) == [1, 2, 3, 4, 5, 6, 7]
    for one in list_releases(site):
        verify(one)
    assert leftovers(site) == []


def test_a_killed_publisher_leaves_no_partial_release(site, plain):
    one = publisher(site, plain, 1000)
    assert one.stdout.readline() == "4\n"
    time.sleep(random.uniform(0, 0.2))  # somewhere within another
    one.send_signal(signal.SIGKILL)
    one.communicate(timeout=60)
    for found in list_releases(site):
        verify(found)
    assert current_number(site) >= 4
    assert publish(site, plain).number == max(release_numbers(site))
    for path in (site / "releases").glob(".*"):
        os.utime(path, (time.time() - 90_000,) * 2)
    publish(site, plain)
    assert leftovers(site) == []


def test_releases_on_the_command_line(cli, plain, tmp_path):
    site = tmp_path / "site"
    first = cli("releases", site, "publish", plain, "--note", "first try")
    assert first.code == 0, first.err
    assert "Release 1 has no ONNX file and is served with torch: A scikit-learn estimator" in first.out
    value = json.loads(cli("releases", site, "publish", plain, "--only-publish", "--json").out)
    assert (value["published"], value["current"]) == (2, 1)
    assert json.loads(cli("releases", site, "promote", 2, "--json").out)["current"] == 2
    assert json.loads(cli("releases", site, "rollback", "--json").out)["current"] == 1
    listed = cli("releases", site)
    assert "first try" in listed.out
    assert "current" in listed.out
    pruned = json.loads(cli("releases", site, "prune", "--keep", 1, "--json").out)
    assert (pruned["removed"], [one["number"] for one in pruned["releases"]]) == ([], [1, 2])
    for words, message in (
        (("promote", 9), "has no release 9. It has: 1, 2."),
        (("promote", "x"), "'x' is not the number of a release"),
        (("promote",), "`promote` needs the number of a release"),
        (("rollback",), "no release to go back to"),
        (("rollback", 3), "takes no further argument, got '3'"),
        (("publish", tmp_path / "none"), "There is no run or bundle"),
    ):
        refused = cli("releases", site, *words)
        assert (refused.code, message in refused.err) == (2, True), refused.err
    assert cli("releases", tmp_path / "none").code == 2
    _unlock(site / "releases" / "0002" / "release.json").write_text("")
    listed = cli("releases", site)
    assert (listed.code, "first try" in listed.out, "Release 2 of" in listed.out) == (0, True, True), listed.err


# What a stranger, or another process, does meanwhile.


@pytest.mark.parametrize("place", ["README.md", "extra.txt", "memory/fisher.safetensors"])
def test_a_link_is_never_published(plain, tmp_path, place):
    """Not even in the place of the card, which may be edited and whose checksum does not count."""
    bundle, site = shutil.copytree(plain, tmp_path / "bundle"), tmp_path / "site"
    (tmp_path / "secret").write_text("secret")
    (bundle / place).parent.mkdir(exist_ok=True)
    (bundle / place).unlink(missing_ok=True)
    (bundle / place).symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="is a link"):
        publish(site, bundle, with_memory=True)
    assert not [
        path for path in site.rglob("*") if path.is_file() and "secret" in path.read_text(errors="replace")
    ]


def test_what_systems_leave_behind_is_not_published(plain, tmp_path):
    bundle = shutil.copytree(plain, tmp_path / "bundle")
    (bundle / ".DS_Store").write_text("x")
    (bundle / ".git").mkdir()
    (bundle / ".git" / "config").symlink_to("/etc/hostname")
    made = publish(tmp_path / "site", bundle)
    assert not [path for path in made.path.rglob("*") if path.name.startswith(".")]
    verify(made)


def test_a_release_is_checked_under_the_lock_it_is_promoted_under(site):
    """Else a concurrent prune could remove the release between the check and the promotion."""
    errors = []

    def promote_first():
        try:
            promote(site, 1)
        except ReleaseError as error:
            errors.append(error)

    thread = threading.Thread(target=promote_first)
    with lock_releases(site):
        thread.start()
        time.sleep(0.3)
        shutil.rmtree(site / "releases" / "0001")
    thread.join()
    assert "no release 1" in str(errors[0])
    assert current_number(site) == 3


def test_promoting_and_pruning_at_once_keeps_a_current_release(template, tmp_path):
    def promote_first(site):
        with contextlib.suppress(ReleaseError):
            promote(site, 1)

    for turn in range(3):
        site = shutil.copytree(template, tmp_path / str(turn))
        threads = [
            threading.Thread(target=promote_first, args=(site,)),
            threading.Thread(target=prune, args=(site,), kwargs={"keep": 1}),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert current_number(site) in release_numbers(site)
        verify(current_release(site))
