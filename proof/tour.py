"""Goes through the studio from an empty folder to an improved release, and takes the pictures of docs/tour.md.

    python proof/tour.py --data FOLDER [--work FOLDER] [--corrections 30] [--pictures]

A real browser (Chromium by Playwright) and real digits: FOLDER holds mnist_png.zip. The training images of the zip are
white on black; half of its test images, and all requests that come later, are black on white, as a scanner shows them.
The zip is dropped, checked, trained on and published; a person answers by keyboard until ``--corrections`` requests are
corrected, and the release is improved. After the file is chosen everything is done by keyboard. The script fails if a
step does, if the browser's console has an error, if axe finds anything serious in a page it shows, in both themes, or
if a request leaves the machine. ``passed`` is whether the gate let the improved release pass; only then it is compared
with the one before, and rolled back. Writes ``proof/results/tour.json``, and with ``--pictures`` those of docs/tour.md.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, sync_playwright
from traffic import keep

from sightline.serving import Client
from sightline.sources import find

PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"
CODE = "import sys; from sightline.cli import main; sys.exit(main())"
TRAIN_IMAGES, TEST_IMAGES, REQUESTS = 60, 100, 60
"""Of each digit."""
MAX_ANSWERS = 100
"""Answers that a person has the patience for."""
PATHS = {"Data": "data", "Train": "train", "Trust": "runs", "Try": "try", "Review": "review", "Live": "live"}
MAX_TABS, MAX_MINUTES = 80, 15
COLOURS = 128
"""Colours of a picture, so that it stays small."""


class Tour:
    """A browser in which things are done, pictures taken and seconds counted."""

    def __init__(self, page: Page, home: str, *, pictures: bool) -> None:
        self.page, self.home, self.pictures = page, home, pictures
        self.faults: list[str] = []
        self.seconds: dict[str, float] = {}
        self.began = time.perf_counter()
        page.on("console", self.check_message)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self.check_request)
        page.on("filechooser", lambda _: None)  # so that no dialog opens before somebody waits for one

    def check_message(self, message: ConsoleMessage) -> None:
        """Note an error of the browser's console."""
        if message.type == "error":
            self.faults.append(f"{self.page.url}, {message.location}: {message.text}")

    def check_request(self, request: Request) -> None:
        """Note a request that leaves the machine."""
        if not request.url.startswith((self.home + "/", "data:", "blob:")):
            self.faults.append(f"{request.url} leaves the machine")

    def picture(self, name: str) -> None:
        """Let axe look at the page in both themes, and save what the window shows.

        The caret too: hiding it leaves an empty style, which htmx copies against the CSP.
        """
        for scheme in ("dark", "light"):
            self.page.emulate_media(color_scheme=scheme)
            for one in Axe().run(self.page).response["violations"]:
                if one["impact"] in ("serious", "critical"):
                    self.faults.append(f"axe on {name}, {scheme}: {one['id']}, {one['nodes'][0]['target']}")
        if not self.pictures:
            return
        self.page.wait_for_timeout(400)
        shot = Image.open(io.BytesIO(self.page.screenshot(caret="initial"))).convert("RGB")
        shot.quantize(COLOURS).save(PICTURES / f"tour-{name}.png", optimize=True)

    def reach(self, place: Locator) -> None:
        """Press Tab until the focus is there."""
        for _ in range(MAX_TABS):
            if place.evaluate("(one) => one === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{place} cannot be reached by {MAX_TABS} tabs of {self.page.url}.")

    def press(self, name: str, role: Literal["button", "link"] = "button") -> None:
        """Press the button, or follow the link, of this name by keyboard."""
        self.reach(self.page.get_by_role(role, name=name, exact=True).first)
        self.page.keyboard.press("Enter")

    def open(self, name: str) -> None:
        """Open a page by the navigation."""
        self.page.evaluate("document.activeElement.blur()")
        self.press(name, "link")
        self.page.wait_for_url(f"**/studio/{PATHS[name]}")
        self.page.wait_for_load_state("networkidle")

    def finish_job(self, *states: str, minutes: float = MAX_MINUTES) -> None:
        """Wait until the job that this page shows has ended: well, or in one of ``states``."""
        ends = ", ".join(f".state.{one}" for one in ("done", "refused", "stopped", "failed", "lost"))
        self.page.locator(ends).first.wait_for(timeout=60_000 * minutes)
        good = ", ".join(f".state.{one}" for one in ("done", *states))
        assert self.page.locator(good).count(), self.page.locator("main").inner_text()

    def done(self, step: str) -> None:
        """Note the seconds of a step."""
        now = time.perf_counter()
        self.seconds[step], self.began = round(now - self.began, 1), now
        print(f"{step}: {self.seconds[step]} s", flush=True)


