"""Data and a recipe become a classifier.

>>> from sightline.training import Recipe
>>> Recipe(model="lenet5", epochs=3).epochs
3
"""

from typing import TYPE_CHECKING, Any

from .recipe import Recipe

if TYPE_CHECKING:
    from .assemble import fresh
    from .refinement import Method, refine
    from .run import Run, prepare, reopen, resume, train

__all__ = ["Method", "Recipe", "Run", "fresh", "prepare", "refine", "reopen", "resume", "train"]


def __getattr__(name: str) -> Any:
    """Load the rest when it is first asked for: the command line parses a Recipe's flags without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import assemble, refinement, run

    return {**vars(assemble), **vars(refinement), **vars(run)}[name]
