"""A journal on each database."""

import pytest

from helpers.postgres import Cluster, programs
from sightline.journal import Journal


@pytest.fixture(scope="module")
def cluster():
    place = programs()
    if place is None:
        pytest.skip("PostgreSQL is not installed, or there is no user to run it as")
    server = Cluster(place)
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    """Where a fresh journal lives: a site folder, or a URL."""
    if request.param == "sqlite":
        return tmp_path / "site"
    return request.getfixturevalue("cluster").database()


@pytest.fixture
def open_journal(where, tmp_path):
    """Open the journal, as often as wanted; all are closed in the end."""
    held = []

    def open(**options):
        held.append(Journal.open(where, site=tmp_path / "site", **options))
        return held[-1]

    yield open
    for one in held:
        one.close()


@pytest.fixture
def journal(open_journal):
    return open_journal()
