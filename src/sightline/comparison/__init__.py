"""Many trained, one table: comparison, cross-validation, learning curves, label issues and similar images.

>>> from sightline.comparison import parse_candidate
>>> parse_candidate("knn:3@hog").kind
'baseline'
"""

from .candidates import Candidate, parse_candidate
from .cross_validation import CrossValidation, cross_validate
from .episodes import classify_by_head, interval_over_draws, measure_episodes
from .feature_check import check_features
from .head_curve import HeadCurve, head_curve_run, measure_head_curve
from .label_issues import (
    DEFAULT_LABEL_CHECKER,
    LabelIssueReport,
    are_photos,
    find_label_issues,
    write_label_issues,
)
from .learning_curve import LEARNING_CURVE_SHARES, LearningCurve, learning_curve_run
from .leave_out import LeaveOut, leave_out_run
from .model_comparison import compare
from .ranking import Comparison
from .similar_images import find_similar, open_backbone
