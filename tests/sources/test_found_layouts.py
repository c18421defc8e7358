"""Folders and tables as people download them: read for what they are, or refused with what was found."""

import gzip
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from sightline.errors import DataError, ImageError
from sightline.sources import LabelRule, find
from sightline.sources.layout import parse_split

CLASSES = ("cats", "dogs", "owls")


def plant(root: Path, names) -> Path:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.new("L", (8, 8), value % 256).save(stream, "PNG")
        (root / name).write_bytes(stream.getvalue())
    return root


def classes_in(*parts: str) -> list[str]:
    return [f"{part}/{name}/{i}.png" for part in parts for name in CLASSES for i in range(2)]


def split_counts(source) -> dict[str, int]:
    splits = source.columns["split"].tolist()
    return {name: splits.count(name) for name in sorted(set(splits))}


def said(source, *words: str) -> bool:
    return any(all(word in note for word in words) for note in source.notes)


# splits by any usual name


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("train_images", "test_images"),
        ("asl_alphabet_train/asl_alphabet_train", "asl_alphabet_test/asl_alphabet_test"),
        ("Training", "Testing"),
        ("train2017", "test2017"),
        ("flowers/TrainingData", "flowers/TestData"),
        ("outer/inner/train/images", "outer/inner/test/images"),
    ],
)
def test_split_folders_by_any_usual_name(tmp_path, train, test):
    source = find(plant(tmp_path, classes_in(train, test)))
    assert source.classes == CLASSES
    assert split_counts(source) == {"test": 6, "train": 6}


def test_splits_below_each_class(tmp_path):
    source = find(
        plant(tmp_path, [f"{c}/{part}/{i}.png" for c in CLASSES for part in ("train", "test") for i in "12"])
    )
    assert source.classes == CLASSES
    assert split_counts(source) == {"test": 6, "train": 6}


@pytest.mark.parametrize(
    "parts", [("PlantVillage", "plantvillage/PlantVillage"), ("fold1", "fold2"), ("a", "b", "c")]
)
def test_folders_that_hold_the_same_folders_are_no_classes(tmp_path, parts):
    with pytest.raises(DataError, match=r"hold the same sub-folders .*'cats'.* parts of one set, not classes"):
        find(plant(tmp_path, classes_in(*parts)))


def test_classes_may_have_names_of_splits_and_folders_of_their_own(tmp_path):
    one = plant(tmp_path / "one", ["test_strip/1.png", "train_station/2.png", "bus/3.png"])
    assert find(one).classes == ("bus", "test_strip", "train_station")
    two = plant(tmp_path / "two", ["cat/front/1.png", "cat/side/2.png", "dog/near/3.png", "dog/far/4.png"])
    assert find(two).classes == ("cat", "dog")
    people = [f"id{i}/session{j}/1.png" for i in range(10, 30) for j in (1, 2)]
    assert len(find(plant(tmp_path / "three", people)).classes) == 20


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("VALID", "val"),
        ("PublicTest", "test"),
        ("train_val", None),
        ("contest", None),
        ("dev", "val"),
        ("12", None),
    ],
)
def test_words_of_splits(name, split):
    assert parse_split(name) == split


@pytest.mark.parametrize("pair", [("valid", "invalid"), ("tested", "not_tested"), ("Mask", "no mask")])
def test_opposites_with_the_same_sub_folders_are_classes(tmp_path, pair):
    source = find(plant(tmp_path, [f"{c}/{year}/{i}.png" for c in pair for year in (2023, 2024) for i in "12"]))
    assert (set(source.classes), "split" in source.columns) == (set(pair), False)
    assert said(source, "are opposites", "classes")
    root = plant(tmp_path / "d", [f"{s}/{c}/{i}.png" for s in ("train", "valid") for c in pair for i in "12"])
    assert split_counts(find(root)) == {"train": 4, "val": 4}


# what is left out, and reported


