"""How small can it be? Less of a network, healed, and measured beside what it was made of.

A compressor is ``(classifier, images) -> classifier``: another network that a bundle can rebuild. They follow one
another, ``prune``, ``channels``, ``lowrank``, ``int8``; ``distil`` begins with a fresh one.
"""

from .chain import COMPRESSORS, Compressor, Parent, called, steps_of
from .channels import Channels
from .costs import counted
from .distil import Distil, Distillation
from .heal import Healed, Healing, heal
from .lowrank import LowRank
from .opening import opened
from .prune import Prune
from .quantize import Int8
from .runs import Compressed, compress
from .table import Table, measured
from .target import Target

__all__ = [
    "COMPRESSORS",
    "Channels",
    "Compressed",
    "Compressor",
    "Distil",
    "Distillation",
    "Healed",
    "Healing",
    "Int8",
    "LowRank",
    "Parent",
    "Prune",
    "Table",
    "Target",
    "called",
    "compress",
    "counted",
    "heal",
    "measured",
    "opened",
    "steps_of",
]
