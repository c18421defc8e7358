"""Labels in a column or at a place in file names that the user names."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from sightline import sources
from sightline.errors import DataError
from sightline.sources import LabelRule, find

from .test_found_layouts import plant, said, split_counts

PETS = [f"{name}_{i}.png" for name in ("great_pyrenees", "tabby") for i in range(3)]


def by_pattern(place: Path, pattern: str):
    return find(place, rule=LabelRule(label_pattern=pattern))


@pytest.mark.parametrize(
    "pattern",
    ["{label}_{number}.png", "{label}_*.png", r"^(.+)_\d+\.png$", r"(?P<label>[a-z_]+)_(?P<number>\d+)"],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "table"])
def test_a_pattern_finds_labels_in_names(tmp_path, pattern, kind):
    place = plant(tmp_path / "pets", [*PETS, "readme.png"] if kind != "table" else PETS)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
            for name in (*PETS, "readme.png"):
                archive.write(place / name, f"pets/{name}")
        place = tmp_path / "pets.zip"
    if kind == "table":
        place = place / "list.csv"
        place.write_text("\n".join(["path,label", *(f"{name},?" for name in PETS)]))
    source = by_pattern(place, pattern)
    assert (source.classes, source.labels.tolist()) == (("great_pyrenees", "tabby"), [0, 0, 0, 1, 1, 1])
    if kind != "table":
        assert said(source, "Left out 1 image whose name does not fit", "readme.png")


def test_without_a_slash_folders_stay_the_splits(tmp_path):
    root = plant(tmp_path, [f"{part}/x/{c}-{i}.png" for part in ("train", "val") for c in "ab" for i in range(2)])
    source = by_pattern(root, "{label}-{number}.png")
    assert (source.classes, split_counts(source)) == (("a", "b"), {"train": 4, "val": 4})


@pytest.mark.parametrize(
    "pattern", ["{split}/{label}/*", r"^(?P<split>[^/]+)/(?P<label>[^/]+)/", "{split}/{label}/?.png"]
)
def test_with_a_slash_a_pattern_is_for_the_path(tmp_path, pattern):
    root = plant(tmp_path, [f"{part}/{c}/{i}.png" for part in ("train", "dev") for c in "ab" for i in range(2)])
    source = by_pattern(root, pattern)
    assert (source.classes, split_counts(source)) == (("a", "b"), {"train": 4, "val": 4})


def test_a_pattern_says_that_folders_are_classes(tmp_path):
    root = plant(
        tmp_path, [f"{c}/{year}/{i}.png" for c in ("good", "bad") for year in (2023, 2024) for i in range(2)]
    )
    with pytest.raises(DataError, match=r"parts of one set.*--label-pattern '\{label\}/\*'"):
        find(root)
    assert by_pattern(root, "{label}/*").classes == ("bad", "good")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("cat_*.png", "does not say where the label is: write {label}"),
        ("(a)(b)", "does not say where the label is"),
        ("(a", "no regular expression"),
        ("{label}:{number}.png", "No image of .* fits the label pattern .*the first is 'great_pyrenees_0.png'"),
        (r"(?P<label>[a-z]+)_.*", "only one class"),
    ],
)
def test_patterns_that_cannot_be_used(tmp_path, pattern, says):
    names = ["tabby_1.png", "tabby_2.png"] if says == "only one class" else PETS
    with pytest.raises(DataError, match=says):
        by_pattern(plant(tmp_path, names), pattern)


def test_a_split_that_is_no_word_for_one(tmp_path):
    root = plant(tmp_path, [f"fold{n}/{c}/1.png" for n in (1, 2) for c in "ab"])
    with pytest.raises(DataError, match=r"split of 'fold1/a/1.png' .* is 'fold1'.* must mean train"):
        by_pattern(root, "{split}/{label}/*")


COLUMNS = LabelRule(path_column="slide", label_column="grade")


def write_slides(root: Path) -> Path:
    plant(root, [f"a/{i}.png" for i in range(4)])
    rows = [f"a/{i}.png,{'lo' if i % 2 else 'hi'},x{i},other/{i}.png" for i in range(4)]
    (root / "slides.csv").write_text("\n".join(["slide,Grade,label,path", *rows]))
    return root


@pytest.mark.parametrize("place", ["slides.csv", "", "all.zip"])
def test_columns_by_name_go_before_usual_ones(tmp_path, place):
    root = write_slides(tmp_path)
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        for file in ("slides.csv", *(f"a/{i}.png" for i in range(4))):
            archive.write(root / file, file)
    source = find(root / place, rule=COLUMNS)
    assert (source.classes, source.labels.tolist()) == (("hi", "lo"), [0, 1, 0, 1])
    assert "label" in source.columns
    assert said(source, "column 'Grade'")


def test_columns_by_name_go_before_folders(tmp_path):
    root = plant(tmp_path, [f"{c}/{i}.png" for c in ("cat", "dog") for i in range(4)])
    rows = [f"{c}/{i}.png,{'near' if i % 2 else 'far'}" for c in ("cat", "dog") for i in range(4)]
    (root / "t.csv").write_text("\n".join(["path,distance", *rows]))
    assert find(root).classes == ("cat", "dog")
    assert find(root, rule=LabelRule(label_column="distance")).classes == ("far", "near")


@pytest.mark.parametrize("rule", [LabelRule(path_column="slides"), LabelRule("slide", "grades")])
def test_a_column_that_is_not_there(tmp_path, rule):
    root = write_slides(tmp_path)
    with pytest.raises(DataError, match=r"has no column '.*s'. Did you mean"):
        find(root / "slides.csv", rule=rule)
    with pytest.raises(DataError, match="holds no table for --path-column"):
        find(plant(tmp_path / "b", PETS), rule=rule)


def test_arrays_have_neither_columns_nor_names(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 8, 8), np.uint8), labels=np.arange(4))
    with pytest.raises(DataError, match=r"holds arrays.*leave --path-column"):
        find(tmp_path / "a.npz", rule=COLUMNS)
    with pytest.raises(DataError, match="holds arrays"):
        find("digits", rule=COLUMNS)


def test_an_archive_is_read_again_for_another_rule(tmp_path):
    root = plant(tmp_path / "d", [f"{c}/{k}-{i}.png" for c in ("cat", "dog") for k in "xy" for i in range(2)])
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for file in root.rglob("*.png"):
            archive.write(file, str(file.relative_to(root)))
    for _ in range(2):
        assert find(tmp_path / "d.zip").classes == ("cat", "dog")
        assert by_pattern(tmp_path / "d.zip", "{label}-{number}.png").classes == ("x", "y")
    assert LabelRule() == sources.USUAL_LABELS
