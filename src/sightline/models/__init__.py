"""From pixels to logits, and every change a network can survive.

A network is rebuilt by name: ``build(Architecture("resnet20", {"classes": 10, ...}))``; its file of
weights is a table of tensors and nothing else.
"""

from ..layers import get_head
from .architecture import Architecture
from .bundle import (
    ANSWERS_FILE,
    BUNDLE_FORMAT,
    CARD_FILE,
    MEMORY_FOLDER,
    TENSORS_FILE,
    Memory,
    check_bundle_files,
    check_bundle_values,
    list_bundle_files,
    read_answers,
    read_bundle_config,
    read_bundle_tensors,
)
from .cost import count_multiply_adds, learnt_tensors
from .ensemble import EnsembleMember, EnsembleNetwork
from .estimator import EmbeddingFeature, EstimatorNetwork, estimator_scores, feature_config
from .exported import (
    EXPORT_FORMAT,
    EXPORT_INPUT,
    EXPORT_OUTPUT,
    ExportedModel,
    ExportedNetwork,
    geometry_from_config,
    open_exported,
    open_session,
    read_exported,
)
from .handcrafted import HANDCRAFTED_FEATURES, Feature
from .registry import (
    NETWORKS,
    NetworkDescription,
    build,
    count_parameters,
    describe_networks,
    parse_architecture,
)
from .stages import NetworkStage, find_stages
from .surgery import SURGERY, compressible_layers, copy_network
from .vit import ViT
from .weights import WeightsReport, load_weights

__all__ = [
    "ANSWERS_FILE",
    "BUNDLE_FORMAT",
    "CARD_FILE",
    "EXPORT_FORMAT",
    "EXPORT_INPUT",
    "EXPORT_OUTPUT",
    "HANDCRAFTED_FEATURES",
    "MEMORY_FOLDER",
    "NETWORKS",
    "SURGERY",
    "TENSORS_FILE",
    "Architecture",
    "EmbeddingFeature",
    "EnsembleMember",
    "EnsembleNetwork",
    "EstimatorNetwork",
    "ExportedModel",
    "ExportedNetwork",
    "Feature",
    "Memory",
    "NetworkDescription",
    "NetworkStage",
    "ViT",
    "WeightsReport",
    "build",
    "check_bundle_files",
    "check_bundle_values",
    "compressible_layers",
    "copy_network",
    "count_multiply_adds",
    "count_parameters",
    "describe_networks",
    "estimator_scores",
    "feature_config",
    "find_stages",
    "geometry_from_config",
    "get_head",
    "learnt_tensors",
    "list_bundle_files",
    "load_weights",
    "open_exported",
    "open_session",
    "parse_architecture",
    "read_answers",
    "read_bundle_config",
    "read_bundle_tensors",
    "read_exported",
]
