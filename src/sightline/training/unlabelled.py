"""Images without a label join a training: which they are, and how they come beside the labelled batches."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray

from .. import runtime
from ..augmentation import Compose, StrongAugment
from ..batches import Batch
from ..classifier import Classifier
from ..data import Augment, concat, find_near_duplicates, load_dataset, nested_subset, strip_labels, to_tensor
from ..errors import RecipeError, TrainingError
from ..inference import embed
from ..sources import find_unlabelled
from ..types import Dataset, Splits
from .distributed import ProcessGroup
from .domain import DomainLoss, TargetWatcher, domain_step, find_target, rank_by_epoch
from .fit import Batches, Method
from .plan import Plan
from .pseudo_labels import PseudoLabels, SemiSupervisedLoss
from .recipe import Recipe

_POOL = 91  # a stream of random numbers

MAX_POOL_NEAR_IMAGES = 10_000
"""Images up to which near duplicates of held-out images are looked for among unlabelled ones; else exact copies."""


def find_pool(plan: Plan, splits: Splits) -> tuple[Dataset, tuple[str, ...]]:
    """All images without a label that a run may learn from, in the order of their bytes; and notes.

    They are those of the training split and those of the recipe's ``unlabelled``. Copies of validation and test
    images are left out and named. Nothing about a file but its pixels counts: neither its name nor its folder. Raises
    RecipeError where there is none.
    """
    own, notes = splits.train.unlabelled, []
    if plan.recipe.unlabelled is not None:
        found = load_dataset(find_unlabelled(plan.recipe.unlabelled), splits.train.geometry)
        own = concat([replace(own, columns={}), replace(strip_labels(found, own.classes), columns={})])
    own = own.subset(np.unique(own.digests, return_index=True)[1])
    held_out = [replace(part, columns={}) for part in (splits.val, splits.test) if len(part)]
    leaked = np.isin(own.digests, np.concatenate([part.digests for part in held_out])) if held_out else None
    if leaked is not None and len(own) and len(own) + sum(map(len, held_out)) <= MAX_POOL_NEAR_IMAGES:
        leader = find_near_duplicates(concat([own, *held_out]))
        leaked |= np.isin(leader[: len(own)], leader[len(own) :])
    if leaked is not None and leaked.any():
        first = own.files[np.flatnonzero(leaked)[0]]
        what = "1 unlabelled image repeats" if leaked.sum() == 1 else f"{leaked.sum():,} unlabelled images repeat"
        notes.append(f"{what} a validation or test image (the first is '{first}'): left out.")
        own = own.subset(~leaked)
    if not len(own):
        raise no_pool_error(plan.recipe)
    return own, tuple(notes)


def no_pool_error(recipe: Recipe) -> RecipeError:
    """The error where images without a label are to be learned from, and there are none."""
    return RecipeError(
        f"The recipe's semi_supervised is '{recipe.semi_supervised}', and there is no image without a label: put them "
        "in a folder 'unlabelled' beside the classes, leave label cells of the table empty, or name them, "
        "--unlabelled FOLDER."
    )


def limit_validation(plan: Plan, splits: Splits) -> tuple[Splits, tuple[str, ...]]:
    """The splits with no more labelled validation images than training ones, where a semi-supervised method learns.

    Else labels would choose the epoch that are said not to be there (Oliver et al. 2018, arXiv 1804.09170).
    """
    val, most = splits.val.labelled, len(splits.train.labelled)
    if plan.semi_supervised is None or len(val) <= most:
        return splits, ()
    some = val.subset(nested_subset(val.labels, most / len(val), plan.recipe.data_seed)[:most])
    note = (
        f"Validation on {len(some):,} of {len(val):,} images: more than the {most:,} labelled training images would be "
        "labels that such a run is said not to have."
    )
    return replace(splits, val=some), (note,)


def add_unlabelled(
    method: Method, plan: Plan, splits: Splits, group: ProcessGroup, device: torch.device
) -> Method:
    """The method with the plan's semi-supervised objective, and unlabelled images beside each of its batches."""
    by = plan.semi_supervised
    assert by is not None
    pool, _ = find_pool(plan, splits)
    train = splits.train.labelled
    shares = torch.from_numpy(train.counts / max(1, len(train))).float()
    known = PseudoLabels(train.classes, shares, by.momentum)
    batches = UnlabelledBatches(
        method.batches, method.steps_per_epoch, pool, plan, ratio=by.ratio if by.weight else 0,
        two_views=by.two_views, device=device, rank=group.rank, ranks=group.size,
    )  # fmt: skip
    objective = SemiSupervisedLoss(method.objective, by, known)
    return replace(method, objective=objective, batches=batches, hooks={**method.hooks, "pseudo_labels": known})


