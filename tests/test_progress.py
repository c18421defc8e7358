"""What users are told of long work: once, early, and only where it is much."""

import numpy as np
import pytest
from PIL import Image

from sightline import progress
from sightline.cli import main
from sightline.data import load_dataset
from sightline.types import Geometry


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until the test sets its ``now``."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "perf_counter", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("seconds", "disk", "wanted"),
    [
        (0.011, 0, ""),  # 11 s
        (0.5, 0, "Reading images: 1,000 in about 8.3 minutes, "),
        (9.0, 0, "Reading images: 1,000 in about 2.5 hours, "),
        (0.011, 2e9, "Reading images: 1,000 in about 0.2 minutes, 2.0 GB of disk in 'cache', "),
    ],
)
def test_only_much_work_is_announced_and_only_once(clock, capsys, tmp_path, seconds, disk, wanted):
    place = type(tmp_path)("cache")
    with progress.image_progress("Reading images", 1000, disk_bytes=disk, place=place) as advance:
        for _ in range(500):
            clock.now += 2 * seconds
            advance(2)
    announced = [line for line in capsys.readouterr().err.splitlines() if " in about " in line]
    assert len(announced) == bool(wanted)
    assert all(line.startswith(wanted) and line.endswith(" GB of memory so far.") for line in announced)


def write_images(folder, count=300):
    for i in range(count):
        file = folder / "ab"[i % 2] / f"{i:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    return folder


@pytest.fixture
def all_is_much(monkeypatch):
    monkeypatch.setattr(progress, "PACE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LARGE_SECONDS", 0.0)


def test_decoding_says_what_it_takes_of_the_disk(tmp_path, all_is_much, capsys):
    source = write_images(tmp_path / "data")
    kept = load_dataset(source, Geometry(size=(300, 400)), cache=tmp_path / "cache")
    said = capsys.readouterr().err
    assert "Decoding images: 300 in about " in said
    assert f"{kept[:].nbytes / 1e9:.1f} GB of disk in '{tmp_path / 'cache/stores'}'" in said
    load_dataset(source, Geometry(size=(300, 400)), cache=tmp_path / "other", keep=False)
    said = capsys.readouterr().err
    assert "Reading images: 300 in about " in said
    assert "GB of disk" not in said


def test_features_and_answers_of_many_images_say_what_they_take(tmp_path, all_is_much, capsys):
    source = write_images(tmp_path / "data")
    run = tmp_path / "run"
    words = ["--from-scratch", "--epochs", "1", "--model", "lenet5"]
    assert main(["train", str(source), "--out", str(run), *words]) == 0
    capsys.readouterr()
    assert main(["features", str(source), "--model", str(run), "--out", str(tmp_path / "features")]) == 0
    assert "Embedding images: 300 in about " in (said := capsys.readouterr().err)
    assert f"GB of disk in '{tmp_path / 'features'}'" in said
    assert main(["predict", str(run), str(source), "--format", "csv", "--out", str(tmp_path / "a.csv")]) == 0
    assert "Classifying images: 300 in about " in capsys.readouterr().err
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 301
    few = [str(file) for file in sorted((source / "a").iterdir())]
    assert main(["predict", str(run), *few, "--out", str(tmp_path / "b.csv"), "--format", "csv"]) == 0
    assert "Classifying" not in capsys.readouterr().err
