"""Sets known by name, from a real server on this machine, and without any network."""

import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from sightline.errors import DataError
from sightline.sources import PUBLISHED_DATASETS, find

RNG = np.random.default_rng(0)
GREY = {part: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 20), ("t10k", 10))}
RGB = RNG.integers(0, 256, (20, 3072), dtype=np.uint8)
LABELS = np.arange(20) % 10


def idx(array):
    return gzip.compress(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def batches(kind):
    """A tar.gz with CIFAR's files, of a few images."""
    names = {"label_names": list("abcdefghij"), "fine_label_names": list("abcdefghij")}
    batch = {"data": RGB, "labels": LABELS.tolist(), "fine_labels": LABELS.tolist()}
    if kind == "cifar10":
        files = {"batches.meta": names, "test_batch": batch} | {f"data_batch_{i}": batch for i in range(1, 6)}
    else:
        files = {"meta": names, "train": batch, "test": batch}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, value in files.items():
            data = pickle.dumps(value)
            info = tarfile.TarInfo(f"{kind}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def contents(name):
    """What the files of a set are, in this test."""
    if name.startswith("cifar"):
        return {file: batches(name) for file in PUBLISHED_DATASETS[name].files}
    arrays = {
        "images-idx3": lambda part: GREY[part],
        "labels-idx1": lambda part: LABELS[: len(GREY[part])].astype(np.uint8),
    }
    return {f"{part}-{what}-ubyte.gz": idx(of(part)) for part in GREY for what, of in arrays.items()}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server of every set; ``mirror.files`` may be changed, ``mirror.asked`` lists what was asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            answer = server.files.get(self.path)
            if isinstance(answer, str):
                self.send_response(302)
                self.send_header("Location", answer)
                self.end_headers()
            elif answer is None:
                self.send_error(404)
            else:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.files = [], {}
    for name, published in list(PUBLISHED_DATASETS.items()):
        made = contents(name)
        assert set(made) == set(published.files)
        server.files |= {f"/{name}/{file}": data for file, data in made.items()}
        facts = {file: (hashlib.md5(data).hexdigest(), len(data)) for file, data in made.items()}
        monkeypatch.setitem(PUBLISHED_DATASETS, name, replace(published, files=facts))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("SIGHTLINE_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", PUBLISHED_DATASETS)
def test_a_dataset_is_downloaded_once(mirror, name):
    source = find(name)
    images = RGB.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) if name.startswith("cifar") else GREY["t10k"]
    test = np.flatnonzero(source.columns["split"] == "test")
    assert len(source) == {"cifar10": 120, "cifar100": 40}.get(name, 30)
    for row, image in zip(test, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(source.read(int(row))))), image)
    np.testing.assert_array_equal(source.labels[test], LABELS[: len(test)])
    assert len(source.classes) == 10
    assert (source.name, len(mirror.asked)) == (name, len(PUBLISHED_DATASETS[name].files))
    again = find(name)
    assert again.fingerprint == source.fingerprint
    assert len(mirror.asked) == len(PUBLISHED_DATASETS[name].files)


def test_classes_of_the_sets(mirror):
    assert find("mnist").classes == tuple("0123456789")
    assert find("fashion-mnist").classes[0::9] == ("T-shirt/top", "Ankle boot")
    assert find("cifar100").classes == tuple("abcdefghij")


def test_a_folder_goes_before_a_dataset_of_its_name(mirror, tmp_path, monkeypatch):
    for label in "ab":
        (tmp_path / "mnist" / label).mkdir(parents=True)
        Image.new("L", (4, 4)).save(tmp_path / "mnist" / label / "1.png")
    monkeypatch.chdir(tmp_path)
    assert find("mnist").classes == ("a", "b")
    assert not mirror.asked


FILE = "/mnist/train-labels-idx1-ubyte.gz"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[:-1] + b"!", "its MD5 is .*, not the published"),
        (lambda data: data[:-1], "only .* bytes arrived"),
        (lambda data: data + bytes(10_000_000), "it is longer than the"),
        (lambda _: None, "Not Found"),
        (lambda _: "file:///etc/passwd", "Redirection to url 'file:///etc/passwd' is not allowed"),
        (lambda _: "ftp://127.0.0.1/x", "only https is used, not 'ftp'"),
        (lambda _: "http://nowhere.invalid/x", "only https is used, not 'http'"),
    ],
)
def test_a_file_with_another_checksum_is_never_read(mirror, tmp_path, spoil, says):
    good = mirror.files[FILE]
    mirror.files[FILE] = spoil(good)
    with pytest.raises(DataError, match=rf"train-labels-idx1-ubyte.gz cannot be downloaded .*{says}"):
        find("mnist")
    folder = tmp_path / "cache" / "downloads" / "mnist"
    assert [path.name for path in folder.iterdir()] == ["train-images-idx3-ubyte.gz"]
    mirror.files[FILE] = good
    assert len(find("mnist")) == 30
    assert mirror.asked.count("/mnist/train-images-idx3-ubyte.gz") == 1  # what was whole is not fetched again


def test_a_file_put_there_by_hand_is_checked_before_it_is_read(mirror, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "downloads" / "cifar10"
    folder.mkdir(parents=True)
    (name,) = PUBLISHED_DATASETS["cifar10"].files
    good = contents("cifar10")[name]
    (folder / name).write_bytes(bytes(len(good)))
    with pytest.raises(
        DataError, match=f"{name}' is not the published file .its MD5 is .*delete it and start again"
    ):
        find("cifar10")
    data = io.BytesIO(batches("cifar10"))
    monkeypatch.setitem(PUBLISHED_DATASETS, "cifar10", replace(PUBLISHED_DATASETS["cifar10"], files={
        name: (hashlib.md5(data.getvalue()).hexdigest(), len(data.getvalue()))}))  # fmt: skip
    (folder / name).write_bytes(data.getvalue())
    assert len(find("cifar10")) == 120
    assert not mirror.asked


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "https://nowhere.invalid", "http://example.org/", "file:///etc", "x"]
)
def test_offline_the_error_names_files_and_folder(tmp_path, monkeypatch, cli, address):
    monkeypatch.setenv("SIGHTLINE_MIRROR", address)
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    answer = cli("check", "mnist")
    assert answer.code == 2
    assert "Traceback" not in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    for part in (
        *PUBLISHED_DATASETS["mnist"].files,
        f"{address.rstrip('/')}/mnist/",
        tmp_path / "cache/downloads/mnist",
    ):
        assert str(part) in answer.err
    assert "or give a folder or file of the dataset that you have" in answer.err


def test_the_published_datasets_have_the_published_facts():
    """The MD5 sums, as printed by the authors' pages and by torchvision; addresses are https."""
    sums = json.dumps({name: published.files for name, published in PUBLISHED_DATASETS.items()})
    known = """
        f68b3c2dcbeaaa9fbdd348bbdeb94873 d53e105ee54ea40749a09fcbcd1e9432 9fb629c4189551a2d022fa330f9573f3
        ec29112dd5afa0611ce80d1b7f02629c 8d4fb7e6c68d591d4c3dfef9ec88bf0d 25c81989df183df01b3e8a0aad5dffbe
        bef4ecab320f06d8554ea6380940ec79 bb300cfdad3c16e7a12a480ee83cd310 c58f30108f718f92721af3b95e74349a
        eb9058c3a382ffc7106e4002c42a8d85"""
    assert all(each in sums for each in known.split())
    assert all(published.base_url.startswith("https://") for published in PUBLISHED_DATASETS.values())
