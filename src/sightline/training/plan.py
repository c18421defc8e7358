"""The words of a recipe become objects, once: a ``Plan``. What trains takes its parts from there.

Every family that a recipe names is a dict here or, of objectives, in ``objectives.py``: to add a member, write it in
its file and add one line.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..augmentation import parse_policy
from ..choose import choose, lookup
from ..classifier import Classifier
from ..data import Augment
from ..errors import RecipeError
from ..layers import INITIALISATIONS
from ..models import Architecture, WeightsCard, build, find_card, parse_architecture
from ..preprocessing import check_normalisation
from ..types import Dataset
from .domain import DomainTerm, parse_domain_term
from .fairness import (
    BalancedSampling,
    BalancedWeights,
    ClassWeighting,
    EffectiveNumberWeights,
    GroupDRO,
    Mitigation,
    Reweighing,
    UniformWeights,
)
from .heads import ClassMeans, HeadMethod, LinearDiscriminant, LinearProbeHead, ProbeThenFineTune
from .losses import (
    Objective,
    ObjectiveLike,
    as_objective,
    check_cuts,
)
from .muon import Muon
from .objectives import parse_objective
from .optimizers import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    CosineRestarts,
    Exponential,
    Linear,
    OneCycle,
    OptimizerFactory,
    Plateau,
    Schedule,
    StepDecay,
    parameter_groups,
    parameters_by_stage,
)
from .pseudo_labels import SEMI_SUPERVISED_METHODS, SemiSupervised, check_reachable, check_semi_supervised
from .recipe import INHERIT, PRETRAINED, Recipe
from .sampling import SAMPLINGS, Sampling, default_sampling
from .transfer import (
    EarlyStages,
    FreezeBackbone,
    FreezeSchedule,
    GradualUnfreezing,
    NoFreezing,
    UntilEpoch,
    UpToStage,
    inherit_settings,
    load_source,
    name_weights_file,
)

CLASS_WEIGHTINGS: Mapping[str, Callable[..., ClassWeighting]] = {
    "none": UniformWeights,
    "balanced": BalancedWeights,
    "effective": EffectiveNumberWeights,
}
"""The words of ``class_weights``: ``effective:0.9999``."""


MITIGATIONS: Mapping[str, Callable[..., Mitigation]] = {
    "balanced": BalancedSampling,
    "reweighing": Reweighing,
    "group-dro": GroupDRO,
}
"""The words of ``fairness_method``."""

OPTIMIZERS: Mapping[str, Callable[..., OptimizerFactory]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "muon": Muon,
}
"""The words of ``optimizer``."""

SCHEDULES: Mapping[str, Callable[..., Schedule]] = {
    "one-cycle": OneCycle,
    "cosine": Cosine,
    "restarts": CosineRestarts,
    "linear": Linear,
    "step": StepDecay,
    "exponential": Exponential,
    "plateau": Plateau,
    "constant": Constant,
}
"""The words of ``schedule``."""

FREEZE_SCHEDULES: Mapping[str, Callable[..., FreezeSchedule]] = {
    "none": NoFreezing,
    "backbone": FreezeBackbone,
    "until": UntilEpoch,
    "stage": UpToStage,
    "early": EarlyStages,
    "staged": GradualUnfreezing,
}
"""The words of ``freeze``."""


HEAD_METHODS: Mapping[str, Callable[..., HeadMethod | None]] = {
    "gradient": lambda: None,
    "probe": LinearProbeHead,
    "prototypes": ClassMeans,
    "lda": LinearDiscriminant,
    "finetune": ProbeThenFineTune,
}
"""The words of ``method``."""

QUALITY_MODELS: Mapping[str, str] = {
    "fast": "timm:mobilenetv3_large_100.miil_in21k_ft_in1k:pretrained=True",
    "standard": "timm:tf_efficientnet_lite0.in1k:pretrained=True",
    "best": "timm:tiny_vit_5m_224.dist_in22k_ft_in1k:pretrained=True",
}
"""The words of ``quality``; the standard comes with the installation."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe, and the object that each of its words names.

    ``resolve`` makes one; ``replace`` changes fields of the recipe and parses only the words among them;
    ``fit_to`` completes it with the training images. Raises RecipeError for parts that do not go together.
    """

    recipe: Recipe
    objective: Objective
    sampling: Sampling
    class_weighting: ClassWeighting
    mitigation: Mitigation
    optimizer: OptimizerFactory
    schedule: Schedule
    freezing: FreezeSchedule
    augment: Augment
    architecture: Architecture | None
    """None while the recipe names no model; classes and size are those of the images after ``fit_to``."""
    source: Classifier | None = None
    """The classifier of ``--weights RUN``, loaded once; None for other weights, or random ones."""
    semi_supervised: SemiSupervised | None = None
    """How images without a label are learned from; None where they are not."""
    domain: DomainTerm | None = None
    """How it is adapted to target images; None where it is not."""
    head: HeadMethod | None = None
    """How the last layer is computed on frozen features before (or instead of) training; None for training alone."""
    notes: tuple[str, ...] = ()
    given: frozenset[str] = frozenset()
    """Parts that were given as objects, which no word replaces."""

    def __post_init__(self) -> None:
        recipe, freeze = self.recipe, f"The recipe's freeze is '{self.recipe.freeze}'"
        check_cuts(self.objective, recipe.grad_accum_steps, recipe.cpu_replicas or 1, recipe.devices)
        if self.semi_supervised is not None:
            check_semi_supervised(self.semi_supervised, recipe, trains=self.head is None or self.head.fine_tunes)
        if self.mitigation.single_process and recipe.fairness_column is not None and recipe.devices > 1:
            raise RecipeError(
                f"{recipe.fairness_method} keeps one set of weights: use --devices 1, or --fairness-method balanced."
            )
        if recipe.epochs and self.schedule.first_drop >= recipe.epochs:
            raise RecipeError(
                f"The schedule '{recipe.schedule}' first changes the rate after {self.schedule.first_drop} epochs, "
                f"but the run has {recipe.epochs}: give it a smaller number, or the run more --epochs."
            )
        if self.freezing.freezes and recipe.weights is None and not self.is_pretrained:
            raise RecipeError(
                f"{freeze}, which keeps the initial weights, and they start random: give --weights to start from, or "
                "leave --freeze out."
            )
        if recipe.epochs and self.freezing.first_change() >= recipe.epochs:
            raise RecipeError(
                f"{freeze}, but the training ends after {recipe.epochs} epochs: choose fewer, or freeze backbone to "
                "train only the head."
            )
        mixed = any(getattr(one, "mixes_labels", False) for one in getattr(self.augment, "members", ()))
        if mixed and self.objective.min_class_images > 1:
            raise RecipeError(
                f"The loss {recipe.loss} compares images of one class, so it cannot use mixed images: leave mixup and "
                "cutmix out of --augment."
            )
        if recipe.progressive_from and recipe.size and recipe.progressive_from > recipe.size:
            raise RecipeError(
                f"progressive_from is {recipe.progressive_from}: it must not be above the size, {recipe.size}."
            )

    @property
    def is_pretrained(self) -> bool:
        """Whether the network comes with published weights."""
        return self.architecture is not None and self.architecture.arguments.get("pretrained") is True

    @property
    def card(self) -> WeightsCard | None:
        """The card of the published weights it starts from, named or in a file of timm's; None for other starts."""
        if self.architecture is None or self.architecture.name != "timm":
            return None
        file = Path(self.recipe.weights) if self.recipe.weights and self.source is None else None
        if not self.is_pretrained and file is None:
            return None
        normalised = self.recipe.normalize in (None, PRETRAINED)
        return find_card(self.architecture.arguments["name"], file, normalised=normalised)

    def replace(self, **changes: Any) -> "Plan":
        """The plan with these fields of the recipe changed."""
        recipe = self.recipe.replace(**changes)
        parsed = {
            name: parse(recipe)
            for name, (parse, fields) in _PARSERS.items()
            if fields & changes.keys() and name not in self.given
        }
        return replace(self, recipe=recipe, **parsed)

    def fit_to(self, train: Dataset) -> "Plan":
        """The plan for these training images: their classes and size in the architecture, class weights in the loss.

        Where the objective compares images of a class and random batches would have too few, they are by class.
        Raises DataError for a class with too few images for the objective.
        """
        known = {
            "classes": len(train.classes),
            "channels": train.geometry.channels,
            "size": [*train.geometry.size],
        }
        architecture = self.architecture
        if self.semi_supervised is not None:
            check_reachable(self.semi_supervised, self.recipe.label_smoothing, len(train.classes))
        if architecture is not None:
            needed, surgery = self.objective.head, architecture.surgery
            surgery = surgery if needed is None or needed in surgery else (*surgery, needed)
            architecture = replace(architecture, arguments={**architecture.arguments, **known}, surgery=surgery)
        weights: Any = self.class_weighting(train.counts)
        objective: Any = self.objective
        if weights is not None:
            objective = replace(objective, class_weights=weights)
        fitted = replace(self, architecture=architecture, objective=objective)
        if (drawn := default_sampling(self.objective, self.recipe, train)) is None:
            return fitted
        word, why = drawn
        return replace(fitted.replace(sampling=word), notes=(*self.notes, why))

    def build_optimizer(
        self, classifier: Classifier, modules: nn.Module | None = None, lr: float | None = None
    ) -> torch.optim.Optimizer:
        """The optimiser over the classifier and ``modules`` at the recipe's rate, or ``lr``."""
        recipe, rate = self.recipe, self.recipe.lr if lr is None else lr
        assert rate is not None
        decays = {"weight_decay": recipe.weight_decay, "bias_lr": recipe.bias_lr}
        # torch's fused SGD wants the parameters of a group to take their first step together: frozen stages apart
        apart = recipe.layer_decay != 1 or self.freezing.freezes or self.optimizer.by_stage
        stages = parameters_by_stage(classifier) if apart else [[*classifier.parameters()]]
        groups = parameter_groups(stages, layer_decay=recipe.layer_decay, **decays)
        if modules is not None and (own := [*modules.parameters()]):
            groups += parameter_groups([own], **decays)
        fused = all(p.device.type in {"cpu", "cuda"} for p in classifier.parameters())
        return self.optimizer(groups, lr=rate, momentum=recipe.momentum, fused=fused)

    def check_network(self) -> None:
        """Raise where the network cannot be built, or its published weights cannot be had, before images are read."""
        recipe = self.recipe
        if recipe.normalize not in (None, INHERIT, PRETRAINED):
            check_normalisation(recipe.normalize)
        if recipe.init != "default":
            lookup(INITIALISATIONS, recipe.init, "initialisation")
        if self.architecture is not None:
            side = recipe.size or (224 if self.architecture.name == "timm" else 32)
            given = {**self.architecture.arguments, "channels": recipe.channels or 3, "size": [side, side]}
            network = build(replace(self.architecture, arguments=given))
            self.check_licence()
            if recipe.weights is None:
                network.load_published()

    def check_licence(self) -> None:
        """Raise RecipeError where the published weights may not be used without accepting their licence."""
        card = self.card
        if card is not None and not card.commercial and not self.recipe.accept_licence:
            raise RecipeError(
                f"The weights '{card.name}' have the licence '{card.licence or 'unknown'}', which may restrict "
                "commercial use: choose other weights, or give --accept-licence after reading it."
            )


