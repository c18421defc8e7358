"""The networks of the papers against torchvision's, timm's and published counts, and formulas written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from helpers.tiny_classifiers import WORDS
from sightline.errors import BundleError, ChoiceError, RecipeError
from sightline.layers import ATTENTIONS
from sightline.models import build, count_multiply_adds, count_parameters, load_weights, parse_architecture
from sightline.models.timm_network import import_timm

SIDE = (32, 32)


def network_of(name, classes=10, channels=3, size=SIDE, seed=0):
    torch.manual_seed(seed)
    return build(parse_architecture(name, classes=classes, channels=channels, size=size))


def on_meta(name, classes=10, channels=3, size=SIDE):
    with torch.device("meta"):
        return network_of(name, classes, channels, size)


@pytest.fixture(scope="module")
def theirs():
    """torchvision's models."""
    import_timm()
    from torchvision import models

    return models


# Counts.

COUNTS = [
    # formulas.md 4.2: torchvision's page, 61,100,840 with 1,000 classes.
    ("alexnet", 1000, 3, (224, 224), 61_100_840),
    ("alexnet", 10, 3, (224, 224), 57_044_810),
    ("alexnet", 10, 3, SIDE, 57_044_810),
    ("alexnet", 10, 1, (28, 28), 57_044_810 - 2 * 64 * 121),
    # The sums of formulas.md 4.2's definition.
    (
        "alexnet-small",
        10,
        3,
        SIDE,
        (28 * 64 - 64 + 64)
        + (577 * 192 + 1729 * 384 + 3457 * 256 + 2305 * 256)
        + (4097 * 1024 + 1025 * 512 + 513 * 10),
    ),
    # chenyaofo/pytorch-cifar-models: 9.76, 9.94 and 15.25 million. torchvision's convolutions and norms, then
    # twice 512 x 512 and the head.
    ("vgg11", 10, 3, SIDE, 132_868_840 - 123_642_856 + 2 * 513 * 512 + 5_130),
    ("vgg13", 10, 3, SIDE, 133_053_736 - 123_642_856 + 2 * 513 * 512 + 5_130),
    ("vgg16", 10, 3, SIDE, 15_253_578),
    # Zhang et al. 2017, table 1.
    ("inception", 10, 3, SIDE, 1_649_402),
    # Huang et al. 2017, table 2: 0.8 million; the authors' and the usual implementations have this.
    ("densenet", 10, 3, SIDE, 769_162),
    ("densenet:depth=40:growth=12", 10, 3, SIDE, 176_122),
    # torchvision's 3,504,872 and 5,288,548 with other heads.
    ("mobilenet", 10, 3, SIDE, 3_504_872 - 990 * 1281),
    ("mobilenet", 1000, 3, (224, 224), 3_504_872),
    ("efficientnet", 10, 3, SIDE, 5_288_548 - 990 * 1281),
    ("efficientnet", 1000, 3, (224, 224), 5_288_548),
    # DeiT-tiny and the ViT of the same form: 5.72 million.
    ("vit:patch=16:depth=12:width=192:heads=3:pool=class", 1000, 3, (224, 224), 5_717_416),
    # Patches, positions, six blocks of 12 D^2 + 13 D, norm, head.
    ("vit", 10, 3, SIDE, 49 * 192 + 64 * 192 + 6 * (12 * 192**2 + 13 * 192) + 384 + 1_930),
    ("timm:resnet50", 1000, 3, (64, 64), 25_557_032),
    # Squeeze and excite in nine blocks: two matrices of C x 4 and their biases.
    ("resnet20:attention=se", 10, 3, SIDE, 269_722 + 3 * sum(9 * c + 4 for c in (16, 32, 64))),
    ("resnet20:attention=cbam", 10, 3, SIDE, 269_722 + 3 * sum(9 * c + 4 + 99 for c in (16, 32, 64))),
    (
        "resnet18:attention=se",
        10,
        3,
        SIDE,
        11_173_962 + 2 * (64 * 9 + 4 + 128 * 17 + 8 + 256 * 33 + 16 + 512 * 65 + 32),
    ),
]


