"""The tour by keyboard, reduced: its run is trained by Python, for so many epochs that it is equally good anywhere."""

import sys
from pathlib import Path

from helpers.studio_browser import Tab, open_browser, running_studio
from sightline.cli.output import evaluate_and_report
from sightline.serving import current_number, list_releases
from sightline.studio.datasets import find_datasets
from sightline.training import Recipe, train

sys.path.insert(0, str(Path(__file__).parents[2] / "proof"))


def test_thirty_answers_by_keyboard_improve_a_release(shared_data, tmp_path):
    with open_browser() as browser, running_studio(tmp_path / "site") as address:
        import tour as steps

        archive, requests = steps.write_digits(shared_data / "mnist_png.zip", tmp_path)
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.set_default_timeout(120_000)
        tour = steps.Tour(page, address.split("/studio")[0], pictures=False)
        page.goto(address)
        page.wait_for_url("**/studio")
        steps.bring(tour, archive)
        studio = tmp_path / "site" / "studio"
        ((id, _),) = find_datasets(studio).list()
        settled = {"precision": "float32", "memory_format": "contiguous", "cpu_replicas": 1}
        recipe = Recipe(model="lenet5", epochs=12, **settled)
        evaluate_and_report(train(find_datasets(studio).path(id), recipe, out=studio / "runs" / "digits"))
        tour.open("Trust")
        tour.press("digits", "link")
        page.wait_for_url("**/runs/digits")
        steps.read_and_publish(tour)
        answered = steps.serve_and_answer(tour, requests, 30)
        assert answered["corrected"] >= 10
        steps.improve(tour)
        assert tour.faults == []
        tab = Tab(page.context, address)
        job = page.url.split("/studio")[1]
        for width, scheme in ((1000, "light"), (390, "dark")):
            tab.page.set_viewport_size({"width": width, "height": 800})
            tab.page.emulate_media(color_scheme=scheme)
            for path in ("/runs/digits", "/runs/digits/ship", "/teach?run=digits", "/try", "/train", "/live", job):
                tab.go(f"/studio{path}")
                tab.page.wait_for_load_state("networkidle")
                assert tab.violations() == []
                assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert [one.number for one in list_releases(tmp_path / "site")] == [1, 2]  # improved twice, released once
        assert current_number(tmp_path / "site") == 1  # and gone back
