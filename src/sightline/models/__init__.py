"""From pixels to logits, and every change a network can survive.

A network is rebuilt by name: ``build(Architecture("resnet20", {"classes": 10, ...}))``; its file of
weights is a table of tensors and nothing else.
"""

from .attention import ATTENTIONS
from .blocks import Network
from .catalogue import (
    NETWORKS,
    Architecture,
    Description,
    architecture,
    build,
    describe,
    parameter_count,
)
from .cost import learnt, multiply_adds
from .ensemble import Ensemble, Member
from .initialise import INITIALISATIONS, initialise
from .noise import WeightNoise
from .stages import Stage, embed, stages
from .surgery import SURGERY, head
from .weights import WeightsReport, load_weights

__all__ = [
    "ATTENTIONS",
    "INITIALISATIONS",
    "NETWORKS",
    "SURGERY",
    "Architecture",
    "Description",
    "Ensemble",
    "Member",
    "Network",
    "Stage",
    "WeightNoise",
    "WeightsReport",
    "architecture",
    "build",
    "describe",
    "embed",
    "head",
    "initialise",
    "learnt",
    "load_weights",
    "multiply_adds",
    "parameter_count",
    "stages",
]
