"""load and the store: whole or absent, built once, its unreadable files listed."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from sightline import runtime
from sightline.data import Shuffle, decode, iterate_batches, load_dataset, row_work, rows
from sightline.data import store as store_module
from sightline.data.store import LivePixels
from sightline.errors import DataError, ImageError, OutputError
from sightline.sources import find
from sightline.types import Geometry

GEOMETRY = Geometry(size=(12, 10))
RNG = np.random.default_rng(0)


def plant(root: Path, count: int = 20) -> Path:
    """Two classes of noise in several formats and sizes."""
    for i in range(count):
        path = root / "ab"[i % 2] / f"{i:03d}.{('png', 'jpg', 'bmp')[i % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 255, (8 + i, 10, 3), dtype=np.uint8)).save(path)
    return root


def stores(cache: Path) -> list[str]:
    """Everything in the store folder that is not a lock."""
    folder = cache / "stores"
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".lock") if folder.is_dir() else []


def test_pixels_are_those_of_decode(tmp_path):
    root = plant(tmp_path / "data", 300)
    dataset = load_dataset(root, GEOMETRY)
    for i in range(0, 300, 7):
        expected = decode((root / dataset.files[i]).read_bytes(), GEOMETRY)
        np.testing.assert_array_equal(dataset[i][0], expected)
    assert dataset[:5].shape == (5, 12, 10, 3)
    heights = [Image.open(BytesIO((root / name).read_bytes())).height for name in dataset.files]
    assert dataset.columns["height"].tolist() == heights
    assert set(dataset.columns) == {"width", "height", "channels", "rotated"}
    assert dataset.skipped == ()
    assert dataset.geometry == GEOMETRY


@pytest.mark.parametrize("way", [row_work._run_serially, row_work._run_threaded])
def test_one_thread_and_several_store_the_same(tmp_path, monkeypatch, way):
    root = plant(tmp_path / "data", 200)

    def run(decoder, *_):
        chunks = (range(i, min(i + 7, 200)) for i in range(0, 200, 7))
        arguments = (3,) if way is row_work._run_threaded else ()
        way(decoder.process, chunks, lambda *_: None, *arguments)

    expected = load_dataset(root, GEOMETRY, cache=tmp_path / "one")
    monkeypatch.setattr(store_module, "process_rows", run)
    other = load_dataset(root, GEOMETRY, cache=tmp_path / "two")
    np.testing.assert_array_equal(other[:], expected[:])
    np.testing.assert_array_equal(other.digests, expected.digests)


def test_second_load_decodes_nothing(tmp_path, monkeypatch):
    root = plant(tmp_path / "data")
    first = load_dataset(root, GEOMETRY)
    monkeypatch.setattr(store_module, "_build_store", lambda *_, **__: pytest.fail("built again"))
    second = load_dataset(root, GEOMETRY)
    np.testing.assert_array_equal(first[:], second[:])
    np.testing.assert_array_equal(first.digests, second.digests)


@pytest.mark.parametrize("change", ["file", "geometry"])
def test_another_file_or_geometry_is_another_store(tmp_path, change):
    root = plant(tmp_path / "data")
    before = load_dataset(root, GEOMETRY)
    if change == "file":
        Image.new("RGB", (5, 5), "red").save(root / "a/000.png")
        after = load_dataset(root, GEOMETRY)
        assert (after[0] == (255, 0, 0)).all()
        assert after.fingerprint != before.fingerprint
    else:
        assert load_dataset(root, Geometry(size=(12, 10), resize_mode="pad")).pixels.path != before.pixels.path


def test_other_processes_open_the_store_by_path(tmp_path):
    dataset = load_dataset(plant(tmp_path / "data", 60), GEOMETRY)
    packed = pickle.dumps(dataset)
    assert len(packed) < dataset[:].nbytes
    np.testing.assert_array_equal(pickle.loads(packed)[:], dataset[:])


def test_names_and_manifest_columns(tmp_path):
    root = plant(tmp_path / "data", 3)
    lines = [
        "path,label,split,group,width",
        "a/000.png,x,train,p1,9",
        "b/001.jpg,y,train,p2,9",
        "a/002.bmp,x,test,p1,9",
    ]
    (root / "list.csv").write_text("\n".join(lines))
    dataset = load_dataset(root / "list.csv", GEOMETRY)
    assert dataset.columns["group"].tolist() == ["p1", "p2", "p1"]
    assert dataset.columns["split"].tolist() == ["train", "train", "test"]
    assert dataset.columns["width"].tolist() == [10, 10, 10]  # what was measured, not what was written
    assert load_dataset("digits", Geometry(size=(8, 8), channels=1)).counts.sum() == 1797


def spoil(root: Path, names: dict[str, bytes]) -> None:
    for name, data in names.items():
        (root / name).write_bytes(data)


def test_bad_images_are_skipped_and_listed(tmp_path):
    root = plant(tmp_path / "data", 100)
    stream = BytesIO()
    Image.fromarray(RNG.integers(0, 255, (30, 30, 3), dtype=np.uint8)).save(stream, "JPEG")
    bad = {"a/x.jpg": stream.getvalue()[:500], "a/y.png": b"", "b/z.png": b"a text, renamed"}
    spoil(root, bad)
    dataset = load_dataset(root, GEOMETRY)
    assert len(dataset) == 100
    assert {each.file: each.reason for each in dataset.skipped} == {
        "a/x.jpg": "the file is damaged or cut short",
        "a/y.png": "the file is empty (zero bytes)",
        "b/z.png": "the content is not an image (PNG, JPEG, BMP, GIF, TIFF, WEBP, PPM are read)",
    }
    assert not set(bad) & set(dataset.files)
    assert dataset.notes == (
        "Skipped 3 images of 103 that cannot be read (a/x.jpg: the file is damaged or cut short; ...).",
    )
    for i, name in enumerate(dataset.files):
        np.testing.assert_array_equal(dataset[i][0], decode((root / name).read_bytes(), GEOMETRY))
    again = load_dataset(root, GEOMETRY)
    assert again.skipped == dataset.skipped


def test_too_many_bad_images_stop_with_the_list(tmp_path):
    root = plant(tmp_path / "data", 60)
    spoil(root, {f"a/bad{i:02d}.png": b"" for i in range(20)})
    with pytest.raises(DataError) as caught:
        load_dataset(root, GEOMETRY)
    text = str(caught.value)
    assert "20 of the 80 images" in text
    assert "more than the 5%" in text
    assert text.count("the file is empty") == 12
    assert "... and 8 more" in text
    assert len(load_dataset(root, GEOMETRY, max_bad=1).skipped) == 20


def test_no_readable_image(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    spoil(tmp_path, {"a/1.png": b"", "b/1.png": b"x"})
    with pytest.raises(DataError, match="2 of the 2 images"):
        load_dataset(tmp_path, GEOMETRY, max_bad=1)


def test_a_class_without_a_readable_file_is_named(tmp_path):
    root = plant(tmp_path / "data", 60)
    (root / "owl").mkdir()
    spoil(root, {"owl/1.png": b""})
    with pytest.raises(DataError, match="No image of the class 'owl'"):
        load_dataset(root, GEOMETRY)


def test_a_damaged_store_is_built_again(tmp_path):
    root = plant(tmp_path / "data")
    dataset = load_dataset(root, GEOMETRY)
    expected = dataset[:].copy()
    pixels = dataset.pixels.path
    pixels.write_bytes(pixels.read_bytes()[:1000])
    np.testing.assert_array_equal(load_dataset(root, GEOMETRY)[:], expected)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    root = plant(tmp_path / "data")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"Cannot write .*file.*set the environment variable SIGHTLINE_CACHE"):
        load_dataset(root, GEOMETRY)


def test_read_only_cache_is_read_but_not_written(tmp_path, monkeypatch):
    root = plant(tmp_path / "data")
    cache = tmp_path / "cache"
    load_dataset(root, GEOMETRY, cache=cache)

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied", str(cache))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(store_module, "FileLock", refuse)
    assert len(load_dataset(root, GEOMETRY, cache=cache)) == 20
    with pytest.raises(OutputError, match=r"permission denied.*SIGHTLINE_CACHE"):
        load_dataset(root, Geometry(size=(5, 5)), cache=cache)


def test_a_full_disk_means_decoding_on_the_fly(tmp_path, monkeypatch):
    root = plant(tmp_path / "data", 30)
    kept = load_dataset(root, GEOMETRY, cache=tmp_path / "kept")
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 4000}))
    cache = tmp_path / "cache"
    live = load_dataset(root, GEOMETRY, cache=cache)
    assert isinstance(live.pixels, LivePixels)
    assert (
        "The decoded images would take 0.0 GB and are not stored (the disk has no room for them)" in live.notes[0]
    )
    np.testing.assert_array_equal(live[:], kept[:])
    monkeypatch.setattr(store_module, "_build_store", lambda *_, **__: pytest.fail("looked at every image again"))
    assert len(load_dataset(root, GEOMETRY, cache=cache)) == 30
    assert sum(path.stat().st_size for path in (cache / "stores").rglob("*.npy")) < kept[:].nbytes


def test_live_decoding_equals_the_store(tmp_path):
    """A spoiled file, subsets, every kind of index, batches and another process: all as with the store."""
    root = plant(tmp_path / "data", 90)
    spoil(root, {"a/bad.png": b""})
    kept, live = load_dataset(root, GEOMETRY), load_dataset(root, GEOMETRY, keep=False)
    assert "(as asked)" in live.notes[-1]
    assert live.pixels.shape == kept.pixels.shape
    assert live.skipped == kept.skipped
    np.testing.assert_array_equal(live.digests, kept.digests)
    for name, column in kept.columns.items():
        np.testing.assert_array_equal(live.columns[name], column)
    mask = np.arange(90) % 3 == 0
    for some in (slice(None), slice(5, 9), np.array([7, 3, 7]), mask, 4, np.array([], np.int64)):
        np.testing.assert_array_equal(live[some], kept[some])
    part = np.array([80, 2, 41])
    np.testing.assert_array_equal(live.subset(part)[[2, 0]], kept.subset(part)[[2, 0]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(live))[[1, 2]], kept[[1, 2]])
    for one, two in zip(
        iterate_batches(live, 20, order=Shuffle(1)), iterate_batches(kept, 20, order=Shuffle(1)), strict=True
    ):
        assert torch.equal(one.pixels, two.pixels)
        assert torch.equal(one.labels, two.labels)


def test_a_file_lost_during_live_decoding_is_named(tmp_path):
    root = plant(tmp_path / "data", 10)
    live = load_dataset(root, GEOMETRY, keep=False)
    (root / "b/003.png").unlink()
    with pytest.raises(DataError, match=r"'b/003.png' could be read before and now cannot.*Bring it back"):
        live[:]


class Locked:
    """A reader whose first files the operating system does not open until the lock is gone."""

    def __init__(self, reader, lock: Path):
        self.reader, self.lock = reader, lock

    def read(self, key: int) -> bytes:
        if key < 2 and self.lock.exists():
            raise ImageError("the file cannot be opened (Permission denied)") from PermissionError(13, "no")
        return self.reader.read(key)


@pytest.mark.parametrize("keep", [True, False])
def test_a_file_that_could_not_be_opened_is_tried_again(tmp_path, keep):
    source = find(plant(tmp_path / "data", 60))
    lock = tmp_path / "lock"
    lock.touch()
    source = dataclasses.replace(source, reader=Locked(source.reader, lock))
    first = load_dataset(source, GEOMETRY, keep=keep)
    assert [each.reason for each in first.skipped] == ["the file cannot be opened (Permission denied)"] * 2
    assert len(load_dataset(source, GEOMETRY, keep=keep).skipped) == 2
    lock.unlink()
    again = load_dataset(source, GEOMETRY, keep=keep)
    assert again.skipped == ()
    for i in range(60):
        np.testing.assert_array_equal(again[i][0], decode(source.read(i), GEOMETRY))


def test_short_writes_are_completed(tmp_path, monkeypatch):
    root, write = plant(tmp_path / "data", 100), os.pwrite
    expected = load_dataset(root, GEOMETRY, cache=tmp_path / "whole")[:]
    monkeypatch.setattr(os, "pwrite", lambda target, data, at: write(target, data[:1000], at))
    monkeypatch.setattr(os, "pwritev", lambda target, pixels, at: write(target, pixels[0].cast("B")[:77], at))
    np.testing.assert_array_equal(load_dataset(root, GEOMETRY, cache=tmp_path / "short")[:], expected)


def test_leftovers_of_killed_builds_are_removed(tmp_path):
    """But not what another process is building at this moment."""
    folder = tmp_path / "cache/stores"
    for name in (".dead.x1", ".busy.x2"):
        (folder / name / "part").mkdir(parents=True)
    with FileLock(folder / "busy.lock"):
        load_dataset(plant(tmp_path / "data"), GEOMETRY, cache=tmp_path / "cache")
    assert not (folder / ".dead.x1").exists()
    assert (folder / ".busy.x2/part").exists()


def test_conversions_are_noted(tmp_path):
    """One note for each kind of picture that is not plain, with how many there are."""
    root = plant(tmp_path / "data", 40)
    picture = Image.fromarray(RNG.integers(0, 255, (20, 20, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(root / "a/turned.jpg", exif=exif)
    for i in range(3):
        frames = [Image.new("L", (9, 9), i), Image.new("L", (9, 9), 90)]
        frames[0].save(root / f"a/moving{i}.gif", save_all=True, append_images=frames[1:])
    picture.convert("CMYK").save(root / "b/inks.jpg")
    clear = picture.convert("RGBA")
    clear.putalpha(100)
    clear.save(root / "b/clear.png")
    picture.convert("RGBA").save(root / "b/opaque.png")  # is not said: nothing is lost
    for i in range(2):
        Image.fromarray(np.array([[100, 4000 + i]], np.uint16)).save(root / f"b/deep{i}.png")
    said = load_dataset(root, GEOMETRY).notes
    assert said == (
        "1 image is stored turned or mirrored: turned upright by EXIF.",
        "3 images are in several frames or pages: only the first is used.",
        "1 image is partly transparent: laid on white.",
        "1 image is in printers' inks (CMYK): turned into RGB without a colour profile.",
        "2 images have more than 8 bits a value: 0 becomes black and 65535 white (their own values go from 100 to "
        "4,001, which leaves them dark: --window 100:4001 shows their full contrast).",
    )
    windowed = load_dataset(root, dataclasses.replace(GEOMETRY, window=(100.0, 4001.0)))
    assert windowed.notes[-1].endswith("100 becomes black and 4001 white (their own values go from 100 to 4,001).")
    deep = windowed.files.tolist().index("b/deep1.png")
    assert (windowed[deep].min(), windowed[deep].max()) == (0, 255)


LOAD = """
import sys
from pathlib import Path
from sightline import data
from sightline.data import rows, store
from sightline.types import Geometry
if sys.argv[3] == "small":
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
build = store._build_store
def told(*arguments, **options):
    print("building", flush=True)
    return build(*arguments, **options)
