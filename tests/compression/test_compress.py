"""Laws of the compressors, and the verb: it fine-tunes, compares, and continues where it was interrupted."""

import copy
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from math import comb

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from helpers.photo_folder import write_photos
from sightline.baselines import fit_baseline
from sightline.classifier import Classifier
from sightline.compression import (
    COMPRESSORS,
    Compressor,
    FineTuning,
    comparison,
    compress,
    compressing,
    count_weights,
    fine_tune,
    open_original,
    parse_compressors,
    pipeline,
)
from sightline.compression.comparison import median_interval
from sightline.compression.compressing import COMPRESSION_FILE, WORK_FOLDER
from sightline.compression.compressor import check_images_fit, recalibrate_norms, recipe_from_classifier
from sightline.compression.distil import add_unlabelled_images
from sightline.data import load_dataset, to_tensor
from sightline.data.splits import split
from sightline.ensembles import combine_runs
from sightline.errors import (
    ChoiceError,
    DataError,
    Interrupted,
    OutputError,
    RecipeError,
    RequirementNotMet,
    SightlineError,
)
from sightline.evaluation import evaluate
from sightline.evidence import write_report
from sightline.evidence.sections import build_sections
from sightline.inference import predict_logits, validate
from sightline.layers import keep_zeros
from sightline.models import build, compressible_layers, copy_network, count_multiply_adds, parse_architecture
from sightline.preprocessing import fit_preprocessing
from sightline.training import Recipe, resolve, train
from sightline.training.run import reopen
from sightline.training.run_folder import SilentRunFolder
from sightline.types import Dataset, Geometry, Splits

