"""Hostile images against a real service: refused (4xx) or answered as the classifier does, in bounded memory."""

import base64
import json
import socket
import struct
from contextlib import suppress
from shutil import copytree

import pytest
from PIL import Image

from helpers.malformed_images import corpus, gif, picture, png, saved, whole, within_jpeg
from helpers.service_process import classifier, listening, site_of_two
from sightline.data.decode import read_header
from sightline.errors import ImageError
from sightline.serving.engine import LARGE_IMAGE_BYTES
from sightline.serving.image_checks import check_image
from sightline.serving.requests import RequestError, RequestLimits

BOUND_MB = 900
"""What one service may take at its worst: an image of 49 megapixels, which the limits allow, is 49 MB of grey."""

CORPUS = corpus()


@pytest.fixture(scope="module")
def network():
    return classifier(threshold=0.6)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    site = copytree(site_of_two(), tmp_path_factory.mktemp("hostile") / "site")
    with listening(site) as service:
        service.site = site
        yield service


@pytest.fixture(scope="module")
def answers(service):
    """Status and answer of each, sent as it is."""
    found = {}
    for one in CORPUS:
        status, _, body = service.ask("POST", "/predict?top=3", one.data, Content_Type="application/octet-stream")
        found[one.name] = status, json.loads(body)
    return found


@pytest.fixture(scope="module")
def expected(network):
    return {one.name: network.predict(one.data, top=3)[0] for one in CORPUS}


def test_there_are_two_hundred_malformed_images():
    assert len(CORPUS) >= 200
    assert len({one.name for one in CORPUS}) == len(CORPUS)
    assert {one.fate for one in CORPUS} == {"right", "refused", "either"}


@pytest.mark.parametrize("one", CORPUS, ids=lambda one: one.name)
def test_a_malformed_image_is_refused_or_classified_correctly(one, answers, expected):
    status, found = answers[one.name]
    if status == 200:
        assert one.fate != "refused"
        (row,), wanted = found["predictions"], expected[one.name]
        assert wanted.error is None
        assert dict(map(tuple, row["top"])) == pytest.approx(dict(wanted.top), abs=1e-4)
        assert row["confidence"] == pytest.approx(wanted.confidence, abs=1e-4)
    else:
        assert one.fate != "right", found
        assert 400 <= status < 500
        assert set(found) == {"detail"}
        assert "Traceback" not in found["detail"]
        assert len(found["detail"]) < 300


def test_most_valid_images_are_classified(answers, expected):
    """The service refuses little that the classifier reads: bombs within its own limits, and scans without end."""
    more = [name for name, (status, _) in answers.items() if status != 200 and expected[name].error is None]
    assert len(more) < 12, more


def test_memory_stays_bounded_and_the_service_alive(service, answers):
    assert answers
    assert service.peak_mb() < BOUND_MB
    status, _, body = service.ask("POST", "/predict", whole()["jpeg"])
    assert status == 200
    assert json.loads(body)["predictions"][0]["error"] is None


def test_a_malformed_image_among_others_fails_alone(service, expected):
    """In one request: every readable image has its answer, every other its error."""
    few = [one for one in CORPUS if len(one.data) < 20_000][:60]
    images = [base64.b64encode(one.data).decode() for one in few]
    status, _, body = service.ask(
        "POST", "/predict", json.dumps({"images": images}), Content_Type="application/json"
    )
    assert status == 200
    rows = json.loads(body)["predictions"]
    assert len(rows) == len(few)
    for one, row in zip(few, rows, strict=True):
        assert (row["error"] is None) == (row["id"] is not None)
        if row["error"] is None:
            assert row["label"] == expected[one.name].label or row["confidence"] < 0.5


@pytest.mark.parametrize(
    ("content", "body"),
    [
        ("application/json", b'{"image": "' + b"!" * 100 + b'"}'),
        ("application/json", b'{"image": "////"}'),
        ("application/json", b'{"image": ' + b"[" * 100_000 + b"}"),
        ("application/json", b'{"images": ' + json.dumps([""] * 60).encode() + b"}"),
        ("application/json", b'{"image": 1e999}'),
        ("application/json", b'{"image": "\xff\xfe"}'),
        ("application/json", b'{"image": "\\ud800"}'),
        ("application/json", b'{"image": "x", "image": "y", "images": []}'),
        ("application/json", b"null"),
        ("application/json; charset=utf-7", b"+AHs-"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"--x"),
        ("multipart/form-data; boundary=x", b"--x\r\n" * 50_000),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n\r\n--x--"),
        ("multipart/form-data; boundary=" + "x" * 5000, b"x"),
        ("image/svg+xml", b"<svg/>"),
        ("application/x-www-form-urlencoded", b"image=x"),
        ("application/x-python-pickle", b"\x80\x04."),
    ],
    ids=repr,
)
def test_hostile_bodies_are_refused(service, content, body):
    status, _, said = service.ask("POST", "/predict", body, Content_Type=content)
    assert 400 <= status < 500, said
    assert set(json.loads(said)) == {"detail"}


