"""A source becomes a ``Dataset``: decoded, labelled, its unreadable files listed."""

from pathlib import Path

import numpy as np

from ..errors import DataError
from ..sources.layout import check_several
from ..sources.source import Source, find
from ..types import Dataset, Geometry, Skipped
from .store import Store, open_store

_SHOWN = 12
FACT_COLUMNS = ("width", "height", "channels", "rotated")


def load(
    source: Source | str | Path, geometry: Geometry, *, cache: Path | None = None, max_bad: float = 0.05
) -> Dataset:
    """The images of a source (or of what ``find`` finds there) at the working size.

    Unreadable files are skipped, listed in ``skipped`` and said in a note. The columns hold
    ``width``, ``height``, ``channels`` and ``rotated`` of each file, and what the source tells.
    Raises DataError when more than the share ``max_bad`` is unreadable, with the list.
    """
    if not isinstance(source, Source):
        source = find(source)
    store = open_store(source, geometry, cache)
    rows = np.flatnonzero(store.facts["ok"])
    skipped = _skipped(source, store)
    _check(source, skipped, max_bad)
    facts = store.facts[rows]
    given = {name: column[rows] for name, column in source.columns.items() if name not in FACT_COLUMNS}
    dataset = Dataset(
        pixels=store.pixels,
        rows=rows,
        labels=source.labels[rows],
        classes=source.classes,
        files=source.files[rows],
        digests=np.ascontiguousarray(facts["digest"]),
        geometry=geometry,
        fingerprint=source.fingerprint,
        columns={**given, **{name: np.ascontiguousarray(facts[name]) for name in FACT_COLUMNS}},
        skipped=skipped,
        notes=(*source.notes, *_notes(source, skipped)),
    )
    _check_classes(source, dataset)
    return dataset


def _skipped(source: Source, store: Store) -> tuple[Skipped, ...]:
    return tuple(Skipped(str(source.files[row]), store.reasons[row]) for row in sorted(store.reasons))


def listed(skipped: tuple[Skipped, ...], shown: int = _SHOWN) -> str:
    """The first few skipped files with their reasons, a line each."""
    lines = [f"  {each.file}: {each.reason}" for each in skipped[:shown]]
    more = len(skipped) - shown
    return "\n".join([*lines, f"  ... and {more:,} more"] if more > 0 else lines)


def _check(source: Source, skipped: tuple[Skipped, ...], max_bad: float) -> None:
    if len(skipped) <= max_bad * len(source) and len(skipped) < len(source):
        return
    raise DataError(
        f"{len(skipped):,} of the {len(source):,} images of '{source.name}' cannot be read, "
        f"more than the {max_bad:.0%} that are skipped without asking: "
        f"repair or remove them.\n{listed(skipped)}"
    )


def _check_classes(source: Source, dataset: Dataset) -> None:
    """A class whose every file is unreadable has silently lost its images: say it."""
    lost = [name for name, count in zip(dataset.classes, dataset.counts, strict=True) if count == 0]
    if lost:
        raise DataError(
            f"No image of the class '{lost[0]}' of '{source.name}' can be read: "
            f"repair its files or remove the class.\n{listed(dataset.skipped)}"
        )
    check_several(dataset.classes, source.name)


def _notes(source: Source, skipped: tuple[Skipped, ...]) -> tuple[str, ...]:
    if not skipped:
        return ()
    first = f"{skipped[0].file}: {skipped[0].reason}"
    what = "1 image that cannot be read" if len(skipped) == 1 else f"{len(skipped):,} images that cannot be read"
    return (f"Skipped {what} of {len(source):,} ({first}{'; ...' if len(skipped) > 1 else ''}).",)
