"""Data and a recipe become a classifier, in a run folder: ``train``.

>>> from sightline.training import Recipe
>>> Recipe(model="lenet5", epochs=3).epochs
3

Its families are dicts, ``OBJECTIVES`` in ``objectives.py`` and ``SAMPLINGS`` in ``sampling.py``, and in ``plan.py``
``CLASS_WEIGHTINGS``, ``MITIGATIONS``, ``OPTIMIZERS``, ``SCHEDULES`` and ``FREEZE_SCHEDULES``;
recipes that were measured are ``PRESETS``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .fields import RENAMED_FIELDS
from .presets import PRESETS
from .recipe import INHERIT, PRETRAINED, Recipe, field_descriptions, parse_duration

if TYPE_CHECKING:
    from .budget import Deadline
    from .build import ADAPTATION_IMAGES, MEMORY_FORMATS, build_classifier, build_method
    from .defaults import (
        LINEAR_PROBE_LR_FACTOR,
        choose_execution,
        default_epochs,
        default_network,
        measure_throughput,
        to_memory_format,
    )
    from .distributed import is_secondary
    from .domain import DOMAIN_TERMS
    from .estimate import estimate_cost, find_lr
    from .fairness import BLANK_GROUP
    from .fit import Method, TrainingState, optimise
    from .gradients import Gradients
    from .head_first import prepare_features
    from .heads import FittedHead, HeadMethod, solve_discriminant
    from .hooks import EMA, BaseHook
    from .losses import (
        CrossEntropy,
        DistillationLoss,
        LogitLoss,
        Objective,
        as_objective,
        check_distillation,
        kl_divergence,
    )
    from .objectives import OBJECTIVES
    from .plan import (
        CLASS_WEIGHTINGS,
        FREEZE_SCHEDULES,
        HEAD_METHODS,
        MITIGATIONS,
        OPTIMIZERS,
        QUALITY_MODELS,
        SCHEDULES,
        Plan,
        resolve,
        validate_recipe,
    )
    from .preparation import prepare, read_dataset, read_splits
    from .pretraining import KNN_FILE, Pretraining, pretrain_backbone
    from .pseudo_labels import SEMI_SUPERVISED_METHODS
    from .refinement import fit_temperature, refine, start_training
    from .run import Run, reopen, resume, train, train_on_splits
    from .run_folder import RunFolder, SilentRunFolder, check_run_folder, create_run_folder
    from .sampling import SAMPLINGS
    from .self_supervised import SELF_SUPERVISED_METHODS
    from .starts import PHOTO_SIDE, build_published_start
    from .transfer import architecture_word

__all__ = [
    "ADAPTATION_IMAGES",
    "BLANK_GROUP",
    "CLASS_WEIGHTINGS",
    "DOMAIN_TERMS",
    "EMA",
    "FREEZE_SCHEDULES",
    "HEAD_METHODS",
    "INHERIT",
    "KNN_FILE",
    "LINEAR_PROBE_LR_FACTOR",
    "MEMORY_FORMATS",
    "MITIGATIONS",
    "OBJECTIVES",
    "OPTIMIZERS",
    "PHOTO_SIDE",
    "PRESETS",
    "PRETRAINED",
    "QUALITY_MODELS",
    "RENAMED_FIELDS",
    "SAMPLINGS",
    "SCHEDULES",
    "SELF_SUPERVISED_METHODS",
    "SEMI_SUPERVISED_METHODS",
    "BaseHook",
    "CrossEntropy",
    "Deadline",
    "DistillationLoss",
    "FittedHead",
    "Gradients",
    "HeadMethod",
    "LogitLoss",
    "Method",
    "Objective",
    "Plan",
    "Pretraining",
    "Recipe",
    "Run",
    "RunFolder",
    "SilentRunFolder",
    "TrainingState",
    "architecture_word",
    "as_objective",
    "build_classifier",
    "build_method",
    "build_published_start",
    "check_distillation",
    "check_run_folder",
    "choose_execution",
    "create_run_folder",
    "default_epochs",
    "default_network",
    "estimate_cost",
    "field_descriptions",
    "find_lr",
    "fit_temperature",
    "is_secondary",
    "kl_divergence",
    "measure_throughput",
    "optimise",
    "parse_duration",
    "prepare",
    "prepare_features",
    "pretrain_backbone",
    "read_dataset",
    "read_splits",
    "refine",
    "reopen",
    "resolve",
    "resume",
    "solve_discriminant",
    "start_training",
    "to_memory_format",
    "train",
    "train_on_splits",
    "validate_recipe",
]

_MEMBERS = {
    "build": ("ADAPTATION_IMAGES", "MEMORY_FORMATS", "build_classifier", "build_method"),
    "budget": ("Deadline",),
    "defaults": (
        "LINEAR_PROBE_LR_FACTOR",
        "choose_execution",
        "default_epochs",
        "default_network",
        "measure_throughput",
        "to_memory_format",
    ),
    "distributed": ("is_secondary",),
    "domain": ("DOMAIN_TERMS",),
    "estimate": ("estimate_cost", "find_lr"),
    "fairness": ("BLANK_GROUP",),
    "fit": ("Method", "TrainingState", "optimise"),
    "gradients": ("Gradients",),
    "head_first": ("prepare_features",),
    "heads": ("FittedHead", "HeadMethod", "solve_discriminant"),
    "hooks": ("EMA", "BaseHook"),
    "losses": (
        "CrossEntropy",
        "DistillationLoss",
        "LogitLoss",
        "Objective",
        "as_objective",
        "check_distillation",
        "kl_divergence",
    ),
    "objectives": ("OBJECTIVES",),
    "plan": (
        "CLASS_WEIGHTINGS",
        "FREEZE_SCHEDULES",
        "HEAD_METHODS",
        "MITIGATIONS",
        "OPTIMIZERS",
        "SCHEDULES",
        "QUALITY_MODELS",
        "Plan",
        "resolve",
        "validate_recipe",
    ),
    "preparation": ("prepare", "read_dataset", "read_splits"),
    "pretraining": ("KNN_FILE", "Pretraining", "pretrain_backbone"),
    "pseudo_labels": ("SEMI_SUPERVISED_METHODS",),
    "refinement": ("fit_temperature", "refine", "start_training"),
    "run": ("Run", "reopen", "resume", "train", "train_on_splits"),
    "run_folder": ("RunFolder", "SilentRunFolder", "check_run_folder", "create_run_folder"),
    "sampling": ("SAMPLINGS",),
    "self_supervised": ("SELF_SUPERVISED_METHODS",),
    "starts": ("PHOTO_SIDE", "build_published_start"),
    "transfer": ("architecture_word",),
}


def __getattr__(name: str) -> Any:
    """Import a member when a name of it is first used: the command line reads a Recipe's flags without torch."""
    for member, names in _MEMBERS.items():
        if name in names:
            return getattr(import_module(f".{member}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
