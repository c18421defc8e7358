"""The first page: what answers, what waits, what is under way."""

import time

from starlette.responses import Response

from ..serving import RequestError, current_number, list_releases
from .visit import Page, PageRoute, Visit


def show_home(visit: Visit) -> Response:
    """What answers now, and what to do next; for a key that may only review, the review."""
    if not visit.session.allows("read"):
        if visit.session.allows("review"):
            return visit.redirect("/review")
        allowed = ", ".join(visit.session.scopes)
        raise RequestError(
            403, f"'{visit.session.name}' allows {allowed}: the studio needs read, review or admin."
        )
    current, now = current_number(visit.site), time.time()
    found = {one.number: one for one in list_releases(visit.site)}
    return visit.render(
        "home.html.jinja", current=found.get(current or 0), jobs=visit.studio.jobs.latest()[:5],
        waiting=sum(one["waiting"] for one in visit.journal.count_queue().values()),
        today=visit.journal.count_between([now - 86_400, now])[0], alarm=visit.studio.service.observed.get("alarm"),
        address=str(visit.request.base_url).rstrip("/"),
    )  # fmt: skip


HOME_PAGE = Page("Home", (PageRoute("GET", "/", show_home, ""),))
