"""Datasets, their corrections by several people, and their pages."""

import io
import os
import tarfile
import zipfile
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from sightline.errors import DataError
from sightline.files import write_csv
from sightline.sources import Edit, find
from sightline.studio.datasets import Datasets, EditConflict
from sightline.studio.grid import IMAGES_PER_PAGE, GridView, show_page

EVIL = "<img src=x onerror=alert(1)>"


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(stream, "png")
    return stream.getvalue()


def make_zip(path, files: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, data) in enumerate(files.items()):
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1 + number % 28, 12, 30, 2)), data)
    return path


@pytest.fixture
def datasets(tmp_path):
    return Datasets(tmp_path / "data")


@pytest.fixture
def animals(datasets, tmp_path):
    files = {f"{name}/{i}.png": png(10 * k + i) for k, name in enumerate(("cat", "dog", "owl")) for i in range(3)}
    return datasets.add(make_zip(tmp_path / "animals.zip", files), "my animals")


def labels(found) -> dict[str, str]:
    return {str(f): found.now.classes[k] for f, k in zip(found.now.files, found.now.labels, strict=True)}


def relabel(*files: str, to: str, by: str = "ada") -> Edit:
    return Edit(kind="label", names=files, value=to, by=by)


def test_a_dataset_is_what_the_verbs_read(datasets, animals):
    datasets.edit(animals, relabel("cat/0.png", to="dog"), seen=0)
    found = datasets.open(animals)
    assert datasets.list() == [(animals, "my_animals")]
    assert found.version == 1
    read = find(found.path)
    assert [read.classes[k] for k in read.labels] == [*labels(found).values()]
    assert labels(found)["cat/0.png"] == "dog"


def test_what_is_uploaded_into_its_folder_moves_with_it(datasets, tmp_path):
    folder = datasets.reserve()
    folder.mkdir(parents=True)
    make_zip(folder / "images.zip", {"a/1.png": png(1), "b/1.png": png(2)})
    id = datasets.add(folder / "images.zip", "../../x", folder)
    (tmp_path / "data").rename(tmp_path / "moved")
    assert len(Datasets(tmp_path / "moved").open(id).now) == 2
    assert not [*tmp_path.parent.glob("x*")]


@pytest.mark.parametrize(
    ("files", "match"),
    [({}, "image"), ({"readme.txt": b"nothing"}, "image"), ({"../a/1.png": png(1)}, "outside")],
)
def test_an_archive_of_nothing_or_of_hostile_paths_becomes_no_dataset(datasets, tmp_path, files, match):
    with pytest.raises(DataError, match=match):
        datasets.add(make_zip(tmp_path / "bad.zip", files), "bad")
    assert datasets.list() == []


def test_one_class_can_be_made_two(datasets, tmp_path):
    id = datasets.add(make_zip(tmp_path / "one.zip", {"cat/1.png": png(1), "cat/2.png": png(2)}), "one")
    with pytest.raises(DataError, match="only one class, 'cat'"):
        find(datasets.path(id))
    datasets.edit(id, relabel("cat/2.png", to=EVIL), seen=0, new_class=True)
    assert find(datasets.path(id)).classes == (EVIL, "cat")


def test_somebody_else_was_faster_on_the_same_image(datasets, animals):
    datasets.edit(animals, relabel("cat/0.png", "cat/1.png", to="dog", by="ada"), seen=0)
    late = relabel("cat/1.png", "cat/2.png", to="owl", by="bob")
    with pytest.raises(
        EditConflict, match=r"ada changed 1 of these images .* \(2 images are now 'dog'\)"
    ) as found:
        datasets.edit(animals, late, seen=0)
    assert found.value.can_repeat
    assert datasets.open(animals).version == 1
    assert labels(datasets.open(animals))["cat/2.png"] == "cat"
    datasets.edit(animals, late, seen=1)
    assert labels(datasets.open(animals))["cat/1.png"] == "owl"
    datasets.edit(animals, relabel("cat/1.png", to="dog", by="ada"), seen=1, anyway=True)
    assert labels(datasets.open(animals))["cat/1.png"] == "dog"


