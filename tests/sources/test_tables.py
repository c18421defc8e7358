"""Tables that name or hold images: every form, every encoding, and one clear sentence for what is wrong."""

import csv
import io
import json
import os
import pickle
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import DataError, ImageError
from sightline.sources import find

ROWS = [
    {"path": "a/x.png", "label": "cat", "split": "train", "group": "007", "note": "é"},
    {"path": "a/y.png", "label": "dog", "split": "", "group": "p1", "note": ""},
    {"path": "z.png", "label": "cat", "split": "Valid", "group": "p1", "note": "n, m"},
]


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), value).save(stream, "PNG")
    return stream.getvalue()


def plant(root, names):
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(value))
    return root


def delimited(path, rows, delimiter, encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def lines(path, rows):
    path.write_text("\n\n".join(json.dumps(row) for row in rows))


def parquet(path, rows):
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet  # noqa: F401 makes it an attribute of pyarrow

    arrow.parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=2)


WRITERS = {
    "t.csv": lambda path, rows: delimited(path, rows, ","),
    "T.CSV": lambda path, rows: delimited(path, rows, ";"),
    "t.tsv": lambda path, rows: delimited(path, rows, "\t"),
    "t.jsonl": lines,
    "t.ndjson": lines,
    "t.parquet": parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_table_reads_the_same(tmp_path, name):
    plant(tmp_path, ["a/x.png", "a/y.png", "z.png"])
    WRITERS[name](tmp_path / name, ROWS)
    source = find(tmp_path / name)
    assert source.classes == ("cat", "dog")
    assert source.files.tolist() == ["a/x.png", "a/y.png", "z.png"]
    assert source.labels.tolist() == [0, 1, 0]
    assert source.columns["split"].tolist() == ["train", "train", "val"]
    assert source.columns["group"].tolist() == ["007", "p1", "p1"]
    assert source.columns["note"].tolist() == ["é", "", "n, m"]
    assert set(source.columns) == {"split", "group", "note"}
    assert [source.read(i) for i in range(3)] == [picture(i) for i in range(3)]
    assert source.fingerprint == find(tmp_path / name).fingerprint


@pytest.mark.parametrize("name", WRITERS)
def test_every_table_names_what_is_wrong(tmp_path, name):
    plant(tmp_path, ["a/x.png", "a/y.png", "z.png"])
    where = {".jsonl": "Line 5", ".ndjson": "Line 5", ".parquet": "Row 3"}.get(Path(name).suffix, "Line 4")

    def refused(says, **values):
        WRITERS[name](tmp_path / name, [*ROWS[:2], ROWS[2] | values])
        with pytest.raises(DataError, match=says):
            find(tmp_path / name)

    refused(f"1 of the 3 files.*'no.png' .{where.lower()}", path="no.png")
    refused(f"{where} of .* has split 'tset'. Did you mean 'test'", split="tset")
    refused(f"'a/y.png' twice with another label: .* says 'dog', {where.lower()} says 'cat'", path="./a/y.png")
    refused(f"'a/x.png' twice with another split: .* says 'train', {where.lower()} says 'val'", path="a//x.png")
    for column, says in (
        ("path", "called path, image, file_name or filename"),
        ("label", "called label, class or"),
    ):
        rows = [
            {(key.upper() + "1" if key == column else key): value for key, value in row.items()} for row in ROWS
        ]
        WRITERS[name](tmp_path / name, rows)
        with pytest.raises(DataError, match=f"no column {says}.*it has: .*{column.upper()}1"):
            find(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_an_empty_cell_is_an_image_without_a_label(tmp_path, name):
    plant(tmp_path, ["a/x.png", "a/y.png", "z.png"])
    rows = [{**row, "label": " " if k == 1 else row["label"]} for k, row in enumerate(ROWS)]
    WRITERS[name](tmp_path / name, rows)
    source = find(tmp_path / name, several=False)
    assert [(["", *source.classes])[k + 1] for k in source.labels] == [row["label"].strip() for row in rows]
    assert any("1 image has an empty 'label', and so no label: training by --semi-sup" in n for n in source.notes)
    WRITERS[name](tmp_path / name, [{**row, "label": ""} for row in ROWS])
    with pytest.raises(DataError, match=r"No row of .* has a 'label': fill it in for images of every class"):
        find(tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_listed_twice_counts_once(tmp_path, name):
    plant(tmp_path, ["a/x.png", "a/y.png", "z.png"])
    again = {**ROWS[0], "path": "./a/x.png", "group": "other"}
    WRITERS[name](tmp_path / name, [*ROWS, again])
    source = find(tmp_path / name)
    assert source.files.tolist() == ["a/x.png", "a/y.png", "z.png"]
    assert source.columns["group"].tolist() == ["007", "p1", "p1"]
    assert [source.read(i) for i in range(3)] == [picture(i) for i in range(3)]
    (note,) = source.notes
    assert "1 row that names a file again ('a/x.png'" in note


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_supported_encodings(tmp_path, encoding, end):
    plant(tmp_path, ["ä.png", "z.png"])
    text = end.join(["path,label,note", "ä.png,größe,日本", " z.png , b ,", "  ", ",,", ""])
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    source = find(tmp_path / "t.csv")
    assert source.classes == ("b", "größe")
    assert source.columns["note"].tolist() == ["日本", ""]
    assert source.read(0) == picture(0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            "path,label\nx.png,cat\n\nx.png,größe\n".encode("latin-1"),
            r"Line 4 .* not UTF-8 text .byte 0xf6 at position 9",
        ),
        ("path,label\nx.png,n\x80\n".encode("cp1252", "ignore") + b"y,\x80", "Line 3 .*byte 0x80 at position 3"),
        ("path,label\nx.png,a\n".encode("utf-16-le"), "not UTF-8 text .it has zero bytes"),
        ("path,label\nx.png,a\n".encode("utf-16")[:-1], "not whole UTF-16"),
        (b"path,label\n" + b"x.png,a\n" * 50_000 + b"\xf6,b\n", "Line 50002 .*byte 0xf6 at position 1"),
        (b"\xff\xff\xff", "Line 1 .*byte 0xff at position 1"),
        (b"", "lists no images"),
        (b"path,label\n", "lists no images"),
        (b"path,label\n" + b"x" * 200_000 + b",a\n", "Line 2 .* cannot be read .field larger"),
    ],
)
def test_unsupported_encodings(tmp_path, data, says):
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=says):
        find(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Line 1 .* not valid JSON"),
        ('{"path": "x", "label": 1}\n[1]', "Line 2 .* not a JSON object"),
        ("[" * 100_000, "Line 1 .* not valid JSON"),
        ("\n\n", "lists no images"),
    ],
)
def test_bad_jsonl(tmp_path, text, says):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        find(tmp_path / "t.jsonl")


