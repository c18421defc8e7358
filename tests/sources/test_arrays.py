"""Images that lie in arrays: IDX, CIFAR, npz, tables of pixels; each against plain numpy, and each refusal."""

import csv
import gzip
import io
import os
import pickle
import pickletools
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.data.decode import decode_with_header as decode
from sightline.errors import DataError
from sightline.sources import find
from sightline.sources.arrays import ArrayReader
from sightline.sources.cifar import read_cifar
from sightline.types import Geometry

RNG = np.random.default_rng(0)
COUNTS = {"train": 30, "test": 12}
GREY = {part: RNG.integers(0, 256, (n, 8, 8), dtype=np.uint8) for part, n in COUNTS.items()}
RGB = {part: RNG.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for part, n in COUNTS.items()}
LABELS = {part: np.arange(n) % 10 for part, n in COUNTS.items()}


def pixels(source) -> np.ndarray:
    """What a source's images decode to, by Pillow."""
    return np.stack([np.asarray(Image.open(io.BytesIO(source.read(i)))) for i in range(len(source))])


def check(source, images, parts=("train", "test")):
    """The source holds these parts of the images, in order, with their labels and splits."""
    np.testing.assert_array_equal(pixels(source), np.concatenate([images[part] for part in parts]))
    np.testing.assert_array_equal(source.labels, np.concatenate([LABELS[part] for part in parts]))
    if len(parts) > 1:
        assert source.columns["split"].tolist() == [part for part in parts for _ in range(COUNTS[part])]
    else:
        assert "split" not in source.columns
    assert len(set(source.files)) == len(source)
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(i) for i in (0, len(source) - 1)] == [source.read(i) for i in (0, len(source) - 1)]


def packed(root: Path, target: Path) -> Path:
    """A folder as a zip or tar."""
    if target.suffix == ".zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                archive.write(path, path.relative_to(root.parent).as_posix())
    else:
        with tarfile.open(target, "w:gz" if target.suffix == ".gz" else "w") as archive:
            archive.add(root, root.name)
    return target


# the container


@pytest.mark.parametrize("shape", [(28, 28), (5, 300), (32, 32, 3), (1, 1), (1, 1, 3), (300, 90, 3)])
def test_arrays_are_served_as_png_files_that_any_reader_reads(shape):
    images = RNG.integers(0, 256, (2, *shape), dtype=np.uint8)
    data = ArrayReader(images).read(1)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), images[1])
    channels = 3 if len(shape) == 3 else 1
    ours, header = decode(data, Geometry(size=shape[:2], channels=channels))
    np.testing.assert_array_equal(ours.reshape(shape), images[1])
    assert (header.height, header.width, header.channels, header.format) == (*shape[:2], channels, "PNG")


# IDX


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, suffix="", style="-idx{}-ubyte") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, name in (("train", "train"), ("test", "t10k")):
        for what, array in (("images", GREY[part]), ("labels", LABELS[part])):
            data = gzip.compress(idx(array)) if suffix else idx(array)
            (folder / f"{name}-{what}{style.format(array.ndim)}{suffix}").write_bytes(data)
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("style", ["-idx{}-ubyte", ".idx{}-ubyte"])
@pytest.mark.parametrize("kind", ["folder", "wrapped", "zip", "tar.gz"])
def test_idx(tmp_path, suffix, style, kind):
    root = write_idx(tmp_path / ("MNIST/raw" if kind == "wrapped" else "mnist"), suffix, style)
    target = {"folder": root, "wrapped": tmp_path}.get(kind) or packed(root, tmp_path / f"x.{kind}")
    source = find(target)
    check(source, GREY, ("test", "train"))
    assert source.classes == tuple("0123456789")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_one_idx_file_with_its_labels(tmp_path, suffix):
    root = write_idx(tmp_path, suffix)
    check(find(root / f"train-images-idx3-ubyte{suffix}"), GREY, ("train",))
    (root / f"train-labels-idx1-ubyte{suffix}").unlink()
    with pytest.raises(DataError, match="without their labels: put 'train-labels-idx1-ubyte"):
        find(root / f"train-images-idx3-ubyte{suffix}")


