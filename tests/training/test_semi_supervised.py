"""Images without a label: the published formulas, what must not matter, and what is refused."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.data import concat, strip_labels
from sightline.errors import Interrupted, RecipeError, SightlineError, TrainingError
from sightline.training import (
    BaseHook,
    CrossEntropy,
    Recipe,
    RunFolder,
    estimate_cost,
    prepare,
    read_splits,
    reopen,
    resolve,
    resume,
    start_training,
    train,
    train_on_splits,
)
from sightline.training import run as run_module
from sightline.training.build import build_classifier, build_method
from sightline.training.pseudo_labels import (
    FixMatch,
    PseudoLabel,
    PseudoLabels,
    SemiSupervisedLoss,
    SoftMatch,
    align_distribution,
    pseudo_label_loss,
    truncated_gaussian,
)
from sightline.training.unlabelled import UnlabelledBatches, find_pool, limit_validation

CPU = torch.device("cpu")
TINY = Recipe(
    data="digits", model="mlp:hidden=(16,)", size=8, channels=1, epochs=3, batch_size=10, augment=("shift:1",), lr=0.05,
    precision="float32", memory_format="contiguous", cpu_replicas=1, ema_decay=0.9, val_fraction=0.1,
)  # fmt: skip
METHODS = ("fixmatch", "softmatch", "pseudo-label")

WEAK = torch.tensor([[4.0, 0, 0], [1, 0.5, 0], [0, 3.5, 0], [0, 0.2, 0.1]])
STRONG = torch.tensor([[2.0, 1, 0], [0, 1, 0], [1, 2, 0], [0, 0, 1]])
PREDICTED = torch.tensor([0.34500577, 0.34087687, 0.31411737])


def knowing(momentum=0.9):
    return PseudoLabels(("a", "b", "c"), torch.full((3,), 1 / 3), momentum)


def loss_of(by, weak=WEAK, strong=STRONG):
    known = knowing()
    return SemiSupervisedLoss(CrossEntropy(), by, known).unlabelled_loss(weak, strong), known


def weights(classifier):
    return torch.cat([t.flatten().double() for t in classifier.state_dict().values()])


# the published formulas


@pytest.mark.parametrize(("threshold", "wanted"), [(0.95, 0.10190149), (0.9, 0.20380298), (1.01, 0.0)])
def test_the_loss_of_fixmatch(threshold, wanted):
    """The mean runs over all images; above a threshold of 1 nothing counts."""
    loss, known = loss_of(FixMatch(threshold=threshold))
    assert loss.item() == pytest.approx(wanted, abs=1e-7)
    assert known.taken.sum() == {0.95: 1, 0.9: 2, 1.01: 0}[threshold]
    assert known.seen == 4


def test_the_weights_of_softmatch():
    confidence = WEAK.softmax(1).amax(1)
    found = truncated_gaussian(confidence, torch.tensor(0.6), torch.tensor(0.04), 2.0)
    assert found.tolist() == pytest.approx([1, 0.64578034, 1, 0.06649706], abs=1e-6)


def test_moving_means_and_alignment():
    """Those of FreeMatch's thresholds, from 1/3 with a momentum of 0.9; row 2 of the alignment with them."""
    known, probabilities = knowing(), WEAK.softmax(1)
    known.follow_classes(probabilities)
    known.follow_confidence(probabilities.amax(1))
    assert known.predicted.tolist() == pytest.approx(PREDICTED.tolist(), abs=1e-7)
    assert known.confidence.item() == pytest.approx(0.36953385, abs=1e-7)
    assert known.variance.item() == pytest.approx(0.9 + 0.1 * probabilities.amax(1).numpy().var(ddof=1), abs=1e-6)
    aligned = known.align(probabilities)
    assert aligned[1].tolist() == pytest.approx([0.49555692, 0.30421114, 0.20023194], abs=1e-6)
    uniform = torch.full((3,), 1 / 3)
    assert torch.allclose(align_distribution(probabilities, uniform, uniform), probabilities)


def test_pseudo_labels_grow_into_their_weight():
    by = PseudoLabel(warmup=0.4)
    assert [by.ramp(done) for done in (0.0, 0.1, 0.4, 1.0)] == pytest.approx([0, 0.25, 1, 1])


