"""A folder of features is the same to the byte however it was divided, killed or joined."""

import copy
import csv
import io
import json
import shutil
import sys
import zipfile
from collections import namedtuple

import numpy as np
import pytest
import torch

from helpers.attacked_classifiers import digits, trained
from helpers.digit_folders import write_digits
from sightline.baselines import fit_baseline
from sightline.cli import main
from sightline.data import decode, split
from sightline.errors import DataError, OutputError
from sightline.features import embedding_precision, merge_features, shards, store, write_features
from sightline.features.embedding import Embedder
from sightline.features.shards import FACTS_FILE, FEATURES_FILE, IMAGES_FILE
from sightline.sources import find_unlabelled

RESULTS = (FEATURES_FILE, IMAGES_FILE, FACTS_FILE)


@pytest.fixture
def small_units(monkeypatch):
    """Units of 16 images, so that 100 images have several."""
    monkeypatch.setattr(shards, "SHARD_UNIT", 16)
    monkeypatch.setattr(store, "KEPT_ROWS", 16)


@pytest.fixture
def source(tmp_path):
    """A hundred digits as files, the 41st of which is damaged."""
    folder = write_digits(tmp_path / "photos", {"3": (3, 0, 50), "7": (7, 0, 50)})
    found = find_unlabelled(folder)
    (folder / str(found.files[40])).write_bytes(b"no image")
    return find_unlabelled(folder)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in RESULTS}


def count_images(monkeypatch, stop_after=None):
    """Return a list that collects the rows of each embedded batch; raise KeyboardInterrupt at ``stop_after`` rows."""
    seen, original = [], Embedder.embed_batch

    def watched(self, rows):
        if stop_after is not None and len(seen) >= stop_after:
            raise KeyboardInterrupt
        seen.extend(rows.tolist())
        return original(self, rows)

    monkeypatch.setattr(Embedder, "embed_batch", watched)
    return seen


