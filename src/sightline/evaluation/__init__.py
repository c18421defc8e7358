"""How good is it, and how sure are we? One pass of the classifier feeds every number."""

from .comparison import compare as compare
from .conformal import calibrate as calibrate
from .crossval import CrossValidation as CrossValidation
from .crossval import cross_validate as cross_validate
from .efficiency import Efficiency as Efficiency
from .efficiency import Latency as Latency
from .grouped import examine_groups as examine_groups
from .growth import LearningCurve as LearningCurve
from .growth import learning_curve as learning_curve
from .measure import Evaluation as Evaluation
from .measure import evaluate as evaluate
from .mistakes import ConfusablePair as ConfusablePair
from .mistakes import Confusion as Confusion
from .mistakes import confusable_pairs as confusable_pairs
from .mistakes import confused_pairs as confused_pairs
from .mistakes import worst_mistakes as worst_mistakes
from .record import gallery as gallery
from .record import report_json as report_json
from .standings import Comparison as Comparison
from .sureness import examine_outliers as examine_outliers
from .sureness import examine_sureness as examine_sureness
from .suspects import Suspects as Suspects
from .suspects import find_suspects as find_suspects
