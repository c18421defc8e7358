"""Corrections in a file of their own: what they mean, that they survive, and that images are never touched."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data import load_dataset
from sightline.errors import DataError
from sightline.sources import Edit, append_edit, apply_edits, find, read_edit_file, write_edit_file
from sightline.types import Geometry


@pytest.fixture
def photos(tmp_path):
    """Six pictures in three classes, each of another grey, and a file of corrections of them."""
    for number, name in enumerate(("cat/1", "cat/2", "dog/1", "dog/2", "owl/1", "owl/2")):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 8), 20 + 30 * number).save(file)
    return write_edit_file(tmp_path / "photos.edits", "photos")


def labels(source) -> dict[str, str]:
    return {str(f): source.classes[k] for f, k in zip(source.files, source.labels, strict=True)}


def test_edits_correct_what_is_read_and_leave_the_files_alone(photos):
    before = {path: path.read_bytes() for path in photos.parent.rglob("*.png")}
    append_edit(photos, Edit(kind="label", names=("cat/1.png", "dog/1.png"), value="wolf", by="ada"))
    append_edit(photos, Edit(kind="merge", names=("owl",), value="dog"))
    append_edit(photos, Edit(kind="remove", names=("cat/2.png",)))
    found = find(photos)
    assert labels(found) == {
        "cat/1.png": "wolf",
        "dog/1.png": "wolf",
        "dog/2.png": "dog",
        "owl/1.png": "dog",
        "owl/2.png": "dog",
    }
    assert found.classes == ("dog", "wolf")  # cat has no image left
    assert {path: path.read_bytes() for path in photos.parent.rglob("*.png")} == before
    dataset = load_dataset(found, Geometry(size=(8, 9), channels=1), cache=photos.parent / "cache")
    assert {str(f): int(p.mean()) for f, p in zip(dataset.files, dataset[:], strict=True)}["owl/2.png"] == 170


def test_undo_and_the_order_of_edits(photos):
    one = append_edit(photos, Edit(kind="label", names=("cat/1.png",), value="dog"))
    two = append_edit(photos, Edit(kind="label", names=("cat/1.png",), value="owl"))
    assert (one.number, two.number) == (1, 2)
    assert labels(find(photos))["cat/1.png"] == "owl"
    append_edit(photos, Edit(kind="undo", names=("2",)))
    assert labels(find(photos))["cat/1.png"] == "dog"
    append_edit(photos, Edit(kind="undo", names=("1",)))
    assert labels(find(photos)) == labels(find(photos.parent / "photos"))


def test_relabelling_decodes_nothing_again_but_is_another_dataset(photos):
    before = find(photos)
    append_edit(photos, Edit(kind="label", names=("cat/1.png",), value="dog"))
    after = find(photos)
    assert after.fingerprint == before.fingerprint  # the store's key
    geometry, cache = Geometry(size=(8, 9), channels=1), photos.parent / "cache"
    one, two = (load_dataset(each, geometry, cache=cache) for each in (before, after))
    assert one.pixels.path == two.pixels.path
    assert one.fingerprint != two.fingerprint


def test_images_move_between_splits(photos):
    append_edit(photos, Edit(kind="split", names=("cat/1.png", "dog/1.png"), value="test"))
    split = dict(zip(map(str, find(photos).files), find(photos).columns["split"], strict=True))
    assert [file for file, word in split.items() if word == "test"] == ["cat/1.png", "dog/1.png"]
    append_edit(photos, Edit(kind="split", names=("owl/1.png", "owl/2.png"), value="test"))
    with pytest.raises(DataError, match=r"test split .* classes that are not in train \('owl'\)"):
        find(photos)


def test_random_edits_agree_with_a_plain_replay(photos):
    source, random_ = find(photos), random.Random(3)
    files, names = [str(f) for f in source.files], ["cat", "dog", "owl", "new", "yak"]
    edits, meant = [], labels(source)
    for _ in range(60):
        if random_.random() < 0.2:
            old, new = random_.sample(names, 2)
            edits.append(Edit(kind="merge", names=(old,), value=new))
            meant = {file: new if name == old else name for file, name in meant.items()}
        else:
            chosen, new = random_.sample(files, 2), random_.choice(names)
            edits.append(Edit(kind="label", names=tuple(chosen), value=new))
            meant |= dict.fromkeys(chosen, new)
    found = apply_edits(source, edits)
    assert labels(found) == meant
    assert found.classes == tuple(sorted(set(meant.values())))
    assert np.bincount(found.labels, minlength=len(found.classes)).all()


def test_a_line_cut_short_by_a_kill_does_not_count_and_is_overwritten(photos):
    append_edit(photos, Edit(kind="label", names=("cat/1.png",), value="dog"))
    with photos.open("ab") as stream:
        stream.write(b'{"kind": "label", "names": ["cat/2.p')
    assert len(read_edit_file(photos).edits) == 1
    append_edit(photos, Edit(kind="label", names=("cat/2.png",), value="dog"))
    assert [edit.names for edit in read_edit_file(photos).edits] == [("cat/1.png",), ("cat/2.png",)]
    assert all(json.loads(line) for line in photos.read_text().splitlines())


def test_images_that_are_gone_are_said_so(photos):
    append_edit(photos, Edit(kind="label", names=("cat/1.png", "dog/1.png"), value="owl"))
    (photos.parent / "photos" / "cat" / "1.png").unlink()
    found = find(photos)
    assert labels(found)["dog/1.png"] == "owl"
    assert any("corrections of 1 images that are not there any more" in note for note in found.notes)


@pytest.mark.parametrize(
    "line",
    ["{", '{"kind": "paint"}', '{"kind": "undo", "names": ["1"]}', '{"kind": "label", "names": 3}', "[]", "{}"],
)
def test_a_damaged_file_is_named_with_its_line(photos, line):
    photos.write_text(photos.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"Line 2 of .*photos\.edits' is not what corrections look like"):
        find(photos)


def test_what_keeps_an_edit_out_leaves_the_file_as_it_was(photos):
    before = photos.read_bytes()

    def refuse(_) -> None:
        raise DataError("Ada was faster.")

    with pytest.raises(DataError, match="faster"):
        append_edit(photos, Edit(kind="remove", names=("cat/1.png",)), refuse)
    assert photos.read_bytes() == before
    with pytest.raises(DataError, match="cannot be read"):
        append_edit(Path(photos.parent, "absent.edits"), Edit(kind="remove"))


def test_a_file_of_corrections_names_images_not_corrections(photos):
    twice = write_edit_file(photos.parent / "twice.edits", "photos.edits")
    with pytest.raises(DataError, match="corrects another file of corrections"):
        find(twice)
