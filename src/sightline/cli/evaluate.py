"""The verb evaluate: metrics, groups, uncertainty and out-of-distribution detection of a classifier."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from ..errors import DataError, RecipeError
from .flags import NO_LABEL_FLAGS, Labels
from .output import DEFAULTS, Options, Switch, emit, make_table, print_evaluation, update_report

if TYPE_CHECKING:
    from rich.console import Console

    from ..sources import Source

_MORE = Group("Groups, uncertainty, out-of-distribution", sort_key=20)


def _flag(help: str) -> Parameter:
    return Parameter(help=help, group=_MORE, negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Flags of ``evaluate`` for more than the usual metrics."""

    group: Annotated[
        str | None, _flag("A column of the data's table: accuracy by its values, and the gaps between them.")
    ] = None
    leave_out: Annotated[
        str | None,
        _flag(
            "A column of the data's table (site, camera, patient group): train without each of its values in turn, and "
            "test on it. Takes as many trainings."
        ),
    ] = None
    compare_with: Annotated[
        Path | None, _flag("With --group: another run on the same images, to compare with.")
    ] = None
    risk: Annotated[
        float | None,
        _flag(
            "Find the confidence threshold at which this share of the answers is wrong, such as 0.01; below it "
            "the answer is 'unknown'."
        ),
    ] = None
    coverage: Annotated[
        float | None, _flag("Find the threshold at which this share of the images is answered, such as 0.9.")
    ] = None
    conformal_alpha: Annotated[
        float | None,
        _flag("Error rate of conformal prediction sets: the share that may lack the true class, 0.1."),
    ] = None
    save: Annotated[
        bool, _flag("Save the threshold and the conformal quantiles in the classifier, for predict.")
    ] = False
    ood: Annotated[
        str | None, _flag("Out-of-distribution images: how well scores separate them from the test images.")
    ] = None

    @property
    def any_given(self) -> bool:
        """Whether any flag was given."""
        return any(one not in (None, False) for one in vars(self).values())

    @property
    def asks_for_uncertainty(self) -> bool:
        """Whether calibration, abstention or conformal sets are asked for."""
        return self.save or any(one is not None for one in (self.risk, self.coverage, self.conformal_alpha))


NO_OPTIONS = EvaluateOptions()


def evaluate(
    run: Path,
    data: str | None = None,
    /,
    *,
    learning_curve: Switch = False,
    corruptions: Switch = False,
    more: EvaluateOptions = NO_OPTIONS,
    labels: Labels = NO_LABEL_FLAGS,
    options: Options = DEFAULTS,
) -> None:
    """Test a classifier on its test images or on other images; by group; its uncertainty.

    Parameters
    ----------
    run: Path
        A run or bundle folder, or an exported .onnx file.
    data: str
        Other labelled images, read by the run's own columns and label pattern where they fit. Default: the test
        split of the run.
    learning_curve: bool
        Also train on 10, 25 and 50 % of the training images, to see whether more images would help. Takes about as
        long as training did.
    corruptions: bool
        Also test on up to 1,000 of its images in 75 corrupted forms: noise, blur, weather, compression.
    """
    from ..comparison import head_curve_run, learning_curve_run
    from ..evaluation import evaluate_on, evaluate_run
    from ..robustness import corrupt_run
    from ..runs import open_moved_run, open_run
    from ..sources import LabelRule, find

    if labels != NO_LABEL_FLAGS:
        if data is None:
            raise RecipeError("--path-column, --label-column and --label-pattern are for other images: name them.")
        images: str | Source | None = find(data, several=False, rule=LabelRule(**vars(labels)))
    else:
        images = data
    if more.any_given:
        if learning_curve or corruptions:
            raise RecipeError("--learning-curve and --corruptions cannot be combined with the other flags.")
        _evaluate_more(run, images, more, options)
        return
    opened = (
        open_run(run, device=options.device)
        if images is None
        else open_moved_run(run, images, device=options.device)
    )
    if opened is None and (learning_curve or corruptions):
        flag = "--learning-curve" if learning_curve else "--corruptions"
        raise DataError(f"{flag} uses the test images of the run: leave DATA out.")
    if opened is not None:
        found = None
        if learning_curve:  # of the head alone where nothing else was trained
            found = (None if opened.recipe.epochs else head_curve_run(opened)) or learning_curve_run(opened)
        curve = {"learning_curve": found.as_json()} if found else {}
        corrupted = {"corruptions": corrupt_run(opened).as_json()} if corruptions else {}
        value: dict[str, Any] = evaluate_run(opened).as_json() | curve | corrupted
        update_report(opened.folder)
    else:
        assert images is not None  # without DATA a run was opened
        value = {"data": data, **evaluate_on(run, images, device=options.device).as_json()}
    emit({"run": str(run), **value}, options.json, print_evaluation)


