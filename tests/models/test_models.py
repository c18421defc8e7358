"""Laws over every network, and published numbers."""

import copy
import functools
import io
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes

from helpers.tiny_classifiers import DISTINCT_WORDS, WORDS
from sightline.errors import BundleError, ChoiceError, RecipeError
from sightline.models import (
    NETWORKS,
    SURGERY,
    Architecture,
    build,
    count_parameters,
    describe_networks,
    get_head,
    parse_architecture,
)
from sightline.models.resnet import ResidualBlock

networks = pytest.mark.parametrize("name", WORDS)
distinct = pytest.mark.parametrize("name", DISTINCT_WORDS)

ABLATIONS = [f"enhanced:{word}" for word in ("residual=False", "batch_norm=False", "multi_scale=False")]
OTHERS = [
    "enhanced:residual=False:batch_norm=False",
    "lenet5:pool=max",
    "mlp:hidden=()",
    "resnet20:stem=whitened",
    "fastcnn:width=0.25",
    "small-cnn:padding=valid",
    "plain-cnn:depth=5:kernel=5:width=8:batch_norm=False",
    "resnet20:attention=se",
    "resnet20:attention=cbam",
    "vit:depth=1:width=24:heads=2:pool=class:patch=5",
]
VARIANTS = [*WORDS, *ABLATIONS, *OTHERS]
variants = pytest.mark.parametrize("name", VARIANTS)


def network_of(name, classes=10, channels=3, size=(32, 32), seed=0):
    return copy.deepcopy(_built(name, classes, channels, size, seed))


@functools.lru_cache(maxsize=200)  # eleven million random numbers take longer than the laws
def _built(name, classes, channels, size, seed):
    torch.manual_seed(seed)
    return build(parse_architecture(name, classes=classes, channels=channels, size=size))


def on_meta(name, classes=10, channels=3, size=(32, 32)):
    """Shapes without numbers: what counts need."""
    with torch.device("meta"):
        return build(parse_architecture(name, classes=classes, channels=channels, size=size))