# laws of the loss


@pytest.mark.parametrize("by", [FixMatch(0.5), FixMatch(0.5, align=True), SoftMatch(), PseudoLabel(0.5)])
def test_targets_have_no_gradient(by):
    weak, strong = WEAK.clone().requires_grad_(), STRONG.clone().requires_grad_()
    loss_of(by, weak, strong)[0].backward()
    assert weak.grad is None
    assert strong.grad.abs().sum() > 0


@pytest.mark.parametrize("by", [FixMatch(0.5, align=True), SoftMatch()])
def test_names_of_classes_only_permute(by):
    order = [2, 0, 1]
    (loss, known), (turned, other) = loss_of(by), loss_of(by, WEAK[:, order], STRONG[:, order])
    assert loss.item() == pytest.approx(turned.item(), rel=1e-5)
    assert torch.allclose(known.taken[order], other.taken)


def test_soft_weights_are_a_weighted_mean():
    labels, some = WEAK.argmax(1), torch.tensor([1.0, 0, 0.5, 0])
    wanted = (some * torch.nn.functional.cross_entropy(STRONG, labels, reduction="none")).sum() / 4
    assert pseudo_label_loss(STRONG, labels, some) == pytest.approx(wanted.item())


# a run


@pytest.fixture(scope="module")
def splits():
    """Digits: 40 with a label, 400 without."""
    whole = read_splits(TINY)[0]
    few, more = whole.train.subset(np.arange(40)), whole.train.subset(np.arange(40, 440))
    return replace(whole, train=concat([few, strip_labels(more)]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Digits as files: classes to train on, and 300 others in the folder unlabelled."""
    return write_digits(tmp_path_factory.mktemp("digits"), 60, 300)


def write_digits(place, labelled, unlabelled, seed=0):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    rows = np.random.default_rng(seed).permutation(len(bunch.target))
    for position, row in enumerate(rows[: labelled + unlabelled]):
        name = str(bunch.target[row] % 3) if position < labelled else "unlabelled"
        (place / name).mkdir(exist_ok=True)
        picture = (bunch.images[row] * 15.9).astype(np.uint8)
        Image.fromarray(picture).save(place / name / f"{position}.png")
    return place


def learn(splits, place, **changes):
    place.mkdir()
    return train_on_splits(splits, TINY.replace(**changes), RunFolder(place), device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_without_weight_it_is_the_plain_run(method, splits, tmp_path):
    splits, _ = limit_validation(resolve(TINY.replace(semi_supervised=method)), splits)
    plain = learn(splits, tmp_path / "plain")
    none = learn(splits, tmp_path / "none", semi_supervised=f"{method}:weight=0")
    some = learn(
        splits,
        tmp_path / "some",
        semi_supervised=f"{method}:threshold=0.2".replace("softmatch:threshold=0.2", "softmatch"),
    )
    assert torch.equal(weights(plain.classifier), weights(none.classifier))
    assert not torch.equal(weights(plain.classifier), weights(some.classifier))
    assert "unlabelled" not in (tmp_path / "none" / "log.txt").read_text()
    assert "% taken (" in (tmp_path / "some" / "log.txt").read_text()


def test_names_and_folders_of_unlabelled_images_say_nothing(folder, tmp_path):
    """The leak test: the same images sorted by their true classes, and by random ones, give the same weights."""
    found = []
    for turn in range(2):
        pool, rng = tmp_path / f"pool{turn}", np.random.default_rng(turn)
        for file in sorted((folder / "unlabelled").iterdir()):
            place = pool / str(rng.integers(4))
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place / f"{rng.integers(10**9)}.png")
        labelled = tmp_path / f"data{turn}"
        for name in "012":
            shutil.copytree(folder / name, labelled / name)
        recipe = TINY.replace(unlabelled=str(pool), semi_supervised="fixmatch:threshold=0.3")
        found.append(train(str(labelled), recipe, out=tmp_path / f"run{turn}", device="cpu"))
    assert torch.equal(weights(found[0].classifier), weights(found[1].classifier))
    assert "% taken (" in (found[0].folder / "log.txt").read_text()


def test_both_views_come_from_the_stored_image(splits):
    seen = []

    def policy(batch, _):
        seen.append(batch.pixels.clone())
        return replace(batch, pixels=batch.pixels * 0.5)

    plan = replace(resolve(TINY.replace(semi_supervised="fixmatch")), augment=policy)
    pool = splits.train.unlabelled
    batches = UnlabelledBatches(
        build_method(resolve(TINY), splits, CPU).batches, 4, pool, plan, ratio=2, two_views=True, device=CPU
    )
    batch = next(iter(batches(0, 0)))
    assert len(seen) == 2
    stored = torch.from_numpy(pool[batch.beside.index.numpy()]).permute(0, 3, 1, 2) / 255
    for pixels in seen:
        assert torch.allclose(pixels, stored)
    assert torch.allclose(batch.beside.pixels, stored * 0.5)
    assert (batch.beside.view - batch.beside.pixels).abs().mean() > 0.05
    assert (batch.beside.labels == -1).all()


def test_the_pool_is_gone_through_evenly_and_from_any_step(splits):
    plan = resolve(TINY.replace(semi_supervised="fixmatch:ratio=7"))
    plan = plan.fit_to(splits.train)
    batches = build_method(plan, splits, CPU).batches
    whole = [batch.beside for epoch in range(3) for batch in batches(epoch, 0)]
    again = [batch.beside for batch in batches(1, 2)]
    assert [torch.equal(a.view, b.view) for a, b in zip(whole[6:8], again, strict=True)] == [True, True]
    counts = np.bincount(torch.cat([b.index for b in whole]).numpy(), minlength=400)
    assert {len(b) for b in whole} == {70}
    assert counts.max() - counts.min() == 1


def test_an_interrupted_run_resumes_exactly(folder, tmp_path, monkeypatch):
    recipe = TINY.replace(semi_supervised="softmatch", epochs=4)
    whole = train(str(folder), recipe, out=tmp_path / "whole", device="cpu")

    class Interrupt(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == 7

    build = run_module.build_method

    def interrupting(*given):
        method = build(*given)
        return replace(method, hooks={**method.hooks, "interrupt": Interrupt()})

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "build_method", interrupting)
        with pytest.raises(Interrupted):
            train(str(folder), recipe, out=tmp_path / "run", device="cpu")
    resumed = resume(tmp_path / "run", device="cpu")
    assert torch.equal(weights(whole.classifier), weights(resumed.classifier))
    last = [(tmp_path / name / "log.txt").read_text().splitlines() for name in ("whole", "run")]
    taken = [[line.partition("unlabelled")[2] for line in lines if "taken" in line] for lines in last]
    assert len(taken[0]) == 4
    assert taken[0] == taken[1]
    rows = reopen(tmp_path / "run", device="cpu").splits
    assert len(rows.train.unlabelled) == 300


def test_another_pool_cannot_be_resumed_with(splits):
    plan = resolve(TINY.replace(semi_supervised="fixmatch")).fit_to(splits.train)
    batches = build_method(plan, splits, CPU).batches
    batches.load_state_dict(batches.state_dict())
    fewer = replace(splits, train=splits.train.subset(np.arange(len(splits.train) - 1)))
    with pytest.raises(TrainingError, match="unlabelled images changed"):
        build_method(plan, fewer, CPU).batches.load_state_dict(batches.state_dict())


# what images without a label must not touch


def test_no_more_validation_images_than_labels(splits, folder, tmp_path):
    assert len(splits.val) > 40
    plan = resolve(TINY.replace(semi_supervised="fixmatch"))
    limited, notes = limit_validation(plan, splits)
    assert len(limited.val) == 40
    assert "Validation on 40 of" in notes[0]
    assert limit_validation(resolve(TINY), splits) == (splits, ())
    assert limited.val.counts.min() >= 2


def test_copies_of_held_out_images_are_left_out_and_named(splits, tmp_path):
    leaked = strip_labels(splits.test.subset(np.arange(3)))
    more = replace(splits, train=concat([splits.train, leaked]))
    plan = resolve(TINY.replace(semi_supervised="fixmatch"))
    clean, notes = find_pool(plan, splits)
    pool, said = find_pool(plan, more)
    assert notes == ()
    assert set(pool.digests) == set(clean.digests)
    assert "3 unlabelled images repeat a validation or test image" in said[0]
    assert any(f"'{file}'" in said[0] for file in leaked.files)


def test_check_finds_an_unlabelled_copy_of_a_test_image(tmp_path, cli):
    write_digits(tmp_path / "d" if (tmp_path / "d").mkdir() is None else None, 0, 0)
    place = tmp_path / "d"
    for part in ("train", "test"):
        (place / part).mkdir()
        write_digits(place / part, 60, 0, seed=0 if part == "train" else 5)
    (place / "unlabelled").mkdir()
    file = sorted((place / "test" / "1").iterdir())[0]
    shutil.copy(file, place / "unlabelled" / "copy.png")
    for name in "012":  # no other leak
        for each in (place / "test" / name).iterdir():
            if any(each.read_bytes() == other.read_bytes() for other in (place / "train").rglob("*.png")):
                each.unlink()
    answer = cli("check", place, "--json")
    assert answer.code == 0, answer.err
    assert "unlabelled/copy.png" in answer.out
    assert "test" in answer.out


# what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"semi_supervised": "softmatch", "grad_accum_steps": 2},
            "SoftMatch compares.*leave out --grad-accum-steps",
        ),
        ({"semi_supervised": "fixmatch:align=True", "devices": 2}, "FixMatch compares.*leave out --devices"),
        ({"semi_supervised": "softmatch", "cpu_replicas": 2}, "leave out --cpu-replicas"),
        ({"semi_supervised": "fixmatch"}, "there is no image without a label: put them in a folder 'unlabelled'"),
        ({"semi_supervised": "fixmatch", "method": "probe"}, "'probe', which trains no network"),
        (
            {"semi_supervised": "fixmatch", "adapt": "mcc", "target": "digits"},
            "--adapt needs one of the two",
        ),
        ({"semi_supervised": "fixmtch"}, "Did you mean 'fixmatch'"),
        ({"semi_supervised": "fixmatch:ratio=0"}, "ratio must be"),
    ],
)
def test_bad_input(changes, says):
    with pytest.raises(SightlineError, match=says):
        prepare(resolve(TINY.replace(**changes)))


def test_smoothing_that_no_confidence_overcomes(splits):
    plan = resolve(TINY.replace(semi_supervised="fixmatch", label_smoothing=0.1))
    with pytest.raises(RecipeError, match=r"10 classes .*tends to 0.91, .*from 0.95: leave out --label-smoothing"):
        plan.fit_to(splits.train)
    for fine in ("fixmatch:threshold=0.9", "softmatch", "fixmatch:weight=0"):
        plan.replace(semi_supervised=fine).fit_to(splits.train)


def test_a_batch_may_be_cut_where_images_are_not_compared(splits, tmp_path):
    """FixMatch in two pieces takes the steps that it takes in one, but for rounding."""
    common = {"semi_supervised": "fixmatch:threshold=0.3", "epochs": 1}
    one = learn(splits, tmp_path / "one", **common)
    two = learn(splits, tmp_path / "two", grad_accum_steps=2, **common)
    assert torch.allclose(weights(one.classifier), weights(two.classifier), atol=1e-5)


def test_the_cost_is_estimated(folder):
    found = estimate_cost(str(folder), TINY.replace(semi_supervised="fixmatch"), device="cpu")
    plain = estimate_cost(str(folder), TINY, device="cpu")
    assert found.values["train_images"] == plain.values["train_images"] == 45
    with pytest.raises(RecipeError, match="no image without a label"):
        estimate_cost("digits", TINY.replace(semi_supervised="fixmatch"))


def test_collapse_is_said(splits):
    known = PseudoLabels(("a", "b"), torch.tensor([0.5, 0.5]), 0.9)
    plan = resolve(TINY)
    classifier, _ = build_classifier(plan.fit_to(splits.train), splits, CPU)
    state = start_training(classifier, plan, build_method(plan, splits, CPU))
    known.count(torch.zeros(50, dtype=torch.long), torch.ones(50))
    known.after_epoch(state)
    assert "100% of the pseudo-labels were 'a'" in state.remarks[0]
    assert state.epoch_note == "  unlabelled 100.0% taken (a 100%, b 0%)"
