"""Explanations against Captum, against loops that follow the papers' formulas, and against what must be so."""

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients as TheirIntegratedGradients
from captum.attr import LayerAttribution, LayerGradCam
from captum.attr import Occlusion as TheirOcclusion
from captum.attr import Saliency as TheirSaliency
from scipy.fft import dct
from scipy.stats import spearmanr
from sklearn.metrics import auc
from torch import nn

from sightline.classifier import Classifier
from sightline.explanation import (
    AttentionRollout,
    GradCam,
    GradCamPlusPlus,
    IntegratedGradients,
    Occlusion,
    Rise,
    Saliency,
    SmoothGrad,
    build_gallery,
    measure_curves,
    rank_correlation,
)
from sightline.explanation.attribution import fill_images, logit_gradient
from sightline.explanation.counterfactual import cosine_basis, log_odds
from sightline.explanation.faithfulness import shuffle_weights
from sightline.inference import embed
from sightline.layers import Network
from sightline.models import Architecture, build, load_weights, parse_architecture
from sightline.preprocessing import Normalise, Preprocessing
from sightline.types import Dataset, Geometry


def classifier_of(model, classes=5, channels=3, size=(32, 32), seed=0, network=None):
    torch.manual_seed(seed)
    plan = (
        Architecture("given", {})
        if network
        else parse_architecture(model, classes=classes, channels=channels, size=size)
    )
    return Classifier(
        Preprocessing([Normalise(mean=[0.5] * channels, std=[0.25] * channels)]),
        network or build(plan),
        architecture=plan,
        classes=[str(k) for k in range(classes)],
        geometry=Geometry(size=size, channels=channels),
    ).eval()


def images_of(count=4, channels=3, size=(32, 32), seed=1):
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))


TARGETS = torch.tensor([0, 4, 2, 2])


class Linear(Network):
    """``logits = W x``: everything about it is known."""

    def __init__(self, channels=1, size=(9, 12), classes=2):
        super().__init__()
        self.head = nn.Linear(channels * size[0] * size[1], classes)

    def logits(self, pixels):
        return self.head(pixels.flatten(1))


def linear(channels=1, size=(9, 12)):
    """A linear classifier of pixels as they are, and the weights of its class 1 as an image."""
    torch.manual_seed(3)
    made = classifier_of("", 2, channels, size, network=Linear(channels, size))
    made.preprocessing = Preprocessing()
    return made, made.network.head.weight.detach()[1].view(1, channels, *size)


# Captum


@pytest.fixture(scope="module")
def trained(shared_weights):
    """A third party's ResNet-20, so that maps are of a network that means something."""
    classifier = classifier_of("resnet20", classes=10)
    load_weights(classifier.network, shared_weights / "resnet20-12fca82f.th")
    return classifier


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("resnet20", "layer3"),
        ("resnet20", "layer2.1.conv1"),
        ("lenet5", "features.conv2"),
        ("fastcnn:width=0.25", "groups.1"),
        ("densenet:depth=22:growth=8", None),
        ("mobilenet:width=0.25", None),
    ],
)
def test_gradcam_is_captums(model, layer):
    from sightline.explanation import choose_cam_layers

    classifier, images = classifier_of(model), images_of()
    ours = GradCam(layer)(classifier, images, TARGETS)
    (name,) = choose_cam_layers(classifier, (3, 32, 32)) if layer is None else (layer,)
    module = dict(classifier.network.named_modules())[name]
    small = LayerGradCam(classifier, module).attribute(images, TARGETS)
    theirs = LayerAttribution.interpolate(small.detach(), (32, 32), interpolate_mode="bilinear")
    assert (ours < 0).any()
    for channel in range(3):
        torch.testing.assert_close(ours[:, channel : channel + 1], theirs, rtol=0, atol=1e-5)


def test_gradcam_and_integrated_gradients_of_a_trained_network_are_captums(trained):
    """Where logits are large, to 1e-5 of the map's own size."""
    images, targets = images_of(), torch.tensor([3, 5, 8, 0])
    small = LayerGradCam(trained, trained.network.layer3).attribute(images, targets)
    theirs = LayerAttribution.interpolate(small.detach(), (32, 32), interpolate_mode="bilinear")
    ours = GradCam()(trained, images, targets)
    torch.testing.assert_close(ours[:, :1], theirs, rtol=0, atol=1e-5 * max(1, float(theirs.abs().max())))
    theirs = TheirIntegratedGradients(trained).attribute(images, target=targets, n_steps=16).detach()
    ours = IntegratedGradients(16)(trained, images, targets)
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5 * max(1, float(theirs.abs().max())))


