"""A classifier learns more, and forgets as little as can be: ``learn``; and how that is measured: ``protocol``.

A strategy is one frozen value in ``STRATEGIES``: ``(classifier, what is remembered, new images) -> classifier``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .. import progress
from ..choose import choose
from ..errors import RecipeError
from ..sources import EXEMPLARS_FILE
from ..training import Recipe
from .changes import HELD_OUT_SHARES, Changes, looks_alike
from .computed_heads import LDA, ClassMean, RanPAC
from .exemplar_means import ICaRL
from .exemplars import Reservoir, balanced_sample, herd
from .gradient_projection import AGEM, GEM, project_agem, project_gem
from .interfered_retrieval import MIR
from .learning import FLIPS_FILE, LEARNING_FILE, LearnResult, learn_run
from .memory import open_past
from .protocol import StreamResult, run_stream
from .regularisation import EWC, LwF, fisher_diagonal
from .rehearsal import ERACE, DarkReplay, GDumb, NaiveFineTuning, Replay, Retraining
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


DEFAULT_WAYS = ("lda", "ranpac", "replay")
"""The ways that are tried where the user names none: two heads at once, and one that trains. Held-out images preferred
``ranpac`` on Split MNIST online, ``lda`` on photos of waste, and ``replay`` on two digits from 20 images each."""

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
    new_classes: Sequence[str] = (),
    full: bool = False,
    memory: int = DEFAULT_MEMORY_IMAGES,
    keep_images: bool | None = None,
    naive: bool = True,
    held_out: tuple[float, float] = HELD_OUT_SHARES,
    out: Path | str | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> LearnResult:
    """Teach a run's classifier new images, or change its classes; the result is a new run, the old one stays.

    The same call again, with the same ``out``, continues an interrupted one.

    Args:
        run: a finished run. Where its images are gone, exemplars or sums that it keeps stand for them.
        new_data: labelled images of classes it knows, of new ones, or of both; anything that ``sources.find`` reads.
        by: words of ``STRATEGIES``, simplest first; the best on validation is kept. Default: ``DEFAULT_WAYS``.
        rename: old class name -> new one; two classes of one new name are merged.
        remove: classes to take away, by their new names.
        forget: images, known by their bytes, to take out of the data, of the last layer, sums and exemplars.
        new_classes: names of new classes that look like known ones, and mean another thing.
        full: also retrain from random weights on everything, to compare with.
        memory: old images that may be shown again, or kept as exemplars, in all.
        keep_images: True also stores exemplars next to the run, False allows only strategies that need no old image
            and keeps sums over features, None leaves images where they are; where they are gone, it is as before.
        naive: whether to train on the new images alone too, to compare with.
        held_out: shares of new images for validation and test, where they come without these splits.
        out: folder of the new run. Default: ``runs/RUN-learned``.
        seed: of every draw.

    Raises DataError for images that do not fit, RecipeError for what cannot be done, OutputError for ``out``.
    """
    if memory < 1:
        raise RecipeError(f"The memory is {memory} images: it must be at least one for each class.")
    changes = Changes(
        new_data=new_data, rename=dict(rename or {}), remove=remove, forget=forget, new_classes=new_classes,
        keep_images=keep_images, held_out=held_out,
    )  # fmt: skip
    parse_strategies(by)  # before any image is read
    if not changes.concerns_images and keep_images is None:
        raise RecipeError(f"There is nothing to learn: name new images, as in sightline learn {run} NEW_IMAGES.")
    original, sums, note = open_past(Path(run), device)
    if note:
        progress.notify(note)
        as_before = (Path(run) / EXEMPLARS_FILE).is_file()
        changes = replace(changes, keep_images=as_before if keep_images is None else keep_images)
    without = changes.keep_images is False or original.splits.train.counts.min() == 0
    able = [word for word, kind in STRATEGIES.items() if not (without and kind.needs_images)]
    ways = tuple(word for word in _choose_ways(changes) if word in able)
    if sums is not None and sums.ridge is None:
        ways = tuple(word for word in ways if word != "ranpac")
    candidates = tuple(dict.fromkeys(by)) or ways
    shown = ("finetune",) if naive and new_data is not None and len(original.splits.test) else ()
    strategies = parse_strategies((*candidates, *shown, *(("retrain",) if full else ())))
    if needy := [word for word in strategies if word.partition(":")[0] not in able]:
        raise RecipeError(
            f"Without images of old classes, {', '.join(needy)} cannot work: choose among {', '.join(able)} (--by)."
        )
    if sums is not None:
        for strategy in strategies.values():
            strategy.check_sums(sums.ridge)
    return learn_run(
        Path(run), original, sums, changes, strategies, candidates, memory=memory,
        out=None if out is None else Path(out), seed=seed, overwrite=overwrite,
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


def _choose_ways(changes: Changes) -> tuple[str, ...]:
    """The ways to try where the user names none: a class that others were merged into may need training."""
    if changes.new_data is not None:
        return DEFAULT_WAYS
    if len({*changes.rename.values()}) < len(changes.rename):
        return ("keep", *DEFAULT_WAYS)
    return ("keep",) if changes.forget is None else ("lda",)
