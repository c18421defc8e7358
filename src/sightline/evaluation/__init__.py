"""How good is it, and how sure are we? One pass of the classifier feeds every number."""

from .measure import Evaluation as Evaluation
from .measure import evaluate as evaluate
from .mistakes import Confusion as Confusion
from .mistakes import confused_pairs as confused_pairs
from .mistakes import worst_mistakes as worst_mistakes
from .record import report_json as report_json
