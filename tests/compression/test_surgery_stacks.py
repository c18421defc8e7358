"""Surgery over surgery: in every order it either works and is rebuilt bit for bit, or is refused in a sentence."""

from itertools import permutations

import numpy as np
import pytest
import torch

from helpers.pruned_classifiers import count_zeros, logits, make, saved_and_loaded, splits
from sightline.compression.lowrank import LowRank
from sightline.compression.pruning import Channels, Prune
from sightline.ensembles import combine
from sightline.errors import RecipeError
from sightline.formats import open_exported, write_exported
from sightline.models import SURGERY, Architecture, build, count_multiply_adds, find_stages, get_head

STEPS = {
    "prune": Prune(0.5),
    "channels": Channels(0.3, "l2"),
    "lowrank": LowRank("tucker", budget=0.8),
}
ORDERS = [order for count in (2, 3) for order in permutations(STEPS, count)]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("word", ["lenet5", "plain-cnn:depth=5:width=8"])
def test_in_every_order(word, order, tmp_path):
    classifier, data = make(word), splits(8)
    refused = "lowrank" in order[order.index("prune") :] if "prune" in order else False
    for name in order:
        if refused and name == "lowrank":
            with pytest.raises(RecipeError, match="factorise first, then prune"):
                STEPS[name](classifier, data)
            return
        before, classifier = classifier, STEPS[name](classifier, data)
        assert logits(classifier).shape == logits(before).shape
    assert torch.equal(logits(saved_and_loaded(classifier, tmp_path)), logits(classifier))
    if order[-1] == "channels" and "prune" in order:
        assert count_zeros(classifier.network)[0] > 0.3 * count_zeros(classifier.network)[1]


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("before", [("mirrored", {}), ("grown_head", {"classes": 4})])
def test_after_other_surgery(name, before, tmp_path):
    classifier = make("resnet20", surgery=[before])
    smaller = STEPS[name](classifier, splits(8))
    assert smaller.architecture.surgery[0][0] == before[0]
    assert torch.equal(logits(saved_and_loaded(smaller, tmp_path)), logits(smaller))


@pytest.mark.parametrize("name", STEPS)
def test_heads_grow_afterwards(name):
    smaller = STEPS[name](make("lenet5"), splits(8))
    plan = smaller.architecture
    network = build(Architecture(plan.name, plan.arguments, (*plan.surgery, ("grown_head", {"classes": 6}))))
    old = SURGERY["grown_head"](smaller.network, 6)
    network.load_state_dict(old.state_dict())
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.eval()(pixels), old.eval()(pixels))
    assert get_head(network).out_features == 6


@pytest.mark.parametrize("name", STEPS)
def test_stages_are_those_of_the_whole_network(name):
    """What freezing and layer-wise rates go by is not disturbed."""
    classifier = make("resnet20")
    smaller = STEPS[name](classifier, splits(8))
    before, after = (find_stages(one.network) for one in (classifier, smaller))
    assert [stage.name.partition(".")[0] for stage in after] == [stage.name for stage in before]


@pytest.mark.parametrize("name", STEPS)
def test_classifiers_without_a_network_are_refused(name):
    both = combine([make("lenet5", seed=0), make("lenet5", seed=1)]).classifier
    with pytest.raises(RecipeError, match="member by member"):
        STEPS[name](both, splits(8))
    noisy = make("lenet5", surgery=[("noise", {"alpha": 0.2})])
    with pytest.raises(RecipeError, match="carry noise"):
        STEPS[name](noisy, splits(8))


@pytest.mark.parametrize("name", STEPS)
def test_an_estimator_is_refused(name):
    classifier = make("lenet5")
    classifier.architecture = Architecture("estimator", classifier.architecture.arguments)
    with pytest.raises(RecipeError, match="no network to compress"):
        STEPS[name](classifier, splits(8))


@pytest.mark.parametrize("name", STEPS)
def test_int8_comes_last(name):
    classifier = make("lenet5")
    plan = classifier.architecture
    classifier.architecture = Architecture(plan.name, plan.arguments, (("quantised", {}),))
    with pytest.raises(RecipeError, match="int8 last"):
        STEPS[name](classifier, splits(8))


def test_an_exported_file_holds_the_small_network_and_its_zeros(tmp_path):
    onnx = pytest.importorskip("onnx")
    classifier, data = make("lenet5"), splits(8)
    for step in (Channels(0.3, "l2"), LowRank("spatial", budget=0.9), Prune(0.5)):
        classifier = step(classifier, data)
    file = write_exported(classifier, tmp_path / "small.onnx")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer]
    weights = [one for one in weights if one.ndim > 1 and one.dtype == np.float32]
    wanted = sorted(p.numel() for p in classifier.network.parameters() if p.ndim > 1)
    assert sorted(one.size for one in weights if one.size > 9) == [size for size in wanted if size > 9]
    assert sum(int((one == 0).sum()) for one in weights) == count_zeros(classifier.network)[0]
    given = data.test[:]
    expected = classifier.probabilities(torch.from_numpy(given).permute(0, 3, 1, 2) / 255)
    own = torch.from_numpy(open_exported(file).probabilities(given))
    torch.testing.assert_close(own, expected.detach(), rtol=1e-4, atol=1e-5)


def test_only_the_promised_costs_fall():
    """Zeros are multiplied like other numbers; channels and factors are gone."""
    classifier, data = make("lenet5"), splits(8)
    work = {name: count_multiply_adds(step(classifier, data).network, 3, (16, 16)) for name, step in STEPS.items()}
    whole = count_multiply_adds(classifier.network, 3, (16, 16))
    assert work["prune"] == whole
    assert work["channels"] <= 0.7 * whole
    assert work["lowrank"] < whole
