"""Magnitude pruning: which weights go, and that they never come back."""

import copy

import pytest
import torch
from torch.nn.utils import prune as torch_prune

from helpers.pruned_classifiers import count_zeros, logits, make, pixels_of, saved_and_loaded, splits
from helpers.tiny_classifiers import DISTINCT_WORDS, SETTLED
from sightline.compression.compressor import example_input
from sightline.compression.pruning import PRUNING_SCOPES, Prune
from sightline.errors import RecipeError
from sightline.layers import WeightNoise
from sightline.layers.pruned import SparseConv2d, SparseLinear
from sightline.models import SURGERY, Architecture, build, compressible_layers
from sightline.training import OPTIMIZERS, Recipe, build_method, refine, resolve
from sightline.training.fit import TrainingState
from sightline.training.hooks import EMA
from sightline.training.run_folder import SilentRunFolder

words = pytest.mark.parametrize("word", DISTINCT_WORDS)


def prunable(classifier):
    return compressible_layers(classifier.network, example_input(classifier))


def by_torch(classifier, amount, scope):
    """The same network, pruned by torch's own tools: parametrised by a mask that multiplies."""
    network = copy.deepcopy(classifier.network)
    found = [(network.get_submodule(name), "weight") for name in prunable(classifier)]
    if scope == "global":
        torch_prune.global_unstructured(found, torch_prune.L1Unstructured, amount=amount)
    else:
        for layer, name in found:
            torch_prune.l1_unstructured(layer, name, amount=amount)
    return network


@pytest.mark.parametrize(
    ("word", "scope"), [(word, [*PRUNING_SCOPES][turn % 2]) for turn, word in enumerate(DISTINCT_WORDS)]
)
def test_the_smallest_weights_go_as_torch_would_have_it(word, scope):
    classifier = make(word)
    before = {name: t.clone() for name, t in classifier.state_dict().items()}
    pruned = Prune(0.6, scope)(classifier)
    expected = by_torch(classifier, 0.6, scope)
    for name in prunable(classifier):
        own, other = (net.get_submodule(name).weight for net in (pruned.network, expected))
        assert torch.equal(own.abs().flatten().sort()[0], other.abs().flatten().sort()[0]), name  # but for ties
        assert torch.equal(own[own != 0], before[f"network.{name}.weight"][own != 0])
    count, size = count_zeros(pruned.network)
    assert abs(count - 0.6 * size) <= len(prunable(classifier))
    assert all(torch.equal(before[name], t) for name, t in classifier.state_dict().items())
    assert (pruned.network.head.weight != 0).all()
    assert list(pruned.state_dict()) == list(before)


@words
def test_a_training_step_is_that_of_torchs_masks(word):
    """Logits and gradients in training mode; a zero has none."""
    classifier = make(f"{word}:dropout=0.0")
    pruned, expected = Prune(0.5)(classifier).network.train(), by_torch(classifier, 0.5, "global").train()
    pixels = pixels_of(classifier, 2)
    for network in (pruned, expected):
        torch.nn.functional.cross_entropy(network(pixels), torch.tensor([0, 3])).backward()
    for name in prunable(classifier):
        own, other = pruned.get_submodule(name).weight, expected.get_submodule(name).weight_orig
        assert torch.equal(own.grad, other.grad), name
        assert not own.grad[own == 0].any()


@pytest.mark.parametrize("word", OPTIMIZERS)
@pytest.mark.parametrize("decoupled", [False, True])
def test_zeros_survive_every_optimiser_and_the_average(word, decoupled):
    if decoupled and word != "sgd":
        pytest.skip("only sgd has a choice")
    classifier = Prune(0.7)(make("resnet20", side=8))
    gone = {n: p == 0 for n, p in classifier.network.named_parameters() if p.ndim > 1 and "head" not in n}
    recipe = Recipe(optimizer=f"{word}:decoupled=True" if decoupled else word, lr=0.05, weight_decay=0.01)
    state = TrainingState(classifier, resolve(recipe).build_optimizer(classifier), 1, 5, peak_lr=0.05)
    averaged = EMA(classifier, 0.9)
    before = classifier.network.layer1[0].conv1.weight.detach().clone()
    for _ in range(4):
        loss = classifier.train()(pixels_of(classifier)).square().mean()
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.batch += 1
        averaged.after_step(state)
    for network in (classifier.network, averaged.classifier.network):
        assert all(torch.equal(network.get_parameter(name) == 0, mask) for name, mask in gone.items())
    moved = classifier.network.layer1[0].conv1.weight.detach() != before
    assert torch.equal(moved, before != 0)


