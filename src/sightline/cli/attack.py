"""The verb that attacks: attack."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .output import Device, Json, check_picture_path, emit, make_table, update_report

if TYPE_CHECKING:
    from rich.console import Console


def attack(
    run: Path,
    data: str | None = None,
    /,
    *,
    by: str = "pgd",
    eps: str = "8/255",
    norm: Literal["linf", "l2"] | None = None,
    steps: int | None = None,
    limit: int = 1000,
    checks: bool = True,
    out: Path | None = None,
    seed: int = 0,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """How many answers stay right when someone changes the images to break them.

    Parameters
    ----------
    run: Path
        A run or bundle folder.
    data: str
        Other labelled images. Default: the run's own test split.
    by: str
        pgd, fgsm, apgd (nothing to tune), rays (answers only, works on every classifier), universal, noise; with
        arguments after colons: pgd:40:restarts=5.
    eps: str
        How much a pixel may change, of 1: 8/255 or 0.3; several separated by commas. Of a single one a quarter and
        a half are measured too.
    norm: str
        linf (each pixel) or l2 (the length of the whole change).
    steps: int
        Steps of pgd, apgd or universal.
    limit: int
        Attack about this many images, each class in its share.
    checks: bool
        Look for signs that the classifier only hides its gradient.
    out: Path
        A picture of the curve and of attacked images.
    seed: int
        Seed of the sample and of random starts.
    """
    from ..attacks import make_attack
    from ..robustness import attack_run as run_attack

    picture = None if out is None else check_picture_path(out)
    chosen = make_attack(by, norm=norm, steps=steps)
    found = run_attack(
        run, data, by=chosen, eps=eps, limit=limit, checks=checks, seed=seed, device=device, out=picture
    )
    update_report(run, data)
    value = {"run": str(run), **found.values, "remarks": [vars(remark) for remark in found.remarks]}
    emit(value, json, _print_attack)


def _print_attack(console: "Console", value: Mapping[str, Any]) -> None:
    from ..attacks import format_eps

    console.print(f"\n[bold]Right answers under attack[/bold] ({value['norm']})\n")
    rows = [
        ("no attack" if not one["eps"] else f"eps {format_eps(one['eps'])}", f"{one['accuracy']:.1%}",
         "{low:.1%} to {high:.1%}".format(**one["intervals"]["accuracy"]), f"{one['seconds']:.1f} s")
        for one in value["points"]
    ]  # fmt: skip
    console.print(make_table(("", "accuracy", "95 % interval", "took"), rows))
    console.print(f"\n{value['sample']}", markup=False)
    for remark in value["remarks"]:
        console.print(f"\n{remark['text']}", markup=False)
    if masking := value.get("masking"):
        passed = sum(check["passed"] for check in masking["checks"])
        of = f"{len(masking['checks'])} checks for masked gradients"
        console.print(f"\n{passed} of {of} passed on {masking['n']} images.")