@pytest.mark.parametrize(
    "flat", ["test/1.png", "test/test/1.png", "test1/1.png", "val/1.png", "test/unknown/1.png"]
)
def test_unlabelled_test_images_are_left_out(tmp_path, flat):
    source = find(plant(tmp_path, [*classes_in("train"), flat]))
    assert len(source) == 6
    assert said(source, "Left out: 1 image has no label", f"'{flat.split('/')[0]}'")


@pytest.mark.parametrize("word", ["unlabelled", "Unlabeled"])
@pytest.mark.parametrize("place", ["", "wrapper/", "train/"])
def test_a_folder_of_images_without_a_label(tmp_path, word, place):
    """Beside the classes or in train, however deep: training images of label -1, whose names say nothing."""
    parts = ("train", "test") if place == "train/" else (place.rstrip("/") or ".",)
    labelled = [str(Path(name)) for name in classes_in(*parts)]
    hidden = [f"{place}{word}/1.png", f"{place}{word}/cat/2.png"]
    source = find(plant(tmp_path, [*labelled, *hidden]))
    alone = find(plant(tmp_path / "alone", labelled))
    assert source.classes == alone.classes
    chosen = source.labels >= 0
    assert source.labels[chosen].tolist() == alone.labels.tolist()
    assert sorted(source.files[~chosen]) == sorted(hidden)
    assert "split" not in source.columns or set(source.columns["split"][~chosen]) == {"train"}
    assert said(source, "2 images have no label", f"'{place}{word}'", "--semi-supervised")


def test_folders_called_unlabelled_that_are_classes(tmp_path):
    """Beside one called labelled, inside a class, and where a pattern says so."""
    pair = find(plant(tmp_path / "a", ["labelled/1.png", "unlabelled/1.png"]))
    assert pair.classes == ("labelled", "unlabelled")
    inside = find(plant(tmp_path / "b", ["cat/unlabelled/1.png", "cat/2.png", "dog/1.png"]))
    assert (inside.classes, (inside.labels >= 0).all()) == (("cat", "dog"), True)
    root = plant(tmp_path / "c", ["cat/1.png", "unlabelled/1.png"])
    with pytest.raises(DataError, match=r"only one class, 'cat'.* say so: --label-pattern '{label}/\*'"):
        find(root)
    assert find(root, rule=LabelRule(label_pattern="{label}/*")).classes == ("cat", "unlabelled")


def test_a_folder_of_predictions_is_left_out(tmp_path):
    source = find(plant(tmp_path, [*classes_in("seg_train", "seg_test"), "seg_pred/seg_pred/1.png"]))
    assert split_counts(source) == {"test": 6, "train": 6}
    assert said(source, "no label", "'seg_pred'")


@pytest.mark.parametrize(("names", "empty"), [(CLASSES, "logs"), (("train/a", "train/b"), "train/owl")])
def test_folders_without_images_are_no_classes(tmp_path, names, empty):
    root = plant(tmp_path, [f"{name}/1.png" for name in names])
    (root / empty).mkdir()
    source = find(root)
    assert len(source.classes) == len(names)
    assert said(source, "Left out folders without images", f"'{empty}'")


def test_texts_beside_the_images(tmp_path):
    root = plant(tmp_path, classes_in("images"))
    (root / "attributes").mkdir()
    (root / "attributes/a.txt").write_text("1")
    source = find(root)
    assert source.classes == CLASSES
    assert said(source, "without images", "'attributes'")


def test_masks_beside_the_images_are_left_out(tmp_path):
    names = [f"{c}/{kind}/{i}.png" for c in ("COVID", "Normal") for kind in ("images", "masks") for i in range(3)]
    source = find(plant(tmp_path, names))
    assert (source.classes, len(source)) == (("COVID", "Normal"), 6)
    assert said(source, "Left out 6 images", "annotations")
    assert find(plant(tmp_path / "two", ["mask/1.png", "no_mask/2.png"])).classes == ("mask", "no_mask")
    source = find(plant(tmp_path / "top", [*classes_in("images"), "annotations/trimaps/1.png", "masks/2.png"]))
    assert (source.classes, len(source)) == (CLASSES, 6)
    assert said(source, "Left out 2 images", "'annotations'", "'masks'")


