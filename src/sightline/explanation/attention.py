"""Where the tokens of a vision transformer look: attention followed from the last layer back to the patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..classifier import Classifier
from ..errors import ChoiceError
from .base import (
    Explainer,
    as_leaf,
    deterministic_eval,
    explain_in_batches,
    gather_target_logits,
    require_logit_gradient,
)
from .cam import resize_to_image, token_grid

ATTENTION_BATCH_SIZE = 16
"""Images at a time: their attention in every layer and head is held at once."""


class _AttentionRecorder(TorchFunctionMode):
    """Within it, attention is worked out in the open and kept: ``softmax(q k^T / sqrt(d))`` of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any
    ) -> Tensor:
        scale = more.get("scale") or query.shape[-1] ** -0.5
        logits = query @ key.transpose(-2, -1) * scale
        if attn_mask is not None:
            logits = (
                logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
            )
        self.seen.append(logits.softmax(-1))
        return self.seen[-1] @ value


@dataclass(frozen=True)
class AttentionRollout(Explainer):
    """Attention of all layers multiplied, half of it for what tokens keep (Abnar and Zuidema 2020, 2005.00928).

    The same for every target: it says where the network looked, not for what. With ``gradient``, attention counts
    by what it does for the target (Chefer et al. 2021, 2103.15679). 0 is an even share, 1 twice as much.
    """

    gradient: bool = False

    def __call__(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """Each place's share over an even one, less 1; raises ChoiceError where a network does not attend so."""
        require_logit_gradient(classifier, "Attention rollout")
        if classifier.network.member_list():
            raise ChoiceError("Attention rollout is of a single network: explain the members of the ensemble.")
        return explain_in_batches(
            lambda some, of: self._explain(classifier, some, of), images, targets, ATTENTION_BATCH_SIZE
        )

    def _explain(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        with deterministic_eval(classifier), _AttentionRecorder() as attending:
            score = gather_target_logits(classifier, as_leaf(images), targets).sum()
            seen = attending.seen
            skipped = _patch_grid(seen, images)[0]
            grads = torch.autograd.grad(score, seen) if self.gradient else [None] * len(seen)
        looks = 2 if classifier.network.flip_tta else 1  # a mirrored network attends to each image twice
        count, size = len(seen) // looks, (images.shape[2], images.shape[3])
        maps = []
        for look in range(looks):
            chosen = slice(look * count, (look + 1) * count)
            rolled = _roll_out(seen[chosen], grads[chosen])
            row = rolled[:, 0, skipped:] if skipped else rolled.mean(1)
            _, *grid = _patch_grid(seen, images)
            whole = resize_to_image(classifier.network, row.unflatten(1, grid)[:, None], size)
            maps.append(whole.flip(3) if look else whole)
        shares = torch.stack(maps).mean(0)
        return (shares / shares.mean((2, 3), keepdim=True).clamp(min=1e-30) - 1).expand_as(images)


def _patch_grid(seen: Sequence[Tensor], images: Float[Tensor, "B C H W"]) -> tuple[int, int, int]:
    """(tokens that are no patch, patches down, patches across); raises ChoiceError where there are none."""
    tokens = {(one.shape[0], *one.shape[2:]) for one in seen}
    grid = token_grid(seen[0].shape[-1], (images.shape[2], images.shape[3])) if len(tokens) == 1 else None
    if grid is None or seen[0].shape[0] != len(images):
        raise ChoiceError(
            "Attention rollout follows attention from one patch to all others, layer by layer, and this network "
            "does not work so: use --by gradcam, or a single network of the kind vit."
        )
    return grid


def _roll_out(seen: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Float[Tensor, "B T T"]:
    """What each token at the end holds of each at the beginning."""
    tokens = seen[0].shape[-1]
    whole = torch.eye(tokens, device=seen[0].device).expand(len(seen[0]), -1, -1)
    for attention, grad in zip(seen, grads, strict=True):
        weights = attention.detach().float()
        if grad is None:
            whole = (weights.mean(1) @ whole + whole) / 2
        else:
            whole = whole + (weights * grad).clamp(min=0).mean(1) @ whole
    return whole if grads[0] is None else whole - torch.eye(tokens, device=whole.device)
