"""One pass of a real classifier: its numbers, its record, its mistakes."""

import base64
import csv
import io
import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

from sightline.classifier import Classifier
from sightline.comparison import learning_curve
from sightline.errors import DataError
from sightline.evaluation import (
    confusable_pairs,
    efficiency,
    evaluate,
    mistake_gallery,
    report_json,
    top_confusions,
    worst_mistakes,
)
from sightline.evaluation.model_evaluation import _guess_remarks
from sightline.evaluation.report_file import evaluate_on, evaluate_run
from sightline.evidence import NO_PLOTS, load_evidence, write_report
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training.budget import Deadline
from sightline.training.recipe import Recipe
from sightline.training.run import train
from sightline.types import Dataset, Geometry

GEOMETRY = Geometry(size=(8, 8), channels=1)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    """Latency is measured, for a shorter time."""
    monkeypatch.setattr(efficiency, "LATENCY_SECONDS", 0.02)


def dataset(n=50, classes=("cat", "dog", "owl"), seed=0, size=(8, 8), geometry=GEOMETRY, labels=None):
    rng = np.random.default_rng(seed)
    if labels is None:
        labels = rng.integers(len(classes), size=n)
    return Dataset(
        pixels=np.random.default_rng(seed + 1).integers(0, 256, (n, *size, geometry.channels), dtype=np.uint8),
        rows=np.arange(n),
        labels=np.asarray(labels, dtype=np.int64),
        classes=tuple(classes),
        files=np.array([f"folder/{i}.png" for i in range(n)]),
        digests=np.arange(n, dtype=np.uint64),
        geometry=geometry,
        fingerprint="f",
    )


def classifier(classes=("cat", "dog", "owl"), model="mlp", geometry=GEOMETRY, temperature=0.5):
    torch.manual_seed(0)
    plan = parse_architecture(model, classes=len(classes), channels=geometry.channels, size=geometry.size)
    return Classifier(
        Preprocessing(),
        build(plan),
        architecture=plan,
        classes=classes,
        geometry=geometry,
        temperature=temperature,
    )


def plainly(classifier, data):
    """Probabilities one image at a time, without any of our batching."""
    classifier.eval()
    with torch.no_grad():
        rows = [torch.from_numpy(data[i : i + 1]).permute(0, 3, 1, 2).float() / 255 for i in range(len(data))]
        return torch.cat([classifier.probabilities(row) for row in rows]).numpy()


@pytest.mark.parametrize("batch_size", [1, 7, 50, 256])
def test_one_pass_equals_predicting_one_image_at_a_time(batch_size):
    model, data = classifier(), dataset()
    found = evaluate(model, data, batch_size=batch_size, device="cpu")
    np.testing.assert_allclose(found.probabilities, plainly(model, data), atol=1e-6)
    np.testing.assert_array_equal(found.labels, data.labels)
    np.testing.assert_array_equal(found.files, data.files)
    assert found.metrics["accuracy"].value == sk.accuracy_score(data.labels, found.predicted)
    assert found.efficiency.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("classes", [("no", "yes"), tuple("abcdefghijklmnopqrstuvwxyz")])
def test_two_classes_and_many(classes):
    model, data = classifier(classes), dataset(200, classes)
    found = evaluate(model, data).as_json()
    assert found["n"] == 200
    assert np.shape(found["confusion"]) == (len(classes), len(classes))
    assert [row["class"] for row in found["per_class"]] == list(classes)


def test_json_has_every_metric_with_its_interval():
    found = evaluate(classifier(), dataset(), split="val").as_json()
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text) == found
    assert found["split"] == "val"
    for name in ("accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro"):
        assert found["intervals"][name]["low"] <= found[name] <= found["intervals"][name]["high"]
        assert found["intervals"][name]["value"] == found[name]
    for name in ("roc_auc_ovr", "log_loss", "ece", "brier", "f1_micro", "f1_weighted", "top_2_accuracy"):
        assert found["intervals"][name]["n"] == 50
        assert name in found
    costs = found["efficiency"]
    assert costs["images_per_second"] == pytest.approx(1 / costs["seconds_per_image"])
    assert [one["batch_size"] for one in costs["latency"]] == [1, 32]
    for one in costs["latency"]:
        assert 0 < one["p50_ms"] <= one["p95_ms"]
        assert one["repetitions"] >= 2
    assert costs["latency_ms"] == costs["latency"][0]["p50_ms"]
    assert costs["inference_memory_kind"] == "process"
    assert all(row["intervals"]["roc_auc"]["low"] <= row["roc_auc"] for row in found["per_class"])
    right = sum(row[i] for i, row in enumerate(found["confusion"]))
    assert right / 50 == pytest.approx(found["accuracy"])


