"""Attacks against laws, against planes whose margins are known, and against the adversarial-robustness-toolbox."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.attacked_classifiers import GEOMETRY, digits, linear, trained
from sightline.attacks import (
    APGD,
    ATTACKS,
    BALLS,
    FGSM,
    PGD,
    Attack,
    RandomNoise,
    RayS,
    Universal,
    default_attack,
    find_attack,
    is_correct,
    loss_gradient,
    make_attack,
    parse_eps,
)
from sightline.attacks.apgd import checkpoint_intervals
from sightline.attacks.gradient import ATTACK_LOSSES, dlr_loss, margin_loss
from sightline.baselines import fit_baseline
from sightline.choose import choose
from sightline.classifier import frozen_eval
from sightline.data import load_dataset
from sightline.data.splits import split
from sightline.errors import ChoiceError, GradientError, RecipeError
from sightline.layers import Network
from sightline.robustness import EOTClassifier

QUICK = {"pgd": "pgd:10", "apgd": "apgd:12", "rays": "rays:60", "noise": "noise:3", "universal": "universal:15"}
MADE = [make_attack(QUICK.get(name, name)) for name in ATTACKS]
BOTH = [*MADE, *(replace(one, norm="l2") for one in MADE if not isinstance(one, RayS))]
EPS = {"linf": 0.25, "l2": 2.0}


def some(classes=10, count=60):
    images, labels, _ = digits(classes)
    return images[-count:], labels[-count:]


@torch.no_grad()
def accuracy(classifier, images, labels):
    return (classifier(images).argmax(1) == labels).float().mean().item()


def lengths(changes, norm):
    return changes.flatten(1).abs().amax(1) if norm == "linf" else changes.flatten(1).double().norm(dim=1)


# Laws over every member


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("attack", BOTH, ids=repr)
def test_attacks_stay_in_the_ball_and_never_help(attack, classes):
    classifier, (images, labels) = trained(classes=classes), some(classes)
    eps = EPS[attack.norm]
    before, kept = accuracy(classifier, images, labels), images.clone()
    found = attack(classifier, images, labels, eps)
    assert isinstance(attack, Attack)
    assert (found.shape, found.dtype, found.requires_grad) == (images.shape, images.dtype, False)
    assert torch.equal(images, kept), "the images given were written to"
    assert lengths(found - images, attack.norm).max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert accuracy(classifier, found, labels) <= before + 0.02
    if attack.needs_gradient:
        assert accuracy(classifier, found, labels) < before - 0.1, "an attack that does nothing"


@pytest.mark.parametrize("attack", BOTH, ids=repr)
def test_no_eps_is_no_attack(attack):
    images, labels = some()
    assert torch.equal(attack(trained(), images, labels, 0.0), images)


@pytest.mark.parametrize("attack", MADE, ids=repr)
def test_attacks_repeat_whatever_was_drawn_before(attack):
    images, labels = some(count=40)
    torch.manual_seed(1)
    first = attack(trained(), images, labels, EPS[attack.norm])
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again = attack(trained(), images, labels, EPS[attack.norm])
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"


@pytest.mark.parametrize("attack", MADE, ids=repr)
def test_another_seed_is_another_start(attack):
    if "seed" not in vars(attack):
        pytest.skip("it draws nothing")
    images, labels = some(count=40)
    others = replace(attack, seed=5)(trained(), images, labels, 0.02)
    assert not torch.equal(attack(trained(), images, labels, 0.02), others)


@pytest.mark.parametrize("attack", MADE, ids=repr)
def test_attacks_leave_no_trace_in_the_classifier(attack):
    classifier = copy.deepcopy(trained()).train()
    bias = classifier.network.head.bias
    bias.requires_grad_(False)
    classifier.network.features.bn.eval()
    classifier.network.head.weight.grad = torch.ones_like(classifier.network.head.weight)
    modes = [module.training for module in classifier.modules()]
    state = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    with torch.inference_mode():
        attack(classifier, *some(count=20), 0.1)
    assert [module.training for module in classifier.modules()] == modes
    assert [p.requires_grad for p in classifier.parameters()] == [p is not bias for p in classifier.parameters()]
    for name, parameter in classifier.named_parameters():
        assert parameter.grad is None or name == "network.head.weight"
    assert torch.equal(classifier.network.head.weight.grad, torch.ones_like(classifier.network.head.weight))
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_an_attack_that_fails_leaves_no_trace_either():
    classifier = copy.deepcopy(trained()).train()
    images, labels = some(count=5)
    with pytest.raises(IndexError):
        PGD(2, early_stop=False)(classifier, images, labels + 100, 0.1)
    assert all(module.training for module in classifier.modules())
    assert all(p.requires_grad for p in classifier.parameters())


@pytest.mark.parametrize("name", ATTACKS)
def test_repr_rebuilds_an_attack(name):
    made = ATTACKS[name]()
    assert eval(repr(made)) == made


def test_images_do_not_touch_each_other():
    images, labels = some(count=60)
    for attack in (FGSM(), PGD(5, random_start=False), RayS(40)):
        whole = attack(trained(), images, labels, 0.1)
        parts = torch.cat([attack(trained(), images[a : a + 20], labels[a : a + 20], 0.1) for a in (0, 20, 40)])
        torch.testing.assert_close(whole, parts, atol=2e-3, rtol=0)


# Planes: what each attack can reach is known


def plane():
    """Images inside (0.3, 0.7), so that only eps binds, and their signed distances from a plane in both norms."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(64, generator=generator) + 0.5
    weight[32:] *= -1
    images = 0.3 + 0.4 * torch.rand(40, 1, 8, 8, generator=generator)
    scores = images.flatten(1) @ weight
    labels = (scores > 0).long()
    distances = {"linf": scores.abs() / weight.abs().sum(), "l2": scores.abs() / weight.norm()}
    return linear(weight), images, labels, distances