def test_edits_of_other_images_do_not_disturb_each_other(datasets, animals):
    for number in range(3):
        datasets.edit(animals, relabel(f"cat/{number}.png", to="dog", by=f"p{number}"), seen=0)
    assert datasets.open(animals).version == 3
    assert datasets.open(animals).now.classes == ("dog", "owl")


def test_a_class_that_was_removed_meanwhile_is_named(datasets, animals):
    datasets.edit(animals, Edit(kind="merge", names=("owl",), value="dog", by="ada"), seen=0)
    for edit in (relabel("cat/0.png", to="owl"), Edit(kind="merge", names=("owl",), value="cat")):
        with pytest.raises(EditConflict, match=r"no class 'owl' any more: ada merged it into 'dog'") as found:
            datasets.edit(animals, edit, seen=0)
        assert not found.value.can_repeat
    assert datasets.open(animals).version == 1
    datasets.edit(animals, relabel("cat/0.png", to="owl"), seen=1, new_class=True)
    assert datasets.open(animals).now.classes == ("cat", "dog", "owl")


def test_undo(datasets, animals):
    before = labels(datasets.open(animals))
    edit = datasets.edit(animals, relabel("cat/0.png", to="dog"), seen=0)
    datasets.undo(animals, edit.number, by="bob")
    assert labels(datasets.open(animals)) == before
    with pytest.raises(DataError, match="taken back already"):
        datasets.undo(animals, edit.number)


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb\0c", "\u202e"])
def test_impossible_class_names_are_refused(datasets, animals, name):
    with pytest.raises(DataError, match="A class needs a name"):
        datasets.edit(animals, relabel("cat/0.png", to=name), seen=0, new_class=True)