def test_names_in_a_request_reach_no_file(service):
    for path in (
        "/../../etc/passwd",
        "/releases/../../x/promote",
        "/docs/..%2f..%2fetc%2fpasswd",
        "/%00",
        "//etc",
    ):
        status, _, body = service.ask("GET", path)
        assert 400 <= status < 500
        assert b"root:" not in body
    form = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="../../../tmp/evil.jpg"\r\n'
        b"Content-Type: image/jpeg\r\n\r\n" + whole()["jpeg"] + b"\r\n--x--\r\n"
    )
    status, _, body = service.ask("POST", "/predict", form, Content_Type="multipart/form-data; boundary=x")
    assert status == 200
    assert b"evil" not in body
    assert not list(service.site.rglob("*evil*"))


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"], ids=repr)
def test_endless_headers_are_cut_off(service, start):
    more, sent = (b"X: y\r\n" if start.endswith(b"\n") else b"x") * 10_000, 0
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as line:
        line.sendall(start)
        with suppress(ConnectionError):
            while sent < 50_000_000:
                line.sendall(more)
                sent += len(more)
    assert sent < 10_000_000
    assert service.ask("GET", "/healthz")[0] == 200


@pytest.mark.parametrize(
    "rest",
    [
        b"1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 9\r\n\r\nabcdefghi",
        b"1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"1.1\r\nHost: localhost\r\nContent-Length: +4\r\n\r\nabcd",
        b"1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"9.9\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=repr,
)
def test_ambiguous_requests_are_refused(service, rest):
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as line:
        line.sendall(b"POST /predict HTTP/" + rest)
        line.shutdown(socket.SHUT_WR)
        said = b""
        while part := line.recv(65_536):
            said += part
    assert said.count(b"HTTP/1.1 ") <= 1
    assert not said or said[9:10] == b"4"


def test_idle_connections_do_not_block_others(service):
    lines = [socket.create_connection(("127.0.0.1", service.port), timeout=30) for _ in range(200)]
    try:
        for line in lines[::2]:
            line.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx")
        assert service.ask("POST", "/predict", whole()["jpeg"])[0] == 200
    finally:
        for line in lines:
            line.close()
    assert service.ask("GET", "/readyz")[0] == 200


def test_no_response_reveals_the_server_software(service):
    status, headers, body = service.ask("GET", "/nowhere", X_API_Key="sl_" + "x" * 40)
    names = {name.lower() for name in headers}
    assert status == 404
    assert "server" not in names
    assert {"x-content-type-options", "x-frame-options", "content-security-policy", "cache-control"} <= names
    assert b"python" not in body.lower()
    assert "sl_xxx" not in service.output()


DODGES = {
    "gif whose frame is larger than its screen": gif(1, 1, (3000, 3000)),
    "png whose head comes second": b"\x89PNG\r\n\x1a\n"
    + png(8, 8)[8:33].replace(b"IHDR", b"tIHD")
    + png(3000, 3000, rows=bytes(3001 * 3000))[8:],
    "png with two heads": png(8, 8)[:33] + png(3000, 3000, rows=bytes(3001 * 3000))[8:],
    "jpeg with a small frame before the true one": within_jpeg(
        whole()["jpeg"].replace(struct.pack(">HH", 40, 48), struct.pack(">HH", 3000, 3000), 1),
        b"\xff\xfe\0\x0c\xff\xc0\0\x11\x08\0\x08\0\x08\3",
    ),
}


@pytest.mark.parametrize("name", DODGES)
def test_a_false_header_does_not_pass_the_pixel_limit(name):
    """What is counted is what would be decoded: the limit on pixels looks where the decoder does."""
    data, limits = DODGES[name], RequestLimits(pixels=1_000_000)
    try:
        header = read_header(data)
    except ImageError:
        return  # nobody would decode it
    if header.width * header.height > limits.pixels:
        with pytest.raises(RequestError):
            check_image(data, limits)


@pytest.mark.parametrize(
    ("side", "mode", "kind", "large"),
    [
        (1900, "RGB", "jpeg", False),
        (2100, "RGB", "jpeg", True),
        (1900, "L", "png", False),
        (2100, "L", "png", True),
        (1300, "RGB", "png", False),
        (1400, "RGBA", "png", True),
        (1400, "I;16", "png", True),
        (1200, "F", "tiff", True),
        (1000, "F", "tiff", False),
        (1000, "RGB", "webp", True),
    ],
)
def test_images_are_large_by_what_decoding_takes(side, mode, kind, large):
    image = Image.new(mode, (side, side)) if mode in ("F", "I;16") else picture(side, side).convert(mode)
    assert (check_image(saved(image, kind), RequestLimits()).decode_bytes > LARGE_IMAGE_BYTES) == large


@pytest.mark.parametrize(
    ("side", "depth", "colour", "allowed"),
    [(7000, 8, 0, True), (5000, 8, 2, True), (6000, 8, 2, False), (6000, 8, 6, False), (6000, 16, 0, False)],
)
def test_what_decoding_takes_is_bounded_too(side, depth, colour, allowed):
    data, limits = png(side, side, depth=depth, colour=colour), RequestLimits()
    if allowed:
        assert check_image(data, limits).decode_bytes <= limits.max_decode_bytes
    else:
        with pytest.raises(RequestError, match=r"decoding the image takes 324 MB, more than the 250 MB"):
            check_image(data, limits)
