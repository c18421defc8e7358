"""For whom: group metrics as Fairlearn has them, gaps with intervals, and training that makes groups alike."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk
from sklearn.datasets import load_digits

from helpers.tiny_classifiers import SETTLED
from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.data.loader import Shuffle, iterate_batches
from sightline.errors import ChoiceError, DataError, Interrupted, RecipeError
from sightline.evaluation.fairness import evaluate_groups_run, group_values
from sightline.evaluation.fairness_metrics import (
    GroupCounts,
    bootstrap_gaps,
    compare_groups,
    evaluate_groups,
    measure_gaps,
)
from sightline.metrics import confusion_matrix
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import MITIGATIONS, Recipe, reopen, resolve, resume, train
from sightline.training.fairness import apply_mitigation, find_subgroups
from sightline.training.fit import Hook, TrainingState
from sightline.training.losses import CrossEntropy
from sightline.types import Dataset, Geometry

GEOMETRY = Geometry(size=(8, 8), channels=1)


def answered(n=1200, k=4, groups=("north", "south", "west"), seed=0):
    """Labels, probabilities and groups of a classifier that is worse in each later group."""
    rng = np.random.default_rng(seed)
    values = rng.choice(groups, n, p=[0.5, 0.3, 0.2][: len(groups)])
    labels = rng.integers(0, k, n)
    p = rng.dirichlet(np.ones(k), n)
    right = rng.random(n) < np.array([0.9, 0.8, 0.6])[np.searchsorted(groups, values)]
    p[np.arange(n), labels] += np.where(right, 2.0, -p[np.arange(n), labels])
    return labels, p / p.sum(1, keepdims=True), values


def dataset(labels, columns, classes=("a", "b")):
    n = len(labels)
    return Dataset(
        pixels=np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8),
        rows=np.arange(n),
        labels=np.asarray(labels, np.int64),
        classes=classes,
        files=np.array([f"{i}.png" for i in range(n)]),
        digests=np.arange(n, dtype=np.uint64),
        geometry=GEOMETRY,
        fingerprint="f",
        columns={name: np.asarray(values) for name, values in columns.items()},
    )


# Metrics


@pytest.mark.parametrize("k", [2, 4])
def test_gaps_and_groups_equal_fairlearn(k):
    fairlearn = pytest.importorskip("fairlearn.metrics")
    labels, p, values = answered(k=k)
    predicted = p.argmax(1)
    found = evaluate_groups("place", values, labels, p, [str(c) for c in range(k)])
    frame = fairlearn.MetricFrame(
        metrics={"accuracy": sk.accuracy_score, "n": fairlearn.count},
        y_true=labels,
        y_pred=predicted,
        sensitive_features=values,
    )
    assert {one.name: one.accuracy.value for one in found.groups} == pytest.approx(
        frame.by_group["accuracy"].to_dict()
    )
    assert {one.name: one.n for one in found.groups} == frame.by_group["n"].to_dict()
    assert found.gap is not None
    assert found.gap.value == pytest.approx(frame.difference()["accuracy"])
    assert found.worst is not None
    assert found.worst.accuracy.value == pytest.approx(frame.group_min()["accuracy"])
    parity, odds = [], []
    for c, one in enumerate(found.classes):
        pair = {"y_true": labels == c, "y_pred": predicted == c, "sensitive_features": values}
        parity.append(fairlearn.demographic_parity_difference(**pair))
        odds.append(fairlearn.equalized_odds_difference(**pair))
        assert one.demographic_parity == pytest.approx(parity[-1])
        assert one.equalised_odds == pytest.approx(odds[-1])
        assert one.true_positive_rate == pytest.approx(fairlearn.equal_opportunity_difference(**pair))
    assert found.demographic_parity is not None
    assert found.equalised_odds is not None
    assert (found.demographic_parity.value, found.equalised_odds.value) == pytest.approx((max(parity), max(odds)))
    value = found.as_json()
    assert value["means_over_classes"]["equalised_odds"] == pytest.approx(np.mean(odds))
    assert json.loads(json.dumps(value, allow_nan=False)) == value


def test_group_metrics_equal_scikit_learn_with_the_worst_class():
    labels, p, values = answered()
    found = {one.name: one for one in evaluate_groups("place", values, labels, p, list("abcd")).groups}
    mine = values == "west"
    own, predicted = labels[mine], p.argmax(1)[mine]
    assert found["west"].f1_macro.value == pytest.approx(sk.f1_score(own, predicted, average="macro"))
    assert found["west"].balanced_accuracy.value == pytest.approx(sk.balanced_accuracy_score(own, predicted))
    recalls = sk.recall_score(own, predicted, average=None)
    assert found["west"].worst_class == "abcd"[int(recalls.argmin())]
    assert found["west"].worst_recall is not None
    assert found["west"].worst_recall.value == pytest.approx(recalls.min())
    assert found["west"].confidence == pytest.approx(p[mine].max(1).mean())


def test_small_groups_are_neither_ranked_nor_compared():
    labels, p, values = answered()
    values = values.astype(object)
    few = np.flatnonzero(values == "north")[:12]
    values[few] = "island"
    p[few] = np.eye(4)[(labels[few] + 1) % 4]  # all wrong: it would be the worst by far
    found = evaluate_groups("place", values, labels, p, list("abcd"))
    assert [one.name for one in found.groups][-1] == "island"
    assert found.groups[-1].small
    assert found.groups[-1].accuracy.high > found.groups[-1].accuracy.value
    assert found.worst is not None
    assert found.worst.name == "west"
    rest = np.setdiff1d(np.arange(len(labels)), few)
    without = evaluate_groups("place", values[rest], labels[rest], p[rest], list("abcd"))
    assert found.gap == without.gap or found.gap.value == without.gap.value  # type: ignore[union-attr]
    assert "'island' (12)" in found.remarks[0]


def test_one_ranked_group_has_no_gap():
    labels, p, _ = answered(n=40)
    found = evaluate_groups("place", np.repeat(["x", "y"], [35, 5]), labels, p, list("abcd"))
    assert (found.gap, found.demographic_parity, found.equalised_odds) == (None, None, None)
    assert found.classes[0].equalised_odds is None
    assert "no gap can be measured" in found.remarks[1]


def test_a_class_absent_from_a_group_is_compared_among_the_others():
    tables = np.zeros((3, 2, 2), np.int64)
    tables[0], tables[1], tables[2] = [[40, 10], [5, 45]], [[30, 20], [0, 50]], [[0, 0], [10, 90]]
    found = measure_gaps(GroupCounts.from_tables(tables))
    assert found.true_positive_rate[0].tolist() == pytest.approx([0.8 - 0.6, 1.0 - 0.9])
    assert found.accuracy[0] == pytest.approx(0.9 - 0.8)
    alone = measure_gaps(GroupCounts.from_tables(tables[[0, 2]]))
    assert np.isnan(alone.true_positive_rate[0][0])
    assert alone.equalised_odds[0][0] == pytest.approx(alone.false_positive_rate[0][0])


def test_gap_intervals_cover_the_true_gap_and_include_zero_without_one():
    rng = np.random.default_rng(3)
    held, zero = 0, 0
    for _ in range(40):
        apart = np.stack([np.diag(rng.multinomial(200, [0.5, 0.5])) for _ in range(3)]).astype(np.int64)
        even = apart.copy()
        for tables, accuracies in ((apart, (0.95, 0.9, 0.8)), (even, (0.9, 0.9, 0.9))):
            for table, accuracy in zip(tables, accuracies, strict=True):
                wrong = rng.binomial(table.diagonal(), 1 - accuracy)
                table[[0, 1], [0, 1]] -= wrong
                table[[0, 1], [1, 0]] += wrong
        one, none = bootstrap_gaps(apart)[0], bootstrap_gaps(even)[0]
        assert one is not None
        assert none is not None
        held += one.low <= 0.15 <= one.high
        zero += none.low == 0
    assert held >= 34  # of 40; 38 are expected
    assert zero >= 34


def test_groups_without_an_error_have_an_interval():
    gap, parity, odds = bootstrap_gaps(np.stack([np.diag([30, 30]), np.diag([40, 40])]))
    assert gap is not None
    assert parity is not None
    assert odds is not None
    assert (gap.value, gap.low, parity.low, odds.low) == (0, 0, 0, 0)
    assert 0 < gap.high < 0.1


def test_changes_are_paired():
    labels, p, values = answered()
    found = evaluate_groups("place", values, labels, p, list("abcd"))
    before = p.argmax(1) == labels
    after = before | (values == "west")
    rows = {one.group: one for one in compare_groups(found, values, before, after)}
    assert list(rows) == ["all", *(one.name for one in found.groups)]
    assert rows["west"].after == 1
    assert rows["west"].difference.low > 0.2
    assert rows["north"].difference.value == 0
    assert rows["all"].difference.value == pytest.approx(after.mean() - before.mean())


# Columns


def test_columns_become_groups_or_are_refused():
    rng = np.random.default_rng(0)
    data = dataset(
        np.arange(400) % 2,
        {
            "place": rng.choice(["x", "y", ""], 400),
            "one": ["same"] * 400,
            "name": [f"image {i}" for i in range(400)],
            "age": [str(v) for v in rng.integers(1, 90, 400)],
        },
    )
    values, notes = group_values(data, "place")
    assert sorted(set(values)) == ["(blank)", "x", "y"]
    assert notes == []
    quarters, notes = group_values(data, "age")
    counts = np.unique(quarters, return_counts=True)[1]
    assert len(counts) == 4
    assert counts.min() > 80
    assert "quartiles" in notes[0]
    ages = data.columns["age"].astype(int)
    for name in np.unique(quarters):
        low, high = map(int, name.split(" to "))
        assert (ages[quarters == name].min(), ages[quarters == name].max()) == (low, high)
    with pytest.raises(DataError, match=r"'plase' \(they have: age, name, one, place\).*Did you mean 'place'"):
        group_values(data, "plase")
    with pytest.raises(DataError, match="All 400 images have the value 'same'"):
        group_values(data, "one")
    with pytest.raises(DataError, match="400 different values in 400 images"):
        group_values(data, "name")


# Mitigation


def biased(n=600, share=0.9, seed=0):
    """Two classes whose group follows the class, with that share."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    group = np.where(rng.random(n) < share, labels, 1 - labels)
    return dataset(labels, {"colour": np.array(["red", "blue"])[group]})


