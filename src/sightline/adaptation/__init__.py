"""Another world, and images without labels: a trained classifier is moved to where it will be used.

>>> from sightline.adaptation import parse_adapter
>>> parse_adapter("interpolate:0.3")
Interpolate(share=0.3)
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ..choose import choose
from .adapting import Adapter, AdaptResult, adapt_run
from .batch_norm import AdaBN, Interpolate, Tent
from .judging import Judgement, judge
from .shift import compare_worlds

__all__ = ["ADAPTERS", "AdaptResult", "Adapter", "Judgement", "adapt", "compare_worlds", "judge", "parse_adapter"]

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
