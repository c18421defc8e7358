"""Search for the best recipe.

>>> from sightline.tuning import NumericRange
>>> NumericRange(1e-4, 1e-1).log, NumericRange(1, 3).grid_values()
(True, (1, 2, 3))
"""

from typing import TYPE_CHECKING, Any

from .search import SEARCHES
from .space import SPACES, Categorical, NumericRange

if TYPE_CHECKING:
    from .study import TuningResult, tune
    from .trial import format_values

__all__ = ["SEARCHES", "SPACES", "Categorical", "NumericRange", "TuningResult", "format_values", "tune"]


def __getattr__(name: str) -> Any:
    """Import the rest when it is first used: the command line lists search methods without torch."""
    if name not in ("TuningResult", "format_values", "tune"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import study, trial

    return vars(trial if name == "format_values" else study)[name]
