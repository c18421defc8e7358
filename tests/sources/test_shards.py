"""Sets of tars, written by Python's tarfile as WebDataset writes them, and read without unpacking."""

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sightline import data
from sightline.errors import DataError, ImageError
from sightline.sources import (
    LabelRule,
    MemberFile,
    absolute_place,
    find,
    find_images,
    find_unlabelled,
    list_shards,
    samples,
)
from sightline.sources import archives as archives_module
from sightline.types import Geometry


def picture(value: int) -> bytes:
    """A grey PNG of one value, by which a test knows it again."""
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def value_of(raw: bytes) -> int:
    return int(np.asarray(Image.open(io.BytesIO(raw)))[0, 0])


def write_tar(path: Path, files: dict[str, bytes], mode: Any = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, raw in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def sample_files(numbers: range, *, form: str = "cls") -> dict[str, bytes]:
    """Samples whose class is their number modulo 3."""
    files = {}
    for n in numbers:
        files[f"{n:04}.png"] = picture(n)
        label = (
            f"{n % 3}\n"
            if form == "cls"
            else json.dumps({"label": "abc"[n % 3], "patient": n // 2, "x": "y" * 999})
        )
        files[f"{n:04}.{form}"] = label.encode()
    return files


def folder_files(numbers: range) -> dict[str, bytes]:
    return {f"{'abc'[n % 3]}/{n:04}.png": picture(n) for n in numbers}


def check_all(source, numbers) -> None:
    """Every image once, with the label of its number."""
    values = [value_of(source.read(i)) for i in range(len(source))]
    assert sorted(values) == sorted(numbers)
    assert [v % 3 for v in values] == source.labels.tolist()


@pytest.mark.parametrize("form", ["cls", "json", "folders"])
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("place", ["folder", "glob", "braces", "one"])
def test_every_image_of_the_shards_is_read_once_with_its_label(tmp_path, form, ending, place):
    mode = "w:gz" if ending == "tar.gz" else "w"
    for k in range(3):
        numbers = range(10 * k, 10 * k + 10)
        files = folder_files(numbers) if form == "folders" else sample_files(numbers, form=form)
        write_tar(tmp_path / "s" / f"shard-{k:03}.{ending}", files, mode)
    word = {
        "folder": tmp_path / "s",
        "glob": f"{tmp_path}/s/shard-*.{ending}",
        "braces": f"{tmp_path}/s/shard-{{000..002}}.{ending}",
        "one": tmp_path / "s" / f"shard-001.{ending}",
    }[place]
    source = find(word)
    check_all(source, range(10, 20) if place == "one" else range(30))
    assert source.classes == (("0", "1", "2") if form == "cls" else ("a", "b", "c"))
    if form == "json":
        assert source.columns["patient"].tolist() == [
            str(value_of(source.read(i)) // 2) for i in range(len(source))
        ]
        assert "x" not in source.columns  # a text without bounds
    if place != "one":  # in the order of the tars, which is one pass over each
        assert [name.split("/")[0] for name in source.files] == sorted(name.split("/")[0] for name in source.files)
    again, moved = find(word), pickle.loads(pickle.dumps(source))
    assert again.fingerprint == source.fingerprint == moved.fingerprint
    assert [again.read(i) for i in range(len(again))] == [moved.read(i) for i in range(len(moved))]
    dataset = data.load_dataset(source, Geometry(size=(8, 8), channels=1))
    assert dataset[np.arange(len(source))][:, 0, 0, 0].tolist() == [
        value_of(source.read(i)) for i in range(len(source))
    ]
    unlabelled = find_unlabelled(word)
    assert len(unlabelled) == len(source)
    assert [value_of(each.read()) for each in find_images(str(word)) if isinstance(each, MemberFile)] == [
        value_of(source.read(i)) for i in range(len(source))
    ]


@pytest.mark.parametrize("form", ["cls", "folders"])
@pytest.mark.parametrize("names", [("train-0", "train-1", "val-0"), ("train/0", "train/1", "valid/0")])
def test_the_split_is_that_of_the_shards_name(tmp_path, form, names):
    for k, name in enumerate(names):
        numbers = range(10 * k, 10 * k + 10)
        write_tar(tmp_path / f"{name}.tar", sample_files(numbers) if form == "cls" else folder_files(numbers))
    source = find(tmp_path)
    check_all(source, range(30))
    expected = ["val" if value_of(source.read(i)) >= 20 else "train" for i in range(30)]
    assert source.columns["split"].tolist() == expected == find(tmp_path).columns["split"].tolist()


def test_a_split_inside_of_the_shards_is_kept(tmp_path):
    for k in range(2):
        files = {f"{'train' if n % 10 < 7 else 'test'}/{name}": raw for n in range(10 * k, 10 * k + 10)
                 for name, raw in folder_files(range(n, n + 1)).items()}  # fmt: skip
        write_tar(tmp_path / f"{k}.tar", files)
    source = find(tmp_path)
    check_all(source, range(20))
    assert source.columns["split"].tolist() == [
        "train" if value_of(source.read(i)) % 10 < 7 else "test" for i in range(20)
    ]
    split = json.dumps({"label": "a", "split": "test"}).encode()
    other = json.dumps({"label": "b", "split": "train"}).encode()
    files = {"1.png": picture(1), "1.json": split, "2.png": picture(2), "2.json": other, "3.png": picture(3)}
    files["3.json"] = json.dumps({"label": "a", "split": "train"}).encode()
    write_tar(tmp_path / "j" / "0.tar", files)
    assert find(tmp_path / "j").columns["split"].tolist() == ["test", "train", "train"]


def test_equal_names_in_two_shards_are_two_images(tmp_path):
    for k in range(2):
        moved = {name: picture(20 * k + n) if name.endswith("png") else raw
                 for n, (name, raw) in enumerate(sample_files(range(6)).items())}  # fmt: skip
        write_tar(tmp_path / f"{k}.tar", moved)
    source = find(tmp_path)
    assert len(source) == 12
    assert len({source.read(i) for i in range(12)}) == 12
    assert len(set(source.files)) == 12


def test_few_files_are_open_however_many_shards_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(archives_module, "MAX_MAPPED_SHARDS", 4)
    for k in range(30):
        write_tar(tmp_path / f"{k:03}.tar", sample_files(range(k, k + 3)))
    source = find(tmp_path)
    check_all(source, [n for k in range(30) for n in range(k, k + 3)])
    assert 1 <= len(vars(source.reader)["_maps"]) <= 4


def test_masks_samples_without_a_label_and_other_columns(tmp_path):
    files = sample_files(range(6)) | {"0000.mask.png": picture(200), "9999.png": picture(99), "8888.cls": b"1"}
    write_tar(tmp_path / "0.tar", files)
    source = find(tmp_path)
    known = {value_of(source.read(i)): int(source.labels[i]) for i in range(len(source))}
    assert known == {n: n % 3 for n in range(6)} | {99: -1}
    assert any("1 further image" in note for note in source.notes)
    assert any("no label" in note for note in source.notes)
    breeds = {}
    for n in range(4):
        breeds |= {f"{n}.png": picture(n), f"{n}.json": json.dumps({"name": "xy"[n % 2]}).encode()}
    write_tar(tmp_path / "b" / "0.tar", breeds)
    assert find(tmp_path / "b", rule=LabelRule(label_column="name")).classes == ("x", "y")
    with pytest.raises(DataError, match="no class folders"):
        find(tmp_path / "b")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../x.png": b""}, "would land outside"),
        ({"/etc/x.png": b""}, "would land outside"),
        ({"1.png": picture(1), "1.jpg": picture(2), "1.cls": b"0"}, "The sample '1.tar/1' .* has 2 images"),
        ({"1.png": picture(1), "1.cls": b"\xff\xfe\x00"}, "'1.tar/1.cls' .* is no label"),
        ({"1.png": picture(1), "1.json": b"[1]"}, "'1.tar/1.json' .* is not a JSON object"),
        ({"1.png": picture(1), "1.json": b"{" * 5000}, "'1.tar/1.json' .* is not valid JSON"),
        ({"1.png": picture(1), "1.cls": b"0" * 1_000_001}, "more than 1,000,000 bytes"),
    ],
)
def test_bad_shards_are_refused_in_a_sentence(tmp_path, files, message):
    form = "json" if "1.json" in files else "cls"
    write_tar(tmp_path / "0.tar", sample_files(range(6), form=form))
    write_tar(tmp_path / "1.tar", files)
    with pytest.raises(DataError, match=message) as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)


def test_links_cut_tars_and_bombs_are_refused(tmp_path, monkeypatch):
    write_tar(tmp_path / "0.tar", sample_files(range(6)))
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:3000])
    with pytest.raises(DataError, match=r"1\.tar' is not a complete tar"):
        find(tmp_path)
    with tarfile.open(tmp_path / "1.tar", "w") as archive:
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="holds a link or device"):
        find(tmp_path)
    (tmp_path / "1.tar").unlink()
    write_tar(tmp_path / "1.tar.gz", {"a/0.png": bytes(3_000_000)}, "w:gz")
    monkeypatch.setattr(archives_module, "MAX_UNPACKED_TAR_BYTES", 1_000_000)
    with pytest.raises(DataError, match=r"1\.tar\.gz' grows beyond"):
        find(tmp_path)


