"""The verb ``adapt``: kept, unverified or refused by labelled images of the target, and compared with fine-tuning."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score

from helpers.digit_folders import write_digits
from helpers.tiny_classifiers import SETTLED
from sightline.adaptation import adapt, judge, parse_adapter
from sightline.adaptation.judging import MIN_JUDGED_IMAGES, cross_fit, features_and_logits, tune_last_layer
from sightline.cli import main
from sightline.data import load_dataset, to_tensor
from sightline.errors import DataError, OutputError, RequirementNotMet
from sightline.inference import match_labels
from sightline.sources import find, find_unlabelled
from sightline.training import Recipe, RunFolder, reopen, train

CLASSES = {f"d{d}": d for d in range(4)}


def change_light(folder, contrast=0.3, brightness=60):
    """The images of a folder under another light."""
    for file in folder.rglob("*.png"):
        pixels = np.asarray(Image.open(file), np.float64)
        Image.fromarray((pixels * contrast + brightness).astype(np.uint8)).save(file)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run on four digits; under another light 160 images without labels, 120 labelled ones, and others."""
    folder = tmp_path_factory.mktemp("adapting")
    write_digits(folder / "source", {name: (d, 0, 80) for name, d in CLASSES.items()})
    write_digits(folder / "unlabelled", {f"any{d}": (d, 80, 120) for d in range(4)})
    write_digits(folder / "few", {name: (d, 120, 150) for name, d in CLASSES.items()})
    write_digits(folder / "tiny", {name: (d, 150, 160) for name, d in CLASSES.items()})
    write_digits(folder / "others", {name: (d + 3, 0, 30) for name, d in CLASSES.items() if d} | {"x": (9, 0, 9)})
    for name in ("unlabelled", "few", "tiny", "others"):
        change_light(folder / name)
    recipe = Recipe(model="small-cnn", epochs=4, batch_size=32, lr=0.05, augment=(), **SETTLED)
    train(folder / "source", recipe, out=folder / "run")
    return folder


@pytest.fixture(scope="module")
def adapted(home):
    return adapt(home / "run", home / "unlabelled", labelled=home / "few", out=home / "adapted")


def test_another_light_is_adapted_to_and_verified(adapted):
    assert adapted.judgement.n == 120
    assert adapted.judgement.verdict == "helps"
    assert adapted.verified
    assert adapted.judgement.accuracies["adapted"].value > adapted.judgement.accuracies["source"].value + 0.1
    assert adapted.sentences[0].startswith("Verified: on 120 labelled target images")


def test_the_result_is_a_run_with_its_origin(home, adapted):
    run = reopen(home / "adapted")
    assert run.classifier.provenance["adapted"] == [
        {
            "from": "run", "by": "interpolate", "images": 160, "verified": True, "target": "unlabelled",
            "target_fingerprint": run.classifier.provenance["adapted"][0]["target_fingerprint"],
        }
    ]  # fmt: skip
    written = json.loads((home / "adapted" / "adaptation.json").read_text())
    assert written["target"]["accuracies"]["adapted"]["value"] == adapted.judgement.accuracies["adapted"].value
    source = reopen(home / "run")
    assert run.classifier.temperature == source.classifier.temperature
    assert any(
        "Fitted on source images, and not to the target: the temperature" in note
        for note in RunFolder(home / "adapted").read_notes()
    )
    one, other = (each.classifier.state_dict() for each in (run, source))
    assert {name.rpartition(".")[2] for name in one if not torch.equal(one[name], other[name])} >= {"running_mean"}
    images = load_dataset(find(home / "few"), run.classifier.geometry)
    answers = [run.classifier.classes.index(one.label) for one in run.classifier.predict(list(images[:]))]
    assert accuracy_score(images.labels, answers) == adapted.judgement.accuracies["adapted"].value


def test_the_source_s_images_are_compared_before_and_after(home, adapted):
    before, after, change = adapted.source_test
    assert before.n == after.n == len(reopen(home / "run").splits.test)
    assert change.value == pytest.approx(after.value - before.value)


