"""Teach in a real browser with a webcam that the browser draws: held by mouse and by the space bar."""

from helpers.studio_browser import Tab, open_browser, running_studio
from sightline.sources import find
from sightline.studio.datasets import find_datasets

FAKE_WEBCAM = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def test_two_classes_are_recorded_and_a_lesson_says_what_it_lacks(tmp_path):
    site = tmp_path / "site"
    with running_studio(site) as address, open_browser(*FAKE_WEBCAM) as browser:
        tab = Tab(browser.new_context(viewport={"width": 1000, "height": 800}), address)
        page = tab.page
        page.goto(address)
        page.wait_for_url("**/studio")
        tab.go("/studio/teach")
        hold, counts = page.locator("[data-hold]"), page.locator("[data-count]")

        def wait_for_pictures(place):
            page.wait_for_function(
                "(k) => document.querySelectorAll('[data-shots]')[k].childElementCount >= 5", arg=place
            )

        hold.nth(0).hover()
        page.mouse.down()
        wait_for_pictures(0)
        page.mouse.up()
        page.wait_for_function("() => document.querySelector('[data-count]').textContent >= '5'")
        page.get_by_role("button", name="Train").click()
        page.get_by_text("There is one class only").wait_for()
        page.locator("[data-name]").nth(0).fill("pie")
        hold.nth(1).focus()
        page.keyboard.down("Space")
        wait_for_pictures(1)
        page.keyboard.up("Space")
        page.wait_for_function("() => document.querySelectorAll('[data-count]')[1].textContent >= '1'")
        page.set_input_files("[data-files] >> nth=1", {"name": "x.txt", "mimeType": "text/plain", "buffer": b"x"})
        page.get_by_text("There is no picture among these files").wait_for()
        shown = [int(text) for text in counts.all_inner_texts()]
        datasets = find_datasets(site / "studio")
        ((id, _),) = datasets.list()
        found = find(datasets.path(id))
        assert {name: int((found.labels == k).sum()) for k, name in enumerate(found.classes)} == dict(
            zip(["pie", "Class 2"], shown, strict=True)
        )
        for width, scheme in ((1000, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            tab.go(f"/studio/teach?data={id}")
            page.wait_for_load_state("networkidle")
            assert tab.violations() == []
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert [int(text) for text in counts.all_inner_texts()] == shown  # after a reload
        assert [one for one in tab.faults if "422" not in one] == []  # of the lesson of one class
