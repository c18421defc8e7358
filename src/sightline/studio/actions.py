"""What the forms of the studio run: each action makes the words of a verb from the fields of its form."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response

from ..serving import RequestError
from .visit import Page, PageRoute, Visit

Words = list[str]


@dataclass(frozen=True)
class Action:
    """A form that runs a verb as a job."""

    title: str
    """Of the job: what is done, in a few words."""
    words: Callable[[Visit], Words]
    """The words after ``sightline``, from the fields of the form; raises a SightlineError or RequestError that names
    the field. Free text goes behind ``--flag=``, and a path below the site's, so that none becomes an option."""
    back: str
    """Page of the form, below ``/studio``."""
    queued: bool = False
    """Whether it waits until no other job that learns runs."""
    resume_words: Callable[[Words], Words] = lambda words: words
    """The words that go on where a job of these words ended."""
    scope: str = "admin"


def improve_words(visit: Visit) -> Words:
    """``improve SITE``: fields ``allowance`` and ``minimum``."""
    words = ["improve", str(visit.site)]
    if allowance := visit.text("allowance"):
        words.append(f"--allowance={allowance}")
    if minimum := visit.text("minimum"):
        words.append(f"--minimum={minimum}")
    return words


ACTIONS = {
    "improve": Action("Improve the release", improve_words, "/live", queued=True),
}
"""Name in the address -> action."""


def _find_action(visit: Visit) -> tuple[str, Action]:
    name = visit.request.path_params["name"]
    if name not in ACTIONS:
        raise RequestError(404, "There is no such action.")
    action = ACTIONS[name]
    if not visit.session.allows(action.scope):
        raise RequestError(403, f"Your key does not allow this: it needs the scope {action.scope}.")
    return name, action


def start_action(visit: Visit) -> Response:
    """Start the job of a form, and show it."""
    _, action = _find_action(visit)
    words = action.words(visit)
    job = visit.studio.jobs.start(
        words, title=action.title, back=action.back, by=visit.session.name, queued=action.queued,
        resume_words=action.resume_words(words),
    )  # fmt: skip
    return visit.redirect(f"/jobs/{job.id}")


def show_command(visit: Visit) -> Response:
    """The command of a form as it is filled in now: a part of the page, which htmx replaces."""
    _, action = _find_action(visit)
    return visit.render("_command.html.jinja", words=action.words(visit))


ACTIONS_PAGE = Page(
    "",
    (
        PageRoute("POST", "/run/{name}", start_action),
        PageRoute("POST", "/run/{name}/command", show_command),
    ),
)
