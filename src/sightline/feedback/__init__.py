"""The world answers: drift of what a service sees, and whether a new classifier may replace the one that answers.

``examine_drift`` says whether the images of a service are still those its release was tested on; ``judge_candidate``
is the gate before a release, and ``compare_releases`` shows two of them image by image.
"""

from .difference import AnswerChange, ReleaseDifference, compare_releases
from .drift import DEFAULT_PROMISE, ChannelChange, DriftReport, examine_drift, watch_drift
from .gate import GateRules, GateVerdict, JudgedAnswers, PairedChange, judge_candidate

__all__ = [
    "DEFAULT_PROMISE",
    "AnswerChange",
    "ChannelChange",
    "DriftReport",
    "GateRules",
    "GateVerdict",
    "JudgedAnswers",
    "PairedChange",
    "ReleaseDifference",
    "compare_releases",
    "examine_drift",
    "judge_candidate",
    "watch_drift",
]
