"""``improve``: what people said is learned, judged and released once; nothing is half released."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from helpers.digit_folders import DIGITS_RECIPE, write_digits
from sightline.classifier import Classifier
from sightline.cli import main
from sightline.cli.improve import print_improvement
from sightline.errors import DataError, OutputError, ReleaseError
from sightline.feedback import GateRules, improve, improvement
from sightline.feedback.difference import answer_images, open_release
from sightline.feedback.improvement import STAGES
from sightline.feedback.judging import judge_release
from sightline.feedback.lessons import FieldImages, collect_field_images, group_images, split_groups
from sightline.feedback.opinions import SettledLabel
from sightline.journal import Journal, JournalRow, PredictionRecord, QueueEntry, draw_number
from sightline.runs import open_run, trained_on
from sightline.serving import current_number, current_release, load_release, open_engine, publish
from sightline.serving.requests import PredictRequest, RequestLimits
from sightline.training import RunFolder, train

AUDIT = 0.3
"""Share of the traffic that is drawn at random."""


def traffic(wanted):
    """(bytes of a PNG, label) of digits: ``wanted`` maps a digit to the first and the last one."""
    digits, found = load_digits(), []
    for digit, (first, last) in wanted.items():
        for number in np.flatnonzero(digits.target == digit)[first:last]:
            stream = io.BytesIO()
            Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(stream, "png")
            found.append((stream.getvalue(), f"d{digit}"))
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def answer(site, given, *, first=0, subject=None):
    """Records of what the current release answers; ids in order."""
    release = current_release(site)
    engine = open_engine(release.onnx, release=release.number, threads=1)
    found = []
    for i in range(0, len(given), 64):
        request = PredictRequest([data for data, _ in given[i : i + 64]])
        found += engine.predict([request], RequestLimits())[0]
    return [
        PredictionRecord(
            f"{first + i:032x}", 1e9 + 100 * i, release.number, one.label, one.confidence, False, None,
            image=data, subject=subject,
        )
        for i, (one, (data, _)) in enumerate(zip(found, given, strict=True))
    ]  # fmt: skip


def say(journal, records, labels, by="Ann", why=None):
    """Let a person say what each answer is; a share was drawn at random, the others were close calls."""
    for record, label in zip(records, labels, strict=True):
        drawn = why or ("audit" if draw_number(record.id) < AUDIT else "margin")
        journal.add_to_queue([QueueEntry(record.id, drawn, AUDIT if drawn == "audit" else 0.0)])
        journal.review([record.id], "confirmed" if label == record.label else "corrected", label, by=by)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A site whose release knows eight digits and sees a ninth; every answer was reviewed."""
    place = tmp_path_factory.mktemp("improve")
    write_digits(place / "data", {f"d{d}": (d, 0, 90) for d in range(8)})
    publish(place / "site", train(place / "data", DIGITS_RECIPE, out=place / "run").folder)
    return place


@pytest.fixture(scope="module")
def template(base):
    given = traffic(dict.fromkeys(range(8), (90, 125)) | {8: (0, 80)})
    site = shutil.copytree(base / "site", base / "reviewed")
    records = answer(site, given)
    with opened(site) as journal:
        journal.record(records)
        journal.flush()
        say(journal, records, [label for _, label in given])
    return site, records


@contextmanager
def opened(site):
    with Journal.open(site, keep_images=True) as journal:
        yield journal


@pytest.fixture
def site(template, tmp_path):
    return shutil.copytree(template[0], tmp_path / "site")


@pytest.fixture
def quiet(base, tmp_path):
    """The site without a review."""
    return shutil.copytree(base / "site", tmp_path / "quiet")


def improved(site, **given):
    with opened(site) as journal:
        return improve(site, journal=journal, **({"by": ["lda"]} | given))