@pytest.mark.parametrize(
    "attack",
    [FGSM(), PGD(10), PGD(10, loss="margin"), PGD(10, loss="dlr"), APGD(30), RayS(200),
     FGSM("l2"), PGD(10, norm="l2"), APGD(30, norm="l2")],
    ids=repr,
)  # fmt: skip
def test_on_a_plane_an_attack_reaches_exactly_what_can_be_reached(attack):
    classifier, images, labels, distances = plane()
    distance = distances[attack.norm]
    for eps in distance.quantile(torch.tensor([0.2, 0.5, 0.9])).tolist():
        found = attack(classifier, images, labels, eps)
        with torch.no_grad():
            fooled = classifier(found).argmax(1) != labels
        clear = (distance - eps).abs() > 0.03 * eps + 1e-3
        assert torch.equal(fooled[clear], (distance < eps)[clear])
        assert clear.sum() > 25


def test_one_fgsm_step_on_a_plane_from_its_definition():
    classifier, images, labels, _ = plane()
    weight = classifier.network.head.weight[1] - classifier.network.head.weight[0]
    towards = torch.where(labels == 1, -1.0, 1.0).view(-1, 1, 1, 1) * weight.sign().view(1, 1, 8, 8)
    found = FGSM(early_stop=False)(classifier, images, labels, 0.1)
    torch.testing.assert_close(found, images + 0.1 * towards)


# Losses and steps from their definitions


def test_losses_of_attacks_from_their_definitions():
    z = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    y = torch.arange(30) % 5
    own = z.gather(1, y[:, None]).squeeze(1)
    others = torch.stack([torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(z, y, strict=True)])
    ordered = z.sort(1, descending=True).values
    torch.testing.assert_close(margin_loss(z, y), others - own)
    torch.testing.assert_close(dlr_loss(z, y), (others - own) / (ordered[:, 0] - ordered[:, 2]))
    torch.testing.assert_close(dlr_loss(z[:, :3], y % 3), margin_loss(z[:, :3], y % 3))
    for loss in ATTACK_LOSSES.values():
        assert loss(z[:, :2], y % 2).shape == (30,)


def test_windows_of_apgd_are_those_of_the_paper():
    p = [0.0, 0.22]
    while p[-1] < 1:
        p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
    looks = checkpoint_intervals(100)
    assert [next(looks) for _ in range(8)] == [round(100 * (b - a)) for a, b in pairwise(p[:9])]


