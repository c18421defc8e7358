"""How an attack looks at a classifier: in eval mode, for gradients to the pixels alone, leaving no trace."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..classifier import Classifier
from ..errors import GradientError

AttackLoss = Callable[[Float[Tensor, "B K"], Tensor], Float[Tensor, " B"]]
"""(logits, what is compared with them) -> what the attack raises, image by image."""

StopCondition = Callable[[Float[Tensor, "B K"], Tensor], Bool[Tensor, " B"]]
"""(logits, labels) -> which images are where the attack wants them."""


USE_DECISION_ATTACK = "Choose an attack that only asks for answers: --by rays."


def require_gradient(classifier: Classifier, what: str, instead: str = USE_DECISION_ATTACK) -> None:
    """Raise GradientError where there is no gradient; ``what`` begins the sentence, ``instead`` ends it."""
    if not classifier.differentiable:
        word = classifier.architecture.arguments.get("word") or classifier.architecture.name
        raise GradientError(
            f"{what} follows the gradient of the answers, and this classifier ({word}) has none. {instead}"
        )


@torch.no_grad()
def is_correct(
    classifier: Classifier, images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"]
) -> Bool[Tensor, " B"]:
    """Whether each image is given this label."""
    return classifier(images).argmax(1) == labels


def cross_entropy_loss(logits: Float[Tensor, "B K"], labels: Tensor) -> Float[Tensor, " B"]:
    """-log p of the label (of each, by its share, where labels are soft)."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin_loss(logits: Float[Tensor, "B K"], labels: Tensor) -> Float[Tensor, " B"]:
    """The strongest other logit less the label's: above 0 exactly where the answer is another."""
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return logits.scatter(1, labels.unsqueeze(1), float("-inf")).amax(1) - own


def dlr_loss(logits: Float[Tensor, "B K"], labels: Tensor) -> Float[Tensor, " B"]:
    """The margin over the distance from the first logit to the third: Croce and Hein 2020, equation 6.

    Unlike cross-entropy it does not go flat where answers are sure. It means little below four classes: there it
    is the plain margin.
    """
    if logits.shape[1] < 4:
        return margin_loss(logits, labels)
    top = logits.topk(3, 1).values
    return margin_loss(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


ATTACK_LOSSES = {"cross-entropy": cross_entropy_loss, "margin": margin_loss, "dlr": dlr_loss}
"""Name -> what a gradient attack raises."""
