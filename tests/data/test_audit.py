"""check: what is planted is found, and clean data are called clean."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data import (
    audit,
    draw_sample_sheet,
    find_faulty_images,
    format_audit,
    load_dataset,
    split,
    write_clean_manifest,
)
from sightline.data.geometry import geometry_losses
from sightline.errors import DataError
from sightline.types import Geometry

RNG = np.random.default_rng(0)


def noise(path: Path, height: int = 10, width: int = 10, *, grey: bool = False, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if grey else (height, width, 3)
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8)).save(path, **options)


def said(findings, level: str) -> list[str]:
    return [remark.text for remark in findings.remarks if remark.level == level]


def test_clean_data_has_no_remarks():
    findings = audit(load_dataset("digits", Geometry(size=(8, 8), channels=1)))
    assert findings.remarks == ()
    assert findings.values["images"] == 1797
    assert findings.values["per_class"]["3"] == 183
    assert findings.values["duplicates"] == 0
    assert findings.values["grey_share"] == 1
    assert "No problems found." in format_audit(findings)
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


def test_planted_faults_are_found(messy):
    findings = audit(load_dataset(messy, Geometry(size=(10, 10))))
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
    text = format_audit(findings)
    assert "PROBLEM:" in text
    assert "test/cat/leaked.png" in text


def test_geometry_that_distinguishes_classes_is_a_warning(tmp_path):
    for i in range(12):
        noise(tmp_path / f"wide/{i}.png", 10, 30)
        noise(tmp_path / f"square/{i}.png", 10, 10)
    for fit in ("squash", "crop", "pad"):
        findings = audit(load_dataset(tmp_path, Geometry(size=(8, 8), resize_mode=fit)))
        (text,) = said(findings, "warning")
        assert "in class 'wide'" in text
        assert "'square'" in text
    assert findings.values["geometry"]["padding"]["per_class"] == {
        "square": 0,
        "wide": pytest.approx(2 / 3, abs=1e-3),
    }


def test_losses_by_hand():
    height, width = np.array([100, 100, 50]), np.array([100, 200, 25])
    square = {
        fit: geometry_losses(height, width, Geometry(size=(60, 60), resize_mode=fit))
        for fit in ("squash", "crop", "pad")
    }
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
    geometry = Geometry(size=(40, 40), resize_mode="pad")
    dataset = load_dataset(tmp_path, geometry)
    black = (dataset[:] == 0).all(axis=-1).mean(axis=(1, 2))
    expected = geometry_losses(dataset.columns["height"], dataset.columns["width"], geometry)["padding"].amounts
    np.testing.assert_allclose(black, expected, atol=0.02)


def test_many_unreadable_files_are_a_problem(tmp_path):
    for i in range(12):
        noise(tmp_path / f"a/{i}.png")
        noise(tmp_path / f"b/{i}.png")
        (tmp_path / f"a/bad{i}.png").write_bytes(b"")
    findings = audit(load_dataset(tmp_path, Geometry(size=(10, 10)), max_bad=1))
    (problem,) = said(findings, "problem")
    assert problem.startswith("12 images of 36 cannot be read")
    assert len(findings.values["unreadable"]) == 12


def test_sample_sheet():
    pytest.importorskip("sightline.pictures")
    sheet = draw_sample_sheet(load_dataset("shapes:40", Geometry(size=(32, 32))), per_class=3)
    assert isinstance(sheet, Image.Image)
    assert sheet.width > 3 * 32


@pytest.fixture(scope="module")
def resembling(tmp_path_factory) -> Path:
    """Given parts with copies, near duplicates across them, two labels for one picture, a broken file."""
    root = tmp_path_factory.mktemp("resembling")
    for part, count in (("train", 8), ("test", 4)):
        for name in "ab":
            for i in range(count):
                noise(root / part / name / f"{i}.png", 40, 40)
    for name in ("train/a/near.jpg", "test/b/near.jpg"):  # of an image of the other part
        other = root / {"train/a/near.jpg": "test/a/0.png", "test/b/near.jpg": "train/b/0.png"}[name]
        Image.open(other).save(root / name, quality=85)
    shutil.copy(root / "train/a/3.png", root / "train/a/copy.png")
    shutil.copy(root / "train/a/4.png", root / "test/a/leaked.png")
    shutil.copy(root / "train/a/5.png", root / "train/b/wrong.png")
    Image.open(root / "train/b/6.png").save(root / "train/b/6 again.jpg", quality=90)
    (root / "train/b/broken.png").write_bytes(b"not an image")
    return root


SIZE = Geometry(size=(40, 40))


def test_near_duplicates_are_found_and_their_leaks(resembling):
    findings = audit(load_dataset(resembling, SIZE))
    values = findings.values
    assert (values["duplicates"], values["near_duplicates"]) == (3, 3)
    assert values["leaks"] == {"test in train": 1}
    assert values["near_leaks"] == {"test in train": 2}
    (text,) = (text for text in said(findings, "problem") if "nearly" in text)
    assert text.startswith("2 images of test are nearly the same in train: remove them from one")
    (remark,) = (r for r in findings.remarks if "nearly repeat another one" in r.text)
    assert remark.text.startswith("3 images nearly repeat")
    assert any({"train/b/6.png", "train/b/6 again.jpg"} == set(e.split(" ~ ")) for e in remark.examples)
    json.dumps(values, allow_nan=False)


def test_faulty_images_by_hand(resembling):
    data = load_dataset(resembling, SIZE)
    name = data.files.tolist()
    found = {name[i]: (what, name[other]) for i, (what, other) in find_faulty_images(data).items()}
    copies = ({"train/a/3.png", "train/a/copy.png"} & set(found)).pop()
    assert found.pop(copies)[0] == "an exact copy of"
    assert found == {
        "train/a/4.png": ("an exact copy of", "test/a/leaked.png"),
        "train/a/5.png": ("the same picture under another label as", "train/b/wrong.png"),
        "train/b/wrong.png": ("the same picture under another label as", "train/a/5.png"),
        "train/a/near.jpg": ("nearly the same picture as", "test/a/0.png"),
        "train/b/0.png": ("nearly the same picture as", "test/b/near.jpg"),
    }


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_a_clean_list_loads_without_the_faulty_images(resembling, tmp_path, place):
    """And the data are as they were."""
    before = {path: path.read_bytes() for path in resembling.rglob("*") if path.is_file()}
    data = load_dataset(resembling, SIZE)
    out = (resembling if place == "beside" else tmp_path) / "clean.csv"
    counts = write_clean_manifest(data, resembling, out)
    assert counts == {"kept": len(data) - 6, "unreadable": 1, "copies": 2, "disputed": 2, "leaks": 2}
    clean = load_dataset(out, SIZE)
    assert len(clean) == len(data) - 6
    values = audit(clean).values
    assert (values["duplicates"], values["leaks"], values["near_leaks"], values["unreadable"]) == (0, {}, {}, [])
    assert (clean.columns["split"] == "test").sum() == 10
    assert clean.classes == data.classes
    assert split(clean).notes[0].startswith("The data has no validation split")
    with out.with_name("clean.removed.csv").open(newline="") as stream:
        removed = {row["path"]: row["reason"] for row in csv.DictReader(stream)}
    assert len(removed) == 7
    assert removed["train/b/broken.png"].startswith("unreadable: the content is not an image")
    assert removed["train/a/near.jpg"] == "nearly the same picture as test/a/0.png"
    for path in (out, out.with_name("clean.removed.csv")):
        path.unlink()
    assert before == {path: path.read_bytes() for path in resembling.rglob("*") if path.is_file()}


def test_a_clean_list_of_a_list_keeps_its_columns(resembling, tmp_path):
    lines = ["path;label;patient"] + [f"{resembling}/train/{c}/{i}.png;{c};p{i}" for c in "ab" for i in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    write_clean_manifest(load_dataset(tmp_path / "list.csv", SIZE), tmp_path / "list.csv", tmp_path / "sub.tsv")
    clean = load_dataset(tmp_path / "sub.tsv", SIZE)
    assert clean.columns["patient"].tolist() == ["p0", "p1", "p2"] * 2


def test_an_archive_has_no_clean_list(resembling, tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "data"), "zip", resembling))
    with pytest.raises(DataError, match=r"are not files of their own, which a table could name: unpack it"):
        write_clean_manifest(load_dataset(archive, SIZE), archive, tmp_path / "clean.csv")
    with pytest.raises(DataError, match="'digits' are not files"):
        write_clean_manifest(
            load_dataset("digits", Geometry(size=(8, 8), channels=1)), "digits", tmp_path / "clean.csv"
        )
    assert not (tmp_path / "clean.csv").exists()


def test_check_writes_a_clean_list(cli, resembling, tmp_path):
    answer = cli("check", resembling, "--size", "40", "--out", tmp_path / "clean.csv")
    assert answer.code == 0, answer.err
    assert (
        "24 images to keep; left out: 1 unreadable, 2 exact copies, 2 under two labels, 2 nearly the" in answer.out
    )
    assert f"sightline train {tmp_path}/clean.csv" in answer.out
    answer = cli("check", tmp_path / "clean.csv", "--size", "40", "--json", "--out", tmp_path / "again.csv")
    assert json.loads(answer.out)["clean"] == {"kept": 24, "unreadable": 0, "copies": 0, "disputed": 0, "leaks": 0}


def labelled(tmp_path: Path, labels: list[str], column: str = "note", values: list[str] | None = None):
    """The audit of a table with these labels, and one more column."""
    rows = ["\t".join(("path", "label", column))]
    for i, label in enumerate(labels):
        noise(tmp_path / f"{i}.png")
        rows.append("\t".join((f"{i}.png", label, values[i] if values else "x")))
    (tmp_path / "t.tsv").write_text("\n".join(rows))
    return audit(load_dataset(tmp_path / "t.tsv", Geometry(size=(8, 8))))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["Cat", "cat", "dog"], "differ in case"),
        (["hot dog", "hot_dog", "cat"], "differ in case"),
        (["\ufb01g", "fig", "cat"], "differ in case"),
        (["7", "007", "8"], "zeros only"),
        (["a", "b", "a|b"], "several labels at once"),
        (["a|c", "b|c", "d"], "several labels at once"),
        (["a", "b", "a, b"], "several labels at once"),
        (["['a', 'b']", "['c']", "d"], "several labels at once"),
        (["train", "test"], "parts of a data set"),
        (["images_001", "images_002"], "parts of a data set"),
        ([f"x{i}" for i in range(12)], "12 classes for"),
    ],
)
def test_labels_that_ask_another_question(tmp_path, labels, says):
    repeat = 1 if len(labels) > 9 else 4
    findings = labelled(tmp_path, labels * repeat)
    assert any(says in text for text in said(findings, "problem"))


@pytest.mark.parametrize(
    "labels", [["Paris, Texas", "Paris, France"], ["train", "bus"], ["C", "C++"], ["part", "whole"]]
)
def test_labels_that_only_look_odd(tmp_path, labels):
    problems = said(labelled(tmp_path, labels * 12), "problem")
    assert not [text for text in problems if "labels at once" in text or "parts of" in text or "case" in text]


@pytest.mark.parametrize(
    ("column", "values", "warns"),
    [
        ("patient_id", "aabbccdd", True),
        ("LesionId", "aabbccdd", True),
        ("patient_id", "abcdefgh", False),
        ("patient_id", "aaaaaaaa", False),
        ("group", "aabbccdd", False),
        ("colour", "aabbccdd", False),
    ],
)
def test_a_column_that_should_be_a_group(tmp_path, column, values, warns):
    warnings = said(labelled(tmp_path, ["a", "b"] * 4, column, list(values)), "warning")
    assert any(f"--group '{column}'" in text for text in warnings) == warns
