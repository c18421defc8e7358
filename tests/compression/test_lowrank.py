"""Low rank: the arithmetic of the factors against numpy, and networks made of them."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from helpers.pruned_classifiers import logits, make, saved_and_loaded
from helpers.tiny_classifiers import DISTINCT_WORDS
from sightline.compression.compressor import example_input
from sightline.compression.lowrank import DECOMPOSITIONS, LowRank, fill_factors, rank_for_energy
from sightline.errors import RecipeError
from sightline.layers.factors import FACTORISATIONS, FactorisedLayer, factorise_layer
from sightline.models import (
    SURGERY,
    Architecture,
    build,
    compressible_layers,
    count_multiply_adds,
    count_parameters,
    parse_architecture,
)

LAYERS = {
    "linear": (lambda: nn.Linear(20, 12), (3, 20)),
    "tokens": (lambda: nn.Linear(7, 12, bias=False), (2, 5, 7)),
    "pointwise": (lambda: nn.Conv2d(6, 9, 1, 2, 1), (2, 6, 7, 8)),
    "convolution": (lambda: nn.Conv2d(6, 5, 3, padding=1), (2, 6, 9, 8)),
    "strided": (lambda: nn.Conv2d(2, 7, 5, 2, 2, bias=False), (2, 2, 11, 12)),
    "dilated": (lambda: nn.Conv2d(4, 5, 3, (1, 2), (2, 1), dilation=(2, 1)), (2, 4, 11, 12)),
    "same": (lambda: nn.Conv2d(3, 8, 5, padding="same"), (2, 3, 9, 8)),
    "oblong": (lambda: nn.Conv2d(3, 5, (1, 4)), (2, 3, 9, 8)),
}
"""Name -> (layer, shape of what it is given)."""

FITTING = [
    (kind, name) for kind in FACTORISATIONS for name in LAYERS if kind == "svd" or name not in ("linear", "tokens")
]
FLAT = [pair for pair in FITTING if pair[0] != "svd" or pair[1] in ("linear", "tokens", "pointwise")]


def full(kind, weight):
    """Ranks with which nothing is lost."""
    shape = weight.shape
    if kind == "tucker":
        return [min(shape[1], weight[:, 0].numel()), min(shape[0], weight[0].numel())]
    if kind == "spatial":
        return [min(shape[1] * shape[2], shape[0] * shape[3])]
    if kind == "cp":
        return [shape[1] * shape[2] * shape[3]]
    return [min(shape[0], weight[0].numel())]


def factorised(layer, kind, ranks):
    """The layer's factors, as the compressor fills them."""
    made = factorise_layer(layer, kind, ranks)
    fill_factors(made, layer, DECOMPOSITIONS[kind](layer.weight.detach()))
    return made


def layer_of(name, seed=0):
    torch.manual_seed(seed)
    return LAYERS[name][0](), torch.randn(LAYERS[name][1])


def product(kind, parts):
    """The weight that factors stand for."""
    parts = [part.double() for part in parts]
    if kind == "svd":
        narrow, wide = parts
        return (wide.flatten(1) @ narrow.flatten(1)).view(len(wide), *narrow.shape[1:])
    if kind == "spatial":
        return torch.einsum("riy,orx->oiyx", parts[0][..., 0], parts[1][:, :, 0])
    if kind == "tucker":
        return torch.einsum("fi,sfyx,os->oiyx", parts[0][..., 0, 0], parts[1], parts[2][..., 0, 0])
    return torch.einsum(
        "ri,ry,rx,or->oiyx", parts[0][..., 0, 0], parts[1][:, 0, :, 0], parts[2][:, 0, 0], parts[3][..., 0, 0]
    )