@pytest.mark.parametrize("model", ["plain-cnn:depth=4:width=8", "lenet5", "vit:depth=2:width=24:heads=2", "mlp"])
@pytest.mark.parametrize(("steps", "baseline"), [(1, 0.0), (20, 0.0), (50, 0.4)])
def test_integrated_gradients_are_captums(model, steps, baseline):
    """The same baseline, steps and quadrature; in float64, so that only the method could differ."""
    classifier = classifier_of(model, size=(16, 16)).double()
    images = images_of(size=(16, 16)).double()
    ours = IntegratedGradients(steps, baseline)(classifier, images, TARGETS)
    oracle = TheirIntegratedGradients(classifier)
    theirs = oracle.attribute(images, torch.full_like(images, baseline), target=TARGETS, n_steps=steps)
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-5)
    assert ours.abs().max() > 1e-3


@pytest.mark.parametrize("model", ["resnet20", "vit:depth=2:width=24:heads=2"])
def test_saliency_is_captums(model):
    classifier, images = classifier_of(model), images_of()
    theirs = TheirSaliency(classifier).attribute(images.clone().requires_grad_(), TARGETS, abs=False)
    torch.testing.assert_close(Saliency()(classifier, images, TARGETS), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("window", "stride", "fill"), [(5, 3, 0.0), (8, 8, 0.5), (32, 1, 0.0)])
def test_occlusion_is_captums(window, stride, fill):
    classifier, images = classifier_of("lenet5"), images_of()
    theirs = TheirOcclusion(classifier).attribute(
        images, (3, window, window), strides=(3, stride, stride), baselines=fill, target=TARGETS
    )
    ours = Occlusion(window, stride, fill)(classifier, images, TARGETS)
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5)


# The papers


def test_integrated_gradients_sum_to_the_change_of_the_logit(trained):
    """Completeness (Sundararajan et al. 2017, proposition 1), better with more steps."""
    images, targets = images_of(2), torch.tensor([3, 5])
    with torch.no_grad():
        start, end = (
            trained(each).gather(1, targets[:, None])[:, 0] for each in (torch.zeros_like(images), images)
        )
    gaps = []
    for steps in (4, 32, 150):
        total = IntegratedGradients(steps)(trained, images, targets).sum((1, 2, 3))
        gaps.append(float((total - (end - start)).abs().max() / (end - start).abs().max()))
    assert gaps[2] < 0.02
    assert gaps[2] < gaps[0]


def test_integrated_gradients_of_a_smooth_network_are_complete():
    classifier, images = classifier_of("vit:depth=2:width=24:heads=2"), images_of()
    found = IntegratedGradients(32)(classifier, images, TARGETS).sum((1, 2, 3))
    with torch.no_grad():
        change = (classifier(images) - classifier(torch.zeros_like(images))).gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(found, change, rtol=1e-4, atol=1e-5)


def test_smoothgrad_is_a_mean_of_gradients():
    classifier, images = classifier_of("lenet5"), images_of(2)
    explainer, targets = SmoothGrad(samples=3, noise=0.2, seed=5), TARGETS[:2]
    from sightline import runtime

    noise = torch.randn(3, 3, 32, 32, generator=runtime.make_generator(5))
    reach = [float(image.max() - image.min()) for image in images]
    expected = [
        sum(logit_gradient(classifier, images[i : i + 1] + 0.2 * reach[i] * n, targets[i : i + 1]) for n in noise)
        / 3
        for i in range(2)
    ]
    torch.testing.assert_close(explainer(classifier, images, targets), torch.cat(expected), rtol=1e-4, atol=1e-6)