def test_zeros_survive_a_whole_refinement_and_the_bundle(tmp_path):
    classifier = Prune(0.6)(make("lenet5", side=12))
    count, size = count_zeros(classifier.network)
    recipe = Recipe(
        model="lenet5", size=12, channels=3, epochs=2, batch_size=16, lr=0.05, ema_decay=0.9, **SETTLED
    )
    data = splits(64, side=12)
    plan = resolve(recipe)
    method = build_method(plan, data, torch.device("cpu"))
    before = {name: t.clone() for name, t in classifier.state_dict().items()}
    refine(classifier, plan, data, method, SilentRunFolder(tmp_path))
    assert count_zeros(classifier.network) == (count, size)
    again = saved_and_loaded(classifier, tmp_path)
    assert torch.equal(logits(again), logits(classifier))
    assert count_zeros(again.network) == (count, size)
    assert not all(torch.equal(before[name], t) for name, t in again.state_dict().items())


def test_without_the_surgery_zeros_would_not_stay():
    """The negative control: the same weights in the plain network."""
    pruned = Prune(0.7)(make("lenet5", side=12))
    plain = build(Architecture("lenet5", pruned.architecture.arguments))
    plain.load_state_dict(pruned.network.state_dict())
    optimiser = torch.optim.SGD(plain.parameters(), 0.1)
    plain(pixels_of(pruned)).square().mean().backward()
    optimiser.step()
    assert (plain.features.conv2.weight == 0).sum() < (pruned.network.features.conv2.weight == 0).sum()


def test_answers_multiply_by_no_mask():
    """In eval mode a sparse layer is the plain one: what is exported has the zeros and nothing else."""
    network = Prune(0.5)(make("lenet5", side=12)).network.eval()
    kinds = [type(m) for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert kinds == [SparseConv2d, SparseConv2d, SparseLinear, SparseLinear, torch.nn.Linear]
    for layer in network.modules():
        if isinstance(layer, SparseConv2d | SparseLinear):
            layer.weight.data += 1.0  # no longer zero anywhere
    plain = build(Architecture("lenet5", Prune(0.5)(make("lenet5", side=12)).architecture.arguments)).eval()
    plain.load_state_dict(network.state_dict())
    pixels = torch.rand(3, 3, 12, 12)
    with torch.no_grad():
        assert torch.equal(network(pixels), plain(pixels))


def test_the_first_convolution_is_pruned_and_a_frozen_whitening_is_not():
    pruned = Prune(0.9, "layer")(make("fastcnn:width=0.25"))
    assert (pruned.network.whiten.weight != 0).any()
    assert "whiten" not in pruned.architecture.surgery[-1][1]["layers"]
    pruned = Prune(0.9, "layer")(make("resnet20"))
    assert pruned.architecture.surgery[-1][1]["layers"][0] == "conv1"


@pytest.mark.parametrize("amount", [0, 1, 1.5, -0.1, "half", None])
def test_an_impossible_amount(amount):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Prune(amount)


def test_an_unknown_scope():
    with pytest.raises(ValueError, match=r"no scope 'globl'\. Did you mean 'global'"):
        Prune(0.5, "globl")


def test_a_layer_is_never_lost():
    classifier = make("lenet5", side=12)
    classifier.network.features.conv1.weight.data.mul_(1e-6)
    with pytest.raises(RecipeError, match=r"the whole layer 'features.conv1'.*scope=layer"):
        Prune(0.9)(classifier)
    assert count_zeros(Prune(0.9, "layer")(classifier).network)[0]


def test_pruning_twice_is_refused():
    with pytest.raises(RecipeError, match="pruned already"):
        Prune(0.8)(Prune(0.5)(make("mlp")))


def test_noise_in_the_weights_is_refused():
    classifier = make("lenet5", surgery=[("noise", {"alpha": 0.2})])
    assert isinstance(classifier.network.noise, WeightNoise)
    with pytest.raises(RecipeError, match="carry noise"):
        Prune(0.5)(classifier)


def test_a_network_with_nothing_but_a_head():
    with pytest.raises(RecipeError, match="no layer to prune"):
        Prune(0.5)(make("mlp:hidden=()"))


def test_masks_of_layers_that_are_not_there():
    with pytest.raises(ValueError, match="no layer 'conv9'"):
        SURGERY["masked"](make("resnet20").network, ["conv9"])
    with pytest.raises(ValueError, match="'bn1' is not a plain"):
        SURGERY["masked"](make("resnet20").network, ["bn1"])
