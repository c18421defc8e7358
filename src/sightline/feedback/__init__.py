"""The world answers: drift, which answers deserve a person's minute, and whether a new classifier may replace the old.

``examine_drift`` says whether the images of a service are still those its release was tested on; ``judge_candidate``
is the gate before a release, and ``compare_releases`` shows two of them image by image.
"""

from typing import TYPE_CHECKING, Any

from .difference import AnswerChange, ReleaseDifference, compare_releases
from .drift import DEFAULT_PROMISE, ChannelChange, DriftReport, examine_drift, watch_drift
from .gate import GateRules, GateVerdict, JudgedAnswers, PairedChange, judge_candidate
from .improvement import Improvement, find_base, improve
from .judging import Judged
from .opinions import agreement, answers_needed, audit_accuracy, half_width_after, settle_labels
from .review import (
    DEFAULT_REASONS,
    describe_shown,
    export_queue,
    import_answers,
    known_classes,
    review_answer,
    select,
    summarise_reviews,
)
from .selection import REASONS, Candidates, Pick, Reason

if TYPE_CHECKING:
    from .review_routes import add_review_routes

__all__ = [
    "DEFAULT_PROMISE",
    "DEFAULT_REASONS",
    "REASONS",
    "AnswerChange",
    "Candidates",
    "ChannelChange",
    "DriftReport",
    "GateRules",
    "GateVerdict",
    "Improvement",
    "Judged",
    "JudgedAnswers",
    "PairedChange",
    "Pick",
    "Reason",
    "ReleaseDifference",
    "add_review_routes",
    "agreement",
    "answers_needed",
    "audit_accuracy",
    "compare_releases",
    "describe_shown",
    "examine_drift",
    "export_queue",
    "find_base",
    "half_width_after",
    "import_answers",
    "improve",
    "judge_candidate",
    "known_classes",
    "review_answer",
    "select",
    "settle_labels",
    "summarise_reviews",
    "watch_drift",
]


def __getattr__(name: str) -> Any:
    """Import the routes when they are first used: nothing else needs FastAPI."""
    if name == "add_review_routes":
        from .review_routes import add_review_routes

        return add_review_routes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