def network(classes=2):
    torch.manual_seed(0)
    plan = parse_architecture("mlp", classes=classes, channels=1, size=(8, 8))
    return Classifier(Preprocessing(), build(plan), architecture=plan, classes=("a", "b"), geometry=GEOMETRY)


def test_reweighing_makes_group_and_class_independent():
    data = biased()
    cells = find_subgroups(data, "colour")
    assert sorted(cells.names) == ["blue, a", "blue, b", "red, a", "red, b"]
    weights = cells.weights[cells.codes]
    assert weights.mean() == pytest.approx(1)
    table = np.array(
        [
            [weights[(data.columns["colour"] == colour) & (data.labels == k)].sum() for k in range(2)]
            for colour in ("red", "blue")
        ]
    ) / len(data)
    np.testing.assert_allclose(table, np.outer(table.sum(1), table.sum(0)))
    np.testing.assert_allclose(table.sum(1), [(data.columns["colour"] == c).mean() for c in ("red", "blue")])


def mitigate(recipe, data, objective):
    plan = resolve(recipe, objective=objective)
    return apply_mitigation(plan.mitigation, recipe.fairness_column, data, plan.objective)


def first_batch(data, recipe, size=128):
    fair = mitigate(recipe, data, CrossEntropy())
    order = Shuffle(0, 0, fair.balanced, fair.balanced)
    return fair, next(iter(iterate_batches(fair.train, size, order=order)))


