"""Optimisers (torch's own; ``muon.py`` has one more) and learning-rate schedules.

To add an optimiser, write a dataclass with ``default_lr`` that returns a torch optimiser; to add a schedule,
subclass ``Schedule``; name it in ``OPTIMIZERS`` or ``SCHEDULES`` in ``plan.py``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from inspect import unwrap
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import nn

from ..checks import check_int, check_number
from ..classifier import Classifier
from ..models import find_stages

ParameterGroups = list[dict[str, Any]]
"""Torch's parameter groups, with ``lr_factor``, a factor on the learning rate that the loop sets, and ``stage``, the
number of stages between these parameters and the head."""


@runtime_checkable
class OptimizerFactory(Protocol):
    """The arguments of an optimiser, before it knows parameters."""

    default_lr: ClassVar[float]
    """Peak learning rate per 128 images of a batch; scaled linearly below and above (Goyal et al. 2017)."""
    steady: ClassVar[bool]
    """Whether one rate suits all networks; otherwise the default is multiplied by the ``lr_factor`` of the network."""
    by_stage: ClassVar[bool]
    """Whether the head must be in groups of its own."""

    def __call__(
        self, groups: ParameterGroups, *, lr: float, momentum: float, fused: bool
    ) -> torch.optim.Optimizer:
        """The optimiser over these groups; ``fused`` where torch has the kernel."""
        ...


def parameter_groups(
    stages: Sequence[Sequence[nn.Parameter]], *, weight_decay: float, bias_lr: float, layer_decay: float = 1.0
) -> ParameterGroups:
    """Two groups for each of ``stages``: matrices and kernels decay; biases and norms (one dimension) do not.

    The rate of stage i is multiplied by ``layer_decay`` ** i (0 is the head), that of biases and norms by
    ``bias_lr`` too.
    """
    found: ParameterGroups = []
    for number, parameters in enumerate(stages):
        trained, slower = [p for p in parameters if p.requires_grad], layer_decay**number
        large, small = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        found += [
            {"params": large, "weight_decay": weight_decay, "lr_factor": slower, "stage": number},
            {"params": small, "weight_decay": 0.0, "lr_factor": slower * bias_lr, "stage": number},
        ]
    return found


def parameters_by_stage(classifier: Classifier) -> list[list[nn.Parameter]]:
    """The parameters of each stage of the network, from the head back to the pixels."""
    return [stage.parameters() for stage in reversed(find_stages(classifier.network))]


def without_compile(kind: type[torch.optim.Optimizer]) -> type[Any]:
    """Torch's optimiser without the decorators for torch.compile.

    Their first call imports the compiler, which doubles the time from the command to the first step.
    """
    return type(
        kind.__name__,
        (kind,),
        {
            "add_param_group": unwrap(kind.add_param_group),
            "state_dict": unwrap(kind.state_dict),
            "zero_grad": unwrap(kind.zero_grad),
            "step": torch.no_grad()(unwrap(kind.step)),
        },
    )


_SGD, _Adam, _AdamW = map(without_compile, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW))


class _DecoupledSGD(_SGD):
    """SGD that shrinks the weights by lr times the decay before the step (Loshchilov & Hutter 2019, alg. 1)."""

    @torch.no_grad()
    def step(self) -> None:
        """One step; the decay does not pass through the momentum."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]  # frozen weights do not decay either
            if group["decoupled"] and moved:
                torch._foreach_mul_(moved, 1 - group["lr"] * group["decoupled"])
        super().step()