def test_a_class_of_the_field_is_learned_and_released_once(site, base, capsys):
    assert main(["improve", str(site), "--by", "lda", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decision"] == "promoted", found["reasons"]
    assert current_number(site) == found["release"] == 2
    release = current_release(site)
    assert release.facts["classes"] == [f"d{d}" for d in range(9)]
    before, after = found["judged"]["accuracy"]
    assert after > before
    n, before, after = found["judged"]["corrections"]
    assert (n > 0, after > before) == (True, True)
    assert main(["improve", str(site)]) == 0
    assert "Nothing was labelled since the last candidate." in capsys.readouterr().out
    assert current_number(site) == 2
    lines = [json.loads(line)["what"] for line in (site / "releases.jsonl").read_text().splitlines()]
    assert lines == ["publish", "promote", "publish", "promote", "improve"]
    # the test set of the base never received an image, and what judges never trained
    run = site / "improve" / "0001" / "run"
    with opened(site) as journal:
        field = collect_field_images(journal, Classifier.load(run).geometry)
    learned = trained_on(run, field.images)
    assert (learned == field.learned).all()
    assert {*field.split} == {"train", "val", "held out", "audit"}
    held = RunFolder(base / "run").read_digests("test")
    assert not np.isin(held, field.images.digests).any()
    assert sorted(RunFolder(run).read_digests("test")) == sorted(held)


KILLS = """
import json, os, signal, sys
from sightline.feedback import improve
from sightline.feedback.improvement import STAGES
from sightline.journal import Journal

site = sys.argv[1]

def attempt(kill):
    def stop(stage):
        if stage == kill:
            os.kill(os.getpid(), signal.SIGKILL)
    with Journal.open(site, keep_images=True) as journal:
        return improve(site, journal=journal, by=["lda"], on_stage=stop)

for stage in STAGES:
    if (child := os.fork()) == 0:
        attempt(stage)
        os._exit(7)
    status = os.waitpid(child, 0)[1]
    found = os.WTERMSIG(status) if os.WIFSIGNALED(status) else "not killed"
    print(stage, found, json.load(open(f"{site}/current"))["release"], flush=True)
print(json.dumps(attempt(None).as_json()))
"""


def test_a_kill_at_every_stage_loses_nothing_and_releases_nothing_half(site):
    """One process that forks, since each has to import everything: real SIGKILLs of real processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(site)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    *stages, last = done.stdout.strip().splitlines()
    assert stages == [f"{stage} 9 1" for stage in STAGES]
    found = json.loads(last)
    assert (found["decision"], found["release"]) == ("promoted", 2)
    assert not [*(site / "releases").glob(".*")]
    assert load_release(site, 2).facts["classes"] == [f"d{d}" for d in range(9)]


def test_a_full_disk_leaves_the_old_release(site, monkeypatch):
    """While it learns, while the candidate is checked, and at the release."""
    real = improvement.publish

    def refuse(*_, **__):
        raise OutputError("Cannot write: the disk is full: free some space or choose another place.")

    def publish_elsewhere(place, *more, **given):
        return refuse() if place == site else real(place, *more, **given)

    for name, full in (("learn", refuse), ("publish", refuse), ("publish", publish_elsewhere)):
        with monkeypatch.context() as patched:
            patched.setattr(improvement, name, full)
            with pytest.raises(OutputError, match="disk is full"):
                improved(site)
        assert current_number(site) == 1
        assert not (site / "releases" / "0002").exists()
    assert improved(site).release == 2


def test_erasure_reaches_what_is_learned(site):
    """A subject's images are queued and in a candidate, which is not released."""
    given = traffic({8: (80, 95)})
    more = answer(site, given, first=10_000, subject="Zoe")
    with opened(site) as journal:
        journal.record(more)
        journal.flush()
        say(journal, more, ["d8"] * len(more), why="margin")

    def erase(stage):
        if stage == "release":
            with opened(site) as another:
                another.erase("Zoe")

    with pytest.raises(ReleaseError, match="erased meanwhile, so it is not released"):
        improved(site, on_stage=erase)
    assert current_number(site) == 1
    found = improved(site)
    assert (found.decision, found.release) == ("promoted", 2)
    with opened(site) as journal:
        erased = journal.retain(0)
    assert any("Release 2 learned from images that are erased" in sentence for sentence in erased.remains)
    assert improved(site).decision == "nothing to learn"


@pytest.mark.parametrize("case", ["nothing said", "few", "contradictory", "unusable"])
def test_without_labels_there_is_nothing_to_learn(quiet, case):
    given = traffic({8: (0, 20)})
    records = answer(quiet, given)
    with opened(quiet) as journal:
        journal.record(records)
        journal.flush()
        if case == "few":
            say(journal, records[:3], ["d8"] * 3, why="margin")
        if case == "contradictory":
            for name, label in (("Ann", "d8"), ("Bob", "d3")):
                say(journal, records, [label] * len(records), by=name, why="margin")
        if case == "unusable":
            journal.review([one.id for one in records], "unusable")
    found = improved(quiet)
    assert (found.decision, found.release) == ("nothing to learn", 1)
    said = {"few": "images were labelled: 10 are worth"}.get(
        case, "No kept image has a label that people agree on"
    )
    assert said in found.reasons[0]
    assert not [*(quiet / "improve").glob("0*")]


@pytest.mark.parametrize(("label", "decision"), [("d3", "kept"), ("zebra", "kept")])
def test_wrong_labels_are_not_released(quiet, label, decision):
    """All of one class, or of a class that nobody defined, for digits of every kind."""
    given = traffic(dict.fromkeys(range(8), (90, 120)))
    records = answer(quiet, given)
    with opened(quiet) as journal:
        journal.record(records)
        journal.flush()
        say(journal, records, [label] * len(records), why="margin")
    found = improved(quiet)
    assert (found.decision, found.release, current_number(quiet)) == (decision, 1, 1), found.reasons
    assert found.judged.newly_wrong
    printed = io.StringIO()
    print_improvement(Console(file=printed, width=1000), {"site": str(quiet), **found.as_json()})
    assert "Release 1 stays:" in printed.getvalue()
    assert "Newly wrong: " in printed.getvalue()


def test_two_at_once_are_refused(site):
    (site / "improve").mkdir()
    with FileLock(site / "improve" / ".lock"), pytest.raises(ReleaseError, match="wait until it has ended"):
        improved(site)
    assert improved(site, minimum=10_000).decision == "nothing to learn"


def test_a_release_without_its_run_says_what_to_publish(base, tmp_path):
    publish(tmp_path / "site", base / "run" / "classifier")
    with pytest.raises(ReleaseError, match="publish its run"):
        improved(tmp_path / "site")
    run = shutil.copytree(base / "run", tmp_path / "run")
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace(str(base / "data"), str(tmp_path / "gone")))
    publish(tmp_path / "other", run)
    with pytest.raises(DataError, match="gone"):
        improved(tmp_path / "other")


def test_a_release_that_the_audit_proves_worse_is_rolled_back_and_not_made_again(site, base):
    worse = shutil.copytree(base / "run", site / "improve" / "0001" / "run")
    classifier = Classifier.load(worse)
    with torch.no_grad():
        classifier.network.head.bias[:4] = -100
    shutil.rmtree(worse / "classifier")
    classifier.save(worse / "classifier")
    (worse.parent / "job.json").write_text(json.dumps({"fingerprint": "ab", "base": str(base / "run")}))
    publish(site, worse)
    given = traffic(dict.fromkeys(range(8), (125, 140)))
    records = answer(site, given, first=20_000)
    with opened(site) as journal:
        journal.record(records)
        journal.flush()
        say(journal, records, [label for _, label in given], why="margin")
    assert current_number(site) == 2
    not_audited = improved(site, minimum=10_000)
    assert not_audited.decision == "nothing to learn"  # corrections alone prove nothing
    with opened(site) as journal:
        audited = [replace(one, id=f"{30_000 + i:032x}") for i, one in enumerate(records)]
        audited = [replace(one, image=png_with_noise(one.image, i)) for i, one in enumerate(audited)]
        journal.record(audited)
        journal.flush()
        say(journal, audited, [label for _, label in given], why="audit")
    found = improved(site)
    assert found.decision == "rolled back"
    assert "The audit proves release 2 worse than 1" in found.reasons[0]
    assert current_number(site) == 1
    assert improved(site).decision == "waits"
    state = json.loads((site / "improve" / "state.json").read_text())
    assert state["quarantine"] == ["ab"]
    assert state["cool_down"]["days"] == 1
    last = json.loads((site / "releases.jsonl").read_text().splitlines()[-1])
    assert (last["what"], last["decision"]) == ("improve", "rolled back")


def test_held_out_corrections_block_only_a_proven_loss(base, tmp_path):
    """(2^(n+1) - 1)/(n+1) is the evidence of n losses without a win: 6 are 18.1, 7 are 31.9, and 20 proves."""
    site = shutil.copytree(base / "site", tmp_path / "site")
    worse = shutil.copytree(base / "run", tmp_path / "worse")
    classifier = Classifier.load(worse)
    with torch.no_grad():
        classifier.network.head.bias[:4] = -100  # no digit below 4 is answered any more
    shutil.rmtree(worse / "classifier")
    classifier.save(worse / "classifier")
    candidate, current = publish(site, worse), load_release(site, 1)
    images = open_run(base / "run").splits.test
    right = answer_images(open_release(current), images).right

    def judge(lost):
        known = np.flatnonzero(right & (images.labels < 4))[:lost]
        field = FieldImages(images.subset(known), np.full(lost, "held out", object), (), 0)
        return judge_release(candidate, current, None, images.subset(images.labels >= 4), field, rules=GateRules())

    none, few, many = (judge(lost) for lost in (0, 6, 7))
    assert none.decision in ("promoted", "cannot tell")
    assert (few.decision, few.verdict.reasons) == (none.decision, none.verdict.reasons)
    assert (few.corrections, many.corrections) == ((6, 6, 0), (7, 7, 0))
    assert many.decision == "kept"
    assert many.verdict.reasons == (
        "held-out corrections prove a loss: only the current release has 7 of 7 right, only the candidate 0",
    )


def png_with_noise(data, seed):
    pixels = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    noisy = np.clip(pixels + np.random.default_rng(seed).integers(0, 2, pixels.shape), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noisy).save(stream, "png")
    return stream.getvalue()


def settled(i, *, subject=None, source=None, at=0.0, audited=False):
    row = JournalRow(f"{i:032x}", at, 1, "cat", 0.9, False, None, subject, source, f"{i}.png", *[None] * 4)
    return SettledLabel(row, "cat", False, audited)


def test_images_that_belong_together_are_in_one_split():
    known = [
        settled(0, subject="Zoe"), settled(1, source="door", at=0), settled(2, source="door", at=59),
        settled(3, source="door", at=300), settled(4, subject="Zoe"), settled(5), settled(6),
        settled(7, source="door", at=361),
    ]  # fmt: skip
    near = np.array([0, 1, 2, 3, 4, 5, 4, 7])
    known.sort(key=lambda one: one.row.id)
    assert group_images(known, near).tolist() == [0, 1, 1, 3, 0, 5, 0, 7]
    many = [settled(i, subject=f"s{i // 3}", audited=i % 30 == 0) for i in range(3000)]
    group = group_images(many, np.arange(3000))
    assert (group == np.arange(3000) // 3 * 3).all()
    split = split_groups(many, group).reshape(-1, 3)
    assert all({*row} in ({"train"}, {"val"}, {"held out"}, {"audit", "held out"}) for row in split)
    assert {*split[::10, 0]} == {"audit"}
    shares = [np.mean(split[:, 1] == name) for name in ("train", "val", "held out")]
    assert np.allclose(shares, [0.63, 0.135, 0.235], atol=0.05)
    more = split_groups([*many, settled(3000, subject="s0")], np.append(group, 0))
    assert (more[:3000].reshape(-1, 3) == split).all()  # what comes later moves nothing


def test_wrong_flags_are_refused(site, capsys):
    for words, message in (
        (["--every", "soon"], "--every is 'soon'"),
        (["--allowance", "2"], "--allowance is 2"),
        (["--minimum", "0"], "--minimum is 0"),
    ):
        assert main(["improve", str(site), *words]) == 2
        assert message in capsys.readouterr().err