def test_reweighed_loss_is_the_weighted_mean_over_images():
    data = biased()
    fair, batch = first_batch(data, Recipe(fairness_column="colour", fairness_method="reweighing"))
    model, cells = network().eval(), find_subgroups(data, "colour")
    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(model(batch.pixels), batch.labels, reduction="none")
        wanted = (torch.from_numpy(cells.weights[cells.codes[batch.index.numpy()]]).float() * each).mean()
        torch.testing.assert_close(fair.objective(model, batch), wanted)


@pytest.mark.parametrize("word", MITIGATIONS)
def test_every_mitigation_trains_without_changing_the_images(word):
    data = biased()
    fair, batch = first_batch(data, Recipe(fairness_column="colour", fairness_method=word))
    model = network()
    loss = fair.objective(model, batch)
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert "group" not in data.columns
    np.testing.assert_array_equal(fair.train.columns["colour"], data.columns["colour"])
    if fair.balanced:
        assert torch.bincount(batch.group, minlength=4).min() > 20  # of 32; unbalanced there would be about 6
        shares = np.bincount(
            find_subgroups(data, "colour").codes[np.concatenate([b.index.numpy() for b in [batch]])]
        )
        assert shares.min() > 20


def test_without_a_column_nothing_changes():
    data, inner = biased(), CrossEntropy()
    fair = mitigate(Recipe(), data, inner)
    assert fair.train is data
    assert fair.objective is inner
    assert not fair.hooks


