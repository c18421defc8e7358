"""Many trained, one table: comparisons, cross-validation, learning curves and label issues."""

from .cross_validation import CrossValidation, cross_validate
from .label_issues import DEFAULT_LABEL_CHECKER, LabelIssueReport, find_label_issues, write_label_issues
from .learning_curve import LearningCurve, learning_curve_run, read_learning_curve
from .model_comparison import compare
from .ranking import Comparison

__all__ = [
    "DEFAULT_LABEL_CHECKER",
    "Comparison",
    "CrossValidation",
    "LabelIssueReport",
    "LearningCurve",
    "compare",
    "cross_validate",
    "find_label_issues",
    "learning_curve_run",
    "read_learning_curve",
    "write_label_issues",
]