def test_two_processes_lose_nothing(datasets, animals):
    from concurrent.futures import ThreadPoolExecutor

    def work(worker: int) -> None:
        own = Datasets(datasets.folder)  # as another worker of the service has it
        for number in range(8):
            own.edit(animals, relabel(f"dog/{worker}.png", to=f"c{worker}.{number}"), seen=99, new_class=True)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
    found = datasets.open(animals)
    assert found.version == 24
    assert [labels(found)[f"dog/{i}.png"] for i in range(3)] == ["c0.7", "c1.7", "c2.7"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,050 images in three classes of unlike sizes, in an archive."""
    folder, pixel = tmp_path_factory.mktemp("many"), png(0)
    files = {f"{'aab'[i % 3]}/{i:04}.png": pixel for i in range(1000)} | {f"c/{i}.png": pixel for i in range(50)}
    datasets = Datasets(folder / "data")
    return datasets, datasets.add(make_zip(folder / "many.zip", files), "many"), [*files]


def test_pages_show_every_image_once(many):
    datasets, id, files = many
    dataset = datasets.open(id)
    for view in (GridView(), GridView(label="a"), GridView(order="newest")):
        first = show_page(dataset, view)
        seen = [
            cell
            for page in range(1, first.pages + 1)
            for cell in show_page(dataset, GridView(label=view.label, order=view.order, page=page)).cells
        ]
        wanted = [file for file in files if not view.label or file.startswith(f"{view.label}/")]
        assert sorted(cell.file for cell in seen) == sorted(wanted)
        assert first.total == len(wanted)
        assert all(str(dataset.base.files[cell.row]) == cell.file for cell in seen)
        assert first.pages == -(-len(wanted) // IMAGES_PER_PAGE)
    assert show_page(dataset, GridView(page=99)).page == 6


def test_jump_to_a_day(many):
    datasets, id, files = many
    dataset = datasets.open(id)
    day = {file: 1 + number % 28 for number, file in enumerate(files)}
    assert datetime.fromtimestamp(dataset.images.times[0], UTC).strftime("%H:%M:%S") == "12:30:02"
    page = show_page(dataset, GridView(date="2026-01-10"))
    days = [day[cell.file] for cell in page.cells]
    assert days == sorted(days, reverse=True)
    assert 10 in days
    newer = sum(1 for one in day.values() if one > 10)
    assert page.page == newer // IMAGES_PER_PAGE + 1
    with pytest.raises(DataError, match="is no day"):
        show_page(dataset, GridView(date="yesterday"))


def test_what_check_found_comes_first(many):
    datasets, id, files = many
    dataset = datasets.open(id)
    header = ["rank", "file", "label", "suggested", "p_label", "p_suggested"]
    rows = [
        [1, "c/3.png", "c", "a", 0.1, 0.9],
        [2, "a/0001.png", "a", "b", 0.2, 0.8],
        [3, "gone.png", "a", "b", 0, 1],
    ]
    write_csv(dataset.check_folder / "suspects.csv", [header, *rows])
    copies = [[7, "b/0002.png", "b", ""], [7, "a/0000.png", "a", "exact"]]
    write_csv(dataset.check_folder / "duplicates.csv", [["group", "file", "label", "kind"], *copies])
    shown = show_page(dataset, GridView(order="suspects"))
    assert [(cell.file, cell.note) for cell in shown.cells[:3]] == [
        ("c/3.png", "looks like a (90%)"),
        ("a/0001.png", "looks like b (80%)"),
        (sorted(files)[0], ""),
    ]
    shown = show_page(dataset, GridView(order="duplicates"))
    assert [(cell.file, cell.note) for cell in shown.cells[:2]] == [
        ("b/0002.png", "has copies"),
        ("a/0000.png", "the same file as b/0002.png"),
    ]
    datasets.edit(id, relabel("c/3.png", to="c"), seen=0)  # looked at, and right
    assert show_page(datasets.open(id), GridView(order="suspects")).cells[0].file == "a/0001.png"


def test_images_that_are_left_out_keep_the_numbers_of_the_others(datasets, animals):
    datasets.edit(animals, Edit(kind="remove", names=("cat/1.png",)), seen=0)
    dataset = datasets.open(animals)
    shown = show_page(dataset, GridView())
    assert len(shown.cells) == 8
    assert all(str(dataset.base.files[cell.row]) == cell.file for cell in shown.cells)


def test_times_of_folders_and_tars(datasets, tmp_path):
    for number, name in enumerate(("a/1", "b/1")):
        file = tmp_path / "f" / f"{name}.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(png(number))
        os.utime(file, (1.5e9 + number, 1.5e9 + number))
    with tarfile.open(tmp_path / "f.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        archive.add(tmp_path / "f", ".")
    for place in (tmp_path / "f", tmp_path / "f.tar"):
        dataset = datasets.open(datasets.add(place, "x"))
        assert [int(time - 1.5e9) for time in dataset.images.times] == [0, 1]


def test_a_split_is_drawn_once_with_each_class_in_its_share_and_copies_together(datasets, tmp_path):
    names = [(f"{word}/{i}.png", png(100 * k + i)) for k, word in enumerate(("cat", "dog")) for i in range(40)]
    id = datasets.add(make_zip(tmp_path / "many.zip", dict(names)), "many")
    copies = [f"cat/{i}.png" for i in range(12)]
    rows = [["group", "file", "label", "kind"], *([7, one, "cat", "exact"] for one in copies)]
    datasets.open(id).check_folder.mkdir()
    write_csv(datasets.open(id).check_folder / "duplicates.csv", rows)
    made = datasets.draw_split(id, by="ada")
    found = datasets.open(id)
    counted = {
        (word, name): int(((found.splits == word) & (found.now.labels == k)).sum())
        for word in ("val", "test")
        for k, name in enumerate(found.now.classes)
    }
    assert counted[("val", "dog")] == counted[("test", "dog")] == 6  # 15 % of 40
    where = dict(zip(map(str, found.now.files), found.splits, strict=True))
    assert len({where[one] for one in copies}) == 1
    assert find(found.path).columns["split"].tolist() == found.splits.tolist()
    with pytest.raises(DataError, match="splits already"):
        datasets.draw_split(id)
    for edit in made:
        datasets.undo(id, edit.number)
    assert not datasets.open(id).splits.any()


def test_a_class_of_two_images_is_not_split(datasets, tmp_path):
    files = {"cat/1.png": png(1), "cat/2.png": png(2), **{f"dog/{i}.png": png(3 + i) for i in range(5)}}
    id = datasets.add(make_zip(tmp_path / "few.zip", files), "few")
    with pytest.raises(DataError, match="'cat' has 2 images"):
        datasets.draw_split(id)
    assert datasets.open(id).version == 0
