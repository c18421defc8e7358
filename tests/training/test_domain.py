"""Terms for target images without labels: vectors, laws, and runs whose target's hidden labels cannot matter."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.digit_folders import write_digits
from helpers.pruned_classifiers import images, make
from helpers.tiny_classifiers import SETTLED
from sightline.batches import Batch
from sightline.cli import main
from sightline.data import to_tensor
from sightline.errors import ChoiceError, DataError, Interrupted, RecipeError, TrainingError
from sightline.training import Recipe, estimate_cost, resolve, resume, train
from sightline.training.domain import (
    CORAL,
    DANN,
    DOMAIN_TERMS,
    MCC,
    MMD,
    DomainLoss,
    Pass,
    class_confusion,
    covariance_distance,
    reversal_strength,
    reverse_gradient,
    squared_discrepancy,
)
from sightline.training.losses import CrossEntropy

SOURCE = torch.tensor([[0.0, 0], [2, 0], [0, 2], [2, 2]])
TARGET = torch.tensor([[0.0, 0], [4, 0], [0, 1], [4, 1]])
WEAK = torch.tensor([[4.0, 0, 0], [1, 0.5, 0], [0, 3.5, 0], [0, 0.2, 0.1]])
MEMBERS = [word for word in DOMAIN_TERMS if word != "none"]


def term_of(word, source=SOURCE, target=TARGET, progress=0.5):
    term = DOMAIN_TERMS[word]()
    torch.manual_seed(0)
    modules = term.build_modules(source.shape[1])
    return term(Pass(source, WEAK), Pass(target, WEAK), modules, progress)


def test_vectors():
    """Those of the reference, in which the libraries people copy from differ."""
    assert covariance_distance(SOURCE, TARGET).item() == pytest.approx(1.0625)
    assert squared_discrepancy(SOURCE, TARGET, [0.5]).item() == pytest.approx(0.35091067)
    assert class_confusion(WEAK, 2.0).item() == pytest.approx(0.55613999)
    assert [round(reversal_strength(p), 8) for p in (0, 0.1, 0.5, 1)] == [0, 0.46211716, 0.98661430, 0.99990920]


@pytest.mark.parametrize("classes", [2, 5])
def test_confusion_lies_between_uniform_and_certain(classes):
    assert class_confusion(torch.zeros(3 * classes, classes), 2.5).item() == pytest.approx((classes - 1) / classes)
    certain = 200 * torch.eye(classes).repeat(3, 1)
    assert class_confusion(certain, 2.5).item() == pytest.approx(0, abs=1e-6)


def test_confusion_is_the_formula_written_out():
    """In loops, in float64, from the definition."""
    z, t = WEAK.double().numpy(), 2.0
    p = np.exp(z / t) / np.exp(z / t).sum(1, keepdims=True)
    entropy = [-sum(q * math.log(q + 1e-5) for q in row) for row in p]
    weight = [len(p) * (1 + math.exp(-h)) / sum(1 + math.exp(-g) for g in entropy) for h in entropy]
    confusion = [
        [sum(w * a[i] * a[j] for w, a in zip(weight, p, strict=True)) for j in range(3)] for i in range(3)
    ]
    normal = [[value / sum(row) for value in row] for row in confusion]
    expected = sum(normal[i][j] for i in range(3) for j in range(3) if i != j) / 3
    assert class_confusion(WEAK, t).item() == pytest.approx(expected, rel=1e-5)


def test_equal_domains_and_shifted_ones():
    assert covariance_distance(SOURCE, SOURCE.flip(0)).item() == pytest.approx(0, abs=1e-7)
    assert squared_discrepancy(SOURCE, SOURCE.flip(0), [0.5]).item() == pytest.approx(0, abs=1e-6)
    assert covariance_distance(SOURCE, TARGET + 3).item() == pytest.approx(
        covariance_distance(SOURCE, TARGET).item()
    )
    assert squared_discrepancy(SOURCE, SOURCE + 1, [0.5]).item() > 0.1
    assert term_of("mmd").item() > term_of("mmd", target=SOURCE).item() == pytest.approx(0, abs=1e-6)


def test_reversal_changes_the_gradient_of_features_alone():
    torch.manual_seed(0)
    discriminator = DANN().build_modules(2)["discriminator"]
    grads = {}
    for name, change in (("plain", lambda f: f), ("reversed", lambda f: reverse_gradient(f, 0.3))):
        features = SOURCE.clone().requires_grad_()
        loss = F.binary_cross_entropy_with_logits(discriminator(change(features)), torch.ones(4, 1))
        grads[name] = torch.autograd.grad(loss, [features, *discriminator.parameters()])
    torch.testing.assert_close(grads["reversed"][0], -0.3 * grads["plain"][0])
    for mine, theirs in zip(grads["reversed"][1:], grads["plain"][1:], strict=True):
        torch.testing.assert_close(mine, theirs)
    assert grads["plain"][0].abs().max() > 0


def test_the_discriminator_of_equal_domains_is_at_chance():
    """Its loss at the best constant answer is ln 2."""
    term, modules = DANN(), {"discriminator": torch.nn.Linear(2, 1)}
    torch.nn.init.zeros_(modules["discriminator"].weight)
    torch.nn.init.zeros_(modules["discriminator"].bias)
    loss = term(Pass(SOURCE, WEAK), Pass(TARGET, WEAK), modules, 1.0)
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("word", MEMBERS)
def test_every_term_is_a_number_with_a_gradient(word):
    source, target = SOURCE.clone().requires_grad_(), TARGET.clone().requires_grad_()
    logits = WEAK.clone().requires_grad_()
    term = DOMAIN_TERMS[word]()
    loss = term(Pass(source, WEAK), Pass(target, logits), term.build_modules(2), 0.5)
    loss.backward()
    assert math.isfinite(loss.item())
    assert any(one.grad is not None and one.grad.abs().max() > 0 for one in (target, logits))


@pytest.mark.parametrize("word", MEMBERS)
def test_labels_of_the_target_are_not_read_and_the_sum_is_that_of_both_terms(word):
    classifier, term = make("small-cnn"), DOMAIN_TERMS[word]()
    data = images(16)
    pixels, labels = to_tensor(data[:]), torch.from_numpy(data.labels)
    index = torch.arange(8)
    torch.manual_seed(0)
    modules = term.build_modules(classifier.features(pixels[:1]).shape[1])
    losses = []
    for hidden in (torch.full((8,), -1), labels[8:], labels[8:].flip(0)):
        beside = Batch(pixels[8:], hidden, index)
        loss = DomainLoss(CrossEntropy(), term, modules, 0.5)
        losses.append(loss(classifier, Batch(pixels[:8], labels[:8], index, beside=beside)))
    assert losses[0] == losses[1] == losses[2]
    features, logits = classifier.features_and_logits(pixels)
    alone = term(Pass(features[:8], logits[:8]), Pass(features[8:], logits[8:]), modules, 0.5)
    torch.testing.assert_close(losses[0], F.cross_entropy(logits[:8], labels[:8]) + alone)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Digits of two classes, and others without labels."""
    folder = tmp_path_factory.mktemp("domain")
    rows = {"train": (0, 40), "val": (40, 50), "test": (50, 60)}
    write_digits(folder / "source", {f"{split}/d{d}": (d, *rows[split]) for d in (0, 1) for split in rows})
    write_digits(folder / "target", {f"any{d}": (d, 60, 90) for d in (0, 1)})
    return folder