def test_gradcam_plus_plus_is_its_formula():
    """Equations 10 and 19 of the paper, place by place, in float64."""
    classifier, images = classifier_of("lenet5").double(), images_of(2).double()
    seen = []
    hook = classifier.network.features.conv2.register_forward_hook(lambda _, __, output: seen.append(output))
    scores = classifier(images).gather(1, TARGETS[:2, None]).sum()
    hook.remove()
    (maps,) = seen
    (slopes,) = torch.autograd.grad(scores, maps)
    expected = torch.zeros(2, *maps.shape[2:], dtype=torch.float64)
    for b in range(2):
        for k in range(maps.shape[1]):
            a, g = maps[b, k].detach(), slopes[b, k]
            weight = 0.0
            for i in range(a.shape[0]):
                for j in range(a.shape[1]):
                    below = 2 * g[i, j] ** 2 + (a * g[i, j] ** 3).sum()
                    weight += float(g[i, j] ** 2 / below * max(g[i, j], 0)) if below else 0.0
            expected[b] += weight * a
    large = nn.functional.interpolate(expected[:, None], (32, 32), mode="bilinear", align_corners=False)
    ours = GradCamPlusPlus("features.conv2")(classifier.float(), images.float(), TARGETS[:2])
    scale = float(large.abs().max())
    torch.testing.assert_close(ours[:, :1].double() / scale, large / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("pool", "size"), [("mean", (16, 16)), ("class", (16, 16)), ("class", (18, 26))])
def test_rollout_is_its_formula(pool, size):
    """Equation 1 of the paper from the layers' own projections; the class token's row, or the mean of all."""
    classifier = classifier_of(f"vit:depth=3:width=24:heads=2:patch=4:pool={pool}", size=size)
    images, given = images_of(2, size=size), []
    hooks = [
        block.attn.register_forward_pre_hook(lambda _, x: given.append(x[0]))
        for block in classifier.network.blocks
    ]
    with torch.no_grad():
        classifier(images)
    for hook in hooks:
        hook.remove()
    whole = torch.eye(given[0].shape[1]).expand(2, -1, -1)
    for block, x in zip(classifier.network.blocks, given, strict=True):
        q, k, _ = block.attn.qkv(x).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        attention = torch.softmax(q @ k.transpose(2, 3) / 12**0.5, -1).mean(1)
        mixed = 0.5 * attention + 0.5 * torch.eye(attention.shape[1])
        whole = (mixed / mixed.sum(-1, keepdim=True)) @ whole
    row = whole[:, 0, 1:] if pool == "class" else whole.mean(1)
    grid = classifier.network.grid
    maps = nn.functional.interpolate(
        row.detach().unflatten(1, grid)[:, None], (grid[0] * 4, grid[1] * 4), mode="bilinear", align_corners=False
    )[:, :, : size[0], : size[1]]
    expected = maps / maps.mean((2, 3), keepdim=True) - 1
    ours = AttentionRollout()(classifier, images, TARGETS[:2])
    torch.testing.assert_close(ours[:, :1], expected, rtol=1e-4, atol=1e-5)


def test_rollout_by_class_is_its_formula():
    """Equations 5 and 6 of Chefer et al., from a forward pass written out with its attention as variables."""
    classifier = classifier_of("vit:depth=2:width=24:heads=2:patch=4:pool=class", size=(16, 16))
    images, network, seen = images_of(2, size=(16, 16)), classifier.network, []
    x = network.patch_embed["proj"](classifier.preprocessing(images)).flatten(2).transpose(1, 2)
    x = torch.cat([network.cls_token.expand(2, -1, -1), x], 1) + network.pos_embed
    for block in network.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        seen.append(torch.softmax(q @ k.transpose(2, 3) / 12**0.5, -1))
        x = x + block.attn.proj((seen[-1] @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    logits = network.head(network.norm(x)[:, 0])
    torch.testing.assert_close(logits, classifier(images))
    grads = torch.autograd.grad(logits.gather(1, TARGETS[:2, None]).sum(), seen)
    whole = torch.eye(17).expand(2, -1, -1)
    for attention, grad in zip(seen, grads, strict=True):
        whole = whole + (attention * grad).clamp(min=0).mean(1) @ whole
    row = whole[:, 0, 1:].detach().unflatten(1, (4, 4))[:, None]
    maps = nn.functional.interpolate(row, (16, 16), mode="bilinear", align_corners=False)
    ours = AttentionRollout(gradient=True)(classifier, images, TARGETS[:2])
    torch.testing.assert_close(ours[:, :1], maps / maps.mean((2, 3), keepdim=True) - 1, rtol=1e-3, atol=1e-4)


def test_rollout_sees_the_attention_of_timm():
    """timm's own attention, worked out in the open by its other way, hooked after its softmax."""
    classifier, images = classifier_of("timm:test_vit", size=(64, 64)), images_of(2, size=(64, 64))
    ours = AttentionRollout()(classifier, images, TARGETS[:2])
    seen, hooks = [], []
    for block in classifier.network.body.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, output: seen.append(output.mean(1))))
    with torch.no_grad():
        classifier(images)
    for hook in hooks:
        hook.remove()
    whole = torch.eye(seen[0].shape[1])
    for attention in seen:
        whole = (0.5 * attention + 0.5 * torch.eye(attention.shape[1])) @ whole
    row = whole[:, 0, 1:].unflatten(1, (4, 4))[:, None]
    maps = nn.functional.interpolate(row, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours[:, :1], maps / maps.mean((2, 3), keepdim=True) - 1, rtol=1e-4, atol=1e-4)


