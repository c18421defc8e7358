"""Many recipes, one winner.

>>> from sightline.tuning import Between
>>> Between(1e-4, 1e-1).log, Between(1, 3).grid()
(True, (1, 2, 3))
"""

from typing import TYPE_CHECKING, Any

from .search import SEARCHES as SEARCHES
from .space import SPACES as SPACES
from .space import Among as Among
from .space import Between as Between

if TYPE_CHECKING:
    from .study import Tuned, tune

__all__ = ["SEARCHES", "SPACES", "Among", "Between", "Tuned", "tune"]


def __getattr__(name: str) -> Any:
    """Load the rest when it is first asked for: the command line names searches without torch."""
    if name not in ("Tuned", "tune"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import study

    return vars(study)[name]
