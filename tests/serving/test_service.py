"""The service by its routes: what it answers, what it remembers, whom it lets in, and what it says to nonsense."""

import asyncio
import base64
import hashlib
import json
import os
import re
import shutil
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from helpers.live_server import CLASSES, GEOMETRY, encoded, pictures, site_of_two, until
from sightline.classifier import Classifier
from sightline.data import decode
from sightline.journal.journal import Journal
from sightline.serving import api_keys, asgi, releases
from sightline.serving.api import create_app
from sightline.serving.engine import BatchTuning
from sightline.serving.openapi import PAGE_STYLE
from sightline.serving.requests import RequestLimits
from sightline.serving.service import KEY_RELOAD_SECONDS, Service, ServiceSettings
from sightline.serving.worker import FolderWatcher

JPEG = encoded(np.full((16, 16, 3), 90, np.uint8), "JPEG")


@pytest.fixture
def site(tmp_path):
    return shutil.copytree(site_of_two(), tmp_path / "site")


@contextmanager
def open_client(path, **settings):
    """A client of a service in this process, and the service."""
    service = Service(ServiceSettings(path=path, threads=2, **settings)).open()
    with TestClient(create_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client, service


@pytest.fixture
def client(site):
    with open_client(site) as (client, _):
        yield client


def raw(client, data, kind="application/octet-stream", query="", **headers):
    return client.post(f"/predict{query}", content=data, headers={"Content-Type": kind, **headers})


def as_json(client, **fields):
    return client.post("/predict", json=fields)


def text(data):
    return base64.b64encode(data).decode()


# answers


def test_every_content_type_gives_the_predictions_of_the_classifier(client):
    known = Classifier.load(site_of_two() / "releases" / "0001" / "classifier").predict(list(pictures()))
    ways = (
        [raw(client, one).json() for one in pictures()],
        [as_json(client, images=[text(one) for one in pictures()]).json()],
        [client.post("/predict", files=[("any", (f"{k}", one)) for k, one in enumerate(pictures())]).json()],
    )
    for way in ways:
        rows = [row for answer in way for row in answer["predictions"]]
        assert [row["label"] for row in rows] == [one.label for one in known]
        assert [row["confidence"] for row in rows] == pytest.approx([one.confidence for one in known], abs=1e-5)
        assert [row["abstained"] for row in rows] == [one.abstained for one in known]
        assert [[name for name, _ in row["top"]] for row in rows] == [
            [name for name, _ in one.top] for one in known
        ]
        assert {row["error"] for row in rows} == {None}
        assert len({row["id"] for row in rows}) == len(rows)
        assert all(answer["release"] == 1 and answer["ms"] > 0 for answer in way)


@pytest.mark.parametrize("kind", ["", "image/jpeg", "image/jpg", "image/*", "application/octet-stream"])
def test_a_raw_image_needs_no_content_type(client, kind):
    assert raw(client, JPEG, kind).status_code == 200


@pytest.mark.parametrize(
    "kind",
    [
        "image/png",
        "image/x-jpeg",
        "binary/octet-stream",
        "application/x-www-form-urlencoded",
        "application/json",
        "text/html",
        "*/*",
    ],
)
def test_what_is_an_image_by_its_content_is_read_whatever_it_is_declared_to_be(client, kind):
    known = raw(client, JPEG).json()["predictions"][0]["confidence"]
    form = client.post("/predict", files={"image": ("photo.gif", JPEG, kind)})
    for answer in (raw(client, JPEG, kind), form):
        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["confidence"] == pytest.approx(known, abs=1e-5)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_json_is_read_whatever_it_is_declared_to_be(client, kind):
    assert raw(client, b' {"image": "%s"}' % text(JPEG).encode(), kind).status_code == 200


BASE64 = {
    "with line breaks": lambda data: base64.encodebytes(data).decode(),
    "url-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "url-safe and unpadded": lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
    "in a data URL with line breaks": lambda data: (
        "data:image/gif;base64,\r\n" + base64.encodebytes(data).decode()
    ),
    "in a data URL in capitals": lambda data: f" DATA:image/jpeg;charset=x;BASE64,{text(data)} ",
}


@pytest.mark.parametrize("form", BASE64)
@pytest.mark.parametrize("rest", [0, 1, 2])
def test_base64_is_read_in_its_usual_forms(client, form, rest):
    written = BASE64[form](JPEG + b"\xff" * rest)  # what follows the image decides the padding
    assert as_json(client, image=written).status_code == 200
    assert client.post("/predict", files={"image": (None, written)}).status_code == 200


@pytest.mark.parametrize("written", ["a", "ab=cd", "a%b", "/etc/passwd", "é", "data:image/png,abc"])
def test_what_is_no_base64_is_refused(client, written):
    answer = as_json(client, image=written)
    assert answer.status_code == 422
    assert "base64" in answer.json()["detail"]


@pytest.mark.parametrize(
    "head",
    [
        b'name="image"',
        b'name="anything"',
        b"name=\"image\"; filename*=UTF-8''%E7%8C%AB.jpg",
        b'name="image"; filename="a.jpg"\r\nContent-Transfer-Encoding: base64',
    ],
)
def test_a_part_that_is_an_image_needs_no_file_name(client, head):
    data = base64.encodebytes(JPEG) if b"base64" in head else JPEG
    body = b"--X\r\nContent-Disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n--X--\r\n"
    assert raw(client, body, "multipart/form-data; boundary=X").status_code == 200


def test_a_text_field_stays_text_even_if_it_begins_like_an_image(client):
    answer = client.post("/predict", files={"image": ("a", JPEG), "subject": (None, "P3 ward")})
    assert len(answer.json()["predictions"]) == 1


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/classes", "/metrics", "/openapi.json", "/docs"])
def test_head_is_get_without_the_body_and_a_slash_at_the_end_is_forgiven(client, path):
    got, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    secured(head)
    assert client.get(path.rstrip("/") + "/").status_code == 200


def test_routes_that_only_post_forgive_a_slash_and_refuse_head(client):
    assert client.post("/predict/", content=JPEG).status_code == 200
    assert client.head("/predict").status_code == 405
    id = raw(client, JPEG).json()["predictions"][0]["id"]
    assert client.post("/feedback/", json={"id": id, "label": "star"}).status_code == 200


def test_a_refused_host_or_origin_names_the_way_out(client):
    assert "--open" in client.get("/classes", headers={"Host": "example.org"}).json()["detail"]
    assert "--origin" in client.get("/classes", headers={"Origin": "http://example.org"}).json()["detail"]


def test_top_is_capped_by_the_number_of_classes(client):
    assert len(raw(client, JPEG, query="?top=2").json()["predictions"][0]["top"]) == 2
    assert len(as_json(client, image=text(JPEG), top=1).json()["predictions"][0]["top"]) == 1
    form = client.post("/predict", files={"x": ("x", JPEG)}, data={"top": "900"})
    ranked = form.json()["predictions"][0]["top"]
    assert [name for name, _ in sorted(ranked, key=lambda pair: -pair[1])] == [name for name, _ in ranked]
    assert sum(share for _, share in ranked) == pytest.approx(1, abs=1e-5)


def test_an_unreadable_image_among_others_is_a_row_with_an_error(client):
    form = client.post("/predict", files=[("a", ("a", JPEG)), ("b", ("b", b"junk")), ("c", ("c", JPEG))])
    first, second, third = form.json()["predictions"]
    assert first["label"] == third["label"] is not None
    assert second == {
        "id": None,
        "label": None,
        "confidence": None,
        "abstained": False,
        "top": [],
        "error": "the content is not an image (PNG, JPEG, BMP, GIF, TIFF, WEBP, PPM are read)",
    }


@pytest.mark.parametrize("release", [1, 2])
def test_heat_maps_are_one_picture_per_image(site, release):
    releases.promote(site, release)
    with open_client(site) as (client, _):
        answer = as_json(client, images=[text(JPEG), text(b"junk"), text(pictures()[0])], heat=True).json()
    first, second, third = answer["predictions"]
    assert "heat" not in second
    for one in (first, third):
        drawn = decode(
            base64.b64decode(one["heat"].removeprefix("data:image/png;base64,")), replace(GEOMETRY, size=(64, 64))
        )
        assert drawn.std() > 1


def test_an_exported_file_has_no_heat_maps_and_no_journal():
    with open_client(site_of_two() / "releases" / "0001" / "model.onnx") as (client, _):
        assert raw(client, JPEG).json()["release"] == 0
        assert raw(client, JPEG, query="?heat=true").status_code == 422
        id = raw(client, JPEG).json()["predictions"][0]["id"]
        for answer in (client.post("/feedback", json={"id": id, "label": "star"}), client.get("/predictions")):
            assert answer.status_code == 404
            assert "journal" in answer.json()["detail"]
        assert client.get("/releases").json() == {"current": 0, "releases": []}
        assert client.post("/releases/1/promote").status_code == 404


BAD = {
    "nothing": (lambda c: raw(c, b""), 400),
    "junk": (lambda c: raw(c, b"junk"), 415),
    "text": (lambda c: raw(c, b"<p>Hello</p>", "text/html"), 415),
    "curl's own": (lambda c: raw(c, b"image=cat.jpg", "application/x-www-form-urlencoded"), 415),
    "text in place of an image": (lambda c: raw(c, b"hello", "image/jpeg"), 415),
    "compressed": (lambda c: raw(c, JPEG, **{"Content-Encoding": "gzip"}), 415),
    "cut short": (lambda c: raw(c, JPEG[:400]), 422),
    "an empty image": (lambda c: as_json(c, image=""), 400),
    "no json": (lambda c: raw(c, b"{", "application/json"), 400),
    "deep json": (lambda c: raw(c, b"[" * 50_000, "application/json"), 400),
    "no utf-8": (lambda c: raw(c, b'{"image": "\xff"}', "application/json"), 400),
    "a list": (lambda c: raw(c, b"[]", "application/json"), 422),
    "no field": (as_json, 422),
    "both fields": (lambda c: as_json(c, image=text(JPEG), images=[text(JPEG)]), 422),
    "no images": (lambda c: as_json(c, images=[]), 422),
    "a number": (lambda c: as_json(c, image=3), 422),
    "no base64": (lambda c: as_json(c, image="%%%"), 422),
    "a path": (lambda c: as_json(c, image="/etc/passwd"), 422),
    "a strange field": (lambda c: as_json(c, image=text(JPEG), file="x"), 422),
    "no top": (lambda c: as_json(c, image=text(JPEG), top=0), 422),
    "top is true": (lambda c: as_json(c, image=text(JPEG), top=True), 422),
    "top in words": (lambda c: raw(c, JPEG, query="?top=three"), 422),
    "a strange query": (lambda c: raw(c, JPEG, query="?file=x"), 422),
    "heat in words": (lambda c: as_json(c, image=text(JPEG), heat="yes"), 422),
    "a long subject": (lambda c: as_json(c, image=text(JPEG), subject="x" * 201), 422),
    "a subject of two lines": (lambda c: as_json(c, image=text(JPEG), subject="a\nb"), 422),
    "no boundary": (lambda c: raw(c, b"x", "multipart/form-data"), 400),
    "a form cut short": (lambda c: raw(c, b"--x\r\n", "multipart/form-data; boundary=x"), 400),
    "no form": (lambda c: raw(c, JPEG, "multipart/form-data; boundary=x"), 400),
    "a form without files": (lambda c: c.post("/predict", files={"subject": (None, "anna")}), 422),
    "a strange part": (lambda c: c.post("/predict", files={"x": ("x", JPEG), "y": (None, "z")}), 422),
    "too many images": (lambda c: as_json(c, images=[text(JPEG)] * 5), 413),
    "too many parts": (lambda c: c.post("/predict", files=[("x", (None, "z"))] * 20), 413),
    "too many bytes": (lambda c: raw(c, JPEG + b"\0" * 200_000), 413),
    "too many pixels": (lambda c: raw(c, encoded(np.zeros((101, 100, 3), np.uint8))), 413),
    "too many pixels of all": (
        lambda c: as_json(c, images=[text(encoded(np.zeros((101, 100), np.uint8)))] * 2),
        413,
    ),
    "a bad one and a worse one": (lambda c: as_json(c, images=[text(JPEG[:400]), text(b"junk")]), 422),
    "feedback without a body": (lambda c: c.post("/feedback"), 422),
    "feedback that is no json": (
        lambda c: c.post("/feedback", content=b"{", headers={"Content-Type": "application/json"}),
        400,
    ),
    "a long feedback": (lambda c: c.post("/feedback", json={"id": "x", "label": "y" * 70_000}), 413),
    "a strange route": (lambda c: c.get("/etc/passwd"), 404),
    "a path up": (lambda c: c.get("/releases/../../etc/passwd"), 404),
    "another method": (lambda c: c.get("/predict"), 405),
    "a strange page size": (lambda c: c.get("/predictions?limit=0"), 422),
    "no release": (lambda c: c.post("/releases/x/promote"), 422),
}


@pytest.mark.parametrize("what", BAD)
def test_malformed_requests_are_refused_in_one_sentence(small, what):
    ask, status = BAD[what]
    answer = ask(small)
    assert answer.status_code == status
    assert list(answer.json()) == ["detail"]
    assert re.fullmatch(r"[A-Z].{5,250}[.]", answer.json()["detail"])
    assert "Traceback" not in answer.text
    secured(answer)


@pytest.fixture(scope="module")
def small():
    """A service with narrow bounds."""
    limits = RequestLimits(body_mb=0.1, pixels=10_000, images=4)
    with open_client(site_of_two() / "releases" / "0001" / "model.onnx", limits=limits) as (client, _):
        yield client


def secured(answer):
    """Every answer has the headers that keep browsers from being helpful."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_body_without_content_length_is_limited(small):
    def endless():
        for _ in range(50):
            yield b"\xff\xd8\xff" + b"\0" * 10_000

    answer = small.post("/predict", content=endless(), headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 413
    assert raw(small, JPEG).status_code == 200


def test_a_body_that_never_arrives_times_out(monkeypatch, small):
    monkeypatch.setattr(asgi, "BODY_TIMEOUT_SECONDS", 0.05)
    sent = []

    async def never():
        await asyncio.sleep(60)

    async def keep(message):
        sent.append(message)

    scope = {
        "type": "http",
        "path": "/predict",
        "method": "POST",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(asyncio.wait_for(small.app(scope, never, keep), 10))
    assert sent[0]["status"] == 408


# the journal


def test_predictions_are_journalled_and_corrected_once(site):
    with open_client(site) as (client, service):
        first = raw(client, JPEG, **{"Sightline-Subject": "anna"}).json()["predictions"][0]
        second = as_json(client, image=text(pictures()[1]), subject="bob").json()["predictions"][0]
        wrong = next(name for name in CLASSES if name != first["label"])
        for already in (False, True):
            answer = client.post("/feedback", json={"id": first["id"], "label": wrong})
            assert answer.json() == {"id": first["id"], "label": wrong, "already": already}
        service.journal.flush()
        rows = client.get("/predictions").json()["predictions"]
    assert [row["id"] for row in rows] == [second["id"], first["id"]]
    assert [row["subject"] for row in rows] == ["bob", "anna"]
    assert [row["label"] for row in rows] == [second["label"], first["label"]]
    assert [row["correction"] for row in rows] == [None, wrong]
    assert [row["sha256"] for row in rows] == [hashlib.sha256(one).hexdigest() for one in (pictures()[1], JPEG)]
    assert {row["release"] for row in rows} == {1}
    assert {row["image"] for row in rows} == {False}


def test_feedback_for_an_unknown_prediction_or_class_is_refused(client):
    id = raw(client, JPEG).json()["predictions"][0]["id"]
    assert client.post("/feedback", json={"id": "0" * 31, "label": "star"}).status_code == 404
    assert client.post("/feedback", json={"id": id, "label": "start"}).status_code == 422
    assert client.post("/feedback", json={"id": id, "label": "star", "by": "me"}).status_code == 422


def test_predictions_are_paged_and_filtered(site):
    with open_client(site, keep_images=True) as (client, service):
        ids = [raw(client, pictures()[k % 12]).json()["predictions"][0]["id"] for k in range(7)]
        service.journal.flush()
        found, before = [], ""
        while before is not None:
            page = client.get(f"/predictions?limit=3{before and '&before=' + before}").json()
            found += page["predictions"]
            before = page["before"]
        assert [row["id"] for row in found] == ids[::-1]
        assert all(row["image"] is True for row in found)
        label = found[0]["label"]
        assert {row["label"] for row in client.get(f"/predictions?label={label}").json()["predictions"]} == {label}
        assert client.get("/predictions?release=2").json()["predictions"] == []
        assert client.get("/predictions?corrected=true").json()["predictions"] == []


def test_a_prediction_that_cannot_be_journalled_is_not_returned(site, tmp_path):
    with open_client(site) as (client, service):
        kept, service.journal = service.journal, Journal.open(tmp_path / "other", spool_mb=0.0001)
        answers = [raw(client, JPEG) for _ in range(3)]
        service.journal.close()
        service.journal = kept
        assert raw(client, JPEG).status_code == 200
    assert answers[-1].status_code == 503
    assert answers[-1].headers["retry-after"]
    assert "detail" in answers[-1].json()


def test_a_watched_file_that_cannot_be_journalled_is_retried(site, tmp_path):
    folder, reported = tmp_path / "camera", []
    folder.mkdir()
    with open_client(site) as (_, service):
        watch = FolderWatcher(service, folder, reported.append)
        (folder / "one.jpg").write_bytes(JPEG)
        (folder / "large.jpg").write_bytes(JPEG + b"\0" * 21_000_000)
        assert watch.poll() == 0  # it may still grow
        kept, service.journal = service.journal, Journal.open(tmp_path / "other", spool_mb=0.0001)
        assert watch.poll() == 2
        service.journal.close()
        service.journal = kept
        assert [one["file"] for one in reported] == ["large.jpg"]
        assert "larger than 20 MB" in reported[0]["error"]
        assert [watch.poll() for _ in range(3)] == [1, 0, 0]
        kept.flush()
        assert [row.source for row in kept.predictions()] == ["one.jpg"]
    assert [one["file"] for one in reported] == ["large.jpg", "one.jpg"]


def test_two_services_of_one_site_share_journal_keys_and_releases(site):
    with open_client(site) as (one, first), open_client(site) as (two, second):
        ids = [raw(client, JPEG).json()["predictions"][0]["id"] for client in (one, two, one, two)]
        for id, client in zip(ids, (two, one, two, one), strict=True):  # each corrects what the other answered
            assert client.post("/feedback", json={"id": id, "label": CLASSES[0]}).status_code == 200
        assert one.post("/releases/2/promote").json()["release"] == 2
        second.poll_release()
        assert raw(two, JPEG).json()["release"] == 2
        for service in (first, second):
            service.journal.flush()
            assert {row.id for row in service.journal.predictions(corrected=True)} == set(ids)
        assert len(first.journal.predictions()) == 5
        api_keys.create_key(site, "camera", ["predict"])
        time.sleep(2 * KEY_RELOAD_SECONDS)
        assert [raw(client, JPEG).status_code for client in (one, two)] == [401, 401]


def test_hostile_files_in_a_watched_folder_stop_nothing(site, tmp_path, monkeypatch):
    folder, reported = tmp_path / "camera", []
    folder.mkdir()
    odd = os.fsdecode(b"\xff.jpg")
    with open_client(site) as (_, service):
        watch = FolderWatcher(service, folder, reported.append)
        (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
        os.mkfifo(folder / "pipe.jpg")
        (folder / "folder.jpg").mkdir()
        with (folder / "sparse.jpg").open("wb") as stream:
            stream.truncate(40_000_000_000)
        for name in ("swapped.jpg", "gone.jpg", "half.jpg", "a\nb.jpg", odd):
            (folder / name).write_bytes(JPEG[: len(JPEG) // 2] if name == "half.jpg" else JPEG)
        watch.poll()
        listed = watch._list_files()
        assert set(listed) == {"sparse.jpg", "swapped.jpg", "gone.jpg", "half.jpg", "a\nb.jpg", odd}
        (folder / "swapped.jpg").unlink()
        os.mkfifo(folder / "swapped.jpg")  # after it was listed
        (folder / "gone.jpg").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(watch, "_list_files", lambda: listed)
            watch.poll()
        by_name = {one["file"]: one for one in reported}
        assert "larger than" in by_name["sparse.jpg"]["error"]
        assert "a pipe or a device" in by_name["swapped.jpg"]["error"]
        assert "No such file" in by_name["gone.jpg"]["error"]
        assert "damaged or cut short" in by_name["half.jpg"]["error"]
        assert by_name[odd]["label"] == by_name["a\nb.jpg"]["label"]
        (folder / "half.jpg").write_bytes(JPEG)  # the rest came
        assert [watch.poll() for _ in range(3)] == [0, 1, 0]
        assert reported[-1]["file"] == "half.jpg"
        assert reported[-1]["label"] == by_name[odd]["label"]
        service.journal.flush()
        assert len(service.journal.predictions()) == 3


# releases


def test_a_promoted_release_answers(client):
    expected = Classifier.load(site_of_two() / "releases" / "0002" / "classifier").predict(list(pictures()))
    assert client.get("/releases").json()["current"] == 1
    answer = client.post("/releases/2/promote")
    assert (answer.json()["release"], answer.json()["before"]) == (2, 1)
    rows = [raw(client, one).json() for one in pictures()]
    assert {row["release"] for row in rows} == {2}
    assert [row["predictions"][0]["label"] for row in rows] == [one.label for one in expected]
    found = client.get("/releases").json()
    assert found["current"] == 2
    assert [one["release"] for one in found["releases"]] == [1, 2]
    assert client.get("/model").json()["runtime"] == "torch"


def test_missing_and_changed_releases_are_not_promoted(site, capsys):
    with open_client(site) as (client, _):
        assert client.post("/releases/9/promote").status_code == 404
        weights = site / "releases" / "0002" / "classifier" / "model.safetensors"
        weights.chmod(0o644)
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        answer = client.post("/releases/2/promote")
        assert answer.status_code == 409
        assert str(site) not in answer.text
        assert "model.safetensors" in capsys.readouterr().err
        assert raw(client, JPEG).json()["release"] == 1
    assert releases.current_release(site).number == 1


def test_a_promotion_by_another_process_is_noticed(site, capsys):
    with open_client(site) as (client, service):
        releases.promote(site, 2)
        service.poll_release()
        assert raw(client, JPEG).json()["release"] == 2
        path = site / "releases" / "0001" / "model.onnx"
        path.chmod(0o644)
        path.write_bytes(b"tampered")
        (site / "current").write_text(json.dumps({"release": 1, "before": [2]}))
        for _ in range(3):
            service.poll_release()
        assert raw(client, JPEG).json()["release"] == 2
        assert client.get("/readyz").status_code == 200
    events = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    refused = [one for one in events if one["event"] == "release refused"]
    assert len(refused) == 1
    assert "model.onnx" in refused[0]["error"]


# who may ask

NEEDS = {
    "/predict": ("predict", lambda c, h: c.post("/predict", content=JPEG, headers=h)),
    "/feedback": ("feedback", lambda c, h: c.post("/feedback", json={"id": "x", "label": "star"}, headers=h)),
    "/predictions": ("read", lambda c, h: c.get("/predictions", headers=h)),
    "/classes": ("read", lambda c, h: c.get("/classes", headers=h)),
    "/model": ("read", lambda c, h: c.get("/model", headers=h)),
    "/releases": ("read", lambda c, h: c.get("/releases", headers=h)),
    "/drift": ("read", lambda c, h: c.get("/drift", headers=h)),
    "/metrics": ("read", lambda c, h: c.get("/metrics", headers=h)),
    "/releases/{number}/promote": ("admin", lambda c, h: c.post("/releases/1/promote", headers=h)),
}
FREE = ("/healthz", "/readyz", "/docs", "/openapi.json")


def test_a_key_allows_its_scope_only(site, capsys):
    made = {scope: api_keys.create_key(site, f"for-{scope}", [scope]) for scope in api_keys.KEY_SCOPES}
    with open_client(site, loopback_only=False) as (client, _):
        paths = client.get("/openapi.json").json()["paths"]
        assert set(paths) == {*NEEDS, "/healthz", "/readyz"}
        for path, (needed, ask) in NEEDS.items():
            for scope, secret in made.items():
                for headers in ({"Authorization": f"Bearer {secret}"}, {"X-API-Key": secret}):
                    status = ask(client, headers).status_code
                    assert (status != 403) == (scope in (needed, "admin")), (path, scope)
                    assert status != 401
            for headers in (
                {},
                {"X-API-Key": "sl_wrong"},
                {"Authorization": "Basic x"},
                {"X-API-Key": b"\xff" * 300},
            ):
                answer = ask(client, headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json() == {"detail": "A valid key is needed."}
                secured(answer)
        assert all(client.get(path).status_code == 200 for path in FREE)
    logged = capsys.readouterr().err
    assert not any(secret in logged for secret in made.values())


def test_created_revoked_and_expired_keys_take_effect_within_milliseconds(site):
    def moment():
        time.sleep(1.5 * KEY_RELOAD_SECONDS)

    with open_client(site) as (client, _):
        assert client.get("/classes").status_code == 200  # this machine, and no key was made
        assert "security" not in client.get("/openapi.json").json()["paths"]["/classes"]["get"]
        secret = api_keys.create_key(site, "anna", ["read"])
        moment()
        assert client.get("/classes").status_code == 401
        assert client.get("/classes", headers={"X-API-Key": secret}).status_code == 200
        assert client.get("/openapi.json").json()["paths"]["/classes"]["get"]["security"]
        held = json.loads((site / "keys.json").read_text())
        held["keys"][0]["expires"] = 1.0
        (site / "keys.json").write_text(json.dumps(held))
        moment()
        assert client.get("/classes", headers={"X-API-Key": secret}).status_code == 401
        api_keys.revoke_key(site, "anna")
        moment()
        assert client.get("/classes").status_code == 401
        (site / "keys.json").unlink()
        moment()
        assert client.get("/classes").status_code == 200


def test_without_keys_other_hosts_need_open(site):
    for settings, status in (
        ({"loopback_only": False}, 401),
        ({"loopback_only": False, "open": True}, 200),
        ({}, 200),
    ):
        with open_client(site, **settings) as (client, _):
            assert client.get("/classes").status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:9000"}, 403),
    ],
)
def test_without_keys_foreign_origins_are_refused(small, headers, status):
    assert small.get("/classes", headers=headers).status_code == status
    assert raw(small, JPEG, **headers).status_code == status


def test_origins_are_allowed_by_name_only(site):
    page = {"Origin": "https://example.org"}
    asks = page | {"Access-Control-Request-Method": "POST"}
    with open_client(site) as (client, _):
        assert "access-control-allow-origin" not in client.get("/healthz", headers=page).headers
        assert "access-control-allow-origin" not in client.options("/predict", headers=asks).headers
    with open_client(site, origins=("https://example.org",)) as (client, _):
        assert raw(client, JPEG, **page).headers["access-control-allow-origin"] == "https://example.org"
        assert client.options("/predict", headers=asks).status_code == 200
        other = client.options("/predict", headers=asks | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        assert raw(client, JPEG, Origin="https://evil.example").status_code == 403


# its state


def test_a_full_queue_sends_retry_after(site):
    with open_client(site, limits=RequestLimits(queue=1)) as (client, service):
        gate, answer, taken, found = threading.Event(), service.batcher._answer, [], []

        def wait_and_answer(jobs, exclusive):
            taken.append(jobs)
            gate.wait(30)
            return answer(jobs, exclusive)

        service.batcher._answer = wait_and_answer
        threads = [threading.Thread(target=lambda: found.append(raw(client, JPEG))) for _ in range(3)]
        for number, thread in enumerate(threads):  # two are being answered, then one waits
            thread.start()
            assert until(lambda number=number: len(taken) + service.batcher.waiting == number + 1)
            assert until(lambda number=number: len(taken) == min(number + 1, 2))
        refused = [raw(client, JPEG) for _ in range(3)] + [client.get("/readyz")]
        gate.set()
        for thread in threads:
            thread.join()
        assert client.get("/readyz").json() == {"ready": True, "release": 1}
    assert [one.status_code for one in found] == [200] * 3
    for one in refused:
        assert one.status_code == 503
        assert one.headers["retry-after"] == "1"


def test_only_a_connection_that_asks_alone_is_answered_in_the_event_loop(site):
    with open_client(site) as (client, service):
        object.__setattr__(service.engine, "tuning", BatchTuning(single_seconds=0.001))
        other = TestClient(client.app, base_url="http://localhost", client=("another", 1))
        other.portal, answer, inside = client.portal, service.batcher._answer, []

        def note_thread(jobs, exclusive):
            inside.append(not threading.current_thread().name.startswith("runner"))
            return answer(jobs, exclusive)

        service.batcher._answer = note_thread
        known = raw(client, JPEG).json()
        found = [raw(client, JPEG), raw(client, JPEG), raw(other, JPEG), raw(client, JPEG), raw(client, JPEG)]
        assert inside == [False, True, True, False, False, True]
        for one in found:
            row, first = one.json()["predictions"][0], known["predictions"][0]
            assert (row["label"], row["abstained"]) == (first["label"], first["abstained"])
            assert row["confidence"] == pytest.approx(first["confidence"], abs=1e-6)
        ids = {one.json()["predictions"][0]["id"] for one in found}
        service.journal.flush()
        assert ids <= {row["id"] for row in client.get("/predictions").json()["predictions"]}
        cut_short = encoded(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), "JPEG")[:-100]
        assert raw(client, cut_short).status_code == 422
        assert inside[-1]
        kept, service.journal = service.journal, Journal.open(site.with_name("other"), spool_mb=0.0001)
        refused = [raw(client, JPEG) for _ in range(3)]
        service.journal.close()
        service.journal = kept
        assert inside[-3:] == [True] * 3
        assert refused[-1].status_code == 503


def test_an_internal_error_is_logged_and_not_shown(site, capsys):
    with open_client(site) as (client, service):
        service.batcher._answer = lambda *_: 1 / 0
        answer = raw(client, JPEG)
        kept, service.journal = service.journal, object()
        other = client.get("/predictions")
        service.journal = kept
    for one in (answer, other):
        assert one.status_code == 500
        assert one.json() == {"detail": "The service failed; its log has the details."}
        secured(one)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_metrics_count_requests_and_images(site):
    with open_client(site) as (client, _):
        labels = [raw(client, one).json()["predictions"][0] for one in pictures()]
        raw(client, b"junk")
        as_json(client, images=[text(JPEG), text(b"junk")])
        answer = client.get("/metrics")
    found = {
        s.name: s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
        if not s.labels
    }
    by_label = {
        s.labels["label"]: s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
        if s.name == "sightline_answers_total"
    }
    assert sum(by_label.values()) == 13
    assert set(by_label) <= set(CLASSES)
    assert len(by_label) == len({one["label"] for one in labels})
    assert found["sightline_predict_seconds_count"] == 14
    assert found["sightline_confidence_count"] == 13
    assert found["sightline_unreadable_total"] == 2
    assert found["sightline_abstained_total"] >= sum(one["abstained"] for one in labels) > 0
    assert found["sightline_release"] == 1
    assert found["sightline_ready"] == 1
    assert found["sightline_queue_waiting"] == 0


def test_the_page_loads_nothing_and_its_policy_allows_its_style(client):
    answer = client.get("/docs")
    secured(answer)
    digest = base64.b64encode(hashlib.sha256(PAGE_STYLE.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in answer.headers["content-security-policy"]
    assert re.search("<style>(.*?)</style>", answer.text, re.DOTALL)[1] == PAGE_STYLE
    assert not re.search(r"<script|src=|@import|url\(", answer.text)
    assert all(f"<code>{path}</code>" in answer.text for path in NEEDS)
    assert "circle" in answer.text


def test_the_page_shows_the_requested_address_only_if_a_shell_is_safe(client):
    asked = client.get("/docs", headers={"Host": "localhost:9123"}).text
    assert "http://localhost:9123/predict" in asked
    asked = client.get("/docs", headers={"Host": "localhost;reboot:9123"}).text
    assert "reboot" not in asked


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/classes", "/model", "/metrics", "/nowhere"])
def test_without_keys_every_page_checks_the_host(small, path):
    """A page of another site, by a name that resolves to this machine, reads none of them."""
    assert small.get(path, headers={"Host": "evil.example"}).status_code == 403
    assert small.get(path, headers={"Origin": "http://evil.example"}).status_code == 403
    assert small.get(path).status_code == (404 if path == "/nowhere" else 200)


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_probes_answer_under_any_host(small, path):
    assert small.get(path, headers={"Host": "10.0.0.7:8000"}).status_code == 200


def test_with_keys_the_page_names_no_class_and_no_release(site):
    api_keys.create_key(site, "reader", ("read",))
    with open_client(site) as (client, _):
        page, description = client.get("/docs").text, client.get("/openapi.json").text
    for name in ("circle", "Release 1", "classes:"):
        assert name not in page
        assert name not in description


def test_a_journal_that_fails_tells_a_client_no_folder(site, tmp_path, capsys):
    with open_client(site) as (client, service):
        kept, service.journal = service.journal, Journal.open(tmp_path / "other", spool_mb=0.0001)
        answers = [raw(client, JPEG) for _ in range(3)]
        service.journal.close()
        service.journal = kept
    assert answers[-1].status_code == 503
    assert str(tmp_path) not in answers[-1].text
    assert str(tmp_path) in capsys.readouterr().err
