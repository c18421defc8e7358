"""All of it on one page: what a run folder holds, as one HTML file and a model card. Imports no torch."""

from .card import render_card
from .formatting import METRIC_LABELS
from .load import Evidence, load_evidence
from .measure_missing import measure_missing
from .page import attach_comparison, check_run, render_page, write_report
from .requirements import parse_requirements
from .sections import compression_rows

__all__ = [
    "METRIC_LABELS",
    "Evidence",
    "attach_comparison",
    "check_run",
    "compression_rows",
    "load_evidence",
    "measure_missing",
    "parse_requirements",
    "render_card",
    "render_page",
    "write_report",
]