@pytest.mark.parametrize("norm", BALLS)
def test_balls_draw_inside_and_bring_back(norm):
    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    ball = BALLS[norm](images, 0.2)
    start = ball.random(torch.Generator().manual_seed(1))
    far = lengths(start - images, norm)
    assert far.max() <= 0.2 + 1e-6
    assert far.min() > 0.15, "most of a ball of 64 dimensions is near its surface"
    inside = start.clone()
    torch.testing.assert_close(ball.project(inside.clone()), inside)
    outside = ball.project(images + 3 * (start - images))
    assert lengths(outside - images, norm).max() <= 0.2 + 1e-6


def test_a_small_gradient_is_a_direction_too():
    tiny = torch.full((1, 1, 8, 8), 1e-30)
    torch.testing.assert_close(BALLS["l2"].steepest_direction(tiny), torch.full((1, 1, 8, 8), 1 / 8))
    assert torch.equal(BALLS["l2"].steepest_direction(torch.zeros(1, 1, 8, 8)), torch.zeros(1, 1, 8, 8))


# What more strength buys


def test_pgd_beats_fgsm_beats_noise_and_apgd_needs_no_tuning():
    classifier, (images, labels) = trained(), some(count=200)
    left = {
        name: accuracy(classifier, attack(classifier, images, labels, 0.12), labels)
        for name, attack in {
            "noise": RandomNoise(5), "fgsm": FGSM(), "pgd": PGD(40), "apgd": APGD(40), "rays": RayS(150)
        }.items()
    }  # fmt: skip
    assert left["apgd"] <= left["pgd"] + 0.005 <= left["fgsm"] + 0.005
    assert left["fgsm"] < left["noise"] - 0.2
    assert left["pgd"] <= left["rays"] < left["noise"]


def test_more_room_leaves_fewer_right_and_all_of_it_none():
    classifier, (images, labels) = trained(), some(count=200)
    radii = (0.02, 0.06, 0.12, 0.3, 1)
    left = [accuracy(classifier, PGD(20)(classifier, images, labels, eps), labels) for eps in radii]
    assert left == sorted(left, reverse=True)
    assert left[0] > 0.5
    assert left[-1] == 0


def test_restarts_only_add():
    classifier, (images, labels) = trained(), some(count=200)
    right = []
    for restarts in (1, 4):
        found = PGD(3, step=0.02, restarts=restarts)(classifier, images, labels, 0.06)
        with torch.no_grad():
            right.append(classifier(found).argmax(1) == labels)
    assert not (right[1] & ~right[0]).any()
    assert right[1].sum() < right[0].sum()


def test_stopping_early_fools_no_fewer():
    classifier, (images, labels) = trained(), some(count=300)
    early, late = (
        accuracy(classifier, PGD(20, early_stop=stop)(classifier, images, labels, 0.08), labels)
        for stop in (True, False)
    )
    assert late - 0.01 <= early <= late + 1e-6


def test_targeted_attacks_reach_their_target():
    classifier, (images, labels) = trained(), some()
    wanted = (labels + 3) % 10
    found = PGD(20, targeted=True)(classifier, images, wanted, 0.4)
    assert accuracy(classifier, found, wanted) > 0.9
    one = FGSM(targeted=True)(classifier, images, wanted, 0.1)
    assert accuracy(classifier, one, wanted) > accuracy(classifier, images, wanted)


def test_a_universal_perturbation_is_one_and_holds_on_other_images():
    classifier, (images, labels) = trained(), some(count=600)
    change = Universal(60).fit(classifier, images[:300], labels[:300], 0.2)
    found = change(classifier, images[300:], labels[300:], 0.2)
    torch.testing.assert_close(found, (images[300:] + change.change).clamp(0, 1))
    noisy = RandomNoise()(classifier, images[300:], labels[300:], 0.2)
    assert accuracy(classifier, found, labels[300:]) < accuracy(classifier, noisy, labels[300:]) - 0.1
    half = change(classifier, images[300:], labels[300:], 0.1)
    assert (half - images[300:]).abs().max() <= 0.1 + 1e-6


def test_a_classifier_that_draws_and_gathers_is_attacked_as_it_answers():
    """Dropout and batch norm in training mode: the attack sees eval mode, so it equals the attack on eval mode."""
    images, labels = some(count=30)
    training = copy.deepcopy(trained()).train()
    assert torch.equal(PGD(5)(training, images, labels, 0.1), PGD(5)(trained(), images, labels, 0.1))