@dataclass(frozen=True, kw_only=True)
class SGD:
    """Momentum, Nesterov's or the classical one; the decay is added to the gradient (L2) or decoupled."""

    nesterov: bool = True
    decoupled: bool = False
    default_lr: ClassVar[float] = 0.1
    steady: ClassVar[bool] = False
    by_stage: ClassVar[bool] = False

    def __call__(
        self, groups: ParameterGroups, *, lr: float, momentum: float, fused: bool
    ) -> torch.optim.Optimizer:
        """SGD over these groups."""
        settings: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": self.nesterov and momentum > 0,
            "fused": fused,
        }
        if not self.decoupled:
            return _SGD(groups, **settings)
        apart = [group | {"decoupled": group["weight_decay"], "weight_decay": 0.0} for group in groups]
        return _DecoupledSGD(apart, **settings)


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015); the decay is added to the gradient (L2). ``momentum`` is beta1."""

    beta2: float = 0.999
    default_lr: ClassVar[float] = 2e-3
    steady: ClassVar[bool] = True
    by_stage: ClassVar[bool] = False
    kind: ClassVar[type[Any]] = _Adam

    def __post_init__(self) -> None:
        """Raise ValueError for a beta2 outside [0, 1)."""
        check_number("beta2", self.beta2, 0, below=1)

    def __call__(
        self, groups: ParameterGroups, *, lr: float, momentum: float, fused: bool
    ) -> torch.optim.Optimizer:
        """Adam over these groups."""
        return self.kind(groups, lr=lr, betas=(momentum, self.beta2), fused=fused)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled decay (Loshchilov & Hutter 2019)."""

    kind: ClassVar[type[Any]] = _AdamW


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run is: all that a schedule may depend on."""

    epoch: float
    """Finished epochs, with the fraction of the current one."""
    epochs: float
    """Epochs of the whole run, with the fraction of the last one where it is cut."""
    val_losses: Sequence[float] = ()
    """Validation loss after each finished epoch."""

    @property
    def fraction(self) -> float:
        """Finished fraction of the run, in [0, 1]."""
        return min(1.0, self.epoch / self.epochs) if self.epochs else 0.0


@dataclass(frozen=True)
class Schedule(ABC):
    """A factor on the peak learning rate; ``warmup`` is the fraction of the run in which it rises to the peak."""

    warmup: float = field(default=0.2, kw_only=True)

    @property
    def first_drop(self) -> int:
        """Epochs before a schedule in steps first changes the rate; 0 for the others. A shorter run is refused."""
        return 0

    @abstractmethod
    def __call__(self, progress: TrainingProgress) -> float:
        """The factor at this point of the run."""

    def rise(self, progress: TrainingProgress) -> float:
        """The linear warm-up: from 0 to 1, then 1."""
        return min(1.0, progress.fraction / self.warmup) if self.warmup else 1.0

    def after_warmup(self, progress: TrainingProgress) -> float:
        """Finished fraction of what follows the warm-up."""
        return max(0.0, progress.fraction - self.warmup) / (1 - self.warmup)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """From 1/25 of the peak up along a cosine for ``warmup``, then down to 1e-4 of it (Smith & Topin 2018)."""

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        if progress.fraction < self.warmup:
            return _interpolate_cosine(1 / 25, 1.0, progress.fraction / self.warmup)
        return _interpolate_cosine(1.0, 1e-4, (progress.fraction - self.warmup) / (1 - self.warmup))


@dataclass(frozen=True)
class Cosine(Schedule):
    """(1 + cos(pi t)) / 2 after the warm-up (Loshchilov & Hutter 2017, eq. 5)."""

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        return self.rise(progress) * _interpolate_cosine(1.0, 0.0, self.after_warmup(progress))


@dataclass(frozen=True)
class Linear(Schedule):
    """In a straight line from the peak to ``end`` of it after the warm-up."""

    end: float = 0.0

    def __post_init__(self) -> None:
        check_number("end", self.end, 0, 1)

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        return self.rise(progress) * (1 + (self.end - 1) * self.after_warmup(progress))


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak, after the warm-up."""

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        return self.rise(progress)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """gamma^floor(epoch / every): a drop after each ``every`` epochs (He et al. 2015, and most papers)."""

    every: int = 10
    gamma: float = 0.1

    def __post_init__(self) -> None:
        check_int("every", self.every, 1)
        check_number("gamma", self.gamma, 0, 1)

    @property
    def first_drop(self) -> int:
        """Epochs before the first drop."""
        return self.every

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        return self.rise(progress) * self.gamma ** math.floor(progress.epoch / self.every + 1e-9)


@dataclass(frozen=True)
class Exponential(Schedule):
    """gamma^epoch, continuously."""

    gamma: float = 0.9

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, 0, 1)

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        return self.rise(progress) * self.gamma**progress.epoch


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """From the peak along a cosine to ``end`` of it, again and again (SGDR: Loshchilov & Hutter 2017).

    The first cycle takes ``first`` epochs, each further one ``factor`` times as many. They begin after the warm-up.
    """

    first: int = 1
    factor: int = 2
    end: float = 0.01

    def __post_init__(self) -> None:
        check_int("first", self.first, 1)
        check_int("factor", self.factor, 1)
        check_number("end", self.end, 0, 1)

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        done, length = self.after_warmup(progress) * (1 - self.warmup) * progress.epochs, float(self.first)
        while done >= length:
            done, length = done - length, length * self.factor
        return self.rise(progress) * _interpolate_cosine(1.0, self.end, done / length)


@dataclass(frozen=True)
class Plateau(Schedule):
    """Times ``gamma`` whenever the validation loss has not fallen for ``patience`` epochs.

    A loss has fallen where it is below the lowest so far by more than the fraction ``threshold``. The schedule is a
    function of the history of losses and has no state, so a resumed run goes on exactly.
    """

    gamma: float = 0.1
    patience: int = 3
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        check_int("patience", self.patience, 1)
        check_number("gamma", self.gamma, 0, 1)
        check_number("threshold", self.threshold, 0, 1)

    @property
    def first_drop(self) -> int:
        """Epochs before the first drop."""
        return self.patience + 1

    def __call__(self, progress: TrainingProgress) -> float:
        """The factor."""
        drops, waited, best = 0, 0, math.inf
        for loss in progress.val_losses:
            if loss < best * (1 - self.threshold):
                best, waited = loss, 0
            else:
                waited += 1
            if waited >= self.patience:
                drops, waited = drops + 1, 0
        return self.rise(progress) * self.gamma**drops


def _interpolate_cosine(start: float, end: float, t: float) -> float:
    """From ``start`` (t = 0) to ``end`` (t = 1) along a cosine, flat at both."""
    return end + (start - end) * (1 + math.cos(math.pi * t)) / 2
