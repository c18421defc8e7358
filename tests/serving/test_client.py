"""The client against a real service, and servers that misbehave; its answers are those of the classifier."""

import io
import json
import socket
import threading
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from shutil import copytree

import numpy as np
import pytest

from helpers.malformed_images import picture, saved, whole
from helpers.service_process import classifier, free_port, listening, site_of_two
from sightline.errors import ServiceError
from sightline.serving import api_keys
from sightline.serving.client import MAX_REQUEST_IMAGES, Client, DeclinedError, Reply, read_api_key


@pytest.fixture(scope="module")
def network():
    return classifier(threshold=0.6)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return copytree(site_of_two(), tmp_path_factory.mktemp("client") / "site")


@pytest.fixture(scope="module")
def service(site):
    with listening(site, "--max-images", 10, "--max-body-mb", 1) as service:
        yield service


@pytest.fixture
def client(service):
    with Client(service.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def images():
    return [saved(picture(seed=seed), "jpeg", quality=95) for seed in range(45)]


def same(ours, theirs):
    """A reply, less its id and release, is the prediction."""
    found = asdict(ours)
    assert {name: found.pop(name) for name in ("id", "release")}
    wanted = asdict(theirs)
    assert dict(found.pop("top")) == pytest.approx(dict(wanted.pop("top")), abs=1e-4)
    assert found.pop("confidence") == pytest.approx(wanted.pop("confidence"), abs=1e-4)
    assert found == wanted


def test_replies_equal_the_predictions_of_the_classifier(client, network, images):
    """More images than one request may have here: they go in halves, and come back in order."""
    assert len(images) > 2 * MAX_REQUEST_IMAGES
    replies, wanted = client.predict(images, top=2), network.predict(images, top=2)
    assert len(replies) == len(wanted)
    for ours, theirs in zip(replies, wanted, strict=True):
        same(ours, theirs)
    assert len({reply.id for reply in replies}) == len(replies)
    assert {reply.abstained for reply in replies} == {True, False}
    assert len({reply.label for reply in replies}) > 1


def test_files_bytes_and_arrays_are_the_same_image(client, network, tmp_path):
    data, pixels = whole()["png"], np.asarray(picture())
    (tmp_path / "x.png").write_bytes(data)
    given = [tmp_path / "x.png", str(tmp_path / "x.png"), data, pixels]
    for ours, theirs in zip(client.predict(given), network.predict(given), strict=True):
        same(ours, theirs)
    same(client.predict(data)[0], network.predict(data)[0])
    same(client.predict(pixels)[0], network.predict(pixels)[0])
    grey = pixels[..., :1]
    same(client.predict(grey)[0], network.predict(grey)[0])
    for one in (pixels[..., 0], picture(), io.BytesIO(data)):
        (reply,) = client.predict(one)
        same(reply, network.predict(one)[0])


def test_an_unreadable_image_is_a_reply_with_the_same_error(client, network, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    good = whole()
    given = [
        tmp_path / "absent.png",
        tmp_path / "empty.png",
        b"",
        good["png"][:60],
        good["jpeg"],
        b"<svg/>",
        tmp_path,
    ]
    for alone in (True, False):
        replies = [reply for one in given for reply in client.predict(one)] if alone else client.predict(given)
        for ours, theirs in zip(replies, network.predict(given), strict=True):
            assert (ours.error, ours.label) == (theirs.error, theirs.label)
            assert (ours.id is None) == (ours.error is not None)


def test_an_image_above_the_limit_does_not_fail_others(client, images):
    large = saved(picture(1500, 1500), "bmp")
    first, second, third = client.predict([images[0], large, images[1]])
    assert first.error is None
    assert third.error is None
    assert "larger than 1 MB" in second.error
    assert client.predict([large])[0].error == second.error


def test_no_images_give_no_replies(client):
    assert client.predict([]) == []


def test_feedback_counts_once(client, images):
    reply = client.predict(images[0])[0]
    assert client.feedback(reply.id, "owl") is False
    assert client.feedback(reply.id, "owl") is True
    for id, label, status in (("nobody", "owl", 404), (reply.id, "horse", 422)):
        with pytest.raises(DeclinedError) as error:
            client.feedback(id, label)
        assert error.value.status == status
        assert "declines" in str(error.value)


def test_the_client_lists_predictions_and_corrections(client, images):
    client.predict(images[3])
    reply = client.predict(images[3], subject="Ada")[0]
    client.feedback(reply.id, "dog")
    rows = client.predictions(corrected=True, limit=5)["predictions"]
    assert (rows[0]["id"], rows[0]["label"], rows[0]["correction"]) == (reply.id, reply.label, "dog")
    assert client.predictions(label=reply.label, before=reply.id, limit=1000)["predictions"]


def test_subjects_may_have_any_name(client, images):
    names = ["Ada", "Zoë", "李"]
    for name in names:
        client.predict(images[:2], subject=name)
        reply = client.predict(images[0], subject=name)[0]
        client.feedback(reply.id, "dog")
        assert client.predictions(limit=1, corrected=True)["predictions"][0]["subject"] == name
    with pytest.raises(DeclinedError, match="subject"):
        client.predict(images[0], subject="x" * 1000)


def test_the_other_verbs(client, network):
    assert client.classes() == network.classes
    assert client.model()["threshold"] == pytest.approx(0.6)
    assert [one["release"] for one in client.releases()["releases"]] == [1, 2]
    assert client.promote(2)["release"] == 2
    assert client.predict(whole()["png"])[0].release == 2
    assert client.promote(1)["release"] == 1
    assert client.ready()
    with pytest.raises(DeclinedError) as error:
        client.promote(9)
    assert error.value.status == 404


def test_threads_share_a_client(client, network, images):
    wanted = [answer.label for answer in network.predict(images[:8])]
    found, threads = {}, []
    for number in range(6):
        threads.append(threading.Thread(target=lambda n=number: found.update({n: client.predict(images[:8])})))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert all([reply.label for reply in found[n]] == wanted for n in range(6))


# Keys.


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    site = copytree(site_of_two(), tmp_path_factory.mktemp("guarded") / "site")
    secrets = {
        name: api_keys.create_key(site, name, scopes)
        for name, scopes in (("asker", ("predict",)), ("reader", ("read",)), ("chief", ("admin",)))
    }
    with listening(site) as service:
        yield service, secrets


def test_the_client_sends_its_key(guarded):
    service, secrets = guarded
    image = whole()["jpeg"]
    assert Client(service.url, key=secrets["asker"]).predict(image)[0].label
    assert Client(service.url, key=secrets["reader"]).classes()
    chief = Client(service.url, key=secrets["chief"])
    assert chief.predict(image)[0].label
    assert chief.classes()
    for who, ask in (("asker", Client.classes), ("reader", lambda client: client.predict(image))):
        with pytest.raises(DeclinedError) as error:
            ask(Client(service.url, key=secrets[who]))
        assert error.value.status == 403
        assert secrets[who] not in str(error.value)


@pytest.mark.parametrize("key", [None, "sl_" + "x" * 43, "Bearer"])
def test_the_client_explains_missing_and_wrong_keys(guarded, key):
    service, _ = guarded
    client = Client(service.url, key=key)
    with pytest.raises(DeclinedError) as error:
        client.predict(whole()["jpeg"])
    assert error.value.status == 401
    assert ("asks for a key" in str(error.value)) == (key is None)
    assert key is None or (key not in str(error.value) and key not in repr(client))
    assert client.ready()


def test_a_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("SIGHTLINE_KEY", raising=False)
    assert read_api_key(None) is None
    monkeypatch.setenv("SIGHTLINE_KEY", "sl_of_the_environment")
    assert read_api_key(None) == "sl_of_the_environment"
    (tmp_path / "key").write_text("sl_of_the_file\n")
    assert read_api_key(tmp_path / "key") == "sl_of_the_file"
    with pytest.raises(ServiceError, match="cannot be read: no such file"):
        read_api_key(tmp_path / "absent")
    (tmp_path / "photo").write_bytes(whole()["jpeg"])
    with pytest.raises(ServiceError, match="holds no key"):
        read_api_key(tmp_path / "photo")
    for wrong in ("", "two words", "sl_\nHost: evil", "sl_ö"):
        with pytest.raises(ServiceError, match="characters that no key has"):
            Client("http://127.0.0.1:1", key=wrong)


# Servers that misbehave.


@contextmanager
def fake_server(*answers):
    """A server that sends these responses in turn, repeating the last one; its URL and the requests it got."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            requests.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            status, headers, body = answers[min(len(requests), len(answers)) - 1]
            if status is None:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


ROW = {"id": "a", "label": "cat", "confidence": 0.9, "abstained": False, "top": [["cat", 0.9]], "error": None}
GOOD = (200, {}, json.dumps({"release": 3, "ms": 1, "predictions": [ROW]}).encode())
BUSY = (503, {"Retry-After": "0"}, b'{"detail": "Too many requests are waiting."}')


def test_full_queues_and_lost_connections_are_retried():
    reply = Reply("", "cat", 0.9, top=(("cat", 0.9),), id="a", release=3)
    with fake_server(BUSY, (None, {}, b""), (502, {}, b"<html>"), GOOD) as (url, requests):
        assert Client(url).predict(b"x") == [reply]
        assert len(requests) == 4
        assert len({body for *_, body in requests}) == 1
    with (
        fake_server(BUSY) as (url, requests),
        pytest.raises(DeclinedError, match="cannot answer now: Too many requests"),
    ):
        Client(url, retries=2).predict(b"x")
    assert len(requests) == 3


def test_retry_after_is_bounded(monkeypatch):
    monkeypatch.setattr("sightline.serving.client.MAX_RETRY_AFTER_SECONDS", 0)
    with fake_server((503, {"Retry-After": "86400"}, b"{}"), (503, {"Retry-After": "soon"}, b"{}"), GOOD) as (
        url,
        requests,
    ):
        assert Client(url).predict(b"x")[0].label == "cat"
        assert len(requests) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {}, b"<html>"), "no service of Sightline"),
        ((200, {}, b"[]"), "no service of Sightline"),
        ((200, {}, b'{"predictions": []}'), "no service of Sightline"),
        ((200, {}, b'{"predictions": [{"label": 1}]}'), "no service of Sightline"),
        ((200, {}, b"[" * 100_000), "no service of Sightline"),
        ((404, {}, b"<h1>nginx</h1>"), "HTTP 404 without a reason"),
        ((301, {"Location": "http://127.0.0.1:9/"}, b""), "HTTP 301 without a reason"),
        ((500, {}, b'{"detail": "The service failed."}'), "declines: The service failed."),
        ((400, {}, json.dumps({"detail": "\x1b[31m" + "x" * 9000}).encode()), "declines:  [31mxxx"),
        ((200, {"Content-Encoding": "gzip"}, b"junk"), "closed the connection"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_another_kind_of_server_is_explained_in_one_sentence(answer, message):
    with fake_server(answer) as (url, requests), pytest.raises(ServiceError) as error:
        Client(url, key="sl_secret", retries=0).predict(b"x")
    assert message in str(error.value)
    assert "sl_secret" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 800
    assert len(requests) == 1


def test_refused_unknown_and_slow_hosts_are_explained():
    with pytest.raises(ServiceError, match=r"nothing listens there. Start it with: sightline serve"):
        Client(f"http://127.0.0.1:{free_port()}", retries=1).classes()
    with pytest.raises(ServiceError, match="an unknown host name"):
        Client("http://nobody.invalid", retries=0).classes()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2, retries=1)
        with pytest.raises(ServiceError, match=r"gave no answer within 0\.2 seconds"):
            client.classes()
        assert not client.ready()


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x", "http://", "http://x:port", "http://x:99999", "file:///etc/passwd"]
)
def test_invalid_urls_are_refused(url):
    with pytest.raises(ServiceError, match="no URL of a service"):
        Client(url)


@pytest.mark.parametrize("url", ["http://me:secret@x", "http://x?key=secret", "http://x/#secret"])
def test_a_url_with_a_secret_is_refused_without_repeating_it(url):
    with pytest.raises(ServiceError) as error:
        Client(url)
    assert "secret" not in str(error.value)


def test_a_path_prefix_is_kept():
    with fake_server(GOOD) as (url, requests):
        Client(f"{url}/models/birds/").predict(b"x", top=2)
    assert requests[0][0] == "/models/birds/predict?top=2"


def test_a_key_does_not_follow_a_redirect():
    with fake_server(GOOD) as (other, reached):
        with fake_server((307, {"Location": f"{other}/predict"}, b"")) as (url, _), pytest.raises(ServiceError):
            Client(url, key="sl_secret").predict(b"x")
        assert not reached


# From a shell.


@pytest.fixture
def pictures(tmp_path, images):
    (tmp_path / "in").mkdir()
    for number, data in enumerate(images[:3]):
        (tmp_path / "in" / f"{number}.jpg").write_bytes(data)
    (tmp_path / "in" / "3.png").write_bytes(b"junk")
    return tmp_path / "in"


def test_the_command_line_gives_the_same_predictions(cli, service, site, pictures):
    words = (pictures, "--top", "2", "--format")
    bundle = site / "releases" / "0001" / "classifier"
    assert cli("predict", "--url", service.url, *words, "text").out == cli("predict", bundle, *words, "text").out
    ours, theirs = (
        json.loads(cli("predict", *first, *words, "json").out)["predictions"]
        for first in (("--url", service.url), (bundle,))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert {**one, "confidence": 0, "top": 0, "id": 0, "release": 0} == {
            **other, "confidence": 0, "top": 0, "id": 0, "release": 0
        }  # fmt: skip
    assert [row["id"] is None for row in ours] == [False, False, False, True]
    table = cli("predict", "--url", service.url, *words, "csv").out.splitlines()
    assert table[0].split(",")[-3:] == ["error", "abstained", "id"]
    assert len(table[1].split(",")[-1]) > 20


def test_the_command_line_sets_the_threshold(cli, service, pictures):
    words = ("predict", "--url", service.url, pictures / "0.jpg", pictures / "3.png", "--threshold")
    assert ": unknown" in cli(*words, "1").out
    assert ": unknown" not in cli(*words, "0").out
    assert "could not be read" in cli(*words, "1").out


def test_the_command_line_sends_a_key(cli, guarded, pictures, tmp_path, monkeypatch):
    service, secrets = guarded
    words = ("predict", "--url", service.url, pictures / "0.jpg")
    refused = cli(*words)
    assert (refused.code, refused.out) == (2, "")
    assert "--key-file or in SIGHTLINE_KEY" in refused.err
    (tmp_path / "key").write_text(secrets["asker"])
    assert cli(*words, "--key-file", tmp_path / "key").code == 0
    monkeypatch.setenv("SIGHTLINE_KEY", secrets["asker"])
    assert cli(*words).code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x.jpg", "--url", "nowhere"), "no URL of a service"),
        (("x.jpg", "--url", "http://127.0.0.1:1", "--alpha", "0.1"), "--alpha needs a local classifier"),
        (("run", "x.jpg", "--subject", "Ada"), "add its --url"),
        (("run", "x.jpg", "--key-file", "k"), "add its --url"),
        (("x.jpg", "--url", "http://127.0.0.1:1", "--key-file", "absent"), "The key file 'absent' cannot be read"),
        ((), "Name the classifier"),
    ],
    ids=repr,
)
def test_mistakes_on_the_command_line_are_explained_in_one_sentence(cli, words, message):
    answer = cli("predict", *words)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert "Traceback" not in answer.err