GEOMETRY = Geometry(size=(16, 16), channels=1)
PLAIN = {"precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1, "augment": ()}
TINY = Recipe(model="small-cnn", size=12, limit=400, epochs=3, batch_size=32, lr=0.05, **PLAIN)


@pytest.fixture(autouse=True)
def _short_timing(monkeypatch):
    """Latencies are not tested, so a short measurement is enough."""
    monkeypatch.setattr(comparison, "TIMING_SECONDS", 0.02)


@pytest.fixture
def unexported(monkeypatch):
    """As where nothing can be exported: for tests that are not about the file, which takes seconds to write."""

    def refuse(*_):
        raise RequirementNotMet("No file is written here.")

    monkeypatch.setattr(comparison, "write_exported", refuse)


# laws of the family

WORDS = {
    "prune": "prune:0.7",
    "channels": "channels:0.4",
    "lowrank": "lowrank:tucker:budget=0.6",
    "int8": "int8:minmax:images=32",
    "distil": "distil:lenet5",
}
"""A word for each member that does something to a small network."""

PROMISES = {
    "prune": lambda one: count_weights(one.network)[1],
    "channels": lambda one: count_multiply_adds(one.network, 1, (16, 16)),
    "lowrank": lambda one: count_weights(one.network)[0],
    "int8": lambda one: sum(t.numel() * t.element_size() for t in one.state_dict().values()),
    "distil": lambda one: count_multiply_adds(one.network, 1, (16, 16)),
}
"""What each of them makes smaller."""


def images(classes):
    """Real digits of the first classes, 16 x 16, in three splits."""
    known = load_digits()
    chosen = np.flatnonzero(known.target < classes)[:240]
    pixels = np.kron(np.rint(known.images[chosen] * 255 / 16).astype(np.uint8), np.ones((1, 2, 2), np.uint8))[
        ..., None
    ]
    whole = Dataset(
        pixels=pixels, rows=np.arange(len(chosen)), labels=known.target[chosen].astype(np.int64),
        classes=tuple("abcdefghij"[:classes]), files=np.array([f"{i}.png" for i in chosen]),
        digests=chosen.astype(np.uint64), geometry=GEOMETRY, fingerprint=f"digits {classes}",
    )  # fmt: skip
    parts = np.arange(len(chosen)) % 4
    return Splits(*(whole.subset(parts >= 2) if n == 2 else whole.subset(parts == n) for n in (2, 0, 1)))


def classifier_of(splits):
    torch.manual_seed(0)
    word = "plain-cnn:depth=4:width=16"
    plan = parse_architecture(word, classes=len(splits.train.classes), channels=1, size=(16, 16))
    return Classifier(
        fit_preprocessing(splits.train, "fitted", 1), build(plan), architecture=plan, classes=splits.train.classes,
        geometry=GEOMETRY, provenance={"data_fingerprint": splits.train.fingerprint},
    ).eval()  # fmt: skip


@pytest.fixture(scope="module", params=[10, 2], ids=["ten classes", "two classes"])
def subject(request):
    splits = images(request.param)
    return classifier_of(splits), splits


def test_there_is_a_word_and_a_promise_for_every_member():
    assert set(WORDS) == set(PROMISES) == set(COMPRESSORS)
    for name, word in WORDS.items():
        (step,) = parse_compressors(word)
        assert isinstance(step, Compressor)
        assert step.name == name
        assert parse_compressors(step.word()) == [step]
        assert step.word().startswith(name)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_compressor_keeps_the_signature_shrinks_its_quantity_and_is_rebuilt(name, subject, tmp_path):
    classifier, splits = subject
    before, config = copy.deepcopy(classifier.state_dict()), classifier.config()
    small = parse_compressors(WORDS[name])[0](classifier, splits)
    pixels = torch.rand(5, 1, 16, 16)
    with torch.no_grad():
        logits = small.eval()(pixels)
        assert logits.shape == (5, len(classifier.classes))
        assert logits.isfinite().all()
        small.save(tmp_path / "small")
        assert torch.equal(Classifier.load(tmp_path / "small")(pixels), logits)
    assert (small.classes, small.geometry) == (classifier.classes, classifier.geometry)
    assert PROMISES[name](small) < PROMISES[name](classifier)
    assert classifier.config() == config
    after = classifier.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    if name != "distil":  # which starts from new weights
        with pytest.raises(SightlineError, match=r"already"):
            parse_compressors(WORDS[name])[0](small, splits)


def test_they_stack(subject, tmp_path):
    classifier, splits = subject
    small = classifier
    for step in parse_compressors("channels:0.3,lowrank:tucker:budget=0.7,prune:0.5,int8:minmax:images=32"):
        small = step(small, splits)
    pixels = torch.rand(3, 1, 16, 16)
    small.save(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(Classifier.load(tmp_path / "small")(pixels), small(pixels))
    assert len(small.architecture.surgery) == 4


def test_numbers_are_counted_by_hand():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    assert count_weights(network) == (4 * 3 + 3 + 2 * 3, 4 * 3 + 3 + 3)  # a norm's shifts start at zero
    with torch.no_grad():
        network[0].weight[0] = 0
    network.register_buffer("codes", torch.tensor([1, 0, -3], dtype=torch.int8))
    assert count_weights(network) == (21 + 3, 18 - 4 + 2)


# the interval of a median


def test_the_interval_of_a_median_is_exact():
    """Against the binomial: the true median is outside as often as counting heads says."""
    rng = np.random.default_rng(0)
    for count in (6, 11, 40):
        found = median_interval(np.arange(count, dtype=float))  # its ends say how many are below, and not above
        outside = sum(comb(count, heads) for heads in range(count + 1) if not found.low < heads <= found.high)
        assert outside / 2**count <= 0.05
        tighter = sum(comb(count, heads) for heads in range(count + 1) if not found.low + 1 < heads < found.high)
        assert tighter / 2**count > 0.05
        drawn = [median_interval(rng.lognormal(0, 1, count)) for _ in range(300)]
        missed = sum(not one.low <= 1 <= one.high for one in drawn)
        assert missed / 300 == pytest.approx(outside / 2**count, abs=0.04)
    assert median_interval(np.array([3.0, 1.0, 2.0])).value == 2


# the verb


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("digits", TINY, out=tmp_path_factory.mktemp("compress") / "run")


@pytest.fixture(scope="module")
def small(run, tmp_path_factory):
    """The run, pruned and fine-tuned, with the comparison."""
    before = comparison.TIMING_SECONDS
    comparison.TIMING_SECONDS = 0.02
    state = copy.deepcopy(run.classifier.state_dict())
    files = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    made = compress(run.folder, by="prune:0.8", out=tmp_path_factory.mktemp("compress") / "small", device="cpu")
    comparison.TIMING_SECONDS = before
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == files
    again = Classifier.load(run.folder).state_dict()
    assert all(torch.equal(value.cpu(), again[name]) for name, value in state.items())
    return made


def test_the_result_is_a_run_like_any_other(run, small, cli):
    folder = small.run.folder
    names = {path.name for path in folder.iterdir()}
    assert names >= {"recipe.toml", "environment.json", "split.csv", "notes.json", "history.csv", "training.json"}
    assert names >= {"classifier", COMPRESSION_FILE}
    assert WORK_FOLDER not in names
    again = reopen(folder, device="cpu")
    assert again.splits.test.files.tolist() == run.splits.test.files.tolist()
    pixels = torch.rand(4, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(again.classifier(pixels), small.run.classifier.eval()(pixels))
    known = again.classifier.provenance
    assert known["parent"] == run.folder.name
    assert known["compressed"] == ["prune:amount=0.8"]
    assert (folder / "split.csv").read_text() == (run.folder / "split.csv").read_text()
    assert (folder / "recipe.toml").read_text().startswith("# Made by `sightline compress")
    assert small.run.facts["epochs"] == 2  # a quarter of 3, but 2 at least
    every, left = count_weights(again.classifier.network)
    assert left < 0.3 * every
    answer = cli("evaluate", folder, "--device", "cpu", "--json")
    assert json.loads(answer.out)["accuracy"] == pytest.approx(small.comparison.accuracies[1].value)
    assert cli("report", folder).code == 0
    answer = cli("runs", folder.parent, "--json")
    (row,) = [one for one in json.loads(answer.out)["runs"] if one["run"] == str(folder)]
    assert row["state"] == "tested"


def test_the_comparison_agrees_with_evaluate_and_scikit_learn(run, small):
    table, test = small.comparison, run.splits.test
    before = evaluate(run.classifier, test, device="cpu")
    after = evaluate(small.run.classifier, test, device="cpu")
    assert table.accuracies[0].value == pytest.approx(accuracy_score(before.labels, before.predicted))
    assert table.accuracies[1].value == pytest.approx(accuracy_score(after.labels, after.predicted))
    assert table.agreement.value == pytest.approx((before.predicted == after.predicted).mean())
    assert table.difference.value == pytest.approx(after.correct.mean() - before.correct.mean())
    assert table.n == len(test)
    count = sum(p.numel() for p in run.classifier.network.parameters())
    assert (table.original.parameters, table.small.parameters) == (count, count)
    assert table.small.nonzero < 0.3 * table.small.parameters
    folder = small.run.folder / "classifier"
    # the card and the provenance are written later, or differ: the tensors are nearly all of it
    assert table.small.bundle_mb == pytest.approx(sum(f.stat().st_size for f in folder.iterdir()) / 1e6, rel=0.02)
    assert table.small.file_mb == pytest.approx(table.original.file_mb, rel=0.01)
    sentences = " ".join(table.sentences())
    assert "zeros among its parameters take as much space as other numbers" in sentences
    value = json.loads((small.run.folder / COMPRESSION_FILE).read_text())
    assert value["sentences"] == table.sentences()
    assert value["by"] == ["prune:amount=0.8"]
    assert {one["batch_size"] for one in value["small"]["latency"]} == {1, 32}
    for ratio in value["latency_ratio"].values():
        assert 0 < ratio["low"] <= ratio["value"] <= ratio["high"]


def test_the_sentences_are_plain(small):
    """Whatever was timed here, inverted ratios must give the opposite sentence."""
    table = small.comparison
    slow = {
        size: replace(race, ratio=replace(race.ratio, value=1.3, low=1.2, high=1.4))
        for size, race in table.latencies.items()
    }
    fast = {
        size: replace(race, ratio=replace(race.ratio, value=0.5, low=0.4, high=0.6))
        for size, race in table.latencies.items()
    }
    even = {
        size: replace(race, ratio=replace(race.ratio, value=1.0, low=0.9, high=1.1))
        for size, race in table.latencies.items()
    }
    assert "Slower than the original on this machine" in " ".join(replace(table, latencies=slow).sentences())
    assert "Faster: one image takes 0.50 times as long" in " ".join(replace(table, latencies=fast).sentences())
    assert "No measurable gain in speed" in " ".join(replace(table, latencies=even).sentences())
    assert "Slower for some batch sizes" in " ".join(
        replace(table, latencies={1: slow[1], 32: fast[32]}).sentences()
    )
    shrunk = replace(table, small=replace(table.small, file_mb=table.original.file_mb / 2))
    assert shrunk.sentences()[0].startswith("Smaller: its exported file")
    size, *_ = replace(table, small=replace(table.small, file_mb=table.original.file_mb * 0.999)).sentences()
    assert size.startswith("Not smaller: its exported file has ")
    assert ", as much as the original's." in size
    assert "Timed in torch" in " ".join(
        replace(table, small=replace(table.small, file_runner=None, export_error="No.")).sentences()
    )


def test_the_page_shows_the_comparison_and_names_damaged_files(small, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(small.run.folder, folder)
    html = write_report(folder).read_text(encoding="utf-8")
    assert '<section id="compression">' in html
    assert f"{small.comparison.original.parameters:,}" in html
    assert build_sections({"compression": {"parent": 1}}) == ({}, ["compression"])


def test_spoilt_norms_are_recalibrated(run):
    spoilt = copy.deepcopy(run.classifier).eval()
    with torch.no_grad():
        for module in spoilt.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.add_(1.0)
                module.running_var.mul_(9.0)
    before = validate(spoilt, run.splits.val)
    updated, better = recalibrate_norms(spoilt, run.splits)
    assert better
    assert validate(updated, run.splits.val)[0] < before[0]


def test_a_fine_tuning_that_lowers_accuracy_is_not_kept(run, tmp_path):
    """Training images whose labels are all wrong."""
    recipe = FineTuning(epochs=1, lr=0.05).fine_tuning_recipe(run.recipe)
    wrong = replace(run.splits.train, labels=(run.splits.train.labels + 1) % 10)
    images = replace(run.splits, train=wrong)
    found = fine_tune(
        run.classifier, images, recipe, SilentRunFolder(tmp_path), objective=resolve(recipe).objective
    )
    assert any("kept as it was" in note for note in found.notes)
    assert validate(found.classifier, run.splits.val)[1] >= validate(run.classifier, run.splits.val)[1]
    assert found.facts["epochs"] == 0


def stop_after_an_epoch(monkeypatch):
    """A Ctrl-C when the first epoch of a fine-tuning is reported."""
    messages = []

    def say(self, text, *, aloud=True):
        del self, aloud
        messages.append(text)
        if len(messages) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SilentRunFolder, "log", say)


@pytest.mark.usefixtures("unexported")
def test_an_interrupted_fine_tuning_continues_exactly(run, tmp_path, monkeypatch):
    asked = {"by": "channels:0.3:criterion=l2,prune:0.5", "settings": FineTuning(epochs=2), "device": "cpu"}
    whole = compress(run.folder, out=tmp_path / "whole", **asked)
    with monkeypatch.context() as patched:
        stop_after_an_epoch(patched)
        with pytest.raises(Interrupted, match="same command to continue"):
            compress(run.folder, out=tmp_path / "parts", **asked)
    assert (tmp_path / "parts" / WORK_FOLDER / "request.json").is_file()
    with pytest.raises(OutputError, match="unfinished compression with different settings"):
        compress(run.folder, out=tmp_path / "parts", **asked | {"by": "prune:0.3"})
    with monkeypatch.context() as patched:  # and again, when all is trained and nothing is written
        patched.setattr(compressing, "compare_with_original", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress(run.folder, out=tmp_path / "parts", **asked)
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "fine_tune", interrupted)  # nothing is left to fine-tune
        again = compress(run.folder, out=tmp_path / "parts", **asked)
    states = [one.run.classifier.state_dict() for one in (whole, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert [one["step"] for one in again.result.facts] == ["channels:amount=0.3:criterion=l2", "prune"]
    assert again.run.facts["epochs"] == 4
    assert not (tmp_path / "parts" / WORK_FOLDER).exists()


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from sightline.compression import FineTuning, comparison, compress
from sightline.errors import RequirementNotMet

def refuse(*_):
    raise RequirementNotMet("No file is written here.")

def begin(suffix=None, prefix=None, dir=None):
    made, name = make(suffix, prefix, dir), (prefix or "").strip(".")
    if name == moment and next(count) == int(which):
        (Path(made) / name).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return made

comparison.write_exported, comparison.TIMING_SECONDS, make = refuse, 0.02, tempfile.mkdtemp
run, out, *moments = sys.argv[1:]
for each in moments:
    if (child := os.fork()) == 0:
        moment, which = each.split(":")
        count = iter(range(1, 100))
        tempfile.mkdtemp = begin
        compress(run, by="prune:0.5", out=out, settings=FineTuning(epochs=3), device="cpu")
        os._exit(1)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""
"""Compresses again and again, each time killed when it begins to write a file for the n-th time: ``last.ckpt:2``."""
MOMENTS = (
    f"{WORK_FOLDER}:1",
    "begun:1",
    "last.ckpt:2",
    "done:1",
    "classifier:1",
    "training.json:1",
    "recipe.toml:1",
)


@pytest.mark.usefixtures("unexported")
def test_a_killed_compression_ends_as_if_it_had_not_been(run, tmp_path):
    asked = {"by": "prune:0.5", "settings": FineTuning(epochs=3), "device": "cpu"}
    whole, out = compress(run.folder, out=tmp_path / "whole", **asked), tmp_path / "killed"
    words = [sys.executable, "-c", KILLED, run.folder, out, *MOMENTS]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=500, check=False)
    assert done.stdout.split() == [str(int(signal.SIGKILL))] * len(MOMENTS), done.stderr
    assert not (out / "recipe.toml").exists(), "half a result looks like a run"
    again = compress(run.folder, out=out, **asked)
    states = [Classifier.load(one).state_dict() for one in (tmp_path / "whole", out)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert (again.run.facts["epochs"], whole.run.facts["epochs"]) == (3, 3)
    known = [{path.name for path in one.iterdir() if path.name[0] != "."} for one in (tmp_path / "whole", out)]
    assert known[0] == known[1]
    assert reopen(out, device="cpu").splits.test.files.tolist() == run.splits.test.files.tolist()


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("unexported")
def test_a_threshold_of_other_answers_is_left_behind(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    classifier = Classifier.load(folder)
    classifier.threshold = 0.9
    classifier.save(folder / "classifier")
    made = compress(folder, by="int8:minmax:images=32", out=tmp_path / "small", device="cpu")
    assert Classifier.load(made.run.folder).threshold == 0
    assert any("set new ones" in note for note in made.notes)
    assert made.comparison.smaller
    assert made.run.facts["epochs"] == 0


@pytest.mark.usefixtures("unexported")
def test_a_bundle_is_compressed_with_images_named(run, tmp_path):
    bundle = run.classifier.save(tmp_path / "bundle")
    made = compress(
        bundle, "digits", by="prune:0.5", out=tmp_path / "small", settings=FineTuning(epochs=0), device="cpu"
    )
    again = reopen(made.run.folder, device="cpu")
    assert len(again.splits.train) > len(run.splits.train)  # all of them, not 400
    assert again.recipe.data == "digits"


@pytest.mark.usefixtures("unexported")
def test_an_ensemble_is_distilled_and_nothing_else(run, tmp_path):
    combine_runs([run.folder, other(run, tmp_path)], out=tmp_path / "all", device="cpu")
    with pytest.raises(SightlineError, match="member by member"):
        compress(tmp_path / "all", "digits", by="prune", out=tmp_path / "x", device="cpu")
    assert not (tmp_path / "x").exists()
    made = compress(
        tmp_path / "all",
        "digits",
        by="distil:mlp",
        out=tmp_path / "small",
        settings=FineTuning(epochs=1),
        device="cpu",
    )
    assert made.run.classifier.architecture.name == "mlp"
    assert "members" not in made.run.classifier.provenance
    assert reopen(made.run.folder, device="cpu").recipe.model == "mlp"


def other(run, place):
    folder = place / "other"
    shutil.copytree(run.folder, folder)
    return folder


@pytest.mark.usefixtures("unexported")
def test_the_verb(run, tmp_path, cli):
    out = tmp_path / "a"
    shutil.copytree(run.folder, out)
    words = ("compress", run.folder, "--by", "prune:0.6", "--epochs", "1", "--device", "cpu", "--out", out)
    assert cli(*words).code == 2
    answer = cli(*words, "--overwrite")
    assert answer.code == 0, answer.err
    assert "fine-tuning for 1 epoch on" in answer.err
    assert "Multiply-adds per image" in answer.out
    assert str(out) in answer.out
    assert Classifier.load(out).provenance["compressed"] == ["prune:amount=0.6"]
    listed = cli("list", "compressors", "--json")
    assert [row["name"] for row in json.loads(listed.out)["compressors"]] == list(COMPRESSORS)


def test_a_student_learns_the_answers_to_photos_without_labels(tmp_path, unexported):
    """Copies and the run's own photos are left out; the labels are the original's answers, by torch's argmax."""
    place = write_photos(tmp_path / "photos", 12)
    recipe = Recipe(model="small-cnn", size=16, epochs=2, lr=0.05, **PLAIN)
    run = train(place, recipe, out=tmp_path / "run")
    others = write_photos(tmp_path / "others", 3, seed=1)
    for part, name in ((run.splits.train, "train.jpg"), (run.splits.test, "test.jpg")):
        shutil.copy(place / part.files[0], others / name)
    shutil.copy(next(others.glob("*/*.jpg")), others / "copy.jpg")
    taught, facts = add_unlabelled_images(open_original(run.folder), str(others))
    added = taught.splits.train.subset(np.arange(len(run.splits.train), len(taught.splits.train)))
    assert len(added) == facts["images"] == 6
    assert not np.isin(added.digests, run.splits.test.digests).any()
    with torch.no_grad():
        answers = run.classifier(to_tensor(added[:])).argmax(1).numpy()
    assert np.array_equal(added.labels, answers)
    assert len(taught.splits.test) == len(run.splits.test)

    by, out = "distil:mlp", tmp_path / "student"
    found = compress(run.folder, by=by, out=out, unlabelled=str(others), settings=FineTuning(epochs=1))
    assert Classifier.load(out).provenance["unlabelled"] == facts
    assert any("6 photos without labels of 'others'" in note for note in found.notes)
    assert found.run.splits.train.fingerprint == run.splits.train.fingerprint
    alone = compress(run.folder, by=by, out=tmp_path / "alone", settings=FineTuning(epochs=1))
    weights = [one.run.classifier.network.head.weight for one in (found, alone)]
    assert not torch.equal(*weights)
    with pytest.raises(DataError, match=r"one of the run's own"):
        add_unlabelled_images(open_original(run.folder), str(place))


def test_mistakes_are_one_sentence(run, small, tmp_path, cli):
    bundle = run.classifier.save(tmp_path / "bundle")
    baseline = fit_baseline(split(load_dataset("digits", Geometry(size=(8, 8), channels=1))), "decision-tree")
    baseline.save(tmp_path / "tree")
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "x")
    wrong = {
        "Did you mean 'prune'": (run.folder, "--by", "pruen", *out),
        "named twice": (run.folder, "--by", "prune,prune:0.3", *out),
        "name it first": (run.folder, "--by", "prune,distil", *out),
        "use it with --by distil": (run.folder, "--by", "int8", "--unlabelled", tmp_path, *out),
        "Say how to compress": (run.folder, "--by", ",", *out),
        "cannot be made": (run.folder, "--by", "prune:2", *out),
        "pruned already": (small.run.folder, "--by", "prune", *out),
        "without its run": (bundle, "--by", "prune", *out),
        "classes of 'shapes'": (bundle, "shapes", "--by", "prune", *out),
        "no network to compress": (tmp_path / "tree", "digits", "--by", "prune", *out),
        "no run or bundle": (tmp_path / "absent", "--by", "prune", *out),
        "where the original is": (run.folder, "--by", "prune", "--out", run.folder, "--overwrite"),
        "is a file, not a folder": (run.folder, "--by", "prune", "--out", tmp_path / "file" / "x"),
        "exists already": (run.folder, "--by", "prune", "--out", small.run.folder),
        "There is no target 'speed'": (run.folder, "--by", "prune", "--target", "speed=0.5x", *out),
        "is no target: write": (run.folder, "--by", "prune", "--target", "size=half", *out),
        "max_accuracy_drop is 2": (
            run.folder,
            "--by",
            "prune",
            "--target",
            "size=0.5x",
            "--max-accuracy-drop",
            "2",
            *out,
        ),
        "exported file": (tmp_path / "model.onnx", "--by", "prune", *out),
    }
    for message, words in wrong.items():
        answer = cli("compress", *words, "--device", "cpu")
        assert answer.code == 2, (message, answer.err)
        assert message in answer.err
        assert answer.out == ""
        assert "Traceback" not in answer.err
    assert not (tmp_path / "x").exists()
    assert not (run.folder / WORK_FOLDER).exists()


def test_images_of_another_geometry_or_other_classes_are_refused(run):
    splits = images(10)
    with pytest.raises(DataError, match="load the images with the classifier's geometry"):
        check_images_fit(run.classifier, splits)
    turned = replace(run.splits.train, classes=run.splits.train.classes[::-1])
    with pytest.raises(DataError, match="in another order"):
        check_images_fit(run.classifier, replace(run.splits, train=turned))
    strange = copy.deepcopy(run.classifier)
    strange.geometry = Geometry(size=(12, 16), channels=1)
    with pytest.raises(DataError, match=r"Runs only support square images.*12 x 16"):
        recipe_from_classifier(strange)


def test_steps_may_be_objects_and_words(run):
    assert parse_compressors("int8:heals=True") == parse_compressors("int8:fine_tune=True")
    (step,) = parse_compressors("prune:0.3")
    assert parse_compressors([step, "int8"]) == [step, *parse_compressors("int8")]
    assert parse_compressors(step) == [step]
    with pytest.raises(ChoiceError, match="named twice"):
        parse_compressors([step, "prune"])
    assert dataclasses.is_dataclass(step)
    assert open_original(run.folder, device="cpu").recipe.data == run.recipe.data


def test_a_classifier_without_an_exported_file_is_timed_in_torch(run, tmp_path):
    """A filter that no file holds stands before the network."""
    made = train("digits", TINY.replace(normalize="jpeg:75+fitted", epochs=1), out=tmp_path / "run")
    small = compress(
        made.folder, by="prune:0.5", out=tmp_path / "small", settings=FineTuning(epochs=0), device="cpu"
    )
    assert not small.comparison.exported
    assert small.comparison.small.file_mb is None
    sentences = small.comparison.sentences()
    assert any("Timed in torch" in one and "JPEG" in one for one in sentences)
    assert any("its bundle has" in one for one in sentences)
    logits = predict_logits(small.run.classifier, made.splits.test)[0]
    assert logits.shape[1] == 10
    del run


def test_fine_tuning_recipes_are_short_and_of_a_low_rate():
    long = TINY.replace(epochs=60, lr=0.1, ema_decay=0.999, patience=3, layer_decay=0.7, weights=None)
    short = FineTuning().fine_tuning_recipe(long)
    assert (short.epochs, short.lr, short.ema_decay, short.patience, short.layer_decay) == (10, 0.02, 0.0, 0, 1.0)
    assert short.data_seed == long.data_seed
    assert FineTuning(seed=5).fine_tuning_recipe(long).data_seed == long.data_seed
    assert FineTuning().fine_tuning_recipe(long.replace(epochs=0)).epochs == 4
    assert FineTuning(epochs=1, lr=0.3).fine_tuning_recipe(long).lr == 0.3
    whole = FineTuning().full_training_recipe(long, "lenet5", 400)
    assert (whole.model, whole.epochs, whole.lr) == ("lenet5", 60, 0.025)
    with pytest.raises(RecipeError, match="epochs"):
        FineTuning(epochs=-1).fine_tuning_recipe(long)


@dataclasses.dataclass(frozen=True)
class KeepEven(Compressor):
    """Every second weight of each layer becomes zero: somebody's own compressor, in one file."""

    offset: int = 0

    def __call__(self, classifier, data):
        """The classifier with zeros; uses no images."""
        del data
        network = copy_network(classifier.network, classifier.architecture, "masked")
        layers = compressible_layers(network, torch.rand(2, 1, *classifier.geometry.size))
        for layer in layers.values():
            layer.weight.data.flatten()[self.offset :: 2] = 0
        return classifier.with_network(keep_zeros(network, [*layers]), "masked", {"layers": [*layers]})

    def at_strength(self, strength):
        """The only other strength."""
        return dataclasses.replace(self, offset=int(strength > 0.5))


@pytest.mark.usefixtures("unexported")
def test_a_compressor_of_ones_own_is_a_member_like_any_other(run, tmp_path, monkeypatch, cli):
    """One class and one line: it pipelines, is fine-tuned, searched for, compared, listed and chosen in a shell."""
    monkeypatch.setitem(COMPRESSORS, "keepeven", KeepEven)
    (step,) = parse_compressors("keepeven:offset=1")
    assert parse_compressors(step.word()) == [step]
    words = (
        "--by",
        "keepeven:1,int8:minmax:images=32",
        "--target",
        "parameters=0.9x",
        "--max-accuracy-drop",
        "0.9",
    )
    words += ("--epochs", "1", "--out", tmp_path / "small", "--device", "cpu", "--json")
    answer = cli("compress", run.folder, *words)
    assert answer.code == 0, answer.err
    assert "keepeven: fine-tuning for 1 epoch on" in answer.err
    value = json.loads(answer.out)
    assert value["by"] == ["keepeven", "int8:by=minmax:images=32"]
    assert [one["epochs"] for one in value["fine_tuning"]] == [1, 0]
    assert value["small"]["nonzero"] < 0.7 * value["original"]["nonzero"]
    assert Classifier.load(tmp_path / "small").provenance["compressed"] == value["by"]
    assert "keepeven" in cli("list", "compressors").out


def test_recipes_drop_the_settings_of_published_weights():
    """The head was computed, or fine-tuned with frozen norms: neither goes on, and a student has weights of its own."""
    started = TINY.replace(
        model="timm:tf_efficientnet_lite0.in1k:pretrained=True", method="finetune", normalize="pretrained",
        freeze_norms=True, epochs=0,
    )  # fmt: skip
    short = FineTuning().fine_tuning_recipe(started)
    assert (short.method, short.normalize, short.freeze_norms) == ("gradient", "pretrained", True)
    whole = FineTuning(epochs=3).full_training_recipe(started, "lenet5", 400)
    assert (whole.model, whole.method, whole.normalize, whole.freeze_norms) == ("lenet5", "gradient", None, False)