def test_jsonl_values_and_fields_that_come_and_go(tmp_path):
    plant(tmp_path, ["x.png", "y.png", "z.png"])
    rows = [{"file_name": "x.png", "target": 10}, {"file_name": "y.png", "target": 9, "box": [1, 2]}]
    lines(tmp_path / "t.jsonl", [*rows, {"target": 10, "file_name": "z.png", "box": None}])
    source = find(tmp_path / "t.jsonl")
    assert source.classes == ("9", "10")
    assert source.labels.tolist() == [1, 0, 1]
    assert source.columns["box"].tolist() == ["", "[1, 2]", ""]


def test_class_names_are_normalised_with_a_note(tmp_path):
    decomposed, composed = unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFC", "café")
    plant(tmp_path / "f", [f"{decomposed}/1.png", f"{composed}/2.png", "tea/1.png"])
    source = find(tmp_path / "f")
    assert source.classes == (composed, "tea")
    assert np.bincount(source.labels).tolist() == [2, 1]
    assert sorted(source.read(i) for i in range(3)) == sorted(picture(i) for i in range(3))
    assert any(f"NFC): '{composed}'" in note for note in source.notes)
    # a table written on one system, files on another
    rows = [{"path": f"{decomposed}/2.png", "label": decomposed}, {"path": "tea/1.png", "label": "tea"}]
    delimited(tmp_path / "f" / "t.csv", rows, ",")
    source = find(tmp_path / "f" / "t.csv")
    assert source.classes == (composed, "tea")
    assert source.read(0) == picture(1)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_file_names_that_are_not_utf8(tmp_path):
    for number, folder in enumerate((b"caf\xe9", b"tea")):
        place = tmp_path / os.fsdecode(folder)
        place.mkdir()
        (place / os.fsdecode(b"\xff.png")).write_bytes(picture(number))
    source = find(tmp_path)
    assert source.classes == ("caf\\xe9", "tea")
    assert source.files.tolist() == ["caf\\xe9/\\xff.png", "tea/\\xff.png"]
    assert [source.read(i) for i in range(2)] == [picture(0), picture(1)]
    assert "The names of 2 files are not UTF-8" in " ".join(source.notes)
    json.dumps([source.files.tolist(), source.classes, source.notes], ensure_ascii=False).encode()


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "labels.csv", "whatever.tsv"])
@pytest.mark.parametrize("places", [["x.png", "y.png"], ["images/x.png", "images/y.png"]], ids=["flat", "images"])
def test_a_table_inside_a_folder(tmp_path, name, places):
    plant(tmp_path, places)
    rows = [{"file_name": place, "label": label} for place, label in zip(places, "ab", strict=True)]
    WRITERS["t" + Path(name).suffix](tmp_path / name, rows)
    source = find(tmp_path)
    assert source.classes == ("a", "b")
    assert source.name == str(tmp_path)
    assert source.read(1) == picture(1)
    delimited(tmp_path / "z.csv", [{"other": "1", "kind": "x"}], ",")
    if name.startswith(("metadata", "labels")):
        assert len(find(tmp_path)) == 2
    else:
        with pytest.raises(DataError, match=r"It has the tables whatever.tsv, z.csv: give one of them"):
            find(tmp_path)


