"""check: what is planted is found, and clean data are called clean."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data import as_text, audit, load, sample_sheet
from sightline.data.geometry import losses
from sightline.types import Geometry

RNG = np.random.default_rng(0)


def noise(path: Path, height: int = 10, width: int = 10, *, grey: bool = False, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if grey else (height, width, 3)
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8)).save(path, **options)


def said(findings, level: str) -> list[str]:
    return [remark.text for remark in findings.remarks if remark.level == level]


def test_clean_data_are_called_clean():
    findings = audit(load("digits", Geometry(size=(8, 8), channels=1)))
    assert findings.remarks == ()
    assert findings.values["images"] == 1797
    assert findings.values["per_class"]["3"] == 183
    assert findings.values["duplicates"] == 0
    assert findings.values["grey_share"] == 1
    assert "No problems found." in as_text(findings)
    json.dumps(findings.values, allow_nan=False)


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("messy")
    for i in range(40):
        noise(root / f"train/cat/{i}.png")
        if i < 12:
            noise(root / f"train/dog/{i}.png", grey=True)
            noise(root / f"test/cat/{i}.png")
            noise(root / f"test/dog/{i}.png")
    noise(root / "train/owl/1.png", 10, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(root / "train/owl/2.jpg", exif=exif)

    def copy(old: str, new: str) -> None:
        (root / new).write_bytes((root / old).read_bytes())

    copy("train/cat/1.png", "train/cat/1 copy.png")
    copy("train/cat/2.png", "train/dog/mistaken.png")
    copy("train/cat/3.png", "test/cat/leaked.png")
    (root / "train/cat/empty.png").write_bytes(b"")
    return root


def test_what_is_planted_is_found(messy):
    findings = audit(load(messy, Geometry(size=(10, 10))))
    values = findings.values
    assert values["unreadable"] == [{"file": "train/cat/empty.png", "reason": "the file is empty (zero bytes)"}]
    assert (values["duplicates"], values["duplicate_sets"], values["conflicting_sets"]) == (3, 3, 1)
    assert values["leaks"] == {"test in train": 1}
    assert values["imbalance"] == pytest.approx(54 / 2)
    assert values["tiny_classes"] == ["owl"]
    assert values["rotated"] == 1
    assert values["width"] == {"min": 10, "median": 10, "max": 40}
    assert values["per_class"]["owl"] == {"train": 2, "test": 0}
    assert 0 < values["grey_share"] < 1
    problems = " ".join(said(findings, "problem"))
    assert "two classes at once" in problems
    assert "1 image of test is also in train" in problems
    warnings = " ".join(said(findings, "warning"))
    assert "cannot be read" in warnings
    assert "27.0 times" in warnings
    assert "fewer than 10 images" in warnings
    assert [remark.level for remark in findings.remarks] == sorted(
        (remark.level for remark in findings.remarks), key=["problem", "warning", "note"].index
    )
    examples = {example for remark in findings.remarks for example in remark.examples}
    assert "test/cat/leaked.png" in examples
    assert any("mistaken.png (dog)" in e and "2.png (cat)" in e for e in examples)
    json.dumps(values, allow_nan=False)
    text = as_text(findings)
    assert "PROBLEM:" in text
    assert "test/cat/leaked.png" in text


def test_geometry_that_tells_classes_apart_is_a_warning(tmp_path):
    for i in range(12):
        noise(tmp_path / f"wide/{i}.png", 10, 30)
        noise(tmp_path / f"square/{i}.png", 10, 10)
    for fit in ("squash", "crop", "pad"):
        findings = audit(load(tmp_path, Geometry(size=(8, 8), fit=fit)))
        (text,) = said(findings, "warning")
        assert "in class 'wide'" in text
        assert "'square'" in text
    assert findings.values["geometry"]["padding"]["per_class"] == {
        "square": 0,
        "wide": pytest.approx(2 / 3, abs=1e-3),
    }


def test_losses_by_hand():
    height, width = np.array([100, 100, 50]), np.array([100, 200, 25])
    square = {fit: losses(height, width, Geometry(size=(60, 60), fit=fit)) for fit in ("squash", "crop", "pad")}
    np.testing.assert_allclose(square["squash"]["bend"].amounts, [1, 2, 2])
    np.testing.assert_allclose(square["crop"]["cropped"].amounts, [0, 0.5, 0.5])
    np.testing.assert_allclose(square["pad"]["padding"].amounts, [0, 0.5, 0.5])
    assert square["crop"]["enlarged"].amounts.tolist() == [0, 0, 1]
    assert square["pad"]["enlarged"].amounts.tolist() == [0, 0, 1]


def test_padding_equals_what_decode_leaves_black(tmp_path):
    for name, size in (("a/1.png", (30, 60)), ("b/1.png", (45, 20))):
        noise(tmp_path / name, *size)
        path = tmp_path / name
        Image.fromarray(np.full((*size, 3), 255, np.uint8)).save(path)
    geometry = Geometry(size=(40, 40), fit="pad")
    dataset = load(tmp_path, geometry)
    black = (dataset[:] == 0).all(axis=-1).mean(axis=(1, 2))
    expected = losses(dataset.columns["height"], dataset.columns["width"], geometry)["padding"].amounts
    np.testing.assert_allclose(black, expected, atol=0.02)


def test_many_unreadable_files_are_a_problem(tmp_path):
    for i in range(12):
        noise(tmp_path / f"a/{i}.png")
        noise(tmp_path / f"b/{i}.png")
        (tmp_path / f"a/bad{i}.png").write_bytes(b"")
    findings = audit(load(tmp_path, Geometry(size=(10, 10)), max_bad=1))
    (problem,) = said(findings, "problem")
    assert problem.startswith("12 images of 36 cannot be read")
    assert len(findings.values["unreadable"]) == 12


def test_sample_sheet():
    pytest.importorskip("sightline.pictures")
    sheet = sample_sheet(load("shapes:40", Geometry(size=(32, 32))), per_class=3)
    assert isinstance(sheet, Image.Image)
    assert sheet.width > 3 * 32
