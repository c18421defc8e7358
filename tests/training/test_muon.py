"""Muon against the singular value decomposition, torch's own Muon, and AdamW."""

import copy

import pytest
import torch

from helpers.pruned_classifiers import make
from sightline.errors import ChoiceError
from sightline.training import Recipe, resolve
from sightline.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (72, 8), (1, 9)])
def test_singular_vectors_stay_and_singular_values_become_near_one(shape):
    """The oracle is the decomposition: U and V of the matrix diagonalise what is made of it."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    matrix = left @ torch.diag(torch.linspace(1, 0.05, len(values), dtype=torch.float64)) @ right
    found = left.T @ orthogonalise(matrix) @ right.T
    assert (found - found.diagonal().diag()).abs().max() < 1e-6
    assert 0.6 < found.diagonal().min() <= found.diagonal().max() < 1.25


def test_a_matrix_of_low_rank_gains_no_directions():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(32, 2, generator=generator) @ torch.randn(2, 100, generator=generator)
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values[1] > 0.6
    assert values[2] < 1e-3
    assert not orthogonalise(torch.zeros(4, 6)).any()


def test_matrices_move_as_with_torchs_muon():
    """Torch iterates in bfloat16, hence the tolerance: 2 % of the length of all steps."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(8, 24, generator=generator)
    ours, theirs = (torch.nn.Parameter(first.clone()) for _ in range(2))
    group = {"params": [ours], "weight_decay": 0.1, "lr_factor": 1.0, "stage": 1}
    moves = Muon()([group], lr=0.02, momentum=0.95, fused=False)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(10):
        ours.grad = torch.randn(8, 24, generator=generator)
        theirs.grad = ours.grad.clone()
        moves.step()
        reference.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - first).norm()


def test_a_kernel_moves_as_the_matrix_of_its_outputs_by_inputs():
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(6, 4, 3, 3, generator=generator)
    both = [
        torch.nn.Parameter(kernel.clone(memory_format=torch.channels_last)),
        torch.nn.Parameter(kernel.flatten(1)),
    ]
    moves = Muon()([{"params": both, "weight_decay": 0.1, "stage": 1}], lr=0.02, momentum=0.9, fused=False)
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3, generator=generator)
        for parameter in both:
            parameter.grad = gradient.reshape(parameter.shape)
        moves.step()
    torch.testing.assert_close(both[0].flatten(1), both[1])


def test_head_biases_and_norms_move_as_with_adamw():
    """Of a whole network, only kernels before the head differ from AdamW."""
    classifier = make("resnet20", side=8)
    recipe = Recipe(optimizer="muon", lr=0.01, weight_decay=0.1)
    ours, theirs = classifier, copy.deepcopy(classifier)
    moves = resolve(recipe).build_optimizer(ours)
    reference = resolve(recipe.replace(optimizer="adamw")).build_optimizer(theirs)
    pixels = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for each, optimiser in ((ours, moves), (theirs, reference)):
        each.network.train()(pixels).square().sum().backward()
        optimiser.step()
    for (name, own), other in zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True):
        hidden = own.ndim > 1 and name.startswith(("conv1", "layer"))
        assert torch.allclose(own, other, atol=1e-6) == (not hidden), name


@pytest.mark.parametrize("word", ["muon:steps=0", "muon:beta1=1", "muon:beta2=-0.1", "muon:nesterov=True"])
def test_bad_arguments_are_named(word):
    with pytest.raises(ChoiceError, match=word.partition(":")[2].partition("=")[0]):
        resolve(Recipe(optimizer=word))
