"""A counterfactual turns the answer smoothly, and leads to the class, where an adversarial example does not."""

import numpy as np
import pytest
import torch

from sightline.classifier import frozen_eval
from sightline.data.loader import to_tensor
from sightline.errors import ChoiceError, GradientError
from sightline.explanation import build_gallery, find_counterfactuals
from sightline.training import Recipe, reopen, train
from sightline.types import Splits


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small trained network, its gallery, and test images it answers rightly with the next digit as target."""
    folder = tmp_path_factory.mktemp("counterfactual") / "run"
    recipe = Recipe(
        model="lenet5",
        size=16,
        epochs=5,
        batch_size=32,
        precision="float32",
        cpu_replicas=1,
        memory_format="contiguous",
    )
    run = reopen(train("digits", recipe, out=folder).folder)
    test = run.splits.test
    pixels = to_tensor(test[slice(0, 60)])
    with torch.no_grad():
        answers = run.classifier(pixels).argmax(1)
    right = np.flatnonzero(answers.numpy() == test.labels[:60])[:24]
    images = pixels[right]
    targets = (answers[right] + 1) % 10
    return run.classifier, build_gallery(run.classifier, run.splits.train), images, targets


def adversarial(classifier, images, targets, steps=120, rate=0.03):
    """The smallest change in L2 found that makes the target as likely: plain gradient descent on the pixels."""
    change = torch.zeros_like(images, requires_grad=True)
    best, least = images.clone(), torch.full((len(images),), torch.inf)
    optimizer = torch.optim.Adam([change], rate)
    with frozen_eval(classifier, weight_noise=False):
        for _ in range(steps):
            changed = (images + change).clamp(0, 1)
            p = classifier.probabilities(changed).gather(1, targets[:, None])[:, 0]
            odds = torch.log(p.clamp(min=1e-12)) - torch.log1p(-p.clamp(max=1 - 1e-7))
            size = (changed - images).flatten(1).norm(dim=1)
            with torch.no_grad():
                better = (p >= 0.55) & (size < least)
                least = torch.where(better, size, least)
                best = torch.where(better[:, None, None, None], changed, best)
            loss = torch.relu(0.4 - odds).sum() + size.square().sum() * 0.2
            (change.grad,) = torch.autograd.grad(loss, change)
            optimizer.step()
    assert least.isfinite().float().mean() > 0.9
    return best.detach(), least.isfinite()


def high_share(change):
    """Share of the change's energy above a quarter of the sampling rate, in either direction."""
    spectrum = torch.fft.fft2(change).abs().square().sum((0, 1))
    side = spectrum.shape[0]
    high = torch.fft.fftfreq(side).abs() > 0.25
    return float(spectrum[high[:, None] | high[None]].sum() / spectrum.sum())


def test_it_reaches_the_class_smoothly_and_nearer_than_an_adversary(digits):
    classifier, near, images, targets = digits
    found = find_counterfactuals(classifier, images, targets, near)
    assert found.reached.mean() > 0.95
    attacked, broken = adversarial(classifier, images, targets)
    with torch.no_grad():
        ours, theirs, start = (
            near.distance(classifier.features(each).float(), targets) for each in (found.images, attacked, images)
        )
    np.testing.assert_allclose(found.after, ours, rtol=1e-6)
    np.testing.assert_allclose(found.before, start, rtol=1e-6)
    both = found.reached & broken.numpy()
    assert (ours[both] < theirs[both]).mean() > 0.9
    assert ours[both].mean() < 0.9 * theirs[both].mean()
    smooth, rough = (high_share(changed - images) for changed in (found.images, attacked))
    assert smooth < 0.5 * rough


def test_what_is_said_is_so_of_the_image_in_eight_bits(digits):
    classifier, near, images, targets = digits
    found = find_counterfactuals(classifier, images[:8], targets[:8], near, steps=60)
    pixels = found.images * 255
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    with torch.no_grad():
        p = classifier.probabilities(found.images).gather(1, targets[:8, None])[:, 0]
    np.testing.assert_allclose(found.probabilities, p.numpy(), atol=1e-6)
    length = (found.images - images[:8]).flatten(1).norm(dim=1)
    np.testing.assert_allclose(found.change, length.numpy(), rtol=1e-5)
    assert (found.reached == (found.probabilities >= 0.5)).all()


def test_the_nearest_real_image_is_of_the_class_and_the_nearest(digits):
    classifier, near, images, targets = digits
    found = find_counterfactuals(classifier, images[:8], targets[:8], near, steps=1)
    with torch.no_grad():
        features = classifier.features(images[:8]).float()
    for i, k in enumerate(targets[:8].tolist()):
        own = np.flatnonzero(near.dataset.labels == k)
        distances = (near.features[own] - features[i]).norm(dim=1)
        assert found.nearest[i] == own[int(distances.argmin())]


def test_each_image_has_its_own_change(digits):
    classifier, near, images, targets = digits
    whole = find_counterfactuals(classifier, images[:3], targets[:3], near, steps=40)
    for i in range(3):
        single = find_counterfactuals(classifier, images[i : i + 1], targets[i : i + 1], near, steps=40)
        torch.testing.assert_close(single.images[0], whole.images[i], atol=0.03, rtol=0)
    assert np.isfinite(whole.after).all()


def test_without_training_images_it_still_turns_the_answer(digits):
    classifier, _, images, targets = digits
    found = find_counterfactuals(classifier, images[:8], targets[:8], steps=120)
    assert found.reached.mean() > 0.8
    assert np.isnan(found.after).all()
    assert (found.nearest == -1).all()


def test_the_classifier_is_left_as_it_was(digits):
    classifier, near, images, targets = digits
    classifier.train()
    before = {name: t.clone() for name, t in classifier.state_dict().items()}
    find_counterfactuals(classifier, images[:2], targets[:2], near, steps=3)
    assert all(module.training for module in classifier.modules())
    assert all(p.grad is None for p in classifier.parameters())
    assert all(torch.equal(t, before[name]) for name, t in classifier.state_dict().items())
    classifier.eval()


def test_impossible_wishes_are_sentences(digits):
    classifier, near, images, _ = digits
    with pytest.raises(ChoiceError, match="go from 0 to 9"):
        find_counterfactuals(classifier, images[:1], torch.tensor([10]), near)
    from sightline.baselines import fit_baseline

    few = near.dataset.subset(np.arange(200))
    with pytest.raises(GradientError, match="A counterfactual follows the gradient"):
        find_counterfactuals(fit_baseline(Splits(few, few, few), "naive-bayes"), images[:1], torch.tensor([1]))