def test_a_table_of_files_may_have_numbered_columns(tmp_path):
    plant(tmp_path, ["x.png", "y.png"])
    rows = [{"path": f"{n}.png", "label": n} | {f"p{i}": i for i in range(25)} for n in "xy"]
    delimited(tmp_path / "t.csv", rows, ",")
    assert find(tmp_path / "t.csv").columns["p24"].tolist() == ["24", "24"]


def test_class_folders_go_before_a_table_inside(tmp_path):
    plant(tmp_path, ["cat/1.png", "dog/1.png"])
    delimited(tmp_path / "labels.csv", [{"path": "cat/1.png", "label": "x"}], ",")
    (tmp_path / "features.parquet").write_bytes(b"anything")
    assert find(tmp_path).classes == ("cat", "dog")


def test_a_long_cell_does_not_cost_every_row(tmp_path):
    plant(tmp_path, [f"{i}.png" for i in range(500)])
    rows = [{"path": f"{i}.png", "label": "ab"[i % 2], "note": "x" * 100_000 * (i == 7)} for i in range(500)]
    delimited(tmp_path / "t.csv", rows, ",")
    source = find(tmp_path / "t.csv")
    assert len(source.columns["note"][7]) == 100_000
    assert source.columns["note"].nbytes <= 8 * 500


def test_memory_per_row_is_bounded(tmp_path):
    """At most 400 bytes a row while reading, whatever the number of rows: measured on four columns."""
    import tracemalloc

    count = 10_000
    plant(tmp_path, [f"images/000000{i}.png" for i in range(4)])
    with (tmp_path / "t.csv").open("w") as stream:
        stream.write("path,label,split,group\n")
        stream.writelines(f"images/000000{i % 4}.png,class{i % 4},train,patient{i}\n" for i in range(count))
    find(tmp_path / "t.csv")  # what is loaded once
    tracemalloc.start()
    source = find(tmp_path / "t.csv")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{count - 4:,} rows that name a file again" in source.notes[0]
    assert peak < 400 * count


# Parquet with the images inside


@pytest.fixture
def arrow():
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet

    return pyarrow


