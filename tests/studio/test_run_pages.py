"""Train, trust, try and ship by the pages: each job is the verb's own command on real digits."""

import csv
import html
import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from helpers.studio_client import ORIGIN, Reader, open_studio, post
from sightline.studio.datasets import find_datasets
from sightline.studio.run_pages import read_predictions


def write_digits(folder, count=360):
    digits = load_digits()
    for i in range(count):
        file = folder / str(digits.target[i]) / f"{i:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(digits.images[i] * 15.9)).save(file)
    return folder


def wait(client, address, *, seconds=240):
    """The page of a job when it has ended."""
    for _ in range(seconds * 5):
        page = Reader(client.get(address).text)
        if not page.active:
            return page
        time.sleep(0.2)
    raise AssertionError(page.text)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A studio with a dataset of digits and a run that its form trained."""
    folder = tmp_path_factory.mktemp("studio")
    with open_studio(folder / "site") as client:
        id = find_datasets(folder / "site" / "studio").add(write_digits(folder / "digits"), "digits")
        client.data = id
        started = post(client, "/studio/train", data=id, budget="30s", start="scratch")
        client.run = started.headers["location"]
        client.folder = folder / "site" / "studio" / "runs" / "digits"
        jobs = client.service.settings.path / "studio" / "jobs"
        job = next(jobs.glob("2*")).name
        client.shown = Reader(client.get(client.run).text)
        wait(client, f"/studio/jobs/{job}")
        yield client


def predictions(client):
    with (client.folder / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_form_names_the_command_it_runs(studio):
    answer = post(studio, "/studio/train/command", data=studio.data, budget="2m", start="photos")
    assert "--budget=2m --quality=standard" in Reader(answer.text).text
    assert "sightline train" in Reader(studio.get("/studio/train").text).text
    assert "--from-scratch" in studio.shown.text  # while it ran
    for wrong in ({"budget": "1y"}, {"start": "--help"}, {"data": ""}, {"data": "../x"}):
        fields = {"data": studio.data, "budget": "2m", "start": "", **wrong}
        assert post(studio, "/studio/train", **fields).status_code == 422


def test_a_run_shows_its_matrix_and_every_cell_opens_its_images(studio):
    rows = predictions(studio)
    page = Reader(studio.get(studio.run).text)
    right = sum(row["correct"] == "1" for row in rows)
    assert f"{100 * right / len(rows):.1f} %" in page.text
    cells = [tag for tag in page.every("a") if "&true=" in tag.get("href", "")]
    counted = 0
    for tag in cells:
        if found := re.match(r"(\d+) images of (\w) answered as (\w)", tag.get("aria-label", "")):
            meant = [r for r in rows if (r["label"], r["predicted"]) == (found[2], found[3])]
            assert int(found[1]) == len(meant)
            counted += len(meant)
    assert counted == len(rows)
    label = rows[0]["label"]
    shown = Reader(
        studio.get(f"/studio/data/{studio.data}?run=digits&true={label}&answer={rows[0]['predicted']}").text
    )
    files = [tag["aria-label"].split(", ")[1] for tag in shown.every("input", name="row")]
    meant = [r for r in rows if (r["label"], r["predicted"]) == (label, rows[0]["predicted"])]
    assert sorted(files) == sorted(row["file"] for row in meant)
    assert "answered" in shown.every("input", name="row")[0]["aria-label"]


def test_an_image_is_relabelled_from_its_cell(studio):
    row = predictions(studio)[0]
    address = f"/studio/data/{studio.data}?run=digits&true={row['label']}&answer={row['predicted']}"
    page = studio.get(address).text
    form = page[page.index('<form id="images"') :]
    fields = {
        name: html.unescape(value)
        for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    }
    box = Reader(page).every("input", name="row")[0]
    answer = post(studio, f"/studio/data/{studio.data}/edit", **fields, row=box["value"], do="new", new="other")
    assert "1 image is now 'other'." in Reader(answer.text).text
    assert "labelled" in Reader(answer.text).text  # still the cell
    assert Reader(answer.text).every("input", name="row")[0]["aria-label"].split(": ")[1].startswith("other")
    post(studio, f"/studio/data/{studio.data}/undo", number=1)


def test_the_threshold_trades_coverage_for_errors(studio):
    rows = predictions(studio)
    confidence = np.array([float(row["confidence"]) for row in rows])
    wrong = np.array([row["correct"] == "0" for row in rows])
    for percent in (0, 70, 95):
        answered = confidence >= percent / 100
        headers = {**ORIGIN, "hx-request": "true"}
        text = Reader(studio.get(f"{studio.run}/threshold?threshold={percent}", headers=headers).text).text
        assert f"({answered.sum()} of {len(rows)})" in text
        assert f"({(answered & wrong).sum()};" in text
    assert studio.get(f"{studio.run}/threshold?threshold=50").headers["location"].endswith("?threshold=50")
    assert studio.get(f"{studio.run}/threshold?threshold=101").status_code == 422


def test_the_report_is_shown_as_it_was_written(studio):
    answer = studio.get(f"{studio.run}/report")
    assert answer.content == (studio.folder / "report.html").read_bytes()
    assert "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_what_training_costs_is_measured_before(studio):
    asked = post(studio, "/studio/train/plan", data=studio.data, budget="30s", start="scratch")
    page = wait(studio, "/studio/jobs/" + asked.headers["location"].rpartition("plan=")[2])
    assert "--dry-run" in page.text
    shown = Reader(studio.get(asked.headers["location"]).text)
    assert re.search(r"Time [\d.]+ \w+ Images a second [\d,]+ Memory [\d,]+ MB", shown.text), shown.text


def test_an_export_is_handed_over_and_a_release_answers(studio):
    answer = post(studio, f"{studio.run}/export", to="onnx")
    assert "Done" in wait(studio, answer.headers["location"]).text
    file = studio.get(f"{studio.run}/exported/onnx")
    assert file.headers["content-disposition"] == 'attachment; filename="digits.onnx"'
    assert len(file.content) > 10_000
    assert post(studio, f"{studio.run}/export", to="exe").status_code == 422
    assert "Nothing answers yet" in Reader(studio.get("/studio/try").text).text
    published = post(studio, f"{studio.run}/publish")
    assert "Done" in wait(studio, published.headers["location"]).text
    studio.service.poll_release()
    stream, row = io.BytesIO(), predictions(studio)[0]
    Image.open(studio.folder.parents[3] / "digits" / row["file"]).save(stream, "png")
    shown = studio.post("/studio/try", files={"image": ("x.png", stream.getvalue())}, headers=ORIGIN)
    text = Reader(shown.text).text
    assert f"{row['predicted']} {100 * float(row['confidence']):.1f} % sure" in text or row["predicted"] in text
    assert "Where it looked" in text
    for bad in (b"", b"not an image"):
        refused = studio.post("/studio/try", files={"image": ("x.png", bad)}, headers=ORIGIN)
        assert refused.status_code in (415, 422)
    assert 'Client("http://localhost"' in Reader(studio.get(f"{studio.run}/ship").text).text


def test_names_of_runs_are_never_paths(studio):
    for name in ("a/b", ".job", "%2e%2e%2fjobs", "digits%2f..%2f.."):
        assert studio.get(f"/studio/runs/{name}").status_code == 404
    assert studio.get("/studio/runs/absent").status_code == 404
    assert post(studio, "/studio/runs/absent/take").status_code == 409


def test_no_page_has_inline_scripts_or_styles(studio):
    for path in ("/studio/train", "/studio/runs", studio.run, f"{studio.run}/ship", "/studio/try"):
        page = Reader(studio.get(path).text)
        assert all("src" in tag for tag in page.every("script"))
        assert not page.every("style")
        assert not [tag for _, tag in page.tags if any(name == "style" or name.startswith("on") for name in tag)]


def test_the_best_so_far_is_taken_while_it_trains(studio):
    address = post(studio, "/studio/train", data=studio.data, budget="2m", start="scratch").headers["location"]
    run = studio.folder.with_name(address.rpartition("/")[2])
    assert run.name == "digits-2"
    assert post(studio, f"{address}/take").status_code == 409  # nothing is there yet
    until = time.monotonic() + 120
    while not (run / "history.csv").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert "validation images are right" in Reader(studio.get(address).text).text  # the live curve
    assert post(studio, f"{address}/take").status_code == 303
    job = json.loads(run.with_name("digits-2.job").read_text())["job"]
    assert "Done" in wait(studio, f"/studio/jobs/{job}").text
    assert read_predictions(run) is not None
    assert "What it confuses" in Reader(studio.get(address).text).text