def test_plain_and_packed_idx_side_by_side_count_once(tmp_path):
    check(find(write_idx(write_idx(tmp_path), ".gz")), GREY, ("test", "train"))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda data: b"\0\0\x09\x03" + data[4:],
            "'train-images.*' is not an IDX file of images: it begins with 00 00 09 03",
        ),
        (lambda data: b"\0\0\x08\x01" + data[4:], "begins with 00 00 08 01, not with 00 00 08 03"),
        (lambda data: b"PK\3\4" + data[4:], "begins with 50 4b 03 04"),
        (lambda data: data[:-1], "has 1,935 bytes, but its header announces 1,936 .30 x 8 x 8.: it was cut"),
        (lambda data: data + b"x", "has 1,937 bytes, but its header announces 1,936"),
        (lambda data: data[:9], "has 9 bytes"),
        (lambda data: data[:4], "has 4 bytes"),
        (lambda _: b"", "it begins with , not"),
        (lambda data: data[:4] + b"\xff" * 12 + data[16:], "header announces 79,228"),
        (lambda _: idx(GREY["train"][:29]), "has 29 images but 30 labels"),
        (lambda data: gzip.compress(data)[:-30], "gzip file that is cut short"),
        (lambda data: gzip.compress(data)[:20] + b"xxxx" + gzip.compress(data)[24:], "damaged gzip"),
        (lambda _: gzip.compress(bytes(100_000_000)), "gzip file that grows beyond what is plausible"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_bad_idx(tmp_path, spoil, says, kind):
    name = "train-images-idx3-ubyte"
    root = write_idx(tmp_path)
    (root / name).write_bytes(spoil((root / name).read_bytes()))
    with pytest.raises(DataError, match=says):
        find(root if kind == "folder" else root / name)


def test_several_idx_sets_in_one_folder(tmp_path):
    root = write_idx(tmp_path)
    for name in ("images-idx3", "labels-idx1"):
        shutil.copy(root / f"train-{name}-ubyte", root / f"letters-train-{name}-ubyte")
    with pytest.raises(
        DataError, match=r"several sets of images .*letters-train.*give one of these files instead"
    ):
        find(root)
    check(find(root / "letters-train-images-idx3-ubyte"), GREY, ("train",))


# CIFAR


def rows(part):
    return RGB[part].transpose(0, 3, 1, 2).reshape(COUNTS[part], -1)


NAMES = [f"thing {i}" for i in range(10)]


def as_python_2(value) -> bytes:
    """A protocol 2 pickle as Python 2 and its numpy wrote CIFAR: text is bytes, numpy.core is the module."""
    data = pickle.dumps(value, protocol=2)
    return data.replace(b"numpy._core", b"numpy.core")


def write_cifar(folder: Path, kind: str, dump=pickle.dumps) -> Path:
    folder.mkdir(parents=True)
    key = "labels" if kind == "cifar10" else "fine_labels"
    extra = {} if kind == "cifar10" else {b"coarse_labels": [0] * 30}
    full = {
        part: {b"data": rows(part), key.encode(): LABELS[part].tolist(), b"batch_label": b"x", **extra}
        for part in COUNTS
    }
    if kind == "cifar10":
        (folder / "batches.meta").write_bytes(dump({b"label_names": [name.encode() for name in NAMES], b"n": 1}))
        for i in range(5):
            batch = {
                b"data": rows("train")[6 * i : 6 * i + 6],
                b"labels": LABELS["train"][6 * i : 6 * i + 6].tolist(),
            }
            (folder / f"data_batch_{i + 1}").write_bytes(dump(batch))
        (folder / "test_batch").write_bytes(dump(full["test"]))
    else:
        (folder / "meta").write_bytes(dump({"fine_label_names": NAMES, "coarse_label_names": ["a"]}))
        for part in COUNTS:
            (folder / part).write_bytes(dump(full[part]))
    (folder / "readme.html").write_text("hello")
    return folder


def write_binary(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    coarse = 0 if kind == "cifar10" else 1
    table = {
        part: np.hstack([np.zeros((n, coarse), np.uint8), LABELS[part][:, None].astype(np.uint8), rows(part)])
        for part, n in COUNTS.items()
    }
    if kind == "cifar10":
        for i in range(5):
            (folder / f"data_batch_{i + 1}.bin").write_bytes(table["train"][6 * i : 6 * i + 6].tobytes())
        (folder / "test_batch.bin").write_bytes(table["test"].tobytes())
        (folder / "batches.meta.txt").write_text("\n".join(name.replace(" ", "_") for name in NAMES) + "\n")
    else:
        for part in COUNTS:
            (folder / f"{part}.bin").write_bytes(table[part].tobytes())
        (folder / "fine_label_names.txt").write_text("\n".join(name.replace(" ", "_") for name in NAMES))
    return folder


@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("place", ["folder", "wrapped", "tar.gz", "zip"])
def test_cifar(tmp_path, kind, form, place):
    root = tmp_path / "outer" / kind
    root = write_cifar(root, kind) if form == "python" else write_binary(root, kind)
    target = {"folder": root, "wrapped": root.parent}.get(place) or packed(root, tmp_path / f"x.{place}")
    source = find(target)
    check(source, RGB)
    assert source.classes == tuple(name if form == "python" else name.replace(" ", "_") for name in NAMES)
    assert source.notes == ()


@pytest.mark.parametrize("protocol", [*range(pickle.HIGHEST_PROTOCOL + 1), "python 2"])
def test_cifar_pickled_by_any_python(tmp_path, protocol):
    dump = as_python_2 if protocol == "python 2" else lambda value: pickle.dumps(value, protocol=protocol)
    check(find(write_cifar(tmp_path / "x", "cifar10", dump)), RGB)


def test_a_missing_cifar_batch_is_noted(tmp_path):
    root = write_cifar(tmp_path / "x", "cifar10")
    (root / "data_batch_3").unlink()
    (root / "batches.meta").unlink()
    source = find(root)
    assert len(source) == 36
    assert source.classes == tuple("0123456789")
    assert "Without data_batch_3" in source.notes[0]


class Evil:
    """Runs a program when it is unpickled."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def evil_globals():
    def touch(path):
        return {
            "posix.system": Evil(os.system, f"touch {path}"),
            "builtins.eval": Evil(eval, f"open({str(path)!r}, 'w')"),
            "builtins.getattr": Evil(getattr, "", "join"),
            "builtins.exec": Evil(exec, f"open({str(path)!r}, 'w')"),
            "numpy.load": Evil(np.load, str(path)),
            "numpy.fromfile": Evil(np.fromfile, str(path)),
            "collections.OrderedDict": __import__("collections").OrderedDict(),
            "datetime.date": __import__("datetime").date(2020, 1, 1),
        }

    return touch


@pytest.mark.parametrize("name", evil_globals()(Path("x")))
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("place", ["batch", "names"])
def test_cifar_pickles_with_anything_but_arrays_are_refused_by_name(tmp_path, name, protocol, place):
    root, proof = write_cifar(tmp_path / "x", "cifar10"), tmp_path / "proof"
    value = {b"data": rows("train"), b"labels": [0], b"more": evil_globals()(proof)[name]}
    target = "data_batch_1" if place == "batch" else "batches.meta"
    (root / target).write_bytes(pickle.dumps(value, protocol=protocol))
    expected = name.replace("builtins", "__builtin__") if protocol < 3 else name
    with pytest.raises(
        DataError, match=f"'{target}' is a pickle that asks for '.*{expected.split('.')[-1]}'.*not read"
    ):
        find(root)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({b"data": rows("train").astype(np.float32), b"labels": [1] * 30}, "an array of"),
        ({b"data": np.array([{}, []], object), b"labels": [1] * 30}, "an array of"),
        ({b"data": rows("train")[:, :-1], b"labels": [1] * 30}, "no batch of 32x32 RGB images"),
        ({b"data": rows("train"), b"labels": [1] * 29}, "30 images but 29 labels"),
        ({b"data": rows("train"), b"labels": [10] * 30}, "has the label 10, but there are only 10 class names"),
        ({b"data": rows("train"), b"labels": [-1] * 30}, "has the label -1"),
        ({b"data": rows("train"), b"labels": [2**80] * 30}, "no class numbers"),
        ({b"data": rows("train"), b"labels": [0.5] * 30}, "no batch of 32x32 RGB images with a label each"),
        ({b"data": [1, 2], b"labels": [1] * 30}, "no batch of 32x32 RGB images"),
        ({b"data": rows("train")}, "has no 'labels'"),
        ([1, 2, 3], "has no 'data'"),
        (b"", "has no 'data'"),
    ],
)
def test_bad_cifar_batches(tmp_path, value, says):
    root = write_cifar(tmp_path / "x", "cifar10")
    (root / "data_batch_2").write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(DataError, match=says):
        find(root)


def test_damaged_cifar_pickles_never_crash(tmp_path):
    """Cut anywhere, or with any byte changed: a sentence, or the images."""
    whole = as_python_2({b"data": rows("train")[:1], b"labels": [3]})
    places = [start for _, _, start in pickletools.genops(whole)]
    refused = 0
    for at in [*places, *RNG.integers(0, len(whole), 60)]:
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << int(RNG.integers(8))
        for data in (whole[:at], bytes(spoilt)):
            files = {"data_batch_1": data, "test_batch": whole.replace(b"K\x03a", b"K\x04a")}
            try:
                assert read_cifar(files, "x").images.shape == (2, 32, 32, 3)
            except DataError:
                refused += 1
    assert refused > len(places)


def test_binary_cifar_that_was_cut(tmp_path):
    root = write_binary(tmp_path / "x", "cifar100")
    (root / "train.bin").write_bytes((root / "train.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"'train.bin' has 92,219 bytes, no whole number of images"):
        find(root)


# npz


@pytest.mark.parametrize(
    "pattern", ["x_{}|y_{}", "{}_images|{}_labels", "X_{}|Y_{}", "images_{}|labels_{}", "{}_data|{}_targets"]
)
@pytest.mark.parametrize("images", [GREY, RGB], ids=["grey", "rgb"])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz_with_splits(tmp_path, pattern, images, compressed):
    one, two = pattern.split("|")
    arrays = {one.format(part): images[part] for part in COUNTS} | {
        two.format(part): LABELS[part] for part in COUNTS
    }
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", **arrays)
    check(find(tmp_path / "x.npz"), images)


@pytest.mark.parametrize("names", [("images", "labels"), ("x", "y"), ("X", "y"), ("data", "target")])
def test_npz_of_one_split(tmp_path, names):
    np.savez(tmp_path / "x.npz", **dict(zip(names, (GREY["train"], LABELS["train"]), strict=True)))
    check(find(tmp_path / "x.npz"), GREY, ("train",))


def one_hot(labels):
    return np.eye(10, dtype=np.float32)[labels]


@pytest.mark.parametrize(
    ("change", "labels", "note"),
    [
        (lambda x: x[..., None], lambda y: y[:, None], None),
        (lambda x: x[:, None], one_hot, "channels first"),
        (lambda x: x.reshape(len(x), -1), lambda y: y.astype(np.float64), None),
        (
            lambda x: x.astype(np.float64) / 255,
            lambda y: y.astype(np.uint8),
            "float64 from 0 to 1: multiplied by 255",
        ),
        (lambda x: (x / np.float32(255)).astype(np.float32), lambda y: y, "float32 from 0 to 1"),
        (lambda x: x.astype(np.int64), lambda y: y, "int64 from 0 to 255"),
        (lambda x: x.astype(np.float32), lambda y: y.astype(bytes), "float32 from 0 to 255"),
        (np.asfortranarray, lambda y: y.astype(str), None),
    ],
)
def test_npz_of_other_shapes_and_types(tmp_path, change, labels, note):
    np.savez(tmp_path / "x.npz", images=change(GREY["train"]), labels=labels(LABELS["train"]))
    source = find(tmp_path / "x.npz")
    check(source, GREY, ("train",))
    assert note is None or any(note in each for each in source.notes)
    assert note is not None or source.notes == ()


def test_npz_class_names(tmp_path):
    arrays = {"images": GREY["train"], "labels": LABELS["train"]}
    np.savez(tmp_path / "x.npz", **arrays, class_names=np.array(NAMES))
    assert find(tmp_path / "x.npz").classes == tuple(NAMES)
    np.savez(tmp_path / "x.npz", **arrays, classes=np.array(NAMES[:4]))
    with pytest.raises(DataError, match="has the label 9, but there are only 4 class names"):
        find(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", images=GREY["train"], labels=np.array(["b", "a"] * 15))
    assert find(tmp_path / "x.npz").classes == ("a", "b")


@pytest.mark.parametrize("kind", ["<u2", ">u2", "i4", "f8"])
def test_grey_arrays_of_16_bits(tmp_path, kind):
    values = RNG.integers(0, 60000, (30, 8, 8)).astype(kind)
    np.savez(tmp_path / "x.npz", images=values, labels=LABELS["train"])
    source = find(tmp_path / "x.npz")
    for i in (0, 29):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(source.read(i)))), values[i])
    again = find(tmp_path / "x.npz")  # from the cache
    assert again.read(3) == source.read(3)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.array([{}, []], object), "labels": [0, 1]}, "'images' of .* holds Python objects"),
        ({"images": GREY["train"][:2], "labels": np.array([{}, []], object)}, "'labels' of .* holds Python obj"),
        ({"pictures": GREY["train"], "labels": LABELS["train"]}, "no images with .*it has: pictures, labels"),
        ({"x_train": GREY["train"], "y_test": LABELS["test"]}, "no images with their labels"),
        ({"images": GREY["train"], "labels": LABELS["test"]}, "30 images but 12 labels"),
        ({"images": GREY["train"] * np.nan, "labels": LABELS["train"]}, "values from nan to nan"),
        ({"images": GREY["train"] - 100.0, "labels": LABELS["train"]}, "values from -100.0 .*before any standard"),
        ({"images": RGB["train"] + np.uint16(999), "labels": LABELS["train"]}, "0 to 65535 if they are grey"),
        ({"images": GREY["train"].astype(complex), "labels": LABELS["train"]}, "not pixels"),
        ({"images": RGB["train"][..., :2], "labels": LABELS["train"]}, r"32, 2\) of uint8, not grey"),
        ({"images": np.zeros((30, 7), np.uint8), "labels": LABELS["train"]}, "not grey or RGB images"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": []}, "not grey or RGB images"),
        ({"images": GREY["train"], "labels": np.ones((30, 3))}, "several labels or none"),
        ({"images": GREY["train"], "labels": LABELS["train"] + 0.5}, "no whole numbers"),
        ({"images": GREY["train"], "labels": LABELS["train"] * 0}, "only one class, '0'"),
        ({"x_train": GREY["train"], "y_train": LABELS["train"], "x_test": RGB["test"], "y_test": LABELS["test"]},
         "several shapes .32x32x3, 8x8."),
        ({"x_train": GREY["train"], "y_train": LABELS["train"] % 9, "x_test": GREY["test"], "y_test": [9] * 12},
         "test split .* not in train .'9'"),
    ],
)  # fmt: skip
def test_bad_npz(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=says):
        find(tmp_path / "x.npz")


def test_damaged_npz(tmp_path):
    np.savez(tmp_path / "x.npz", images=GREY["train"], labels=LABELS["train"])
    data = (tmp_path / "x.npz").read_bytes()
    for spoilt in (data[:-30], data[:100], b"", b"PK\3\4" + bytes(100), data[:300] + b"!" + data[301:]):
        (tmp_path / "x.npz").write_bytes(spoilt)
        with pytest.raises(DataError, match=r"not a complete npz file|cannot be read"):
            find(tmp_path / "x.npz")


def test_an_npz_of_implausible_size_is_refused(tmp_path):
    """By its own directory: what it says is asked before anything is unpacked."""
    np.savez(tmp_path / "x.npz", images=GREY["train"], labels=LABELS["train"])
    data = bytearray((tmp_path / "x.npz").read_bytes())
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (3_000_000_000).to_bytes(4, "little")
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match="unpacks to 3 GB, more than is plausible"):
        find(tmp_path / "x.npz")


# tables of pixels


def write_pixels(path, images, labels, header=None, delimiter=",", end="\n", form=str):
    size = images[0].size
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator=end)
        writer.writerow(header or ["label", *(f"pixel{i}" for i in range(size))])
        writer.writerows(
            [label, *map(form, image.ravel().tolist())] for image, label in zip(images, labels, strict=True)
        )
    return path


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("form", [str, lambda v: f"{v:.1f}", lambda v: f" {v}"])
def test_pixel_tables(tmp_path, delimiter, end, form):
    name = "x.tsv" if delimiter == "\t" else "x.csv"
    check(
        find(write_pixels(tmp_path / name, GREY["train"], LABELS["train"], None, delimiter, end, form)),
        GREY,
        ("train",),
    )


def test_pixel_tables_with_the_label_elsewhere_and_other_names(tmp_path):
    header = [*(f"{i}x{j}" for i in range(8) for j in range(8)), "id", "class"]
    with (tmp_path / "x.csv").open("w") as stream:
        stream.write(",".join(header) + "\n")
        for i, image in enumerate(GREY["train"]):
            stream.write(",".join(map(str, image.ravel().tolist())) + f",{900 + i},{LABELS['train'][i]}\n")
        stream.write("\n")
    check(find(tmp_path / "x.csv"), GREY, ("train",))


def test_pixel_tables_in_many_blocks_equal_numpy(tmp_path, monkeypatch):
    monkeypatch.setattr("sightline.sources.array_files._BLOCK_BYTES", 1000)
    path = write_pixels(tmp_path / "x.csv", GREY["train"], LABELS["train"])
    path.write_bytes(path.read_bytes().rstrip())
    source = find(path)
    plain = np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.int64)
    np.testing.assert_array_equal(source.labels, plain[:, 0])
    np.testing.assert_array_equal(pixels(source).reshape(30, -1), plain[:, 1:])


def test_pixel_table_with_words_for_labels(tmp_path):
    labels = [["cat", "dog"][i % 2] for i in range(30)]
    source = find(write_pixels(tmp_path / "x.csv", GREY["train"], labels))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [i % 2 for i in range(30)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.replace("label", "id", 1), "64 columns of pixels but no column label, class or target"),
        (lambda t: t.replace(",pixel63", ",other"), "63 columns of pixels, which make no square"),
        (lambda t: t.rstrip()[:-4].rpartition(",")[0] + "\n", "Line 31 .* has 6. fields, not the header's 65"),
        (lambda t: t.rstrip().rpartition(",")[0] + ",256\n", "Line 31 .* pixel outside of 0 to 255"),
        (lambda t: t.rstrip().rpartition(",")[0] + ",-1\n", "Line 31 .* pixel outside of 0 to 255"),
        (lambda t: t.rstrip().rpartition(",")[0] + ",nan\n", "Line 31 .* pixel outside of 0 to 255"),
        (lambda t: t.rstrip().rpartition(",")[0] + ",x\n", "Line 31 .* has a pixel that is no number"),
        (lambda t: t.replace("\n1,", "\n,", 1), "Line 3 .* has an empty label"),
        (lambda t: t.partition("\n")[0] + "\n", "lists no images"),
        (lambda t: t.partition("\n")[0], "lists no images"),
    ],
)
def test_bad_pixel_tables(tmp_path, change, says):
    path = write_pixels(tmp_path / "x.csv", GREY["train"], LABELS["train"])
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=says):
        find(path)


def test_bad_pixel_tables_name_the_line_in_any_block(tmp_path, monkeypatch):
    monkeypatch.setattr("sightline.sources.array_files._BLOCK_BYTES", 1000)
    path = write_pixels(tmp_path / "x.csv", GREY["train"], LABELS["train"])
    path.write_text(path.read_text().rstrip().rpartition(",")[0] + ",999\n")
    with pytest.raises(DataError, match="Line 31 "):
        find(path)


# what was found before


def same(one, two):
    assert one.fingerprint == two.fingerprint
    assert (one.classes, one.notes, one.name) == (two.classes, two.notes, two.name)
    assert one.files.tolist() == two.files.tolist()
    np.testing.assert_array_equal(one.labels, two.labels)
    assert {k: v.tolist() for k, v in one.columns.items()} == {k: v.tolist() for k, v in two.columns.items()}
    assert [one.read(i) for i in range(len(one))] == [two.read(i) for i in range(len(two))]


def make(kind, root):
    if kind == "npz":
        arrays = {f"{n}_{part}": (GREY if n == "x" else LABELS)[part] for n in "xy" for part in COUNTS}
        np.savez(root / "x.npz", **arrays)
        return root / "x.npz"
    if kind == "pixels":
        return write_pixels(root / "x.csv", GREY["train"], LABELS["train"])
    if kind == "cifar":
        return packed(write_cifar(root / "x", "cifar100"), root / "x.tar.gz")
    if kind == "idx":
        return write_idx(root / "x")
    for i in range(12):
        path = root / "x" / ("train", "test")[i % 2] / "ab"[i // 2 % 2] / f"{i}\nü.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ArrayReader(GREY["train"]).read(i))
    (root / "x" / "train" / "a" / "notes.txt").write_text("x")
    return packed(root / "x", root / f"x.{kind}")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "npz", "pixels", "cifar", "idx"])
def test_a_second_start_uses_the_cache(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    target = make(kind, tmp_path / "data")
    first = find(target)
    entries = list((tmp_path / "cache" / "found").glob("*/facts.json"))
    assert len(entries) == 1
    with monkeypatch.context() as patch:  # neither listed nor read again
        for name in ("infer_layout", "read_idx", "read_cifar", "read_npz", "read_pixel_table"):
            patch.setattr(f"sightline.sources.readers.{name}", None)
        same(find(target), first)
        patch.chdir(tmp_path / "data")
        assert find(target.name).fingerprint == first.fingerprint
    for spoilt in ("", "{}", "{", "null"):
        entries[0].write_text(spoilt)
        same(find(target), first)
    for path in entries[0].parent.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-9])
        same(find(target), first)
    assert len(list((tmp_path / "cache" / "found").iterdir())) == 1


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "npz", "idx"])
def test_a_changed_file_is_read_again(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    target = make(kind, tmp_path / "1")
    before = find(target)
    images = [before.read(i) for i in range(len(before))]
    monkeypatch.setitem(GREY, "train", 255 - GREY["train"])
    other = make(kind, tmp_path / "2")
    path = target / "train-images-idx3-ubyte" if kind == "idx" else target
    changed = other / path.name if kind == "idx" else other
    os.utime(changed, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    changed.replace(path)
    after = find(target)
    assert after.fingerprint != before.fingerprint
    assert sorted(after.read(i) for i in range(len(after))) != sorted(images)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "data").mkdir()
    check(find(make("npz", tmp_path / "data")), GREY)


def test_a_tar_is_recognised_by_its_content(tmp_path):
    """Same names, sizes and times, other pixels: another fingerprint."""
    prints = []
    for number, images in enumerate((GREY["train"], 255 - GREY["train"])):
        target = tmp_path / f"{number}.tar"
        with tarfile.open(target, "w") as archive:
            for i in range(6):
                data = ArrayReader(images).read(i) + bytes(200_000 * (i == 5))
                info = tarfile.TarInfo(f"{'ab'[i % 2]}/{i}.png")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        prints.append(find(target).fingerprint)
        shutil.copy(target, tmp_path / "copy.tar")
        assert find(tmp_path / "copy.tar").fingerprint == prints[-1]
    assert prints[0] != prints[1]
