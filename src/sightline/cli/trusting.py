"""What evaluate and check say of trust: for whom, how sure, and which labels look wrong."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from ..errors import DataError, RecipeError
from .output import emit, make_table, update_report

if TYPE_CHECKING:
    from rich.console import Console

    from ..types import Dataset


_TRUST = Group("For whom, and how sure", sort_key=20)


def _flag(help: str) -> Parameter:
    return Parameter(help=help, group=_TRUST, negative=())


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The flags of ``evaluate`` that ask for more than a test."""

    group: Annotated[
        str | None, _flag("A column of the images' table: accuracy in each of its groups, and the gaps.")
    ] = None
    against: Annotated[
        Path | None, _flag("With --group: another run beside it on the same images, before and after.")
    ] = None
    risk: Annotated[
        float | None,
        _flag('The confidence below which to answer "unknown", so that this share of answers is wrong: 0.01.'),
    ] = None
    coverage: Annotated[float | None, _flag("The same, so that this share of the images is answered: 0.9.")] = None
    sets: Annotated[
        float | None, _flag("Conformal sets, which lack the true class of at most this share of the images: 0.1.")
    ] = None
    keep: Annotated[
        bool, _flag("Put the threshold and the conformal quantiles into the classifier, for predict.")
    ] = False
    outliers: Annotated[
        str | None, _flag("Images that do not belong: how well can they be told from the run's own?")
    ] = None

    @property
    def any_given(self) -> bool:
        """Whether any flag was given."""
        return any(one not in (None, False) for one in vars(self).values())

    @property
    def asks_for_uncertainty(self) -> bool:
        """Whether it is asked how sure the classifier is."""
        return self.keep or any(one is not None for one in (self.risk, self.coverage, self.sets))


LabelIssuesFlag = Annotated[
    bool,
    Parameter(
        help="Also rank the labels that look wrong, by classifiers that never saw the image: seconds for a "
        "thousand small images.",
        negative=(),
    ),
]
LabelIssuesMethod = Annotated[
    str | None,
    Parameter(help="With --deep: what those classifiers are, a baseline (svm-rbf@hog by default) or a network."),
]
LabelIssuesFolder = Annotated[
    Path | None,
    Parameter(
        help="With --deep: folder for suspects.csv, suspects.json and suspects.png. Default: runs/DATA-suspects."
    ),
]


def evaluate_trust(run: Path, data: str | None, wishes: EvaluateOptions, device: str, json: bool) -> None:
    """Carry out one of the wishes and print it."""
    if wishes.against is not None and wishes.group is None:
        raise RecipeError("--against shows two classifiers by group: say which column with --group.")
    if sum((wishes.group is not None, wishes.asks_for_uncertainty, wishes.outliers is not None)) > 1:
        raise RecipeError("--group, --outliers, and --risk, --coverage or --sets are examined one at a time.")
    if wishes.group is not None:
        value = _evaluate_groups(run, data, wishes.group, wishes.against, device)
        update_report(run, data)
        emit({"run": str(run), **value}, json, print_groups)
        return
    if data is not None or (run / "config.json").is_file():
        raise DataError(
            "How sure a classifier is takes its run: what is chosen on the run's validation images is shown on "
            "its test images. Name the run alone."
        )
    if wishes.outliers is not None:
        emit({**_evaluate_ood(run, wishes.outliers, device), "run": str(run)}, json, print_ood)
    else:
        value = _evaluate_uncertainty(run, wishes, device)
        update_report(run)
        emit({**value, "run": str(run)}, json, print_uncertainty)


def _evaluate_groups(
    run: Path, data: str | None, column: str, against: Path | None, device: str
) -> dict[str, Any]:
    from ..evaluation import evaluate_groups_on, evaluate_groups_run
    from ..runs import open_run

    if data is not None:
        return evaluate_groups_on(run, data, column, against=against, device=device)
    whole = open_run(run, device=device)
    other = None if against is None else open_run(against, device=device)
    return evaluate_groups_run(whole, column, against=other)


def _evaluate_uncertainty(run: Path, wishes: EvaluateOptions, device: str) -> dict[str, Any]:
    from ..evaluation import evaluate_uncertainty_run
    from ..training import reopen

    alpha = 0.1 if wishes.sets is None else wishes.sets
    return evaluate_uncertainty_run(
        reopen(run, device=device), risk=wishes.risk, coverage=wishes.coverage, alpha=alpha, keep=wishes.keep
    )


def _evaluate_ood(run: Path, data: str, device: str) -> dict[str, Any]:
    from ..evaluation import evaluate_ood_run
    from ..training import reopen

    return evaluate_ood_run(reopen(run, device=device), data)


def print_groups(console: "Console", value: Mapping[str, Any]) -> None:
    """Each group's numbers, the gaps, and what another classifier changes."""
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
    heads = (value["column"], "images", "accuracy", "95 % interval", "mean confidence", "found least")
    console.print(make_table(heads, rows))
    console.print()
    console.print(make_table(("gap between groups", "", "95 % interval"), _gap_rows(value)))
    if "changes" in value:
        console.print(f"\n[bold]Against {value['against']['run']}[/bold]\n")
        console.print(
            make_table((value["column"], "before", "after", "change", "95 % interval"), _change_rows(value))
        )
        console.print()
        console.print(make_table(("gap between groups, after", "", "95 % interval"), _gap_rows(value["against"])))
    for remark in value["remarks"]:
        console.print(f"\n{remark}", markup=False)


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