def test_flat_images_beside_annotations_are_refused_with_what_the_names_look_like(tmp_path):
    names = ["images/Abyssinian_1.png", "images/Abyssinian_2.png", "images/beagle_1.png", "images/beagle_2.png"]
    with pytest.raises(DataError, match=r"no class folders.*look like labels .'Abyssinian', 'beagle'"):
        find(plant(tmp_path, [*names, "annotations/trimaps/1.png"]))


@pytest.mark.parametrize("mark", ["recipe.toml", "classifier/model.safetensors", "suspects.csv"])
def test_our_own_runs_are_left_out(tmp_path, mark):
    root = plant(tmp_path, [*(f"{c}/1.png" for c in CLASSES), "runs/x/curves.png", "runs/x/classifier/a.png"])
    (root / "runs/x" / mark).write_text("")
    source = find(root)
    assert source.classes == CLASSES
    assert said(source, "written by Sightline", "'runs")


@pytest.mark.parametrize(
    "junk", ["@eaDir/1.png", "#recycle/1.png", "Desktop.ini", "~$list.png", "lost+found/a.png"]
)
def test_junk_of_systems_and_network_drives(tmp_path, junk):
    source = find(plant(tmp_path, [*(f"{c}/1.png" for c in CLASSES), junk]))
    assert (source.classes, source.notes) == (CLASSES, ())


def test_what_is_no_file_among_images_is_neither_read_nor_waited_for(tmp_path):
    root = plant(tmp_path / "data", ["cats/1.png", "dogs/1.png"])
    os.mkfifo(tmp_path / "pipe")
    special = {"self": "self.png", "zero": "/dev/zero", "pipe": tmp_path / "pipe"}
    for name, target in special.items():
        (root / f"cats/{name}.png").symlink_to(target)
    os.mkfifo(root / "cats/direct.png")
    with (root / "cats/huge.png").open("wb") as stream:
        stream.truncate(40_000_000_000)  # sparse: it takes no room
    source = find(root)
    reasons = {}
    for row, name in enumerate(source.files):
        try:
            source.read(row)
        except ImageError as error:
            reasons[Path(name).stem] = str(error)
    assert {path.rpartition("/")[2] for path in source.files} == {
        "1.png", "huge.png", *(f"{name}.png" for name in special)
    }  # fmt: skip
    assert "leads nowhere: 'self.png'" in reasons.pop("self")
    assert "larger than 256 MB" in reasons.pop("huge")
    assert set(reasons) == {"zero", "pipe"}
    assert all("a pipe or a device" in reason for reason in reasons.values())


def test_links_that_lead_nowhere_are_unreadable_images(tmp_path):
    root = plant(tmp_path, [f"{c}/1.png" for c in CLASSES])
    (root / "cats/2.png").symlink_to("/nowhere/2.png")
    source = find(root)
    assert len(source) == 4
    with pytest.raises(ImageError, match=r"link that leads nowhere: '/nowhere/2.png'"):
        source.read(source.files.tolist().index("cats/2.png"))


@pytest.mark.parametrize("loop", ["cats/loop", "loop", "cats/deep/loop"])
@pytest.mark.parametrize("target", ["", "cats"])
def test_a_link_to_a_folder_around_it_lists_no_image_twice(tmp_path, loop, target):
    root = plant(tmp_path / "d", [*(f"{c}/{i}.png" for c in CLASSES for i in range(2)), "cats/deep/1.png"])
    (root / loop).symlink_to(root / target, target_is_directory=True)
    if loop == "loop" and target:  # not around it: a class of another name
        assert len(find(root)) == 10
        return
    source = find(root)
    assert (source.classes, len(source)) == (CLASSES, 7)
    assert said(source, "Left out 1 link", f"'{loop}'")


def test_links_to_each_other_list_no_image_more_than_once_in_each(tmp_path):
    root = plant(tmp_path, ["a/1.png", "b/2.png"])
    (root / "a/x").symlink_to(root / "b", target_is_directory=True)
    (root / "b/y").symlink_to(root / "a", target_is_directory=True)
    assert sorted(find(root).files) == ["a/1.png", "a/x/2.png", "b/2.png", "b/y/1.png"]


