"""What differs between two worlds: planted shifts are named, each by its own sentence, and nothing else is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu

from helpers.digit_folders import write_digits
from helpers.photo_folder import write_photos
from sightline.adaptation import compare_worlds
from sightline.adaptation.shift import describe_images, measure_content, share_larger, tell_apart
from sightline.cli import main
from sightline.data import load_dataset
from sightline.sources import find, find_unlabelled
from sightline.types import Geometry


def group_words(findings):
    """The groups that the remarks name."""
    return [one.text.partition(":")[0].lower() for one in findings.remarks if "medians" in one.text]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    write_digits(folder / "one", {f"d{d}": (d, 0, 120) for d in range(4)})
    for file in sorted((folder / "one").rglob("*.png"))[::2]:  # writers come in order: each world gets some of all
        place = folder / "two" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        file.rename(place / file.name)
    return folder


def load(place, channels=1):
    return load_dataset(find(place), Geometry(size=(28, 28), channels=channels))


def change(images, function):
    """The images with other pixels."""
    pixels = np.stack([function(one) for one in images[:]])
    return replace(images, pixels=pixels, rows=np.arange(len(images)), digests=images.digests + np.uint64(1))


def test_images_of_one_world_have_not_shifted(home):
    findings = compare_worlds(load(home / "one"), load(home / "two"))
    assert not any(one["shifted"] for one in findings.values["shifts"])
    assert findings.remarks[0].text.startswith("Nothing that is measured here shifted")


def test_a_smaller_content_is_a_shift_of_framing_named_first(home):
    def shrink(image):
        made = np.zeros_like(image)
        made[6:20, 6:20] = image[::2, ::2]
        return made

    findings = compare_worlds(load(home / "one"), change(load(home / "two"), shrink))
    assert group_words(findings)[0] == "framing"
    assert "crop both worlds to their content" in findings.remarks[0].text
    width = next(one for one in findings.values["shifts"] if one["name"] == "width of the content")
    assert width["target"] == pytest.approx(width["source"] / 2, rel=0.1)


def test_light_is_a_shift_of_ink_alone(home):
    findings = compare_worlds(load(home / "one"), change(load(home / "two"), lambda one: one // 3 + 80))
    assert group_words(findings) == ["ink"]


def test_a_tint_is_a_shift_of_colour(home):
    def tint(image):
        made = image.copy()
        made[..., 0] = made[..., 0] // 2
        return made

    findings = compare_worlds(load(home / "one", 3), change(load(home / "two", 3), tint))
    assert "colour" in group_words(findings)
    assert "framing" not in group_words(findings)


def test_file_sizes_are_compared(home, tmp_path):
    for file in (home / "two").rglob("*.png"):
        place = tmp_path / "wide" / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        Image.open(file).resize((32, 16), 0).save(place / file.name)
    findings = compare_worlds(load(home / "one"), load(tmp_path / "wide"))
    assert group_words(findings)[0] == "size"
    assert "framing" not in group_words(findings)


def test_copies_and_other_classes_are_named(home, tmp_path):
    shutil.copytree(home / "two", tmp_path / "two")
    (tmp_path / "two" / "d3").rename(tmp_path / "two" / "four")
    for number, file in enumerate(sorted((home / "one" / "d0").iterdir())[:4]):
        shutil.copy(file, tmp_path / "two" / "d0" / f"copy{number}.png")
    findings = compare_worlds(load(home / "one"), load(tmp_path / "two"))
    texts = " ".join(one.text for one in findings.remarks)
    assert "4 target images are copies of source images" in texts
    assert "classes that the source lacks: four." in texts
    assert findings.values["copies"] == 4


def test_too_few_images_are_refused_in_words(home):
    few = load(home / "one").subset(np.arange(9))
    assert "9 images are too few" in compare_worlds(few, load(home / "two")).remarks[0].text


def test_content_is_measured_as_pillow_does():
    pixels = np.zeros((3, 20, 30, 1), np.uint8)
    pixels[0, 4:10, 5:25] = 200
    pixels[1] = 90
    pixels[1, 15, 2] = 10
    width, height, x, y, share = measure_content(pixels).T
    for number in (0, 1):
        mask = Image.fromarray((pixels[number, ..., 0] != pixels[number, 0, 0, 0]).astype(np.uint8))
        left, top, right, bottom = mask.getbbox()
        assert width[number] == pytest.approx((right - left) / 30)
        assert height[number] == pytest.approx((bottom - top) / 20)
        assert (x[number], y[number]) == pytest.approx(((left + right) / 60, (top + bottom) / 40))
    assert share[0] == pytest.approx(6 * 20 / 600)
    assert (width[2], height[2], x[2], y[2], share[2]) == (0, 0, 0.5, 0.5, 0)


def test_the_share_is_mann_whitney_s():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.5, 1, 70).round(1), rng.normal(0, 1, 50).round(1)
    expected = mannwhitneyu(a, b).statistic / (70 * 50)
    found = share_larger(a, b)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high


def test_features_of_one_distribution_cannot_be_told_apart():
    rng = np.random.default_rng(1)
    same = tell_apart(rng.normal(size=(150, 20)), rng.normal(size=(150, 20)))
    assert same.low < 0.5 < same.high
    assert tell_apart(rng.normal(size=(150, 20)), rng.normal(0.7, 1, (150, 20))).low > 0.9


def test_photos_are_compared_by_the_published_network(tmp_path):
    write_photos(tmp_path / "photos", 8)
    images = load_dataset(find(tmp_path / "photos"), Geometry(size=(224, 224), resize_mode="crop"))
    findings = compare_worlds(images, replace(images, digests=images.digests + np.uint64(1)))
    features = findings.values["shifts"][-1]
    assert features["name"] == "features"
    assert not features["shifted"]
    assert "colour" in describe_images(images)


def test_the_command_prints_what_shifted(home, tmp_path, capsys):
    for number, file in enumerate((home / "two").rglob("*.png")):  # a flat folder without labels
        (tmp_path / "there").mkdir(exist_ok=True)
        Image.fromarray(np.asarray(Image.open(file)) // 3 + np.uint8(80)).save(
            tmp_path / "there" / f"{number}.png"
        )
    words = ["check", str(home / "one"), str(tmp_path / "there")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "WARNING: Ink:" in printed
    assert "sightline adapt RUN TARGET" in printed
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == [240, 240]
    assert main([*words, "--deep"]) == 2
    assert "takes no other flags" in capsys.readouterr().err


def test_a_file_of_arrays_is_a_target_too(tmp_path):
    """Its labels and classes are left aside."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 12), np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels, labels=np.arange(20) % 2)
    found = load_dataset(find_unlabelled(tmp_path / "images.npz"), Geometry(size=(12, 12), channels=1))
    assert len(found) == 20
    assert found.classes == ()
    assert not found.is_labelled.any()
