"""All results of a run folder on one page: an HTML report and a model card.

Imports no torch, except to measure what is missing.
"""

from typing import TYPE_CHECKING, Any

from .card import render_card
from .formatting import METRIC_LABELS, format_duration
from .load import Evidence, load_evidence, read_report
from .page import NO_PLOTS, attach_comparison, check_run, read_page_part, render_page, write_report
from .requirements import parse_requirements
from .sections import compression_rows

if TYPE_CHECKING:
    from .measure_missing import measure_missing_evidence

__all__ = [
    "METRIC_LABELS",
    "NO_PLOTS",
    "Evidence",
    "attach_comparison",
    "check_run",
    "compression_rows",
    "format_duration",
    "load_evidence",
    "measure_missing_evidence",
    "parse_requirements",
    "read_page_part",
    "read_report",
    "render_card",
    "render_page",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Import the measurements, and torch with them, when they are first used."""
    if name != "measure_missing_evidence":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .measure_missing import measure_missing_evidence

    return measure_missing_evidence
