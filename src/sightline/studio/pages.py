"""The pages of the studio, in the order of the navigation: a new one is a file and a line."""

from .actions import ACTIONS_PAGE
from .data_pages import DATA_PAGE
from .home import HOME_PAGE
from .job_pages import JOBS_PAGE
from .live_pages import LIVE_PAGE
from .review_pages import REVIEW_PAGE
from .run_pages import RUNS_PAGE
from .teach_pages import TEACH_PAGE
from .train_pages import TRAIN_PAGE
from .try_pages import TRY_PAGE

PAGES = {
    "home": HOME_PAGE,
    "data": DATA_PAGE,
    "train": TRAIN_PAGE,
    "teach": TEACH_PAGE,
    "runs": RUNS_PAGE,
    "try": TRY_PAGE,
    "review": REVIEW_PAGE,
    "live": LIVE_PAGE,
    "jobs": JOBS_PAGE,
    "actions": ACTIONS_PAGE,
}
"""Name -> page."""
