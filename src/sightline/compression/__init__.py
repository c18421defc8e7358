"""How small can it be? Less of a network, healed, and measured beside what it was made of.

A compressor is ``(classifier, images) -> classifier``: another network that a bundle can rebuild. They follow one
another, ``prune``, ``channels``, ``lowrank``, ``int8``; ``distil`` begins with a fresh one.
"""

from .channels import Channels
from .comparison import SizeComparison, compare_with_original
from .compressing import CompressionResult, compress
from .distil import Distil, DistillationLoss
from .fine_tuning import FineTuned, FineTuning, fine_tune
from .lowrank import LowRank
from .opening import open_original
from .pipeline import COMPRESSORS, Compressor, Original, format_step, parse_steps
from .profiling import count_weights
from .prune import Prune
from .quantize import Int8
from .target import Target

__all__ = [
    "COMPRESSORS",
    "Channels",
    "CompressionResult",
    "Compressor",
    "Distil",
    "DistillationLoss",
    "FineTuned",
    "FineTuning",
    "Int8",
    "LowRank",
    "Original",
    "Prune",
    "SizeComparison",
    "Target",
    "compare_with_original",
    "compress",
    "count_weights",
    "fine_tune",
    "format_step",
    "open_original",
    "parse_steps",
]
