"""Helpers decode rows in other processes: the store is to the byte what one thread builds, whatever becomes of them."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline import runtime
from sightline.data import load_dataset, row_work, rows
from sightline.data import store as store_module
from sightline.sources import JOINED_SUFFIX, FolderReader, LabelRule, find, write_joined
from sightline.types import Geometry

GEOMETRY = Geometry(size=(12, 10))
COUNT = 400
RESULTS = ("facts.npy", "pixels.npy", "unreadable.json")


def draw(number: int, kind: str, height: int = 12) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (height, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def files() -> dict[str, bytes]:
    """Two classes: PNG and JPEG of the working size, and three that are no images."""
    drawn = {f"{'ab'[i % 2]}/{i:03d}.{('png', 'jpg')[i % 3 % 2]}": i for i in range(COUNT)}
    found = {name: draw(i, "JPEG" if name.endswith("jpg") else "PNG") for name, i in drawn.items()}
    names = list(found)
    return found | {names[7]: b"a text", names[COUNT - 3]: b"", names[5]: found[names[5]][:90]}


def pack(root: Path, suffix: str) -> Path:
    path = root / f"images.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, data in files().items():
                zipped.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if suffix == "tgz" else "w") as archive:
        for name, data in files().items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(root: Path) -> Path:
    for name, data in files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "b/gone.png").symlink_to(root / "nowhere")  # the operating system does not open it
    return root


def put_at_address(root: Path) -> str:
    import fsspec

    fsspec.filesystem("memory").pipe(f"/helped{root.name}.zip", pack(root, "zip").read_bytes())
    return f"memory://helped{root.name}.zip"


def write_parquet(root: Path) -> Path:
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    held = [{"image": {"bytes": data, "path": name}, "label": name[0]} for name, data in files().items()]
    pyarrow.parquet.write_table(arrow.Table.from_pylist(held), root / "images.parquet", row_group_size=50)
    return root / "images.parquet"


def write_arrays(root: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 255, (COUNT, 12, 10, 3), dtype=np.uint8)
    np.savez(root / "images.npz", images=images, labels=np.arange(COUNT) % 2)
    return root / "images.npz"


def join(root: Path) -> Path:
    places = [(str(pack(root, "zip")), LabelRule()), (str(write_folder(root / "folder")), LabelRule())]
    return write_joined(root / f"both{JOINED_SUFFIX}", places)


PLACES = {
    "folder": lambda root: write_folder(root / "folder"),
    "zip": lambda root: pack(root, "zip"),
    "tar": lambda root: pack(root, "tar"),
    "compressed tar": lambda root: pack(root, "tgz"),
    "address": put_at_address,
    "parquet": write_parquet,
    "arrays": write_arrays,
    "joined": join,
}


def results(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (cache / "stores").glob("*/*") if path.name in RESULTS}


@pytest.fixture
def helpers(monkeypatch):
    """Work of any length gets helpers, who do most of it: this process waits for them. The list has those started."""
    started, decode, start = [], rows.decode_with_header, row_work._Helper.__init__

    def watched(self):
        start(self)
        self.rows = 0
        started.append(self)

    def count(self, *arguments, exchange=row_work._Helper.exchange):
        done = exchange(self, *arguments)
        self.rows += done
        return done

    def decode_late(*arguments):
        if started and not started[0].rows and not started[0].connection.closed:
            started[0].connection.poll(60)
        time.sleep(0.002 * bool(started))
        return decode(*arguments)

    monkeypatch.setattr(row_work._Helper, "__init__", watched)
    monkeypatch.setattr(row_work._Helper, "exchange", count)
    monkeypatch.setattr(rows, "decode_with_header", decode_late)
    monkeypatch.setattr(row_work, "_CHUNK", 16)
    monkeypatch.setattr(row_work, "_TRIAL_SECONDS", 0.0)
    monkeypatch.setattr(row_work, "_HELPER_COST", (1e-9, 1000))
    monkeypatch.setattr(row_work, "_HELPER_COST_WITH_TORCH", (1e-9, 1000))
    monkeypatch.setattr(row_work, "_run_threaded", lambda *_: 0.0)
    monkeypatch.setattr(runtime, "cpu_count", lambda: 2)
    return started


def load_serially(source, cache, monkeypatch, **options):
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "cpu_count", lambda: 1)
        return load_dataset(source, GEOMETRY, cache=cache, **options)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("place", PLACES)
def test_helpers_and_one_thread_store_the_same(tmp_path, monkeypatch, helpers, place):
    source = find(PLACES[place](tmp_path))
    serial = load_serially(source, tmp_path / "one", monkeypatch)
    assert not helpers
    helped = load_dataset(source, GEOMETRY, cache=tmp_path / "two")
    assert len(helpers) == 1
    assert helpers[0].rows > len(source) // 4
    assert helpers[0].process.returncode is not None
    assert set(results(tmp_path / "two")) == {*RESULTS}
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert helped.skipped == serial.skipped
    expected = {"arrays": 0, "folder": 4, "joined": 7}.get(place, 3)
    assert len(helped.skipped) == expected
    if place == "folder":
        for number in range(0, len(helped), 9):
            name = helped.files[number]
            if name.endswith("png"):
                picture = Image.open(tmp_path / "folder" / name)
                np.testing.assert_array_equal(helped[number][0], np.asarray(picture))


def test_helpers_resample_and_collect_facts_alone(tmp_path, monkeypatch, helpers):
    """Pictures of other sizes, which a helper imports torch for; and a store without pixels."""
    root = tmp_path / "data"
    for number in range(300):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw(number, "PNG", 20 + number % 7))
    for keep in (True, False):
        load_serially(find(root), tmp_path / f"one{keep}", monkeypatch, keep=keep)
        load_dataset(find(root), GEOMETRY, cache=tmp_path / f"two{keep}", keep=keep)
        assert helpers.pop().rows > 50
        found = results(tmp_path / f"two{keep}")
        assert ("pixels.npy" in found) == keep
        assert found == results(tmp_path / f"one{keep}")


def test_several_helpers(tmp_path, monkeypatch, helpers):
    source = find(pack(tmp_path, "zip"))
    load_serially(source, tmp_path / "one", monkeypatch)
    monkeypatch.setattr(runtime, "cpu_count", lambda: 4)
    load_dataset(source, GEOMETRY, cache=tmp_path / "two")
    assert len(helpers) == 3
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_what_a_killed_helper_leaves_is_done_here(tmp_path, monkeypatch, helpers):
    source = find(write_folder(tmp_path / "folder"))
    load_serially(source, tmp_path / "one", monkeypatch)
    exchange, lost = row_work._Helper.exchange, []

    def kill(self, *arguments):
        answered = bool(self.given)
        if answered and self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGSTOP)  # what it is given now it will never do
        done = exchange(self, *arguments)
        if answered:
            self.process.kill()
            self.process.wait()
            lost.append(len(self.given))
        return done

    monkeypatch.setattr(row_work._Helper, "exchange", kill)
    load_dataset(source, GEOMETRY, cache=tmp_path / "two")
    assert lost[0] > 0
    assert 0 < helpers[0].rows < COUNT // 2
    assert results(tmp_path / "two") == results(tmp_path / "one")


class Private:
    """A reader that cannot be pickled."""

    def __init__(self, reader):
        self.reader, self.lock = reader, threading.Lock()

    def read(self, key: int) -> bytes:
        return self.reader.read(key)


@pytest.mark.parametrize("fault", ["private", "nameless", "absent", "broken", "frozen", "poor"])
def test_without_helpers_the_store_is_the_same(tmp_path, monkeypatch, helpers, fault):
    source = find(pack(tmp_path, "zip"))
    load_serially(source, tmp_path / "one", monkeypatch)
    if fault == "private":
        source = dataclasses.replace(source, reader=Private(source.reader))
    elif fault == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif fault == "poor":
        monkeypatch.setattr(runtime, "available_memory", lambda: 3000)
    else:
        broken = tmp_path / "python-broken"
        broken.write_text("#!/bin/sh\nexit 3\n")
        broken.chmod(0o755)
        executables = {"nameless": None, "absent": str(tmp_path / "python"), "broken": str(broken)}
        monkeypatch.setattr(sys, "executable", executables[fault])
    load_dataset(source, GEOMETRY, cache=tmp_path / "two")
    assert len(helpers) == (fault == "broken")
    assert not any(helper.rows for helper in helpers)
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_a_fault_of_ours_ends_the_build_and_its_helpers(tmp_path, monkeypatch, helpers):
    def fail(*_):
        if helpers:
            raise RuntimeError("a fault of ours")
        return decode(*_)

    decode = rows.decode_with_header
    monkeypatch.setattr(rows, "decode_with_header", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        load_dataset(pack(tmp_path, "zip"), GEOMETRY, cache=tmp_path / "cache")
    assert not is_running(helpers[0].process.pid)
    assert not [path for path in (tmp_path / "cache/stores").iterdir() if path.suffix != ".lock"]


def test_short_work_gets_no_helpers(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "cpu_count", lambda: 8)
    monkeypatch.setattr(row_work, "_run_helped", lambda *_: pytest.fail("started helpers"))
    assert len(load_dataset(pack(tmp_path, "zip"), GEOMETRY, cache=tmp_path / "cache")) == COUNT - 3


@pytest.mark.parametrize(
    ("seconds", "together", "cores", "height", "expected"),
    [
        (0.7, 1.0, 2, 12, 0),  # the start would take as long as it saves
        (4.0, 0.9, 2, 12, 1),
        (4.0, 2.0, 2, 12, 0),  # threads are as good
        (4.0, 1.0, 64, 12, 9),  # each decodes for as long as it takes to start
        (4.0, 1.0, 2, 30, 1),
        (3.0, 1.0, 2, 30, 0),  # torch takes longer to import
    ],
)
def test_helpers_are_started_where_they_pay(monkeypatch, seconds, together, cores, height, expected):
    monkeypatch.setattr(runtime, "cpu_count", lambda: cores)
    decoder = rows.RowDecoder(FolderReader(Path(), []), np.arange(1000), GEOMETRY)
    decoder.facts["ok"][:3], decoder.facts["width"][:3], decoder.facts["height"][:3] = True, 10, height
    assert row_work._estimate(decoder, 1000, 1000 / seconds, 1000 * together / seconds)[1] == expected


def test_threads_are_tried_only_where_an_image_takes_long(tmp_path, monkeypatch):
    source, tried = find(pack(tmp_path, "zip")), []
    monkeypatch.setattr(runtime, "cpu_count", lambda: 2)
    monkeypatch.setattr(row_work, "_run_threaded", lambda *_: tried.append(0) or 0.0)
    for seconds, trials in ((10.0, 0), (1e-9, 1)):
        monkeypatch.setattr(row_work, "_QUICK_IMAGE_SECONDS", seconds)
        load_dataset(source, GEOMETRY, cache=tmp_path / f"{seconds}")
        assert len(tried) == trials


SCRIPT = """
import signal, sys, time
from pathlib import Path
from sightline import runtime
from sightline.data import load_dataset, row_work, rows
from sightline.types import Geometry
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
print("script", flush=True)
runtime.cpu_count = lambda: 2
row_work._CHUNK = 4
row_work._TRIAL_SECONDS = 0.0
row_work._HELPER_COST = 1e-9, 1000
row_work._run_threaded = lambda *_: 0.0
exchange, decode = row_work._Helper.exchange, rows.decode_with_header
def told(self, *arguments):
    print("helper", self.process.pid, flush=True)
    return exchange(self, *arguments)