def resolve(recipe: Recipe, *, objective: ObjectiveLike | None = None, augment: Augment | None = None) -> Plan:
    """The plan of a recipe: every word parsed, the bundle of ``--weights`` loaded, what is open inherited from it.

    ``objective`` and ``augment`` are objects in place of the recipe's words. Raises ChoiceError for an unknown word,
    RecipeError for parts that do not go together, BundleError for a start that cannot be read.
    """
    if recipe.quality is not None and recipe.model is None:
        recipe = recipe.replace(model=QUALITY_MODELS[recipe.quality])
    recipe = name_weights_file(recipe)
    source = load_source(recipe.weights, recipe.normalize)
    recipe, notes = inherit_settings(recipe, source)
    parsed: dict[str, Any] = {name: parse(recipe) for name, (parse, _) in _PARSERS.items()}
    given: dict[str, Any] = {}
    if objective is not None:
        given |= {"objective": as_objective(objective), "class_weighting": UniformWeights()}
    if augment is not None:
        given["augment"] = augment
    return Plan(recipe=recipe, source=source, notes=notes, given=frozenset(given), **{**parsed, **given})


def validate_recipe(recipe: Recipe) -> None:
    """Raise for an unknown word, parts that do not go together, or a network that cannot be built."""
    resolve(recipe).check_network()