def test_a_row_is_what_the_plain_network_sees_in_its_file(source, tmp_path):
    classifier = trained()
    write_features(classifier, source, tmp_path / "out", precision=torch.float32)
    found = np.load(tmp_path / "out" / FEATURES_FILE, mmap_mode="r")
    with (tmp_path / "out" / IMAGES_FILE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted(f"{place.parent.name}/{place.name}" for place in (tmp_path / "photos").glob("*/*.png"))
    assert [row["file"] for row in rows] == names
    assert found.dtype == np.float32
    for number, (row, features) in enumerate(zip(rows, found, strict=True)):
        data = (tmp_path / "photos" / row["file"]).read_bytes()
        if number == 40:
            assert np.isnan(features).all()
            assert row["error"]
            continue
        assert not row["error"]
        pixels = torch.tensor(decode(data, classifier.geometry)).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            wanted = classifier.network.embed(classifier.preprocessing(pixels))[0].numpy()
        assert np.allclose(features, wanted, atol=1e-4 * np.abs(wanted).max())
    assert json.loads((tmp_path / "out" / FACTS_FILE).read_text())["unreadable"] == 1


@pytest.mark.parametrize("count", [2, 5, 7])
def test_shards_in_any_order_are_the_whole_to_the_byte(small_units, source, tmp_path, monkeypatch, count):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    write_features(trained(), source, whole)
    seen = count_images(monkeypatch)
    for number in reversed(range(1, count + 1)):
        write_features(trained(), source, parts, (number, count))
    assert sorted(seen) == list(range(100))
    merge_features(parts)
    assert contents(parts) == contents(whole)
    write_features(trained(), source, parts, (1, count))  # there already: nothing is embedded
    merge_features(parts)
    assert len(seen) == 100
    assert contents(parts) == contents(whole)


@pytest.mark.parametrize("shard", [(1, 1), (2, 2)])
def test_what_was_killed_goes_on_to_the_same_bytes(small_units, source, tmp_path, monkeypatch, shard):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_features(trained(), source, whole, shard)
    with monkeypatch.context() as patch:
        count_images(patch, stop_after=32)
        with pytest.raises(KeyboardInterrupt):
            write_features(trained(), source, killed, shard)
    (work,) = [place for place in killed.iterdir() if place.is_dir()]
    assert not [*killed.glob("**/[!.]*-of-*")]
    torn = np.load(work / FEATURES_FILE, mmap_mode="r+")
    torn[3] += 1  # a row that a crash of the machine left half written
    torn.flush()
    seen = count_images(monkeypatch)
    write_features(trained(), source, killed, shard)
    rows = 100 if shard == (1, 1) else 52
    assert 16 <= rows - len(seen) < 32  # the second unit was kept, and the first computed again
    place = "." if shard == (1, 1) else "2-of-2"
    assert contents(killed / place) == contents(whole / place)


def test_a_missing_or_damaged_shard_is_named(small_units, source, tmp_path):
    for number in (1, 2, 4):
        write_features(trained(), source, tmp_path / "out", (number, 5))
    with pytest.raises(DataError, match=r"lacks the shards 3/5, 5/5 of 5: .*--shard 3/5 first\.$"):
        merge_features(tmp_path / "out")
    for number in (3, 5):
        write_features(trained(), source, tmp_path / "out", (number, 5))
    part = tmp_path / "out" / "2-of-5"
    kept = part / FEATURES_FILE
    data = bytearray(kept.read_bytes())
    data[-3] ^= 1
    for harm in (lambda: kept.write_bytes(data), lambda: kept.write_bytes(data[:-200]), kept.unlink):
        harm()
        with pytest.raises(DataError, match=r"2-of-5' is damaged: delete it and run --shard 2/5 again"):
            merge_features(tmp_path / "out")
    assert not (tmp_path / "out" / FEATURES_FILE).exists()
    shutil.rmtree(part)
    write_features(trained(), source, tmp_path / "out", (2, 5))
    assert merge_features(tmp_path / "out")["images"] == 100


def test_shards_that_do_not_belong_together_are_refused(small_units, source, tmp_path):
    out = tmp_path / "out"
    write_features(trained(), source, out, (1, 2))
    others = copy.deepcopy(trained())
    with torch.no_grad():
        next(others.network.parameters()).add_(1)
    with pytest.raises(DataError, match=r"1-of-2' has features of other weights: delete it, or choose another"):
        write_features(others, source, out, (2, 2))
    with pytest.raises(DataError, match="has features of other images"):
        write_features(trained(), source.subset(np.arange(60)), out, (2, 2))
    precision = torch.float32 if embedding_precision(trained()) is torch.bfloat16 else torch.bfloat16
    with pytest.raises(DataError, match=r"features of another precision \(--precision\)"):
        write_features(trained(), source, out, (2, 2), precision)
    with pytest.raises(DataError, match="one of 2 shards, not of 3"):
        write_features(trained(), source, out, (2, 3))
    with pytest.raises(DataError, match="100 images, and a part has at least 16: ask for at most 7"):
        write_features(trained(), source, out, (1, 8))
    write_features(others, source, tmp_path / "others", (2, 2))
    (tmp_path / "others" / "2-of-2").rename(out / "2-of-2")
    with pytest.raises(DataError, match="2-of-2' has features of other weights"):
        merge_features(out)
    with pytest.raises(DataError, match="has no shards: write all of one division"):
        merge_features(tmp_path)


def test_a_disk_without_room_is_refused_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(2000))
    with pytest.raises(
        OutputError, match=r"100 images take 0.0\d GB, and the disk of '.*' has 0.00 GB free: free"
    ):
        write_features(trained(), source, tmp_path / "out")
    assert not [*(tmp_path / "out").glob("**/*.npy")]


