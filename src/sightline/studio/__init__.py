"""The same verbs, with a mouse: pages of a site, on the service's own application.

``StudioRoutes`` adds them to a service; ``PAGES`` lists them, and ``ACTIONS`` the verbs that their forms run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actions import ACTIONS, Action
    from .application import StudioRoutes
    from .jobs import Job, Jobs
    from .pages import PAGES
    from .visit import Page, PageRoute, Visit

__all__ = ["ACTIONS", "PAGES", "Action", "Job", "Jobs", "Page", "PageRoute", "StudioRoutes", "Visit"]

_MEMBERS = {
    "actions": ("ACTIONS", "Action"),
    "application": ("StudioRoutes",),
    "jobs": ("Job", "Jobs"),
    "pages": ("PAGES",),
    "visit": ("Page", "PageRoute", "Visit"),
}


def __getattr__(name: str) -> Any:
    """Import a member when a name of it is first used: a job's process needs none of the pages."""
    for member, names in _MEMBERS.items():
        if name in names:
            return getattr(import_module(f".{member}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
