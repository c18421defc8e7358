"""find: every layout that is accepted, and one clear sentence for every one that is not."""

import csv
import gzip
import io
import os
import pickle
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data import survey
from sightline.errors import ChoiceError, DataError, ImageError
from sightline.files import write_csv
from sightline.sources import find
from sightline.sources.archives import list_zip


def picture(value: int, size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (size, size), value).save(stream, "PNG")
    return stream.getvalue()


def plant(root: Path, names: list[str]) -> Path:
    """A different small picture at each of these paths."""
    for value, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(value))
    return root


PLAIN = ["cat/1.png", "cat/deep/2.PNG", "dog/1.png", "dog/2.png", "dog/3.png"]
SPLIT = [
    f"{part}/{name}/{i}.png" for part in ("train", "valid", "test") for name in ("cat", "dog") for i in (1, 2)
]


def zipped(root: Path, target: Path, top: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", method) as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, top + path.relative_to(root).as_posix())
    return target


def tarred(root: Path, target: Path, mode: str = "w", top: str = ".") -> Path:
    with tarfile.open(target, mode) as archive:
        archive.add(root, top)
    return target


def contents(source) -> list[tuple[str, str, str, bytes]]:
    splits = source.columns.get("split", [""] * len(source))
    names = [source.classes[label] for label in source.labels]
    files = ["/".join(str(f).split("/")[-3 if splits[0] else -2 :]) for f in source.files]
    return sorted(zip(files, names, map(str, splits), map(source.read, range(len(source))), strict=True))


def test_class_folders(tmp_path):
    source = find(plant(tmp_path, PLAIN))
    assert source.classes == ("cat", "dog")
    assert source.files.tolist() == sorted(PLAIN)
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert "split" not in source.columns
    assert source.read(0) == picture(0)
    assert source.notes == ()


def test_split_folders(tmp_path):
    source = find(plant(tmp_path, SPLIT))
    assert source.classes == ("cat", "dog")
    assert np.unique(source.columns["split"], return_counts=True)[1].tolist() == [4, 4, 4]
    assert set(source.columns["split"]) == {"train", "val", "test"}


@pytest.mark.parametrize("names", [PLAIN, SPLIT], ids=["plain", "split"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("kind", ["zip", "deflated.zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_archives_equal_the_folder(tmp_path, kind, wrapped, names):
    root = plant(tmp_path / "data", names)
    target, top = tmp_path / f"x.{kind}", "outer/inner" if wrapped else "."
    if kind.endswith("zip"):
        method = zipfile.ZIP_DEFLATED if "deflated" in kind else zipfile.ZIP_STORED
        zipped(root, target, "" if top == "." else top + "/", method)
    else:
        tarred(root, target, "w:" + kind[4:] if "." in kind else "w", top)
    source = find(target)
    assert contents(source)[0][1:] == contents(find(root))[0][1:]
    assert [row[1:] for row in contents(source)] == [row[1:] for row in contents(find(root))]
    again = pickle.loads(pickle.dumps(source))
    assert contents(again) == contents(source)


def test_zip_directory_equals_zipfile(tmp_path):
    root = plant(tmp_path / "data", ["é/ü.png", "日本/x.png", *PLAIN])
    target = zipped(root, tmp_path / "x.zip", method=zipfile.ZIP_DEFLATED)
    listing = list_zip(target)
    with zipfile.ZipFile(target) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        assert listing.names == [info.filename for info in infos]
        assert listing.sizes.tolist() == [info.file_size for info in infos]
        assert [listing.reader.read(i) for i in range(len(infos))] == [archive.read(info) for info in infos]


def test_large_zip_directory_equals_zipfile(shared_data):
    """70,000 members: a zip64 directory."""
    listing = list_zip(shared_data / "mnist_png.zip")
    with zipfile.ZipFile(shared_data / "mnist_png.zip") as archive:
        infos = archive.infolist()
        assert listing.names == [info.filename for info in infos]
        for i in range(0, len(infos), 7001):
            assert listing.reader.read(i) == archive.read(infos[i])


def test_zip_after_other_bytes(tmp_path):
    target = zipped(plant(tmp_path / "data", PLAIN), tmp_path / "x.zip")
    target.write_bytes(b"#!/bin/sh\n" * 10 + target.read_bytes())
    with zipfile.ZipFile(target) as archive:  # the oracle reads it too
        assert archive.testzip() is None
    assert len(contents(find(target))) == len(PLAIN)


def test_junk_is_ignored_and_other_files_are_noted(tmp_path):
    junk = [".DS_Store", "cat/._1.png", "cat/Thumbs.db", "dog/desktop.ini", "__MACOSX/cat/1.png"]
    junk += [".ipynb_checkpoints/1.png", "cat/.ipynb_checkpoints/1.png", ".hidden/1.png"]
    root = plant(tmp_path / "data", PLAIN + junk)
    (root / "README.txt").write_text("hello")
    plant(root, ["loose.png"])
    for source in (find(root), find(zipped(root, tmp_path / "x.zip"))):
        assert source.files.tolist() == sorted(PLAIN)
        assert any("1 .txt" in note for note in source.notes)
        assert any("outside of any class folder" in note for note in source.notes)


def test_numbers_are_ordered_as_numbers(tmp_path):
    assert find(plant(tmp_path, ["10/a.png", "9/a.png", "1/a.png"])).classes == ("1", "9", "10")


def test_links_to_folders_are_followed_once(tmp_path):
    root = plant(tmp_path / "data", PLAIN)
    before = len(find(root))
    plant(tmp_path / "elsewhere", ["a.png"])
    (root / "bird").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root / "cat")
    source = find(root)
    assert source.classes == ("bird", "cat", "dog")
    assert len(source) == before + 1


def test_a_class_may_be_called_train(tmp_path):
    source = find(plant(tmp_path, ["train/1.png", "bus/1.png", "car/1.png"]))
    assert source.classes == ("bus", "car", "train")


def test_fingerprint_follows_the_files(tmp_path):
    root = plant(tmp_path / "data", PLAIN)
    first = find(root).fingerprint
    assert find(root).fingerprint == first
    os.utime(root / "cat/1.png", ns=(10**18, 10**18))
    assert find(root).fingerprint != first
    one, two = zipped(root, tmp_path / "1.zip"), zipped(root, tmp_path / "2.zip")
    assert find(one).fingerprint == find(two).fingerprint
    (root / "cat/1.png").write_bytes(picture(99))
    assert find(zipped(root, two)).fingerprint != find(one).fingerprint


def test_builtin_sets():
    from sklearn.datasets import load_digits

    digits = find("digits")
    assert len(digits) == 1797
    known = load_digits()
    np.testing.assert_array_equal(digits.labels, known.target)
    every = [np.asarray(Image.open(io.BytesIO(digits.read(row)))) for row in range(len(digits))]
    np.testing.assert_array_equal(every, np.rint(known.images * 255 / 16))
    shapes = find("shapes:60")
    assert (len(find("shapes")), len(shapes)) == (1200, 60)
    assert shapes.classes == ("circle", "square", "star", "triangle")
    assert np.bincount(shapes.labels).tolist() == [15] * 4
    assert shapes.fingerprint == find("shapes:60").fingerprint
    assert np.asarray(Image.open(io.BytesIO(shapes.read(0)))).shape == (32, 32, 3)
    with pytest.raises(ChoiceError, match="at least 4 images"):
        find("shapes:2")


def test_shapes_have_the_areas_of_their_kind():
    """Area over that of the surrounding circle: the textbook value of each shape."""
    from sightline.sources.arrays import _SHAPES, _draw_shapes

    star = 5 * 0.42 * np.sin(np.pi / 5)
    exact = {"circle": np.pi, "square": 2.0, "star": star, "triangle": 3 * np.sqrt(3) / 4}
    for name, distance in _SHAPES.items():
        drawn = _draw_shapes(distance, 50, 200, np.random.default_rng(0))
        radius = np.random.default_rng(0).uniform(0.2, 0.38, 50)
        area = drawn.mean(axis=(1, 2)) / radius**2
        assert area == pytest.approx(exact[name], rel=0.01), name


def test_limit_is_stratified_and_seeded(tmp_path):
    names = [f"{part}/{k}/{i}.png" for part, n in (("train", 20), ("test", 10)) for k in "ab" for i in range(n)]
    root = plant(tmp_path, [*names, "train/rare/1.png"])
    source = find(root, limit=31, seed=1)
    assert len(source) == pytest.approx(31, abs=2)
    assert source.classes == ("a", "b", "rare")
    assert np.bincount(source.labels)[2] == 1
    assert source.files.tolist() == find(root, limit=31, seed=1).files.tolist()
    assert source.files.tolist() != find(root, limit=31, seed=2).files.tolist()
    assert source.fingerprint != find(root).fingerprint
    assert len(find(root, limit=10**6)) == 61
    assert (source.columns["split"] == "test").sum() == 10
    with pytest.raises(DataError, match="at least 1"):
        find(root, limit=0)


def table(path: Path, rows: list[list[str]], encoding: str = "utf-8", delimiter: str = ",") -> Path:
    with path.open("w", encoding=encoding, newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_manifest(tmp_path, encoding, delimiter):
    plant(tmp_path, ["a/x.png", "b, c/y.png", "z.png"])
    rows = [["File_Name", "note", "class", "Split", "group"], ["a/x.png", "é", "cat", "training", "p1"]]
    rows += [["b, c/y.png", "", "dog", "", "007"], ["z.png", "n", "cat", "test", "7"]]
    source = find(table(tmp_path / "list.csv", rows, encoding, delimiter))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.columns["split"].tolist() == ["train", "train", "test"]
    assert source.columns["group"].tolist() == ["p1", "007", "7"]
    assert source.columns["note"].tolist() == ["é", "", "n"]
    assert source.read(1) == picture(1)


def test_manifest_fingerprint_follows_the_labels(tmp_path):
    plant(tmp_path, ["x.png", "y.png"])
    first = find(table(tmp_path / "l.csv", [["path", "label"], ["x.png", "a"], ["y.png", "b"]])).fingerprint
    assert (
        find(table(tmp_path / "l.csv", [["path", "label"], ["x.png", "b"], ["y.png", "a"]])).fingerprint != first
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([["name", "label"], ["x.png", "a"]], "no column called path, image, file_name or filename"),
        ([["path", "kind"], ["x.png", "a"]], "no column called label, class or target"),
        ([["path", "label"], ["x.png", "a"], ["no.png", "b"]], r"1 of the 2 files.*'no.png' \(line 3\)"),
        ([["path", "label"], ["x.png", ""]], "No row of .* has a 'label': fill it in"),
        ([["path", "label"], ["", "a"]], "Line 2 .* empty 'path'"),
        ([["path", "label"]], "lists no images"),
        ([["path", "label"], ["x.png", "a"], ["y.png", "a"]], "only one class, 'a'"),
        (
            [["path", "label", "split"], ["x.png", "a", "trian"], ["y.png", "b", "train"]],
            "Line 2 .*'trian'. Did you mean 'train'",
        ),
        ([["path", "label"], ["x.png", "a", "b"]], "Line 2 .*more fields"),
        (
            [["path", "label", "split"], ["x.png", "a", "train"], ["y.png", "b", "test"], ["x.png", "c", "train"]],
            "test split .* not in train .'b'",
        ),
    ],
)
def test_bad_manifests(tmp_path, rows, says):
    plant(tmp_path, ["x.png", "y.png"])
    with pytest.raises(DataError, match=says):
        find(table(tmp_path / "list.csv", rows))


def test_manifest_that_is_not_text(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"path,label\n\x89PNG")
    with pytest.raises(DataError, match=r"Line 2 .* is not UTF-8"):
        find(tmp_path / "x.csv")


def test_missing_path_suggests_a_near_name(tmp_path):
    (tmp_path / "flowers").mkdir()
    with pytest.raises(
        DataError, match=r"nothing at .*flower'.* Did you mean '.*flowers'\?.*digits, glyphs, shapes"
    ):
        find(tmp_path / "flower")
    with pytest.raises(DataError, match="Not even the folder"):
        find(tmp_path / "no" / "where")


@pytest.mark.parametrize(
    ("names", "folders", "says"),
    [
        ([], [], "holds no images"),
        ([], ["cat", "dog"], "holds no images"),
        (["1.png", "2.png"], [], "images but no class folders"),
        (["cat/1.png"], [], "only one class, 'cat'"),
        (["cat/1.png", "cat/deep/2.png"], [], "only one class, 'cat'"),
        (["train/cat/1.png"], [], "only one class, 'cat'"),
        (["train/1.png", "test/1.png"], [], "'test' of .* holds images directly"),
        (["train/cat/1.png", "other/1.png"], [], "mixes split folders .train. with others .other."),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
            [],
            "test split .* not in train .'c'",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_bad_layouts(tmp_path, kind, names, folders, says):
    root = plant(tmp_path / "data", names)
    root.mkdir(exist_ok=True)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    target = root
    if kind != "folder":
        target = (zipped if kind == "zip" else tarred)(root, tmp_path / f"x.{kind}")
    with pytest.raises(DataError, match=says):
        find(target)


def test_a_class_missing_from_test_only_is_accepted(tmp_path):
    root = plant(tmp_path, ["train/a/1.png", "train/b/1.png", "test/a/1.png"])
    (root / "test/b").mkdir()
    assert len(find(root)) == 3


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match="not a kind of data"):
        find(tmp_path / "notes.txt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_truncated_archives(tmp_path, kind, share):
    root = plant(tmp_path / "data", PLAIN)
    target = tmp_path / f"x.{kind}"
    zipped(root, target) if kind == "zip" else tarred(root, target, "w:" + kind[4:] if "." in kind else "w")
    data = target.read_bytes()
    if kind == "tar":
        data = data.rstrip(b"\0")  # a tar ends in kilobytes of nothing: losing some of them loses nothing
    target.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(
        DataError, match=r"'.*x\.(zip|tar.*)' is not a complete (zip|tar) archive: copy or download"
    ):
        find(target)


@pytest.mark.parametrize(
    "name", ["../evil.png", "cat/../../evil.png", "/etc/evil.png", "..\\evil.png", "C:\\evil.png"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_with_members_outside_are_refused(tmp_path, kind, name):
    target = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("cat/1.png", picture(1))
            archive.writestr(name, picture(2))
    else:
        with tarfile.open(target, "w") as archive:
            for each in ("cat/1.png", name):
                info = tarfile.TarInfo(each)
                info.size = len(picture(1))
                archive.addfile(info, io.BytesIO(picture(1)))
    with pytest.raises(DataError, match=r"would land outside of it .*evil.png.*nothing was read"):
        find(target)
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("kind", ["symbolic", "hard", "device", "zip"])
def test_archives_with_links_or_devices_are_refused(tmp_path, kind):
    target = tmp_path / ("x.zip" if kind == "zip" else "x.tar")
    if kind == "zip":
        info = zipfile.ZipInfo("cat/link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("cat/1.png", picture(1))
            archive.writestr(info, "/etc/passwd")
    else:
        info = tarfile.TarInfo("cat/link.png")
        info.type = {"symbolic": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}[kind]
        info.linkname = "/etc/passwd"
        with tarfile.open(target, "w") as archive:
            archive.addfile(info)
    with pytest.raises(DataError, match=r"holds a link or device .'cat/link.png'.*nothing was read"):
        find(target)


def test_zip_with_a_password(tmp_path):
    target = zipped(plant(tmp_path / "data", PLAIN), tmp_path / "x.zip")
    data = bytearray(target.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    target.write_bytes(data)
    with pytest.raises(DataError, match="protected by a password"):
        find(target)


def test_zip_with_an_unusual_compression(tmp_path):
    target = zipped(plant(tmp_path / "data", PLAIN), tmp_path / "x.zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="unusual compression"):
        find(target)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_damaged_inside_a_zip_is_one_bad_image(tmp_path, method):
    target = zipped(plant(tmp_path / "data", PLAIN), tmp_path / "x.zip", method=method)
    data = bytearray(target.read_bytes())
    with zipfile.ZipFile(target) as archive:
        info = archive.getinfo("dog/1.png")
    data[info.header_offset + 30 + len(info.filename) + 40] ^= 0xFF
    target.write_bytes(data)
    source = find(target)
    row = source.files.tolist().index("dog/1.png")
    with pytest.raises(ImageError, match="damaged inside the archive"):
        source.read(row)
    assert source.read(0) == picture(0)


def test_a_zip_member_larger_than_announced_is_refused(tmp_path):
    """A deflate bomb: the directory says 100 bytes, the stream holds 50 million."""
    target = tmp_path / "x.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(50_000_000))
        archive.writestr("dog/1.png", picture(1))
    data = bytearray(target.read_bytes())
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (100).to_bytes(4, "little")
    target.write_bytes(data)
    with pytest.raises(ImageError, match="damaged inside the archive"):
        find(target).read(0)


def test_survey(tmp_path):
    root = plant(tmp_path, PLAIN)
    Image.new("RGB", (100, 20)).save(root / "dog/4.jpg")
    (root / "dog/5.jpg").write_bytes(b"nonsense")
    facts = survey(find(root))
    assert (facts.total, facts.sampled, facts.unreadable) == (7, 6, 1)
    assert (facts.width.low, facts.width.median, facts.width.high) == (8, 8, 100)
    assert facts.short_side.high == 20
    assert facts.grey == pytest.approx(5 / 6)
    assert facts.formats == {"PNG": 5, "JPEG": 1}


def test_survey_of_nothing_readable(tmp_path):
    for name in ("a/1.png", "b/1.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"None of the images .* the first is a/1.png: the content is not"):
        survey(find(tmp_path))


def tar_header(name: str, size: bytes, kind: bytes = b"0") -> bytes:
    """A header of a tar, by hand: ``size`` as it stands in the file, 12 bytes."""
    head = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8
    head = (head + kind + bytes(100) + b"ustar\x0000").ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


NEGATIVE = b"\xff" * 10 + b"\xfe\x00"
HUGE = b"%011o\0" % 8_000_000_000


@pytest.mark.parametrize(
    "head",
    [
        tar_header("cat/1.png", NEGATIVE),
        tar_header("cat/1.png", HUGE),
        tar_header("cat/1.png", NEGATIVE, b"x"),
        tar_header("cat/1.png", NEGATIVE, b"L"),
        tar_header("cat/1.png", HUGE, b"x"),
        tar_header("cat/1.png", HUGE, b"K"),
        tar_header("cat/1.png", NEGATIVE, b"9"),
        tar_header("cat/1.png", b"%011o\0" % 20, b"x") + b"20 size=-2000000000\n".ljust(512, b"\0"),
        tar_header("cat/1.png", b"%011o\0" % 13, b"x") + b"13 mtime=nan\n".ljust(512, b"\0"),
        tar_header("cat/1.png", b"%011o\0" % 0, b"x") * 3_000,
    ],
)
@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_tars_with_impossible_sizes_are_one_sentence(tmp_path, head, ending):
    (tmp_path / "good").mkdir()
    tail = tar_header("cat/2.png", b"%011o\0" % 0) + bytes(1024)
    data = head + tail
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(data) if ending == ".tar.gz" else data)
    with pytest.raises(DataError, match=r"is not a complete tar archive"):
        find(path)


def test_quoted_cells_of_our_own_tables_are_read_again(tmp_path):
    """A clean manifest and a journal's export quote what a spreadsheet would run; training on them still works."""
    rows = [["path", "label"]]
    for i, name in enumerate(("=1.png", "-2.png", "@3.png", "+4.png", "plain.png", "'=5.png")):
        (tmp_path / name).write_bytes(picture(i))
        rows.append([name, ("=cat", "-1")[i % 2]])
    write_csv(tmp_path / "t.csv", rows)
    found = find(tmp_path / "t.csv")
    assert sorted(found.classes) == ["-1", "=cat"]
    assert len(found.labels) == 6


def test_a_zip_is_listed_member_by_member(tmp_path):
    """A ``ZipInfo`` is half a KB: a million of them do not stay in memory."""
    path, names = tmp_path / "many.zip", [f"{'ab'[number % 2]}/{number:05}.png" for number in range(5000)]
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    assert list_zip(path).names == names
    peaks = []
    for read in (list_zip, lambda path: zipfile.ZipFile(path).infolist()):
        tracemalloc.start()
        read(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 0.6 * peaks[1]
