"""Head first: the last layer is computed on the features of frozen weights, and fine-tuning must beat it.

(LP-FT: Kumar et al. 2022, arXiv 2202.10054.) The head is a finished classifier, saved before anything else; what
fine-tuning makes of it is kept only where it is better on the same validation images beyond noise.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from ..classifier import Classifier
from ..data import load_dataset, nested_subset
from ..errors import RecipeError
from ..features import embed_cached, predict_logits_cached
from ..files import write_json
from ..inference import predict_logits
from ..layers import PrototypeHead
from ..models import get_head
from ..sources import find_unlabelled
from ..types import Dataset, Splits
from .budget import EVALUATION_COST, Deadline
from .distributed import SINGLE_PROCESS, ProcessGroup
from .fit import Method
from .heads import PROBE_PENALTIES, predict_left_out
from .plan import Plan
from .refinement import fit_temperature, refine
from .run_folder import RunFolder

MIN_ERRORS_TO_FINE_TUNE = 3
"""With fewer validation errors of the head, a gain by fine-tuning could not be distinguished from chance."""

FINE_TUNING_MARGIN = 1.0
"""Standard errors by which fine-tuning must lower the validation loss of the head to be kept."""


MIN_FINE_TUNING_STEPS = 20
"""With time for fewer steps a computed head is not fine-tuned: they would cost more than they gain."""

FIRST_EMBEDDED_IMAGES = 32
"""Images on which the speed of the network is measured first."""

MAX_FITTING_SHARE = 0.2
"""Share of the budget that is kept, at most, for computing the head from its features."""

MIN_FITTING_SECONDS = 1.0
"""Seconds that computing the head may take even after the deadline."""


@dataclass(frozen=True, eq=False)
class HeadResult:
    """A classifier whose last layer was computed: its weights, and how it does on validation."""

    weights: Mapping[str, Tensor]
    losses: Tensor
    """Cross-entropy of each labelled validation image (nats), calibrated; of training images left out where there are
    none."""
    correct: Tensor
    temperature: float
    facts: dict[str, Any]


def fit_head(classifier: Classifier, plan: Plan, splits: Splits, deadline: Deadline | None = None) -> HeadResult:
    """Give the classifier the last layer that the plan's head method computes; returns how it does.

    Features come from the store where they are there; until the ``deadline``, those of as many training images as fit.
    Raises BundleError for a network without a last layer.
    """
    assert plan.head is not None
    began = time.perf_counter()
    train, val = splits.train.labelled, splits.val.labelled
    seconds = math.inf
    if deadline is not None:
        size = (get_head(classifier.network).in_features, len(train.classes))
        fitting = plan.head.estimate_seconds(len(train), *size) / len(train)
        train = embed_until(deadline, classifier, train, val, plan.recipe.seed, fitting=fitting)
        left = deadline.seconds_left()
        tunes = count_steps(deadline, left / 2, plan) >= MIN_FINE_TUNING_STEPS  # fine-tuning gets the other half
        seconds = max(left / 2 if tunes else left, MIN_FITTING_SECONDS)
    centring = centre_features(classifier, plan, splits)
    features = prepare_features(classifier, embed_cached(classifier, train))
    counts = plan.class_weighting(train.counts)
    weights = None if counts is None else np.asarray(counts, np.float64)[train.labels]
    images = features, train.labels, len(train.classes)
    fitted = plan.head.fit(*images, seed=plan.recipe.seed, weights=weights, seconds=seconds)
    head = get_head(classifier.network)
    with torch.no_grad():
        head.weight.copy_(fitted.weight)
        head.bias.copy_(fitted.bias)
    if len(val):
        logits, labels = predict_logits_cached(classifier, val), torch.from_numpy(val.labels)
    else:
        logits, labels = predict_left_out(plan.head, *images, seed=plan.recipe.seed, weights=weights)
        classifier.provenance["calibrated_on"] = "training images left out in turn" if len(labels) else "nothing"
    temperature = classifier.temperature = round(fit_temperature(logits, labels), 6) if len(labels) else 1.0
    losses, correct = _judge(logits, labels, temperature)
    facts = {
        "method": plan.recipe.method,
        "seconds": round(time.perf_counter() - began, 3),
        "val_accuracy": correct.double().mean().item() if len(val) else None,
        "val_errors": int((~correct).sum()) if len(val) else None,
        "val_loss": losses.mean().item() if len(val) else None,
        **({} if len(val) or not len(labels) else {"left_out_accuracy": correct.double().mean().item()}),
        **centring,
        "train_images": len(train),
        "all_train_images": len(splits.train.labelled),
        **fitted.facts,
    }
    state = {name: value.detach().clone() for name, value in classifier.state_dict().items()}
    return HeadResult(state, losses, correct, temperature, facts)


def embed_until(
    deadline: Deadline, classifier: Classifier, train: Dataset, val: Dataset, seed: int, *, fitting: float
) -> Dataset:
    """The training images whose features could be computed in time, the same share of every class; all where they fit.

    Their features are in the store. For the head ``fitting`` seconds an image are left over, or their share of the
    budget. The deadline learns what an evaluated image takes.
    """
    timed = val if len(val) else train
    for count in (1, FIRST_EMBEDDED_IMAGES):  # the first call compiles kernels
        began = time.perf_counter()
        predict_logits(classifier, some := timed.subset(np.arange(min(count, len(timed)))))
        deadline.image_seconds = (time.perf_counter() - began) / len(some)
    wanted, done = FIRST_EMBEDDED_IMAGES, 0
    while True:
        rows = nested_subset(train.labels, min(1.0, wanted / len(train)), seed)
        began = time.perf_counter()
        embed_cached(classifier, train.subset(rows))
        each = (time.perf_counter() - began) / max(1, len(rows) - done)
        done, rest = len(rows), len(train) - len(rows)
        left, each = deadline.seconds_left(), max(each, 1e-9)
        more = max(
            (left - fitting * done) / (each + fitting), (left - MAX_FITTING_SHARE * deadline.seconds) / each
        )
        if not rest or more < max(FIRST_EMBEDDED_IMAGES, 0.1 * done):
            return train.subset(rows)
        wanted = len(train) if more > 2 * rest else min(len(train), done + int(more / 2))


def describe_head(result: HeadResult, plan: Plan) -> tuple[str, ...]:
    """A sentence about the computed head, for the user; and one about the photos by which its features are centred."""
    facts, n = result.facts, len(result.correct)
    left_out = facts.get("cross_validated_accuracy")
    more = "" if left_out is None else f" ({left_out:.1%} of the training images, when left out)"
    if facts["val_errors"] is None:
        more = ", when left out"
    kind = "training" if facts["val_errors"] is None else "validation"
    right = f"{int(result.correct.sum())} of {n} {kind} images are right{more}" if n else "nothing to judge it by"
    found = f"Head by {plan.recipe.method} on frozen features: {right}, after {facts['seconds']:.0f} s."
    if facts["train_images"] < facts["all_train_images"]:
        found += (
            f" It saw {facts['train_images']:,} of {facts['all_train_images']:,} training images, which is what fits "
            f"the budget of {plan.recipe.budget} (--budget)."
        )
    if facts.get("shortened"):
        found += (
            f" It was fitted in fewer iterations than usual, its penalty one of {len(facts['cross_validated_losses'])} "
            f"tried, of {len(PROBE_PENALTIES)}, because time was short (--budget)."
        )
    if (by := facts.get("centred_by")) is None:
        return (found,)
    text = f"Features are centred by {by['images']:,} unlabelled photos of '{by['data']}' and the training photos"
    if by["test_images"]:
        text += f"; {by['test_images']:,} of them are test photos, so the test is transductive"
    return found, f"{text}. No label of theirs is used (--unlabelled)."


def can_gain(result: HeadResult | None) -> bool:
    """Whether validation shows enough errors of a computed head that an improvement could be told from chance."""
    return result is not None and (result.facts["val_errors"] or 0) >= MIN_ERRORS_TO_FINE_TUNE


def decide_fine_tuning(
    result: HeadResult, plan: Plan, deadline: Deadline | None = None
) -> tuple[Plan, str | None]:
    """The plan without epochs where fine-tuning cannot be seen to pay, or has no time until the deadline; and why."""
    assert plan.head is not None
    if not plan.head.fine_tunes:
        return plan.replace(epochs=0), None
    if plan.recipe.epochs is None and result.facts["val_errors"] is None:
        why = "No fine-tuning: without validation images nothing would show whether it helps (--val-fraction)."
        return plan.replace(epochs=0), why
    if plan.recipe.epochs is None and not can_gain(result):
        why = (
            f"No fine-tuning: with {result.facts['val_errors']} validation errors, a gain could not be "
            "distinguished from chance (--epochs N fine-tunes anyway)."
        )
        return plan.replace(epochs=0), why
    if deadline is not None:
        steps = count_steps(deadline, deadline.seconds_left(), plan)
        if steps < MIN_FINE_TUNING_STEPS:
            why = (
                f"No fine-tuning: the budget of {plan.recipe.budget} leaves time for about {max(0, int(steps))} steps, "
                f"and fewer than {MIN_FINE_TUNING_STEPS} gain nothing (--budget)."
            )
            return plan.replace(epochs=0), why
    return plan, None


def count_steps(deadline: Deadline, seconds: float, plan: Plan) -> float:
    """Steps of fine-tuning that take these seconds, by what an evaluated image takes."""
    return seconds * EVALUATION_COST["float32"] / deadline.image_seconds / (plan.recipe.batch_size or 1)


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
        facts |= {"fine_tuning": verdict, "remarks": [*facts["remarks"], verdict["reason"]]}
    else:
        facts["val_accuracy"] = head.facts["val_accuracy"]
    if group.is_main:
        write_json(folder.path / "training.json", facts)
    return facts


def compare_with_head(classifier: Classifier, splits: Splits, head: HeadResult) -> dict[str, Any]:
    """Whether the fine-tuned classifier is kept: paired, on the same validation images, both calibrated on them."""
    found = judge_change(
        "Fine-tuning", "the head alone", (head.losses, head.correct), judge_answers(classifier, splits)
    )
    return found | {"head_val_loss": head.losses.mean().item()}


def judge_answers(classifier: Classifier, splits: Splits) -> tuple[Tensor, Tensor]:
    """Loss of each labelled validation image, calibrated, and whether its answer is right."""
    return _judge(*predict_logits(classifier, splits.val.labelled), classifier.temperature)


def judge_change(
    what: str, otherwise: str, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Whether the later one is kept: it corrects as many answers as it breaks or more, and loses less beyond noise."""
    (old_losses, was_right), (losses, correct) = before, after
    gains = old_losses - losses
    error = gains.std().item() / max(1, len(gains)) ** 0.5
    mended, broken = int((correct & ~was_right).sum()), int((~correct & was_right).sum())
    kept = mended >= broken and gains.mean().item() > FINE_TUNING_MARGIN * error
    reason = (
        f"{what} corrects {mended} and breaks {broken} of {len(losses)} validation answers: "
        f"{was_right.double().mean():.1%} right before, {correct.double().mean():.1%} after; loss "
        f"{old_losses.mean():.3f} and {losses.mean():.3f}: "
        + ("it is kept." if kept else f"{otherwise} is kept, because the difference is within noise or worse.")
    )
    return {
        "kept": kept,
        "mended": mended,
        "broken": broken,
        "val_accuracy": correct.double().mean().item(),
        "val_loss": losses.mean().item(),
        "reason": reason,
    }


