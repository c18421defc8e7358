"""Data in a real browser: a zip and a folder arrive in pieces, images are relabelled by keyboard, axe finds nothing."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from helpers.studio_browser import Tab, open_browser, running_studio
from sightline.studio.datasets import find_datasets


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A site, a zip of 5 MB (two pieces) and the same images as a folder."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    with zipfile.ZipFile(folder / "noise.zip", "w") as archive:
        for number in range(6):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (520, 520, 3), np.uint8)).save(stream, "png")
            name = f"{('cat', '<img src=x onerror=alert(1)>')[number % 2]}/a long name, {'x' * 90} {number}.png"
            archive.writestr(name, stream.getvalue())
            path = folder / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(stream.getvalue())
    return folder


def test_data_by_mouse_and_keyboard(site):
    with running_studio(site / "site") as address, open_browser() as browser:
        tab = Tab(browser.new_context(viewport={"width": 1000, "height": 800}), address)
        page, datasets = tab.page, find_datasets(site / "site" / "studio")
        page.goto(address)
        page.wait_for_url("**/studio")
        tab.go("/studio/data")
        page.set_input_files("#choose-file", site / "noise.zip")
        page.wait_for_url("**/studio/data/2*")
        id = datasets.list()[0][0]
        assert next(datasets.path(id).parent.glob("*.zip")).read_bytes() == (site / "noise.zip").read_bytes()
        page.locator("#images input[name=row]").first.focus()
        page.keyboard.press("Space")
        page.keyboard.press("2")
        page.get_by_text("1 image is now 'cat'.").wait_for()
        assert np.bincount(datasets.open(id).now.labels).tolist() == [2, 4]
        page.keyboard.press("z")
        page.get_by_text("Taken back.").wait_for()
        page.keyboard.press("a")
        assert "6 chosen" in page.locator("[data-chosen]").inner_text()
        for width, scheme in ((1000, "light"), (390, "dark")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            parts = ("", "/classes", "/check", "/history", "/look/0")
            for path in ("/data", *(f"/data/{id}{part}" for part in parts), "/train", "/runs", "/try"):
                tab.go(f"/studio{path}")
                page.wait_for_load_state("networkidle")
                assert tab.violations() == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        tab.go("/studio/data")
        page.set_input_files("#choose-folder", site / "photos")
        page.wait_for_url("**/studio/data/2*")
        found = datasets.open(datasets.list()[0][0]).now
        files = {str(p.relative_to(site / "photos")): p.read_bytes() for p in (site / "photos").rglob("*.png")}
        read = {str(name).removeprefix("photos/"): found.read(i) for i, name in enumerate(found.files)}
        assert read == files
        assert tab.faults == []
