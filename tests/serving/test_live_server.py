"""The service as a process: releases under load, an end that loses no answer, several workers, a watched one."""

import json
import os
import re
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from urllib3.exceptions import HTTPError

from helpers.live_server import pictures, serving, site_of_two, until
from sightline.classifier import Classifier
from sightline.journal.journal import Journal
from sightline.serving import api_keys, releases
from sightline.serving.server import bind_socket
from sightline.serving.worker import MAX_HEADER_BYTES, BoundedHttpProtocol, QuietServer

JPEG = pictures()[1]
SENT = {"Content-Type": "image/jpeg"}


@pytest.fixture
def site(tmp_path):
    return shutil.copytree(site_of_two(), tmp_path / "site")


class Load:
    """Threads that ask again and again, and what they were answered."""

    def __init__(self, served, threads=6):
        self.served, self.answers, self.failures = served, [], []
        self.stopping = False
        """Whether a connection that ends is no failure any more."""
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.ask) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def ask(self):
        while not self.ended.is_set():
            try:
                answer = self.served.post("/predict", JPEG, **SENT)
            except Exception as error:
                if not self.stopping:
                    self.failures.append(error)
                return
            if answer.status == 200:
                self.answers.append(json.loads(answer.data))
            else:
                self.failures.append((answer.status, answer.data))

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join()


def remembered(site):
    """Every id in a site's journal."""
    with Journal.open(site) as journal:
        journal.flush()
        return {row.id for row in journal.predictions(limit=100_000)}


def test_promotions_and_shutdown_under_load_lose_no_request(site):
    expected = {
        number: Classifier.load(releases.load_release(site, number).bundle).predict(JPEG)[0] for number in (1, 2)
    }
    secret = api_keys.create_key(site, "tests", ["admin"])
    with serving(site) as served:
        SENT["X-API-Key"] = secret
        load = Load(served)
        for number in (2, 1, 2, 1):
            answer = served.post(f"/releases/{number}/promote", **{"X-API-Key": secret})
            assert answer.status == 200
            count = len(load.answers)
            assert until(lambda count=count: len(load.answers) > count + 20)
        releases.promote(site, 2)  # from another process, as by the command
        assert until(lambda: load.answers[-1]["release"] == 2)
        load.stopping = True
        assert served.stop() == 0
        load.stop()
        del SENT["X-API-Key"]
    assert load.failures == []
    assert {one["release"] for one in load.answers} == {1, 2}
    for one in load.answers:
        row = one["predictions"][0]
        assert row["label"] == expected[one["release"]].label
        assert row["confidence"] == pytest.approx(expected[one["release"]].confidence, abs=1e-5)
    ids = [one["predictions"][0]["id"] for one in load.answers]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= remembered(site)
    events = [json.loads(line) for line in served.log.splitlines()]
    assert [one["event"] for one in events if one["event"] in ("started", "release", "stopped")] == [
        "started",
        *["release"] * 5,
        "stopped",
    ]
    assert secret not in served.log