# labels in file names


@pytest.mark.parametrize("folder", ["", "train/"])
def test_labels_in_file_names(tmp_path, folder):
    names = [f"{folder}{c}.{i}.png" for c in ("cat", "dog") for i in range(3)]
    source = find(plant(tmp_path, [*names, *(["test1/1.png"] if folder else [])]))
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    assert said(source, "labels are in the file names")
    assert said(source, "no label", "test1") == bool(folder)


def test_numbers_in_file_names_are_no_labels(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        find(plant(tmp_path, ["1.0.png", "1.1.png", "2.0.png", "2.1.png"]))
    folders = plant(tmp_path / "f", ["cat/flickr.0.png", "cat/web.1.png", "dog/flickr.2.png", "dog/web.3.png"])
    assert find(folders).classes == ("cat", "dog")


# nothing that can be used: what there is instead


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("a/1.dcm", r"holds no images, but 1 file \.dcm. Convert DICOM"),
        ("a/1", "1 file without a suffix. Give each file the suffix"),
        ("a/1.npy", r"1 file \.npy. Convert arrays"),
        ("train.zip", r"1 file \.zip. Unpack the archives .'train.zip'"),
        ("train.tar.zst", r"1 file \.zst. Unpack the archives .'train.tar.zst'"),
        ("labels.xlsx", r"1 file \.xlsx. Save the table as CSV"),
        ("notes.abc", r"1 file \.abc. Give a folder"),
    ],
)
def test_what_was_found_where_there_are_no_images(tmp_path, file, says):
    (tmp_path / "d" / file).parent.mkdir(parents=True)
    (tmp_path / "d" / file).write_bytes(b"x")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.write(tmp_path / "d" / file, file)
    for place in ("d", "d.zip"):
        with pytest.raises(DataError, match=says):
            find(tmp_path / place)