@pytest.mark.parametrize(("name", "classes", "channels", "size", "count"), COUNTS)
def test_published_parameter_counts(name, classes, channels, size, count):
    assert count_parameters(on_meta(name, classes, channels, size)) == count


WORK = [
    # torchvision's page: 0.71 and 0.30 GFLOPS (multiply-adds).
    ("alexnet", 1000, (224, 224), 714.19),
    ("mobilenet", 1000, (224, 224), 300.77),
    # chenyaofo/pytorch-cifar-models.
    ("vgg11", 10, SIDE, 153.29),
    ("vgg13", 10, SIDE, 228.79),
    ("vgg16", 10, SIDE, 313.73),
    ("mobilenet", 10, SIDE, 87.98),
    # Patches; in each block 12 T D^2, and 2 T^2 D for the products of attention; the head.
    ("vit", 10, SIDE, (64 * 48 * 192 + 6 * (12 * 64 * 192**2 + 2 * 64**2 * 192) + 1_920) / 1e6),
]


@pytest.mark.parametrize(("name", "classes", "size", "millions"), WORK)
def test_published_multiply_adds(name, classes, size, millions):
    assert count_multiply_adds(on_meta(name, classes, 3, size), 3, size) / 1e6 == pytest.approx(
        millions, abs=0.005
    )


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
def test_multiply_adds_equal_torchvisions(name, theirs):
    """By torch's own counter; large images are given the published strides."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs.get_model(name, weights=None).eval()(torch.rand(1, 3, 96, 96))
    ours = on_meta(name.partition("_")[0], 1000, size=(96, 96))
    assert 2 * count_multiply_adds(ours, 3, (96, 96)) == counter.get_total_flops()


# Other people's weights, and the same answers with them.


def random_state(network, seed=0):
    """Numbers under a third party's names and shapes, sane ones for norms."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
        elif name.endswith("running_var"):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
        else:
            scale = 1 / math.sqrt(max(tensor[0].numel(), 1)) if tensor.ndim > 1 else 0.1
            state[name] = scale * torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1 and name.endswith("weight"):
                state[name] += 1
    return state


LAYOUTS = {
    "alexnet": ("alexnet", 64),
    "vgg11_bn": ("vgg11", 32),
    "mobilenet_v2": ("mobilenet", 96),
    "efficientnet_b0": ("efficientnet", 96),
}
"""torchvision's name -> ours, and a size at which both are the same network."""


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v2", "efficientnet_b0"])
def test_torchvisions_weights_give_its_logits(name, theirs, tmp_path):
    """Random numbers in torchvision's layout; its own weights are fetched nowhere."""
    word, side = LAYOUTS[name]
    other = theirs.get_model(name, weights=None, num_classes=7).eval()
    other.load_state_dict(random_state(other))
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    ours = network_of(word, classes=7, size=(side, side)).eval()
    report = load_weights(ours, tmp_path / "w.safetensors")
    assert report.initial == report.ignored == ()
    pixels = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = other(pixels)
        assert torch.allclose(ours(pixels), expected, rtol=1e-4, atol=1e-4 * expected.abs().max())