def main() -> None:
    """The whole tour."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("SIGHTLINE_DATA"))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--corrections", type=int, default=30)
    parser.add_argument("--brief", action="store_true", help="without what check finds")
    parser.add_argument("--pictures", action="store_true", help="take those of docs/tour.md again")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.data is None:
        sys.exit("Give the folder of mnist_png.zip: --data FOLDER, or the environment variable SIGHTLINE_DATA.")
    work = asked.work or Path(tempfile.mkdtemp(prefix="tour-"))
    work.mkdir(parents=True, exist_ok=True)
    archive, requests = write_digits(Path(asked.data) / "mnist_png.zip", work)
    command = [sys.executable, "-c", CODE, "studio", "site", "--no-browser", "--json"]
    studio = subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert studio.stdout is not None
    try:
        address = json.loads(studio.stdout.readline())["studio"]
        with sync_playwright() as started:
            program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
            browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 700})
            page.set_default_timeout(60_000)
            tour = Tour(page, address.split("/studio")[0], pictures=asked.pictures)
            page.goto(address)
            page.wait_for_url("**/studio")
            tour.picture("home")
            bring(tour, archive)
            if not asked.brief:
                check(tour)
            train(tour)
            read_and_publish(tour)
            found = {**serve_and_answer(tour, requests, asked.corrections), **improve(tour)}
            browser.close()
    finally:
        studio.terminate()
        studio.communicate(timeout=30)
    if tour.faults:
        sys.exit("\n".join(["The browser found faults:", *tour.faults]))
    keep("tour", {**found, "seconds": tour.seconds}, asked.out)


def write_digits(source: Path, work: Path) -> tuple[Path, list[tuple[str, bytes]]]:
    """A zip to learn from, and (label, file) of the requests; each second test image and every request is inverted."""
    images = find(source)
    order, requests = np.random.default_rng(0).permutation(len(images.labels)), []
    with zipfile.ZipFile(work / "digits.zip", "w") as archive:
        for k, name in enumerate(map(str, images.classes)):
            own = {
                split: [
                    int(row) for row in order if images.labels[row] == k and images.columns["split"][row] == split
                ]
                for split in ("train", "test")
            }
            for row in own["train"][:TRAIN_IMAGES]:
                archive.writestr(f"train/{name}/{row}.png", images.read(row))
            for i, row in enumerate(own["test"][:TEST_IMAGES]):
                archive.writestr(f"test/{name}/{row}.png", invert(images.read(row)) if i % 2 else images.read(row))
            asked = own["train"][TRAIN_IMAGES : TRAIN_IMAGES + REQUESTS]
            requests += [(name, invert(images.read(row))) for row in asked]
    return work / "digits.zip", [requests[i] for i in np.random.default_rng(1).permutation(len(requests))]


def invert(data: bytes) -> bytes:
    """A digit as a scanner shows it: black on white."""
    stream = io.BytesIO()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    Image.fromarray(255 - pixels).save(stream, "PNG")
    return stream.getvalue()


def bring(tour: Tour, archive: Path) -> None:
    """Choose the zip, and look at its images."""
    page = tour.page
    tour.open("Data")
    tour.reach(page.locator("#choose-file"))
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(archive)
    page.wait_for_url("**/studio/data/2*")
    page.wait_for_load_state("networkidle")
    tour.picture("data")
    tour.done("upload")


def check(tour: Tour) -> None:
    """Let the images be checked, and read what was found."""
    tour.press("What check finds", "link")
    tour.press("Check")
    tour.page.wait_for_url("**/studio/jobs/*")
    tour.finish_job()
    tour.press("Back", "link")
    tour.page.wait_for_url("**/check")
    tour.picture("check")
    tour.done("check")


def train(tour: Tour) -> None:
    """Train with the choices that are there."""
    page = tour.page
    tour.open("Train")
    tour.picture("train")
    tour.press("Train")
    page.wait_for_url("**/studio/runs/*")
    page.get_by_role("link", name="Ship it").wait_for(timeout=60_000 * MAX_MINUTES)
    tour.picture("trust")
    tour.done("train")


def read_and_publish(tour: Tour) -> None:
    """Read the report of the run that is shown, and make it a release."""
    page, run = tour.page, tour.page.url
    tour.press("Read the report", "link")
    page.wait_for_url("**/report")
    assert page.locator("h1").count(), "The report has no heading."
    tour.picture("report")
    page.goto(run)
    tour.press("Ship it", "link")
    tour.press("Publish")
    page.wait_for_url("**/studio/jobs/*")
    tour.finish_job()
    tour.done("publish")


def serve_and_answer(tour: Tour, requests: list[tuple[str, bytes]], count: int) -> dict[str, int]:
    """Let images come as requests, and answer the queue by keyboard until ``count`` were corrected."""
    page, truth, right = tour.page, {}, 0
    with Client(tour.home) as client:
        for first in range(0, len(requests), 50):
            some = requests[first : first + 50]
            for (label, _), answer in zip(some, client.predict([data for _, data in some]), strict=True):
                truth[answer.id] = (label, answer.label)
                right += label == answer.label
    tour.open("Try")
    page.locator("input[type=file]").set_input_files(
        {"name": "digit.png", "mimeType": "image/png", "buffer": requests[0][1]}
    )
    tour.press("What is it?")
    page.get_by_text("sure").first.wait_for()
    tour.picture("try")
    tour.done("requests")
    tour.open("Review")
    wrong = answered = 0
    while wrong < count and answered < MAX_ANSWERS:
        id = page.locator("input[name=id]").get_attribute("value", timeout=60_000) or ""
        label, said = truth[id]
        if answered == 2:
            page.wait_for_load_state("networkidle")
            tour.picture("review")
        wrong, answered = wrong + (said != label), answered + 1
        others = page.locator("input[name=followers]")
        for k in range(others.count()):  # those that look like it, and are another digit
            if truth[others.nth(k).get_attribute("value") or ""][0] != label:
                tour.reach(others.nth(k))
                page.keyboard.press("Space")
        page.keyboard.press(label)  # a digit's own key
        page.wait_for_function("(id) => document.querySelector('input[name=id]')?.value !== id", arg=id)
    tour.done("answers")
    tour.open("Live")
    tour.picture("live")
    return {"requests": len(requests), "right": right, "answered": answered, "corrected": wrong}


def improve(tour: Tour) -> dict[str, Any]:
    """Improve and read the verdict; where the gate let it pass, compare the releases and go back."""
    page = tour.page
    tour.press("Improve now")
    page.wait_for_url("**/studio/jobs/*")
    again = page.request.post(f"{tour.home}/studio/run/improve", headers={"origin": tour.home})  # a second person
    assert again.ok, again.text()
    tour.finish_job("refused")
    tour.done("improve")
    tour.picture("verdict")
    found = {"verdict": page.locator("main").inner_text().split("\n"), "passed": False}
    if page.locator(".state.refused").count() or not page.get_by_text("Release 2 answers now").count():
        return found
    tour.press("See it live", "link")
    page.wait_for_url("**/studio/live")
    assert not page.get_by_role("button", name="release 3").count(), "One lesson was released twice."
    tour.press("Compare release 1 with release 2")
    page.wait_for_url("**/studio/jobs/*")
    tour.finish_job()
    page.get_by_text("Release 1 and release 2, image by image").wait_for()
    tour.picture("difference")
    tour.done("compare")
    tour.open("Live")
    tour.press("Go back to release 1")
    page.wait_for_url("**/studio/jobs/*")
    tour.finish_job()
    tour.done("go back")
    return {**found, "passed": True}


if __name__ == "__main__":
    main()
