"""Images at an address: a web server of this machine and fsspec's store in memory, honest and otherwise."""

import contextlib
import io
import json
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from sightline.cli import main
from sightline.errors import DataError
from sightline.sources import find, find_images, find_unlabelled, hide_query, list_images, remote, remote_files
from sightline.training import Recipe

RNG = np.random.default_rng(0)
PICTURES = {
    f"{name}/{i} of {name}.png": RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name in ("cat", "dog") for i in range(6)
}  # fmt: skip


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


FILES = {name: png(pixels) for name, pixels in PICTURES.items()}


def zipped():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return stream.getvalue()


ZIP = zipped()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(remote, "RECHECK_SECONDS", 0.0)
    monkeypatch.setattr(remote, "_checked", {})
    monkeypatch.setattr(remote, "_whole_addresses", {})
    yield tmp_path / "cache"
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture
def server():
    """Files under their paths, folders as pages of links; ``answers`` may change how a path is answered."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            site.asked.append((self.command, self.path, self.headers.get("Range")))
            site.headers.append(self.headers)
            path = self.path.partition("?")[0]
            if path in site.answers:
                return site.answers[path](self)
            if path in site.files:
                return self.give(site.files[path], ETag=site.tags.get(path, '"1"'))
            return self.send_error(404)

        do_HEAD = do_GET

        def give(self, data, status=200, length=None, **headers):
            begin = 0
            if (asked := self.headers.get("Range")) and self.headers.get("If-Range") == headers.get("ETag"):
                begin, status = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]), 206
                headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data) - begin if length is None else length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data[begin:])

        def log_message(self, *_):
            pass

    class Site(ThreadingHTTPServer):
        request_queue_size = 64  # else connections at the same time wait for a second and more

    site = Site(("127.0.0.1", 0), Handler)
    site.asked, site.headers, site.answers, site.tags = [], [], {}, {}
    site.files = {"/photos.zip": ZIP}
    site.url = f"http://127.0.0.1:{site.server_port}"
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.shutdown()
    thread.join()
    site.server_close()


def serve_folder(site, files=FILES):
    """A folder of class folders as a web server lists it, with what such pages have besides."""
    more = '<a href="../">Up</a> <a href="?C=N;O=D">Name</a> <a href="https://elsewhere.invalid/x.png">x</a>'
    quoted = {name: name.replace(" ", "%20") for name in files}
    pages = {"": sorted({f"{name.split('/')[0]}/" for name in quoted.values()})}
    for name in pages[""]:
        pages[name] = [each[len(name) :] for each in quoted.values() if each.startswith(name)]
    for folder, links in pages.items():
        page = more + "".join(f'<A class="x" HREF="{link}">{link}</A>' for link in links)
        site.answers[f"/set/{folder}"] = lambda answer, page=page: answer.give(
            page.encode(), Content_Type="text/html; charset=utf-8"
        )
    site.files |= {f"/set/{quoted[name]}": data for name, data in files.items()}


def check_pictures(source):
    """The source has exactly the pictures, by name and label."""
    assert source.classes == ("cat", "dog")
    assert sorted(source.files) == sorted(PICTURES)
    for i, name in enumerate(source.files):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(source.read(i)))), PICTURES[name])
        assert source.classes[source.labels[i]] == name.split("/")[0]


def gets(site):
    return [path for verb, path, _ in site.asked if verb == "GET"]


def test_an_archive_of_a_web_server_is_copied_once(server, cache):
    source = find(f"{server.url}/photos.zip")
    check_pictures(source)
    assert source.name == f"{server.url}/photos.zip"
    assert gets(server) == ["/photos.zip"]
    again = find(f"{server.url}/photos.zip")
    assert (again.fingerprint, gets(server)) == (source.fingerprint, ["/photos.zip"])
    del server.files["/photos.zip"]
    check_pictures(find(f"{server.url}/photos.zip"))
    assert not [*cache.rglob("*.part")]


def test_another_etag_is_another_copy(server):
    first = find(f"{server.url}/photos.zip")
    server.tags["/photos.zip"] = '"2"'
    check_pictures(find(f"{server.url}/photos.zip"))
    assert gets(server) == ["/photos.zip"] * 2
    check_pictures(first)  # what reads the earlier copy goes on


def test_a_folder_of_a_web_server(server):
    serve_folder(server)
    source = find(f"{server.url}/set/")
    check_pictures(source)
    changed = next(iter(FILES))
    server.tags[f"/set/{changed.replace(' ', '%20')}"] = '"2"'
    server.asked.clear()
    check_pictures(find(f"{server.url}/set/"))
    assert [path for path in gets(server) if path.endswith("png")] == [f"/set/{changed.replace(' ', '%20')}"]


@pytest.mark.parametrize("address", ["memory://set", "memory://set/", "memory://photos.zip"])
def test_the_store_in_memory(address):
    system = fsspec.filesystem("memory")
    for name, data in {**{f"/set/{name}": data for name, data in FILES.items()}, "/photos.zip": ZIP}.items():
        system.pipe_file(name, data)
    check_pictures(find(address))
    assert len(find_unlabelled(address)) == len(FILES)
    assert [Path(file).read_bytes() for file in list_images("memory://set")] == [FILES[n] for n in sorted(FILES)]
    assert [each.name for each in find_images(address)] == [f"{address.rstrip('/')}/{n}" for n in sorted(FILES)]
    assert [each.read() for each in find_images(address)] == [FILES[name] for name in sorted(FILES)]


def test_a_download_goes_on_where_it_broke(server, monkeypatch):
    monkeypatch.setattr(remote_files, "_TRIES", 1)
    arrived = threading.Event()

    @contextlib.contextmanager
    def watch(*_):
        yield lambda n: arrived.set() if n > 0 else None

    monkeypatch.setattr(remote_files.progress, "progress_bar", watch)

    def broken(answer):
        if answer.command == "GET" and not answer.headers.get("Range"):
            answer.give(ZIP[:1000], length=len(ZIP), ETag='"1"')
            assert arrived.wait(30)  # what breaks before it is read is lost
            answer.close_connection = True
        else:
            answer.give(ZIP, ETag='"1"')

    server.answers["/photos.zip"] = broken
    with pytest.raises(DataError, match=r"The download of 'http://[^']*photos.zip' failed .*: start again"):
        find(f"{server.url}/photos.zip")
    check_pictures(find(f"{server.url}/photos.zip"))
    begin = int(server.asked[-1][2].removeprefix("bytes=").rstrip("-"))
    assert 0 < begin <= 1000


def test_a_line_that_breaks_is_tried_again(server):
    tried = []

    def broken(answer):
        if answer.command == "GET" and not tried:
            tried.append(answer)
            answer.give(ZIP[:1000], length=len(ZIP))
            answer.close_connection = True
        else:
            answer.give(ZIP)

    server.answers["/photos.zip"] = broken
    check_pictures(find(f"{server.url}/photos.zip"))
    assert tried


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda a: a.give(b"", 302, Location="file:///etc/passwd"), "the server redirects from http to file"),
        (lambda a: a.give(b"", 302, Location="ftp://127.0.0.1/x"), "the server redirects from http to ftp"),
        (lambda a: a.give(ZIP if a.command == "GET" else ZIP + b"!"), r"announced [\d,]+ bytes of .*, and then"),
        (lambda a: a.give(ZIP if a.command == "GET" else ZIP[:-1]), r"announced [\d,]+ bytes of .*, and then"),
        (lambda a: a.give(b"no", 403), "the server answers 403, it refuses access"),
        (lambda a: a.give(b"no", 500), "the server answers 500"),
        (lambda a: a.give(b"<p>Sign in</p>", Content_Type="text/html"), "it is a web page"),
    ],
)
def test_a_server_that_deceives_is_refused(server, cache, answer, says):
    server.answers["/photos.zip"] = answer
    with pytest.raises(DataError, match=says) as caught:
        find(f"{server.url}/photos.zip")
    assert len(str(caught.value).splitlines()) == 1
    assert not [path for path in cache.rglob("*.zip*") if path.stat().st_size]


def test_a_redirect_from_https_to_http_is_refused():
    import asyncio
    from types import SimpleNamespace

    import yarl

    async def redirect(location):
        session = await remote_files._make_session()
        step = SimpleNamespace(
            url=yarl.URL("https://a.invalid/x"),
            response=SimpleNamespace(url=yarl.URL("https://a.invalid/x"), headers={"Location": location}),
        )
        try:
            await session.trace_configs[0].on_request_redirect[0](session, None, step)
        finally:
            await session.close()

    asyncio.run(redirect("/y"))
    asyncio.run(redirect("https://b.invalid/y"))
    with pytest.raises(remote_files.RefusedError, match="from https to http"):
        asyncio.run(redirect("http://a.invalid/x"))


def test_a_body_without_a_length_is_bounded(server, cache, monkeypatch):
    def endless(answer):
        answer.send_response(200)
        answer.send_header("Transfer-Encoding", "chunked")
        answer.end_headers()
        if answer.command == "GET":
            with contextlib.suppress(OSError):
                while True:
                    answer.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    server.answers["/photos.zip"] = endless
    monkeypatch.setattr(remote_files, "MAX_REMOTE_BYTES", 1_000_000)
    with pytest.raises(DataError, match=r"is longer than the 1,000,000 bytes"):
        find(f"{server.url}/photos.zip")
    assert not [path for path in cache.rglob("*.zip*") if path.is_file()]
    server.answers["/photos.zip"] = lambda answer: answer.give(bytes(2_000_000))
    with pytest.raises(DataError, match=r"has 0\.0 GB, more than the 0\.0 GB that fit"):
        find(f"{server.url}/photos.zip")


def test_folders_without_end_are_bounded(server):
    def deeper(answer):
        answer.give(b'<a href="x/">x</a>', Content_Type="text/html")

    class Endless(dict):
        def __contains__(self, path):
            return path.startswith("/set/")

        def __getitem__(self, path):
            return deeper

    server.answers = Endless()
    with pytest.raises(DataError, match="folders are more than 16 deep"):
        find(f"{server.url}/set/")


@pytest.mark.parametrize("link", ["..%2Fescape.png", "%2Fetc%2Fpasswd", "a%5C..%5Cb.png", "C:x.png", "a%00.png"])
def test_a_listed_file_cannot_land_elsewhere(server, cache, link):
    page = f'<a href="./{link}">x</a>'.encode()
    server.answers["/set/"] = lambda answer: answer.give(page, Content_Type="text/html")
    server.answers[f"/set/{link}"] = lambda answer: answer.give(png(next(iter(PICTURES.values()))))
    with pytest.raises(DataError, match="would land outside of its copy"):
        find(f"{server.url}/set/")
    assert not [*cache.rglob("*.png")]


def test_a_key_is_neither_printed_nor_saved(server, cache, capsys, tmp_path):
    address = f"{server.url}/photos.zip?sig=SECRET"
    source = find(address)
    check_pictures(source)
    assert re.fullmatch(rf"{server.url}/photos\.zip\?query-[0-9a-f]{{16}}", source.name)
    recipe = Recipe(data=address, unlabelled=address)
    assert recipe.data == recipe.unlabelled == source.name == hide_query(source.name)
    assert "SECRET" not in recipe.to_toml()
    assert server.asked[-1][1] == "/photos.zip?sig=SECRET"
    server.answers["/photos.zip"] = lambda answer: answer.give(b"no", 403)
    assert main(["check", address.replace("SECRET", "SECRET2")]) == 2
    assert main(["check", address]) == 0  # the copy, as the server refuses
    shown = "".join(capsys.readouterr())
    assert "403" in shown
    assert "SECRET" not in shown
    assert not any(b"SECRET" in path.read_bytes() for path in cache.rglob("*") if path.is_file())
    remote._whole_addresses.clear()  # as in a later process
    check_pictures(find(source.name))
    with pytest.raises(DataError, match=r"was not saved, because it may be a key\): name the whole address again"):
        find(f"{server.url}/other.zip?query-0123456789abcdef")


def test_a_password_in_an_address_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"at example.org holds a name or password") as caught:
        find("https://me:SECRET@example.org/photos.zip")
    assert "SECRET" not in str(caught.value)


def test_netrc_is_used_and_not_sent_elsewhere(server, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password SECRET\n")
    (tmp_path / "netrc").chmod(0o600)
    server.answers["/moved.zip"] = lambda answer: answer.give(
        b"", 302, Location=f"http://localhost:{server.server_port}/photos.zip"
    )
    check_pictures(find(f"{server.url}/moved.zip"))
    sent = {
        (path, "Authorization" in head) for (_, path, _), head in zip(server.asked, server.headers, strict=True)
    }
    assert sent == {("/moved.zip", True), ("/photos.zip", False)}


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("s3://bucket/photos.zip", r"begin with s3:// need another package: pip install s3fs"),
        ("gs://bucket/photos.zip", r"begin with gs:// need another package: pip install gcsfs"),
        ("file:///etc", r"begins with file:// is not opened.* Give a path"),
        ("zip://x::http://127.0.0.1/x.zip", r"begins with zip:// is not opened"),
        ("memory://nothing.zip", r"cannot be opened \(there is nothing\): check the address"),
        ("http://127.0.0.1:9/photos.zip", r"cannot be opened \(.*\): check the address, the network"),
    ],
)
def test_what_cannot_be_opened_says_why(address, says, monkeypatch):
    for package in ("s3fs", "gcsfs"):  # as if they were not installed
        monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(DataError, match=says) as caught:
        find(address)
    assert len(str(caught.value).splitlines()) == 1


def test_a_copy_that_names_places_of_this_machine_is_refused(tmp_path):
    text = json.dumps({"sources": [{"place": str(tmp_path)}], "names": {}, "without": []})
    fsspec.filesystem("memory").pipe_file("/all.sources", text.encode())
    with pytest.raises(DataError, match=r"'memory://all.sources' names other places"):
        find("memory://all.sources")


def test_an_error_in_the_copy_names_the_address(server):
    server.files["/photos.zip"] = ZIP[:500]
    with pytest.raises(DataError, match=f"'{server.url}/photos.zip' is not a complete zip archive"):
        find(f"{server.url}/photos.zip")


def test_the_verbs_take_addresses(server, tmp_path, capsys):
    serve_folder(server)
    out = tmp_path / "run"
    words = ["--model", "mlp", "--size", "8", "--epochs", "1", "--batch-size", "4", "--augment", "none"]
    assert main(["train", f"{server.url}/photos.zip", *words, "--out", str(out), "--json"]) == 0
    assert f'data = "{server.url}/photos.zip"' in (out / "recipe.toml").read_text()
    assert main(["evaluate", str(out), "--json"]) == 0
    capsys.readouterr()
    for place in (f"{server.url}/set/", f"{server.url}/photos.zip", f"{server.url}/set/cat/0%20of%20cat.png"):
        assert main(["predict", str(out), place, "--format", "jsonl"]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert all(row["error"] is None and row["file"].startswith(place) for row in rows)
        assert len(rows) == (1 if place.endswith("png") else len(FILES))
    (tmp_path / "local.zip").write_bytes(ZIP)
    parts = []
    for shard in ("1/2", "2/2"):
        assert main(["predict", str(out), str(tmp_path / "local.zip"), "--format", "jsonl", "--shard", shard]) == 0
        parts += [json.loads(line)["file"] for line in capsys.readouterr().out.splitlines()]
    assert parts == [f"{tmp_path}/local.zip/{name}" for name in sorted(FILES)]
