"""Head first: the last layer is computed on the features of frozen weights, and fine-tuning must beat it.

(LP-FT: Kumar et al. 2022, arXiv 2202.10054.) The head is a finished classifier, saved before anything else; what
fine-tuning makes of it is kept only where it is better on the same validation images beyond noise.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..classifier import Classifier
from ..errors import RecipeError
from ..features import embed_cached
from ..files import write_json
from ..inference import predict_logits
from ..models import get_head
from ..types import Splits
from .distributed import SINGLE_PROCESS, ProcessGroup
from .fit import Method
from .plan import Plan
from .refinement import fit_temperature, refine
from .run_folder import RunFolder

MIN_ERRORS_TO_FINE_TUNE = 3
"""With fewer errors of the head on validation, no gain of fine-tuning could be told from chance."""

FINE_TUNING_MARGIN = 1.0
"""Standard errors by which fine-tuning must lower the validation loss of the head to be kept."""


@dataclass(frozen=True, eq=False)
class HeadResult:
    """A classifier whose last layer was computed: its weights, and how it does on validation."""

    weights: Mapping[str, Tensor]
    losses: Tensor
    """Cross-entropy of each labelled validation image (nats), calibrated."""
    correct: Tensor
    temperature: float
    facts: dict[str, Any]


def fit_head(classifier: Classifier, plan: Plan, splits: Splits) -> HeadResult:
    """Give the classifier the last layer that the plan's head method computes; returns how it does.

    Features come from the store where they are there. Raises BundleError for a network without a last
    layer.
    """
    assert plan.head is not None
    began = time.perf_counter()
    train, val = splits.train.labelled, splits.val.labelled
    features = embed_cached(classifier, train)
    counts = plan.class_weighting(train.counts)
    weights = None if counts is None else np.asarray(counts, np.float64)[train.labels]
    fitted = plan.head.fit(features, train.labels, len(train.classes), seed=plan.recipe.seed, weights=weights)
    head = get_head(classifier.network)
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        head.bias.copy_(fitted.bias)
    logits, labels = predict_logits(classifier, val)
    temperature = classifier.temperature = round(fit_temperature(logits, labels), 6)
    losses, correct = _judge(logits, labels, temperature)
    facts = {
        "method": plan.recipe.method,
        "seconds": round(time.perf_counter() - began, 3),
        "val_accuracy": correct.double().mean().item(),
        "val_errors": int((~correct).sum()),
        **fitted.facts,
    }
    state = {name: value.detach().clone() for name, value in classifier.state_dict().items()}
    return HeadResult(state, losses, correct, temperature, facts)


def describe_head(result: HeadResult, plan: Plan) -> str:
    """A sentence about the computed head, for the user."""
    facts, n = result.facts, len(result.correct)
    left_out = facts.get("cross_validated_accuracy")
    more = "" if left_out is None else f" ({left_out:.1%} of the training images, when left out)"
    return (
        f"Head by {plan.recipe.method} on frozen features: {n - facts['val_errors']} of {n} validation images are "
        f"right{more}, after {facts['seconds']:.0f} s."
    )


def decide_fine_tuning(result: HeadResult, plan: Plan) -> tuple[Plan, str | None]:
    """The plan without epochs where fine-tuning cannot be seen to pay, and why."""
    assert plan.head is not None
    if not plan.head.fine_tunes:
        return plan.replace(epochs=0), None
    if plan.recipe.epochs is None and result.facts["val_errors"] < MIN_ERRORS_TO_FINE_TUNE:
        why = (
            f"No fine-tuning: with {result.facts['val_errors']} validation errors, a gain could not be told from "
            "chance (--epochs N fine-tunes all the same)."
        )
        return plan.replace(epochs=0), why
    return plan, None


def refine_head(
    classifier: Classifier,
    plan: Plan,
    splits: Splits,
    method: Method,
    folder: RunFolder,
    head: HeadResult,
    *,
    resume: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, Any]:
    """``refine`` from a computed head: the head is saved first, and kept unless fine-tuning is better beyond noise.

    Returns the facts of ``training.json``, with those of the head under ``head`` and the comparison under
    ``fine_tuning``.
    """
    if group.is_main and not resume:
        classifier.save(folder.bundle)
    resume = resume and folder.checkpoint.exists()
    facts = refine(classifier, plan, splits, method, folder, resume=resume, group=group) | {"head": head.facts}
    if plan.recipe.epochs:
        verdict = compare_with_head(classifier, splits, head)
        if group.is_main:
            folder.log(verdict["reason"])
        if not verdict["kept"]:
            classifier.load_state_dict(head.weights)
            classifier.temperature = head.temperature
            if group.is_main:
                classifier.save(folder.bundle)
            facts |= {
                "best_epoch": 0,
                "temperature": head.temperature,
                "val_accuracy": head.facts["val_accuracy"],
            }
        facts["fine_tuning"] = verdict
    else:
        facts["val_accuracy"] = head.facts["val_accuracy"]
    if group.is_main:
        write_json(folder.path / "training.json", facts)
    return facts


def compare_with_head(classifier: Classifier, splits: Splits, head: HeadResult) -> dict[str, Any]:
    """Whether the fine-tuned classifier is kept: paired, on the same validation images, both calibrated on them."""
    logits, labels = predict_logits(classifier, splits.val.labelled)
    losses, correct = _judge(logits, labels, classifier.temperature)
    gains = head.losses - losses
    error = gains.std().item() / max(1, len(gains)) ** 0.5
    mended, broken = int((correct & ~head.correct).sum()), int((~correct & head.correct).sum())
    kept = mended >= broken and gains.mean().item() > FINE_TUNING_MARGIN * error
    reason = (
        f"Fine-tuning mends {mended} and breaks {broken} of {len(labels)} validation answers; loss "
        f"{head.losses.mean():.3f} before, {losses.mean():.3f} after: "
        + ("it is kept." if kept else "the head alone is kept, because the difference is within noise or worse.")
    )
    return {
        "kept": kept,
        "mended": mended,
        "broken": broken,
        "val_accuracy": correct.double().mean().item(),
        "val_loss": losses.mean().item(),
        "head_val_loss": head.losses.mean().item(),
        "reason": reason,
    }


def check_head_method(plan: Plan) -> None:
    """Raise RecipeError where the head cannot be computed as the recipe says."""
    recipe = plan.recipe
    if plan.head is None:
        return
    if not plan.is_pretrained and plan.source is None and recipe.weights is None:
        raise RecipeError(
            f"The recipe's method is '{recipe.method}', which needs trained weights, and they start random: choose a "
            "network with pretrained=True or give --weights, or leave --method out."
        )
    if recipe.flip_tta or recipe.weight_noise:
        raise RecipeError(f"The method '{recipe.method}' goes with neither --flip-tta nor --weight-noise.")


def _judge(logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return F.cross_entropy(logits / temperature, labels, reduction="none"), logits.argmax(1) == labels
