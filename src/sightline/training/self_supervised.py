"""Pre-training without labels: two augmented views of an image should have like features, those of others not.

The projector and predictor belong to the method: they are trained and checkpointed with the backbone, and never saved
with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from .. import runtime
from ..batches import Batch
from ..checks import check_number, check_positive
from ..classifier import Classifier
from ..data import Shuffle, count_batches, iterate_batches
from ..errors import RecipeError, TrainingError
from ..models import get_head
from ..types import Dataset
from .build import MEMORY_FORMATS
from .fit import Method, TrainingState
from .hooks import EMA, BaseHook
from .losses import Objective
from .plan import Plan

HIDDEN, PROJECTED = 256, 128
"""Width of the hidden layer of projector and predictor, and of what is compared."""

COLLAPSED_SPREAD = 0.1
"""Spread of the projections, as a share of that of independent ones, below which all images look alike."""


def nt_xent(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], temperature: float) -> Float[Tensor, ""]:
    """SimCLR's loss: cross-entropy of finding an image's other view among all (Chen et al. 2020, arXiv 2002.05709)."""
    unit = F.normalize(torch.cat([first, second]).float(), dim=1)
    similar = (unit @ unit.T / temperature).fill_diagonal_(float("-inf"))
    return F.cross_entropy(similar, torch.arange(len(unit), device=unit.device).roll(len(first)))


def cosine_regression(predicted: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """BYOL's loss of one direction, 2 - 2 cos, mean over the batch; the target has no gradient (2006.07733)."""
    return 2 - 2 * F.cosine_similarity(predicted.float(), target.detach().float(), dim=1).mean()


