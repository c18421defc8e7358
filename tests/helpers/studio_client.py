"""A studio in this process, and a person who is signed in."""

import re
from contextlib import contextmanager
from html.parser import HTMLParser

from starlette.testclient import TestClient

from sightline.feedback import add_review_routes
from sightline.serving.api import create_app
from sightline.serving.api_keys import create_key, hash_key
from sightline.serving.service import Service, ServiceSettings
from sightline.studio import StudioRoutes

ORIGIN = {"Origin": "http://localhost"}
TOKEN = "the token that the terminal shows"


@contextmanager
def open_studio(site, *, scopes=("admin",), signed_in=True, **settings):
    """A client of the studio of a site, signed in by a key of these scopes; its service is ``client.service``."""
    routes = StudioRoutes(hash_key(TOKEN))
    (site / "releases").mkdir(parents=True, exist_ok=True)
    given = {"threads": 1, "wait_for_release": True, "keep_images": True, **settings}
    service = Service(
        ServiceSettings(path=site, routers=(add_review_routes, routes), body_bytes=routes.body_bytes, **given)
    ).open()
    with TestClient(create_app(service), base_url="http://localhost", follow_redirects=False) as client:
        client.service = service
        if signed_in:
            secret = create_key(site, "anna", scopes)
            service.keyring._checked_at = 0  # a new key is seen at once
            assert sign_in(client, secret).status_code == 200
        yield client


def sign_in(client, secret):
    return client.post("/studio/sign-in", data={"key": secret}, headers=ORIGIN)


def post(client, path, headers=ORIGIN, **fields):
    """Send a form from the studio's own page."""
    return client.post(path, data=fields, headers=headers)


class Reader(HTMLParser):
    """The tags of a page, and its visible text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    def every(self, tag, **wanted):
        return [held for name, held in self.tags if name == tag and wanted.items() <= held.items()]

    @property
    def active(self):
        """Whether a job on this page still waits or runs: read from its state, since its log may use the same words."""
        return any(self.every("span", **{"class": f"state {state}"}) for state in ("waiting", "running"))
