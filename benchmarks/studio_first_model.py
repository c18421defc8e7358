"""A newcomer's first model on the page Teach: the clicks, and the seconds from the first one to live answers.

    python benchmarks/studio_first_model.py [--data FOLDER] [--pictures 20] [--rounds 3] [--out FILE]

``files``: photos of cats and dogs (photos_jpg.zip in FOLDER) are chosen for two classes. ``webcam``: two buttons are
held for 4 s each; the webcam is one that Chromium draws. Then one click on Train. It is done when
the page says what a picture is.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import record
from studio_grid import running_studio

from sightline.sources import find

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.studio_browser import open_browser

MAX_CLICKS, MAX_SECONDS = 3, 60.0
HOLD_MILLISECONDS = 4000
"""A button is held so long: some 25 pictures."""
FAKE_WEBCAM = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


def main() -> None:
    """Teach in turn from files and from the webcam."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("SIGHTLINE_DATA"))
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.data is None:
        sys.exit("Give the folder of photos_jpg.zip: --data FOLDER, or the environment variable SIGHTLINE_DATA.")
    images = find(Path(asked.data) / "photos_jpg.zip")
    found: dict[str, list[dict[str, Any]]] = {"files": [], "webcam": []}
    with tempfile.TemporaryDirectory() as folder:
        photos = []
        for k, name in enumerate(images.classes):
            rows = [i for i in range(len(images)) if images.labels[i] == k][: asked.pictures + 1]
            photos.append([])
            for row in rows:
                path = Path(folder) / f"{name}{row}.jpg"
                path.write_bytes(images.read(row))
                photos[-1].append(path)
        with running_studio(Path(folder) / "site") as (address, _), open_browser(*FAKE_WEBCAM) as browser:
            page, home = browser.new_page(), address.split("/sign-in")[0]
            page.set_default_timeout(600_000)
            page.goto(address)
            page.wait_for_url("**/studio")
            for _ in range(asked.rounds):
                for way, results in found.items():
                    page.goto(f"{home}/teach")
                    results.append(teach(page, way, photos, asked.pictures))
                    print(way, results[-1], flush=True)
    figures: dict[str, Any] = {"pictures_of_each_class": asked.pictures, "rounds": asked.rounds}
    for way, results in found.items():
        seconds = statistics.median(one["seconds"] for one in results)
        figures[way] = {"clicks": results[0]["clicks"], "seconds": round(seconds, 1), "each": results}
        figures[way]["met"] = results[0]["clicks"] <= MAX_CLICKS and seconds <= MAX_SECONDS
    record("studio_first_model", figures, asked.out)


def teach(page: Any, way: str, photos: list[list[Path]], count: int) -> dict[str, Any]:
    """Teach two classes and wait for the answer to a picture; the clicks, and the seconds since the first one."""
    clicks, began = 0, time.perf_counter()
    for k in range(2):
        clicks += 1
        if way == "files":
            page.locator("[data-files]").nth(k).set_input_files(photos[k][:count])
        else:
            page.locator("[data-hold]").nth(k).hover()
            page.mouse.down()
            page.wait_for_timeout(HOLD_MILLISECONDS)
            page.mouse.up()
    clicks += 1
    page.get_by_role("button", name="Train", exact=True).click()
    page.locator("#lesson h2").wait_for()
    trained = time.perf_counter() - began
    if way == "files":
        page.locator("[data-try]").set_input_files(photos[0][count])
    page.locator("#bars table").wait_for()
    return {"clicks": clicks, "seconds": round(time.perf_counter() - began, 1), "trained_after": round(trained, 1)}


if __name__ == "__main__":
    main()
