"""A classifier run over a dataset, in batches and in order: logits, probabilities, features.

Every function puts the classifier into eval mode and leaves it there; it runs on the classifier's device.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from . import progress
from .classifier import Classifier
from .data import iterate_batches, relabel
from .errors import DataError
from .types import Dataset

INFERENCE_BATCH_SIZE = 256
"""Images per batch where the caller names no other number."""

MIN_IMAGES_TO_FOLD = 512
"""Images from which folding batch norms, which takes some passes, pays for itself."""


def map_batches(
    classifier: Classifier,
    dataset: Dataset,
    function: Callable[[Float[Tensor, "B C H W"]], Tensor],
    *,
    batch_size: int = INFERENCE_BATCH_SIZE,
    advance: Callable[[], object] | None = None,
) -> Tensor:
    """``function`` applied to the pixels of every batch, the results concatenated along the images.

    ``function`` gets pixels in [0, 1] on the classifier's device and returns a tensor with a row for each of them.
    ``advance()`` is called after each batch. Gradients are recorded unless the caller turns them off. Raises
    DataError where the dataset is empty.
    """
    if not len(dataset):
        raise DataError(
            "There are no images to run the classifier on: give data with at least one readable image."
        )
    classifier.eval()
    results, done = [], 0
    for batch in iterate_batches(dataset, batch_size, device=classifier.device):
        results.append(function(batch.pixels))
        done += len(batch)
        if advance is not None:
            advance()
        progress.break_silence(f"Running the classifier: {done:,} of {len(dataset):,} images")
    return torch.cat(results)


@torch.inference_mode()
def predict_logits(
    classifier: Classifier, dataset: Dataset, *, batch_size: int = INFERENCE_BATCH_SIZE
) -> tuple[Float[Tensor, "N K"], Int[Tensor, " N"]]:
    """Logits (float32) and the dataset's own labels, both on the CPU.

    The labels are indices into ``dataset.classes``; ``match_labels`` gives them as the classifier's. Many images are
    answered with batch norms folded into the convolutions, which changes logits by rounding (``fold_replica``).
    """
    answering = classifier.eval().fold() if len(dataset) >= MIN_IMAGES_TO_FOLD else classifier
    logits = map_batches(answering, dataset, lambda pixels: answering(pixels).float(), batch_size=batch_size)
    return logits.cpu(), torch.from_numpy(dataset.labels).clone()


def predict_probabilities(
    classifier: Classifier, dataset: Dataset, *, temperature: float | None = None
) -> tuple[Float[ndarray, "N K"], Int[ndarray, " N"]]:
    """Calibrated probabilities and labels as indices into the classifier's classes.

    ``temperature`` replaces the classifier's own. Raises DataError as ``match_labels`` does.
    """
    labels = match_labels(classifier, dataset)
    logits, _ = predict_logits(classifier, dataset)
    return to_probabilities(logits, temperature or classifier.temperature), labels


def to_probabilities(logits: Float[Tensor, "N K"], temperature: float = 1.0) -> Float[ndarray, "N K"]:
    """softmax(logits / temperature) over the classes."""
    return torch.softmax(logits / temperature, 1).numpy()


def predict_correct(classifier: Classifier, dataset: Dataset) -> Bool[ndarray, " N"]:
    """Whether each image is classified correctly; the dataset's classes must be the classifier's, in order."""
    logits, labels = predict_logits(classifier, dataset)
    return (logits.argmax(1) == labels).numpy()


def validate(classifier: Classifier, dataset: Dataset) -> tuple[float, float]:
    """Mean cross-entropy in nats, at temperature 1, and accuracy."""
    logits, labels = predict_logits(classifier, dataset)
    loss = F.cross_entropy(logits, labels).item()
    return loss, (logits.argmax(1) == labels).double().mean().item()


@torch.inference_mode()
def embed(
    classifier: Classifier, dataset: Dataset, *, batch_size: int = INFERENCE_BATCH_SIZE
) -> Float[ndarray, "N D"]:
    """The input of the network's last layer for every image, float32.

    Raises BundleError for a network without a last linear layer.
    """
    features = map_batches(
        classifier, dataset, lambda pixels: classifier.features(pixels).float(), batch_size=batch_size
    )
    return features.cpu().numpy()


def match_labels(classifier: Classifier, dataset: Dataset) -> Int[ndarray, " N"]:
    """The dataset's labels as indices into the classifier's classes, matched by class name.

    The dataset may have fewer classes, or the same in another order. Raises DataError where the dataset is empty,
    was decoded with another geometry, or has images without a label or of a class that the classifier does not know.
    """
    if not len(dataset):
        raise DataError("There are no images to evaluate on: give data with at least one readable image.")
    if dataset.geometry != classifier.geometry:
        raise DataError(
            f"The images were decoded as {dataset.geometry}, but the classifier expects "
            f"{classifier.geometry}: load them with the classifier's geometry."
        )
    if unlabelled := int((~dataset.is_labelled).sum()):
        raise DataError(
            f"{unlabelled:,} of the {len(dataset):,} images have no label: evaluate on the labelled ones "
            "(Dataset.labelled)."
        )
    return relabel(dataset, classifier.classes).labels