def _evaluate_more(run: Path, data: "str | Source | None", more: EvaluateOptions, options: Options) -> None:
    """Evaluate groups, uncertainty or out-of-distribution detection, and print it."""
    from ..comparison import leave_out_run
    from ..evaluation import evaluate_groups_on, evaluate_groups_run, evaluate_ood_run, evaluate_uncertainty_run
    from ..runs import open_moved_run, open_run

    if more.compare_with is not None and more.group is None:
        raise RecipeError("--compare-with compares groups: name the column with --group.")
    asked = (more.group is not None, more.asks_for_uncertainty, more.ood is not None, more.leave_out is not None)
    if sum(asked) > 1:
        raise RecipeError(
            "--group, --leave-out, --ood, and the flags of uncertainty (--risk, --coverage, --conformal-alpha, --save) "
            "are separate evaluations: run one at a time."
        )
    name = {"run": str(run)}
    opened = None if data is None else open_moved_run(run, data, device=options.device)
    if more.group is not None and data is not None and opened is None:
        value = evaluate_groups_on(run, data, more.group, against=more.compare_with, device=options.device)
        emit(name | value, options.json, print_groups)
        return
    if data is not None and opened is None:
        raise DataError("This evaluation uses the validation and test images of the run: leave DATA out.")
    opened = opened or open_run(
        run,
        device=options.device,
        remedy="this evaluation needs the validation and test images of a run, so name the run folder"
        if more.group is None
        else "name the images to test it on, after it",
    )
    if more.group is not None:
        other = None if more.compare_with is None else open_run(more.compare_with, device=options.device)
        value = evaluate_groups_run(opened, more.group, against=other)
        update_report(run)
        emit(name | value, options.json, print_groups)
    elif more.leave_out is not None:
        emit({**leave_out_run(opened, more.leave_out).as_json(), **name}, options.json, print_leave_out)
    elif more.ood is not None:
        emit({**evaluate_ood_run(opened, more.ood), **name}, options.json, print_ood)
    else:
        alpha = 0.1 if more.conformal_alpha is None else more.conformal_alpha
        value = evaluate_uncertainty_run(
            opened, risk=more.risk, coverage=more.coverage, alpha=alpha, save=more.save
        )
        update_report(run)
        emit({**value, **name}, options.json, print_uncertainty)


def print_groups(console: "Console", value: Mapping[str, Any]) -> None:
    """Metrics of each group, the gaps between groups, and the change of another classifier."""
    rows = [
        (
            f"{row['group']}{' (few images)' if row['small'] else ''}",
            f"{row['n']:,}",
            f"{row['accuracy']:.2%}",
            _format_bounds(row["intervals"]["accuracy"]),
            f"{row['confidence']:.2%}",
            "-" if row["worst_class"] is None else f"{row['worst_recall']:.1%} of {row['worst_class']}",
        )
        for row in value["groups"]
    ]
    heads = (value["column"], "images", "accuracy", "95 % interval", "mean confidence", "lowest recall")
    console.print(make_table(heads, rows))
    console.print()
    console.print(make_table(("gap between groups", "", "95 % interval"), _gap_rows(value)))
    if "changes" in value:
        console.print(f"\n[bold]Compared with {value['against']['run']}[/bold]\n")
        console.print(
            make_table(
                (value["column"], "before", "after", "change", "95 % interval"),
                [
                    (
                        one["group"],
                        f"{one['before']:.2%}",
                        f"{one['after']:.2%}",
                        f"{100 * one['difference']['value']:+.2f}",
                        f"{100 * one['difference']['low']:+.2f} to {100 * one['difference']['high']:+.2f}",
                    )
                    for one in value["changes"]
                ],
            )
        )
        console.print()
        console.print(make_table(("gap between groups, after", "", "95 % interval"), _gap_rows(value["against"])))
    for remark in value["remarks"]:
        console.print(f"\n{remark}", markup=False)