def spread(projections: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Mean standard deviation of the dimensions of unit vectors in units of 1/sqrt(D): about 1, or 0 when collapsed."""
    unit = F.normalize(projections.detach().float(), dim=1)
    return unit.std(0).mean() * unit.shape[1] ** 0.5


class Spread(BaseHook):
    """Watches that projections of different images differ; raises TrainingError after an epoch where they do not."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def after_epoch(self, state: TrainingState) -> None:
        """Say the epoch's mean spread."""
        if not self.seen:
            return
        mean = torch.stack(self.seen).mean().item()
        self.seen.clear()
        state.epoch_note = f"  spread {mean:.2f}"
        if mean < COLLAPSED_SPREAD:
            raise TrainingError(
                f"The features collapsed in epoch {state.epoch}: the projections of all images are nearly equal "
                f"(spread {mean:.2g} of 1). Use a lower --lr, larger batches (--batch-size), or --by simclr."
            )

    def state_dict(self) -> dict[str, Any]:
        """The values of this epoch."""
        return {"seen": self.seen}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.seen = list(saved["seen"])


def build_projector(width: int, hidden: int = HIDDEN, out: int = PROJECTED) -> nn.Sequential:
    """Two layers, a batch norm between them."""
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


class ViewObjective(Objective):
    """A loss of two views of the same images."""

    across_images = True

    def __init__(self, modules: Mapping[str, nn.Module], views: "Views") -> None:
        self.modules, self.views, self.spread = modules, views, Spread()

    def project(self, classifier: Classifier, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """What is compared: the projections of the features."""
        return self.modules["projector"](classifier.features(pixels))

    def project_both(self, classifier: Classifier, batch: Batch) -> tuple[Tensor, Tensor]:
        """Projections of both views, of one pass."""
        assert batch.view is not None
        first, second = self.project(classifier, torch.cat([batch.pixels, batch.view])).chunk(2)
        if classifier.training:
            self.spread.seen.append(spread(first))
        return first, second

    def validate(self, classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
        """(loss, share of views whose nearest projection is the image's other view) on images not trained on."""
        classifier.eval()
        for module in self.modules.values():
            module.eval()
        losses, hits, seen = 0.0, 0, 0
        with torch.no_grad():
            for batch in iterate_batches(
                dataset, 256, order=Shuffle(0), device=classifier.device, augment=self.views
            ):
                first, second = (F.normalize(each.float(), dim=1) for each in self.project_both(classifier, batch))
                losses += nt_xent(first, second, 0.5).item() * len(batch)
                nearest = (first @ second.T).argmax(1)
                hits += int((nearest == torch.arange(len(batch), device=nearest.device)).sum())
                seen += len(batch)
        return losses / max(1, seen), hits / max(1, seen)


class ContrastiveObjective(ViewObjective):
    """SimCLR: see ``nt_xent``."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return "SimCLR"

    def __init__(self, modules: Mapping[str, nn.Module], views: "Views", temperature: float) -> None:
        super().__init__(modules, views)
        self.temperature = temperature

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch."""
        return nt_xent(*self.project_both(classifier, batch), self.temperature)


class BootstrapObjective(ViewObjective):
    """BYOL: predict what the moving average of the network projects of the other view."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return "BYOL"

    def __init__(self, modules: Mapping[str, nn.Module], views: "Views", teacher: EMA) -> None:
        super().__init__(modules, views)
        self.teacher = teacher

    def __call__(self, classifier: Classifier, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the batch, both ways."""
        assert batch.view is not None
        first, second = (self.modules["predictor"](z) for z in self.project_both(classifier, batch))
        with torch.no_grad():  # its norms see the batch, as the student's do
            pixels = torch.cat([batch.pixels, batch.view])
            features = self.teacher.classifier.train().features(pixels)
            one, other = self.teacher.modules.train()["projector"](features).chunk(2)
        return (cosine_regression(first, other) + cosine_regression(second, one)) / 2


@dataclass(frozen=True)
class SelfSupervised(ABC):
    """A way to pre-train."""

    @abstractmethod
    def make(self, classifier: Classifier, views: "Views") -> tuple[ViewObjective, dict[str, BaseHook]]:
        """The objective, with its modules, and hooks, for this classifier."""


@dataclass(frozen=True)
class SimCLR(SelfSupervised):
    """Tell an image's other view from the views of all other images of the batch.

    Arguments:
        temperature: of the softmax over cosines; 0.2 to 0.5 is usual.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError for a temperature that is not above 0."""
        check_positive("temperature", self.temperature)

    def make(self, classifier: Classifier, views: "Views") -> tuple[ViewObjective, dict[str, BaseHook]]:
        """A projector."""
        modules = {"projector": build_projector(get_head(classifier.network).in_features)}
        return ContrastiveObjective(modules, views, self.temperature), {}


@dataclass(frozen=True)
class BYOL(SelfSupervised):
    """Predict the projection of the other view by a moving average of the network: no negatives.

    Arguments:
        decay: of that moving average, per step.
    """

    decay: float = 0.99

    def __post_init__(self) -> None:
        """Raise ValueError for a decay outside [0, 1)."""
        check_number("decay", self.decay, 0, below=1)

    def make(self, classifier: Classifier, views: "Views") -> tuple[ViewObjective, dict[str, BaseHook]]:
        """A projector, a predictor and a moving teacher."""
        modules = {
            "projector": build_projector(get_head(classifier.network).in_features),
            "predictor": build_projector(PROJECTED),
        }
        teacher = EMA(classifier, self.decay, nn.ModuleDict(modules))
        return BootstrapObjective(modules, views, teacher), {"teacher": teacher}


SELF_SUPERVISED_METHODS: Mapping[str, Callable[..., SelfSupervised]] = {"simclr": SimCLR, "byol": BYOL}
"""The words of ``pretrain --by``: ``simclr:temperature=0.2``."""

COLOUR_VIEWS = ("flip", "resized-crop:0.2", "brightness:0.4", "contrast:0.4", "saturation:0.8", "hue:0.1")
"""Without colour jitter the colours of two crops give the pair away; flip and crop as in the literature."""

GREY_VIEWS = ("resized-crop:0.4", "rotate:10", "brightness:0.4", "contrast:0.4")
"""No mirror images: grey pictures are often characters."""


@dataclass(frozen=True)
class Views:
    """Adds a second view to a batch: both by the plan's augmentation, from the stored images."""

    plan: Plan

    def __call__(self, batch: Batch, generator: Generator) -> Batch:
        """The batch of first views, with the second ones beside them."""
        first = self.plan.augment(batch, generator)
        return replace(first, view=self.plan.augment(batch, generator).pixels)


def build_pretraining(by: SelfSupervised, classifier: Classifier, plan: Plan, images: Dataset) -> Method:
    """How the classifier's backbone is trained on these images; no label is read.

    Raises RecipeError for fewer images than a batch, or a batch of one.
    """
    recipe, views = plan.recipe, Views(plan)
    assert recipe.batch_size is not None
    size, memory_format = recipe.batch_size, MEMORY_FORMATS[recipe.memory_format or "contiguous"]
    if len(images) < size or size < 2:
        raise RecipeError(
            f"There are {len(images):,} images to pre-train on and a batch is {size}: views are compared within a "
            "batch of two or more, so add images or use a smaller --batch-size."
        )
    runtime.seed_torch(recipe.seed)
    objective, hooks = by.make(classifier, views)

    def batches(epoch: int, start: int) -> Iterator[Batch]:
        return iterate_batches(
            images, size, order=Shuffle(recipe.seed, epoch), start=start, device=classifier.device, drop_last=True,
            augment=views, memory_format=memory_format,
        )  # fmt: skip

    steps = count_batches(len(images), size, drop_last=True)
    return Method(
        objective,
        batches,
        steps,
        select=lambda row: (float(row.epoch),),
        modules=objective.modules,
        hooks={**hooks, "spread": objective.spread},
    )
