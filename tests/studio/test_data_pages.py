"""The pages of data, as a browser asks for them: uploads, grids, corrections by two people, and what check finds."""

import hashlib
import io
import re
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from helpers.studio_client import ORIGIN, Reader, open_studio, post
from sightline.sources import Edit
from sightline.studio.datasets import find_datasets

EVIL = "<img src=x onerror=alert(1)>"
HTMX = {**ORIGIN, "hx-request": "true"}


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(stream, "png")
    return stream.getvalue()


def make_zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


ANIMALS = make_zip({f"{name}/{i}.png": png(i) for name in ("cat", "dog", EVIL.replace("/", "")) for i in range(3)})


def upload(client, content: bytes, name: str = "animals.zip", piece: int = 1000):
    """Send a file as the page's script does, and return the last answer."""
    begun = post(client, "/studio/uploads/new", name=name, size=len(content)).json()
    for start in range(begun["received"], len(content), piece):
        answer = client.put(
            f"/studio/uploads/{begun['id']}?offset={start}", content=content[start : start + piece], headers=ORIGIN
        )
        assert answer.json()["received"] == min(start + piece, len(content))
    return post(client, f"/studio/uploads/{begun['id']}/finish", sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with open_studio(tmp_path_factory.mktemp("studio") / "site") as client:
        yield client


@pytest.fixture
def animals(client):
    """The address of a fresh dataset of nine images."""
    return upload(client, ANIMALS).json()["page"]


def test_an_upload_becomes_a_dataset_with_thumbnails(client, animals):
    page = Reader(client.get(animals).text)
    assert "9 images, 3 classes" in page.text
    pictures = [tag["src"] for tag in page.every("img")]
    assert len(pictures) == 9
    answer = client.get(pictures[0])
    assert answer.headers["content-type"] == "image/png"
    assert "immutable" in answer.headers["cache-control"]
    large = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (large[::14, ::14] == np.asarray(Image.open(io.BytesIO(png(0))))).all()
    assert page.every("input", name="row")[0]["aria-label"] == f"1 of 9: {EVIL}, {EVIL}/0.png"
    assert "animals" in Reader(client.get("/studio/data").text).text


def test_hostile_names_are_text(client, animals):
    for path in ("", "/classes", "/look/0", "/check", "/history"):
        text = client.get(animals + path).text
        assert "<img src=x" not in text
        assert "alert(1)" in text or path in ("/check", "/history")


def test_no_page_has_inline_scripts_or_styles_and_every_field_a_label(client, animals):
    for path in (
        "/studio/data",
        animals,
        f"{animals}/classes",
        f"{animals}/check",
        f"{animals}/history",
        f"{animals}/look/1",
    ):
        answer = client.get(path)
        page = Reader(answer.text)
        assert "'unsafe" not in answer.headers["content-security-policy"]
        assert all("src" in tag for tag in page.every("script"))
        assert not page.every("style")
        assert not [tag for _, tag in page.tags if any(name == "style" or name.startswith("on") for name in tag)]
        labelled = {tag.get("for") for tag in page.every("label")}
        for name in ("input", "select"):
            for tag in page.every(name):
                known = tag.get("id") in labelled or "aria-label" in tag or tag.get("type") in ("hidden", "file")
                assert known or tag.get("name") == "anyway", tag


@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        (make_zip({}), "nothing.zip", "'nothing.zip'"),
        (make_zip({"notes.txt": b"x"}), "text.zip", "'text.zip'"),
        (make_zip({"../../up/1.png": png(0)}), "up.zip", "land outside of it"),
        (b"PK\3\4 and then nothing", "cut.zip", "not a complete zip"),
    ],
)
def test_what_is_no_dataset_is_refused_in_a_sentence(client, content, name, match):
    before = client.get("/studio/data").text.count("<tr>")
    answer = upload(client, content, name)
    assert answer.status_code == 422
    words = Reader(answer.text).text
    assert match in words
    assert "/images.zip" not in words
    assert client.get("/studio/data").text.count("<tr>") == before


def test_one_class_is_a_beginning(client):
    page = upload(client, make_zip({"cat/1.png": png(1)}), "one.zip").json()["page"]
    assert "All images are of one class, 'cat'" in Reader(client.get(page).text).text


def test_a_piece_that_does_not_fit_is_told_where_to_go_on(client):
    begun = post(client, "/studio/uploads/new", name="late.zip", size=10).json()
    address = f"/studio/uploads/{begun['id']}"
    assert client.put(f"{address}?offset=0", content=b"12345", headers=ORIGIN).json() == {"received": 5}
    again = client.put(f"{address}?offset=0", content=b"12345", headers=ORIGIN)
    assert (again.status_code, again.json()["received"]) == (409, 5)
    assert "late.zip" in Reader(client.get("/studio/data").text).text
    assert post(client, f"{address}/finish", sha256="0" * 64).status_code == 409
    assert post(client, f"{address}/discard").status_code == 303
    assert "late.zip" not in Reader(client.get("/studio/data").text).text


def fields(page: str, **more):
    """The hidden fields of the form with the images, and others."""
    form = page[page.index('<form id="images"') :]
    found = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form))
    return {**found, **more}


def test_relabel_undo_and_history(client, animals):
    page = client.get(animals).text
    answer = post(client, f"{animals}/edit", headers=HTMX, **fields(page, do="label:dog", row=["3", "4"]))
    assert "2 images are now 'dog'." in Reader(answer.text).text
    assert answer.text.lstrip().startswith('<section id="grid"')
    assert "dog 5" in Reader(client.get(f"{animals}/classes").text).text
    assert "2 images are now 'dog'" in Reader(client.get(f"{animals}/history").text).text
    assert "Taken back" in Reader(post(client, f"{animals}/undo", number=1).text).text
    assert "dog 3" in Reader(client.get(f"{animals}/classes").text).text
    answer = post(client, f"{animals}/undo", number=1)
    assert (answer.status_code, "taken back already" in answer.text) == (422, True)


