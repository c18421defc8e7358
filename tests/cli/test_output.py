"""Output in any encoding, and images by any name or pattern: never a traceback, and exit 2 where nothing was read."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.classifier import Classifier
from sightline.cli import main
from sightline.cli.output import escape_in_streams
from sightline.evidence import NO_PLOTS
from sightline.models import build, parse_architecture
from sightline.preprocessing import Preprocessing
from sightline.sources import list_images
from sightline.types import Geometry

CLASSES = ("\u732b", "\u00e9meu", "dog \U0001f415")
"""Outside of cp1252, inside of it, and outside of the first 65,536 characters."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    plan = parse_architecture("mlp", classes=3, channels=3, size=(8, 8))
    return Classifier(
        Preprocessing([]),
        build(plan),
        architecture=plan,
        classes=CLASSES,
        geometry=Geometry(size=(8, 8)),
    ).save(tmp_path_factory.mktemp("bundle") / "bundle")  # fmt: skip


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Folders of images, among them text files, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("photos/cat/a.png", "photos/cat/b.jpg", "photos/dog/c.png", "photos/d.png")):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)).save(path)
    for name in ("photos/notes.txt", "photos/cat/labels.csv"):
        (tmp_path / name).write_text("a note")
    return tmp_path / "photos"


class Output(io.TextIOWrapper):
    """Stdout of an encoding."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    @property
    def written(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "latin-1", "ascii", "shift_jis"])
def test_every_format_is_written_in_any_encoding(bundle, photos, encoding, monkeypatch):
    for words in ([], ["--json"], ["--format", "jsonl"], ["--format", "csv"]):
        stdout = Output(encoding)
        monkeypatch.setattr("sys.stdout", stdout)
        assert main(["predict", str(bundle), str(photos / "d.png"), "--device", "cpu", *words]) == 0
        if "--json" in words:
            top = json.loads(stdout.written)["predictions"][0]["top"]
            assert {one["label"] for one in top} == set(CLASSES)  # nothing is lost
        elif "jsonl" in words:
            assert {one["label"] for one in json.loads(stdout.written)["top"]} == set(CLASSES)
        else:
            assert ("\u732b" if encoding in ("utf-8", "shift_jis") else "\\u732b") in stdout.written


def test_names_of_any_bytes_are_written(bundle, photos, monkeypatch):
    odd = os.fsdecode(bytes(photos) + b"/\xff.png")
    (photos / "d.png").rename(odd)
    stdout = Output("utf-8")
    monkeypatch.setattr("sys.stdout", stdout)
    assert main(["predict", str(bundle), odd, "--json"]) == 0
    assert json.loads(stdout.written)["predictions"][0]["file"] == odd
    for kind in ("csv", "jsonl", "text"):
        assert main(["predict", str(bundle), odd, "--format", kind, "--out", "answers"]) == 0
        assert "\\udcff.png" in Path("answers").read_text("utf-8")


def test_escapes_are_those_of_json():
    stream = Output("ascii")
    escape_in_streams(stream, io.StringIO())
    stream.write('"\u00e9 \u732b \U0001f415 \udcff"')
    assert stream.written == r'"\u00e9 \u732b \ud83d\udc15 \udcff"'


def test_a_pattern_means_what_a_shell_makes_of_it(photos):
    names = ["photos/cat/a.png", "photos/cat/b.jpg", "photos/d.png", "photos/dog/c.png"]
    assert list_images("photos/*") == names
    assert sorted(list_images("photos/**")) == sorted(names)  # each image once
    assert list_images("photos/c*") == list_images("photos/cat")
    assert list_images("photos/{dog,cat}") == ["photos/dog/c.png", "photos/cat/a.png", "photos/cat/b.jpg"]
    assert list_images("photos/cat/*.{jpg,png}") == ["photos/cat/b.jpg", "photos/cat/a.png"]
    assert list_images("photos/*.txt") == ["photos/notes.txt"]  # what was asked for, and nothing else matches
    assert list_images("photos/*.gif") == []


def test_a_pattern_may_begin_at_home_and_a_name_may_look_like_a_pattern(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos))
    assert list_images("~/d.*") == [str(photos / "d.png")]
    (photos / "d.png").rename(photos / "d[1]{a,b}.png")
    assert list_images("photos/d[1]{a,b}.png") == ["photos/d[1]{a,b}.png"]


@pytest.mark.parametrize(
    "words", [("absent.png",), ("absent.png", "gone.png"), ("photos/notes.txt",), ("photos/*.txt",)]
)
def test_exit_2_where_no_image_could_be_read(bundle, photos, words, capsys):
    assert main(["predict", str(bundle), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out.count("could not be read") == len(words)  # the rows are written, with their reasons
    assert captured.err.count("\n") == 1
    assert main(["predict", str(bundle), *words, "--format", "csv", "--out", "rows.csv"]) == 2
    assert len(list(csv.DictReader(io.StringIO(Path("rows.csv").read_text("utf-8"))))) == len(words)


def test_exit_0_where_some_image_could_be_read(bundle, photos, capsys):
    assert main(["predict", str(bundle), "absent.png", "photos/d.png"]) == 0
    assert capsys.readouterr().out.count("\n") == 2


def test_a_budget_that_is_over_leaves_out_what_can_be_drawn_later(tmp_path, capsys):
    run, small = tmp_path / "run", ["--model", "mlp", "--size", "8", "--limit", "300"]
    assert main(["train", "digits", "--budget", "0.1s", "--out", str(run), *small]) == 0
    said = capsys.readouterr()
    assert NO_PLOTS in said.err
    assert "latency was measured for 0.1 s" in said.out
    assert NO_PLOTS in (run / "report.html").read_text()
    assert not (run / "roc.png").exists()
    assert main(["report", str(run)]) == 0
    assert NO_PLOTS not in (run / "report.html").read_text()
    assert (run / "roc.png").exists()
