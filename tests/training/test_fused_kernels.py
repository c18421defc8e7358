"""Training with the fused kernels: the networks' gradients, the run's record, and when the kernels are tried."""

import copy
from dataclasses import replace

import pytest
import torch

from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline.batches import Batch
from sightline.classifier import Classifier
from sightline.errors import Interrupted
from sightline.layers import count_fusable, fused_norm
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.training import (
    defaults,
    gradients,
    measure_throughput,
    refinement,
    resolve,
    resume,
    run,
    to_memory_format,
    train,
)
from sightline.training.defaults import ExecutionMode, with_default_execution
from sightline.training.gradients import build_gradients, fused_kernels_may_help
from sightline.training.hooks import BaseHook
from sightline.training.losses import CrossEntropy
from sightline.training.recipe import Recipe
from sightline.types import Geometry

RECIPE = Recipe(
    model="resnet20", size=8, limit=200, epochs=2, batch_size=32, augment=("shift:1",), lr=0.05,
    precision="float32", memory_format="channels_last", cpu_replicas=1, fused_kernels=True,
)  # fmt: skip


class Counting:
    """The library, with its calls counted."""

    def __init__(self, library):
        self.library, self.calls = library, 0

    def __getattr__(self, name):
        self.calls += 1
        return getattr(self.library, name)


@pytest.fixture
def counted(kernels, monkeypatch):
    counting = Counting(kernels)
    monkeypatch.setattr(fused_norm, "open_kernels", lambda: (counting, ""))
    return counting


@pytest.fixture
def no_kernels(monkeypatch):
    why = "Training without fused kernels: this machine has no C++ compiler."
    for module in (fused_norm, refinement, defaults):
        monkeypatch.setattr(module, "open_kernels", lambda: (None, why))
    return why


def make(word, side=32):
    torch.manual_seed(0)
    architecture = parse_architecture(word, classes=10, channels=3, size=(side, side))
    classifier = Classifier(
        Preprocessing(), build(architecture), architecture=architecture, classes=tuple("0123456789"),
        geometry=Geometry(size=(side, side), channels=3),
    )  # fmt: skip
    return to_memory_format(classifier, "channels_last").train()


def draw(count, side=32):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    return Batch(pixels, torch.arange(count) % 10, torch.arange(count), classes=10)


def gradient(classifier, batch, **how):
    torch.manual_seed(2)  # dropout
    with build_gradients(classifier, **how) as backward:
        loss = backward(CrossEntropy(), batch)
    return loss, torch.cat([p.grad.flatten() for p in classifier.parameters() if p.grad is not None])


with torch.device("meta"):
    WITH_NORMS = [
        word
        for word in DISTINCT_WORDS
        if not word.startswith("timm:")  # whose forward is timm's
        and count_fusable(build(parse_architecture(word, classes=10, channels=3, size=(32, 32))))
    ]


def test_the_networks_with_norms_are_the_known_ones():
    names = {word.partition(":")[0] for word in WITH_NORMS}
    assert {"resnet20", "resnet18", "fastcnn", "enhanced", "densenet", "mobilenet", "inception"} <= names


@pytest.mark.parametrize("word", WITH_NORMS)
def test_every_network_has_the_gradient_it_has_without_kernels(word, counted):
    plain, fused, exact, batch = make(word), make(word), make(word).double(), draw(8)
    wanted_loss, wanted = gradient(exact, replace(batch, pixels=batch.pixels.double()))
    _, usual = gradient(plain, batch)
    assert counted.calls == 0
    loss, found = gradient(fused, batch, fused=True)
    assert counted.calls >= count_fusable(fused.network)  # forward and backward; some norms see too few values
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-4, atol=1e-5)
    # Plain float32 errs too: one input of a ReLU on the other side of 0 changes the gradient by half a percent.
    assert (found - wanted).norm() < 1e-2 * wanted.norm() + 3 * (usual - wanted).norm()
    assert [*plain.state_dict()] == [*fused.state_dict()]
    for name, value in plain.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(fused.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_bfloat16_and_replicas_use_the_kernels(counted):
    batch = draw(16)
    wanted_loss, wanted = gradient(make("resnet20"), batch)
    loss, found = gradient(make("resnet20"), batch, fused=True, bfloat16=True)
    assert counted.calls > 0
    assert loss == pytest.approx(float(wanted_loss), rel=0.02)
    assert torch.cosine_similarity(found, wanted, dim=0) > 0.95
    halves, before = make("resnet20"), counted.calls
    _, plain = gradient(make("resnet20"), batch, replicas=2)
    assert counted.calls == before
    _, found = gradient(halves, batch, fused=True, replicas=2)
    assert counted.calls > before
    assert (found - plain).norm() < 5e-3 * plain.norm()


def test_a_run_records_the_kernels_and_resumes_bit_for_bit(counted, tmp_path, monkeypatch):
    def with_hook(hook):
        original = run.build_method
        return lambda *a, **k: replace(original(*a, **k), hooks={"own": hook})

    class Stop(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == 7

    with monkeypatch.context() as patch:
        patch.setattr(run, "build_method", with_hook(BaseHook()))
        whole = train("digits", RECIPE, out=tmp_path / "whole")
    assert counted.calls > 0
    assert "fused_kernels = true" in (tmp_path / "whole" / "recipe.toml").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_method", with_hook(Stop()))
        with pytest.raises(Interrupted):
            train("digits", RECIPE, out=tmp_path / "cut")
    monkeypatch.setattr(run, "build_method", with_hook(BaseHook()))
    resumed = resume(tmp_path / "cut").classifier.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.classifier.state_dict().items())
    assert whole.facts["remarks"] == []


def test_without_kernels_the_run_is_the_plain_one_and_says_why(no_kernels, tmp_path):
    plain = train("digits", RECIPE.replace(fused_kernels=False), out=tmp_path / "plain")
    without = train("digits", RECIPE, out=tmp_path / "without").classifier
    assert plain.facts["remarks"] == []
    assert no_kernels in (tmp_path / "without" / "log.txt").read_text()
    assert no_kernels in (tmp_path / "without" / "training.json").read_text()
    ours = without.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in plain.classifier.state_dict().items())


