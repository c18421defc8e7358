"""Photos judged by kept features: planted wrong labels, mirrored copies, and a picture of something else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from sightline.cli import main
from sightline.comparison import are_photos, check_features, find_label_issues
from sightline.data import load_dataset
from sightline.features.embedding import Embedder
from sightline.types import Geometry

GEOMETRY = Geometry(size=(64, 64), channels=3)


def draw(kind, rng):
    """A disc or bars of random colours, place and size, on noise."""
    image = Image.fromarray(rng.integers(90, 160, (72, 72, 3), dtype=np.uint8))
    pen, colour = ImageDraw.Draw(image), tuple(rng.integers(0, 256, 3).tolist())
    x, y = rng.integers(5, 30, 2).tolist()
    if kind == "discs":
        pen.ellipse((x, y, x + 35, y + 35), fill=colour)
    else:
        for at in range(x, x + 36, 9):
            pen.rectangle((at, y, at + 4, y + 35), fill=colour)
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 pictures of each class; a mirrored copy under the other label, and a gradient."""
    place, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind in ("discs", "bars"):
        (place / kind).mkdir()
        for number in range(40):
            draw(kind, rng).save(place / kind / f"{number:02}.png")
    with Image.open(place / "discs" / "07.png") as first:
        ImageOps.mirror(first).save(place / "bars" / "mirrored.png")
    Image.linear_gradient("L").resize((72, 72)).convert("RGB").save(place / "discs" / "strange.png")
    return place


@pytest.fixture(scope="module")
def photos(folder):
    return load_dataset(str(folder), GEOMETRY)


def test_small_and_grey_pictures_are_no_photos(photos):
    assert are_photos(photos)
    assert not are_photos(replace(photos, geometry=replace(GEOMETRY, size=(32, 32))))
    assert not are_photos(load_dataset("digits", Geometry(size=(64, 64), channels=1)))


@pytest.mark.parametrize("by", [None, "lda", "probe:penalty=0.1"])
def test_planted_labels_are_found_by_a_head_on_kept_features(photos, by, monkeypatch):
    labels, where = photos.labels.copy(), np.array([3, 30, 50, 70])
    labels[where] = 1 - labels[where]
    changed = replace(photos, labels=labels)
    found = find_label_issues(changed, by, probe=by is None)
    assert "kept features" in found.sentence
    assert np.isin(where, [one.index for one in found.issues]).sum() >= 2
    assert found.accuracy.value > 0.85
    assert (found.probe is not None) == (by is None)
    monkeypatch.setattr(Embedder, "embed_batch", lambda *_: pytest.fail("embedded again"))
    assert find_label_issues(changed, by, probe=by is None).issues == found.issues


def test_a_mirrored_copy_and_a_strange_picture_are_named(photos):
    found = check_features(photos)
    pairs = [{file.rpartition("/")[2] for file in pair["files"]} for pair in found.values["lookalikes"]]
    assert {"07.png", "mirrored.png"} in pairs
    assert found.values["outliers"][0]["file"].endswith("strange.png")
    disputed = next(remark for remark in found.remarks if "two labels" in remark.text)
    assert disputed.level == "warning"


def test_the_command_reads_photos_as_training_does(folder, tmp_path, capsys):
    main(["check", str(folder), "--deep", "--size", "64", "--out-dir", str(tmp_path / "out"), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["geometry"]["fit"] == "crop"
    assert said["suspects"]["by"] == "probe on kept features"
    assert said["features"]["outliers"]
    assert (tmp_path / "out" / "suspects.csv").is_file()