# What must be so of a linear classifier


@pytest.mark.parametrize("channels", [1, 3])
def test_a_linear_classifier_is_explained_exactly(channels):
    classifier, weights = linear(channels)
    images, targets = images_of(2, channels, (9, 12)), torch.ones(2, dtype=torch.long)
    torch.testing.assert_close(Saliency()(classifier, images, targets), weights.expand_as(images))
    torch.testing.assert_close(SmoothGrad(3)(classifier, images, targets), weights.expand_as(images))
    torch.testing.assert_close(IntegratedGradients(1)(classifier, images, targets), weights * images)
    torch.testing.assert_close(
        IntegratedGradients(3, 0.25)(classifier, images, targets), weights * (images - 0.25), atol=1e-6, rtol=1e-4
    )
    parts = (weights * images).sum(1, keepdim=True).expand_as(images)
    torch.testing.assert_close(Occlusion(1, 1, 0.0)(classifier, images, targets), parts, atol=1e-5, rtol=1e-4)


def test_rise_is_the_slope_of_the_logit_over_each_pixel():
    """Against numpy's least squares, pixel by pixel, from masks that the explainer draws."""
    classifier, _ = linear()
    images, targets = images_of(2, 1, (9, 12)), torch.ones(2, dtype=torch.long)
    explainer = Rise(masks=80, cells=3, fill=0.0)
    masks = explainer.prepare(classifier, images)
    assert 0 <= masks.min() < 0.1
    assert 0.9 < masks.max() <= 1
    assert abs(float(masks.mean()) - 0.5) < 0.1
    with torch.no_grad():
        logits = torch.stack([classifier(images * mask)[:, 1] for mask in masks]).double().numpy()
    ours = explainer(classifier, images, targets)
    for b in range(2):
        for i, j in ((0, 0), (4, 7), (8, 11)):
            slope = np.polyfit(masks[:, 0, i, j].double().numpy(), logits[:, b], 1)[0]
            assert float(ours[b, 0, i, j]) == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_rise_finds_the_pixels_that_count():
    """A classifier that sums one quarter of the image: the slope there is above all others."""
    classifier, _ = linear(size=(16, 16))
    with torch.no_grad():
        classifier.network.head.weight.zero_()
        classifier.network.head.weight[1].view(16, 16)[:8, 8:] = 1
    found = Rise(masks=800, cells=4, fill=0.0)(classifier, torch.ones(1, 1, 16, 16), torch.tensor([1]))[0, 0]
    quarter = torch.zeros(16, 16, dtype=torch.bool)
    quarter[:8, 8:] = True
    assert found[quarter].mean() > 4 * found[~quarter].abs().mean()


# Tests of the maps


def test_curves_are_those_of_a_loop():
    """Place after place by sorting and blurring, with scikit-learn's area."""
    classifier, images = classifier_of("lenet5", channels=1, size=(12, 12)), images_of(2, 1, (12, 12))
    found = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(9))
    ours = measure_curves(classifier, images, TARGETS[:2], found, steps=5)
    without = fill_images(images, "blur")
    for b in range(2):
        order = np.argsort(-found[b].flatten().numpy(), kind="stable")
        for name, base, other in (("deletion", images, without), ("insertion", without, images)):
            values = []
            for step in range(6):
                gone = order[: round(step / 5 * 144)]
                mixed = base[b].clone().flatten(1)
                mixed[:, gone] = other[b].flatten(1)[:, gone]
                with torch.no_grad():
                    answer = classifier.probabilities(mixed.view(1, 1, 12, 12))
                values.append(float(answer[0, TARGETS[b]]))
            mine = ours.deletion if name == "deletion" else ours.insertion
            np.testing.assert_allclose(mine[b], values, atol=1e-5)
            area = ours.deletion_area if name == "deletion" else ours.insertion_area
            assert area[b] == pytest.approx(auc(np.linspace(0, 1, 6), values), abs=1e-5)


