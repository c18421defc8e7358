"""Teach: pictures are kept as they come, classes get names, and the lesson is a verb's own command."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from helpers.studio_client import ORIGIN, Reader, open_studio, post
from sightline.errors import OutputError
from sightline.sources import find
from sightline.studio.collected import add_images
from sightline.studio.datasets import find_datasets
from sightline.studio.teach_pages import teach_words

HOSTILE = "<img src=x onerror=alert(1)>"


def picture(seed):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "png" if seed % 2 else "jpeg")
    return stream.getvalue()


def send(client, label, seeds, **fields):
    files = [("image", ("blob", picture(seed))) for seed in seeds]
    return client.post("/studio/teach/images", data={"label": label, **fields}, files=files, headers=ORIGIN)


@pytest.fixture
def client(tmp_path):
    with open_studio(tmp_path / "site") as client:
        yield client


def test_pictures_are_on_the_disk_as_data_of_any_verb(client):
    first = send(client, "cup", range(5)).json()
    again = send(client, HOSTILE, range(5, 9), data=first["data"]).json()
    assert again["counts"] == {"cup": 5, HOSTILE: 4}
    path = find_datasets(client.service.settings.path / "studio").path(first["data"])
    found = find(path)
    assert {(found.classes[k], found.read(i)) for i, k in enumerate(found.labels.tolist())} == {
        ("cup" if seed < 5 else HOSTILE, picture(seed)) for seed in range(9)
    }
    page = client.get(f"/studio/teach?data={first['data']}").text
    assert "<img src=x" not in page
    assert [tag["value"] for tag in Reader(page).every("input", maxlength="200")][:2] == ["cup", HOSTILE]


def test_the_same_picture_is_added_once_and_the_answer_says_so(client):
    id = send(client, "cup", [1, 2]).json()["data"]
    again = send(client, "box", [2, 3, 3], data=id).json()
    assert again["counts"] == {"cup": 2, "box": 1}
    assert again["known"] == 2


def test_a_class_gets_another_name_and_so_do_its_later_pictures(client):
    id = send(client, "Class 1", [1, 2]).json()["data"]
    send(client, "Class 2", [3], data=id)
    named = post(client, "/studio/teach/rename", data=id, old="Class 1", label=" cup ").json()
    assert named["counts"] == {"cup": 2, "Class 2": 1}
    assert send(client, "cup", [4], data=id).json()["counts"] == {"cup": 3, "Class 2": 1}


@pytest.mark.parametrize(
    ("label", "files", "word"),
    [("cup", [b"not an image"], "cannot be read"), ("", [picture(1)], "name"), ("cup", [], "0 pictures")],
)
def test_what_cannot_be_taught_is_refused_and_nothing_is_kept(client, label, files, word):
    id = send(client, "box", [7]).json()["data"]
    sent = [("image", ("blob", picture(8)))] * bool(files) + [("image", ("blob", one)) for one in files]
    refused = client.post("/studio/teach/images", data={"label": label, "data": id}, files=sent, headers=ORIGIN)
    assert refused.status_code == 422
    assert word in refused.text
    folder = find_datasets(client.service.settings.path / "studio").path(id).parent
    assert len((folder / "images.jsonl").read_text().splitlines()) == 1
    assert len([*(folder / "pictures").iterdir()]) == 1


def test_a_lesson_needs_two_classes_and_some_pictures_of_each(client):
    for fields, words in (({}, "no pictures"), ({"data": "20260101-000000-abcdef"}, "no dataset")):
        assert words in Reader(post(client, "/studio/teach/start", **fields).text).text
    id = send(client, "cup", range(4)).json()["data"]
    assert "one class only" in post(client, "/studio/teach/start", data=id).text
    send(client, "box", range(4, 7), data=id)
    assert "has 3 pictures" in Reader(post(client, "/studio/teach/start", data=id).text).text


def test_a_lesson_is_a_command_and_a_name_is_never_a_flag(tmp_path, monkeypatch):
    monkeypatch.setattr("sightline.studio.teach_pages.known_names", lambda run: ("cup",) if run else ())
    words = teach_words(tmp_path / "x.edits", None, ["--json", "cup"], tmp_path / "run")
    assert words[:2] == ["train", str(tmp_path / "x.edits")]
    assert "--quality=standard" in words
    learned = teach_words(tmp_path / "x.edits", tmp_path / "old", ["--json", "cup"], tmp_path / "run")
    assert learned[:3] == ["learn", str(tmp_path / "old"), str(tmp_path / "x.edits")]
    assert [word for word in learned if "new-class" in word] == ["--new-class=--json"]


def test_pictures_do_not_go_into_an_upload_or_a_folder(client, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(picture(1))
    id = find_datasets(client.service.settings.path / "studio").add(tmp_path / "photos", "photos")
    assert send(client, "cup", [2], data=id).status_code == 404
    assert [*(tmp_path / "photos").rglob("*.*")] == [tmp_path / "photos" / "cat" / "1.png"]


def test_a_full_disk_adds_nothing(client, monkeypatch):
    datasets = find_datasets(client.service.settings.path / "studio")
    id = send(client, "cup", [1]).json()["data"]
    table = datasets.path(id).parent / "images.jsonl"
    before = table.read_text()

    def refuse(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", refuse)
        with pytest.raises(OutputError, match="disk"):
            add_images(datasets, id, "cup", [picture(2)])
    assert table.read_text() == before
    assert json.loads(before.splitlines()[0])["label"] == "cup"
    assert send(client, "cup", [2], data=id).json()["counts"] == {"cup": 2}
