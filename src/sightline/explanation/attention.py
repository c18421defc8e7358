"""Attention rollout: the attention of a vision transformer, followed from the last layer back to the patches."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..classifier import Classifier
from ..errors import ChoiceError
from .base import Explainer, as_leaf, gather_target_logits
from .cam import resize_to_image, token_grid

ATTENTION_BATCH_SIZE = 16
"""Images per pass, because the attention of all layers and heads is held in memory at once."""


class _AttentionRecorder(TorchFunctionMode):
    """Within it, attention is computed step by step and recorded: ``softmax(q k^T / sqrt(d))`` of each layer."""

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
    """The product over layers of (attention + identity) / 2 (Abnar and Zuidema 2020, arXiv 2005.00928).

    The same for every target: it says where the network looked, not for what. With ``gradient``, attention is
    weighted by its effect on the target (Chefer et al. 2021, arXiv 2103.15679). 0 is an even share, 1 twice as
    much.
    """

    gradient: bool = False

    batch_size: ClassVar[int] = ATTENTION_BATCH_SIZE

    def prepare(self, classifier: Classifier, images: Float[Tensor, "B C H W"]) -> None:
        """Raise ChoiceError for an ensemble."""
        del images
        if classifier.network.member_list():
            raise ChoiceError("Attention rollout is for a single network: explain the members of the ensemble.")

    def run(
        self, classifier: Classifier, images: Float[Tensor, "B C H W"], targets: Int[Tensor, " B"], prepared: Any
    ) -> Float[Tensor, "B C H W"]:
        """Each place's share over an even one, minus 1; ChoiceError for a network without such attention."""
        del prepared
        with _AttentionRecorder() as attending:
            score = gather_target_logits(classifier, as_leaf(images), targets).sum()
            seen = attending.seen
            skipped = _patch_grid(seen, images)[0]
            grads = torch.autograd.grad(score, seen) if self.gradient else [None] * len(seen)
        looks = 2 if classifier.network.flip_tta else 1  # flip augmentation attends to each image twice
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
    """(tokens that are no patch, rows and columns of patches); ChoiceError for a network without patches."""
    tokens = {(one.shape[0], *one.shape[2:]) for one in seen}
    grid = token_grid(seen[0].shape[-1], (images.shape[2], images.shape[3])) if len(tokens) == 1 else None
    if grid is None or seen[0].shape[0] != len(images):
        raise ChoiceError(
            "Attention rollout follows attention between the patches of a vision transformer, and this network has "
            "none: use --by gradcam, or a network such as vit."
        )
    return grid


def _roll_out(seen: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Float[Tensor, "B T T"]:
    """The share of each input token in each output token."""
    tokens = seen[0].shape[-1]
    whole = torch.eye(tokens, device=seen[0].device).expand(len(seen[0]), -1, -1)
    for attention, grad in zip(seen, grads, strict=True):
        weights = attention.detach().float()
        if grad is None:
            whole = (weights.mean(1) @ whole + whole) / 2
        else:
            whole = whole + (weights * grad).clamp(min=0).mean(1) @ whole
    return whole if grads[0] is None else whole - torch.eye(tokens, device=whole.device)