def held(arrow, values, first=0, kind="struct", described=True, count=5):
    images = [picture(first + i) for i in range(count)]
    column = images if kind == "bytes" else [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    table = arrow.table({"image": column, "label": values, "site": ["s"] * count})
    feature = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    note = json.dumps({"info": {"features": feature}})
    return table.replace_schema_metadata({"huggingface": note}) if described else table


@pytest.mark.parametrize("kind", ["struct", "bytes"])
@pytest.mark.parametrize("described", [True, False])
def test_parquet_with_images(tmp_path, arrow, kind, described):
    table = held(arrow, [0, 1, 1, 0, 1], kind=kind, described=described)
    arrow.parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    source = find(tmp_path / "x.parquet")
    assert source.classes == (("cat", "dog") if described else ("0", "1"))
    assert source.labels.tolist() == [0, 1, 1, 0, 1]
    assert [source.read(i) for i in (4, 0, 1, 2, 3, 0)] == [picture(i) for i in (4, 0, 1, 2, 3, 0)]
    assert source.columns["site"].tolist() == ["s"] * 5
    assert source.files[3] == "x.parquet:3"
    assert pickle.loads(pickle.dumps(source)).read(2) == picture(2)


def test_parquet_files_of_splits(tmp_path, arrow):
    (tmp_path / "data").mkdir()
    for number, name in enumerate(("test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002")):
        table = held(arrow, [0, 1, 1, 0, 1], first=10 * number)
        arrow.parquet.write_table(table, tmp_path / "data" / f"{name}.parquet", row_group_size=3)
    source = find(tmp_path)
    assert source.columns["split"].tolist() == ["test"] * 5 + ["train"] * 10
    assert [source.read(i) for i in range(15)] == [picture(10 * n + i) for n in range(3) for i in range(5)]
    first = source.fingerprint
    os.utime(tmp_path / "data" / "test-00000-of-00001.parquet", ns=(10**18, 10**18))
    assert find(tmp_path).fingerprint != first


def test_bad_parquet(tmp_path, arrow):
    table = held(arrow, [0, 1, 1, 0, 1])
    arrow.parquet.write_table(table, tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(data[:-20])
    with pytest.raises(DataError, match="not a complete Parquet file"):
        find(tmp_path / "x.parquet")
    arrow.parquet.write_table(
        table.set_column(0, "image", [[picture(0), None, b"", b"x", b"y"]]), tmp_path / "x.parquet"
    )
    source = find(tmp_path / "x.parquet")
    for row in (1, 2):
        with pytest.raises(ImageError, match="holds no image"):
            source.read(row)
    arrow.parquet.write_table(table.slice(0, 0), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="lists no images"):
        find(tmp_path / "x.parquet")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'sightline\[parquet\]'"):
        find(tmp_path / "x.parquet")


def test_a_hostile_parquet_is_refused_before_it_fills_the_memory(tmp_path, arrow):
    many = 5_000_000  # of the same value, which take nothing
    repeated = [
        arrow.DictionaryArray.from_arrays(arrow.array(np.zeros(many, np.int8)), arrow.array([text]))
        for text in ("x.png", "cat")
    ]
    arrow.parquet.write_table(arrow.table(repeated, names=["path", "label"]), tmp_path / "many.parquet")
    with pytest.raises(DataError, match=r"announces 5,000,000 rows in [\d,]+ bytes"):
        find(tmp_path / "many.parquet")
    labels = arrow.array(["a", "b"])
    twice = arrow.table([arrow.array([picture(0)] * 2), labels, labels], ["image", "label", "label"])
    arrow.parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="has two columns 'label'"):
        find(tmp_path / "twice.parquet")
    whole = held(arrow, [0, 1, 1, 0, 1])
    arrow.parquet.write_table(whole, tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    for seed in range(30):  # whatever a byte says, it is a table or a sentence
        rng, wrong = np.random.default_rng(seed), bytearray(data)
        for at in rng.integers(4, len(data) - 8, 1 + seed % 5):
            wrong[at] = int(rng.integers(0, 256))
        (tmp_path / "wrong.parquet").write_bytes(wrong)
        with suppress(DataError):
            source = find(tmp_path / "wrong.parquet")
            for row in range(len(source)):
                source.read(row)