def test_names_and_folders_of_the_target_do_not_matter(home, adapted, tmp_path):
    """Hidden labels replaced by noise change nothing, bit for bit."""
    for number, file in enumerate(sorted((home / "unlabelled").rglob("*.png"))):
        place = tmp_path / "mixed" / f"d{number * 7 % 3}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"{1000 - number}.png")
    other = adapt(home / "run", tmp_path / "mixed", labelled=home / "few", out=tmp_path / "out")
    for name, value in other.run.classifier.state_dict().items():
        assert torch.equal(value, adapted.run.classifier.state_dict()[name]), name


def test_without_labels_it_is_unverified(home, tmp_path):
    found = adapt(home / "run", home / "unlabelled", out=tmp_path / "out")
    assert not found.verified
    assert "Unverified: no labelled image" in found.sentences[0]
    assert found.run.classifier.provenance["adapted"][0]["verified"] is False
    few = adapt(home / "run", home / "unlabelled", labelled=home / "tiny", out=tmp_path / "few")
    assert few.judgement.n == 40 < MIN_JUDGED_IMAGES
    assert few.judgement.verdict == "too few"
    assert "40 labelled target images are too few" in few.sentences[0]


def break_network(classifier, images):
    """An adaptation that does harm: the last layer answers one class."""
    del images
    broken = parse_adapter("interpolate:0")(classifier, load_dataset(find("digits"), classifier.geometry))
    with torch.no_grad():
        [*broken.network.parameters()][-1][0] += 1000.0
    return broken


def test_what_hurts_is_not_kept(home, tmp_path):
    found = adapt(
        home / "run", home / "unlabelled", labelled=home / "tiny", by=break_network, out=tmp_path / "out"
    )
    assert found.judgement.verdict == "hurts"
    assert found.place is None
    assert not (tmp_path / "out").exists()
    with pytest.raises(RequirementNotMet, match=r"40 labelled target images by -.* nothing is kept"):
        found.require_help()


def test_a_bundle_becomes_a_bundle(home, adapted, tmp_path):
    found = adapt(home / "run" / "classifier", home / "unlabelled", labelled=home / "few", out=tmp_path / "out")
    assert found.run is None
    assert found.source_test is None
    assert found.judgement.accuracies["adapted"].value == adapted.judgement.accuracies["adapted"].value
    shutil.copytree(home / "run", tmp_path / "moved")
    text = (tmp_path / "moved" / "recipe.toml").read_text().replace(str(home / "source"), str(tmp_path / "gone"))
    (tmp_path / "moved" / "recipe.toml").write_text(text)
    with pytest.raises(DataError, match=r"name its bundle: .*moved/classifier"):
        adapt(tmp_path / "moved", home / "unlabelled")


def test_copies_are_left_out_and_named(home, tmp_path):
    shutil.copytree(home / "unlabelled", tmp_path / "target")
    for number, file in enumerate([*(home / "source" / "d1").iterdir()][:3]):
        shutil.copy(file, tmp_path / "target" / f"own{number}.png")
    shutil.copytree(home / "few" / "d2", tmp_path / "target" / "again")
    shutil.copy(next((home / "unlabelled").rglob("*.png")), tmp_path / "target" / "copy.png")
    found = adapt(home / "run", tmp_path / "target", labelled=home / "few", out=tmp_path / "out")
    assert found.images == 160
    notes = " ".join(found.sentences)
    for part in (
        "1 of the 194",
        "are copies of others",
        "3 of the 194",
        "the run's own",
        "30 of the 194",
        "among the labelled",
    ):
        assert part in notes, part  # fmt: skip
    with pytest.raises(DataError, match="is one of the run's own"):
        adapt(home / "run", home / "source", out=tmp_path / "none")


def test_labelled_images_of_other_classes_are_refused(home, tmp_path):
    with pytest.raises(DataError, match="'x'"):
        adapt(home / "run", home / "unlabelled", labelled=home / "others", out=tmp_path / "out")
    with pytest.raises(OutputError, match="is the run itself"):
        adapt(home / "run", home / "unlabelled", out=home / "run")
    assert not (tmp_path / "out").exists()


