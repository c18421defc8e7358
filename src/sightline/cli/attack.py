"""The verb attack: accuracy under adversarial attack."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .output import DEFAULTS, Options, check_picture_path, emit, make_table, update_report

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
    options: Options = DEFAULTS,
) -> None:
    """Measure accuracy on images that an attacker changed to fool the classifier.

    Parameters
    ----------
    run: Path
        A run or bundle folder.
    data: str
        Other labelled images. Default: the test split of the run.
    by: str
        Method: pgd, fgsm, apgd (no step size to tune), rays (decision-based, for every classifier), universal,
        noise; arguments follow after colons: pgd:40:restarts=5.
    eps: str
        Radius of the attack, for pixels in [0, 1]: 8/255 or 0.3; several with commas. For a single radius, a
        quarter and a half of it are measured too.
    norm: str
        linf (largest change of a pixel) or l2 (Euclidean length of the change).
    steps: int
        Steps of pgd, apgd or universal.
    limit: int
        Attack about this many images, stratified by class.
    checks: bool
        Check for signs of gradient masking.
    out: Path
        A picture of the accuracy curve and of attacked images.
    seed: int
        Seed of the sample and of random starts.
    """
    from ..attacks import make_attack
    from ..robustness import attack_run as run_attack

    picture = None if out is None else check_picture_path(out)
    chosen = make_attack(by, norm=norm, steps=steps)
    found = run_attack(
        run, data, by=chosen, eps=eps, limit=limit, checks=checks, seed=seed, device=options.device, out=picture
    )
    update_report(run, data)
    value = {"run": str(run), **found.values, "remarks": [vars(remark) for remark in found.remarks]}
    emit(value, options.json, print_attack)


def print_attack(console: "Console", value: Mapping[str, Any]) -> None:
    """Accuracy by radius as a table, and remarks."""
    from ..attacks import format_eps

    console.print(f"\n[bold]Accuracy under attack[/bold] ({value['norm']})\n")
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
        console.print(
            f"\n{passed} of {len(masking['checks'])} checks for gradient masking passed on {masking['n']} images."
        )