# Classifiers that answer at random


class Coin(Network):
    """A plane whose answers are turned round by chance in the share ``luck`` of all passes that record gradients."""

    stochastic = True

    def __init__(self, plain, luck):
        super().__init__()
        self.plain, self.luck, self.head = plain, luck, plain.head

    def logits(self, pixels):
        logits = self.plain(pixels)
        if not torch.is_grad_enabled():
            return logits
        turned = torch.rand(len(pixels), 1) < self.luck
        return torch.where(turned, logits.flip(1), logits)


def lucky(luck=0.3):
    """A plane that answers at random where gradients are recorded, its images, labels and distances."""
    classifier, images, labels, distances = plane()
    classifier.network = Coin(classifier.network, luck)
    return classifier.eval(), images, labels, distances["linf"]


@dataclass(frozen=True)
class OneByOne(Attack):
    """A stranger's attack: moves along the sign of a fixed gradient until the answer first turns."""

    steps: int = 10
    norm: str = "linf"
    early_stop: bool = True

    def run(self, classifier, images, labels, eps):
        slope, _, _ = loss_gradient(classifier, images.clone(), labels, margin_loss)
        at, left = images.clone(), torch.ones(len(images), dtype=torch.bool)
        for step in range(1, self.steps + 1):
            at[left] = (images + step / self.steps * eps * slope.sign()).clamp(0, 1)[left]
            if self.early_stop:
                left &= classifier(at).argmax(1) == labels
        return at


FAMILY = {**ATTACKS, "one-by-one": OneByOne}
STOPPING = [one for one in (make() for make in FAMILY.values()) if hasattr(one, "early_stop")]


def test_every_attack_that_stops_early_says_so():
    assert {type(one).__name__ for one in STOPPING} == {"RandomNoise", "FGSM", "PGD", "APGD", "RayS", "OneByOne"}
    for attack in STOPPING:
        assert not attack.without_early_stop().early_stop
    assert Universal().without_early_stop() == Universal()


@pytest.mark.parametrize("attack", [APGD(20), PGD(20), FGSM(), OneByOne()], ids=repr)
def test_a_lucky_draw_does_not_end_an_attack(attack):
    """Images within reach of the plane are misclassified in the end, as they are without the coin."""
    classifier, images, labels, distance = lucky()
    torch.manual_seed(0)
    eps = distance.quantile(0.9).item()
    within = distance < 0.7 * eps
    with frozen_eval(classifier):
        stopped = attack.run(classifier, images, labels, eps)
    went_on = attack(EOTClassifier(classifier, 40), images, labels, eps)
    assert torch.equal(is_correct(classifier, went_on, labels)[within], torch.zeros(int(within.sum()), dtype=bool))
    assert is_correct(classifier, stopped, labels)[within].float().mean() > 0.2, "the coin changes nothing"


@pytest.mark.parametrize("attack", STOPPING, ids=repr)
def test_a_stochastic_classifier_is_attacked_to_the_end(attack):
    classifier, images, labels, _ = lucky()
    torch.manual_seed(0)
    called = attack(classifier, images, labels, 0.05)
    torch.manual_seed(0)
    with frozen_eval(classifier):
        assert torch.equal(called, attack.without_early_stop().run(classifier, images, labels, 0.05))


class Flicker(Network):
    """Answers at random, whether gradients are recorded or not."""

    stochastic = True

    def __init__(self, plain, luck):
        super().__init__()
        self.plain, self.luck, self.head = plain, luck, plain.head

    def logits(self, pixels):
        logits = self.plain(pixels)
        return torch.where(torch.rand(len(pixels), 1) < self.luck, logits.flip(1), logits)


def test_answers_by_luck_do_not_end_a_search_by_answers():
    classifier, images, labels, distances = plane()
    classifier.network = Flicker(classifier.network, 0.2)
    torch.manual_seed(0)
    eps = distances["linf"].quantile(0.5).item()
    for attack in (RayS(200), RandomNoise(3)):
        found = attack(classifier.eval(), images, labels, eps)
        assert not (found == images).flatten(1).all(1).any(), "an image was left alone at the first wrong answer"


