"""What a method may bring: batches with a memory, modules of its own, a second batch; each in one file and one line."""

import copy
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sightline import runtime
from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.errors import DataError, Interrupted, RecipeError, TrainingError
from sightline.training import (
    OBJECTIVES,
    BaseHook,
    Objective,
    Recipe,
    RunFolder,
    build_classifier,
    build_method,
    optimise,
    prepare,
    refine,
    resolve,
    start_training,
    train,
)
from sightline.training import objectives as objectives_module
from sightline.training.gradients import split_batch
from sightline.training.hooks import EMA

TINY = Recipe(
    data="digits", model="mlp:hidden=(16,)", size=8, limit=300, epochs=3, batch_size=32, augment=(), lr=0.05,
    precision="float32", memory_format="contiguous", cpu_replicas=1,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared():
    """A complete plan and its splits."""
    return prepare(resolve(TINY))[:2]


def weights(module):
    return {name: t.clone() for name, t in module.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# An objective with a reservoir buffer: this class and the line in OBJECTIVES is all it takes.


@dataclass(frozen=True)
class Replay(Objective):
    """Cross-entropy of the batch and of the batch beside it (experience replay)."""

    def __call__(self, classifier, batch):
        loss = F.cross_entropy(classifier(batch.pixels).float(), batch.labels)
        if batch.beside is None:
            return loss
        return loss + F.cross_entropy(classifier(batch.beside.pixels).float(), batch.beside.labels)


class ReservoirBatches:
    """Batches with a batch beside them, drawn from a uniform sample of all images so far (Vitter 1985)."""

    def __init__(self, below, capacity=40, seed=0):
        self.below, self.capacity, self.seed, self.seen = below, capacity, seed, 0
        self.pixels, self.labels = torch.zeros(0), torch.zeros(0, dtype=torch.int64)

    def __call__(self, epoch, done):
        for batch in self.below(epoch, done):
            random = runtime.make_generator(self.seed, self.seen)
            beside = None
            if len(self.labels):
                rows = torch.randint(len(self.labels), (len(batch),), generator=random)
                beside = Batch(self.pixels[rows], self.labels[rows], rows)
            for pixels, label in zip(batch.pixels, batch.labels, strict=True):
                self.seen += 1
                place = int(torch.randint(self.seen, (), generator=random))
                if len(self.labels) < self.capacity:
                    self.pixels = torch.cat([self.pixels.reshape(-1, *pixels.shape), pixels[None]])
                    self.labels = torch.cat([self.labels, label[None]])
                elif place < self.capacity:
                    self.pixels[place], self.labels[place] = pixels, label
            yield replace(batch, beside=beside)

    def state_dict(self):
        return {"pixels": self.pixels.clone(), "labels": self.labels.clone(), "seen": self.seen}

    def load_state_dict(self, saved):
        self.pixels, self.labels, self.seen = saved["pixels"], saved["labels"], saved["seen"]


class Stop(BaseHook):
    def __init__(self, at):
        self.at = at

    def after_step(self, state):
        state.interrupted = state.step == self.at


def replayed(plan, splits, folder, *, stop_at=0, resume=False):
    classifier, _ = build_classifier(plan, splits, CPU, blank=resume)
    method = build_method(plan, splits, CPU)
    method = replace(method, batches=ReservoirBatches(method.batches), hooks={"stop": Stop(stop_at)})
    refine(classifier, plan, splits, method, RunFolder(folder), resume=resume)
    return classifier


@pytest.mark.parametrize("stop_at", [3, 7])
def test_an_objective_with_a_reservoir_buffer_resumes_exactly(prepared, tmp_path, monkeypatch, stop_at):
    """In one file and one line; step 7 ends an epoch of seven, step 3 lies inside one."""
    monkeypatch.setattr(objectives_module, "OBJECTIVES", {**OBJECTIVES, "replay": Replay})
    plan, splits = prepared
    plan = plan.replace(loss="replay")
    assert build_method(plan, splits, CPU).steps_per_epoch == 7
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = replayed(plan, splits, tmp_path / "whole")
    with pytest.raises(Interrupted):
        replayed(plan, splits, tmp_path / "cut", stop_at=stop_at)
    resumed = replayed(plan, splits, tmp_path / "cut", resume=True)
    assert same(weights(whole), weights(resumed))
    plain = train("digits", TINY, out=tmp_path / "plain").classifier
    assert not same(weights(whole), weights(plain)), "the buffer changed nothing"


# An objective with a module of its own.


class Adversary(Objective):
    """Cross-entropy, and that of a discriminator which tells even from odd digits by the logits."""

    def __init__(self):
        self.discriminator = torch.nn.Linear(10, 2)

    def __call__(self, classifier, batch):
        logits = classifier(batch.pixels).float()
        told = F.cross_entropy(self.discriminator(logits), batch.labels % 2)
        return F.cross_entropy(logits, batch.labels) + 0.1 * told


def with_discriminator(plan, splits, *, stop_at=0):
    torch.manual_seed(5)
    objective = Adversary()
    method = build_method(resolve(plan.recipe, objective=objective), splits, CPU)
    modules = {"discriminator": objective.discriminator}
    return objective, replace(method, modules=modules, hooks={"stop": Stop(stop_at)})


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_module_of_the_method_is_trained_and_checkpointed_and_not_in_the_bundle(prepared, tmp_path, ema_decay):
    plan, splits = prepared
    plan = plan.replace(ema_decay=ema_decay)
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()

    def run(folder, **given):
        classifier, _ = build_classifier(plan, splits, CPU)
        objective, method = with_discriminator(plan, splits, stop_at=given.pop("stop_at", 0))
        before = weights(objective.discriminator)
        try:
            refine(classifier, plan, splits, method, RunFolder(tmp_path / folder), **given)
        except Interrupted:
            return None
        assert not same(before, weights(objective.discriminator)), "it did not learn"
        return classifier, objective.discriminator

    whole, discriminator = run("whole")
    assert run("cut", stop_at=9) is None
    resumed, again = run("cut", resume=True)
    assert same(weights(whole), weights(resumed))
    assert same(weights(discriminator), weights(again))
    bundle = Classifier.load(tmp_path / "whole")
    assert not any("discriminator" in name for name in bundle.state_dict())
    saved = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    assert "discriminator.weight" in saved["hooks"]["method.modules"]
    if ema_decay:
        assert "discriminator.weight" in saved["hooks"]["average"]["modules"]


def test_validation_sees_the_averaged_module_and_training_goes_on_with_its_own(prepared):
    plan, splits = prepared
    classifier, _ = build_classifier(plan, splits, CPU)
    objective, method = with_discriminator(plan, splits)
    state = start_training(classifier, plan, method)
    ema = EMA(classifier, 0.9, state.modules)
    optimise(state, method, [ema], validate=lambda: (0.0, 0.0))
    own = weights(objective.discriminator)
    with ema.applied_to(state.modules):
        assert not same(own, weights(objective.discriminator))
        assert same(
            {f"discriminator.{n}": t for n, t in weights(objective.discriminator).items()}, weights(ema.modules)
        )
    assert same(own, weights(objective.discriminator))


def test_a_method_says_how_to_validate_and_select(prepared, tmp_path):
    plan, splits = prepared
    classifier, _ = build_classifier(plan, splits, CPU)
    scores = iter([3.0, 1.0, 2.0])
    method = replace(
        build_method(plan, splits, CPU),
        validate=lambda *_: (next(scores), 0.5),
        select=lambda metrics: (-metrics.val_loss,),
    )
    facts = refine(classifier, plan, splits, method, RunFolder(tmp_path))
    assert facts["best_epoch"] == 2
    assert facts["val_accuracy"] == 0.5


# What is unused changes nothing, and what is impossible is refused


def test_the_loop_alone_gives_the_weights_of_refine(prepared, tmp_path):
    plan, splits = prepared
    ours, theirs = (build_classifier(plan, splits, CPU)[0] for _ in range(2))
    method = build_method(plan, splits, CPU)
    state = start_training(ours, plan, method)
    optimise(state, method, validate=lambda: method.objective.validate(ours, splits.val))
    assert len(state.history) == 3
    rows = [(row.val_accuracy, -row.val_loss) for row in state.history]
    facts = refine(theirs, plan, splits, method, RunFolder(tmp_path))
    assert facts["val_accuracy"] == max(rows)[0]
    if facts["best_epoch"] == 3:
        assert same(weights(ours), weights(theirs))


def test_pairs_stay_together_when_a_batch_is_cut():
    pixels = torch.arange(7.0).reshape(7, 1, 1, 1).expand(7, 1, 2, 2)
    other = Batch(pixels.repeat(2, 1, 1, 1)[:14], torch.full((14,), -1), torch.arange(14))
    batch = Batch(pixels, torch.arange(7), torch.arange(7), view=pixels + 0.5, beside=other)
    pieces = split_batch(batch, 3)
    assert sum(len(piece) for piece in pieces) == 7
    for piece in pieces:
        assert torch.equal(piece.view, piece.pixels + 0.5)
        assert len(piece.beside) in (4, 5)
    assert torch.equal(torch.cat([piece.beside.index for piece in pieces]), torch.arange(14))


class Contrast(Objective):
    across_images = True

    def __call__(self, classifier, batch):
        return classifier(batch.pixels).var(0).mean()


@pytest.mark.parametrize("changes", [{"grad_accum_steps": 2}, {"cpu_replicas": 2}, {"devices": 2}])
def test_an_objective_that_compares_images_refuses_to_be_cut(changes):
    with pytest.raises(RecipeError, match=f"cannot be cut: leave out --{next(iter(changes)).replace('_', '-')}"):
        resolve(TINY.replace(**changes), objective=Contrast())


def test_modules_and_replicas_do_not_go_together(prepared, tmp_path):
    plan, splits = prepared
    classifier, _ = build_classifier(plan, splits, CPU)
    _, method = with_discriminator(plan, splits)
    with pytest.raises(RecipeError, match="leave out --cpu-replicas"):
        refine(classifier, plan.replace(cpu_replicas=2), splits, method, RunFolder(tmp_path))


def test_images_of_other_classes_are_refused(prepared, tmp_path):
    plan, splits = prepared
    classifier, _ = build_classifier(plan, splits, CPU)
    turned = replace(splits.train, classes=tuple(reversed(splits.train.classes)))
    with pytest.raises(DataError, match="relabel the images to the classifier's classes"):
        refine(
            classifier, plan, replace(splits, train=turned), build_method(plan, splits, CPU), RunFolder(tmp_path)
        )


def test_an_epoch_of_another_length_than_promised_is_refused(prepared):
    plan, splits = prepared
    classifier, _ = build_classifier(plan, splits, CPU)
    method = replace(build_method(plan, splits, CPU), steps_per_epoch=5)
    with pytest.raises(TrainingError, match="Epoch 1 had 7 batches, but the method's steps_per_epoch is 5"):
        optimise(start_training(classifier, plan, method), method, validate=lambda: (0.0, 0.0))


def test_images_without_a_label_change_nothing_of_a_plain_training(prepared, tmp_path):
    """They are left out of batches, class weights, validation and temperature: as if they were not there."""
    plan, splits = prepared
    plan = plan.replace(class_weights="balanced", sampling="balanced", loss="cross-entropy")

    def with_more(part):
        half = part.subset(np.arange(0, len(part), 2))
        return replace(
            part,
            rows=np.concatenate([part.rows, half.rows]),
            labels=np.concatenate([part.labels, np.full(len(half), -1)]),
            files=np.concatenate([part.files, half.files]),
            digests=np.concatenate([part.digests, half.digests]),
            columns={name: np.concatenate([c, half.columns[name]]) for name, c in part.columns.items()},
        )

    more = replace(splits, train=with_more(splits.train), val=with_more(splits.val))
    assert more.train.counts.tolist() == splits.train.counts.tolist()
    assert len(more.train.unlabelled) == -(-len(splits.train) // 2)
    start, _ = build_classifier(plan, splits, CPU)
    made = []
    for name, images in (("plain", splits), ("more", more)):
        fitted = plan.fit_to(images.train)
        (tmp_path / name).mkdir()
        classifier = copy.deepcopy(start)
        refine(classifier, fitted, images, build_method(fitted, images, CPU), RunFolder(tmp_path / name))
        made.append(classifier)
    assert same(weights(made[0]), weights(made[1]))
    assert made[0].temperature == made[1].temperature


def test_a_run_to_start_from_is_opened_once(tmp_path, monkeypatch):
    started = train("digits", TINY.replace(epochs=1), out=tmp_path / "first")
    loads, load = [], Classifier.load.__func__

    def count(kind, folder):
        loads.append(str(folder))
        return load(kind, folder)

    monkeypatch.setattr(Classifier, "load", classmethod(count))
    recipe = TINY.replace(model=None, size=None, weights=str(started.folder), freeze="until:1", split_seed=0)
    train("digits", recipe, out=tmp_path / "second")
    assert loads == [str(started.folder)]


@pytest.mark.parametrize("model", ["mlp:hidden=(16,)", "small-cnn", "resnet20"])
def test_features_and_logits_come_from_one_pass(model):
    plan, splits, _ = prepare(resolve(TINY.replace(model=model, size=16, limit=80, flip_tta=True)))
    classifier = build_classifier(plan, splits, CPU)[0].eval()
    pixels, passes = torch.rand(3, 1, 16, 16), []
    classifier.network.register_forward_hook(lambda *_: passes.append(1))
    features, logits = classifier.features_and_logits(pixels)
    assert len(passes) == 1
    assert torch.equal(logits, classifier(pixels))
    assert torch.equal(features, classifier.features(pixels))
