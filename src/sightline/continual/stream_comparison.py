"""Several strategies on the same streams of tasks: a table, a heat map, and one file of all numbers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import progress
from ..errors import RecipeError
from ..files import (
    atomic_replace,
    explain_write_errors,
    open_comparison_folder,
    read_json_object,
    write_json,
)
from ..metrics import seeds_interval
from ..pictures import plot_task_accuracy
from ..training import Recipe, prepare, resolve
from .protocol import StreamResult, run_stream
from .strategy import Strategy
from .streams import StreamMaker

if TYPE_CHECKING:
    from PIL.Image import Image

STREAM_FILE, STREAM_PICTURE = "stream.json", "stream.png"

STREAM_MEASURES = ("average_accuracy", "forgetting", "backward_transfer", "forward_transfer")
"""The numbers of a ``StreamResult`` that are averaged over seeds."""

STREAM_EPOCHS = 5
"""Epochs of each task where the recipe names none."""


@dataclass(frozen=True, eq=False)
class StreamComparison:
    """Strategies on the same streams of tasks.

    Arguments:
        stream: what the stream is called.
        results: for each strategy a result for each seed, in the same order of seeds.
        reference: the strategy with which the others are compared, pair by pair of the same seed.
        folder: where the results are kept, if anywhere.
    """

    stream: str
    results: Mapping[str, Sequence[StreamResult]]
    reference: str
    folder: str | None = None

    def rows(self) -> list[dict[str, Any]]:
        """A row for each strategy, JSON-ready: means over the seeds with Student's intervals.

        ``difference`` is that of the average accuracy minus the reference's, paired by seed; None for the reference.
        """
        naive = self.results[self.reference]
        rows = []
        for name, results in self.results.items():
            pairs = zip(results, naive, strict=True)
            gains = [one.average_accuracy - other.average_accuracy for one, other in pairs]
            rows.append(
                {
                    "strategy": name,
                    **{what: _over_seeds([getattr(one, what) for one in results]) for what in STREAM_MEASURES},
                    "difference": None if name == self.reference else _over_seeds(gains),
                    "seconds": round(float(np.mean([one.seconds.sum() for one in results])), 2),
                    "memory_bytes": max(one.memory_bytes for one in results),
                }
            )
        return rows

    def as_json(self) -> dict[str, Any]:
        """The rows, and all results."""
        return {
            "stream": self.stream,
            "folder": self.folder,
            "reference": self.reference,
            "seeds": len(self.results[self.reference]),
            "strategies": self.rows(),
            "results": {name: [one.as_json() for one in each] for name, each in self.results.items()},
        }

    def plot(self) -> "Image":
        """A heat map for each strategy: mean accuracy on each task after each."""
        return plot_task_accuracy(
            {name: np.mean([one.accuracy for one in each], 0) for name, each in self.results.items()}
        )


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    if len(values) > 1:
        return seeds_interval(values).as_json()
    return {"value": values[0], "low": None, "high": None, "n": 1}


def compare_strategies(
    data: Path | str,
    stream: str,
    make: StreamMaker,
    strategies: Mapping[str, Strategy],
    recipe: Recipe,
    *,
    seeds: int,
    memory: int,
    online: bool,
    out: Path | None,
    device: str,
) -> StreamComparison:
    """Every strategy on the same streams of this data: see ``continual.compare_on_stream``."""
    if seeds < 1:
        raise RecipeError(f"--seeds is {seeds}: it takes at least 1.")
    asked = recipe.replace(data=str(data), method="gradient", epochs=recipe.epochs or STREAM_EPOCHS)
    plan, splits, notes = prepare(resolve(asked))
    recipe, train, test = plan.recipe, splits.train.labelled, splits.test.labelled
    make(train, test, recipe.seed)  # a stream that cannot be made fails before anything is written
    name = f"{Path(recipe.data or '').name.partition('.')[0]}-stream".replace(":", "_")
    facts = [recipe.to_toml(), train.fingerprint, stream, str(memory), str(online)]
    folder = open_comparison_folder(out, name, STREAM_FILE, facts, "images, recipe, stream or --memory")
    for note in notes:
        progress.notify(note)
    progress.notify(f"Results go to '{folder}'. If stopped, the same command continues.")
    found: dict[str, list[StreamResult]] = {name: [] for name in strategies}
    title = ""
    for seed in range(recipe.seed, recipe.seed + seeds):
        tasks = make(train, test, seed)
        title = tasks.name
        for name, strategy in strategies.items():
            file = folder / "results" / f"{name.replace(':', '_').replace('/', '_')}-{seed}.json"
            if file.is_file():
                result = StreamResult.from_json(json.loads(file.read_text(encoding="utf-8")))
            else:
                how = recipe.replace(seed=seed)
                result = run_stream(
                    strategy, tasks, how, memory_size=memory, online=online, name=name, device=device
                )
                with explain_write_errors(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, result.as_json())
            progress.notify(f"{name}, seed {seed}: {result.average_accuracy:.1%} after {len(tasks.tasks)} tasks.")
            found[name].append(result)
    comparison = StreamComparison(title, found, next(iter(strategies)), str(folder))
    write_json(folder / STREAM_FILE, comparison.as_json() | {"key": read_json_object(folder / STREAM_FILE)["key"]})
    with atomic_replace(folder / STREAM_PICTURE) as temporary:
        comparison.plot().save(temporary, format="PNG")
    return comparison
