"""The studio in a real browser: answers by keyboard, a release promoted and rolled back, and nothing that axe finds."""

import shutil
import time

import pytest

from helpers.live_server import CLASSES, pictures, site_of_two
from helpers.studio_browser import Tab, open_browser, running_studio
from sightline.journal import Journal, PredictionRecord, QueueEntry, new_prediction_id
from sightline.serving import current_number


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site that answered six images, which wait for a review: the last one with the one before."""
    site = shutil.copytree(site_of_two(), tmp_path_factory.mktemp("browser") / "site")
    records = [
        PredictionRecord(new_prediction_id(), time.time(), 1, CLASSES[k % 4], 0.6, False, None, image=data)
        for k, data in enumerate(pictures()[:6])
    ]
    with Journal.open(site, keep_images=True) as journal:
        journal.record(records)
        journal.flush()
        journal.add_to_queue([QueueEntry(one.id, "margin", 0.0) for one in records[:5]])
        journal.add_to_queue([QueueEntry(records[5].id, "margin", 0.0, records[4].id)])
    return site, [one.id for one in records]


@pytest.fixture(scope="module")
def address(site):
    with running_studio(site[0]) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def signed_in(browser, address):
    """The cookies of a session."""
    context = browser.new_context()
    context.new_page().goto(address)
    context.pages[0].wait_for_url("**/studio")
    yield context.storage_state()
    context.close()


def open_tab(browser, address, signed_in, **settings):
    return Tab(browser.new_context(storage_state=signed_in, **settings), address)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_axe_finds_nothing_serious_and_no_page_is_wider_than_the_screen(
    browser, address, signed_in, scheme, width
):
    tab = open_tab(browser, address, signed_in, color_scheme=scheme, viewport={"width": width, "height": 800})
    for path in ("", "/review", "/review/many", "/live", "/jobs", "/nowhere"):
        tab.go(f"/studio{path}")
        tab.page.wait_for_load_state("networkidle")
        assert tab.violations() == []
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert [one for one in tab.faults if "404" not in one] == []  # of the page that is nowhere
    tab.page.context.clear_cookies()
    tab.go("/studio/sign-in")
    assert tab.violations() == []


def test_the_queue_is_answered_by_keyboard_alone(browser, address, signed_in, site):
    tab = open_tab(browser, address, signed_in)
    page, (folder, ids) = tab.page, site
    tab.go("/studio/review")
    likely = page.locator('[data-key="1"]').get_attribute("value")

    def press(*keys):
        before = page.locator("input[name=id]").get_attribute("value")
        for key in keys:
            page.keyboard.press(key)
        page.wait_for_function("(id) => document.querySelector('input[name=id]')?.value !== id", arg=before)

    press("1")  # the most likely class
    press("Enter")  # right
    press("s", "t", "Enter")  # the first class that matches
    press("z")  # back to it
    assert page.locator("text=You said").is_visible()
    press("x")  # none of these, instead
    press("u")  # unusable
    press("n", *"hexagon", "Enter")  # a new class, for the one that looks like it too
    page.locator("text=Nothing waits").wait_for()
    assert tab.faults == []
    with Journal.open(folder) as journal:
        said = {}
        for one in journal.reviews():
            said.setdefault(one.row.id, []).append(one.label or one.kind)
    words = [[likely], [CLASSES[1]], ["star", "none of these"], ["unusable"], ["hexagon"], ["hexagon"]]
    assert said == dict(zip(ids[:6], words, strict=True))


def test_a_release_is_promoted_and_rolled_back_by_keyboard(browser, address, signed_in, site):
    tab = open_tab(browser, address, signed_in)
    page = tab.page
    for label, number in (("Let release 2 answer", 2), ("Go back to release 1", 1)):
        tab.go("/studio/live")
        button = page.get_by_role("button", name=label)
        button.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/studio/jobs/*")
        page.locator(".state.done").wait_for()  # it loads itself again when the job has ended
        assert current_number(site[0]) == number
    assert tab.faults == []


def test_pages_can_be_read_without_scripts(browser, address, signed_in):
    tab = open_tab(browser, address, signed_in, java_script_enabled=False)
    for path, words in (
        ("", "Release"),
        ("/live", "Releases"),
        ("/jobs", "Jobs"),
        ("/review", "What your answers bring"),
    ):
        tab.go(f"/studio{path}")
        assert words in tab.page.locator("main").inner_text()