@networks
@pytest.mark.parametrize(
    ("size", "channels", "classes"),
    [((28, 28), 1, 2), ((32, 32), 3, 10), ((64, 64), 3, 2), ((30, 45), 1, 10), ((100, 130), 3, 2)],
)
def test_shape(name, size, channels, classes):
    network = network_of(name, classes, channels, size).eval()
    with torch.no_grad():
        logits = network(torch.rand(2, channels, *size))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "side"), [*((name, 12) for name in VARIANTS), *((name, 96) for name in DISTINCT_WORDS)]
)
def test_every_parameter_gets_a_gradient(name, side):
    """Within three steps, because the last gamma of some blocks starts at zero."""
    network = network_of(name, size=(side, side))
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    generator = torch.Generator().manual_seed(1)
    without = {name for name, _ in network.named_parameters()}
    for _ in range(3):
        pixels = torch.rand(3, 3, side, side, generator=generator)
        labels = torch.randint(0, 10, (3,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(pixels), labels).backward()
        optimizer.step()
        without -= {n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if not without:
            return
    assert not without


@variants
def test_images_are_independent_in_eval(name):
    network = network_of(name, size=(16, 16)).eval()
    pixels = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        together = network(pixels)
        alone = torch.cat([network(pixels[i : i + 1]) for i in range(3)])
    scale = together.abs().max()
    assert torch.allclose(together / scale, alone / scale, atol=1e-5)


@variants
def test_saves_and_loads_bit_for_bit(name):
    network, other = network_of(name, size=(16, 16), seed=1).eval(), network_of(name, size=(16, 16), seed=2).eval()
    other.load_state_dict(load_bytes(save_bytes(network.state_dict())))
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(pixels), other(pixels))


@variants
def test_same_seed_same_network(name):
    make = _built.__wrapped__
    one, same, other = (make(name, 10, 3, (16, 16), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@distinct
def test_memory_format_does_not_change_answers(name):
    network = network_of(name, size=(16, 16)).eval()
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        plain = network(pixels)
        last = network.to(memory_format=torch.channels_last)(pixels.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(plain / plain.abs().max(), last / plain.abs().max(), atol=1e-5)


DEEPEST = ["resnet56", "vgg16:width=0.25", "plain-cnn:depth=20"]


@pytest.mark.parametrize("name", [*DISTINCT_WORDS, *DEEPEST, "resnet20:stem=whitened"])
def test_overfits_eight_images(name):
    """Two classes, a handful of steps: a network that cannot do this cannot do anything."""
    network = network_of(f"{name}:dropout=0.0", classes=2, size=(12, 12))
    generator = torch.Generator().manual_seed(5)
    pixels, labels = torch.rand(8, 3, 12, 12, generator=generator), torch.tensor([0, 1] * 4)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    for _ in range(40):
        logits = network(pixels)
        if (logits.argmax(1) == labels).all():
            return
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
    pytest.fail("40 steps were not enough to learn 8 images")


# Numbers from elsewhere.

PUBLISHED = [
    # LeCun et al. with dense connections and ReLU; the 32x32 RGB sum is that of the torch tutorial.
    ("lenet5", 1, (28, 28), 61_706),
    ("lenet5", 1, (32, 32), 61_706),
    ("lenet5", 3, (32, 32), 62_006),
    # Idelbayev, "Proper ResNet implementation for CIFAR10": 0.27, 0.46, 0.66, 0.85 million.
    ("resnet20", 3, (32, 32), 269_722),
    ("resnet32", 3, (32, 32), 464_154),
    ("resnet44", 3, (32, 32), 658_586),
    ("resnet56", 3, (32, 32), 853_018),
    # The sums of the definition: stem, four blocks, head.
    ("enhanced", 3, (32, 32), 2_272 + 32_896 + 86_400 + 344_832 + 524_800 + 1_290),
    ("enhanced", 1, (28, 28), 991_018),
    # The widespread implementation for CIFAR (kuangliu/pytorch-cifar); for large images, torchvision's page.
    ("resnet18", 3, (32, 32), 11_173_962),
    ("resnet18", 3, (224, 224), 11_689_512 - 990 * 513),
    # The sums of the published definition, without the whitening and the weights of norms, which are frozen.
    ("fastcnn", 3, (32, 32), 24 + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2 * (64 + 512) + 2_560),
    ("fastcnn", 1, (28, 28), 8 + 9 * (8 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256) + 2 * (64 + 512) + 2_560),
    # Paper 002 with 2 classes has 804,098; each further class adds 129.
    ("small-cnn", 1, (28, 28), 804_098 + 8 * 129),
    ("small-cnn:padding=valid", 1, (28, 28), 591_106 + 8 * 129),
    # Table II: 896 + 18,496 + 25,690,240 (printed 25,689,600) + 1,290.
    ("table2", 3, (224, 224), 25_710_922),
    ("table2", 1, (28, 28), 421_642),
    ("strided-cnn", 1, (28, 28), 272 + 8_224 + 156_900 + 1_010),
    ("table2", 3, (32, 32), 545_098),
    # Three convolutions of each width with batch norm, and the head.
    (
        "plain-cnn",
        3,
        (32, 32),
        9 * (3 * 32 + 4 * 32**2 + 4 * 64**2 + 2 * 128**2) + 1_344 + 1_290,
    ),
    ("mlp", 1, (28, 28), 785 * 256 + 257 * 128 + 129 * 10),
]


@pytest.mark.parametrize(("name", "channels", "size", "count"), PUBLISHED)
def test_published_parameter_counts(name, channels, size, count):
    assert count_parameters(on_meta(name, 10, channels, size)) == count


DEPTHS = [(f"resnet{depth}", depth) for depth in (18, 20, 32, 44, 56)]
DEPTHS += [(f"plain-cnn:depth={depth}", depth) for depth in (2, 3, 5, 10, 15, 20)]


@pytest.mark.parametrize(("name", "depth"), DEPTHS)
def test_networks_are_as_deep_as_their_names(name, depth):
    """Projections are not counted, as usual."""
    convolutions = [m for m in on_meta(name).modules() if isinstance(m, torch.nn.Conv2d)]
    assert len([m for m in convolutions if m.kernel_size != (1, 1)]) + 1 == depth


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("depth", [5, 10, 15])
def test_every_plain_network_of_table_three_sees_the_same_sizes(depth, kernel):
    """What Table III varies changes nothing else: three stages, 28x28, 14x14 and 7x7."""
    network, seen = network_of(f"plain-cnn:depth={depth}:kernel={kernel}:width=4", channels=1, size=(28, 28)), {}
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            assert layer.kernel_size == (kernel, kernel)
            layer.register_forward_hook(lambda _, __, out: seen.update({out.shape[2:]: out.shape[1]}))
    network.eval()(torch.rand(1, 1, 28, 28))
    assert seen == {(28, 28): 4, (14, 14): 8, (7, 7): 16}


def test_lenet_uses_average_pooling_by_default():
    for name, kind in (("lenet5", torch.nn.AvgPool2d), ("lenet5:pool=max", torch.nn.MaxPool2d)):
        pools = [m for m in network_of(name).modules() if type(m).__name__.endswith("Pool2d")]
        assert [type(m) for m in pools] == [kind, kind]


def test_switches_of_the_enhanced_network():
    def kinds(name, kind):
        return sum(isinstance(m, kind) for m in network_of(name).modules())

    assert kinds("enhanced", torch.nn.BatchNorm2d) == 11
    assert kinds("enhanced:batch_norm=False", torch.nn.BatchNorm2d) == 0
    assert kinds("enhanced", torch.nn.Conv2d) == 5 * 3 + 4 + 2
    assert kinds("enhanced:multi_scale=False", torch.nn.Conv2d) == 5 + 4 + 2
    assert kinds("enhanced:residual=False", torch.nn.Conv2d) == 5 * 3 + 4
    without = network_of("enhanced:dropout=0.0").train()
    pixels = torch.rand(4, 3, 32, 32)
    assert torch.equal(without(pixels), without(pixels))


@networks
def test_dropout_is_before_the_head_and_only_in_training(name):
    network = network_of(f"{name}:dropout=0.5", size=(16, 16))
    if name.startswith("alexnet"):
        pytest.skip("its dropout is before the hidden layers, as published")
    given = []
    get_head(network).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    pixels = torch.rand(8, 3, 16, 16)
    with torch.no_grad():
        for training in (True, True, False, False):
            network.train(training)(pixels)
    assert not torch.equal(given[0], given[1])
    assert torch.equal(given[2], given[3])
    assert (given[0] == 0).sum() > (given[2] == 0).sum()


def test_large_images_shrink_before_the_blocks():
    seen = []
    for name in ("resnet20", "enhanced"):
        for side in (64, 96, 224, 400):
            network = network_of(name, size=(side, side)).eval()
            first = next(m for m in network.modules() if type(m).__name__ in {"ResidualBlock", "MultiScaleBlock"})
            handle = first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
            with torch.no_grad():
                network(torch.rand(1, 3, side, side))
            handle.remove()
    assert seen == [64, 48, 56, 50] * 2


def test_a_stem_can_be_chosen():
    assert network_of("resnet20:stem=small", size=(224, 224)).conv1.kernel_size == (3, 3)
    assert network_of("resnet20:stem=large", size=(64, 64)).conv1.kernel_size == (7, 7)


def test_shortcut_without_parameters_pads_with_zeros():
    """With the convolutions silenced only the shortcut is left: every second pixel, zeros around."""
    block = ResidualBlock(4, 8, 2).eval()
    with torch.no_grad():
        block.conv2.weight.zero_()
    x = torch.rand(1, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() + out[:, 6:].abs().sum() == 0


# The value, and rebuilding.


@variants
def test_an_architecture_survives_json(name):
    made = parse_architecture(name, classes=3, channels=1, size=(28, 28))
    again = Architecture.from_config(json.loads(json.dumps(made.config())))
    assert again.name == made.name
    assert list(build(again).state_dict()) == list(build(made).state_dict())


NOTHING = (("widths", {"layers": {}}), ("factors", {"layers": {}}), ("masked", {"layers": []}))
"""Changes of layers, of none: more are in test_surgery_stacks."""
STACKS = {
    "the layers, then the whole": (
        *NOTHING,
        ("grown_head", {"classes": 7}),
        ("mirrored", {}),
        ("noise", {"alpha": 0.5}),
    ),
    "another head": (("head", {"classes": 3}), ("prototypes", {}), ("cosine", {"scale": 8.0})),
}


def test_every_change_is_in_a_stack():
    changes = [change for stack in STACKS.values() for change, _ in stack]
    assert sorted(changes) == sorted({*SURGERY} - {"quantised"})  # that is test_quantised's


@pytest.mark.parametrize("stack", STACKS)
@distinct
def test_surgery_is_rebuilt_and_takes_the_tensors(stack, name):
    plain = parse_architecture(name, classes=4, channels=3, size=(16, 16))
    changed = Architecture(plain.name, plain.arguments, STACKS[stack])
    torch.manual_seed(0)
    one = build(changed).eval()
    again = build(Architecture.from_config(json.loads(json.dumps(changed.config())))).eval()
    stream = io.BytesIO()
    torch.save(one.state_dict(), stream)
    again.load_state_dict(torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(one(pixels), again(pixels))


@distinct
def test_a_grown_head_keeps_the_old_logits(name):
    network = network_of(name, classes=4, size=(16, 16)).eval()
    pixels = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        before = network(pixels)
        after = SURGERY["grown_head"](network, classes=6)(pixels)
    assert get_head(network).out_features == 6
    assert torch.allclose(after[:, :4], before, rtol=1e-5, atol=1e-5 * before.abs().max().item())
    assert after[:, 4:].abs().sum() == 0


def test_a_head_cannot_shrink():
    with pytest.raises(BundleError, match="cannot grow"):
        SURGERY["grown_head"](network_of("mlp", classes=5), classes=4)


@distinct
def test_the_head_gives_the_logits(name):
    network = network_of(name, size=(16, 16), classes=6).eval()
    given = []
    get_head(network).register_forward_hook(lambda _, __, logits: given.append(logits))
    with torch.no_grad():
        assert torch.equal(network(torch.rand(2, 3, 16, 16)), given[0])


@pytest.fixture(scope="module")
def lines():
    return describe_networks()


def test_descriptions_cover_the_family(lines):
    assert [line.name for line in lines] == list(NETWORKS)
    for line in lines:
        if line.name == "timm":  # those of another's
            assert line.parameters is line.multiply_adds is line.size is line.best_sizes is None
            continue
        assert line.best_sizes[0] >= 28
        assert line.best_sizes[0] <= line.best_sizes[1]
        assert line.parameters == count_parameters(on_meta(line.name, 10, line.channels, line.size))
        assert 0.1 < line.quick_accuracy < 1, f"{line.name} did not learn, or was not measured"
    assert all(line.summary.endswith((".", ").", "True.")) and len(line.summary) < 110 for line in lines)


def test_the_table_in_the_docs_is_what_the_networks_have(lines):
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+)x(\d+) (grey|RGB) \| ([\d,]+) \| ([\d,]+) \|", text, re.MULTILINE)
    printed = [
        (name, (int(h), int(w)), {"grey": 1, "RGB": 3}[colour], int(p.replace(",", "")), int(c.replace(",", "")))
        for name, h, w, colour, p, c in rows
    ]
    assert printed == [(d.name, d.size, d.channels, d.parameters, d.multiply_adds) for d in lines if d.size]


# What a user gets wrong.

GOOD = {"classes": 10, "channels": 3, "size": [32, 32]}


def test_unknown_names_are_suggested():
    with pytest.raises(ChoiceError, match="Did you mean 'resnet20'"):
        network_of("resnet_20")
    with pytest.raises(ChoiceError, match=r"no argument 'droput'\. Did you mean 'dropout'"):
        network_of("enhanced:droput=0.1")
    with pytest.raises(ChoiceError, match="no argument 'widht'"):
        build(Architecture("mlp", {**GOOD, "widht": 3}))
    with pytest.raises(ChoiceError, match="Did you mean 'grown_head'"):
        build(Architecture("mlp", GOOD, (("grow_head", {"classes": 11}),)))
    with pytest.raises(ChoiceError, match="no argument 'klasses'"):
        build(Architecture("mlp", GOOD, (("grown_head", {"klasses": 11}),)))


@pytest.mark.parametrize(
    ("name", "arguments", "hint"),
    [
        ("mlp", {"classes": 1}, "classes must be a whole number of at least 2"),
        ("mlp", {"classes": "ten"}, "classes must be"),
        ("mlp", {"channels": 0}, "channels must be"),
        ("mlp", {"size": [32]}, "size is"),
        ("mlp", {"size": [32, 0]}, "size must be"),
        ("mlp", {"hidden": [0]}, "hidden"),
        ("mlp", {"classes": 10**14}, "cannot be made"),
        ("mlp", {"dropout": 1.0}, "dropout"),
        ("lenet5", {"size": [8, 8]}, "at least 12x12"),
        ("enhanced", {"dropout": 1.5}, "dropout"),
        ("lenet5", {"dropout": -0.1}, "dropout"),
        ("resnet20", {"dropout": 1}, "dropout"),
        ("resnet18", {"stem": "tiny"}, "stem is one of"),
        ("fastcnn", {"size": [8, 32]}, "at least 9x9"),
        ("fastcnn", {"width": 0.001}, "widths times width"),
        ("fastcnn", {"widths": []}, "widths times width"),
        ("fastcnn", {"momentum": 0}, "momentum"),
        ("small-cnn", {"padding": "none"}, "padding is same or valid"),
        ("small-cnn", {"padding": "valid", "size": [5, 28]}, "at least 6x6"),
        ("table2", {"size": [3, 3]}, "at least 4x4"),
        ("plain-cnn", {"depth": 1}, "depth"),
        ("plain-cnn", {"kernel": 4}, "kernel"),
        ("plain-cnn", {"width": 0}, "width"),
    ],
)
def test_impossible_values_are_refused(name, arguments, hint):
    with pytest.raises(RecipeError) as caught:
        build(Architecture(name, {**GOOD, **arguments}))
    assert hint in str(caught.value)


def test_unknown_words_in_arguments_are_refused():
    with pytest.raises(ChoiceError, match="pooling"):
        network_of("lenet5:pool=median")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"name": "mlp"},
        {"name": "mlp", "arguments": GOOD},
        {"name": "mlp", "arguments": 3, "surgery": []},
        {"name": "mlp", "arguments": GOOD, "surgery": [{"name": "grown_head"}]},
        {"name": "mlp", "arguments": GOOD, "surgery": 1},
    ],
)
def test_an_inconsistent_config_is_refused(config):
    with pytest.raises(BundleError, match="architecture"):
        Architecture.from_config(config)