@pytest.mark.parametrize(("kind", "name"), FLAT)
def test_full_rank_reproduces_the_layer(kind, name):
    layer, given = layer_of(name)
    made = factorised(layer, kind, full(kind, layer.weight))
    with torch.no_grad():
        expected, own = layer(given), made(given)
    assert own.shape == expected.shape
    assert (own - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(("kind", "name"), FLAT)
def test_parameters_are_those_of_the_formulas(kind, name):
    """formulas.md 7.3, with the bias of the last layer."""
    layer, _ = layer_of(name)
    ranks = [3, 2] if kind == "tucker" else [3]
    outputs, inputs, *kernel = layer.weight.shape
    expected = {
        "svd": lambda r: r * (outputs + inputs * math.prod(kernel)),
        "tucker": lambda a, b: inputs * a + math.prod(kernel) * a * b + b * outputs,
        "cp": lambda r: r * (inputs + sum(kernel) + outputs),
        "spatial": lambda r: r * (inputs * kernel[0] + outputs * kernel[1]),
    }[kind](*ranks)
    bias = outputs if layer.bias is not None else 0
    assert count_parameters(factorise_layer(layer, kind, ranks)) == expected + bias
    assert DECOMPOSITIONS[kind].parameter_count(layer.weight.shape, *ranks) == expected


@pytest.mark.parametrize(("kind", "name"), FLAT)
def test_the_error_falls_with_the_rank(kind, name):
    weight = layer_of(name)[0].weight.detach()
    most = full(kind, weight)
    steps = [[max(1, rank * share // 4) for rank in most] for share in (0, 1, 2, 4)]
    errors = [
        float((product(kind, DECOMPOSITIONS[kind](weight).factor_weights(*ranks)) - weight).norm())
        for ranks in steps
    ]
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(errors))
    assert errors[-1] < 1e-5 * weight.norm() < errors[0]


@pytest.mark.parametrize("kind", ["svd", "spatial"])
@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_error_is_the_norm_of_the_dropped_singular_values(kind, rank):
    layer, _ = layer_of("linear" if kind == "svd" else "convolution")
    weight = layer.weight.detach()
    matrix = weight.double().numpy()
    if kind == "spatial":
        matrix = matrix.transpose(1, 2, 0, 3).reshape(6 * 3, 5 * 3)
    dropped = np.linalg.svd(matrix, compute_uv=False)[rank:]
    error = (product(kind, DECOMPOSITIONS[kind](weight).factor_weights(rank)) - weight).norm()
    assert float(error) == pytest.approx(np.sqrt(np.sum(dropped**2)), rel=1e-7)


def test_tuckers_error_is_within_its_bounds():
    """At least what the worse unfolding loses, at most what both lose together (De Lathauwer et al. 2000)."""
    weight = layer_of("convolution")[0].weight.detach().double()
    error = float((product("tucker", DECOMPOSITIONS["tucker"](weight).factor_weights(3, 2)) - weight).norm())
    unfolded = weight.transpose(0, 1).flatten(1), weight.flatten(1)
    lost = [np.linalg.svd(m.numpy(), compute_uv=False)[r:] for m, r in zip(unfolded, (3, 2), strict=True)]
    lost = [float(np.sum(values**2)) for values in lost]
    assert max(lost) ** 0.5 - 1e-9 <= error <= sum(lost) ** 0.5 + 1e-9


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_cp_finds_a_sum_of_products(rank):
    generator = torch.Generator().manual_seed(rank)
    parts = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (8, 7, 3, 3)]
    weight = torch.einsum("or,ir,hr,wr->oihw", *parts)
    error = (product("cp", DECOMPOSITIONS["cp"](weight).factor_weights(rank)) - weight).norm() / weight.norm()
    assert error < 1e-4
    if rank > 1:
        assert (
            product("cp", DECOMPOSITIONS["cp"](weight).factor_weights(rank - 1)) - weight
        ).norm() > 0.01 * weight.norm()


def test_cp_of_nothing_is_nothing():
    parts = DECOMPOSITIONS["cp"](torch.zeros(4, 3, 3, 3)).factor_weights(2)
    assert all(part.isfinite().all() for part in parts)
    assert not product("cp", parts).any()


def test_the_rank_of_an_energy():
    values = torch.tensor([2.0, 1.0, 1.0, 0.0])
    assert [rank_for_energy(values, energy) for energy in (0.1, 4 / 6, 0.7, 5 / 6, 0.99, 1.0)] == [
        1,
        1,
        2,
        2,
        3,
        3,
    ]
    assert rank_for_energy(torch.zeros(3), 0.9) == 1


# Networks.


# Every network by one way in turn, and every way on the small ones: linear algebra takes its time.
TURNS = [(word, ("tucker", "spatial", "svd")[turn % 3]) for turn, word in enumerate(DISTINCT_WORDS)]
SMALL = ["lenet5", "plain-cnn:depth=5:width=8", "vit:depth=1:width=24:heads=2"]


@pytest.mark.parametrize(("word", "by"), [*TURNS, *((word, by) for word in SMALL for by in DECOMPOSITIONS)])
def test_within_a_budget(word, by, tmp_path):
    """The law of low rank: fewer parameters, rebuilt bit for bit, the head its own, the original as it was."""
    classifier = make(word)
    before = {name: t.clone() for name, t in classifier.state_dict().items()}
    flat = [
        m
        for m in compressible_layers(classifier.network, example_input(classifier)).values()
        if m.weight[0, 0].numel() == 1
    ]
    if by == "svd" and sum(m.weight.numel() for m in flat) < 0.5 * count_parameters(classifier.network):
        with pytest.raises(RecipeError, match=r"are left, more than the budget"):  # nothing flat but the head
            LowRank(by, budget=0.2)(classifier)
        return
    smaller = LowRank(by, budget=0.5)(classifier)
    assert count_parameters(smaller.network) <= 0.5 * count_parameters(classifier.network)
    assert type(smaller.network.head) is nn.Linear
    assert torch.equal(logits(saved_and_loaded(smaller, tmp_path)), logits(smaller))
    assert all(torch.equal(before[name], t) for name, t in classifier.state_dict().items())


@pytest.mark.parametrize("word", ["resnet20", "table2", "vit:depth=2:width=48:heads=2", "small-cnn"])
@pytest.mark.parametrize("by", ["svd", "tucker", "spatial"])
def test_more_energy_is_nearer(word, by):
    """Of a network whose weights have low rank nearly, because random ones have none."""
    classifier = make(word)
    with torch.no_grad():
        for name, weight in classifier.network.named_parameters():
            if weight.ndim > 1 and "head" not in name and "embed" not in name:
                flat = weight.flatten(1)
                left, values, right = torch.linalg.svd(flat, full_matrices=False)
                weight.copy_(
                    (left @ torch.diag(values * 0.5 ** torch.arange(len(values))) @ right).view_as(weight)
                )
    errors = []
    for energy in (0.6, 0.9, 0.999):
        try:
            errors.append((logits(LowRank(by, energy=energy)(classifier)) - logits(classifier)).norm())
        except RecipeError:
            assert (by, word) == ("svd", "resnet20")  # no flat layer but the head
            return
    assert errors[2] < 0.2 * logits(classifier).norm()
    assert errors[2] < errors[1] < errors[0]


def test_layers_that_would_not_shrink_are_not_factorised():
    smaller = LowRank("tucker", budget=0.8)(make("resnet20"))
    plan = smaller.architecture.surgery[-1][1]["layers"]
    assert "conv1" not in plan or plan["conv1"]["ranks"][0] < 3
    for name, how in plan.items():
        before, after = make("resnet20").network.get_submodule(name), smaller.network.get_submodule(name)
        assert isinstance(after, FactorisedLayer)
        assert after.kind == how["kind"]
        assert count_parameters(after) < count_parameters(before)
    every = [name for name, layer in make("resnet20").network.named_modules() if isinstance(layer, nn.Conv2d)]
    assert all(
        isinstance(smaller.network.get_submodule(name), FactorisedLayer) == (name in plan) for name in every
    )
    with pytest.raises(RecipeError, match="No layer of this network would shrink"):
        LowRank("tucker", energy=1.0)(make("resnet20"))


def test_table_two_with_four_times_fewer_parameters():
    """formulas.md 7.3: the hidden layer of 25.69 million at rank 32 has 6.43 million; the 28x28 form by budget."""
    plan = parse_architecture("table2", classes=10, channels=3, size=(224, 224))
    changed = Architecture(
        plan.name, plan.arguments, (("factors", {"layers": {"features.fc": {"kind": "svd", "ranks": [32]}}}),)
    )
    with torch.device("meta"):
        small, large = build(changed), build(plan)
    assert count_parameters(small.features.fc) == 32 * (200_704 + 128) + 128 == 6_426_752
    assert 3.9 < count_parameters(large) / count_parameters(small) < 4.0
    classifier = make("table2", side=28, channels=1)
    smaller = LowRank("svd", budget=0.25)(classifier)
    assert 0.24 < count_parameters(smaller.network) / count_parameters(classifier.network) <= 0.25
    assert count_multiply_adds(smaller.network, 1, (28, 28)) < count_multiply_adds(classifier.network, 1, (28, 28))


def test_factors_have_a_repr():
    text = repr(factorise_layer(nn.Conv2d(6, 5, 3), "tucker", [2, 3]))
    assert "tucker, ranks (2, 3)" in text
    assert "(core): Conv2d(2, 3, kernel_size=(3, 3)" in text


def test_features_stay_as_they_are_found():
    """What the head is given keeps its size: freezing, neighbours and grown heads go on as before."""
    classifier = make("lenet5")
    smaller = LowRank("spatial", budget=0.5)(classifier)
    assert smaller.features(example_input(smaller)).shape == classifier.features(example_input(classifier)).shape
    assert SURGERY["grown_head"](smaller.network, 7).head.out_features == 7


def test_factorising_twice_is_refused():
    with pytest.raises(RecipeError, match="factorised already"):
        LowRank("svd", budget=0.9)(LowRank("spatial", budget=0.7)(make("lenet5")))


def test_an_unreachable_budget_is_refused():
    with pytest.raises(RecipeError, match=r"rank 1 in every layer .* are left, more than the budget of 0.1%"):
        LowRank("svd", budget=0.001)(make("lenet5"))


def test_a_network_that_reads_its_weights_itself():
    class Own(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x) + 0 * self.layer.weight.sum()

    classifier = make("mlp:hidden=(200,)")
    classifier.network.hidden[0] = Own(classifier.network.hidden[0])
    with pytest.raises(RecipeError, match="without calling the layers"):
        LowRank("svd", budget=0.5)(classifier)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"by": "svdd"}, "no decomposition 'svdd'. Did you mean 'svd'"),
        ({"energy": 0}, "energy must be a number"),
        ({"budget": 1.5}, "budget must be a number"),
        ({"energy": 0.9, "budget": 0.5}, "give one of them"),
        ({"by": "cp"}, "give a budget"),
        ({"by": "cp", "energy": 0.9}, "give a budget"),
    ],
)
def test_impossible_values(given, hint):
    with pytest.raises(ValueError, match=hint):
        LowRank(**given)


@pytest.mark.parametrize(
    ("layers", "hint"),
    [
        ({"conv9": {"kind": "svd", "ranks": [2]}}, "no layer 'conv9'"),
        ({"conv1": {"kind": "qr", "ranks": [2]}}, "no factorisation 'qr'"),
        ({"conv1": {"kind": "spatial", "ranks": [0]}}, "rank must be a whole number"),
        ({"bn1": {"kind": "svd", "ranks": [2]}}, "only convolutions and linear"),
        ({"head": {"kind": "cp", "ranks": [2]}}, "only ungrouped convolutions"),
    ],
)
def test_impossible_factors_are_refused(layers, hint):
    with pytest.raises(ValueError, match=hint):
        SURGERY["factors"](make("resnet20").network, layers)