def test_a_new_attack_is_one_file_and_one_line(monkeypatch):
    """It is chosen by name, listed, measured over eps and compared by the checks like every other."""
    monkeypatch.setattr("sightline.attacks.ATTACKS", {"one-by-one": OneByOne, **ATTACKS})
    attack = make_attack("one-by-one:5", norm="l2", early_stop=False)
    assert attack == OneByOne(5, "l2", early_stop=False)
    classifier, images, labels, distances = plane()
    found = make_attack("one-by-one:40")(classifier, images, labels, 0.05)
    clear = (distances["linf"] - 0.05).abs() > 0.005
    assert torch.equal(is_correct(classifier, found, labels)[clear], (distances["linf"] > 0.05)[clear])
    assert default_attack(classifier, steps=7) == OneByOne(7)
    assert find_attack("decision", norm="l2") is None
    with pytest.raises(RecipeError, match="eps is 8"):
        attack(classifier, images, labels, 8.5)
    with pytest.raises(GradientError, match="OneByOne follows the gradient"):
        attack(fit_baseline(split(load_dataset("digits", GEOMETRY), seed=1), "decision-tree"), *some(), 0.1)


# The adversarial-robustness-toolbox


@pytest.fixture(scope="module")
def theirs():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("art")
        from art.estimators.classification import PyTorchClassifier

        return PyTorchClassifier(
            copy.deepcopy(trained()),
            loss=torch.nn.CrossEntropyLoss(),
            input_shape=(1, 8, 8),
            nb_classes=10,
            clip_values=(0.0, 1.0),
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("linf", 0.12), ("l2", 0.6)])
def test_fgsm_is_that_of_the_toolbox(theirs, norm, eps):
    from art.attacks.evasion import FastGradientMethod

    images, labels = some(count=1000)
    attack = FastGradientMethod(theirs, norm=np.inf if norm == "linf" else 2, eps=eps)
    other = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    ours = FGSM(norm, early_stop=False)(trained(), images, labels, eps)
    assert ((ours - other).abs() < 1e-5).float().mean() > 0.999
    usual = FGSM(norm)(trained(), images, labels, eps)
    for found in (ours, usual):
        assert abs(accuracy(trained(), found, labels) - accuracy(trained(), other, labels)) <= 0.005


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("norm", "eps", "steps", "starts"), [("linf", 0.05, 10, 0), ("linf", 0.1, 20, 1), ("l2", 0.6, 10, 0)]
)
def test_pgd_leaves_what_that_of_the_toolbox_leaves(theirs, norm, eps, steps, starts):
    from art.attacks.evasion import ProjectedGradientDescent

    images, labels = some(count=1000)
    attack = ProjectedGradientDescent(
        theirs, norm=np.inf if norm == "linf" else 2, eps=eps, eps_step=2.5 * eps / steps, max_iter=steps,
        num_random_init=starts, batch_size=600, verbose=False,
    )  # fmt: skip
    np.random.seed(0)
    other = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    left = accuracy(trained(), other, labels)
    assert 0.05 < left < 0.95, "the comparison says nothing"
    for early_stop in (True, False)[: 2 - starts]:
        ours = PGD(steps, norm=norm, random_start=bool(starts), early_stop=early_stop)
        ours = ours(trained(), images, labels, eps)
        assert abs(accuracy(trained(), ours, labels) - left) <= 0.005


