"""The same answers, in another file: exported, and compared before it is handed over."""

from ..models.exported import Exported, open_exported
from .handover import export
from .members import FORMATS, Format, Runner, write
from .parity import InTorch, Parity, compared, latencies
from .waist import Waist

__all__ = [
    "FORMATS",
    "Exported",
    "Format",
    "InTorch",
    "Parity",
    "Runner",
    "Waist",
    "compared",
    "export",
    "latencies",
    "open_exported",
    "write",
]