def centre_features(classifier: Classifier, plan: Plan, splits: Splits) -> dict[str, Any]:
    """Let the last layer subtract the mean feature of the training images and the recipe's ``unlabelled`` ones.

    A copy counts once. Returns the facts, which the bundle's provenance holds too; nothing without ``unlabelled``.
    """
    if plan.recipe.unlabelled is None or plan.semi_supervised is not None:
        return {}
    train, head = splits.train, get_head(classifier.network)
    assert isinstance(head, PrototypeHead)
    others = load_dataset(find_unlabelled(plan.recipe.unlabelled), train.geometry)
    new = np.unique(others.digests, return_index=True)[1]
    others = others.subset(np.sort(new[~np.isin(others.digests[new], train.digests)]))
    features = [embed_cached(classifier, train), embed_cached(classifier, others)]
    with torch.no_grad():
        head.centre.copy_(torch.from_numpy(np.concatenate(features).mean(0, dtype=np.float64)))
    facts = {
        "data": Path(plan.recipe.unlabelled).name,
        "images": len(others),
        "test_images": int(np.isin(others.digests, splits.test.digests).sum()),
        "data_fingerprint": others.fingerprint,
    }
    classifier.provenance["centred_by"] = facts
    return {"centred_by": facts}


def prepare_features(classifier: Classifier, features: Float[ndarray, "N D"]) -> Float[ndarray, "N D"]:
    """Features as the weights of the last layer meet them: centred and normalised where it does that."""
    head = get_head(classifier.network)
    if not isinstance(head, PrototypeHead):
        return features
    return head.prepare(torch.from_numpy(features).to(head.weight.device)).cpu().numpy()


def check_head_method(plan: Plan) -> None:
    """Raise RecipeError where the head cannot be computed as the recipe says, or validation is needed."""
    recipe = plan.recipe
    if plan.head is None and recipe.unlabelled is not None and plan.semi_supervised is None:
        raise RecipeError(
            "Unlabelled photos centre the features of a computed head, and this run has none: choose --method "
            "prototypes, probe, lda or finetune, or leave --unlabelled out; or learn from them, --semi-supervised "
            "fixmatch."
        )
    if recipe.val_fraction == 0 and (recipe.epochs if plan.head is not None else recipe.epochs != 0):
        raise RecipeError(
            "The recipe's val_fraction is 0, but training keeps the epoch that is best on validation: leave it out, "
            "or compute the head alone, such as --method probe."
        )
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