def test_other_files_are_named_for_what_they_are(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"path,label\n"))
    (tmp_path / "t.xlsx").write_bytes(b"PK\3\4")
    (tmp_path / "t.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(300))
    (tmp_path / "my photos").write_bytes(b"\x28\xb5\x2f\xfd")
    (tmp_path / "t.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(300))
    (tmp_path / "t.rar").write_bytes(b"Rar!\x1a\x07" + bytes(300))
    (tmp_path / "t.tar.lz4").write_bytes(b"")
    for name, says in (
        ("t.csv.gz", "a compressed table: decompress"),
        ("t.xlsx", "a spreadsheet.*save it as CSV"),
        ("t.tar.zst", "an archive of a kind that is not read .zip and tar are.: unpack it, tar --zstd -xf .*zst"),
        ("my photos", "unpack it, tar --zstd -xf '.*my photos'"),
        ("t.7z", "unpack it, 7z x"),
        ("t.rar", "unpack it, unrar x"),
        ("t.tar.lz4", "unpack it, tar -I lz4"),
    ):
        with pytest.raises(DataError, match=says):
            find(tmp_path / name)


# tables beside and inside folders


def test_a_table_beside_folders_of_unlabelled_images(tmp_path):
    root = plant(tmp_path, [*(f"train_images/tr{i}.png" for i in range(6)), "test_images/te0.png"])
    (root / "train.csv").write_text("image_id,label\n" + "".join(f"tr{i}.png,{i % 2}\n" for i in range(6)))
    (root / "sample_submission.csv").write_text("image_id,label\nte0.png,0\n")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in [*root.rglob("*.png"), *root.glob("*.csv")]:
            archive.write(path, f"top/{path.relative_to(root)}")
    for place in (root / "z.zip", root):
        source = find(place)
        assert (source.classes, len(source)) == (("0", "1"), 6)
        assert said(source, "Left out 1 image that is not labelled in", "train.csv")
        (root / "z.zip").unlink(missing_ok=True)


def test_a_table_goes_before_folders_that_say_nothing(tmp_path):
    """HAM10000: the parts of a download are no classes."""
    root = plant(tmp_path, [f"part_{1 + i % 2}/ISIC_{i}.png" for i in range(12)])
    rows = "".join(f"L{i},ISIC_{i},{('mel', 'nv', 'bcc')[i // 2 % 3]}\n" for i in range(12))
    (root / "metadata.csv").write_text("lesion_id,image_id,dx\n" + rows)
    source = find(root)
    assert source.classes == ("bcc", "mel", "nv")
    assert "lesion_id" in source.columns


def test_train_and_test_tables_are_splits(tmp_path):
    root = plant(tmp_path, ["train/1.png", "train/2.png", "test/1.png", "test/2.png"])
    for name in ("train.csv", "test.csv"):
        (root / name).write_text("id,breed\n1,x\n2,y\n")
    source = find(root)
    assert split_counts(source) == {"test": 2, "train": 2}
    assert sorted(source.files) == ["test/1.png", "test/2.png", "train/1.png", "train/2.png"]
    (root / "test.csv").write_text("id\n1\n2\n")  # to be answered: no labels
    assert len(find(root)) == 2


def test_a_table_in_the_folder_of_each_split(tmp_path):
    root = plant(tmp_path, ["train/1.png", "train/2.png", "test/3.png"])
    (root / "train/metadata.csv").write_text("file_name,label\n1.png,a\n2.png,b\n")
    (root / "test/metadata.csv").write_text("file_name,label\n3.png,a\n")
    assert split_counts(find(root)) == {"test": 1, "train": 2}


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("filepath,label", "{0}.png,{1}"),
        ("Image Path,Class Name", "{0}.PNG,{1}"),
        ("id,diagnosis", "{0},{1}"),
        ("class_id,Path", "{1},a/b/{0}.png"),
        ("image,species,notes", "{0}.png,{1},x"),
        ("sep=;\nimage_name;category", "{0}.png;{1}"),
        ("img,labels", "{0}.png,{1}"),
        ("file,class_name", "{0}.png,{1}"),
        ("image_id,choice", "{0},{1}"),
        ("image,a,b", "{0}.png,{2:.1f},{3:.1f}"),
    ],
)
def test_columns_of_any_usual_name(tmp_path, head, row):
    root = plant(tmp_path, [f"pictures/{i}.png" for i in range(10)])
    rows = [row.format(i, "ab"[i % 2], 1 - i % 2, i % 2) for i in range(10)]
    (root / "t.csv").write_text("\n".join([head, *rows]))
    source = find(root / "t.csv")
    assert (source.classes, source.labels.tolist()) == (("a", "b"), [0, 1] * 5)
    assert [source.read(i) for i in range(10)] == [(root / f"pictures/{i}.png").read_bytes() for i in range(10)]


@pytest.mark.parametrize("name", ["t.csv", "t.txt", "t.tsv"])
def test_tables_without_a_header(tmp_path, name):
    plant(tmp_path, [f"{i}.png" for i in range(4)])
    mark = {".csv": ",", ".txt": " ", ".tsv": "\t"}[Path(name).suffix]
    (tmp_path / name).write_text("".join(mark.join((f"{i}.png", "ab"[i % 2])) + "\n" for i in range(4)))
    assert find(tmp_path / name).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("mark", [" ", "\t", "  "])
@pytest.mark.parametrize(
    ("lists", "pictures", "written"),
    [
        ("", "images/{0}.png", "images/{0}.png"),
        ("", "{1}/{0}.png", "{0}.png"),
        ("", "{1}/my {0}.png", "{1}/my {0}.png"),
        ("meta/", "pictures/{1}/{0}.png", "{0}.png"),
        ("lists/", "{0}.png", "./{0}.png"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_lists_of_paths_and_labels_by_split(tmp_path, mark, lists, pictures, written, kind):
    """ImageNet's ``train.txt`` and ``val.txt``: a path and a number on each line, no header."""
    root = tmp_path / "d"
    for split, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 11))):
        rows = []
        for number in numbers:
            plant(root, [pictures.format(number, split)])
            rows.append(f"{written.format(number, split)}{'' if split == 'test' else f'{mark}{number % 2}'}")
        (root / lists).mkdir(exist_ok=True)
        (root / lists / f"{split}.txt").write_text("\n".join(rows) + "\n")
    (root / "readme.txt").write_text("Pictures of two kinds.\n")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
            for path in root.rglob("*.*"):
                archive.write(path, path.relative_to(root))
        root = tmp_path / "d.zip"
    source = find(root)
    assert (source.classes, split_counts(source)) == (("0", "1"), {"train": 6, "val": 3})
    numbers = [int(Path(name).stem.rpartition(" ")[2]) for name in source.files]
    assert source.labels.tolist() == [each % 2 for each in numbers]
    assert said(source, "Left out 2 images that are not labelled in", "train.txt", "val.txt")


