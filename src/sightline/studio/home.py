"""The first page: what answers, what waits, what is under way."""

from starlette.responses import Response

from ..serving import current_number, list_releases
from .visit import Page, PageRoute, Visit


def show_home(visit: Visit) -> Response:
    """What answers now, and what to do next."""
    current = current_number(visit.site)
    found = {one.number: one for one in list_releases(visit.site)}
    return visit.render(
        "home.html.jinja", current=found.get(current or 0), releases=len(found),
        jobs=visit.studio.jobs.latest()[:5],
    )  # fmt: skip


HOME_PAGE = Page("Home", (PageRoute("GET", "/", show_home),))