def test_what_is_taken_away_is_blurred_as_scipy_does():
    from scipy.ndimage import gaussian_filter

    images = images_of(1, 1, (16, 24))
    expected = gaussian_filter(images[0, 0].double().numpy(), 4.0, mode="reflect", truncate=12)
    np.testing.assert_allclose(fill_images(images, "blur")[0, 0].numpy(), expected, atol=1e-5)
    assert torch.allclose(fill_images(images, "mean"), images.mean())
    assert (fill_images(images, 0.25) == 0.25).all()


def test_similarity_is_spearmans():
    one, other = (torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    one[0, :4] = 0  # ties
    other = other + one
    expected = [spearmanr(a.flatten().numpy(), b.flatten().numpy())[0] for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(rank_correlation(one, other), expected, atol=1e-10)
    flat = torch.zeros(1, 3, 3)
    assert rank_correlation(flat, flat).tolist() == [1.0]
    assert rank_correlation(flat, one[1:2, :3, :3]).tolist() == [0.0]


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    classifier = classifier_of("resnet20")
    other = shuffle_weights(classifier)
    for (name, one), (_, two) in zip(classifier.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values), name
        assert torch.equal(one, two) == (one.ndim < 2), name


def test_cosines_and_odds_are_what_they_are_called():
    images = torch.zeros(1, 1, 10, 14)
    down, across = cosine_basis(images, 6)
    np.testing.assert_allclose(down.numpy(), dct(np.eye(10), axis=0, norm="ortho")[:6], atol=1e-6)
    np.testing.assert_allclose(across.numpy(), dct(np.eye(14), axis=0, norm="ortho")[:6], atol=1e-6)
    classifier = classifier_of("lenet5")
    classifier.temperature = 1.7
    with torch.no_grad():
        p = classifier.probabilities(images_of()).gather(1, TARGETS[:, None])[:, 0]
        found = log_odds(classifier, images_of(), TARGETS)
    torch.testing.assert_close(found, torch.log(p / (1 - p)), rtol=1e-3, atol=1e-4)


# Neighbours


def test_neighbours_are_those_of_scikit_learn():
    from sklearn.neighbors import NearestNeighbors

    classifier = classifier_of("lenet5", classes=3, channels=1, size=(12, 12))
    rng = np.random.default_rng(0)
    dataset = Dataset(
        pixels=rng.integers(0, 256, (80, 12, 12, 1), dtype=np.uint8),
        rows=np.arange(80),
        labels=rng.integers(3, size=80),
        classes=("2", "0", "1"),  # in another order than the classifier's
        files=np.array([f"{i}.png" for i in range(80)]),
        digests=np.arange(80, dtype=np.uint64),
        geometry=classifier.geometry,
        fingerprint="f",
    )
    near = build_gallery(classifier, dataset)
    assert near.dataset.classes == classifier.classes
    names = np.asarray(dataset.classes)[dataset.labels]
    assert [near.dataset.classes[k] for k in near.dataset.labels] == names.tolist()
    features = torch.from_numpy(embed(classifier, dataset.subset(np.arange(5))))
    oracle = NearestNeighbors(n_neighbors=4).fit(embed(classifier, dataset))
    distance, index = oracle.kneighbors(features.numpy())
    found = near.nearest(features, 4)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, atol=1e-4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    own = near.nearest(features, 90, labels)
    assert own.index.shape == (5, 80)
    for row, label in zip(own.index, labels, strict=True):
        kept = row[row >= 0]
        assert set(near.dataset.labels[kept]) == {int(label)}
        assert len(kept) == (near.dataset.labels == int(label)).sum()
    sample = build_gallery(classifier, dataset, most=30)
    assert abs(len(sample.features) - 30) <= 2
    assert set(np.unique(sample.dataset.labels)) == {0, 1, 2}
