"""From pixels to logits, and every change a network can survive.

A network is rebuilt by name: ``build(Architecture("resnet20", {"classes": 10, ...}))``; its file of
weights is a table of tensors and nothing else.
"""

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
from .surgery import SURGERY, head
from .weights import WeightsReport, load_weights

__all__ = [
    "NETWORKS",
    "SURGERY",
    "Architecture",
    "Description",
    "Network",
    "WeightsReport",
    "architecture",
    "build",
    "describe",
    "head",
    "load_weights",
    "parameter_count",
]