def test_the_second_of_two_people_is_told_and_loses_nothing(client, animals):
    page = client.get(animals).text  # what both see
    post(client, f"{animals}/edit", **fields(page, do="label:dog", row=["3"]))
    late = post(client, f"{animals}/edit", **fields(page, do="new", new="wolf", row=["3", "5"]))
    words = Reader(late.text)
    assert "anna changed 1 of these images while you were looking (1 image is now 'dog')" in words.text
    chosen = [tag["value"] for tag in words.every("input", name="row") if "checked" in tag]
    assert chosen == ["3", "5"]  # the choice is still there
    again = post(client, f"{animals}/edit", **fields(late.text, do="new", new="wolf", row=chosen))
    assert "2 images are now 'wolf'" in Reader(again.text).text


def test_a_class_that_is_gone_is_a_sentence(client, animals):
    page = client.get(animals).text
    merged = post(client, f"{animals}/merge", seen=0, old="cat", into="dog")
    assert "'cat' became 'dog'" in Reader(merged.text).text
    answer = post(client, f"{animals}/edit", **fields(page, do="label:cat", row=["8"]))
    assert "There is no class 'cat' any more: anna merged it into 'dog'" in Reader(answer.text).text
    assert "no class 'cat' in this dataset any more" in Reader(client.get(f"{animals}?class=cat").text).text


def test_moving_and_leaving_out(client, animals):
    page = client.get(animals).text
    moved = post(client, f"{animals}/edit", **fields(page, do="split:test", row=["0", "3"]))
    assert "2 images are now in test." in Reader(moved.text).text
    assert len(Reader(client.get(f"{animals}?split=test").text).every("img")) == 2
    gone = post(client, f"{animals}/edit", **fields(moved.text, do="remove", row=["0"]))
    assert "8 images, 3 classes" in Reader(gone.text).text
    assert "It is left out" in Reader(client.get(f"{animals}/look/0").text).text


def test_pages_that_are_old_do_nothing(client, animals):
    page = client.get(animals).text
    old = fields(page, do="label:dog", row=["0"], stamp="something else")
    assert "changed while you were looking" in Reader(post(client, f"{animals}/edit", **old).text).text
    assert client.get(f"{animals}/image/{'0' * 12}/0").status_code == 404
    assert client.get(f"{animals}/look/99").status_code == 404
    assert client.get("/studio/data/20200101-000000-abcdef").status_code == 404
    assert client.get("/studio/data/..%2f..").status_code == 404


def test_a_reviewer_relabels_but_does_not_upload_move_or_merge(tmp_path):
    with open_studio(tmp_path / "site", scopes=("review",)) as client:
        datasets = find_datasets(tmp_path / "site" / "studio")
        (tmp_path / "a.zip").write_bytes(ANIMALS)
        address = f"/studio/data/{datasets.add(tmp_path / 'a.zip', 'a')}"
        page = client.get(address).text
        answer = post(client, f"{address}/edit", **fields(page, do="label:dog", row=["3"]))
        assert "1 image is now 'dog'" in Reader(answer.text).text
        for path, form in (
            ("/uploads/new", {"name": "a.zip", "size": 3}),
            (address.removeprefix("/studio") + "/merge", {"old": "cat", "into": "dog"}),
            (address.removeprefix("/studio") + "/edit", fields(page, do="split:test", row=["1"])),
            ("/data", {"place": str(tmp_path)}),
        ):
            assert post(client, f"/studio{path}", **form).status_code == 403


def test_a_folder_of_this_machine_is_read_where_it_lies(client, tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(png(1))
    answer = post(client, "/studio/data", place=str(tmp_path / "photos"))
    assert "2 images, 2 classes" in Reader(client.get(answer.headers["location"]).text).text
    assert post(client, "/studio/data", place="/no/such/folder").status_code == 422
    (tmp_path / "photos" / "b" / "2.png").write_bytes(b"not an image")
    shown = client.get(answer.headers["location"] + "?again=1")
    assert "3 images" in Reader(shown.text).text
    last = Reader(shown.text).every("img")[-1]["src"]
    assert client.get(last).headers["content-type"] == "image/svg+xml"
    assert "It cannot be read" in Reader(client.get(answer.headers["location"] + "/look/2").text).text


def test_check_is_a_job_and_its_findings_are_shown(client):
    same = png(5)
    files = {f"{name}/{i}.png": png(40 * k + i) for k, name in enumerate(("cat", "dog")) for i in range(12)}
    page = upload(client, make_zip({**files, "cat/copy.png": same, "dog/copy.png": same}), "pets.zip").json()[
        "page"
    ]
    job = post(client, f"{page}/check").headers["location"]
    for _ in range(600):
        if not (shown := Reader(client.get(f"{page}/check").text)).active:
            break
        time.sleep(0.2)
    assert "in two classes at once" in shown.text, client.get(job).text
    assert f"sightline check {page.rpartition('/')[2]}" not in shown.text
    assert "pets.edits --deep" in shown.text
    first = Reader(client.get(f"{page}?order=duplicates").text)
    assert "has copies" in first.every("input", name="row")[0]["aria-label"]
    assert "the same file as" in first.every("input", name="row")[1]["aria-label"]
    id = page.rpartition("/")[2]
    find_datasets(client.service.settings.path / "studio").edit(
        id, Edit(kind="label", names=("cat/1.png",), value="dog"), seen=0
    )
    assert "1 change came after this check" in Reader(client.get(f"{page}/check").text).text