def decode_late(*arguments):
    time.sleep(float(sys.argv[3]))
    return decode(*arguments)
row_work._Helper.exchange, rows.decode_with_header = told, decode_late
dataset = load_dataset(sys.argv[1], Geometry(size=(12, 10)), cache=Path(sys.argv[2]))
print(len(dataset), flush=True)
"""


def start_script(root: Path, pause: float) -> "subprocess.Popen[str]":
    """A script without a guard of its main part, which would run again in processes that import it."""
    (root / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(root / "script.py"), str(pack(root, "zip")), str(root / "cache"), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    output = start_script(tmp_path, 0.01).communicate(timeout=120)[0].splitlines()
    assert output.count("script") == 1
    assert output[1].startswith("helper")
    assert output[-1] == str(COUNT - 3)


@pytest.mark.parametrize("stop", ["kill", "interrupt"])
def test_no_helper_outlives_its_parent(tmp_path, stop):
    process = start_script(tmp_path, 0.3)
    assert process.stdout is not None
    helper = int(next(line for line in process.stdout if line.startswith("helper")).split()[1])
    assert is_running(helper)
    if stop == "kill":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to both
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, -signal.SIGINT, 130)
    deadline = time.monotonic() + 30
    while is_running(helper) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(helper)
    assert store_module.open_store(find(tmp_path / "images.zip"), GEOMETRY, tmp_path / "cache").reasons