def test_labels_are_matched_by_class_name():
    model, data = classifier(), dataset()
    order = np.array([2, 0, 1])
    renamed = dataset(classes=tuple(data.classes[i] for i in order), labels=np.argsort(order)[data.labels])
    straight, shuffled = evaluate(model, data), evaluate(model, renamed)
    np.testing.assert_array_equal(straight.labels, shuffled.labels)
    assert straight.as_json()["confusion"] == shuffled.as_json()["confusion"]


def test_images_of_an_unknown_class_are_named():
    data = dataset(classes=("cat", "dog", "zebra"))
    with pytest.raises(DataError, match=r"never trained on: 'zebra'\. Rename or leave out"):
        evaluate(classifier(), data)


def test_an_unknown_class_without_images_does_no_harm():
    data = dataset(classes=("cat", "dog", "zebra"), labels=np.arange(50) % 2)
    found = evaluate(classifier(), data)
    assert found.confusion.sum() == 50
    assert found.per_class[2].n == 0
    assert any("no test images" in remark.text and "owl" in remark.text for remark in found.remarks)


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="no images to evaluate"):
        evaluate(classifier(), dataset().subset(np.arange(0)))


def test_another_geometry_is_refused():
    other = Geometry(size=(8, 8), channels=1, resize_mode="pad")
    with pytest.raises(DataError, match="classifier's geometry"):
        evaluate(classifier(), dataset(geometry=other))


def test_evaluating_leaves_the_classifier_as_it_was():
    model = classifier(model="resnet20", geometry=GEOMETRY)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, dataset())
    assert model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_probabilities_that_are_not_numbers_are_refused():
    model = classifier()
    with torch.no_grad():
        next(model.network.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="are not numbers"):
        evaluate(model, dataset())


def test_small_classes_are_remarked_on():
    *_, remark = evaluate(classifier(), dataset(50)).remarks
    assert remark.text.startswith("3 of 3 classes have fewer than 30 test images")
    assert not any("fewer than 30" in one.text for one in evaluate(classifier(), dataset(300)).remarks)


@pytest.mark.parametrize(
    ("right", "total", "says"),
    [
        (0.5, 400, "No better than guessing: 50% of 400 images are right (45% to 55%)"),
        (0.4, 40, "No better than guessing"),
        (0.6, 40, "Perhaps no better than guessing"),
        (0.6, 400, None),
        (1.0, 8, None),
    ],
)
def test_an_accuracy_of_guessing_is_called_so(right, total, says):
    labels = np.arange(total) % 2
    answers = np.where(np.arange(total) // 2 < right * total / 2, labels, 1 - labels)
    found = list(_guess_remarks(("cat", "dog"), labels, np.eye(2)[answers]))
    assert [one.text[: len(says)] for one in found] == [says] if says else not found


def test_always_naming_the_largest_class_is_guessing():
    labels = np.r_[np.zeros(90, int), np.ones(10, int)]
    (remark,) = _guess_remarks(("cat", "dog"), labels, np.eye(2)[0 * labels])
    assert "always answering 'cat' gives 90%" in remark.text
    assert not list(
        _guess_remarks(("cat", "dog"), 0 * labels, np.eye(2)[0 * labels])
    )  # one class: nothing to guess


def test_latency_is_marked_where_other_programs_use_the_processor(monkeypatch):
    model, pixels = classifier().eval(), torch.zeros(1, *dataset(1).geometry.shape[::-1])
    monkeypatch.setattr(efficiency.time, "thread_time", lambda: 0.0)  # this thread never has the processor
    assert efficiency._measure_latency(model, pixels).busy
    clock = efficiency.time.perf_counter
    monkeypatch.setattr(efficiency.time, "thread_time", clock)  # it always has
    assert not efficiency._measure_latency(model, pixels).busy


def test_predictions_are_a_table_of_every_image(tmp_path):
    found = evaluate(classifier(("a,b", 'say "c"', "é")), dataset(classes=("a,b", 'say "c"', "é")))
    found.write_predictions(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == found.files.tolist()
    assert [row["correct"] for row in rows] == [str(int(c)) for c in found.correct]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], found.confidence, atol=1e-6)
    for k, name in enumerate(found.classes):
        np.testing.assert_allclose([float(r[f"p_{name}"]) for r in rows], found.probabilities[:, k], atol=1e-6)
    named = [row["label"] for row in rows]
    assert named == [found.classes[label] for label in found.labels]