def add_target(method: Method, plan: Plan, classifier: Classifier, splits: Splits, group: ProcessGroup) -> Method:
    """The method with the plan's domain term, and target images beside each of its batches; unchanged at weight 0.

    The last epoch is kept: source images cannot say which epoch is the best on the target.
    """
    term = plan.domain
    assert term is not None
    if not term.weight:
        return method
    images, _ = find_target(plan.recipe, splits)
    batches = UnlabelledBatches(
        method.batches, method.steps_per_epoch, images, plan, ratio=1, two_views=False, device=classifier.device,
        rank=group.rank, ranks=group.size,
    )  # fmt: skip
    runtime.seed_torch(plan.recipe.seed)
    modules = term.build_modules(embed(classifier, images.subset(np.arange(1))).shape[1])
    return replace(
        method,
        objective=DomainLoss(method.objective, term, modules),
        batches=batches,
        step=domain_step,
        select=rank_by_epoch,
        modules=modules,
        hooks={**method.hooks, "target": TargetWatcher(images)},
    )


@dataclass(eq=False)
class UnlabelledBatches:
    """Batches, each with ``ratio`` times as many images of the pool beside it: a weak and a strong view of them.

    Both views are drawn from the stored image. The pool is gone through in a new order each time. A pure function of
    epoch and step; its state only tells another pool.
    """

    labelled: Batches
    steps_per_epoch: int
    pool: Dataset
    plan: Plan
    ratio: int
    two_views: bool
    device: torch.device
    rank: int = 0
    ranks: int = 1
    _order: tuple[int, ndarray] = field(default=(-1, np.empty(0)), repr=False)

    def __post_init__(self) -> None:
        policy: Augment = self.plan.augment
        members = getattr(policy, "members", None)
        if members is not None:  # mixing needs labels
            policy = Compose(tuple(one for one in members if not getattr(one, "mixes_labels", False)))
        self.weak, self.strong = policy, StrongAugment()

    def __call__(self, epoch: int, start: int) -> Iterator[Batch]:
        """The remaining batches of an epoch."""
        for step, batch in enumerate(self.labelled(epoch, start), start):
            yield replace(batch, beside=self._draw(epoch, step, len(batch))) if self.ratio else batch

    def _draw(self, epoch: int, step: int, labelled: int) -> Batch:
        count = labelled * self.ratio
        first = ((epoch * self.steps_per_epoch + step) * self.ranks + self.rank) * count
        chosen = self._positions(first, count)
        raw = Batch(
            pixels=to_tensor(self.pool[chosen], self.device),
            labels=torch.from_numpy(self.pool.labels[chosen]).to(self.device),
            index=torch.from_numpy(chosen).to(self.device),
            classes=len(self.pool.classes),
            epoch=epoch,
        )
        own = (self.rank,) if self.ranks > 1 else ()
        generator = runtime.make_generator(self.plan.recipe.seed, epoch, step, _POOL, *own)
        weak = self.weak(raw, generator)
        if not self.two_views:
            return weak
        return replace(weak, view=self.strong(self.weak(raw, generator), generator).pixels)

    def _positions(self, first: int, count: int) -> Int[ndarray, " n"]:
        """Places ``first`` to ``first + count`` of an endless sequence of permutations of the pool."""
        size = len(self.pool)
        parts = []
        for turn in range(first // size, (first + count - 1) // size + 1):
            if self._order[0] != turn:
                self._order = turn, runtime.permutation(size, self.plan.recipe.seed, turn, _POOL)
            parts.append(self._order[1][max(0, first - turn * size) : max(0, first + count - turn * size)])
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, str]:
        """Which images are in the pool."""
        return {"pool": self._fingerprint()}

    def load_state_dict(self, saved: dict[str, str]) -> None:
        """Raise TrainingError where the pool is another one than the run began with."""
        if saved["pool"] != self._fingerprint():
            raise TrainingError(
                "The unlabelled images changed since the run began, so it cannot be resumed exactly. Restore the old "
                "ones, or train again."
            )

    def _fingerprint(self) -> str:
        return hashlib.blake2b(self.pool.digests.astype("<u8").tobytes(), digest_size=16).hexdigest()
