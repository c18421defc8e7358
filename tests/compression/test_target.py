"""A target: the mildest strength that meets it, the strongest that stays accurate, and an honest no."""

import json

import pytest

from sightline.classifier import Classifier
from sightline.compression import FineTuning, Target, comparison, compress, open_original, parse_compressors
from sightline.compression.pipeline import (
    STRENGTHS,
    TARGET_RATIOS,
    TargetSearch,
    dry_run,
    validation_accuracy,
)
from sightline.errors import ChoiceError, RecipeError, RequirementNotMet
from sightline.models import count_multiply_adds
from sightline.training import Recipe, train

PLAIN = {"precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1, "augment": ()}
TINY = Recipe(model="small-cnn", size=12, limit=400, epochs=4, batch_size=32, lr=0.05, **PLAIN)


@pytest.fixture(autouse=True)
def _unexported(monkeypatch):
    """As where nothing can be exported: these tests are not about the file, which takes seconds to write."""

    def refuse(*_):
        raise RequirementNotMet("No file is written here.")

    monkeypatch.setattr(comparison, "TIMING_SECONDS", 0.02)
    monkeypatch.setattr(comparison, "write_exported", refuse)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train("digits", TINY, out=tmp_path_factory.mktemp("target") / "run")


def test_words_become_targets():
    assert Target.parse("latency=0.5x").ratios == {"latency": 0.5}
    assert Target.parse(("size=.1x", "parameters=0.25x")).ratios == {"size": 0.1, "parameters": 0.25}
    assert Target.parse("size=0.1x,latency=0.5x").ratios == {"size": 0.1, "latency": 0.5}
    assert str(Target.parse("multiply-adds=0.40x")) == "multiply-adds=0.4x"
    assert Target.parse("size=0.5x").is_met({"size": 0.5})
    assert not Target.parse("size=0.5x,parameters=0.5x").is_met({"size": 0.4, "parameters": 0.6})


@pytest.mark.parametrize(
    "word", ["size", "size=", "size=half", "size=0.5", "size=1x", "size=0x", "size=-0.5x", "x=y=z"]
)
def test_other_words_are_refused(word):
    with pytest.raises((RecipeError, ChoiceError), match=r"is no target|There is no target"):
        Target.parse(word)


def test_a_misspelt_target_gets_a_suggestion():
    with pytest.raises(ChoiceError, match="Did you mean 'latency'"):
        Target.parse("latencies=0.5x")


def test_every_strength_can_be_set():
    for word in ("prune:0.3:scope=layer", "channels:criterion=l2", "lowrank:tucker:energy=0.5"):
        (step,) = parse_compressors(word)
        changed = [step.at_strength(strength) for strength in STRENGTHS]
        assert len(set(map(repr, changed))) == len(STRENGTHS)
    assert parse_compressors("int8")[0].at_strength(0.5) is None
    assert set(TARGET_RATIOS) == {"latency", "size", "parameters", "multiply-adds"}


def test_the_mildest_strength_that_meets_it_is_taken(run, tmp_path):
    wanted = 0.5
    made = compress(
        run.folder, by="channels:criterion=l2", target=f"multiply-adds={wanted}x", max_accuracy_drop=0.9,
        out=tmp_path / "small", settings=FineTuning(epochs=1), device="cpu",
    )  # fmt: skip
    work = [
        count_multiply_adds(one.network, 1, (12, 12))
        for one in (run.classifier, Classifier.load(tmp_path / "small"))
    ]
    assert work[1] <= wanted * work[0]
    (step,) = made.result.steps
    place = STRENGTHS.index(step.amount)
    parent = open_original(run.folder, device="cpu")
    milder = dry_run(parent, [step.at_strength(STRENGTHS[place - 1])])
    assert count_multiply_adds(milder.network, 1, (12, 12)) > wanted * work[0]
    made.require_target()
    assert made.search.is_met
    assert len(made.search.candidates) == 1
    value = json.loads((tmp_path / "small" / "compression.json").read_text())["target"]
    assert value["met"]
    assert value["reached"]["multiply-adds"] == pytest.approx(work[1] / work[0])
    parts = [validation_accuracy(one, run.splits.val) for one in (parent.classifier, made.run.classifier)]
    assert value["accuracy_drop"] == pytest.approx(parts[0] - parts[1])


def test_an_unreachable_target_saves_the_best_and_reports_it(run, tmp_path, cli):
    words = ("--by", "channels:criterion=l2", "--target", "multiply-adds=0.1x", "--max-accuracy-drop", "0.03")
    words += ("--epochs", "0", "--out", tmp_path / "small", "--device", "cpu", "--json")
    answer = cli("compress", run.folder, *words)
    assert answer.code == 3
    assert "is not met within 3 points of accuracy on validation: the best reaches multiply-adds 0." in answer.err
    assert f"It is saved in '{tmp_path / 'small'}'" in answer.err
    value = json.loads(answer.out)
    assert value["run"] == str(tmp_path / "small")
    assert {"parent", "by", "original", "small", "sentences", "mcnemar_p", "agreement", "report"} <= set(value)
    target = value["target"]
    assert not target["met"]
    tried = {one["reached"]["multiply-adds"]: one["accuracy_drop"] for one in target["tried"]}
    fine = [reached for reached, lost in tried.items() if lost <= 0.03]
    assert fine
    assert len(tried) > len(fine)
    assert target["reached"]["multiply-adds"] == min(fine)
    kept = count_multiply_adds(Classifier.load(tmp_path / "small").network, 1, (12, 12))
    whole = count_multiply_adds(run.classifier.network, 1, (12, 12))
    assert kept / whole == pytest.approx(min(fine))
    assert (tmp_path / "small" / "report.html").is_file()


def test_compressors_without_a_strength_are_run_once(run, tmp_path):
    asked = {"by": "int8:minmax:images=32", "target": "parameters=0.5x", "device": "cpu"}
    made = compress(run.folder, out=tmp_path / "small", **asked)
    assert len(made.search.candidates) == 1
    with pytest.raises(RequirementNotMet, match="It is saved in"):
        made.require_target()
    assert Classifier.load(tmp_path / "small").network.rounding is not None


def test_costs_are_measured_once(run, tmp_path, monkeypatch):
    """A clock never says the same twice, so a search that goes on must not ask it again."""
    parent = open_original(run.folder, device="cpu")
    asked = (
        parent,
        parse_compressors("prune"),
        Target.parse("parameters=0.5x"),
        0.9,
        FineTuning(epochs=0),
        tmp_path,
    )
    first = TargetSearch(*asked).run()
    monkeypatch.setattr(TargetSearch, "_measure_ratios", lambda *_: pytest.fail("measured again"))
    again = TargetSearch(*asked).run()
    assert again.best.ratios == first.best.ratios
    assert again.best.result.steps == first.best.result.steps