def _parse_head(recipe: Recipe) -> HeadMethod | None:
    return choose(HEAD_METHODS, recipe.method or "gradient", "method")


def _parse_model(recipe: Recipe) -> Architecture | None:
    """The recipe's network, made for 2 classes while nothing is known of the images."""
    if recipe.model is None:
        return None
    word = recipe.model if recipe.dropout is None else f"{recipe.model}:dropout={recipe.dropout}"
    side = recipe.size or 32
    plan = parse_architecture(word, classes=2, channels=recipe.channels or 3, size=(side, side))
    changes: list[tuple[str, Mapping[str, Any]]] = [("mirrored", {})] if recipe.flip_tta else []
    if recipe.weight_noise:
        changes.append(("noise", {"alpha": recipe.weight_noise}))
    head = _parse_head(recipe)
    if head is not None and (head.normalises or (recipe.unlabelled and not recipe.semi_supervised)):
        changes.append(("prototypes", {"normalise": True}))
    return replace(plan, surgery=(*plan.surgery, *changes))


_PARSERS: Mapping[str, tuple[Callable[[Recipe], Any], Set[str]]] = {
    "objective": (parse_objective, {"loss", "loss_weight", "label_smoothing", "class_weights"}),
    "sampling": (lambda recipe: choose(SAMPLINGS, recipe.sampling, "sampling"), {"sampling"}),
    "class_weighting": (
        lambda recipe: choose(CLASS_WEIGHTINGS, recipe.class_weights, "class weighting"),
        {"class_weights"},
    ),
    "mitigation": (
        lambda recipe: choose(MITIGATIONS, recipe.fairness_method, "fairness method"),
        {"fairness_method"},
    ),
    "optimizer": (lambda recipe: choose(OPTIMIZERS, recipe.optimizer, "optimiser"), {"optimizer"}),
    "schedule": (
        lambda recipe: choose(
            {name: partial(make, warmup=recipe.warmup) for name, make in SCHEDULES.items()},
            recipe.schedule,
            "schedule",
        ),
        {"schedule", "warmup"},
    ),
    "freezing": (lambda recipe: choose(FREEZE_SCHEDULES, recipe.freeze, "freeze schedule"), {"freeze"}),
    "head": (_parse_head, {"method"}),
    "domain": (parse_domain_term, {"adapt", "target", "method", "grad_accum_steps", "cpu_replicas", "devices"}),
    "semi_supervised": (
        lambda recipe: choose(SEMI_SUPERVISED_METHODS, recipe.semi_supervised or "none", "semi-supervised method"),
        {"semi_supervised"},
    ),
    "augment": (lambda recipe: parse_policy(recipe.augment or ()), {"augment"}),
    "architecture": (
        _parse_model,
        {"method", "model", "dropout", "flip_tta", "weight_noise", "unlabelled", "semi_supervised"},
    ),
}
"""Part of a plan -> how it is parsed, and the fields of a recipe it is parsed from."""
