"""What the forms of the studio run: each action makes the words of a verb from the fields of its form."""

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response

from ..serving import RequestError
from .live_pages import accept_words, compare_words, improve_words, promote_words, rollback_words
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
    result: str = ""
    """Template that shows what the verb gave; empty where its log says it all."""
    queued: bool = False
    """Whether it waits until no other job that learns runs."""
    resume_words: Callable[[Words], Words] = lambda words: words
    """The words that go on where a job of these words ended."""
    scope: str = "admin"


ACTIONS = {
    "improve": Action("Improve the release", improve_words, "/live", "_improvement.html.jinja", queued=True),
    "promote": Action("Let another release answer", promote_words, "/live"),
    "rollback": Action("Go back to the release before", rollback_words, "/live"),
    "compare-releases": Action("Compare two releases", compare_words, "/live", "_difference.html.jinja"),
    "accept-drift": Action("Take today's images as normal", accept_words, "/live"),
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
    name, action = _find_action(visit)
    words = action.words(visit)
    job = visit.studio.jobs.start(
        words, title=action.title, back=action.back, action=name, by=visit.session.name, queued=action.queued,
        resume_words=action.resume_words(words),
    )  # fmt: skip
    return visit.redirect(f"/jobs/{job.id}")


def show_command(visit: Visit) -> Response:
    """The command for the current values of a form: a part of the page, which htmx replaces."""
    _, action = _find_action(visit)
    return visit.render("_command.html.jinja", words=action.words(visit))


ACTIONS_PAGE = Page(
    "",
    (
        PageRoute("POST", "/run/{name}", start_action),
        PageRoute("POST", "/run/{name}/command", show_command),
    ),
)
