"""What a run keeps of its images: sums and exemplars, learning from them alone, and forgetting."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.digit_folders import DIGITS_RECIPE, write_digits
from sightline.classifier import Classifier
from sightline.continual import STRATEGIES, FeatureStatistics, RanPAC, learn
from sightline.continual import lesson as module
from sightline.errors import BundleError, DataError, RecipeError
from sightline.features import embed_cached
from sightline.models import Memory
from sightline.sources import read_exemplar_table
from sightline.training import reopen, train


@pytest.fixture(autouse=True)
def short_trainings(monkeypatch):
    monkeypatch.setattr(module, "REPLAY_STEPS", 5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on three digits that keeps sums, one that keeps exemplars, one that keeps nothing; their images are gone.

    Before they went, ``some`` of the images were copied, and the features of all.
    """
    folder = tmp_path_factory.mktemp("memory")
    write_digits(folder / "old", {f"d{d}": (d, 0, 50) for d in range(3)})
    write_digits(folder / "new", {f"d{d}": (d, 0, 30) for d in (4, 5)})
    train(folder / "old", DIGITS_RECIPE, out=folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "REPLAY_STEPS", 5)
        learn(folder / "run", keep_images=False, out=folder / "sums")
        learn(folder / "run", by=["keep"], keep_images=True, memory=60, out=folder / "exemplary")
    run = reopen(folder / "run")
    (folder / "some").mkdir()
    for file in run.splits.train.files[:9]:
        shutil.copy(folder / "old" / file, folder / "some" / f"copy-of-{file.replace('/', '-')}")
    np.savez(folder / "features.npz", f=embed_cached(run.classifier, run.splits.train), y=run.splits.train.labels)
    (folder / "old").rename(folder / "gone")
    return folder


@pytest.mark.parametrize("by", ["lda", "means", "ranpac"])
def test_heads_are_computed_from_sums_alone(home, by):
    """Equal to the head of all images, though the old ones are gone."""
    found = learn(home / "sums", home / "new", by=[by], out=home / f"from-sums-{by}").run
    assert found.classifier.classes == ("d0", "d1", "d2", "d4", "d5")
    with np.load(home / "features.npz") as held:
        old = dict(held)
    new = found.splits.train
    assert set(np.unique(new.labels)) == {3, 4}  # no old image was read
    features = np.concatenate([old["f"], embed_cached(found.classifier, new)])
    labels = np.concatenate([old["y"], new.labels])
    head = found.classifier.network.head
    if by == "ranpac":
        weights, _ = RanPAC().sum(features, labels, found.classifier.classes).fit()
        assert head.weight.shape == (5, 1000)
        logits = [
            torch.relu(torch.from_numpy(features) @ head.projection.T) @ w.T
            for w in (head.weight, torch.from_numpy(weights.T).float())
        ]
        torch.testing.assert_close(*logits, rtol=1e-2, atol=5e-3)
    else:
        statistics = FeatureStatistics.of(features, labels, found.classifier.classes)
        expected = statistics.fit_lda().weight if by == "lda" else 2 * torch.from_numpy(statistics.means).float()
        torch.testing.assert_close(head.weight, expected, rtol=1e-4, atol=1e-4)


def test_a_chain_goes_on_without_images(home):
    shutil.rmtree(home / "chain", ignore_errors=True)
    first = learn(home / "sums", home / "new", out=home / "chain" / "1")
    assert {one.strategy for one in first.outcomes} <= {"lda", "ranpac"}  # those that need no image
    assert all(one.old is None for one in first.outcomes)
    second = learn(home / "chain" / "1", rename={"d4": "four"}, out=home / "chain" / "2")
    third = learn(home / "chain" / "2", remove=["d0"], by=["lda"], out=home / "chain" / "3")
    assert third.run.classifier.classes == ("d1", "d2", "four", "d5")
    write_digits(home / "chain" / "more", {"d1": (1, 60, 70), "d7": (7, 0, 9)})
    last = learn(home / "chain" / "3", home / "chain" / "more", by=["lda"], out=home / "chain" / "4").run
    assert last.classifier.classes == ("d1", "d2", "four", "d5", "d7")
    assert [step["from"] for step in last.classifier.provenance["learned"]] == ["run", "sums", "1", "2", "3"]
    old = write_digits(home / "chain" / "test", {f"d{d}": (d, 100, 130) for d in (1, 2)})
    answers = [one.label for one in last.classifier.predict(sorted(old.rglob("*.png")))]
    assert np.mean([a == p.parent.name for a, p in zip(answers, sorted(old.rglob("*.png")), strict=True)]) > 0.7
    assert second.outcomes[0].negative_flips == 0