def print_leave_out(console: "Console", value: Mapping[str, Any]) -> None:
    """Accuracy on each value that was left out, and by the run that saw others of it."""
    rows = [
        (
            one["domain"],
            f"{one['accuracy']['n']:,}",
            f"{one['accuracy']['value']:.2%}",
            _format_bounds(one["accuracy"]),
            "" if one["inside"] is None else f"{one['inside']['value']:.2%}",
            "" if one["inside"] is None else f"{_format_bounds(one['inside'])} (n={one['inside']['n']:,})",
        )
        for one in value["domains"]
    ]
    heads = (value["column"], "images", "left out", "95 % interval", "trained on, run's test", "95 % interval")
    console.print(make_table(heads, rows))
    for sentence in value["sentences"]:
        console.print(f"\n{sentence}", markup=False)


def _gap_rows(value: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    names = {"gap": "accuracy", "demographic_parity": "demographic parity, largest over classes"}
    names["equalised_odds"] = "equalised odds, largest over classes"
    rows = [
        (title, f"{value[name]['value']:.2%}", _format_bounds(value[name]))
        for name, title in names.items()
        if value[name]
    ]
    means = value["means_over_classes"]
    rows += [
        (f"{name.replace('_', ' ')}, mean over classes", f"{mean:.2%}", "")
        for name, mean in means.items()
        if mean is not None
    ]
    return rows


def _format_bounds(bounds: Mapping[str, float]) -> str:
    return f"{bounds['low']:.2%} to {bounds['high']:.2%}"


def print_uncertainty(console: "Console", value: Mapping[str, Any]) -> None:
    """Calibration, risk by coverage, the threshold, and conformal sets."""
    before = value["uncalibrated"]
    names = {
        "ece": "ECE, equal-width bins",
        "ece_equal_mass": "ECE, equal-mass bins",
        "mce": "largest gap of a bin",
    }
    rows = [(title, f"{before[name]:.2%}", f"{value[name]:.2%}") for name, title in names.items()]
    console.print(f"\n[bold]Uncertainty on {value['n']:,} test images[/bold]\n")
    console.print(make_table(("", "at temperature 1", f"at {value['temperature']:g}"), rows))
    console.print()
    risks = [(f"{float(share):.0%}", f"{risk:.2%}") for share, risk in value["risk_at"].items()]
    console.print(make_table(("coverage", "error rate"), risks))
    console.print(f"\nAURC {value['aurc']:.5f}, of which {value['excess_aurc']:.5f} is avoidable.", markup=False)
    if chosen := value["abstention"]:
        tested = chosen["test"]
        console.print(f"\n{chosen['sentence']}", markup=False)
        console.print(
            f"On the test set it answers {tested['coverage']['value']:.1%}; {tested['risk']['value']:.2%} of "
            f"these answers are wrong (95 % interval {_format_bounds(tested['risk'])}).",
            markup=False,
        )
    sets = value["conformal"]
    rows = [
        (
            name.replace("-per-class", ", each class"),
            f"{one['coverage']:.2%}",
            _format_bounds(one["intervals"]["coverage"]),
            f"{one['size']:.2f}",
            f"{one['empty']:.1%}",
            f"{one['single']:.1%}",
            f"{one['worst_class']:.1%}",
        )
        for name, one in sets["kinds"].items()
    ]
    heads = ("sets", "coverage", "95 % interval", "mean size", "empty", "of one class", "worst class")
    title = f"Conformal sets at error rate {sets['alpha']:g}, calibrated on {sets['images']:,} validation images"
    console.print(f"\n[bold]{title}[/bold]\n")
    console.print(make_table(heads, rows))
    for remark in sets["remarks"]:
        console.print(f"\n{remark}", markup=False)
    done = (
        "Saved in the classifier."
        if value["kept"]
        else "The classifier is unchanged; --save saves these settings."
    )
    console.print(f"\n{done}", markup=False)


def print_ood(console: "Console", value: Mapping[str, Any]) -> None:
    """Out-of-distribution scores, best first; in-distribution images are the positives."""
    rows = [
        (
            row["score"],
            f"{row['auroc']:.4f}",
            "{low:.4f} to {high:.4f}".format(**row["intervals"]["auroc"]),
            f"{row['fpr95']:.2%}",
            _format_bounds(row["intervals"]["fpr95"]),
        )
        for row in value["scores"]
    ]
    console.print(
        f"\n[bold]{value['n']:,} test images (positives) and {value['n_outliers']:,} images of "
        f"'{value['data']}'[/bold]\n"
    )
    console.print(make_table(("score", "AUROC", "95 % interval", "FPR at 95 % TPR", "95 % interval"), rows))
    for row in value["failed"]:
        console.print(f"\n{row['score']}: {row['error']}", markup=False)
    for remark in value["remarks"]:
        console.print(f"\n{remark}", markup=False)