def workers_of(served):
    """The processes of a service's workers."""
    me = served.process.pid
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    return [int(one) for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for the workers where Linux lists them")
def test_several_workers_share_metrics_journal_and_releases(site):
    with serving(site, "--workers", "2") as served:
        for _ in range(5):
            served.http.clear()  # other connections, other workers
            assert served.post("/predict", JPEG, **SENT).status == 200
        load = Load(served, threads=8)
        assert until(lambda: len(load.answers) > 60)
        load.stop()
        assert load.failures == []

        def counted():
            served.http.clear()
            text = served.get("/metrics").data.decode()
            found = text_string_to_metric_families(text)
            return sum(
                s.value for one in found for s in one.samples if s.name == "sightline_predict_seconds_count"
            )

        assert until(lambda: counted() == len(load.answers) + 5)
        assert served.post("/releases/2/promote").status == 200

        def changed():
            served.http.clear()
            with suppress(HTTPError):
                return {json.loads(served.post("/predict", JPEG, **SENT).data)["release"] for _ in range(8)} == {2}

        assert until(changed)
        (victim, _) = workers_of(served)
        os.kill(victim, signal.SIGKILL)
        assert until(lambda: len(set(workers_of(served)) - {victim}) == 2)
        assert until(changed)  # some connections were the victim's; new ones are answered
        assert served.stop(signal.SIGINT) == 0
        assert '"worker lost"' in served.log
    assert {one["predictions"][0]["id"] for one in load.answers} <= remembered(site)


def refuses_what_is_no_http(served):
    """Answers 400, or hangs up, to noise and to headers that never end; others are served meanwhile."""
    port = int(served.url.rpartition(":")[2])
    endless = [b"x" * 10_000] * (10 * MAX_HEADER_BYTES // 10_000)
    for sent in (
        [b"hello\r\n\r\n"],
        [b"GET / HTTP/1.1\r\nX: ", *endless],
        [b"GET /", b"x" * (MAX_HEADER_BYTES + 300_000)],
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            try:
                for part in sent:
                    connection.sendall(part)
                answer = connection.recv(1000)
            except ConnectionError:  # it was closed while more came
                continue
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"\nserver:" not in answer.lower()
    answer = served.get("/healthz")
    assert answer.status == 200
    assert "server" not in answer.headers


def test_incomplete_headers_time_out():
    class Hasty(BoundedHttpProtocol):
        header_timeout = 0.3

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    listening = bind_socket("127.0.0.1", 0)
    server = QuietServer(uvicorn.Config(app, http=Hasty, ws="none", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        with socket.create_connection(listening.getsockname(), timeout=20) as connection:
            for _ in range(2):
                connection.sendall(b"GET / HTTP/1.1\r\n")
                connection.sendall(b"Host: localhost\r\n\r\n")
                assert connection.recv(1000).startswith(b"HTTP/1.1 204")
                time.sleep(2 * Hasty.header_timeout)  # a connection that is idle between requests stays
            connection.sendall(b"GET / HTTP/1.1\r\nX: ")
            answer = connection.recv(1000)
            assert answer.startswith(b"HTTP/1.1 400")
            assert b"did not arrive in time" in answer
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def test_files_in_a_watched_folder_are_classified(site, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    (folder / "old.jpg").write_bytes(JPEG)
    with serving(site, "--watch", folder) as served:
        (folder / "one.jpg").write_bytes(JPEG)
        (folder / "two.txt").write_bytes(b"no image")
        (folder / "three.jpg.part").write_bytes(JPEG[:100])
        (folder / "link.jpg").symlink_to(folder / "old.jpg")
        lines = [json.loads(served.process.stdout.readline()) for _ in range(2)]
        by_name = {line["file"]: line for line in lines}
        (folder / "three.jpg.part").rename(folder / "three.jpg")
        with (folder / "three.jpg").open("ab") as file:
            file.write(JPEG[100:])
        third = json.loads(served.process.stdout.readline())
        assert json.loads(served.post("/predict", JPEG, **SENT).data)["predictions"][0]["label"] == third["label"]
        refuses_what_is_no_http(served)
        assert served.stop() == 0
        assert served.out == ""
    assert set(by_name) == {"one.jpg", "two.txt"}
    assert by_name["one.jpg"]["label"] == third["label"]
    assert by_name["two.txt"]["error"]
    assert third["file"] == "three.jpg"
    with Journal.open(site) as journal:
        rows = journal.predictions()
    assert {row.source for row in rows} == {None, "one.jpg", "three.jpg"}
    assert {row.id for row in rows if row.source} == {by_name["one.jpg"]["id"], third["id"]}


def test_no_http_watches_a_folder_with_the_current_release(site, tmp_path):
    folder = tmp_path / "camera"
    folder.mkdir()
    with serving(site, "--watch", folder, "--no-http") as served:
        assert served.started["url"] is None
        (folder / "one.jpg").write_bytes(JPEG)
        assert json.loads(served.process.stdout.readline())["release"] == 1
        releases.promote(site, 2)
        for number in range(100):  # it looks for a new release every so often
            (folder / f"{number}.jpg").write_bytes(JPEG)
            if json.loads(served.process.stdout.readline())["release"] == 2:
                break
            time.sleep(0.2)
        else:
            pytest.fail("release 2 never answered")
        assert served.stop() == 0


REFUSED = {
    "no such site": ("/nowhere", "no run or bundle"),
    "an empty site": ("{site}/../empty", "No release .* answers yet"),
    "strangers without keys": ("{site} --host 0.0.0.0", "there is no key"),
    "a taken port": ("{site} --port {port}", "in use already"),
    "no port": ("{site} --port 99999", "--port is 99999"),
    "no host": ("{site} --host no.such.host.invalid --open", "There is no address"),
    "no workers": ("{site} --workers 0", "--workers is 0"),
    "no threads": ("{site} --threads 0", "--threads is 0"),
    "no bytes": ("{site} --max-body-mb 0", "--max-body-mb is 0"),
    "no pixels": ("{site} --max-pixels 0", "--max-pixels is 0"),
    "no images": ("{site} --max-images 0", "--max-images is 0"),
    "no queue": ("{site} --queue 0", "--queue is 0"),
    "no folder": ("{site} --watch /nowhere", "no folder '/nowhere' to watch"),
    "nothing to do": ("{site} --no-http", "needs a folder to --watch"),
    "no origin": ("{site} --origin example.org", "not like https://example.org"),
    "a tampered release": ("{site} --port 0", "model.onnx"),
    "no database": ("{site} --port 0 --journal nodb://x:hidden@y/z", "database|journal"),
}


def tampered(site):
    path = site / "releases" / "0001" / "model.onnx"
    path.chmod(0o644)
    path.write_bytes(b"x" + path.read_bytes()[1:])


@pytest.mark.parametrize("what", REFUSED)
def test_invalid_settings_are_refused_in_one_sentence(cli, site, what):
    (site.parent / "empty" / "releases").mkdir(parents=True)
    if what == "a tampered release":
        tampered(site)
    words, sentence = REFUSED[what]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = cli("serve", *words.format(site=site, port=taken.getsockname()[1]).split())
    assert answer.code == 2
    assert answer.out == ""
    last = answer.err.splitlines()[-1]
    assert re.search(sentence, last)
    assert "Traceback" not in answer.err
    assert "hidden" not in answer.err