def test_missing_shards_are_named(tmp_path):
    write_tar(tmp_path / "x-0.tar", sample_files(range(6)))
    with pytest.raises(DataError, match=r"names 3 tars, and 2 of them are missing.*x-1\.tar"):
        find(f"{tmp_path}/x-{{0..2}}.tar")
    with pytest.raises(DataError, match="No tar fits the pattern"):
        find(f"{tmp_path}/y-*.tar")
    with pytest.raises(DataError, match="name 1 to 100,000"):
        find(f"{tmp_path}/x-{{0..999999}}.tar")
    with pytest.raises(DataError, match="name 1 to 100,000"):
        find(f"{tmp_path}/x-{{0..999}}{{0..999}}.tar")
    with pytest.raises(DataError, match="name 0 files: name 1"):
        find(f"{tmp_path}/x-{{3..1}}.tar")
    (tmp_path / "y-0.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"y-0\.tar"):
        find(f"{tmp_path}/y-*.tar")


def test_a_recipe_keeps_a_pattern_as_a_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_place("s/x-{000..009}.tar") == f"{tmp_path.resolve()}/s/x-{{000..009}}.tar"
    assert absolute_place("digits") == "digits"


def test_a_shard_that_goes_away_is_an_image_that_cannot_be_read(tmp_path):
    path = write_tar(tmp_path / "0.tar", sample_files(range(3)))
    reader = list_shards([path]).reader
    path.unlink()
    with pytest.raises(ImageError, match=r"0\.tar"):
        reader.read(0)


def test_a_set_of_shards_that_changes_is_listed_again(tmp_path):
    write_tar(tmp_path / "0.tar", sample_files(range(6)))
    first = find(tmp_path)
    write_tar(tmp_path / "1.tar", sample_files(range(6, 12)))
    second = find(tmp_path)
    check_all(second, range(12))
    assert second.fingerprint != first.fingerprint


def test_unpacked_samples_are_read_like_packed_ones(tmp_path):
    for name, raw in sample_files(range(9)).items():
        (tmp_path / name).write_bytes(raw)
    check_all(find(tmp_path), range(9))
    assert samples.sample_key("a.b/c.d.e") == "a.b/c"