@pytest.mark.filterwarnings("ignore")
def test_apgd_leaves_no_more_than_that_of_the_toolbox(theirs):
    from art.attacks.evasion import AutoProjectedGradientDescent

    images, labels = some(count=250)
    attack = AutoProjectedGradientDescent(
        theirs, norm=np.inf, eps=0.1, eps_step=0.2, max_iter=20, nb_random_init=1, batch_size=600,
        loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    np.random.seed(0)
    other = torch.from_numpy(attack.generate(images.numpy(), labels.numpy()))
    ours = APGD(20)(trained(), images, labels, 0.1)
    assert accuracy(trained(), ours, labels) <= accuracy(trained(), other, labels) + 0.005


# What a user may get wrong


@pytest.fixture(scope="module")
def tree():
    """A baseline: a classifier without gradients."""
    return fit_baseline(split(load_dataset("digits", GEOMETRY), seed=1), "decision-tree")


@pytest.mark.parametrize("attack", [one for one in MADE if one.needs_gradient], ids=repr)
def test_a_classifier_without_gradients_is_refused_in_a_sentence(attack, tree):
    assert not tree.differentiable
    assert trained().differentiable
    with pytest.raises(GradientError, match=r"decision-tree.*--by rays"):
        attack(tree, *some(), 0.1)


@pytest.mark.parametrize("attack", [one for one in MADE if not one.needs_gradient], ids=repr)
def test_attacks_without_gradients_work_on_it(attack, tree):
    images, labels = some()
    found = attack(tree, images, labels, 0.15)
    before, after = accuracy(tree, images, labels), accuracy(tree, found, labels)
    assert (found - images).abs().max() <= 0.15 + 1e-6
    assert after < before - (0.3 if isinstance(attack, RayS) else 0)


@pytest.mark.parametrize(
    ("eps", "norm", "words"),
    [(-0.1, "linf", "eps is -0.1.*from 0 to 1"), (8, "linf", "write 8/255"), (float("nan"), "linf", "eps is nan"),
     (300, "linf", "from 0 to 1"), (8.5, "l2", r"from 0 to 8 .*l2"), (-1, "l2", "eps is -1")],
)  # fmt: skip
@pytest.mark.parametrize("name", ATTACKS)
def test_an_impossible_eps_is_refused(name, eps, norm, words):
    if norm == "l2" and name == "rays":
        pytest.skip("it knows one norm")
    attack = ATTACKS[name]() if norm == "linf" else ATTACKS[name](norm=norm)
    with pytest.raises(RecipeError, match=words):
        attack(trained(), *some(count=2), eps)


@pytest.mark.parametrize(
    ("word", "fields", "words"),
    [
        ("pdg", {}, "no attack called 'pdg'.*'pgd'"),
        ("pgd:0", {}, "steps must be a whole number of at least 1"),
        ("pgd:step=-1", {}, "step must be a number above 0"),
        ("pgd:loss=hinge", {}, "no loss of an attack called 'hinge'"),
        ("pgd:norm=l1", {}, "no norm called 'l1'"),
        ("pgd:stepz=3", {}, "stepz"),
        ("fgsm", {"steps": 4}, "no steps"),
        ("rays", {"norm": "l2"}, "no norm"),
        ("pgd", {"steps": -2}, "steps must be a whole number"),
        ("rays:queries=0", {}, "queries must be"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_in_a_sentence(word, fields, words):
    with pytest.raises(ChoiceError, match=words):
        make_attack(word, **fields)


def test_words_and_numbers_of_pixels():
    assert make_attack("pgd:40:step=2/255", norm="l2", steps=None) == PGD(40, step=2 / 255, norm="l2")
    assert choose({"pair": lambda a, b: (a, b)}, "pair:1/4:b=a/b", "pair") == (0.25, "a/b")
    assert choose({"one": lambda a: a}, "one:1/0", "one") == "1/0"
    assert (parse_eps("8/255"), parse_eps("0.3"), parse_eps(0.1)) == (8 / 255, 0.3, 0.1)
    for nonsense in ("much", "8/0", ""):
        with pytest.raises(RecipeError, match="write a number of pixels"):
            parse_eps(nonsense)


def test_a_perturbation_of_wrong_images_is_none():
    """What is answered wrongly as it is stays as it is."""
    images, labels = some(count=20)
    wrong = (labels + 1) % 10
    for attack in (FGSM(), PGD(5), APGD(5), RayS(20)):
        assert torch.equal(attack(trained(), images, wrong, 0.1), images)


def test_soft_labels_are_attacked_too():
    """Training mixes images: the gradient of a mixture is the mixture of gradients."""
    from sightline.attacks.gradient import cross_entropy_loss, loss_gradient

    images, labels = some(count=10)
    soft = 0.7 * F.one_hot(labels, 10).float() + 0.3 * F.one_hot((labels + 1) % 10, 10).float()
    slopes = [
        loss_gradient(trained(), images.clone(), y, cross_entropy_loss)[0]
        for y in (soft, labels, (labels + 1) % 10)
    ]
    torch.testing.assert_close(slopes[0], 0.7 * slopes[1] + 0.3 * slopes[2])