OPEN = RECIPE.replace(
    precision=None,
    memory_format=None,
    cpu_replicas=None,
    fused_kernels=None,
    normalize="none",
    channels=3,
    size=32,
)
LONG = 10**6


@pytest.mark.parametrize(
    ("word", "changes", "images", "compiled", "tried"),
    [
        ("resnet20", {}, LONG, False, True),
        ("resnet20", {}, 100, False, False),
        ("resnet20", {}, 100, True, True),
        ("resnet20", {"freeze_norms": True}, LONG, True, False),
        ("resnet20", {"memory_format": "contiguous"}, LONG, True, False),
        (
            "resnet20",
            {"precision": "float32", "memory_format": "channels_last", "cpu_replicas": 1},
            LONG,
            True,
            False,
        ),
        ("resnet20", {"cpu_replicas": 1}, LONG, True, True),
        ("resnet20", {"fused_kernels": False}, LONG, True, False),
        ("lenet5", {}, LONG, True, True),
        ("lenet5", {}, 100, False, False),
        ("lenet5", {"memory_format": "channels_last"}, LONG, True, False),
        ("lenet5:pool=max", {}, LONG, True, False),
        ("mlp", {}, LONG, True, False),
    ],
)
def test_when_kernels_are_tried(word, changes, images, compiled, tried, monkeypatch):
    monkeypatch.setattr(gradients, "are_kernels_compiled", lambda: compiled)
    assert fused_kernels_may_help(make(word), OPEN.replace(model=word, **changes), images) is tried


@pytest.mark.parametrize("faster", [True, False])
def test_the_faster_way_is_taken_and_remembered(faster, kernels, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults.runtime, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(defaults, "open_kernels", lambda: (kernels, ""))
    asked = []

    def time_modes(modes, *_):
        asked.append(modes)
        return next((mode for mode in modes if mode.fused_kernels is faster), modes[0]), 100.0

    monkeypatch.setattr(defaults, "_time_modes", time_modes)
    plan, classifier = resolve(OPEN.replace(cpu_replicas=1, precision="float32")), make("resnet20")
    found = measure_throughput(classifier, plan, draw(32), train_images=LONG)
    assert found.mode.fused_kernels is faster
    assert ("fused kernels" in str(found.mode)) is faster
    assert len(asked) == 2
    assert measure_throughput(classifier, plan, draw(32), train_images=LONG).mode == found.mode
    assert asked[2] == [found.mode]


def test_a_machine_without_kernels_is_measured_without_them_and_says_why(no_kernels, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults.runtime, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(defaults, "_time_modes", lambda modes, *_: (modes[0], 100.0))
    plan = resolve(OPEN.replace(cpu_replicas=1, precision="float32"))
    found = measure_throughput(make("resnet20"), plan, draw(32), train_images=LONG)
    assert found.notes == (no_kernels,)
    assert not found.mode.fused_kernels


def test_a_settled_recipe_stays_plain():
    assert with_default_execution(resolve(OPEN)).recipe.fused_kernels is False
    assert ExecutionMode("float32", "contiguous").fused_kernels is False
    assert copy.deepcopy(RECIPE).fused_kernels is True