def test_top_confusions_are_the_off_diagonal_cells_in_order():
    matrix = np.array([[90, 9, 1], [0, 50, 0], [3, 7, 40]])
    pairs = top_confusions(matrix, ["a", "b", "c"])
    assert [(p.label, p.predicted, p.count) for p in pairs] == [
        ("a", "b", 9),
        ("c", "b", 7),
        ("c", "a", 3),
        ("a", "c", 1),
    ]
    assert pairs[1].share == pytest.approx(7 / 50)
    assert len(top_confusions(matrix, ["a", "b", "c"], top=2)) == 2
    assert top_confusions(np.eye(3, dtype=np.int64), ["a", "b", "c"]) == []


def test_worst_mistakes_are_wrong_and_sorted_by_confidence():
    found = evaluate(classifier(), dataset(200))
    worst = worst_mistakes(found, top=20)
    assert len(worst) == 20
    assert not found.correct[worst].any()
    confidence = found.confidence[worst]
    assert (np.diff(confidence) <= 0).all()
    left = np.setdiff1d(np.flatnonzero(~found.correct), worst)
    assert found.confidence[left].max() <= confidence.min()


def test_the_report_holds_the_pixels_of_the_mistakes():
    data = dataset(80)
    found = evaluate(classifier(), data)
    record = report_json(found, data, {"seconds": 3.5, "epochs": 2}, run="x", mistakes=5)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["format"] == 2
    assert record["evaluation"]["accuracy"] == found.metrics["accuracy"].value
    assert record["training"] == {"seconds": 3.5, "epochs": 2}
    assert len(record["mistakes"]) == 5
    for mistake in record["mistakes"]:
        (i,) = np.flatnonzero(data.files == mistake["file"])
        assert mistake["label"] == data.classes[data.labels[i]]
        assert mistake["predicted"] == found.classes[found.predicted[i]]
        picture = Image.open(io.BytesIO(base64.b64decode(mistake["image"].partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(picture.convert("L")), data[i][0, ..., 0])


def test_a_classifier_without_errors_has_no_mistakes():
    model = classifier()
    data = dataset(20)
    answers = plainly(model, data).argmax(1)
    perfect = dataset(20, labels=answers)
    found = evaluate(model, perfect)
    assert found.metrics["accuracy"].value == 1
    assert report_json(found, perfect)["mistakes"] == []


def test_multiply_adds_are_those_of_the_layers():
    """A perceptron multiplies once for each weight that is no bias."""
    model = classifier()
    weights = sum(p.numel() for p in model.network.parameters() if p.ndim == 2)
    assert evaluate(model, dataset(5)).efficiency.multiply_adds == weights


def test_memory_growth_covers_the_activations():
    from sightline.evaluation.efficiency import _track_memory

    with _track_memory(torch.device("cpu")) as memory:
        # Written to, so resident; so large that no memory freed before can hold it.
        block = np.ones(100_000_000, np.uint8)
        del block
    grown, whose = memory
    assert whose == "process"
    assert grown is None or 90 < grown < 140


def test_confusable_pairs_add_both_directions_up():
    found = evaluate(classifier(tuple("abcde")), dataset(400, tuple("abcde")))
    pairs = confusable_pairs(found, top=100)
    both = found.confusion + found.confusion.T
    assert sum(pair.count for pair in pairs) == np.triu(both, 1).sum()
    counts = [pair.count for pair in pairs]
    assert counts == sorted(counts, reverse=True)
    for pair in pairs:
        one, other = pair.directions
        assert (one.label, one.predicted) == (other.predicted, other.label)
        assert one.count >= other.count
        for way, chosen in zip(pair.directions, pair.examples, strict=True):
            assert len(chosen) == min(3, way.count)
            assert {found.classes[k] for k in found.labels[chosen]} <= {way.label}
            assert {found.classes[k] for k in found.predicted[chosen]} <= {way.predicted}
            assert (np.diff(found.confidence[chosen]) <= 0).all()
    assert len(confusable_pairs(found, top=2)) == 2


def test_the_gallery_shows_the_pixels_of_the_worst_first():
    data = dataset(80)
    found = evaluate(classifier(), data)
    sheet = np.asarray(mistake_gallery(found, data, top=3))
    tile = sheet[10 : 10 + 112, 10 : 10 + 112, 0]
    np.testing.assert_array_equal(tile[7::14, 7::14], data[int(worst_mistakes(found)[0])][0, ..., 0])
    perfect = dataset(20, labels=plainly(classifier(), dataset(20)).argmax(1))
    assert mistake_gallery(evaluate(classifier(), perfect), perfect) is None


def test_the_report_has_the_curves_of_lowest_auc():
    names = tuple(f"class {i}" for i in range(40))
    data = dataset(400, names)
    found = evaluate(classifier(names), data)
    roc = report_json(found, data)["roc"]
    areas = [row["auc"] for row in roc["classes"]]
    assert len(areas) == 30
    assert areas == sorted(one.roc_auc.value for one in found.per_class)[:30]
    assert roc["macro"]["auc"] == found.metrics["roc_auc_ovr"].value
    alone = dataset(20, labels=np.zeros(20))
    assert report_json(evaluate(classifier(), alone), alone)["roc"] is None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A real run on real digits."""
    recipe = Recipe(model="mlp", size=8, epochs=2, precision="float32", memory_format="contiguous")
    return train("digits", recipe, out=tmp_path_factory.mktemp("growth") / "run")


def test_the_report_holds_the_curve_and_the_gallery(run):
    grown = learning_curve.learning_curve_run(run, shares=(0.1, 1.0))
    evaluate_run(run)
    report = json.loads((run.folder / "report.json").read_text())
    assert load_evidence(run.folder).learning_curve["sentence"] == grown.sentence
    assert (run.folder / "mistakes.png").exists() == bool(report["mistakes"])


def test_a_late_run_is_tested_on_a_part_and_drawn_later(run):
    test = run.splits.test
    late = Deadline(30.0, time.monotonic() - 60, val=0, test=len(test), image_seconds=0.01)
    found = evaluate_run(run, deadline=late)
    assert found.n in range(195, 211)
    assert found.n < len(test)
    shares = np.bincount(found.labels, minlength=10) / test.counts
    assert shares.max() - shares.min() < 0.06
    assert any(f"{found.n} of {len(test)} test images are tested" in each.text for each in found.remarks)
    assert [one.batch_size for one in found.efficiency.latency] == [1]
    page = write_report(run.folder, plots=False).read_text()
    assert NO_PLOTS in page
    assert "reliability diagram" not in page.lower()
    whole = evaluate_run(run)
    assert whole.n == len(test)
    known = dict(zip(whole.files, whole.probabilities, strict=True))
    for file, row in zip(found.files, found.probabilities, strict=True):
        np.testing.assert_allclose(row, known[file], atol=1e-5)
    page = write_report(run.folder).read_text()
    assert NO_PLOTS not in page
    assert "reliability diagram" in page.lower()


def test_evaluating_on_training_images_gives_a_remark(run):
    found = evaluate_on(run.folder, "digits")
    assert any("trained or validated on" in text for text in found.as_json()["remarks"])


def test_images_of_one_class_have_an_accuracy_and_no_auc(tmp_path):
    """A folder of one of the classifier's classes: no AUC, but an accuracy."""
    from sightline.data import load_dataset
    from sightline.sources import find

    run = train("digits", Recipe(model="mlp", size=8, limit=300, epochs=2, lr=0.05), out=tmp_path / "run")
    images = load_dataset(find("digits", limit=60), run.classifier.geometry)
    (tmp_path / "new" / "7").mkdir(parents=True)
    for i, pixels in enumerate(images[images.labels == 7]):
        Image.fromarray(pixels[..., 0]).save(tmp_path / "new" / "7" / f"{i}.png")
    found = evaluate_on(run.folder, tmp_path / "new")
    assert found.metrics["accuracy"].n == (images.labels == 7).sum()
    assert "roc_auc_ovr" not in found.metrics