def test_group_dro_follows_its_algorithm():
    """q and the loss step by step, from the definition in float64."""
    data = biased()
    fair, batch = first_batch(data, Recipe(fairness_column="colour", fairness_method="group-dro:eta=0.5"))
    hook, model = fair.hooks["groups"], network().eval()
    assert isinstance(hook, Hook)
    state = TrainingState(model, torch.optim.SGD(model.parameters(), 0.1), 1, 1, peak_lr=0.1)
    q = np.full(4, 0.25)
    for _ in range(3):
        with torch.no_grad():
            each = torch.nn.functional.cross_entropy(model(batch.pixels), batch.labels, reduction="none").double()
        losses = np.array([each[batch.group == g].mean() for g in range(4)])
        got = fair.objective(model, batch)
        assert got.item() == pytest.approx(q @ losses, rel=1e-5)
        hook.after_step(state)
        q = q * np.exp(0.5 * losses)
        q /= q.sum()
        assert hook.state_dict()["q"].tolist() == pytest.approx(q.tolist(), rel=1e-5)
    again = mitigate(
        Recipe(fairness_column="colour", fairness_method="group-dro:eta=0.5"), data, CrossEntropy()
    ).hooks["groups"]
    again.load_state_dict(hook.state_dict())
    assert torch.equal(again.state_dict()["q"], hook.state_dict()["q"])


def test_group_dro_in_pieces_is_group_dro_at_once():
    """Replicas and pieces add what they saw: the same weights follow."""
    data = biased()
    states = []
    for pieces in (1, 4):
        fair, batch = first_batch(data, Recipe(fairness_column="colour", fairness_method="group-dro:eta=0.5"))
        model = network().eval()
        for rows in torch.arange(128).split(128 // pieces):
            part = replace(
                batch, pixels=batch.pixels[rows], labels=batch.labels[rows], index=batch.index[rows],
                group=batch.group[rows],
            )  # fmt: skip
            fair.objective(model, part)
        fair.hooks["groups"].after_step(
            TrainingState(model, torch.optim.SGD(model.parameters(), 0.1), 1, 1, peak_lr=0.1)
        )
        states.append(fair.hooks["groups"].state_dict()["q"])
    torch.testing.assert_close(states[0], states[1], rtol=1e-5, atol=1e-7)


class Own:
    """An objective of somebody's own, that is not made of logits alone."""

    def __call__(self, classifier: Classifier, batch: Batch) -> torch.Tensor:
        return classifier(batch.pixels).square().mean()


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"fairness_column": "color"}, RecipeError, "no such column. Did you mean 'colour'"),
        ({"fairness_column": "one"}, RecipeError, "all training images are of one group there, 'same'"),
        ({"fairness_column": "colour", "fairness_method": "group-dor"}, ChoiceError, "Did you mean 'group-dro'"),
        (
            {"fairness_column": "colour", "fairness_method": "group-dro:0"},
            ChoiceError,
            "eta must be a number above 0",
        ),
        ({"fairness_column": "colour", "fairness_method": "group-dro", "devices": 2}, RecipeError, "--devices 1"),
    ],
)
def test_impossible_mitigations_are_refused(fields, error, words):
    data = biased()
    data = replace(data, columns={**data.columns, "one": np.array(["same"] * len(data))})
    with pytest.raises(error, match=words):
        mitigate(Recipe(**fields), data, CrossEntropy())


def test_an_objective_without_sample_weights_uses_balanced_batches():
    own = Own()
    assert mitigate(Recipe(fairness_column="colour"), biased(), own).objective.function is own
    for word in ("reweighing", "group-dro"):
        with pytest.raises(RecipeError, match="weighs errors image by image, which Own does not allow"):
            mitigate(Recipe(fairness_column="colour", fairness_method=word), biased(), own)


