"""The same answers, in another file: exported, and compared before it is handed over."""

from ..models import ExportedModel, open_exported
from .exporting import MAX_COMPARED_IMAGES, export
from .module import ExportModule
from .parity import FLOAT_LIMITS, INT8_LIMITS, Parity, TorchRunner, compare_answers, measure_latencies
from .registry import FORMATS, Format, Runner, write_exported

__all__ = [
    "FLOAT_LIMITS",
    "FORMATS",
    "INT8_LIMITS",
    "MAX_COMPARED_IMAGES",
    "ExportModule",
    "ExportedModel",
    "Format",
    "Parity",
    "Runner",
    "TorchRunner",
    "compare_answers",
    "export",
    "measure_latencies",
    "open_exported",
    "write_exported",
]