@pytest.mark.parametrize("by", ["lda", "ranpac"])
def test_forgetting_from_sums_is_never_having_seen(home, by):
    found = learn(home / "sums", forget=home / "some", by=[by], out=home / f"forgot-{by}").run.classifier
    with np.load(home / "features.npz") as held:
        old = dict(held)
    features, labels = old["f"][9:], old["y"][9:]
    if by == "lda":
        expected = FeatureStatistics.of(features, labels, found.classes).fit_lda().weight
        torch.testing.assert_close(found.network.head.weight, expected, rtol=1e-3, atol=1e-4)
    else:
        weights, _ = RanPAC().sum(features, labels, found.classes).fit()
        hidden = torch.relu(torch.from_numpy(old["f"]) @ found.network.head.projection.T)
        torch.testing.assert_close(
            hidden @ found.network.head.weight.T,
            hidden @ torch.from_numpy(weights).float(),
            rtol=2e-2,
            atol=1e-2,
        )
    kept = FeatureStatistics.from_tensors(found.memory.statistics, found.classes)
    assert kept.counts.sum() == len(labels)
    with pytest.raises(DataError, match="None of the images"):
        learn(home / f"forgot-{by}", forget=home / "some", out=home / "twice")


def test_exemplars_are_stored_once_by_hash_within_a_limit(home):
    rows = read_exemplar_table(home / "exemplary")
    assert 40 < len(rows) <= 60
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    for row in rows:
        file = home / "exemplary" / row["path"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    memory = Classifier.load(home / "exemplary").memory
    trained = sorted(Path(row["path"]).stem for row in rows if row["split"] == "train")
    known = {one for hashes in memory.exemplars.values() for one in hashes}
    assert set(trained) <= known  # what other tests forgot is erased, and its hash stays
    assert len(known) - len(trained) <= 9
    assert not list((home / "exemplary" / "classifier").rglob("*.png"))
    before = set((home / "exemplars").iterdir())
    learn(home / "exemplary", rename={"d0": "zero"}, out=home / "exemplary-2")
    assert set((home / "exemplars").iterdir()) == before  # stored once
    assert {row["label"] for row in read_exemplar_table(home / "exemplary-2")} == {"zero", "d1", "d2"}


def test_exemplars_stand_for_images_that_are_gone(home):
    found = learn(home / "exemplary", home / "new", by=["replay", "lda"], memory=60, out=home / "replayed")
    kept = {one.strategy: one for one in found.outcomes}
    assert kept["replay"].old.n > 5
    assert kept["lda"].old.value > 0.6
    run = reopen(home / "replayed")
    assert run.classifier.classes == ("d0", "d1", "d2", "d4", "d5")
    assert len(read_exemplar_table(home / "replayed")) <= 60


def test_erasing_an_exemplar_breaks_no_checksum(home, tmp_path):
    for name in ("exemplary", "exemplars"):
        shutil.copytree(home / name, tmp_path / name)
    shutil.copytree(home / "exemplary" / "classifier", tmp_path / "released")
    victim = tmp_path / "exemplary" / read_exemplar_table(tmp_path / "exemplary")[0]["path"]
    (tmp_path / "withdrawn").mkdir()
    shutil.copy(victim, tmp_path / "withdrawn" / "a photo.png")
    found = learn(tmp_path / "exemplary", forget=tmp_path / "withdrawn", by=["lda"], out=tmp_path / "forgot").run
    assert not victim.exists()
    for bundle in ("released", "exemplary", "forgot"):
        Classifier.load(tmp_path / bundle)  # raises where a checksum differs
    assert victim.stem in json.dumps(Classifier.load(tmp_path / "released").memory.exemplars)
    assert victim.stem not in json.dumps(found.classifier.memory.exemplars)
    for run in ("exemplary", "forgot"):
        assert victim.stem not in (tmp_path / run / "exemplars.jsonl").read_text()
    before = Classifier.load(tmp_path / "exemplary").memory.statistics["counts"].sum()
    assert found.classifier.memory.statistics["counts"].sum() == before - 1


def refusals(home):
    nothing = [word for word, kind in STRATEGIES.items() if not kind.needs_images]
    return {
        "nothing is left": (home / "run", {}, DataError, "keeps no sums or exemplars"),
        "replay": (
            home / "sums",
            {"by": ["replay"]},
            RecipeError,
            f"replay cannot work: choose among {', '.join(nothing)}",
        ),
        "no sums of random features": (
            home / "plain",
            {"by": ["ranpac"]},
            RecipeError,
            "no sums of random features",
        ),
        "random features": (home / "sums", {"by": ["ranpac:projections=50"]}, RecipeError, "projections=1000"),
        "another lineage": (home / "foreign", {}, BundleError, "features of another network"),
    }


@pytest.mark.parametrize("case", refusals(Path()))
def test_what_cannot_be_learned_without_images(home, case):
    if not (home / "foreign").exists():
        shutil.copytree(home / "sums", home / "foreign")
        classifier = Classifier.load(home / "foreign")
        with torch.no_grad():
            next(classifier.parameters()).add_(1.0)
        classifier.save(home / "foreign" / "classifier")
        shutil.copytree(home / "sums", home / "plain")
        classifier = Classifier.load(home / "plain")
        plain = {name: one for name, one in classifier.memory.statistics.items() if not name.startswith("random.")}
        classifier.memory = Memory(statistics=plain)
        classifier.save(home / "plain" / "classifier")
    run, arguments, kind, message = refusals(home)[case]
    with pytest.raises(kind, match=message):
        learn(run, home / "new", out=home / "refused", **arguments)
    assert not (home / "refused" / "recipe.toml").exists()
