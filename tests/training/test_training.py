"""The loop, what may change it, and what a run keeps."""

import copy
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline.classifier import Classifier
from sightline.cli import main
from sightline.errors import DataError, Interrupted, OutputError, RecipeError, TrainingError
from sightline.inference import predict_logits, validate
from sightline.training import fit_temperature, optimise, prepare, refine, reopen, resolve, resume, run, train
from sightline.training.build import build_classifier, build_method
from sightline.training.fit import TrainingState
from sightline.training.hooks import EMA, BaseHook
from sightline.training.losses import CrossEntropy
from sightline.training.objectives import OBJECTIVES
from sightline.training.plan import OPTIMIZERS
from sightline.training.recipe import Recipe
from sightline.training.run_folder import RunFolder

TINY = Recipe(
    model="mlp", size=8, limit=400, epochs=4, batch_size=32, augment=("shift:1",), precision="float32",
    memory_format="contiguous", lr=0.05,
)  # fmt: skip

PLAIN = [name for name, make in OBJECTIVES.items() if make().on_logits]  # the others draw random numbers


@pytest.fixture(scope="module")
def prepared():
    """A small recipe, complete, with its splits, and a function that makes its classifier before training."""
    plan, splits, _ = prepare(resolve(TINY.replace(data="digits")))
    return plan.recipe, splits, lambda: build_classifier(plan, splits, torch.device("cpu"))[0]


def build_optimizer(classifier, recipe):
    return resolve(recipe).build_optimizer(classifier)


def start(classifier, recipe, epochs, steps, **given):
    """The state of a training with a constant learning rate."""
    return TrainingState(
        classifier, build_optimizer(classifier, recipe), epochs, steps, peak_lr=recipe.lr, **given
    )


def ignore_validation():
    return 0.0, 0.0