def test_a_sorted_stream_is_refused_by_tent_and_a_mixed_one_is_not(home):
    classifier = reopen(home / "run").classifier
    images = load_dataset(find_unlabelled(home / "source"), classifier.geometry)
    pixels, tent = to_tensor(images[:]), parse_adapter("tent:batch_size=60")
    with pytest.raises(DataError, match="answers to batch 1 are one class"):
        next(tent.stream(parse_adapter("interpolate:0")(classifier, images), [pixels[:60]]))
    mixed = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]
    answers = torch.cat([*tent.stream(parse_adapter("interpolate:0")(classifier, images), mixed.split(80))])
    assert len(answers) == 320
    assert answers.argmax(1).bincount(minlength=4).min() > 60


def test_other_sizes_and_channels_are_read_as_the_classifier_reads(home, adapted, tmp_path):
    for number, file in enumerate((home / "unlabelled").rglob("*.png")):
        (tmp_path / "large").mkdir(exist_ok=True)
        Image.open(file).convert("RGB").resize((16, 16), 0).save(tmp_path / "large" / f"{number}.png")
    found = adapt(home / "run", tmp_path / "large", labelled=home / "few", out=tmp_path / "out")
    assert found.images == 160
    assert found.judgement.accuracies["adapted"].value > adapted.judgement.accuracies["source"].value


def test_a_tuned_layer_never_answers_an_image_it_saw():
    """With noise for features and labels, cross-fitted accuracy is at chance; that of the images fitted to is not."""
    rng = torch.Generator().manual_seed(0)
    features, logits = torch.randn(300, 200, generator=rng), torch.zeros(300, 4)
    labels = torch.randint(0, 4, (300,), generator=rng)
    weight, bias = tune_last_layer(features, logits, labels)
    assert ((features @ weight.T + bias).argmax(1) == labels).float().mean() > 0.6
    assert (cross_fit(features, logits, labels.numpy()) == labels.numpy()).mean() < 0.35


def test_the_tuned_layer_is_the_minimum_that_scikit_learn_finds():
    """From logits of 0 it is logistic regression with that penalty on the standardised features."""
    from sklearn.linear_model import LogisticRegression

    rng = torch.Generator().manual_seed(1)
    features = torch.randn(200, 5, generator=rng).double()
    labels = (features[:, 0] + 0.5 * torch.randn(200, generator=rng)).sign().long().add(1) // 2
    weight, bias = tune_last_layer(features.float(), torch.zeros(200, 2), labels)
    mean, std = features.mean(0), features.std(0, unbiased=False) + 0.1 * features.std(unbiased=False)
    # two opposite rows w and -w with 0.1/2 * 2 |w|^2 are one row 2 w with 0.1/4 |2 w|^2
    fitted = LogisticRegression(C=1 / (0.1 / 2 * 200), tol=1e-8).fit(((features - mean) / std).numpy(), labels)
    expected = torch.from_numpy(fitted.coef_[0]) / std
    torch.testing.assert_close((weight[1] - weight[0]).double(), expected, rtol=1e-3, atol=1e-4)
    assert float(bias[1] - bias[0]) == pytest.approx(float(fitted.intercept_[0] - expected @ mean), abs=1e-3)


def test_judging_needs_no_order_of_the_classes(home, adapted):
    classifier = reopen(home / "run").classifier
    images = load_dataset(find(home / "few"), classifier.geometry)
    features, logits = features_and_logits(classifier, images)
    assert features.shape[0] == logits.shape[0] == 120
    found = judge(classifier, adapted.run.classifier, images)
    right = accuracy_score(match_labels(classifier, images), logits.argmax(1))
    assert found.accuracies["source"].value == pytest.approx(right)
    assert found.differences["fine-tuned"].value == pytest.approx(
        found.accuracies["fine-tuned"].value - found.accuracies["source"].value
    )


def test_the_command_offers_labels_first_and_says_what_was_measured(home, tmp_path, capsys):
    words = ["adapt", home / "run", home / "unlabelled", "--labelled", home / "few", "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    said = capsys.readouterr().out
    assert said.lstrip().startswith("First choice, where you can: label 20 images of each class")
    for part in (
        "120 labelled target images",
        "last layer fine-tuned",
        "both",
        "Verified",
        "On the source's 48 test",
    ):
        assert part in said, part
    assert (tmp_path / "out" / "report.html").is_file()
    assert "which labelled images of that world proved to help" in (tmp_path / "out" / "README.md").read_text()
