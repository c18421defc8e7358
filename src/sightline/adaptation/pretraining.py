"""``pretrain``: a backbone from images without labels, next to what it must beat."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .. import progress, runtime
from ..baselines import embed_published
from ..features import predict_knn
from ..files import write_json
from ..inference import embed
from ..metrics import wilson
from ..training import KNN_FILE, Pretraining, Recipe, SilentRunFolder, pretrain_backbone, train_on_splits
from ..types import Dataset, Interval

MAX_BANK_IMAGES, MAX_ASKED_IMAGES = 5_000, 2_000
"""Labelled images that vote in the k-NN, and test images that it is asked about: within 2 points at 95 %."""

PRETRAINING_SHARE = 0.75
"""Share of the budget for pre-training; the supervised network that it is compared with takes the rest."""


@dataclass(frozen=True, eq=False)
class PretrainResult:
    """A pre-trained backbone, and the k-NN accuracy of its features next to others'."""

    folder: Path
    by: str
    images: int
    epochs: int
    knn: dict[str, Interval]
    """Accuracy on held-out test images, by backbone; empty where the images have no labels."""
    sentences: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The contents of ``knn.json``."""
        found = {name: one.as_json() for name, one in self.knn.items()}
        facts = {"by": self.by, "images": self.images, "epochs": self.epochs}
        return facts | {"knn": found, "sentences": list(self.sentences)}


def pretrain_and_compare(
    recipe: Recipe,
    by: str,
    *,
    out: Path | None,
    resume: Path | None,
    device: str,
    overwrite: bool,
    began: float,
) -> PretrainResult:
    """Pre-train, and compare with the untrained, a supervised and the embedded network: see ``adaptation.pretrain``."""
    made = pretrain_backbone(
        recipe,
        by,
        out=out,
        resume=resume,
        device=device,
        overwrite=overwrite,
        began=began,
        share=PRETRAINING_SHARE,
    )
    knn, sentences = compare_backbones(made), list(made.facts["remarks"])
    if not knn:
        sentences.append(
            "The images have no labels, so nothing is measured: a k-NN needs images of known classes."
        )
    elif knn["pretrained"].value <= knn["untrained"].value:
        sentences.append(
            "The features are no better than those of the untrained network: train much longer, or do without."
        )
    elif knn["pretrained"].value <= knn["embedded"].value:
        sentences.append(
            "The features of the embedded network, trained on ImageNet, tell these classes apart better: start from "
            "them, and pre-train only on images that ImageNet has no likeness of."
        )
    result = PretrainResult(
        made.folder.path, made.by, made.images, made.facts["epochs"], knn, tuple(sentences)
    )  # fmt: skip
    write_json(made.folder.path / KNN_FILE, result.as_json())
    return result


def compare_backbones(made: Pretraining) -> dict[str, Interval]:
    """k-NN accuracies on the test images: pre-trained, untrained, supervised for a quarter of the time, embedded.

    Empty without labels or test images.
    """
    if made.labelled is None or not len(made.labelled.test.labelled):
        return {}
    progress.notify("Comparing features by k-NN: pre-trained, untrained, supervised and embedded.")
    seed = made.recipe.seed
    bank, asked = (
        part.subset(np.sort(runtime.permutation(len(part), seed)[:most]))
        for part, most in (
            (made.labelled.train.labelled, MAX_BANK_IMAGES),
            (made.labelled.test.labelled, MAX_ASKED_IMAGES),
        )
    )
    fields = ("data", "model", "size", "channels", "seed", "resize_mode", "precision", "memory_format")
    same = {name: vars(made.recipe)[name] for name in fields}
    epochs = max(1, made.facts["epochs"] // 2)  # of one view instead of two: a quarter of the time
    with tempfile.TemporaryDirectory() as place:
        supervised = train_on_splits(
            made.labelled,
            Recipe(**same, epochs=epochs, cpu_replicas=1),
            SilentRunFolder(Path(place)),
            device=made.classifier.device,
        ).classifier
    networks = {"pretrained": made.classifier, "untrained": made.start, "supervised": supervised}
    pairs = {name: (embed(one, bank), embed(one, asked)) for name, one in networks.items()}
    pairs["embedded"] = embed_published(bank), embed_published(asked)
    return {name: measure_knn(known, bank.labels, new, asked) for name, (known, new) in pairs.items()}


def measure_knn(
    known: Float[ndarray, "N D"], labels: Int[ndarray, " N"], features: Float[ndarray, "M D"], asked: Dataset
) -> Interval:
    """The accuracy of a k-NN vote, with its interval."""
    return wilson(float((predict_knn(known, labels, features) == asked.labels).sum()), len(asked))