def _change_rows(value: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            one["group"],
            f"{one['before']:.2%}",
            f"{one['after']:.2%}",
            f"{100 * one['difference']['value']:+.2f}",
            f"{100 * one['difference']['low']:+.2f} to {100 * one['difference']['high']:+.2f}",
        )
        for one in value["changes"]
    ]


def _format_bounds(bounds: Mapping[str, float]) -> str:
    return f"{bounds['low']:.2%} to {bounds['high']:.2%}"


def print_uncertainty(console: "Console", value: Mapping[str, Any]) -> None:
    """Calibration, risk over coverage, the threshold, and the sets."""
    before = value["uncalibrated"]
    names = {"ece": "ECE, equal widths", "ece_equal_mass": "ECE, equal masses", "mce": "largest gap of a bin"}
    rows = [(title, f"{before[name]:.2%}", f"{value[name]:.2%}") for name, title in names.items()]
    console.print(f"\n[bold]How sure, on {value['n']:,} test images[/bold]\n")
    console.print(make_table(("", "at temperature 1", f"at {value['temperature']:g}"), rows))
    console.print()
    risks = [(f"{float(share):.0%}", f"{risk:.2%}") for share, risk in value["risk_at"].items()]
    console.print(make_table(("answered", "wrong among them"), risks))
    console.print(f"\nAURC {value['aurc']:.5f}, of which {value['excess_aurc']:.5f} is avoidable.", markup=False)
    if chosen := value["abstention"]:
        tested = chosen["test"]
        console.print(f"\n{chosen['sentence']}", markup=False)
        console.print(
            f"On the test images {tested['coverage']['value']:.1%} are answered, {tested['risk']['value']:.2%} "
            "of them "
            f"wrongly (95 % interval {_format_bounds(tested['risk'])}).",
            markup=False,
        )
    sets = value["conformal"]
    rows = [_set_row(name, one) for name, one in sets["kinds"].items()]
    heads = ("sets", "hold the true class", "95 % interval", "classes", "empty", "of one class", "worst class")
    title = f"Conformal sets at error rate {sets['alpha']:g}, by {sets['images']:,} validation images"
    console.print(f"\n[bold]{title}[/bold]\n")
    console.print(make_table(heads, rows))
    for remark in sets["remarks"]:
        console.print(f"\n{remark}", markup=False)
    done = "Kept in the classifier." if value["kept"] else "The classifier was not changed: --keep does that."
    console.print(f"\n{done}", markup=False)


def _set_row(name: str, one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name.replace("-per-class", ", each class"),
        f"{one['coverage']:.2%}",
        _format_bounds(one["intervals"]["coverage"]),
        f"{one['size']:.2f}",
        f"{one['empty']:.1%}",
        f"{one['single']:.1%}",
        f"{one['worst_class']:.1%}",
    )


def print_ood(console: "Console", value: Mapping[str, Any]) -> None:
    """Scores, the best first; in-distribution is the positive side."""
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
        f"\n[bold]{value['n']:,} test images (positive) against {value['n_outliers']:,} of "
        f"'{value['data']}'[/bold]\n"
    )
    console.print(make_table(("score", "AUROC", "95 % interval", "FPR at 95 % TPR", "95 % interval"), rows))
    for row in value["failed"]:
        console.print(f"\n{row['score']}: {row['error']}", markup=False)
    for remark in value["remarks"]:
        console.print(f"\n{remark}", markup=False)


def rank_label_issues(dataset: "Dataset", data: str, by: str | None, folder: Path | None) -> dict[str, Any]:
    """Rank the labels that look wrong, write them down, and say where."""
    from ..comparison import DEFAULT_LABEL_CHECKER, find_label_issues, write_label_issues

    name = re.sub(r"[^\w.-]+", "_", Path(data).name.partition(".")[0]) or "data"
    found = find_label_issues(dataset, by or DEFAULT_LABEL_CHECKER)
    return {
        **found.as_json(),
        "files": write_label_issues(found, dataset, folder or Path("runs") / f"{name}-suspects"),
    }


def label_issues_text(value: Mapping[str, Any], shown: int = 10) -> str:
    """The first suspects, and what to expect of the list."""
    lines = [value["sentence"]]
    for rank, one in enumerate(value["suspects"][:shown], 1):
        lines.append(
            f"  {rank}. {one['file']}: labelled {one['label']} ({one['p_label']:.1%}), "
            f"looks like {one['suggested']} ({one['p_suggested']:.1%})"
        )
    if (more := len(value["suspects"]) - shown) > 0:
        lines.append(f"  ... and {more:,} more in {value['files']['table']}")
    lines += value["remarks"]
    if "gallery" in value["files"]:
        lines.append(f"Look at {value['files']['gallery']}: the label, and under it what the image looks like.")
    return "\n".join(lines)