def test_alexnets_keys_are_those_of_torchvision(theirs, tmp_path):
    """All 16 names and shapes; with other classes the last layer alone starts fresh."""
    with torch.device("meta"):
        published = theirs.get_model("alexnet", weights=None)
    shapes = {name: t.shape for name, t in published.state_dict().items()}
    assert next(iter(shapes)) == "features.0.weight"
    assert list(shapes)[-1] == "classifier.6.bias"
    ours = {name: t.shape for name, t in on_meta("alexnet", 1000, size=(224, 224)).state_dict().items()}
    renamed = {name.replace("classifier.6.", "head."): shape for name, shape in shapes.items()}
    assert ours == renamed
    assert sum(shape.numel() for shape in shapes.values()) == 61_100_840
    small = network_of("alexnet:width=0.05", classes=1000)
    state = {name.replace("head.", "classifier.6."): tensor for name, tensor in small.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    target = network_of("alexnet:width=0.05", classes=10, seed=1)
    fresh = target.head.weight.clone()
    assert load_weights(target, tmp_path / "w.safetensors").initial == ("head.weight", "head.bias")
    assert torch.equal(target.head.weight, fresh)
    assert torch.equal(target.features[0].weight, small.features[0].weight)


def test_vggs_convolutions_are_those_of_torchvision(theirs):
    for name in ("vgg11", "vgg13", "vgg16"):
        with torch.device("meta"):
            features = theirs.get_model(f"{name}_bn", weights=None).features
        ours = {n: t.shape for n, t in on_meta(name).features.state_dict().items()}
        assert ours == {n: t.shape for n, t in features.state_dict().items()}


def test_vgg_with_the_keys_of_the_usual_small_one(tmp_path):
    """chenyaofo/pytorch-cifar-models: features, then classifier.0, .3 and .6."""
    source, target = (network_of("vgg11:width=0.25", seed=seed) for seed in (1, 2))
    state = {name.replace("head.", "classifier.6."): tensor for name, tensor in source.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pt")
    load_weights(target, tmp_path / "vgg.pt")
    assert all(torch.equal(t, source.state_dict()[name]) for name, t in target.state_dict().items())


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_vit_is_timms(pool, tmp_path):
    """The same weights, the same answers, at a size of whole patches."""
    from timm.models.vision_transformer import VisionTransformer

    other = VisionTransformer(
        img_size=24,
        patch_size=4,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=5,
        global_pool="token" if pool == "class" else "avg",
        class_token=pool == "class",
        fc_norm=False,
    ).eval()
    other.load_state_dict(random_state(other))
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    ours = network_of(f"vit:depth=3:width=48:heads=3:pool={pool}", classes=5, size=(24, 24)).eval()
    load_weights(ours, tmp_path / "w.safetensors")
    pixels = torch.rand(3, 3, 24, 24)
    with torch.no_grad():
        assert torch.allclose(ours(pixels), other(pixels), rtol=1e-4, atol=1e-5)


def test_densenet_is_torchvisions_with_three_stages(theirs):
    """The same layers in the same order, so the same shapes; the stem is that for small images."""
    made = theirs.DenseNet(growth_rate=12, block_config=(16, 16, 16), num_init_features=24, num_classes=10)
    stem = {"features.conv0", "features.norm0"}
    given = [tuple(p.shape) for n, p in made.named_parameters() if n.rpartition(".")[0] not in stem]
    ours = [tuple(p.shape) for n, p in on_meta("densenet").named_parameters() if not n.startswith("stem")]
    assert ours == given


def test_densenet_layers_get_all_features_before_them():
    network = network_of("densenet:depth=22:growth=6")
    widths = [layer.norm1.num_features for layer in network.features if hasattr(layer, "norm1")]
    assert widths == [12, 18, 24, 15, 21, 27, 16, 22, 28]
    x = torch.rand(2, 12, 6, 6)
    assert torch.equal(network.features[0](x)[:, :12], x)


def test_inception_has_filters_of_two_sizes():
    network = network_of("inception")
    seen = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda m, _, out, n=name: seen.update({n: (m.kernel_size, out.shape[1:])})
            )
    with torch.no_grad():
        network.eval()(torch.rand(1, 3, 28, 28))
    assert seen["features.0.ones.0"] == ((1, 1), (32, 28, 28))
    assert seen["features.0.threes.0"] == ((3, 3), (32, 28, 28))
    assert seen["features.7.threes.0"] == ((3, 3), (96, 7, 7))
    assert len(seen) == 1 + 8 * 2 + 2


# Attention, written out.


def dense(x, layer):
    return x @ layer.weight[:, :, 0, 0].T + layer.bias


def test_squeeze_and_excite_is_its_formula():
    torch.manual_seed(0)
    block, x = ATTENTIONS["se"](8), torch.randn(3, 8, 5, 4)
    scale = torch.sigmoid(dense(F.relu(dense(x.mean((2, 3)), block.fc1)), block.fc2))
    expected = torch.stack([x[b] * scale[b][:, None, None] for b in range(3)])
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_cbam_is_its_formula():
    torch.manual_seed(0)
    block, x = ATTENTIONS["cbam"](8), torch.randn(2, 8, 9, 7)
    expected = torch.empty_like(x)
    for b, one in enumerate(x):
        seen = [one.flatten(1).mean(1), one.flatten(1).max(1).values]
        channel = torch.sigmoid(sum(dense(F.relu(dense(v, block.fc1)), block.fc2) for v in seen))
        scaled = one * channel[:, None, None]
        both = F.pad(torch.stack([scaled.mean(0), scaled.max(0).values]), (3, 3, 3, 3))
        for i in range(9):
            for j in range(7):
                window = both[:, i : i + 7, j : j + 7]
                gate = torch.sigmoid((window * block.where.weight[0]).sum() + block.where.bias[0])
                expected[b, :, i, j] = scaled[:, i, j] * gate
    assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_factors_are_below_one(name):
    """Every factor is in (0, 1)."""
    torch.manual_seed(1)
    x = torch.randn(2, 16, 6, 6)
    weighted = ATTENTIONS[name](16)(x)
    assert weighted.shape == x.shape
    assert (weighted.abs() <= x.abs()).all()
    assert (weighted * x >= 0).all()
    assert torch.equal(weighted, x) == (name == "none")


def test_attention_is_in_every_block():
    for name, blocks in (("resnet20", 9), ("resnet18", 8)):
        plain, se = network_of(name), network_of(f"{name}:attention=se")
        assert sum(type(m).__name__ == "SqueezeExcite" for m in se.modules()) == blocks
        assert set(plain.state_dict()) < set(se.state_dict())
    with pytest.raises(ChoiceError, match=r"no attention called 'cbm'\. Did you mean 'cbam'"):
        network_of("resnet20:attention=cbm")


# What they do to images.


def test_vit_positions_are_resampled_for_another_grid():
    network = network_of("vit:depth=1:width=24:heads=2:pool=class", size=(16, 16)).eval()
    assert network.positions((4, 4)) is network.pos_embed
    with torch.no_grad():
        network.pos_embed.copy_(torch.arange(17.0)[None, :, None].expand(-1, -1, 24))
    moved = network.positions((8, 2))
    assert moved.shape == (1, 17, 24)
    assert torch.equal(moved[:, 0], network.pos_embed[:, 0])
    table = moved[0, 1:, 0].view(8, 2)
    assert (table.diff(dim=0) >= 0).all()
    assert (table.diff(dim=1) > 0).all()
    assert network(torch.rand(2, 3, 32, 8)).shape == (2, 10)


def test_vit_pads_to_whole_patches():
    network = network_of("vit:depth=1:width=24:heads=2", size=(30, 45)).eval()
    pixels = torch.rand(2, 3, 30, 45)
    padded = torch.zeros(2, 3, 32, 48)
    padded[:, :, :30, :45] = pixels
    with torch.no_grad():
        assert torch.equal(network(pixels), network(padded))
    assert network.notes == ("vit pads images of 30 x 45 pixels to 32 x 48, whole patches of 4 x 4.",)


NOTES = [
    ("alexnet:width=0.05", 28, "enlarges images of 28 x 28 pixels to a shorter side of 64"),
    ("vgg11:width=0.25", 224, "shrunk by 4 before the first block"),
    ("alexnet-small:width=0.25", 100, "shrunk by 2"),
    ("inception:width=0.25", 400, "shrunk by 8"),
    ("resnet20", 96, "shrunk by 2"),
    ("vit:depth=1", 30, "pads images"),
]


@pytest.mark.parametrize(("name", "side", "note"), NOTES)
def test_networks_note_what_they_do_to_images(name, side, note):
    (said,) = network_of(name, size=(side, side)).notes
    assert note in said
    assert said.endswith(".")
    assert network_of(name.partition(":attention")[0], size=(64, 64)).notes == ()


def test_notes_on_images_are_shown_when_training_starts(tmp_path):
    from sightline.training import Recipe, train

    recipe = Recipe(model="alexnet:width=0.02", size=28, limit=60, epochs=1, batch_size=16)
    run = train("digits", recipe, out=tmp_path / "run")
    assert any("enlarges images of 28 x 28" in note for note in run.notes)


def test_downscaling_notes_are_right():
    for name in ("vgg11:width=0.25", "inception:width=0.25", "densenet:depth=10", "alexnet-small:width=0.25"):
        network, seen = network_of(name, size=(224, 224)).eval(), []
        kinds = (torch.nn.Conv2d,)
        layers = [m for m in network.modules() if isinstance(m, kinds)]
        layers[1].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0].shape[-1]))
        with torch.no_grad():
            network(torch.rand(1, 3, 224, 224))
        assert seen[0] == (28 if name.startswith(("alexnet", "vgg11")) else 56)  # their first pool follows at once