def weights(classifier):
    return {name: t.clone() for name, t in classifier.state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def history(folder):
    with (folder / "history.csv").open() as stream:
        return list(csv.DictReader(stream))


def method_of(prepared, objective=None):
    recipe, splits, _ = prepared
    return build_method(resolve(recipe, objective=objective), splits, torch.device("cpu"))


def test_the_loop_is_the_plain_loop(prepared):
    """Ours against a dozen lines of plain torch: the same batches, an unfused optimiser."""
    recipe, _, fresh = prepared
    ours, plain = fresh(), fresh()
    method = method_of(prepared)
    state = start(ours, recipe, 2, method.steps_per_epoch)
    optimise(state, method, validate=ignore_validation)
    kernels = [p for p in plain.parameters() if p.ndim > 1]
    others = [p for p in plain.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    moves = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, foreach=False)
    plain.train()
    losses = []
    for epoch in range(2):
        for batch in method.batches(epoch, 0):
            moves.zero_grad()
            loss = F.cross_entropy(plain(batch.pixels), batch.labels)
            loss.backward()
            moves.step()
            losses.append(loss.item())
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    assert state.history[0].train_loss == pytest.approx(np.mean(losses[: len(losses) // 2]), rel=1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_biases_and_norms_do_not_decay(prepared, name):
    recipe, _, fresh = prepared
    classifier = fresh()
    made = build_optimizer(classifier, recipe.replace(optimizer=name, weight_decay=0.1))
    decays = {id(p): g["weight_decay"] for g in made.param_groups for p in g["params"]}
    assert len(decays) == len(list(classifier.parameters()))
    for parameter in classifier.parameters():
        assert decays[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("name", PLAIN)
def test_objectives_are_means_with_gradients(prepared, name):
    classifier = prepared[2]()
    batch = next(iter(method_of(prepared).batches(0, 0)))
    objective = OBJECTIVES[name]()
    loss = objective(classifier, batch)
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in classifier.parameters())
    halves = [
        replace(batch, pixels=batch.pixels[h], labels=batch.labels[h], index=batch.index[h])
        for h in (slice(0, 16), slice(16, 32))
    ]
    classifier.eval()
    mean = sum(objective(classifier, half) for half in halves) / 2
    torch.testing.assert_close(objective(classifier, batch), mean)


def test_cross_entropy_from_its_definition(prepared):
    classifier = prepared[2]().eval()
    batch = next(iter(method_of(prepared).batches(0, 0)))
    q = 0.9 * F.one_hot(batch.labels, 10).double() + 0.1 / 10
    logp = F.log_softmax(classifier(batch.pixels).double(), 1)
    expected = -(q * logp).sum(1).mean()
    hard = CrossEntropy(0.1)(classifier, batch)
    soft = CrossEntropy()(classifier, replace(batch, labels=q.float()))
    torch.testing.assert_close(hard.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(soft.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_step_may_change_the_gradients_before_the_update(prepared):
    """As GEM projects them: the step is given the state, the backward pass, the objective and the batch."""
    recipe, _, fresh = prepared
    classifier = fresh()
    before = weights(classifier)
    seen = []

    def project(state, gradients, objective, batch):
        loss = gradients(objective, batch)
        parameters = list(state.classifier.parameters())
        seen.append(max(p.grad.abs().max().item() for p in parameters))
        for parameter in parameters:
            parameter.grad.zero_()
        state.apply_gradients()
        return loss

    method = replace(method_of(prepared), step=project)
    optimise(
        start(classifier, recipe.replace(weight_decay=0.0), 1, method.steps_per_epoch),
        method,
        validate=ignore_validation,
    )
    assert len(seen) == method.steps_per_epoch
    assert min(seen) > 0
    assert same(before, weights(classifier))


def test_the_moving_average_is_its_formula(prepared):
    recipe, _, fresh = prepared
    classifier = fresh()
    method = method_of(prepared)
    state = start(classifier, recipe.replace(lr=0.1), 1, method.steps_per_epoch)
    average = EMA(classifier, 0.9)
    expected = {n: t.double() for n, t in weights(classifier).items()}

    class Reference(BaseHook):
        def after_step(self, state):
            decay = min(0.9, (1 + state.step) / (10 + state.step))
            for name, tensor in state.classifier.state_dict().items():
                expected[name] = decay * expected[name] + (1 - decay) * tensor.double()

    optimise(state, method, [average, Reference()], validate=ignore_validation)
    for name, tensor in average.classifier.state_dict().items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_bfloat16_trains_and_validates_in_it_and_is_calibrated_in_float32(tmp_path):
    made = train("digits", TINY.replace(precision="bfloat16", epochs=2), out=tmp_path / "r")
    assert all(p.dtype == torch.float32 for p in made.classifier.parameters())
    assert made.facts["val_accuracy"] > 0.3
    with (made.folder / "history.csv").open() as stream:
        best = list(csv.DictReader(stream))[made.facts["best_epoch"] - 1]
    exact = validate(made.classifier, made.splits.val)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = validate(made.classifier, made.splits.val)
    assert (float(best["val_loss"]), float(best["val_accuracy"])) == pytest.approx(rounded, rel=1e-5)
    assert exact != pytest.approx(rounded, rel=1e-5)
    assert exact == pytest.approx(rounded, rel=0.02)
    temperature = fit_temperature(*predict_logits(made.classifier, made.splits.val))
    assert made.classifier.temperature == pytest.approx(temperature, rel=1e-4)


def test_a_run_holds_what_the_design_says(tmp_path):
    made = train("digits", TINY, out=tmp_path / "r")
    names = {p.name for p in made.folder.iterdir()}
    assert names == {
        "recipe.toml", "environment.json", "notes.json", "split.csv", "train_batch.png", "history.csv",
        "curves.png", "training.json", "last.ckpt", "classifier", "log.txt",
    }  # fmt: skip
    with (made.folder / "split.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == sum(len(p) for p in (made.splits.train, made.splits.val, made.splits.test))
    assert len({row["file"] for row in rows}) == len(rows)
    again = reopen(made.folder)
    assert same(weights(again.classifier), weights(made.classifier))
    assert list(again.splits.test.files) == list(made.splits.test.files)


def test_best_is_the_best_on_validation(tmp_path):
    made = train("digits", TINY.replace(epochs=6, lr=0.5), out=tmp_path / "r")
    rows = history(made.folder)
    best = max(rows, key=lambda row: (float(row["val_accuracy"]), -float(row["val_loss"])))
    assert made.facts["best_epoch"] == int(best["epoch"])
    assert made.facts["val_accuracy"] == pytest.approx(float(best["val_accuracy"]))
    predictions = made.classifier.predict([made.splits.val[i : i + 1][0] for i in range(len(made.splits.val))])
    right = np.mean(
        [p.label == made.splits.val.classes[k] for p, k in zip(predictions, made.splits.val.labels, strict=True)]
    )
    assert right == pytest.approx(float(best["val_accuracy"]))


def test_the_recipe_of_a_run_repeats_it(tmp_path):
    first = train("digits", TINY.replace(epochs=2, ema_decay=0.9), out=tmp_path / "a")
    second = train("digits", Recipe.from_toml(first.folder / "recipe.toml"), out=tmp_path / "b")
    assert second.recipe == first.recipe
    assert same(weights(first.classifier), weights(second.classifier))


def test_early_stopping(tmp_path):
    made = train("digits", TINY.replace(epochs=30, lr=1.0, patience=2), out=tmp_path / "r")
    assert made.facts["epochs"] < 30
    losses = [float(row["val_loss"]) for row in history(made.folder)]
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    assert "Stopped early" in (made.folder / "log.txt").read_text()


@pytest.mark.parametrize("stop_at", [3, 9, 11])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_interrupted_anywhere_and_resumed_gives_the_same_weights(tmp_path, stop_at, ema, monkeypatch):
    """Steps 3 and 11 lie inside an epoch, step 9 ends one (nine steps each)."""
    recipe = TINY.replace(epochs=3, ema_decay=ema, model="mlp:dropout=0.2")
    whole = train("digits", recipe, out=tmp_path / "whole")
    assert whole.facts["epochs"] * 9 == 27

    class Stop(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == stop_at

    original = run.build_method
    monkeypatch.setattr(run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": Stop()}))
    with pytest.raises(Interrupted, match=f"step {stop_at} of 27.*--resume"):
        train("digits", recipe, out=tmp_path / "cut")
    monkeypatch.setattr(
        run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": BaseHook()})
    )
    resumed = resume(tmp_path / "cut")
    assert same(weights(whole.classifier), weights(resumed.classifier))
    rows = [history(r.folder) for r in (whole, resumed)]
    for key in ("epoch", "lr", "train_loss", "val_loss", "val_accuracy"):
        assert [row[key] for row in rows[0]] == [row[key] for row in rows[1]], key


def shell(*words):
    return [sys.executable, "-c", "import sys; from sightline.cli import main; sys.exit(main())", *map(str, words)]


FLAGS = (
    "--model", "lenet5", "--limit", "800", "--epochs", "6", "--batch-size", "32", "--precision", "float32",
    "--memory-format", "contiguous",
)  # fmt: skip


def wait_for_epochs(folder, count, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if (folder / "history.csv").read_text().count("\n") > count:
                return
        except FileNotFoundError:
            pass
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.01)
    raise AssertionError("the run did not start")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", "digits", *FLAGS, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_resumes_exactly(tmp_path, uninterrupted, kind, cli):
    folder = tmp_path / "run"
    words = shell("train", "digits", *FLAGS, "--out", folder)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_for_epochs(folder, 2, process)
    os.kill(process.pid, kind)
    said = process.communicate(timeout=60)[1]
    assert "\x1b[" not in said, "a pipe was shown a bar"
    if kind == signal.SIGINT:
        assert process.returncode == 130
        assert f"--resume {folder}" in said
        assert "Traceback" not in said
    done = cli("train", "--resume", folder, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["n"] > 100
    assert same(weights(Classifier.load(folder)), weights(Classifier.load(uninterrupted)))


def test_a_finished_run_cannot_be_resumed(uninterrupted):
    with pytest.raises(RecipeError, match="is finished"):
        resume(uninterrupted)


def test_a_folder_that_is_no_run_cannot_be_resumed(tmp_path):
    with pytest.raises(DataError, match="is no run"):
        resume(tmp_path)


def test_a_damaged_checkpoint_is_named(prepared, tmp_path):
    recipe, splits, _ = prepared
    folder = RunFolder(tmp_path)
    folder.write_header(recipe, splits, ())
    folder.checkpoint.write_bytes(b"PK\3\4 no checkpoint")
    with pytest.raises(TrainingError, match=r"last\.ckpt' is damaged"):
        resume(tmp_path)


class NotFinite:
    """Cross-entropy until a call, not-a-number from then on."""

    def __init__(self, good):
        self.good = good

    def __call__(self, classifier, batch):
        self.good -= 1
        return CrossEntropy()(classifier, batch) * (1.0 if self.good >= 0 else float("nan"))


def test_a_loss_that_is_never_finite_again_ends_with_the_best_weights(prepared, tmp_path):
    recipe, splits, fresh = prepared
    classifier, folder = fresh(), RunFolder(tmp_path)
    steps = method_of(prepared).steps_per_epoch
    facts = refine(classifier, resolve(recipe), splits, method_of(prepared, NotFinite(2 * steps + 2)), folder)
    kept = Classifier.load(folder.bundle)
    assert all(t.isfinite().all() for t in kept.state_dict().values())
    assert re.search(r"the loss became nan at step .* at a rate of 5e-05 too", facts["stopped_early"])
    assert f"at step {2 * steps + 3} (epoch 3)" in facts["remarks"][0]
    assert (facts["epochs"], facts["recoveries"]) == (2, 3)


def test_diverging_in_the_first_epoch_says_so(tmp_path):
    with pytest.raises(TrainingError, match=r"not finite|became (inf|nan).*No epoch was finished"):
        train("digits", TINY.replace(lr=1e20, warmup=0.0, schedule="constant"), out=tmp_path / "r")


def test_temperature_is_the_minimum_torch_finds():
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (20_000,))
    logits = 4 * F.one_hot(labels, 5) + 3 * torch.randn(20_000, 5)
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        solver.zero_grad()
        loss = F.cross_entropy(logits.double() / log_t.exp(), labels)
        loss.backward()
        return loss

    solver.step(closure)
    assert fit_temperature(logits, labels) == pytest.approx(log_t.exp().item(), rel=2e-3)


def test_temperature_of_a_few_perfect_answers_stays_sane():
    logits = 20 * F.one_hot(torch.arange(10)).float()
    assert 0.2 < fit_temperature(logits, torch.arange(10)) < 1


@pytest.mark.parametrize("name", DISTINCT_WORDS)
def test_every_network_trains_for_two_classes(tmp_path, name):
    recipe = TINY.replace(model=name, size=16, limit=120, epochs=1, batch_size=16)
    made = train("shapes", recipe, out=tmp_path / "r")
    assert made.classifier(torch.rand(2, 3, 16, 16)).isfinite().all()


def test_random_labels_give_chance(prepared, tmp_path):
    """Negative control: nothing may leak from the labels of validation into the answers."""
    recipe, splits, fresh = prepared
    random = np.random.default_rng(0)
    shuffled = replace(splits.train, labels=random.integers(0, 10, len(splits.train)))
    held = replace(splits.test, labels=random.integers(0, 10, len(splits.test)))
    classifier = fresh()
    parts = replace(splits, train=shuffled, val=held)
    plan = resolve(recipe.replace(epochs=8))
    made = build_method(plan, parts, torch.device("cpu"))
    refine(classifier, plan, parts, made, RunFolder(tmp_path))
    answers = classifier(torch.from_numpy(held[:]).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()
    right, n = int((answers == held.labels).sum()), len(held)
    from scipy.stats import binom

    # the best of eight epochs was picked on these very labels: hence the wide interval
    assert binom.ppf(1e-4, n, 0.1) <= right <= binom.ppf(1 - 1e-4, n, 0.1)


def test_an_existing_run_is_not_overwritten_unless_asked(tmp_path):
    train("digits", TINY.replace(epochs=1), out=tmp_path / "r")
    before = (tmp_path / "r" / "recipe.toml").read_text()
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        train("digits", TINY, out=tmp_path / "r")
    assert (tmp_path / "r" / "recipe.toml").read_text() == before
    train("digits", TINY.replace(epochs=2), out=tmp_path / "r", overwrite=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    with pytest.raises(OutputError, match="not a run"):
        train("digits", TINY, out=tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "resnet21"}, Exception, "Did you mean 'resnet"),
        ({"model": "mlp:droput=0.1"}, Exception, "droput.*Did you mean 'dropout'"),
        ({"augment": ("flop",)}, Exception, "Did you mean 'flip'"),
        ({"normalize": "imagnet"}, Exception, "Did you mean 'imagenet'"),
        ({"loss": "crossentropy"}, Exception, "Did you mean 'cross-entropy'"),
        ({"weights": "absent.safetensors"}, Exception, r"absent\.safetensors"),
    ],
)
def test_a_wrong_choice_leaves_no_run_behind(tmp_path, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        train("digits", TINY.replace(**changes), out=tmp_path / "r")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "r").exists()


def test_no_budget_is_exceeded_by_choice():
    from sightline.training import defaults

    recipe = Recipe(budget="10s", batch_size=128)
    few = defaults.default_epochs(recipe, train_images=10_000, images_per_second=5_000)
    assert few.value == 4
    assert "budget" in few.reason
    many = defaults.default_epochs(recipe.replace(budget="10h"), train_images=10_000, images_per_second=5_000)
    assert many.value == 60
    slow = defaults.default_epochs(recipe, train_images=10_000, images_per_second=10)
    assert slow.value == 1


@pytest.mark.parametrize(
    ("optimizer", "model", "lr"),
    [
        ("sgd", "resnet20", 0.1),
        ("sgd", "mlp:hidden=(8,)", 0.05),
        ("sgd", "alexnet:width=0.5", 0.01),
        ("adamw", "alexnet", 2e-3),
    ],
)
def test_networks_that_bear_less_get_a_lower_rate(optimizer, model, lr):
    from sightline.training import defaults

    recipe = Recipe(size=32, channels=3, model=model, optimizer=optimizer)
    chosen = defaults.default_network(resolve(recipe), train_images=50_000)
    made = {choice.field: choice.value for choice in chosen}
    assert made["lr"] == pytest.approx(lr)


def test_a_copy_of_a_state_is_a_state(prepared):
    recipe, _, fresh = prepared
    classifier = fresh()
    state = start(classifier, recipe, 4, 9)
    saved = copy.deepcopy(state.state_dict())
    other = start(fresh(), recipe, 1, 9)
    other.load_state_dict(saved)
    assert other.epochs == 4
    assert same(weights(other.classifier), weights(classifier))


@pytest.mark.parametrize(
    ("name", "theirs", "extra"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("sgd:nesterov=False", torch.optim.SGD, {"momentum": 0.9}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999)}),
        ("adam:beta2=0.95", torch.optim.Adam, {"betas": (0.9, 0.95)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
    ],
)
def test_optimisers_are_torchs(prepared, name, theirs, extra):
    recipe, _, fresh = prepared
    recipe = recipe.replace(optimizer=name, lr=0.01, weight_decay=0.1)
    ours, plain = fresh(), fresh()
    method = method_of(prepared)
    made = build_optimizer(ours, recipe)
    groups = [{**g, "params": []} for g in made.param_groups]
    for group, decayed in zip(groups, (True, False), strict=True):
        group["params"] = [p for p in plain.parameters() if (p.ndim > 1) == decayed]
    reference = theirs([{k: g[k] for k in ("params", "weight_decay")} for g in groups], lr=0.01, **extra)
    for batch in method.batches(0, 0):
        for model, moves in ((ours, made), (plain, reference)):
            CrossEntropy()(model, batch).backward()
            moves.step()
            moves.zero_grad()
    for (key, own), other in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-6, msg=key)


def test_decoupled_decay_does_not_pass_through_the_momentum(prepared):
    """With a decay of all there is and no gradient, each step is one multiplication."""
    recipe, _, fresh = prepared
    classifier = fresh()
    made = build_optimizer(classifier, recipe.replace(optimizer="sgd:decoupled=True", lr=0.1, weight_decay=0.5))
    before = weights(classifier)
    for _ in range(3):
        for parameter in classifier.parameters():
            parameter.grad = torch.zeros_like(parameter)
        made.step()
    for name, parameter in classifier.named_parameters():
        factor = 0.95**3 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.data, before[name] * factor)


def test_biases_and_norms_may_learn_faster(prepared):
    recipe, _, fresh = prepared
    ours, seen, method = fresh(), [], method_of(prepared)
    state = start(ours, recipe.replace(bias_lr=64.0, lr=0.01), 1, method.steps_per_epoch)

    class Look(BaseHook):
        def after_step(self, state):
            seen.append([group["lr"] for group in state.optimizer.param_groups])

    optimise(state, method, [Look()], validate=ignore_validation)
    assert seen[0] == pytest.approx([0.01, 0.64])


@pytest.mark.parametrize("soft", [False, True])
def test_weighted_cross_entropy_from_its_definition(prepared, soft):
    classifier = prepared[2]().eval()
    batch = next(iter(method_of(prepared).batches(0, 0)))
    heavy = tuple(np.linspace(0.5, 2, len(classifier.classes)).tolist())
    hot = F.one_hot(batch.labels, len(classifier.classes)).float()
    logs = torch.log_softmax(classifier(batch.pixels), 1)
    wanted = -(hot * logs * torch.tensor(heavy, dtype=torch.float32)).sum(1).mean()
    given = replace(batch, labels=hot) if soft else batch
    assert CrossEntropy(class_weights=heavy)(classifier, given).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_clipping_bounds_the_gradient(prepared):
    recipe, _, fresh = prepared
    ours, norms = fresh(), []
    state = start(ours, recipe.replace(momentum=0.0, weight_decay=0.0, lr=1.0), 1, 1, clip_grad=0.01)
    before = weights(ours)

    class Look(BaseHook):
        def after_step(self, state):
            moved = [state.classifier.state_dict()[n] - before[n] for n, _ in state.classifier.named_parameters()]
            norms.append(torch.cat([m.flatten() for m in moved]).norm().item())
            state.interrupted = True

    optimise(state, method_of(prepared), [Look()], validate=ignore_validation)
    assert norms[0] == pytest.approx(0.01, rel=1e-3)


def test_growing_sizes_end_at_the_working_size(tmp_path):
    recipe = TINY.replace(model="resnet20", size=16, progressive_from=8, epochs=3, limit=200)
    from sightline.training.build import progressive_size

    assert [progressive_size(16, 8, epoch, 3) for epoch in range(3)] == [8, 12, 16]
    made = train("shapes:120", recipe, out=tmp_path / "r")
    assert made.classifier.geometry.size == (16, 16)
    with pytest.raises(RecipeError, match="its own size only"):
        train("digits", TINY.replace(progressive_from=8, size=16), out=tmp_path / "s")


def test_training_does_not_load_the_compiler(tmp_path):
    """It would double the time from the command to the first step."""
    code = "import sys; from sightline.cli import main; print(main(sys.argv[1:]), 'torch._dynamo' in sys.modules)"
    words = [
        "train",
        "digits",
        "--model",
        "lenet5",
        "--limit",
        "300",
        "--epochs",
        "1",
        "--out",
        str(tmp_path / "r"),
    ]
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False"


def test_a_terminal_shows_a_bar_with_the_time_left(tmp_path):
    """On a real pseudo-terminal; that a pipe gets none is seen where processes are killed."""
    import pty

    words = shell("train", "digits", "--model", "mlp", "--limit", "400", "--epochs", "30", "--out", tmp_path / "r")
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 4096):
                seen += chunk
        except OSError:
            pass  # a closed terminal reads as an error on Linux
        assert process.wait(60) == 0
    os.close(ours)
    assert b"Training" in seen
    assert b"of 30" in seen
    assert re.search(rb"\d:\d\d:\d\d", seen), "no time left was shown"


def test_a_validation_loss_that_is_not_finite_keeps_nothing_bad(prepared, tmp_path):
    recipe, splits, fresh = prepared
    classifier, folder = fresh(), RunFolder(tmp_path)
    last = method_of(prepared).steps_per_epoch

    class Spoil(BaseHook):
        def after_step(self, state):
            if state.step == last:
                with torch.no_grad():
                    next(state.classifier.parameters()).fill_(float("nan"))

    method = replace(method_of(prepared), hooks={"spoil": Spoil()})
    with pytest.raises(TrainingError, match=r"validation loss became nan in epoch 1.*No epoch was finished"):
        refine(classifier, resolve(recipe), splits, method, folder)
    assert not folder.bundle.exists()


def test_an_old_run_survives_a_new_one_that_cannot_begin(tmp_path):
    train("digits", TINY.replace(epochs=1), out=tmp_path / "r")
    before = weights(Classifier.load(tmp_path / "r"))
    (tmp_path / "wrong.pth").write_bytes(b"no weights at all")
    with pytest.raises(Exception, match=r"wrong\.pth"):
        train("digits", TINY.replace(weights=str(tmp_path / "wrong.pth")), out=tmp_path / "r", overwrite=True)
    assert same(before, weights(Classifier.load(tmp_path / "r")))


def test_a_changed_recipe_is_not_resumed(tmp_path, monkeypatch):
    class Stop(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == 3

    original = run.build_method
    monkeypatch.setattr(run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": Stop()}))
    with pytest.raises(Interrupted):
        train("digits", TINY, out=tmp_path / "r")
    file = tmp_path / "r" / "recipe.toml"
    file.write_text(file.read_text().replace("lr = 0.05", "lr = 0.5"))
    with pytest.raises(TrainingError, match=r"recipe\.toml.*was changed"):
        resume(tmp_path / "r")
