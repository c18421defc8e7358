"""Stages, freezing, layer-wise rates, and starting from weights that exist."""

import copy
import csv
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sightline.choose import choose
from sightline.classifier import Classifier
from sightline.errors import BundleError, ChoiceError, Interrupted, RecipeError
from sightline.inference import embed
from sightline.models import NETWORKS, SURGERY, build, find_stages, get_head, parse_architecture
from sightline.training import build_classifier, build_method, resolve, resume, run, train
from sightline.training.estimate import estimate_cost, find_lr
from sightline.training.gradients import Replicas, SingleReplica
from sightline.training.hooks import BaseHook
from sightline.training.losses import CrossEntropy
from sightline.training.plan import FREEZE_SCHEDULES, OPTIMIZERS
from sightline.training.recipe import Recipe
from sightline.training.run_folder import SilentRunFolder
from sightline.training.transfer import FreezeBackbone, Freezer, NoFreezing, UpToStage, architecture_word
from sightline.types import Splits

KNOWN = [name for name in NETWORKS if name != "timm"]
networks = pytest.mark.parametrize("name", KNOWN)

PLAIN = {"precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1, "augment": ()}
TINY = Recipe(data="digits", model="small-cnn", size=12, limit=260, epochs=1, batch_size=32, lr=0.05, **PLAIN)


def network_of(name, classes=4, channels=3, size=(32, 32)):
    torch.manual_seed(0)
    return build(parse_architecture(name, classes=classes, channels=channels, size=size))


def on_meta(name):
    with torch.device("meta"):
        return network_of(name)


def weights(module):
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A trained run to start from."""
    return train("digits", TINY, out=tmp_path_factory.mktemp("start") / "run")


@pytest.fixture
def onward(started):
    """A recipe that starts from it, on its own images."""
    return TINY.replace(weights=str(started.folder), seed=1, split_seed=0, model=None, size=None)


# stages


@networks
def test_every_parameter_is_in_exactly_one_stage_and_the_head_is_last(name):
    network = on_meta(name)
    found = find_stages(network)
    owned = [id(p) for stage in found for p in stage.parameters()]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in network.parameters()}
    assert found[-1].name == "head"
    assert found[-1].modules[-1] is get_head(network)
    assert len({stage.name for stage in found}) == len(found)
    assert all(any(p.ndim > 1 for p in stage.parameters()) for stage in found)


@networks
def test_stages_are_used_in_their_order(name):
    """Against what the network does: the first use of each stage's first weights."""
    network, used = network_of(name, size=(32, 32)).eval(), []
    for number, stage in enumerate(find_stages(network)):
        layers = [layer for module in stage.modules for layer in module.modules()]
        for layer in layers:
            if any(p.ndim > 1 for p in layer.parameters(recurse=False)):
                layer.register_forward_pre_hook(lambda *_, n=number: used.append(n))
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
    assert list(dict.fromkeys(used)) == sorted(set(used))
    assert used == sorted(used), "a stage is used again after a later one"


NAMES = {
    "resnet20": ["conv1", "layer1", "layer2", "layer3", "head"],
    "resnet20:stem=whitened": ["conv1", "layer1", "layer2", "layer3", "head"],
    "resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4", "head"],
    "lenet5": ["features.conv1", "features.conv2", "features.fc1", "features.fc2", "head"],
    "mlp": ["hidden.0", "hidden.3", "head"],
    "mlp:hidden=()": ["head"],
    "small-cnn": ["features.conv", "features.fc", "head"],
    "fastcnn": ["groups.0", "groups.1", "groups.2", "head"],
    "enhanced": ["stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "head"],
}


@pytest.mark.parametrize("name", NAMES)
def test_stages_have_the_names_a_reader_expects(name):
    assert [stage.name for stage in find_stages(on_meta(name))] == NAMES[name]


def test_a_norm_is_in_the_stage_it_follows_and_dropout_before_the_head_in_the_heads():
    network = network_of("resnet20:dropout=0.5")
    first, *_, last = find_stages(network)
    assert network.bn1 in first.modules
    assert network.dropout in last.modules
    whitened = network_of("resnet20:stem=whitened")
    assert whitened.whiten in find_stages(whitened)[0].modules


def test_stages_of_a_wrapped_network_are_found_inside_it():
    """timm's shape: a body with a list of blocks, parameters of its own, and a head beside it."""

    class Body(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.position = torch.nn.Parameter(torch.zeros(1, 4, 8))
            self.patches = torch.nn.Conv2d(3, 8, 4, 4)
            self.blocks = torch.nn.Sequential(*(torch.nn.TransformerEncoderLayer(8, 2) for _ in range(3)))
            self.norm = torch.nn.LayerNorm(8)

    network = network_of("mlp")
    network.hidden = Body()
    found = find_stages(network)
    assert [s.name for s in found] == ["hidden.patches", *(f"hidden.blocks.{i}" for i in range(3)), "head"]
    assert any(p is network.hidden.position for p in found[0].parameters())
    assert network.hidden.norm in found[-2].modules


@networks
def test_the_embedding_is_what_the_head_is_given(name):
    network = network_of(name).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for one in (network, SURGERY["mirrored"](copy.deepcopy(network))):
            given = one.embed(pixels)
            logits = one(pixels)
            torch.testing.assert_close(
                get_head(one)(given), logits, rtol=1e-4, atol=1e-4 * logits.abs().max().item()
            )


def test_the_embedding_of_a_dataset_is_that_of_its_images(started):
    images = started.splits.test
    together = embed(started.classifier, images, batch_size=7)
    pixels = torch.from_numpy(images[:3]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        alone = started.classifier.network.embed(started.classifier.preprocessing(pixels))
    assert together.shape == (len(images), 128)
    np.testing.assert_allclose(together[:3], alone.numpy(), rtol=1e-4, atol=1e-5)


# what rests


SCHEDULES = {
    "none": [0, 0, 0, 0, 0, 0],
    "backbone": [4, 4, 4, 4, 4, 4],
    "until:2": [4, 4, 0, 0, 0, 0],
    "stage:1": [1, 1, 1, 1, 1, 1],
    "stage:layer2": [3, 3, 3, 3, 3, 3],
    "stage:stage=conv1": [1, 1, 1, 1, 1, 1],
    "early": [1, 1, 1, 1, 1, 1],
    "early:0.8": [3, 3, 3, 3, 3, 3],
    "staged:1": [4, 3, 2, 1, 0, 0],
    "staged:2": [4, 4, 3, 3, 2, 2],
}


@pytest.mark.parametrize("word", SCHEDULES)
def test_how_many_stages_rest_in_each_epoch(word):
    how = choose(FREEZE_SCHEDULES, word, "freeze schedule")
    assert [how.n_frozen(NAMES["resnet20"], epoch) for epoch in range(6)] == SCHEDULES[word]
    changes = [e for e in range(1, 6) if SCHEDULES[word][e] != SCHEDULES[word][e - 1]]
    assert how.first_change() == (changes[0] if changes else 0)


def test_every_way_to_freeze_is_in_the_table():
    assert {word.partition(":")[0] for word in SCHEDULES} == set(FREEZE_SCHEDULES)


def test_early_freezes_depthwise_kernels_everywhere_until_training_ends():
    network = network_of("timm:tf_efficientnet_lite0")
    classifier = SimpleNamespace(network=network)
    freezer = Freezer(classifier, choose(FREEZE_SCHEDULES, "early", "freeze schedule"), freeze_norms=True)
    freezer(0)
    learned = {name for name, p in network.named_parameters() if p.requires_grad}
    assert not any("conv_dw" in name or name.startswith(("body.conv_stem", "body.blocks.2")) for name in learned)
    assert {"body.blocks.3.0.conv_pw.weight", "body.blocks.3.0.bn2.weight", "head.weight"} <= learned
    freezer.unfreeze()
    assert all(p.requires_grad for p in network.parameters())


class Look(BaseHook):
    """The weights after each epoch, and which parameters had a gradient in the last step."""

    def __init__(self):
        self.after, self.grads = [], []

    def after_epoch(self, state):
        self.after.append(weights(state.classifier.network))


WAYS = {
    "plain": {},
    "average": {"ema_decay": 0.9},
    "bfloat16": {"precision": "bfloat16"},
    "pieces": {"grad_accum_steps": 2},
    "cpu_replicas": {"cpu_replicas": 3},
    "decoupled": {"optimizer": "sgd:decoupled=True", "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "lr": 1e-3},
    "clipped and layer-wise": {"clip_grad": 1.0, "layer_decay": 0.5},
}


def changed(stage, network, before, after):
    """Whether any tensor of a stage, running statistics included, differs."""
    names = {id(m): name for name, m in network.named_modules()}
    prefixes = tuple(f"{names[id(m)]}." for m in stage.modules)
    # Counters of batches do not travel with weights.
    mine = [name for name in before if name.startswith(prefixes) and not name.endswith("num_batches_tracked")]
    return any(not torch.equal(before[name], after[name]) for name in mine)


@pytest.mark.parametrize("way", WAYS)
def test_what_rests_stays_bit_for_bit_and_the_rest_learns(way, onward, started, tmp_path):
    """Staged: the head alone, then with the second stage, then all of it."""
    look = Look()
    recipe = onward.replace(freeze="staged:1", epochs=3, **WAYS[way])
    made = run.train_on_splits(
        started.splits, recipe, SilentRunFolder(tmp_path), device="cpu", hooks={"look": look}
    )
    network = made.classifier.network
    trail = [weights(started.classifier.network), *look.after]
    moved = [
        [changed(stage, network, before, after) for stage in find_stages(network)]
        for before, after in pairwise(trail)
    ]
    assert moved == [[False, False, True], [False, True, True], [True, True, True]]
    assert all(p.requires_grad for p in made.classifier.parameters())


def test_norms_of_resting_stages_use_their_running_statistics(started):
    classifier = copy.deepcopy(started.classifier)
    rest = Freezer(classifier, UpToStage(1))
    classifier.train()
    rest(0)
    assert not classifier.network.features.bn.training
    assert classifier.network.features.dropout.training
    rest = Freezer(classifier, NoFreezing())
    classifier.train()
    rest(0)
    assert classifier.network.features.bn.training


@pytest.mark.parametrize("copies", [1, 2])
def test_what_rests_has_no_gradient(started, copies):
    classifier = copy.deepcopy(started.classifier).train()
    method = build_method(resolve(started.recipe), started.splits, torch.device("cpu"))
    batch = next(iter(method.batches(0, 0)))
    work = SingleReplica(classifier) if copies == 1 else Replicas(classifier, copies)
    with work:
        rest = Freezer(classifier, FreezeBackbone())
        rest(0)
        work(CrossEntropy(), batch)
        assert {name for name, p in classifier.named_parameters() if p.grad is not None} == {
            "network.head.weight", "network.head.bias"
        }  # fmt: skip
        rest.unfreeze()
        work(CrossEntropy(), batch)
        assert all(p.grad is not None for p in classifier.parameters())


@pytest.mark.parametrize("stop_at", [3, 9])
def test_interrupted_and_resumed_gives_the_same_weights(tmp_path, onward, stop_at, monkeypatch):
    recipe = onward.replace(freeze="until:1", epochs=2, ema_decay=0.9, layer_decay=0.7)
    whole = train("digits", recipe, out=tmp_path / "whole")

    class Stop(BaseHook):
        def after_step(self, state):
            state.interrupted = state.step == stop_at

    original = run.build_method
    monkeypatch.setattr(run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": Stop()}))
    with pytest.raises(Interrupted):
        train("digits", recipe, out=tmp_path / "cut")
    monkeypatch.setattr(
        run, "build_method", lambda *a, **k: replace(original(*a, **k), hooks={"stop": BaseHook()})
    )
    resumed = resume(tmp_path / "cut")
    ours, theirs = weights(resumed.classifier), weights(whole.classifier)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed.classifier.provenance == whole.classifier.provenance
    assert resumed.classifier.config() == whole.classifier.config()


def test_the_rate_test_and_the_outlook_know_what_rests(onward):
    recipe = onward.replace(freeze="backbone", epochs=None, precision=None)
    assert estimate_cost("digits", recipe).values["recipe"]["model"].startswith("small-cnn")
    assert find_lr("digits", recipe.replace(lr=0.1)).suggestion > 0


# layer-wise rates


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_stage_back_from_the_head_learns_slower_by_the_factor(name):
    classifier = SimpleNamespace(network=network_of("resnet20"))
    owner = copy.copy(Classifier.__new__(Classifier))
    torch.nn.Module.__init__(owner)
    owner.network = classifier.network
    recipe = Recipe(optimizer=name, layer_decay=0.5, bias_lr=2.0, weight_decay=0.1, lr=0.1)
    made = resolve(recipe).build_optimizer(owner)
    factors = {id(p): (g["lr_factor"], g["weight_decay"]) for g in made.param_groups for p in g["params"]}
    expected = dict(zip(NAMES["resnet20"], (0.0625, 0.125, 0.25, 0.5, 1.0), strict=True))
    assert len(factors) == len(list(owner.parameters()))
    for path, parameter in owner.network.named_parameters():
        stage = "conv1" if path.startswith("bn1") else path.partition(".")[0]
        kernel = parameter.ndim > 1
        assert factors[id(parameter)] == (expected[stage] * (1 if kernel else 2), 0.1 if kernel else 0.0), path
    assert made.param_groups[0]["lr_factor"] == 1.0  # the rate that history.csv shows is the head's


def test_a_factor_of_one_is_the_two_groups_there_always_were(started):
    assert len(resolve(Recipe(lr=0.1)).build_optimizer(started.classifier).param_groups) == 2


def test_a_step_moves_each_stage_by_its_own_rate(started, tmp_path):
    """Without momentum and decay the first step is the gradient times rate and factor: from the definition."""
    recipe = started.recipe.replace(layer_decay=0.25, momentum=0.0, weight_decay=0.0, lr=0.1)
    moved, plain = copy.deepcopy(started.classifier).train(), copy.deepcopy(started.classifier).train()
    plan = resolve(recipe)
    method = build_method(plan, started.splits, torch.device("cpu"))
    batch = next(iter(method.batches(0, 0)))
    torch.manual_seed(0)
    SingleReplica(moved)(CrossEntropy(), batch)
    moves = plan.build_optimizer(moved)
    for group in moves.param_groups:
        group["lr"] = 0.1 * group["lr_factor"]
    moves.step()
    torch.manual_seed(0)
    CrossEntropy()(plain, batch).backward()
    factor = {"features.conv": 0.0625, "features.bn": 0.0625, "features.fc": 0.25, "head": 1.0}
    for (name, after), before in zip(moved.network.named_parameters(), plain.network.parameters(), strict=True):
        expected = before - 0.1 * factor[name.rpartition(".")[0]] * before.grad
        torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-7, msg=name)


# where it starts


def test_a_run_to_start_from_gives_network_size_channels_and_normalisation(onward, started, tmp_path):
    made = train("digits", onward, out=tmp_path / "r")
    assert (made.recipe.model, made.recipe.size, made.recipe.channels) == ("small-cnn", 12, 1)
    assert made.recipe.normalize == "inherit"
    assert made.classifier.preprocessing.config() == started.classifier.preprocessing.config()
    assert any("Inherited from" in note and "--normalize" in note for note in made.notes)
    assert any("head is kept, because it knows the classes" in note for note in made.notes)
    asked = train("digits", onward.replace(normalize="signed"), out=tmp_path / "s")
    assert asked.classifier.preprocessing.config() == [{"step": "normalise", "mean": [0.5], "std": [0.5]}]


def test_no_training_at_all_gives_the_answers_of_the_start(onward, started, tmp_path):
    made = train("digits", onward.replace(epochs=0), out=tmp_path / "r")
    pixels = torch.rand(4, 1, 12, 12)
    with torch.no_grad():
        assert torch.equal(made.classifier.eval()(pixels), started.classifier.eval()(pixels))


def test_rows_of_the_head_go_with_the_names_of_the_classes(onward, started):
    classes = ("7", "horse", "2")
    parts = (started.splits.train, started.splits.val, started.splits.test)
    splits = Splits(*(replace(part, classes=classes, labels=part.labels % 3) for part in parts))
    plan = resolve(onward).fit_to(splits.train)
    fresh, notes = build_classifier(plan, splits, torch.device("cpu"))
    unloaded = resolve(plan.recipe.replace(weights=None, normalize="none")).fit_to(splits.train)
    blank, _ = build_classifier(unloaded, splits, torch.device("cpu"))
    known = started.classifier.network.head
    assert torch.equal(fresh.network.head.weight[0], known.weight[7])
    assert torch.equal(fresh.network.head.bias[2], known.bias[2])
    assert torch.equal(fresh.network.head.weight[1], blank.network.head.weight[1])
    assert torch.equal(fresh.network.features.fc.weight, started.classifier.network.features.fc.weight)
    assert "kept for 7, 2 and starts from random weights for 1 other classes" in notes[0]


def test_a_bundle_with_a_grown_head_and_mirroring_can_be_started_from(started, onward, tmp_path):
    source = copy.deepcopy(started.classifier)
    source.network = SURGERY["mirrored"](SURGERY["grown_head"](source.network, classes=12))
    surgery = (("grown_head", {"classes": 12}), ("mirrored", {}))
    source.architecture = replace(source.architecture, surgery=surgery)
    source.classes = (*source.classes, "x", "y")
    source.save(tmp_path / "grown")
    plan = resolve(onward.replace(weights=str(tmp_path / "grown"))).fit_to(started.splits.train)
    fresh, _ = build_classifier(plan, started.splits, torch.device("cpu"))
    assert torch.equal(fresh.network.head.weight, started.classifier.network.head.weight)


def test_relatives_know_their_ancestors(started, onward, tmp_path):
    from sightline.features import backbone_fingerprint

    child = train("digits", onward, out=tmp_path / "child")
    other = train("digits", onward.replace(seed=2), out=tmp_path / "other")
    grand = train("digits", onward.replace(weights=str(child.folder), seed=3), out=tmp_path / "grand")
    origin = backbone_fingerprint(started.classifier.network)
    assert "ancestors" not in started.classifier.provenance
    assert child.classifier.provenance["ancestors"] == other.classifier.provenance["ancestors"] == [origin]
    assert grand.classifier.provenance["ancestors"] == [backbone_fingerprint(child.classifier.network), origin]
    assert len({backbone_fingerprint(each.classifier.network) for each in (started, child, other, grand)}) == 4


def test_a_start_that_learnt_from_test_images_is_told(started, onward, tmp_path):
    with (started.folder / "split.csv").open() as stream:
        learnt = {row["file"] for row in csv.DictReader(stream) if row["split"] != "test"}
    made = train("digits", onward.replace(split_seed=7), out=tmp_path / "r")
    count = sum(file in learnt for file in made.splits.test.files)
    assert count > 0
    (told,) = [note for note in made.notes if "too optimistic" in note]
    assert f"{count} of the {len(made.splits.test)} test images were training images of" in told
    same = train("digits", onward, out=tmp_path / "s")
    assert not any("too optimistic" in note for note in same.notes)


def test_one_split_for_several_seeds(tmp_path):
    recipe = TINY.replace(epochs=0, limit=120)
    one, two, apart = (
        train("digits", recipe.replace(**seeds), out=tmp_path / str(n))
        for n, seeds in enumerate(({"seed": 3}, {"seed": 4, "split_seed": 3}, {"seed": 4}))
    )
    assert list(one.splits.test.files) == list(two.splits.test.files)
    assert list(one.splits.test.files) != list(apart.splits.test.files)
    assert not torch.equal(one.classifier.network.head.weight, two.classifier.network.head.weight)
    assert torch.equal(apart.classifier.network.head.weight, two.classifier.network.head.weight)


@pytest.mark.parametrize("word", ["mlp:hidden=[32,16]:dropout=0.2", "resnet20:stem=whitened", "fastcnn:width=0.5"])
def test_the_word_of_an_architecture_makes_it_again(word):
    common = {"classes": 3, "channels": 3, "size": (32, 32)}
    plan = parse_architecture(word, **common)
    assert parse_architecture(architecture_word(plan), **common).config() == plan.config()


def test_the_last_layer_of_a_file_is_kept_where_it_knows_the_classes(started, tmp_path):
    """The file tells no names: the same digits are known, the same digits under other names are not."""
    file = started.folder / "classifier" / "model.safetensors"
    recipe = TINY.replace(weights=str(file), channels=1, normalize="fitted")
    known = started.classifier.network.head.weight
    plan = resolve(recipe).fit_to(started.splits.train)
    kept, told = build_classifier(plan, started.splits, torch.device("cpu"))
    assert torch.equal(kept.network.head.weight, known)
    assert "random" not in told[0]
    turned = replace(started.splits.train, labels=(started.splits.train.labels + 1) % 10)
    others = replace(started.splits, train=turned)
    fresh, told = build_classifier(plan, others, torch.device("cpu"))
    assert not torch.equal(fresh.network.head.weight, known)
    assert torch.equal(fresh.network.features.fc.weight, started.classifier.network.features.fc.weight)
    assert "trained for other classes, and starts from random weights" in told[0]
    untrained, _ = build_classifier(plan.replace(epochs=0), others, torch.device("cpu"))
    assert torch.equal(untrained.network.head.weight, known)


def test_a_third_partys_weights_are_frozen_and_trained(shared_weights, tmp_path):
    file = shared_weights / "resnet20-12fca82f.th"
    recipe = Recipe(
        model="resnet20", size=32, channels=3, limit=60, epochs=1, weights=str(file), normalize="imagenet",
        freeze="stage:layer3", **PLAIN,
    )  # fmt: skip
    made = train("digits", recipe, out=tmp_path / "r")
    tensors = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    for name, value in made.classifier.network.state_dict().items():
        if not name.startswith("head") and not name.endswith("num_batches_tracked"):
            assert torch.equal(value, tensors[f"module.{name}"]), name


# what a user gets wrong


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"freeze": "layers"}, ChoiceError, "no freeze schedule called 'layers'"),
        ({"freeze": "backbon"}, ChoiceError, "Did you mean 'backbone'"),
        ({"freeze": "until"}, ChoiceError, "'until' cannot be made"),
        ({"freeze": "until:0"}, ChoiceError, "epochs must be a whole number of at least 1, not 0"),
        ({"freeze": "until:soon"}, ChoiceError, "not 'soon'"),
        ({"freeze": "staged:1.5"}, ChoiceError, "not 1.5"),
        ({"freeze": "stage:0"}, ChoiceError, "stage must be a whole number of at least 1, not 0"),
        ({"freeze": "until:3"}, RecipeError, "ends after 3 epochs"),
        ({"freeze": "staged:5"}, RecipeError, "ends after 3 epochs"),
        ({"freeze": "stage:9"}, RecipeError, "stages before the head are features.conv, features.fc: .* 1 to 2"),
        ({"freeze": "stage:head"}, RecipeError, "stages before the head are features.conv"),
        ({"freeze": "backbone", "weights": None, "model": "small-cnn"}, RecipeError, "they start random"),
        ({"weights": "absent"}, RecipeError, "no file of weights 'absent', and no run or bundle"),
        ({"weights": "."}, BundleError, "no config.json"),
        ({"model": "mlp"}, BundleError, "belong to another network"),
        (
            {"model": "small-cnn", "size": 16},
            BundleError,
            r"features.fc.weight \(128, 1152\) instead of \(128, 2048\)",
        ),
        ({"channels": 3}, RecipeError, "channels is 3, but .* expects 1"),
        ({"weights": None, "normalize": "start", "model": "mlp"}, RecipeError, "normalize is 'inherit'"),
    ],
)
def test_impossible_wishes_are_one_sentence(changes, kind, message, onward, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        train("digits", onward.replace(epochs=3).replace(**changes), out=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_a_network_that_is_only_a_head_has_no_stage_to_freeze():
    network = network_of("mlp:hidden=()")
    with pytest.raises(RecipeError, match="stages before the head are none"):
        UpToStage(1).n_frozen([stage.name for stage in find_stages(network)], 0)