def recipe(home, word, **more):
    fields = {"model": "small-cnn", "size": 12, "epochs": 2, "batch_size": 16, "lr": 0.05, "augment": ("shift:1",)}
    return Recipe(**{**fields, **SETTLED, "adapt": word, "target": str(home / "target"), **more})


def weights(run):
    return run.classifier.state_dict()


@pytest.mark.parametrize("word", MEMBERS)
def test_weight_zero_is_the_plain_run_bit_for_bit(word, home, tmp_path):
    plain = train(home / "source", recipe(home, None, target=None), out=tmp_path / "plain")
    none = train(home / "source", recipe(home, f"{word}:weight=0"), out=tmp_path / "none")
    one = train(home / "source", recipe(home, word), out=tmp_path / "one")
    assert all(torch.equal(value, weights(none)[name]) for name, value in weights(plain).items())
    assert not all(torch.equal(value, weights(one)[name]) for name, value in weights(plain).items())
    assert weights(plain).keys() == weights(one).keys()  # its modules are not in the bundle
    assert any("60 target images, whose labels were not used" in remark for remark in one.facts["remarks"])
    assert one.facts["best_epoch"] == 2


def test_names_and_folders_of_the_target_do_not_matter(home, tmp_path):
    """Its hidden labels replaced by noise change nothing, bit for bit."""
    for number, file in enumerate(sorted((home / "target").rglob("*.png"))):
        place = tmp_path / "noise" / f"d{number * 5 % 3}"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / f"{500 - number}.png")
    one = train(home / "source", recipe(home, "dann"), out=tmp_path / "one")
    other = train(home / "source", recipe(home, "dann", target=str(tmp_path / "noise")), out=tmp_path / "other")
    assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())


