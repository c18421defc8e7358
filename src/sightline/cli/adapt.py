"""The verb adapt: a classifier for another world, from its images without labels."""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from .output import DEFAULTS, Options, emit, evaluate_and_report, make_table

if TYPE_CHECKING:
    from rich.console import Console


def adapt(
    run: Path,
    unlabelled: str,
    /,
    *,
    labelled: str | None = None,
    by: str = "interpolate",
    out: Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    options: Options = DEFAULTS,
) -> None:
    """Adapt a classifier to another camera, place or year, from images without labels.

    The result is a new run; the old one is not changed. It is marked unverified unless labelled images prove that it
    helps, and not written where they prove that it hurts (exit code 3).

    Parameters
    ----------
    run: Path
        A finished run; or a bundle, whose result is a bundle.
    unlabelled: str
        A folder or archive of target images, of any layout; 100 are enough.
    labelled: str
        A handful of labelled target images, 100 or more: they judge the adaptation, and measure what fine-tuning on
        them would give.
    by: str
        interpolate (statistics of batch norms between source and target; interpolate:0.3 sets the target's share),
        adabn (the target's alone) or tent (TENT: one pass of entropy minimisation).
    out: Path
        Folder of the new run. Default: runs/RUN-adapted.
    overwrite: bool
        Replace the run that is in --out.
    """
    from ..adaptation import adapt as run_adaptation

    found = run_adaptation(
        run, unlabelled, labelled=labelled, by=by, out=out, seed=seed, device=options.device, overwrite=overwrite
    )
    page = None if found.run is None else evaluate_and_report(found.run)["report"]
    place = None if found.place is None else str(found.place)
    emit({"run": place, **found.as_json(), "report": page}, options.json, print_adaptation)
    found.require_help()


def print_adaptation(console: "Console", value: Mapping[str, Any]) -> None:
    """First the advice to label a few; then what was measured, on which images."""
    console.print(
        "\nFirst choice, where you can: label 20 images of each class there, and fine-tune: "
        f"sightline learn {quote(value['parent'])} LABELLED",
        markup=False,
    )
    interval = "{value:.1%} [{low:.1%}, {high:.1%}]"
    names = {
        "source": "as it was",
        "adapted": f"adapted ({value['by']})",
        "fine-tuned": "as it was, last layer fine-tuned on the others of these images",
        "adapted, fine-tuned": "both",
    }
    if target := value["target"]:
        rows = []
        for way, title in names.items():
            change = target["differences"].get(way)
            points = "" if change is None else "{value:+.1f} [{low:.1f}, {high:.1f}]".format(
                **{name: 100 * change[name] for name in ("value", "low", "high")}
            )  # fmt: skip
            rows.append((title, interval.format(**target["accuracies"][way]), points))
        console.print(f"\n[bold]{target['n']:,} labelled target images[/bold]\n")
        console.print(make_table(("", "accuracy", "points"), rows))
    if source := value["source"]:
        console.print(
            f"\nOn the source's {source['before']['n']:,} test images: {interval.format(**source['before'])} before, "
            f"{interval.format(**source['after'])} after.",
            markup=False,
        )
    for sentence in value["sentences"]:
        console.print(f"\n{sentence}", markup=False)
    if value["kept"]:
        console.print(f"\nThe adapted classifier is in {value['run']}", markup=False)
        console.print(f"Then try: sightline evaluate {quote(value['run'])} LABELLED_TARGET_IMAGES", markup=False)