# From a table to the page


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Real digits, even or odd, in red or green: the colour follows the class in training, not in the test."""
    folder, digits, rng = tmp_path_factory.mktemp("coloured"), load_digits(), np.random.default_rng(0)
    rows = []
    for i, digit in enumerate(digits.target):
        label, part = ("even", "odd")[digit % 2], ("train", "test", "train", "val")[i % 4]
        follows = rng.random() < (0.5 if part == "test" else 0.92)
        red = (label == "even") == follows
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[..., 0 if red else 1] = np.rint(digits.images[i] * 255 / 16)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append([f"{i}.png", label, part, "red" if red else "green", "x"])
    with (folder / "digits.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "label", "split", "colour", "same"], *rows])
    return folder / "digits.csv"


QUICK = Recipe(model="mlp", size=8, channels=3, epochs=6, batch_size=64, lr=0.05, augment=(), **SETTLED)


@pytest.fixture(scope="module")
def plain(coloured, tmp_path_factory):
    return train(coloured, QUICK, out=tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def fair(coloured, tmp_path_factory):
    recipe = QUICK.replace(fairness_column="colour", fairness_method="group-dro:0.1")
    return train(coloured, recipe, out=tmp_path_factory.mktemp("runs") / "fair")


def test_a_planted_bias_is_found_and_reduced(plain, fair):
    found = evaluate_groups_run(plain, "colour", against=fair)
    odds, after = found["equalised_odds"], found["against"]["equalised_odds"]
    assert odds["low"] > 0.1  # found
    assert after["value"] < odds["value"] - 0.1  # reduced
    assert found["changes"][0]["group"] == "all"
    assert found["changes"][0]["difference"]["low"] > 0
    saved = json.loads((plain.folder / "groups.json").read_text())
    assert saved == {"colour": found}
    assert (plain.folder / "groups-colour.png").is_file()
    assert any("Subgroups by 'colour' within each class" in note for note in fair.notes)


def test_the_weights_of_groups_survive_a_kill(coloured, tmp_path, monkeypatch):
    """Interrupted in the middle of an epoch and resumed, group DRO ends as if it had not been."""
    from sightline.training.hooks import ProgressReporter

    recipe = QUICK.replace(fairness_column="colour", fairness_method="group-dro:0.1", epochs=3)
    whole = train(coloured, recipe, out=tmp_path / "whole")
    step = ProgressReporter.after_step

    def stopping(self, state):
        step(self, state)
        state.interrupted = state.step == 7

    monkeypatch.setattr(ProgressReporter, "after_step", stopping)
    with pytest.raises(Interrupted):
        train(coloured, recipe, out=tmp_path / "cut")
    monkeypatch.setattr(ProgressReporter, "after_step", step)
    kept = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)["hooks"]["groups"]["q"]
    assert kept.std() > 0
    done = resume(tmp_path / "cut")
    for one, other in zip(whole.classifier.parameters(), done.classifier.parameters(), strict=True):
        assert torch.equal(one, other)


def test_groups_from_the_command_line(cli, coloured, plain, fair, tmp_path):
    answer = cli("evaluate", plain.folder, "--group", "colour", "--compare-with", fair.folder)
    assert answer.code == 0, answer.err
    assert "equalised odds, largest over classes" in answer.out
    assert "Compared with fair" in answer.out
    value = json.loads(cli("evaluate", plain.folder, coloured, "--group", "colour", "--json").out)
    assert {row["group"] for row in value["groups"]} == {"red", "green"}
    bundle = shutil.copytree(plain.folder / "classifier", tmp_path / "bundle")
    same = json.loads(cli("evaluate", bundle, coloured, "--group", "colour", "--json").out)
    assert same["groups"] == value["groups"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--group", "color"), "Did you mean 'colour'"),
        (("--group", "same"), "no groups to compare"),
        (("--group", "colour", "--compare-with", "nowhere"), "nowhere"),
    ],
)
def test_impossible_groups_are_refused_in_one_sentence(cli, plain, words, said):
    answer = cli("evaluate", plain.folder, *words)
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1


def test_unseen_values_and_leaked_images_give_remarks(plain, fair):
    test = plain.splits.test
    colours = test.columns["colour"].astype(object).copy()
    colours[:3] = "yellow"
    strange = replace(
        plain, splits=replace(plain.splits, test=replace(test, columns={**test.columns, "colour": colours}))
    )
    found = evaluate_groups_run(strange, "colour")
    assert any("No training image has 'yellow'" in remark for remark in found["remarks"])
    swapped = replace(plain, splits=replace(plain.splits, test=plain.splits.train))
    found = evaluate_groups_run(swapped, "colour", against=fair)
    assert any("was trained or validated on" in remark for remark in found["remarks"])


def test_a_run_of_other_geometry_cannot_be_compared(plain, tmp_path):
    other = train("digits", Recipe(model="mlp", size=8, epochs=1, limit=100, **SETTLED), out=tmp_path / "other")
    with pytest.raises(DataError, match="take different pixels"):
        evaluate_groups_run(plain, "colour", against=reopen(other.folder))


def test_the_confusion_matrix_equals_the_counts():
    labels, p, values = answered(k=3)
    tables = np.stack(
        [confusion_matrix(labels[values == g], p[values == g].argmax(1), 3) for g in np.unique(values)]
    )
    counts = GroupCounts.from_tables(tables)
    for g, name in enumerate(np.unique(values)):
        mine = values == name
        assert counts.true[0, g].tolist() == np.bincount(labels[mine], minlength=3).tolist()
        assert counts.predicted[0, g].tolist() == np.bincount(p[mine].argmax(1), minlength=3).tolist()
