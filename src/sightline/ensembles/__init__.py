"""Several classifiers become one."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..choose import choose
from ..classifier import Classifier
from ..types import Findings, Splits
from .combining import combine_folders, compare_with_members, shared_splits
from .methods import (
    Combination,
    Combiner,
    GreedySoup,
    Mean,
    Soup,
    combine_classifiers,
    recalibrate_norms,
    update_bn,
)

COMBINERS: Mapping[str, Callable[..., Combiner]] = {"mean": Mean, "soup": Soup, "greedy-soup": GreedySoup}
"""Word of ``--by`` -> the combiner."""


def combine(
    classifiers: Sequence[Classifier],
    by: str | Combiner = "mean",
    *,
    images: Splits | None = None,
    names: Sequence[str] | None = None,
) -> Combination:
    """Make one classifier of several that have the same classes and geometry.

    Args:
        classifiers: two or more.
        by: a word of ``COMBINERS``, or a combiner.
        images: what the combiner measures on, where it must: batch norms on training images, the temperature and
            the choice of members on validation images, which no member may have been trained on.
        names: of the classifiers, in messages and in the provenance.

    Raises BundleError for classifiers that do not go together, ChoiceError for an unknown word, DataError where
    the combiner lacks images.
    """
    return combine_classifiers(classifiers, choose(COMBINERS, by, "combiner"), images=images, names=names)


def combine_runs(
    folders: Sequence[Path | str],
    by: str = "mean",
    *,
    out: Path | str,
    device: str = "auto",
    overwrite: bool = False,
) -> Findings:
    """Combine the classifiers of runs (or bundles), compare the result with its members, and save it at ``out``.

    It is tested on images that no member was trained or validated on, where the runs' images are known. Raises
    OutputError where ``out`` may not be replaced, and what ``combine`` raises.
    """
    combiner = choose(COMBINERS, by, "combiner")
    return combine_folders(folders, combiner, by, out=out, device=device, overwrite=overwrite)
