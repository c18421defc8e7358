"""From pixels to logits, and every change a network can survive.

A network is rebuilt by name: ``build(Architecture("resnet20", {"classes": 10, ...}))``; its file of weights is a
table of tensors and nothing else. To add a network, write a function ``(classes, channels, size, **arguments)``
that returns a ``Network`` and give it a line in NETWORKS.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..layers import (
    ImageSize,
    Network,
    factorise_layers,
    get_head,
    keep_zeros,
    narrow_layers,
    quantise_layers,
)
from .alexnet import alexnet, alexnet_small
from .bundle import (
    ANSWERS_FILE,
    BUNDLE_FORMAT,
    CARD_FILE,
    MEMORY_FOLDER,
    TENSORS_FILE,
    Memory,
    check_bundle_files,
    check_bundle_values,
    copy_bundle,
    limit_parameters,
    list_bundle_files,
    read_answers,
    read_bundle_config,
    read_bundle_tensors,
    read_tensor_shapes,
)
from .densenet import densenet
from .enhanced import enhanced
from .ensemble import EnsembleMember, EnsembleNetwork, rebuild_ensemble
from .estimator import EmbeddingFeature, EstimatorNetwork, estimator_scores, feature_config, rebuild_estimator
from .exported import ExportedNetwork
from .fastcnn import fastcnn
from .handcrafted import HANDCRAFTED_FEATURES, Feature
from .inception import inception
from .mobilenet import efficientnet, mobilenet
from .plain import lenet5, mlp, plain_cnn, small_cnn, strided_cnn, table2, vgg11, vgg13, vgg16
from .pretrained import EMBEDDED_WEIGHTS, WeightsCard, read_timm_config
from .registry import (
    Architecture,
    NetworkDescription,
    NetworkEntry,
    architecture_from_word,
    build_network,
    count_multiply_adds,
    count_parameters,
    describe_network,
    learnt_tensors,
)
from .resnet import resnet18, resnet20, resnet32, resnet44, resnet56
from .surgery import (
    UNCOMPRESSIBLE_NETWORKS,
    NetworkStage,
    add_cosine_head,
    add_flip_tta,
    add_prototype_head,
    add_weight_noise,
    compressible_layers,
    copy_network,
    expand_head,
    find_stages,
    replace_head,
)
from .timm_network import find_card, find_imagenet_classes, name_in_config, timm
from .vit import ViT, vit
from .weights import WeightsReport, load_weights

NETWORKS: dict[str, NetworkEntry] = {
    "mlp": NetworkEntry(mlp, 1, 28, (28, 32), lr_factor=0.5),
    "lenet5": NetworkEntry(lenet5, 1, 28, (28, 32)),
    "resnet20": NetworkEntry(resnet20, 3, 32, (28, 64)),
    "resnet32": NetworkEntry(resnet32, 3, 32, (28, 64)),
    "resnet44": NetworkEntry(resnet44, 3, 32, (28, 64)),
    "resnet56": NetworkEntry(resnet56, 3, 32, (28, 64)),
    "resnet18": NetworkEntry(resnet18, 3, 32, (28, 224)),
    "fastcnn": NetworkEntry(fastcnn, 3, 32, (28, 64)),
    "enhanced": NetworkEntry(enhanced, 3, 32, (28, 64)),
    "small-cnn": NetworkEntry(small_cnn, 1, 28, (28, 32)),
    "table2": NetworkEntry(table2, 3, 224, (28, 224)),
    "strided-cnn": NetworkEntry(strided_cnn, 1, 28, (28, 32)),
    "plain-cnn": NetworkEntry(plain_cnn, 3, 32, (28, 64)),
    "alexnet": NetworkEntry(alexnet, 3, 224, (128, 224), lr_factor=0.1, small="width=0.05"),
    "alexnet-small": NetworkEntry(alexnet_small, 3, 32, (28, 64), lr_factor=0.25, small="width=0.25"),
    "vgg11": NetworkEntry(vgg11, 3, 32, (28, 64), lr_factor=0.25, small="width=0.25"),
    "vgg13": NetworkEntry(vgg13, 3, 32, (28, 64), lr_factor=0.25, small="width=0.25"),
    "vgg16": NetworkEntry(vgg16, 3, 32, (28, 64), lr_factor=0.25, small="width=0.25"),
    "inception": NetworkEntry(inception, 3, 32, (28, 64), small="width=0.25"),
    "densenet": NetworkEntry(densenet, 3, 32, (28, 64), small="depth=22:growth=8"),
    "mobilenet": NetworkEntry(mobilenet, 3, 32, (28, 224), small="width=0.25"),
    "efficientnet": NetworkEntry(efficientnet, 3, 32, (28, 224), small="width=0.25"),
    "vit": NetworkEntry(vit, 3, 32, (28, 64), small="depth=2:width=48:heads=2"),
    "timm": NetworkEntry(timm, small="test_resnet"),
}
"""Name -> how the network is made; what ``--model`` chooses from."""

COMPOSITE_NETWORKS: dict[str, Callable[..., Network]] = {
    "ensemble": rebuild_ensemble,
    "estimator": rebuild_estimator,
}
"""Networks around trained classifiers: ``(build a network from its config, classes, channels, size, ...) ->
network``. Bundles name them, recipes do not."""

SURGERY: dict[str, Callable[..., Network]] = {
    "grown_head": expand_head,
    "head": replace_head,
    "prototypes": add_prototype_head,
    "cosine": add_cosine_head,
    "mirrored": add_flip_tta,
    "noise": add_weight_noise,
    "masked": keep_zeros,
    "widths": narrow_layers,
    "factors": factorise_layers,
    "quantised": quantise_layers,
}
"""Name -> ``(network, **arguments) -> network``: the changes of structure that a bundle may name. Arguments are
JSON; the bundle's tensors are loaded afterwards."""


def parse_architecture(model: str, *, classes: int, channels: int, size: ImageSize) -> Architecture:
    """The architecture a word names: ``resnet20``, or with arguments ``enhanced:dropout=0.2``.

    Raises ChoiceError for an unknown name or argument.
    """
    return architecture_from_word(NETWORKS, model, classes=classes, channels=channels, size=size)


def build(architecture: Architecture) -> Network:
    """The network, freshly initialised from torch's global seed, with its surgery done.

    Raises ChoiceError for an unknown name, RecipeError for an impossible value.
    """

    def rebuild(config: Mapping[str, Any]) -> Network:
        return build(Architecture.from_config(config))

    made = {name: entry.make for name, entry in NETWORKS.items()}
    composite = {name: partial(make, rebuild) for name, make in COMPOSITE_NETWORKS.items()}
    return build_network(architecture, made | composite, SURGERY)


def describe_networks() -> tuple[NetworkDescription, ...]:
    """Every network in a line each, as ``sightline list models`` prints them."""
    return tuple(describe_network(name, entry) for name, entry in NETWORKS.items())
