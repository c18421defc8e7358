"""What a user may get wrong: one clear sentence on stderr, exit 2, nothing lost and nothing half made."""

import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sightline.cli import main
from sightline.files import checksum

QUICK = ("--model", "mlp", "--size", "8", "--epochs", "1")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def check_refused(cli):
    """Run a command that must be refused with a sentence that says ``parts``; no run may be left behind."""

    def run(words, *parts):
        answer = cli(*words)
        assert answer.code == 2, answer.err
        assert answer.out == ""
        assert sum(line.startswith("sightline: ") for line in answer.err.splitlines()) == 1
        assert "Traceback" not in answer.err
        for part in parts:
            assert str(part) in answer.err
        assert not list(Path().glob("runs/*")), "a run was left behind"

    return run


def picture(kind="PNG", size=12, seed=0):
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()


def folders(root, **classes):
    """Class folders of so many pictures each."""
    for number, (label, count) in enumerate(classes.items()):
        (root / label).mkdir(parents=True)
        for i in range(count):
            (root / label / f"{i:02d}.png").write_bytes(picture(seed=1000 * number + i))
    return root


def bomb(side=60_000):
    """A PNG of few bytes that claims side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


BAD = {
    "cut.jpg": picture("JPEG", 64)[:900],
    "empty.png": b"",
    "text.png": b"this was never a picture\n" * 9,
    "bomb.png": bomb(),
}


# Data


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_missing_path(check_refused, tmp_path, verb):
    folders(tmp_path / "pets", cat=2, dog=2)
    check_refused((verb, "pest"), "There is nothing at 'pest'. Did you mean 'pets'?")


@pytest.mark.parametrize("verb", ["check", "train"])
def test_an_empty_folder(check_refused, tmp_path, verb):
    (tmp_path / "void").mkdir()
    check_refused((verb, "void"), "'void' holds no images", "one sub-folder of images for each class")


def test_one_class_only(check_refused, tmp_path):
    folders(tmp_path / "pets", cat=5)
    check_refused(("train", "pets"), "only one class, 'cat'", "at least two")


def test_a_folder_without_images_is_left_out_and_reported(cli, tmp_path):
    folders(tmp_path / "pets", cat=12, dog=12, eel=0)
    answer = cli("train", "pets", *QUICK, "--out", "r", "--json")
    assert answer.code == 0
    assert "Left out folders without images: 'eel'." in answer.err


def test_a_class_whose_images_are_all_unreadable(check_refused, tmp_path):
    folders(tmp_path / "pets", cat=40, dog=40, eel=0)
    (tmp_path / "pets/eel/0.png").write_bytes(b"")
    check_refused(("train", "pets"), "No image of the class 'eel'", "0.png: the file is empty")


def test_images_without_class_folders(check_refused, tmp_path):
    folders(tmp_path, loose=4)
    check_refused(("train", "loose"), "no class folders", "CSV with the columns 'path' and 'label'")


def test_too_few_images_to_split(check_refused, tmp_path):
    folders(tmp_path / "pets", cat=2, dog=2)
    check_refused(("train", "pets", *QUICK), "too few images", "Add images")


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_skipped_and_listed(cli, tmp_path, name):
    folders(tmp_path / "pets", cat=12, dog=12)
    (tmp_path / "pets/cat" / name).write_bytes(BAD[name])
    checked = json.loads(cli("check", "pets", "--json").out)
    assert [row["file"] for row in checked["unreadable"]] == [f"cat/{name}"]
    assert checked["images"] == 24
    answer = cli("train", "pets", *QUICK, "--out", "r", "--json")
    assert answer.code == 0
    assert (
        f"Skipped 1 image of 25 that cannot be read (cat/{name}: {checked['unreadable'][0]['reason']})"
        in answer.err
    )
    assert json.loads(answer.out)["n"] == 4


def test_too_many_bad_images_stop_with_the_list(check_refused, cli, tmp_path):
    folders(tmp_path / "pets", cat=9, dog=9)
    for name, content in BAD.items():
        (tmp_path / "pets/dog" / name).write_bytes(content)
    check_refused(("train", "pets"), "4 of the 22 images of 'pets' cannot be read, more than the 5%", *BAD)
    checked = cli("check", "pets")  # which is there to show just that
    assert checked.code == 0
    assert "PROBLEM: 4 images of 22 cannot be read" in checked.out
    assert all(f"dog/{name}: " in checked.out for name in BAD)


def test_a_truncated_archive(check_refused, tmp_path):
    folders(tmp_path / "pets", cat=5, dog=5)
    shutil.make_archive("pets", "zip", ".", "pets")
    shutil.make_archive("pets", "gztar", ".", "pets")
    for name in ("pets.zip", "pets.tar.gz"):
        whole = Path(name).read_bytes()
        Path(name).write_bytes(whole[: len(whole) * 2 // 3])
        check_refused(("train", name), f"'{name}' is not a complete", "copy or download it again")


@pytest.mark.parametrize("name", ["../cat/0.png", "/cat/0.png", "cat/../../0.png"])
def test_an_archive_that_points_outside(check_refused, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("dog/0.png", picture())
        archive.writestr(name, picture())
    check_refused(("train", "evil.zip"), "would land outside", "nothing was read")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.zip"]


def test_archives_with_links(check_refused, tmp_path):
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("cat/0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        member = zipfile.ZipInfo("cat/0.png")
        member.create_system, member.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, "/etc/passwd")
    for name in ("links.tar", "links.zip"):
        check_refused(("train", name), f"'{name}' holds a", "link", "only plain files are accepted")


def test_test_labels_that_train_never_saw(check_refused, tmp_path):
    folders(tmp_path / "pets/train", cat=3, dog=3)
    folders(tmp_path / "pets/test", cat=3, eel=3)
    check_refused(("train", "pets"), "has classes that are not in train ('eel')", "remove them from test")


def test_a_table_with_mistakes(check_refused, tmp_path):
    folders(tmp_path, cat=2, dog=2)
    table = tmp_path / "pets.csv"
    table.write_text("path,label\ncat/00.png,cat\ndog/77.png,dog\n")
    check_refused(("train", table), "'dog/77.png' (line 3)", "relative to the folder of the table")
    table.write_text("snapshot,label\ncat/00.png,cat\n")
    check_refused(("train", table), "has no column called path", "(it has: snapshot, label)")
    table.write_text("path,label,split\ncat/00.png,cat,trian\ndog/00.png,dog,test\n")
    check_refused(("train", table), "Line 2", "split 'trian'", "Did you mean 'train'")


def test_a_table_in_another_encoding(check_refused, cli, tmp_path):
    folders(tmp_path, cat=6, dog=6)
    rows = [f"{label}/{i:02d}.png,{word}" for label, word in (("cat", "chat"), ("dog", "chién")) for i in range(6)]
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "pets.csv").write_bytes("\n".join(["path,label", *rows]).encode(encoding))
        assert "chién" in cli("check", "pets.csv", "--json").out
    (tmp_path / "pets.csv").write_bytes("\n".join(["path,label", *rows]).encode("cp1252"))
    check_refused(("train", "pets.csv"), "Line 8 of 'pets.csv' is not UTF-8 text (byte 0xe9 at position 15)")


def test_a_table_that_names_a_file_twice(check_refused, cli, tmp_path):
    folders(tmp_path, cat=6, dog=6)
    rows = [f"{label}/{i:02d}.png,{label}" for label in ("cat", "dog") for i in range(6)]
    (tmp_path / "pets.csv").write_text("\n".join(["path,label", *rows, "./cat/00.png,cat"]))
    answer = cli("check", "pets.csv")
    assert "Ignored 1 row that names a file again ('cat/00.png', line 2 and line 14)" in answer.out
    (tmp_path / "pets.csv").write_text("\n".join(["path,label", *rows, "cat/00.png,dog"]))
    check_refused(
        ("train", "pets.csv"), "names 'cat/00.png' twice with another label: line 2 says 'cat', line 14 says 'dog'"
    )


def test_arrays_that_cannot_be_trusted(check_refused, tmp_path):
    np.savez(tmp_path / "x.npz", images=np.array([{}, []], object), labels=[0, 1])
    check_refused(("train", "x.npz"), "'images' of 'x.npz' holds Python objects", "it was not read")
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar/data_batch_1").write_bytes(b"cposix\nsystem\n(S'touch ran'\ntR.")
    check_refused(("train", "cifar"), "'data_batch_1' is a pickle that asks for 'posix.system'", "was not read")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">BBBBIII", 0, 0, 8, 3, 9, 8, 8) + bytes(9 * 64)
    )
    check_refused(("train", "train-images-idx3-ubyte"), "without their labels", "put 'train-labels-idx1-ubyte'")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 9) + bytes(8))
    check_refused(("train", "train-images-idx3-ubyte"), "has 16 bytes, but its header announces 17")


def test_a_table_of_pixels_without_labels(check_refused, tmp_path):
    header = ",".join(f"pixel{i}" for i in range(784))
    (tmp_path / "test.csv").write_text(f"{header}\n{','.join(['0'] * 784)}\n")
    check_refused(("train", "test.csv"), "has 784 columns of pixels but no column label, class or target")


def test_a_set_that_cannot_be_downloaded(check_refused, tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_MIRROR", "https://nowhere.invalid")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    check_refused(
        ("train", "cifar10"),
        "fetch cifar-10-python.tar.gz from https://nowhere.invalid/cifar10/ by hand into the folder",
        tmp_path / "cache/downloads/cifar10",
    )


def test_a_file_of_another_kind(check_refused, tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    check_refused(("train", "thesis.txt"), "not a kind of data that can be read", "a zip or tar of one")


# Words and numbers


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (("--model", "resnet2"), "There is no model called 'resnet2'. Did you mean 'resnet"),
        (("--model", "mlp:droput=0.1"), "Did you mean 'dropout'?"),
        (("--augment", "flop"), "There is no augmentation called 'flop'. Did you mean 'flip'?"),
        (("--augment", "shift:-4"), "'shift:-4' cannot be made"),
        (("--normalize", "imagnet"), "Did you mean 'imagenet'?"),
        (("--loss", "cross-entrpy"), "Did you mean 'cross-entropy'?"),
        (("--optimizer", "adamv"), "Did you mean 'adam"),
        (("--epoch", "3"), "Unknown option: --epoch. Did you mean --epochs?"),
        (("--epochs", "many"), 'Invalid value for --epochs: unable to convert "many"'),
        (("--epochs", "-1"), "epochs is -1: it must be a whole number, 0 or more"),
        (("--size", "4"), "size is 4: it must be a whole number of pixels from 8 to 1024"),
        (("--limit", "1"), "limit is 1: it must be a whole number of at least 2"),
        (("--lr", "nan"), "lr is nan: it must be a number above 0"),
        (("--val-fraction", "0.9"), "val_fraction is 0.9: it must be 0 or a fraction from 0.01 to 0.5"),
        (("--batch-size", "1"), "batch_size is 1: it must be a whole number of at least 2"),
        (("--label-smoothing", "1"), "label_smoothing is 1"),
        (("--budget", "soon"), "write a time such as 90s, 10m or 2h"),
        (("--weights", "absent.pth"), "There is no file of weights 'absent.pth'"),
        (("--recipe", "absent.toml"), "There is no recipe file 'absent.toml'"),
        (("--device", "abacus"), "There is no device called 'abacus'. Choose one of: auto, cpu"),
        (
            ("more", "words"),
            "This command takes no further argument, got 'more' 'words'. See: sightline train --help",
        ),
    ],
)
def test_a_wrong_word_or_number(check_refused, flags, part):
    check_refused(("train", "digits", *flags), part)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("epoch = 3", "In 'mine.toml': A recipe has no field 'epoch'. Did you mean 'epochs'?"),
        ("epochs = 'three'", "In 'mine.toml': The recipe's epochs is 'three'"),
        ("epochs = ", "'mine.toml' is not valid TOML"),
    ],
)
def test_a_wrong_recipe(check_refused, tmp_path, text, part):
    (tmp_path / "mine.toml").write_text(text)
    check_refused(("train", "digits", "--recipe", "mine.toml"), part)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("trian", "digits"), 'Unknown command "trian". Did you mean "train"?'),
        (("train",), "Say which images to use"),
        (("predict",), "See: sightline predict --help"),
        (("check", "digits", "--resize-mode", "sqash"), "it must be one of squash, crop, pad"),
        (
            ("check", "digits", "--out", "sheet.doc"),
            "is not the name of a picture: use .png, .jpg or .webp, such as sheet.png",
        ),
        (("list", "modles"), "Did you mean 'models'?"),
        (("evaluate", "nowhere"), "There is no run or bundle 'nowhere'"),
        (("report", "."), "'.' is no run"),
        (("train", "--resume", "nowhere"), "'nowhere' is no run"),
        (("predict", "nowhere", "x.png"), "There is no run or bundle 'nowhere'"),
    ],
)
def test_a_wrong_command(check_refused, words, part):
    check_refused(words, part)


def test_debug_prints_the_traceback(cli):
    with pytest.raises(Exception, match="nothing at 'nowhere'"):
        cli("check", "nowhere", "--debug")


# Bundles


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    assert main(["train", "digits", *QUICK, "--limit", "200", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def bundle(made, tmp_path):
    """A copy of a bundle, and a function that changes its config (checksums put right)."""
    folder = shutil.copytree(made / "classifier", tmp_path / "bundle")

    def change(**values):
        config = json.loads((folder / "config.json").read_text()) | values
        config["files"] = {name: checksum(folder / name) for name in config["files"]}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def test_a_bundle_of_a_newer_format(check_refused, bundle):
    bundle(format=99)
    check_refused(("predict", "bundle", "x.png"), "has format 99, newer than this release reads", "Upgrade")


@pytest.mark.parametrize(
    ("extra", "part"), [(True, "has tensors that its network does not have: b"), (False, "lacks tensors")]
)
def test_a_bundle_with_missing_or_extra_tensors(check_refused, bundle, extra, part):
    tensors = load_file("bundle/model.safetensors")
    tensors = tensors | {"b": torch.zeros(1)} if extra else dict(list(tensors.items())[1:])
    save_file(tensors, "bundle/model.safetensors")
    bundle()
    check_refused(("evaluate", "bundle", "digits"), part, "Save or copy it again")


def test_a_bundle_with_a_wrong_checksum(check_refused, bundle):
    with Path("bundle/model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"!")
    check_refused(("predict", "bundle", "x.png"), "'model.safetensors'", "wrong checksum", "Copy the bundle again")


def test_a_bundle_with_a_pickle(check_refused, bundle):
    torch.save({"a": torch.zeros(1)}, "bundle/optimizer.pt")
    check_refused(("predict", "bundle", "x.png"), "holds 'optimizer.pt'", "no pickles")
    Path("bundle/optimizer.pt").replace("bundle/model.safetensors")
    bundle()
    check_refused(("predict", "bundle", "x.png"), "is not a safetensors file (a pickle is never read)")


def test_predict_of_nothing(check_refused, made, monkeypatch):
    check_refused(("predict", made, "*.png"), "No image was found at '*.png'")
    check_refused(("predict", made, "x.png", "--top", "0"), "--top is 0")
    check_refused(("predict", made, "x.png", "--fomr", "csv"), "There is no option '--fomr'")
    check_refused(("predict", made, "x.png", "--format", "xml"), "--format")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    check_refused(("predict", made), "Stdin is empty")


def test_classes_the_classifier_does_not_know(check_refused, made, tmp_path):
    folders(tmp_path / "pets", cat=2, dog=2)
    check_refused(("evaluate", made, "pets"), "never trained on: 'cat', 'dog'")


# Places that cannot be written


NOWHERE = "/proc/sightline" if Path("/proc").is_dir() else "/dev/null/sightline"


@pytest.mark.parametrize("place", ["a-file/r", NOWHERE])
def test_output_that_cannot_be_written(check_refused, made, tmp_path, place):
    (tmp_path / "a-file").write_text("years")
    check_refused(("train", "digits", *QUICK, "--out", place), f"Cannot write '{place}'", "choose another place")
    check_refused(("predict", made, made, "--out", place), f"Cannot write '{place}'", "choose another place")
    check_refused(
        ("check", "digits", "--out", f"{place}.png"), f"Cannot write '{place}.png'", "choose another place"
    )
    assert (tmp_path / "a-file").read_text() == "years"


def test_output_that_holds_something_else(check_refused, tmp_path):
    folders(tmp_path / "pets", cat=2, dog=2)
    check_refused(("train", "digits", "--out", "pets"), "'pets' exists already")
    check_refused(
        ("train", "digits", "--out", "pets", "--overwrite"), "'pets' is not a run, so it is not overwritten"
    )
    assert len(list((tmp_path / "pets").rglob("*.png"))) == 4


@pytest.mark.parametrize("place", ["a-file/cache", NOWHERE])
def test_a_cache_that_cannot_be_written(check_refused, tmp_path, monkeypatch, place):
    (tmp_path / "a-file").write_text("years")
    monkeypatch.setenv("SIGHTLINE_CACHE", place)
    check_refused(
        ("train", "digits", *QUICK), "Cannot write", "set the environment variable SIGHTLINE_CACHE to a folder"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk to fill cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(cli, made, small_disk, monkeypatch):
    """Whatever file is the first that does not fit: a sentence, and no half-written one."""
    (small_disk / "fill").write_bytes(bytes(1_900_000))
    answer = cli("train", "digits", *QUICK, "--limit", "200", "--out", small_disk / "r")
    assert answer.code == 2
    assert "the disk is full: free some space or choose another place" in answer.err
    assert not list(small_disk.rglob(".*")), "half-written files were left behind"
    (small_disk / "fill").write_bytes(bytes(100_000))
    assert cli("train", "--resume", small_disk / "r").code == 0
    free = os.statvfs(small_disk)
    (small_disk / "more").write_bytes(bytes(free.f_bavail * free.f_frsize - 8192))
    monkeypatch.setenv("SIGHTLINE_CACHE", str(small_disk))
    answer = cli("check", "digits", "--size", "64")
    assert answer.code == 2
    assert "SIGHTLINE_CACHE" in answer.err
    assert cli("predict", small_disk / "r", made / "train_batch.png").code == 0


# Training


def test_a_loss_that_is_not_finite(cli, tmp_path):
    answer = cli(
        "train", "digits", *QUICK, "--limit", "200", "--lr", "1e30", "--schedule", "constant", "--out", "r"
    )
    assert answer.code == 2
    assert "The loss became" in answer.err
    assert "at step" in answer.err
    assert "Try a lower --lr" in answer.err
    assert "Traceback" not in answer.err
    assert (tmp_path / "r" / "last.ckpt").is_file()
    assert not (tmp_path / "r" / "classifier").exists()
