"""How small can it be? A smaller network, fine-tuned and compared with the original.

A compressor is ``(classifier, splits) -> classifier``: it changes the network, and a bundle can rebuild the
result. Compressors follow one another (``prune``, ``channels``, ``lowrank``, ``int8``); ``distil`` begins with a
new network.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .comparison import SizeComparison, compare_with_original, count_weights
from .compressing import CompressionResult, compress_run
from .compressor import Compressor, FineTuned, FineTuning, Original, fine_tune, open_original
from .distil import Distil, distil
from .lowrank import LowRank
from .pipeline import Target, parse_steps
from .pruning import Channels, Prune
from .quantize import Int8

COMPRESSORS: Mapping[str, Callable[..., Compressor]] = {
    "prune": Prune,
    "channels": Channels,
    "lowrank": LowRank,
    "int8": Int8,
    "distil": distil,
}
"""Word of ``--by`` -> the compressor, its arguments after colons: ``channels:0.4``."""


def parse_compressors(by: str | Compressor | Sequence[str | Compressor]) -> list[Compressor]:
    """The compressors that ``by`` names, in order: objects, words, or words separated by commas.

    Raises ChoiceError for an unknown word, a compressor named twice, and one with new weights after others.

    >>> parse_compressors("prune:0.8,int8")[0].word()
    'prune:amount=0.8'
    """
    return parse_steps(COMPRESSORS, by)


def compress(
    run: Path | str,
    data: str | None = None,
    *,
    by: str | Compressor | Sequence[str | Compressor],
    out: Path | str,
    target: str | Sequence[str] = (),
    max_accuracy_drop: float = 0.01,
    settings: FineTuning | None = None,
    unlabelled: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> CompressionResult:
    """Make a smaller classifier of a run's, fine-tune it, compare both on the test images, and save it as a run.

    The same call again continues an interrupted one.

    Args:
        run: a run folder; or a bundle, with ``data``.
        data: other images to fine-tune and test on. Default: the run's own.
        by: compressors in order, each fine-tuned before the next: words, or objects.
        out: folder of the new run.
        target: ratios to the original, such as ``latency=0.5x``, that set the strength of the compressors.
        max_accuracy_drop: validation accuracy that may be lost for the target; 0.01 is a percentage point.
        settings: epochs, learning rate and seed of the fine-tuning. Default: from the original's recipe.
        unlabelled: folder or archive of other photos, on which a distilled network learns the original's answers.

    Raises SightlineError before any long work where it cannot be done. A target that is not met raises nothing:
    see ``CompressionResult.require_target``.
    """
    steps = parse_compressors(by)
    wanted = Target.parse(target) if target else None
    return compress_run(
        run, data, steps, out=out, target=wanted, max_accuracy_drop=max_accuracy_drop, settings=settings,
        unlabelled=unlabelled, device=device, overwrite=overwrite,
    )  # fmt: skip