def test_an_interrupted_run_goes_on_with_its_discriminator(home, tmp_path, monkeypatch):
    from sightline.training import domain

    whole = train(home / "source", recipe(home, "dann"), out=tmp_path / "whole")
    real, steps = domain.gradient_step, []

    def stopping(state, gradients, objective, batch):
        steps.append(objective.progress)
        state.interrupted = len(steps) == 7
        return real(state, gradients, objective, batch)

    monkeypatch.setattr(domain, "gradient_step", stopping)
    with pytest.raises(Interrupted):
        train(home / "source", recipe(home, "dann"), out=tmp_path / "cut")
    monkeypatch.undo()
    assert steps == pytest.approx([step / 10 for step in range(7)])
    resumed = resume(tmp_path / "cut")
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_a_target_that_changed_is_not_resumed(home, tmp_path, monkeypatch):
    from sightline.training import domain

    shutil.copytree(home / "target", tmp_path / "target")

    def stopping(state, gradients, objective, batch):
        state.interrupted = True
        return domain_step(state, gradients, objective, batch)

    domain_step = domain.gradient_step
    monkeypatch.setattr(domain, "gradient_step", stopping)
    with pytest.raises(Interrupted):
        train(home / "source", recipe(home, "mcc", target=str(tmp_path / "target")), out=tmp_path / "cut")
    next((tmp_path / "target").rglob("*.png")).unlink()
    with pytest.raises(TrainingError, match="unlabelled images changed"):
        resume(tmp_path / "cut")


def test_what_does_not_go_together_is_refused(home, tmp_path):
    for fields, message in (
        ({"grad_accum_steps": 2}, "MCC compares the images of a batch.*--grad-accum-steps"),
        ({"cpu_replicas": 2}, "--cpu-replicas"),
        ({"devices": 2}, "--devices"),
        ({"target": None}, "needs target images without labels: give --target FOLDER"),
        ({"adapt": None}, "which is used by --adapt"),
        ({"method": "probe", "weights": "x"}, "--adapt needs --method gradient"),
        ({"progressive_from": 8}, "one size from the beginning"),
        ({"semi_supervised": "fixmatch"}, "one of the two"),
    ):
        with pytest.raises(RecipeError, match=message):
            resolve(recipe(home, "mcc").replace(**({"weights": None} | fields)).replace(weights=None))
    with pytest.raises(ChoiceError, match="Did you mean 'coral'"):
        resolve(recipe(home, "corall"))
    with pytest.raises(RecipeError, match="needs a loss of logits and labels"):
        train(home / "source", recipe(home, "mcc", loss="fast-adversarial"), out=tmp_path / "no")
    with pytest.raises(RecipeError, match="has 60 images, and a step takes 64"):
        train(home / "source", recipe(home, "mcc", batch_size=64), out=tmp_path / "few")
    with pytest.raises(DataError, match="gone"):
        train(home / "source", recipe(home, "mcc", target=str(tmp_path / "gone")), out=tmp_path / "gone-run")
    assert not (tmp_path / "few").exists()


def test_copies_of_held_out_images_are_left_out(home, tmp_path):
    shutil.copytree(home / "target", tmp_path / "target")
    for number, file in enumerate(sorted((home / "source" / "test").rglob("*.png"))[:3]):
        shutil.copy(file, tmp_path / "target" / f"copy{number}.png")
    made = train(home / "source", recipe(home, "mcc", target=str(tmp_path / "target")), out=tmp_path / "run")
    assert any("3 target images are copies of validation or test images" in note for note in made.notes)
    assert any(note.startswith("60 target images") for note in made.notes)


def test_the_flags_and_the_dry_run(home, tmp_path, capsys):
    words = ["train", str(home / "source"), "--adapt", "mcc", "--target", str(home / "target"), "--epochs", "1",
             "--model", "small-cnn", "--batch-size", "16"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 20
    assert main([*words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["adapt"] == "mcc"
    with pytest.raises(DataError, match="gone"):
        estimate_cost(home / "source", recipe(home, "mcc", target=str(tmp_path / "gone")))


def test_terms_have_the_weight_that_is_named():
    assert (MCC(weight=0.5).weight, CORAL().weight, MMD().weight, MCC().cost, MCC(weight=0.0).cost) == (
        0.5,
        1,
        1,
        2,
        1,
    )
    with pytest.raises(ValueError, match="weight"):
        CORAL(weight=-1.0)