@pytest.mark.parametrize("word", WORDS)
def test_bfloat16_gives_nearly_the_same_answers(word):
    network, pixels = network_of(word, size=(16, 16)).eval(), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        plain = network(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(pixels)
    assert (rough.float() - plain).abs().max() < 0.1 * plain.abs().max()


ONE_SIZE = {"mlp", "lenet5", "small-cnn", "table2", "strided-cnn"}
"""Networks whose first dense layer counts the pixels."""


@pytest.mark.parametrize("word", [w for w in WORDS if w not in ONE_SIZE])
def test_training_may_begin_on_smaller_images(word):
    """What ``start_size`` asks: a network made for one size answers others, with a gradient everywhere."""
    network = network_of(word, size=(32, 32))
    network(torch.rand(3, 3, 20, 20)).logsumexp(1).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


# What a user gets wrong.


def test_arguments_may_be_positional():
    assert parse_architecture("vit:8", classes=2, channels=1, size=SIDE).arguments["patch"] == 8
    with pytest.raises(ChoiceError, match="twice"):
        parse_architecture("vit:8:patch=4", classes=2, channels=1, size=SIDE)
    with pytest.raises(ChoiceError, match="takes 2 arguments: dropout, width"):
        parse_architecture("vgg11:1:2:3", classes=2, channels=1, size=SIDE)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("alexnet:width=0", "width"),
        ("alexnet-small:width=-1", "width"),
        ("vgg16:width=0.0001", "width"),
        ("inception:width=0", "width"),
        ("mobilenet:width=0", "width"),
        ("efficientnet:width=-2", "width"),
        ("densenet:depth=41", "4 more than a multiple of 6"),
        ("densenet:depth=4", "depth"),
        ("densenet:growth=0", "growth"),
        ("vit:patch=0", "patch"),
        ("vit:width=100:heads=3", "multiple of heads"),
        ("vit:heads=0", "heads"),
        ("vit:pool=max", "pool is mean or class"),
        ("vit:dropout=1", "dropout"),
    ],
)
def test_impossible_values_are_refused(name, hint):
    with pytest.raises(RecipeError, match=hint):
        on_meta(name)


def test_weights_of_another_shape_are_named(tmp_path):
    save_file(network_of("alexnet:width=0.05").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match=r"of another shape: .*weight \(.*\) instead of .* Choose the model"):
        load_weights(network_of("alexnet:width=0.04"), tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match="belong to another network"):
        load_weights(network_of("vit:depth=1"), tmp_path / "w.safetensors")