def test_lists_of_paths_alone_are_no_tables(tmp_path):
    root = plant(tmp_path, classes_in("images"))
    (root / "train.txt").write_text("\n".join(classes_in("images")))
    assert find(root).classes == CLASSES
    (plant(tmp_path / "flat", ["1.png", "2.png"]) / "train.txt").write_text("1.png\n2.png\n")
    with pytest.raises(DataError, match="has images but no class folders"):
        find(tmp_path / "flat")


def test_class_folders_go_before_lists_of_the_same_classes(tmp_path):
    root = plant(tmp_path, classes_in("images"))
    rows = [f"{name} {CLASSES.index(name.split('/')[1])}" for name in classes_in("images")]
    (root / "train.txt").write_text("\n".join(rows))
    source = find(root)
    assert source.classes == CLASSES
    assert said(source, "not used: 'train.txt'")


@pytest.mark.parametrize(
    ("labels", "classes", "pairs"),
    [
        (("0", "0.0", "1", "1.0"), ("0", "1"), "'0' and '0.0', '1' and '1.0'"),
        (("-1", "-1.00", "2", "2"), ("-1", "2"), "'-1' and '-1.00'"),
        (("0.0", "1.0", "2.0", "3.0"), ("0.0", "1.0", "2.0", "3.0"), None),
        (("1.5", "1.50", "v1.0", "v1"), ("1.5", "1.50", "v1", "v1.0"), None),
    ],
)
def test_labels_that_are_equal_as_numbers_are_one_class(tmp_path, labels, classes, pairs):
    plant(tmp_path, [f"{i}.png" for i in range(4)])
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{i}.png,{x}\n" for i, x in enumerate(labels)))
    source = find(tmp_path / "t.csv")
    assert source.classes == classes
    if pairs is None:
        assert source.notes == ()
    else:
        assert source.labels.tolist() == [classes.index(str(round(float(x)))) for x in labels]
        assert said(source, "equal as numbers are one class", pairs)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("data set", ("train", "test")),
        ("Usage", ("Training", "PublicTest")),
        ("phase", ("TRAIN", "valid")),
        ("x", ("train", "dev")),
    ],
)
def test_a_column_of_split_words_is_the_split(tmp_path, column, words):
    plant(tmp_path, [f"{i}.png" for i in range(8)])
    rows = [f"{i}.png,{'ab'[i % 2]},{words[i >= 6]}" for i in range(8)]
    (tmp_path / "t.csv").write_text("\n".join([f"path,label,{column}", *rows]))
    source = find(tmp_path / "t.csv")
    assert split_counts(source)["train"] == 6
    assert said(source, f"'{column}'")


def test_a_blank_split_is_train(tmp_path):
    plant(tmp_path, [f"{i}.png" for i in range(8)])
    for name, words in (("split", ("", "test")), ("part", ("train", "test"))):
        rows = [f"{i}.png,{'ab'[i % 2]},{words[i >= 6] if i else ''}" for i in range(8)]
        (tmp_path / "t.csv").write_text("\n".join([f"path,label,{name}", *rows]))
        assert split_counts(find(tmp_path / "t.csv")) == {"test": 2, "train": 6}


def test_other_columns_are_not_taken_for_the_split(tmp_path):
    plant(tmp_path, ["0.png", "1.png"])
    (tmp_path / "t.csv").write_text("path,label,kind\n0.png,train,test\n1.png,bus,test\n")
    source = find(tmp_path / "t.csv")
    assert (source.classes, set(source.columns)) == (("bus", "train"), {"kind"})


