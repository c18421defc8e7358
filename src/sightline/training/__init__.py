"""Data and a recipe become a classifier, in a run folder.

>>> from sightline.training import Recipe
>>> Recipe(model="lenet5", epochs=3).epochs
3
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .recipe import Recipe, field_descriptions, parse_duration

if TYPE_CHECKING:
    from .adversarial import AdversarialLoss, kl_divergence
    from .autotune import has_execution_mode, measure_throughput, to_memory_format, with_default_execution
    from .calibrate import fit_temperature
    from .defaults import LINEAR_PROBE_LR_FACTOR, default_epochs, default_network
    from .distributed import is_secondary
    from .estimate import estimate_cost
    from .fairness import BLANK_GROUP, MITIGATIONS
    from .fit import TrainingState
    from .freezing import FREEZE_SCHEDULES
    from .hooks import BaseHook
    from .losses import OBJECTIVES, CrossEntropy, LogitLoss, Objective
    from .lr_finder import find_lr
    from .optimizers import OPTIMIZERS
    from .plan import (
        ADAPTATION_IMAGES,
        build_classifier,
        build_method,
        build_objective,
        recipe_geometry,
        validate_recipe,
    )
    from .presets import PRESETS
    from .refinement import Method, refine
    from .run import Run, prepare, read_dataset, reopen, resume, train, train_on_splits
    from .run_folder import RunFolder, SilentRunFolder, check_run_folder, create_run_folder
    from .schedules import SCHEDULES
    from .transfer import INHERIT, architecture_word, backbone_fingerprint

__all__ = [
    "ADAPTATION_IMAGES",
    "BLANK_GROUP",
    "FREEZE_SCHEDULES",
    "INHERIT",
    "LINEAR_PROBE_LR_FACTOR",
    "MITIGATIONS",
    "OBJECTIVES",
    "OPTIMIZERS",
    "PRESETS",
    "SCHEDULES",
    "AdversarialLoss",
    "BaseHook",
    "CrossEntropy",
    "LogitLoss",
    "Method",
    "Objective",
    "Recipe",
    "Run",
    "RunFolder",
    "SilentRunFolder",
    "TrainingState",
    "architecture_word",
    "backbone_fingerprint",
    "build_classifier",
    "build_method",
    "build_objective",
    "check_run_folder",
    "create_run_folder",
    "default_epochs",
    "default_network",
    "estimate_cost",
    "field_descriptions",
    "find_lr",
    "fit_temperature",
    "has_execution_mode",
    "is_secondary",
    "kl_divergence",
    "measure_throughput",
    "parse_duration",
    "prepare",
    "read_dataset",
    "recipe_geometry",
    "refine",
    "reopen",
    "resume",
    "to_memory_format",
    "train",
    "train_on_splits",
    "validate_recipe",
    "with_default_execution",
]

_MEMBERS = {
    "adversarial": (
        "AdversarialLoss",
        "kl_divergence",
    ),
    "autotune": ("has_execution_mode", "measure_throughput", "to_memory_format", "with_default_execution"),
    "calibrate": ("fit_temperature",),
    "defaults": ("LINEAR_PROBE_LR_FACTOR", "default_epochs", "default_network"),
    "distributed": ("is_secondary",),
    "estimate": ("estimate_cost",),
    "fairness": (
        "BLANK_GROUP",
        "MITIGATIONS",
    ),
    "fit": ("TrainingState",),
    "freezing": ("FREEZE_SCHEDULES",),
    "hooks": ("BaseHook",),
    "losses": (
        "CrossEntropy",
        "LogitLoss",
        "OBJECTIVES",
        "Objective",
    ),
    "lr_finder": ("find_lr",),
    "optimizers": ("OPTIMIZERS",),
    "plan": (
        "ADAPTATION_IMAGES",
        "build_classifier",
        "build_method",
        "build_objective",
        "recipe_geometry",
        "validate_recipe",
    ),
    "presets": ("PRESETS",),
    "refinement": (
        "Method",
        "refine",
    ),
    "run": (
        "Run",
        "prepare",
        "read_dataset",
        "reopen",
        "resume",
        "train",
        "train_on_splits",
    ),
    "run_folder": (
        "RunFolder",
        "SilentRunFolder",
        "check_run_folder",
        "create_run_folder",
    ),
    "schedules": ("SCHEDULES",),
    "transfer": (
        "INHERIT",
        "architecture_word",
        "backbone_fingerprint",
    ),
}


def __getattr__(name: str) -> Any:
    """Import a member when a name of it is first used: the command line reads a Recipe's flags without torch."""
    for member, names in _MEMBERS.items():
        if name in names:
            return getattr(import_module(f".{member}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
