"""export from a shell, the file given back to evaluate and predict, and the script for those without Sightline."""

import importlib.util
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.tiny_classifiers import SETTLED
from sightline.data import decode, load_dataset
from sightline.formats import export, open_exported
from sightline.training import Recipe, train
from sightline.types import Geometry

SCRIPT = Path(__file__).parents[2] / "examples" / "classify_onnx.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(model="lenet5", size=16, limit=400, epochs=2, batch_size=32, **SETTLED)
    return train("digits", recipe, out=tmp_path_factory.mktemp("run") / "digits").folder


@pytest.fixture(scope="module")
def file(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("file") / "model.onnx"
    export(run, out)
    return out


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("classify_onnx", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_export_prints_the_comparison(cli, run, tmp_path):
    answer = cli("export", run, "--out", tmp_path / "m.onnx", "--limit", 20)
    assert answer.code == 0, answer.err
    assert re.search(r"Compared on \d\d of the 40 validation images, each class in its share", answer.out)
    assert "The same prediction for 100.00%" in answer.out
    assert "sightline predict" in answer.out
    value = json.loads(cli("export", run, "--out", tmp_path / "n.onnx", "--json").out)
    assert value["agreement"] == 1
    assert value["accuracy"] == value["accuracy_before"]
    assert {"size_mb", "latency", "largest_difference", "sample", "intervals"} <= value.keys()
    assert (tmp_path / "n.onnx").is_file()


def test_a_file_is_evaluated_and_predicts(cli, run, file, tmp_path):
    images = load_dataset("digits", Geometry(size=(16, 16), channels=1))
    ours, theirs = (json.loads(cli("evaluate", one, "digits", "--json").out) for one in (run, file))
    assert theirs["accuracy"] == ours["accuracy"]
    assert theirs["log_loss"] == pytest.approx(ours["log_loss"], abs=1e-4)
    assert "trained or validated on 341 of these" in ours["remarks"].pop()  # which a file cannot know
    assert theirs["remarks"] == ours["remarks"]
    Image.fromarray(images[:1][0, ..., 0]).save(tmp_path / "x.png")
    rows = [json.loads(cli("predict", one, tmp_path / "x.png", "--json").out) for one in (run, file)]
    assert rows[0]["predictions"][0]["label"] == rows[1]["predictions"][0]["label"]
    answer = cli("evaluate", file)
    assert answer.code == 2
    assert "name the images" in answer.err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--to", "onxx", "--out", "m.onnx"), 2, "Did you mean 'onnx'"),
        (("--out", "m.txt"), 2, "m.onnx"),
        (("--to", "openvino", "--out", "m"), 3, "sightline[openvino]"),
        (("--data", "nowhere", "--out", "m.onnx"), 2, "nowhere"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(words, code, text, cli, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    answer = cli("export", run, *words)
    assert answer.code == code
    assert text in answer.err
    assert "Traceback" not in answer.err
    assert not list(tmp_path.iterdir())


# The script.


def jpeg(size, orientation=1, mode="RGB", seed=0):
    """A smooth picture with an edge."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[274] = orientation
    small.convert(mode).save(stream, "jpeg", quality=92, exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("size", [(40, 56), (64, 48), (301, 200), (1000, 431), (64, 64)], ids=str)
@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
@pytest.mark.parametrize(("orientation", "channels"), [(1, 3), (6, 3), (3, 1)])
def test_the_script_reads_pictures_as_we_do(size, fit, orientation, channels, script):
    geometry = Geometry(size=(48, 64), resize_mode=fit, channels=channels)
    data = jpeg(size, orientation)
    ours = decode(data, geometry).astype(int)
    theirs = script.pixels(io.BytesIO(data), geometry.as_json()).astype(int)
    assert theirs.shape == ours.shape
    assert np.abs(theirs - ours).max() <= 3
    assert np.abs(theirs - ours).mean() < 0.3


@pytest.mark.parametrize(
    "change",
    [{"interpolation": "lanczos"}, {"interpolation": "bicubic"}, {"interpolation": "box"}, {"exif": False}],
    ids=str,
)
def test_the_script_follows_the_geometry(change, script):
    geometry = Geometry(size=(32, 32), **change)
    data = jpeg((150, 90), 8)
    ours, theirs = (
        decode(data, geometry).astype(int),
        script.pixels(io.BytesIO(data), geometry.as_json()).astype(int),
    )
    assert np.abs(theirs - ours).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "I", "F", "1"])
@pytest.mark.parametrize(
    "change", [{}, {"channels": 1, "resize_mode": "pad"}, {"window": (100.0, 40_000.0)}], ids=str
)
def test_the_script_lays_on_white_and_windows_as_we_do(mode, change, script):
    values = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    image = Image.fromarray(values)
    deep = {"I;16": np.uint16(257), "I": np.int32(200), "F": np.float32(1 / 255)}
    image = Image.fromarray(values[..., 0] * deep[mode]) if mode in deep else image.convert(mode)
    stream, geometry = io.BytesIO(), Geometry(**{"size": (32, 32), **change})
    image.save(stream, "tiff" if mode in ("I", "F") else "png")
    ours, theirs = (
        decode(stream.getvalue(), geometry).astype(int),
        script.pixels(stream, geometry.as_json()).astype(int),
    )
    assert np.abs(theirs - ours).max() <= 2


def test_the_script_is_short_and_needs_nothing_of_ours(file, tmp_path):
    lines = [line for line in SCRIPT.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 32
    assert not any("import sightline" in line or "import torch" in line for line in lines)
    (tmp_path / "x.jpg").write_bytes(jpeg((30, 20)))
    blocked = "import sys; sys.modules['torch'] = sys.modules['sightline'] = None; import runpy; "
    call = f"sys.argv = ['', {str(file)!r}, 'x.jpg']; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", blocked + call], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = open_exported(file)
    answer = found.probabilities(decode((tmp_path / "x.jpg").read_bytes(), found.geometry)[None])[0]
    assert done.stdout.startswith(f"x.jpg: {found.classes[answer.argmax()]} (")


@pytest.mark.parametrize(
    ("archive", "geometry"),
    [("photos_jpg.zip", {"size": (48, 48), "resize_mode": "crop"}), ("cifar10_jpg.zip", {"size": (32, 32)})],
)
def test_labels_of_the_script_are_ours_on_real_pictures(archive, geometry, shared_data, script):
    """A small form of benchmarks/export_parity.py: pixels, of which labels are made."""
    from sightline.sources import find

    source, geometry = find(shared_data / archive, limit=60), Geometry(**geometry)
    apart = []
    for row in range(len(source)):
        data = source.read(row)
        theirs = script.pixels(io.BytesIO(data), geometry.as_json()).astype(int)
        apart.append(np.abs(theirs - decode(data, geometry)))
    assert len(apart) >= 40
    assert np.mean(apart) < 0.1
    assert np.max(apart) <= 3


KILLED = """
import os, signal, sys
from pathlib import Path
from sightline import formats
from sightline.formats import exporting

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

run, out, moment, over = sys.argv[1:]
setattr(exporting, moment, die)
formats.export(run, Path(out), overwrite=over == "over")
"""
"""Exports, and is killed when it comes to the named function: the file is written by then, and not yet compared."""


@pytest.mark.parametrize("over", ["over", "new"])
def test_a_killed_export_leaves_the_old_file_or_none(over, run, file, tmp_path):
    out, old = tmp_path / "model.onnx", file.read_bytes()
    if over == "over":
        out.write_bytes(old)
    words = [sys.executable, "-c", KILLED, run, out, "compare_answers", over]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name[0] != "."] == ["model.onnx"] * (over == "over")
    assert over == "new" or out.read_bytes() == old
    assert export(run, out, overwrite=True).agreement == 1
    assert open_exported(out).classes == open_exported(file).classes
