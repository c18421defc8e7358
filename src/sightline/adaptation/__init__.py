"""Another world, and images without labels: a trained classifier is moved to where it will be used.

>>> from sightline.adaptation import parse_adapter
>>> parse_adapter("interpolate:0.3")
Interpolate(share=0.3)
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ..choose import choose
from ..errors import RecipeError
from ..training import Recipe
from .adapting import Adapter, AdaptResult, adapt_run
from .batch_norm import AdaBN, Interpolate, Tent
from .judging import Judgement, judge
from .pretraining import PretrainResult, pretrain_and_compare
from .shift import compare_worlds

__all__ = [
    "ADAPTERS",
    "AdaptResult",
    "Adapter",
    "Judgement",
    "PretrainResult",
    "adapt",
    "compare_worlds",
    "judge",
    "parse_adapter",
    "pretrain",
]

ADAPTERS: Mapping[str, Callable[..., Adapter]] = {"interpolate": Interpolate, "adabn": AdaBN, "tent": Tent}
"""Word of ``--by`` -> the adapter, its arguments after colons: ``interpolate:0.3``."""


def parse_adapter(by: str | Adapter) -> Adapter:
    """The adapter that a word names, or the given object. Raises ChoiceError for an unknown word."""
    return choose(ADAPTERS, by, "adapter")


def adapt(
    run: Path | str,
    unlabelled: Path | str,
    *,
    labelled: Path | str | None = None,
    by: str | Adapter = "interpolate",
    out: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> AdaptResult:
    """Adapt a run's classifier to target images without labels; the result is a new run, the old one stays.

    Args:
        run: a run folder; or a bundle, whose result is a bundle.
        unlabelled: target images, in any layout: class folders in it are not read as labels.
        labelled: a handful of labelled target images (100 or more). Without them, and where they cannot tell, the
            result is marked unverified; where they prove that it hurts, nothing is written.
        by: a word of ``ADAPTERS``, or an adapter.
        out: folder of the new run. Default: ``runs/RUN-adapted``.
        seed: of the folds in which fine-tuning on ``labelled`` is measured.

    Raises DataError for a network without batch norm, too few images, and labelled images of other classes;
    ChoiceError for an unknown word, OutputError for ``out``.
    """
    adapter = parse_adapter(by)
    word = by if isinstance(by, str) else type(by).__name__
    return adapt_run(
        Path(run), unlabelled, labelled, adapter, word, out=None if out is None else Path(out), seed=seed,
        device=device, overwrite=overwrite,
    )  # fmt: skip


def pretrain(
    data: Path | str | None,
    recipe: Recipe | None = None,
    *,
    by: str = "simclr",
    out: Path | str | None = None,
    resume: Path | str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    began: float | None = None,
) -> PretrainResult:
    """Pre-train a backbone on images without reading labels; ``train`` takes its run folder as ``weights``.

    Where the images have labels, the k-NN accuracy of its features on held-out test images is measured next to that
    of the untrained network, of one trained on the labels, and of the embedded one.

    Args:
        data: images in any layout; None with ``resume``.
        recipe: model, size, views (``augment``), epochs or budget; what is open is chosen.
        by: a word of ``training.SELF_SUPERVISED_METHODS``.
        out: folder of the run. Default: ``runs/DATA-BY``.
        resume: the folder of an interrupted pre-training, to be continued exactly.
        began: when the budget began (``time.monotonic()``), or now.

    Raises DataError, RecipeError and ChoiceError for what cannot be pre-trained, TrainingError where it collapses.
    """
    if (data is None) == (resume is None):
        raise RecipeError("Say which images to pre-train on: a folder or archive, or --resume RUN without one.")
    asked = (recipe or Recipe()).replace(data=None if data is None else str(data))
    return pretrain_and_compare(
        asked, by, out=None if out is None else Path(out), resume=None if resume is None else Path(resume),
        device=device, overwrite=overwrite, began=time.monotonic() if began is None else began,
    )  # fmt: skip
