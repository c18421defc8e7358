"""The verb review: answers that deserve a person's minute, and what people said of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ChoiceError
from .journal import open_site_journal
from .output import OUTPUT_DEFAULTS, OutputOptions, Switch, Words, emit, make_table, require_argument

if TYPE_CHECKING:
    from rich.console import Console

    from ..journal import Journal


def review(
    site: Path,
    action: Literal["list", "next", "answer", "export", "import"] = "list",
    what: str | None = None,
    answer: str | None = None,
    /,
    *,
    by: str | None = None,
    count: int = 100,
    reasons: Words = (),
    second: Switch = False,
    all: Switch = False,
    new_class: Switch = False,
    out: Path | None = None,
    url: str | None = None,
    options: OutputOptions = OUTPUT_DEFAULTS,
) -> None:
    """Queue the answers that deserve a person's minute, show them, and record what people say: list, next, answer ID
    CLASS, export, or import FILE.

    Parameters
    ----------
    site: Path
        The folder of the service.
    action: str
        list fills the queue and says what was learned; next shows one answer, to one person only; answer records what
        it is; export writes the queue to a .csv with an empty column, import reads it back.
    what: str
        With answer: the id. With import: the .csv.
    answer: str
        The right class, which may be new; or 'none of these', or unusable.
    by: str
        Your name, so that no one else sees the same image and second opinions count. Default: this user.
    count: int
        Answers that wait at most, but for those drawn at random.
    reasons: tuple[str, ...]
        Why answers are queued: audit:0.02 margin far drifted abstained. With next: which to show.
    second: bool
        With next: what another person answered already.
    all: bool
        With answer: say the same of the answers that it stands for.
    new_class: bool
        With answer and import: a class whose name looks like a known one is another thing.
    out: Path
        With export: the .csv.
    url: str
        URL of the journal's database; safer in the variable SIGHTLINE_JOURNAL. Default: a file of the site.
    """
    from ..feedback import DEFAULT_REASONS, describe_shown, export_queue, select, summarise_reviews
    from ..serving import current_user

    if count < 0:
        raise ChoiceError(f"--count is {count}: give 0 or more answers that may wait.")
    who = by or current_user()
    with open_site_journal(site, url) as held:
        value: dict[str, Any] = {"site": str(site)}
        if action in ("list", "export"):
            value["queued"] = select(site, journal=held, count=count, by=reasons or DEFAULT_REASONS)
        if action == "list":
            value |= summarise_reviews(site, journal=held)
        elif action == "next":
            leased = held.lease(1, who, second=second, reasons=reasons)
            value |= describe_shown(leased[0]) if leased else {"id": None}
            if leased:
                value["image"] = str(held.image_path(leased[0].row))
        elif action == "export":
            if out is None or out.suffix.lower() != ".csv":
                raise ChoiceError("Set the destination: --out queue.csv")
            value |= {"n": export_queue(held, out), "out": str(out)}
        else:
            word = None if action == "import" else require_argument(answer, action, "what it is, after the id")
            what = require_argument(what, action, "the id of an answer, or the .csv with answers")
            value |= _record_answers(held, site, what, word, who, all=all, new_class=new_class)
    emit(value, options.json, print_review)


def _record_answers(
    held: "Journal", site: Path, what: str, word: str | None, who: str, *, all: bool, new_class: bool
) -> dict[str, Any]:
    """Record a word about the answer ``what`` (its id), or without a word all those of the table ``what``."""
    from ..feedback import import_answers, known_classes, review_answer

    classes = known_classes(site, held.reviews())
    if word is None:
        return {"imported": import_answers(held, Path(what), classes=classes, by=who, new_class=new_class)}
    followers = [one for one, _ in held.queued(leader=what)] if all else ()
    said = review_answer(held, what, word, classes=classes, by=who, followers=followers, new_class=new_class)
    return {"reviews": [{"id": one.row.id, "kind": one.kind, "label": one.label} for one in said]}


def print_review(console: "Console", value: Mapping[str, Any]) -> None:
    """The state of the queue as a table, or the outcome of an action."""

    def say(sentence: str) -> None:
        console.print(sentence, markup=False, highlight=False)

    if "imported" in value:
        say(f"{value['imported']:,} answers were recorded.")
    elif "reviews" in value and isinstance(value["reviews"], list):
        for one in value["reviews"]:
            say(f"{one['id']}: {one['kind']}" + (f" ({one['label']})" if one["label"] else ""))
    elif "out" in value:
        say(f"{value['n']:,} answers wait in {value['out']}: fill in the column answer, then import it.")
    elif "id" in value:
        if value["id"] is None:
            say(f"Nothing waits. More may come: sightline review {value['site']}")
            return
        say(f"{value['image']}\nShown because: {value['sentence']}.")
        if not value["blind"]:
            say(f"Answered: {value['label']} ({value['confidence']:.1%})")
        others = f", or add --all for {len(value['followers'])} like it" if value["followers"] else ""
        say(f"Say what it is: sightline review {value['site']} answer {value['id']} CLASS{others}")
    else:
        rows = [(why, one["waiting"], one["done"]) for why, one in value["queue"].items()]
        console.print(make_table(("shown because", "waiting", "done"), rows))
        accuracy, more = value["accuracy"], value["more"]
        if accuracy["n"]:
            say(
                f"\nAccuracy of release {value['release']} now: {accuracy['value']:.1%} "
                f"[{accuracy['low']:.1%}, {accuracy['high']:.1%}] of {accuracy['n']:,} answers drawn at random."
            )
        else:
            say("\nThe accuracy now is not known: no answer of the audit was reviewed.")
        say(f"{more['answers']} more answers of the audit narrow this to +-{100 * more['half_width']:.1f} points.")
        for one in value["agreement"]:
            kappa = "no kappa" if one["kappa"] is None else f"kappa {one['kappa']:.2f}"
            say(f"{' and '.join(one['people'])} answered {one['n']:,} of the same images: {kappa}.")
        for note in value["notes"]:
            say(note)
        say(f"Next: sightline review {value['site']} next")