def test_a_few_missing_files_are_unreadable_images(tmp_path):
    plant(tmp_path, [f"{i}.png" for i in range(39)])
    (tmp_path / "t.csv").write_text("path,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(40)))
    source = find(tmp_path / "t.csv")
    assert len(source) == 40
    with pytest.raises(ImageError, match="cannot be opened"):
        source.read(39)


def test_a_name_that_fits_several_files_is_missing(tmp_path):
    plant(tmp_path, ["a/1.png", "b/1.png", "b/2.png"])
    (tmp_path / "t.csv").write_text("path,label\n1.png,x\n2.png,y\n")
    with pytest.raises(DataError, match=r"'1.png' .line 2.*must fit one file"):
        find(tmp_path / "t.csv")


def test_a_file_missing_from_its_folder_is_not_looked_for_in_others(tmp_path):
    plant(tmp_path, ["cat/1.png", "cat/2.png", "dog/2.png"])
    (tmp_path / "t.csv").write_text("path,label\ncat/1.png,cat\ndog/1.png,dog\n")
    with pytest.raises(DataError, match=r"1 of the 2 files.*'dog/1.png' .line 3"):
        find(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("path,label\n/home/me/cat/2.png,cat\n/home/me/dog/2.png,dog\n")
    assert find(tmp_path / "t.csv").files.tolist() == ["cat/2.png", "dog/2.png"]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (2, None),
        (1, "whose image '0.png' has 2 categories"),
        (9, "lacks 9"),
        (None, "whose image '1.png' has 0 categ"),
    ],
)
def test_coco_with_one_category_an_image(tmp_path, second, says):
    plant(tmp_path, ["pictures/0.png", "pictures/1.png"])
    notes = [{"image_id": 1, "category_id": 1}, {"image_id": 1, "category_id": 1}]
    notes += (
        [] if second is None else [{"image_id": 1 if second == 1 else 2, "category_id": 9 if second == 9 else 2}]
    )
    found = {
        "images": [{"id": 1, "file_name": "0.png"}, {"id": 2, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": notes,
    }
    (tmp_path / "coco.json").write_text(json.dumps(found))
    if says is None:
        assert find(tmp_path / "coco.json").classes == ("cat", "dog")
    else:
        with pytest.raises(DataError, match=says):
            find(tmp_path / "coco.json")


@pytest.mark.parametrize("kind", ["tasks", "min", "csv"])
def test_exports_of_label_studio(tmp_path, kind):
    plant(tmp_path, [f"{i}.png" for i in range(4)])
    paths = [f"/data/upload/3/0a1b2c3{i}-{i}.png" for i in range(4)]
    choices = ["cat", "dog", "cat", "dog"]
    if kind == "csv":
        text = "image,id,choice\n" + "".join(
            f"{p},{i},{c}\n" for i, (p, c) in enumerate(zip(paths, choices, strict=True))
        )
    elif kind == "min":
        text = json.dumps([{"image": p, "choice": c, "id": 1} for p, c in zip(paths, choices, strict=True)])
    else:
        result = [{"type": "choices", "value": {"choices": [c]}} for c in choices]
        text = json.dumps(
            [
                {"id": 1, "data": {"image": p}, "annotations": [{"result": [r]}]}
                for p, r in zip(paths, result, strict=True)
            ]
        )
    name = "t.csv" if kind == "csv" else "t.json"
    (tmp_path / name).write_text(text)
    assert find(tmp_path / name).labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', "[1]", "[" * 100_000])
def test_other_json_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(DataError, match=r"t.json' is not"):
        find(tmp_path / "t.json")


# names in a zip of another system


@pytest.mark.parametrize(("encoding", "names"), [("gbk", "猫狗"), ("shift_jis", "猫犬"), ("cp1252", "éü")])
def test_zip_names_of_another_system(tmp_path, monkeypatch, encoding, names):
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    plant(tmp_path, ["1.png", "2.png"])
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for place, name in zip("AB", names, strict=True):
            archive.write(tmp_path / "1.png", f"{place * len(name.encode(encoding))}/1.png")
    data = (tmp_path / "x.zip").read_bytes()
    for place, name in zip("AB", names, strict=True):
        raw = name.encode(encoding)
        data = data.replace(place.encode() * len(raw) + b"/1", raw + b"/1")
    (tmp_path / "x.zip").write_bytes(data)
    assert said(find(tmp_path / "x.zip"), "not UTF-8", "SIGHTLINE_ZIP_ENCODING")
    monkeypatch.setenv("SIGHTLINE_ZIP_ENCODING", encoding)
    source = find(tmp_path / "x.zip")
    assert (source.classes, source.notes) == (tuple(sorted(names)), ())
    for word, says in (("klingon", "no encoding"), ("ascii", "are not ascii")):
        monkeypatch.setenv("SIGHTLINE_ZIP_ENCODING", word)
        with pytest.raises(DataError, match=says):
            find(tmp_path / "x.zip")


# flat parts with a table of their own, next to class folders


TINY = {f"val_{i}.png": CLASSES[i % 3] for i in range(6)}
TABLES = {
    "val/val_annotations.txt": "".join(f"{name}\t{label}\t0\t0\t8\t8\n" for name, label in TINY.items()),
    "val/labels.csv": "image,label\n" + "".join(f"{name},{label}\n" for name, label in TINY.items()),
    "val.csv": "image,label\n" + "".join(f"val/images/{name},{label}\n" for name, label in TINY.items()),
    "val/images/metadata.jsonl": "".join(
        json.dumps({"file_name": name, "label": label}) + "\n" for name, label in TINY.items()
    ),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("wrapper", ["", "tiny-imagenet-200/"])
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_flat_val_folder_has_the_labels_of_the_table_in_it(tmp_path, table, wrapper, kind):
    names = [f"train/{c}/images/{c}_{i}.JPEG" for c in CLASSES for i in range(2)]
    names += [f"val/images/{name}" for name in TINY] + [f"test/images/test_{i}.JPEG" for i in range(4)]
    root = plant(tmp_path / "top", [wrapper + name for name in names])
    (root / wrapper / table).write_text(TABLES[table])
    for c in CLASSES:
        (root / wrapper / "train" / c / f"{c}_boxes.txt").write_text(f"{c}_0.JPEG\t0\t0\t8\t8\n")
    place = root
    if kind == "zip":
        place = tmp_path / "top.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for file in sorted(root.rglob("*.*")):
                archive.write(file, file.relative_to(root))
    source = find(place)
    assert source.classes == CLASSES
    assert split_counts(source) == {"train": 6, "val": 6}
    found = {
        str(file).rpartition("/")[2]: source.classes[label]
        for file, label in zip(source.files, source.labels, strict=True)
        if "/val/" in f"/{file}"
    }
    assert found == TINY
    assert said(source, "The labels of 6 val images are in", table)
    assert not said(source, "not used")
    assert said(source, "4 images have no label", "'test'")


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("other labels", [(name, "bats") for name in TINY]),
        ("no such files", [(f"x{name}", "cats") for name in TINY]),
        ("no labels", [(name, "") for name in TINY]),
    ],
)
def test_a_table_that_does_not_fit_leaves_the_flat_folder_unlabelled(tmp_path, table, rows):
    root = plant(tmp_path, [*classes_in("train"), *(f"val/images/{name}" for name in TINY)])
    (root / "val" / f"{table}.csv").write_text("image,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    source = find(root)
    assert split_counts(source) == {"train": 6}
    assert said(source, "6 images have no label", "'val'")


def test_class_folders_of_a_val_part_go_before_a_table_in_it(tmp_path):
    root = plant(tmp_path, classes_in("train", "val"))
    rows = "".join(f"{name}/{i}.png,owls\n" for name in CLASSES for i in range(2))
    (root / "val" / "labels.csv").write_text("image,label\n" + rows)
    source = find(root)
    assert split_counts(source) == {"train": 6, "val": 6}
    owls = [file for file, label in zip(source.files, source.labels, strict=True) if label == 2]
    assert len(owls) == 4