store._build_store = told
if sys.argv[3] == "slow":
    import time
    read = rows.decode_with_header
    def slowly(*arguments):
        time.sleep(0.02)
        return read(*arguments)
    rows.decode_with_header = slowly
dataset = data.load_dataset(sys.argv[1], Geometry(size=(12, 10)), cache=Path(sys.argv[2]))
print(len(dataset), int(dataset[:].astype("int64").sum()), flush=True)
"""


def start(root: Path, cache: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", LOAD, str(root), str(cache), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_disk_that_fills_up_while_writing(tmp_path):
    """A file size limit is the nearest thing to a full disk that any user may set."""
    process = start(plant(tmp_path / "data"), tmp_path / "cache", "small")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "sightline.errors.OutputError: Cannot write" in errors
    assert "SIGHTLINE_CACHE" in errors
    assert stores(tmp_path / "cache") == []


def test_two_builds_of_one_store_at_once(tmp_path):
    root, cache = plant(tmp_path / "data", 100), tmp_path / "cache"
    processes = [start(root, cache, "slow") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    lines = [output.split("\n") for output, _ in outputs]
    assert sum("building" in each for each in lines) == 1
    assert lines[0][-2] == lines[1][-2]
    assert len(stores(cache)) == 1


def test_a_killed_build_leaves_nothing_half_made(tmp_path):
    root, cache = plant(tmp_path / "data", 300), tmp_path / "cache"
    process = start(root, cache, "slow")
    deadline = time.monotonic() + 60
    while not any((cache / "stores").glob(".*/*/pixels.npy")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert [name for name in stores(cache) if not name.startswith(".")] == []
    dataset = load_dataset(root, GEOMETRY, cache=cache)
    assert len(dataset) == 300
    np.testing.assert_array_equal(dataset[0][0], decode((root / dataset.files[0]).read_bytes(), GEOMETRY))
    assert len(stores(cache)) == 1  # the remains of the killed build are gone


def test_an_error_in_a_thread_ends_the_build(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(rows, "decode_with_header", fail)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="a fault of ours"):
        load_dataset(plant(tmp_path / "data", 200), GEOMETRY, cache=tmp_path / "cache")
    assert threading.active_count() == before
    assert stores(tmp_path / "cache") == []


def test_cache_folder_is_the_runtimes(tmp_path):
    source = find(plant(tmp_path / "data"))
    dataset = load_dataset(source, GEOMETRY)
    assert dataset.pixels.path.is_relative_to(runtime.cache_dir())


def test_real_archives(shared_data):
    dataset = load_dataset(find(shared_data / "cifar10_jpg.zip", limit=500), Geometry(size=(32, 32)))
    assert dataset.counts.tolist() == [50] * 10
    assert dataset.skipped == ()


@pytest.mark.parametrize(("pause", "most"), [(0.06, 6), (0.0, 600)])
def test_decoding_is_timed_on_few_images_where_they_are_slow(tmp_path, pause, most):
    source, read = find(plant(tmp_path / "data", 300)), []

    class Slow:
        """A reader that takes its time."""

        def read(self, key):
            read.append(key)
            time.sleep(pause)
            return source.reader.read(key)

    each = row_work.time_decoding(dataclasses.replace(source, reader=Slow()), GEOMETRY)
    assert 2 <= len(read) <= most
    assert len({*read}) == len(read) or not pause
    assert each >= pause / runtime.cpu_count()


def test_a_store_is_known_before_it_is_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    source = find(plant(tmp_path / "data"))
    assert not store_module.is_stored(source, GEOMETRY)
    load_dataset(source, GEOMETRY)
    assert store_module.is_stored(source, GEOMETRY)
    assert not store_module.is_stored(source, dataclasses.replace(GEOMETRY, size=(9, 9)))
    assert not store_module.is_stored(source.subset(np.arange(10)), GEOMETRY)