def test_the_verb_divides_joins_and_refuses(small_units, source, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "out"
    trained().save(run)
    words = ["features", source.name, "--model", str(run), "--out", str(out)]
    for number in (1, 2):
        assert main([*words, "--shard", f"{number}/2", "--json"]) == 0
    assert main(["features", "--merge", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["images"], said["unreadable"], said["out"]) == (100, 1, str(out))
    assert np.load(out / FEATURES_FILE).shape == (100, said["width"])
    write_features(trained(), source, tmp_path / "api")
    assert contents(out) == contents(tmp_path / "api")
    for wrong, says in (
        (["features", source.name], "Name the images and a folder"),
        (["features", source.name, "--merge", str(out)], "--merge needs only its folder"),
        ([*words, "--shard", "3/2"], "--shard is '3/2'"),
        (["features", source.name, "--out", str(out), "--model", str(tmp_path / "none")], "none"),
    ):
        assert main(wrong) == 2
        assert says in capsys.readouterr().err


def table(folder):
    """The features of each file."""
    with (folder / IMAGES_FILE).open(newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream)]
    return dict(zip(files, np.load(folder / FEATURES_FILE), strict=True))


def test_words_are_those_of_predict(small_units, source, tmp_path, capsys, monkeypatch):
    """Files, patterns, folders and archives: the files, in the order, that predict answers; and by shards the same."""
    trained().save(tmp_path / "run")
    photos, verb = tmp_path / "photos", ["features", "--model", str(tmp_path / "run"), "--precision", "float32"]
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        for file in sorted((photos / "7").iterdir()):
            archive.write(file, f"more/{file.name}")
    first = min((photos / "3").iterdir())
    nowhere = photos / "nowhere.png"
    words = [str(photos / "7" / "*.png"), str(first), str(photos / "3"), str(tmp_path / "more.zip"), str(nowhere)]
    assert main([*verb, *words, "--out", str(tmp_path / "all")]) == 0
    asked = ["predict", str(tmp_path / "run"), *words, "--format", "jsonl", "--out", str(tmp_path / "all.jsonl")]
    assert main(asked) == 0
    answers = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    with (tmp_path / "all" / IMAGES_FILE).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == [answer["file"] for answer in answers]
    assert [row["error"] or None for row in rows] == [answer["error"] for answer in answers]
    assert rows[-1]["file"] == str(nowhere)
    assert sum(bool(row["error"]) for row in rows) == 2
    for number in (1, 2, 3):
        assert main([*verb, *words, "--out", str(tmp_path / "parts"), "--shard", f"{number}/3"]) == 0
    assert main(["features", "--merge", str(tmp_path / "parts")]) == 0
    assert contents(tmp_path / "parts") == contents(tmp_path / "all")
    write_features(trained(), source, tmp_path / "folder", precision=torch.float32)
    whole = table(tmp_path / "folder")
    for file, found in table(tmp_path / "all").items():
        name = file.replace(f"{tmp_path / 'more.zip'}/more", "7").replace(f"{photos}/", "")
        if name in whole:
            np.testing.assert_allclose(found, whole[name], rtol=1e-4, atol=1e-4)
    listed = io.TextIOWrapper(io.BytesIO("\n".join(row["file"] for row in rows[:50]).encode()))
    monkeypatch.setattr(sys, "stdin", listed)
    assert main([*verb, "-", "--out", str(tmp_path / "stdin")]) == 0
    assert [*table(tmp_path / "stdin")] == [row["file"] for row in rows[:50]]
    capsys.readouterr()
    for wrong, says in (
        ([str(photos / "*.gif")], "No image was found at"),
        ([str(nowhere)], "could be read, the first is"),
        (["--wrong"], "--wrong"),
    ):
        assert main([*verb, *wrong, "--out", str(tmp_path / "wrong")]) == 2
        assert says in capsys.readouterr().err


def test_a_classifier_without_features_is_refused_in_a_sentence(source, tmp_path, capsys):
    fit_baseline(split(digits()[2], seed=1), "decision-tree").save(tmp_path / "tree")
    words = ["features", source.name, "--model", str(tmp_path / "tree"), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "has no features, because it has no last layer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
