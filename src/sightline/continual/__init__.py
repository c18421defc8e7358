"""A classifier learns more, and forgets as little as can be: ``learn``; and how that is measured: ``protocol``.

A strategy is one frozen value in ``STRATEGIES``: ``(classifier, what is remembered, new images) -> classifier``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..choose import choose
from ..errors import RecipeError
from ..training import Recipe
from .computed_heads import LDA, ClassMean, RanPAC
from .exemplar_means import ICaRL
from .exemplars import Reservoir, balanced_sample, herd
from .gradient_projection import project_agem, project_gem
from .interfered_retrieval import MIR
from .learning import LearnResult, learn_run
from .protocol import StreamResult, run_stream
from .regularisation import EWC, LwF, fisher_diagonal
from .rehearsal import AGEM, ERACE, GEM, DarkReplay, GDumb, NaiveFineTuning, Replay, Retraining
from .statistics import FeatureStatistics, RidgeStatistics
from .strategy import Keep, Past, Strategy, Task, grow
from .stream_comparison import StreamComparison, compare_strategies
from .streams import (
    STREAMS,
    Stream,
    StreamMaker,
    corrupt_images,
    hold_out,
    permute_pixels,
    rotate_images,
    split_by_class,
    split_by_column,
)

STRATEGIES: Mapping[str, type[Strategy]] = {
    "keep": Keep,
    "lda": LDA,
    "means": ClassMean,
    "ranpac": RanPAC,
    "replay": Replay,
    "gdumb": GDumb,
    "er-ace": ERACE,
    "der": DarkReplay,
    "mir": MIR,
    "icarl": ICaRL,
    "gem": GEM,
    "a-gem": AGEM,
    "ewc": EWC,
    "lwf": LwF,
    "finetune": NaiveFineTuning,
    "retrain": Retraining,
}
"""The words of ``--by``, with arguments after colons: ``ewc:weight=5000``."""


def parse_strategies(
    words: Sequence[str], family: Mapping[str, type[Strategy]] = STRATEGIES
) -> dict[str, Strategy]:
    """The strategies that these words name, in order. Raises ChoiceError for an unknown word.

    >>> parse_strategies(["ewc:weight=50"])["ewc:weight=50"]
    EWC(weight=50, decay=None, images=500)
    """
    return {word: choose(family, word, "strategy") for word in words}


DEFAULT_WAYS = ("lda", "replay")
"""The ways that are tried where the user names none: one at once, and one that trains."""

DEFAULT_MEMORY_IMAGES = 2000
"""Old images that may be shown again, in all, where the user names no other number."""


def learn(
    run: Path | str,
    new_data: Path | str | None = None,
    *,
    by: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    remove: Sequence[str] = (),
    forget: Path | str | None = None,
    full: bool = False,
    memory: int = DEFAULT_MEMORY_IMAGES,
    keep_images: bool = True,
    out: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> LearnResult:
    """Teach a run's classifier new images, or change its classes; the result is a new run, the old one stays.

    The same call again, with the same ``out``, continues an interrupted one.

    Args:
        run: a finished run whose images are still there.
        new_data: labelled images of classes it knows, of new ones, or of both; anything that ``sources.find`` reads.
        by: words of ``STRATEGIES``, simplest first; the best on validation is kept. Default: ``DEFAULT_WAYS``.
        rename: old class name -> new one; two classes of one new name are merged.
        remove: classes to take away, by their new names.
        forget: images, known by their bytes, to take out of the data and of the last layer.
        full: also retrain from random weights on everything, to compare with.
        memory: old images that may be shown again, in all.
        keep_images: False allows only strategies that need no old image.
        out: folder of the new run. Default: ``runs/RUN-learned``.
        seed: of every draw.

    Raises DataError for images that do not fit, RecipeError for what cannot be done, OutputError for ``out``.
    """
    if memory < 1:
        raise RecipeError(f"The memory is {memory} images: it must be at least one for each class.")
    names = dict(rename or {})
    ways = DEFAULT_WAYS
    if new_data is None:
        merged = len({*names.values()}) < len(names)
        ways = ("keep", *DEFAULT_WAYS) if merged else ("keep",) if forget is None else ("lda",)
    ways = tuple(word for word in ways if keep_images or not STRATEGIES[word].needs_images)
    candidates = tuple(dict.fromkeys(by)) or ways
    shown = ("finetune",) if new_data is not None else ()
    strategies = parse_strategies((*candidates, *shown, *(("retrain",) if full else ())))
    needy = [word for word, one in strategies.items() if one.needs_images]
    if needy and not keep_images:
        able = [word for word, kind in STRATEGIES.items() if not kind.needs_images]
        raise RecipeError(
            f"Without images of old classes, {', '.join(needy)} cannot work: choose among {', '.join(able)} (--by)."
        )
    return learn_run(
        run, new_data, strategies, candidates, rename=names, remove=remove, forget=forget, memory=memory,
        out=None if out is None else Path(out), seed=seed, device=device, overwrite=overwrite,
    )  # fmt: skip


STREAM_STRATEGIES = ("finetune", "lda", "replay")
"""The strategies that are compared on a stream where the user names none; the first is the reference."""


def compare_on_stream(
    data: Path | str,
    stream: str = "class:5",
    *,
    by: Sequence[str] = (),
    recipe: Recipe | None = None,
    seeds: int = 5,
    memory: int = 500,
    online: bool = False,
    out: Path | str | None = None,
    device: str = "auto",
) -> StreamComparison:
    """Let strategies learn the same tasks, one after the other, and compare what they know at the end.

    Args:
        data: what ``sources.find`` takes.
        stream: a word of ``STREAMS``: class:5, permuted:10, column:site.
        by: words of ``STRATEGIES``; the others are compared with the first. Default: ``STREAM_STRATEGIES``.
        recipe: network, learning rate, batch size and epochs of each task; what it leaves open is chosen.
        seeds: streams, each with its own order of tasks, weights and draws; all strategies get the same.
        memory: images that may be remembered, in all.
        online: whether every new image is seen once.
        out: folder of the results, which are not measured again; ``runs/DATA-stream`` by default.

    Raises SightlineError for unknown words and for data that makes no such stream.
    """
    return compare_strategies(
        data, stream, choose(STREAMS, stream, "stream"), parse_strategies(tuple(by) or STREAM_STRATEGIES),
        recipe or Recipe(), seeds=seeds, memory=memory, online=online, out=None if out is None else Path(out),
        device=device,
    )  # fmt: skip
