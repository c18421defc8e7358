"""Tables that we write: a spreadsheet runs none of their cells, and reading gives back what was written."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest

import sightline
from sightline.files import atomic_replace, quote_formula, read_csv_rows, unquote_formula, write_csv, write_json

FORMULAS = ("=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "\uff201")
PLAIN = ("", "cat", "'tis", "émeu", "3", "-1", "-0.5", "+1e3", "a=b", "x-y.png", "'", "''")


@pytest.mark.parametrize("text", [*FORMULAS, "'=1", "''=1", "'-1", "'''@x"])
def test_what_a_spreadsheet_would_run_is_quoted(text):
    assert quote_formula(text) == "'" + text
    assert unquote_formula(f"'{text}") == text


@pytest.mark.parametrize("text", PLAIN)
def test_other_cells_stay(text):
    assert quote_formula(text) == text == unquote_formula(text)


def test_what_was_written_is_read_again(tmp_path):
    texts = [*FORMULAS, *PLAIN, "'=1", "'-1"]
    write_csv(tmp_path / "t.csv", [["=name", "number"], *([text, -1.5] for text in texts)])
    assert [row["=name"] for row in read_csv_rows(tmp_path / "t.csv")] == texts
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as stream:
        cells = [cell for row in csv.reader(stream) for cell in row]
    assert not [cell for cell in cells if cell[:1] in "=+-@" and cell and not cell[1:2].isdigit()]
    assert "-1.5" in cells


def test_no_module_writes_tables_of_its_own():
    writers = ("csv.writer", "DictWriter")
    files = (path for path in Path(sightline.__file__).parent.rglob("*.py"))
    assert [path.name for path in files if any(one in path.read_text() for one in writers)] == ["files.py"]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("moment", ["begun", "written", "renamed"])
def test_a_process_killed_while_it_writes_leaves_the_old_or_the_new(tmp_path, kind, moment, monkeypatch):
    target = tmp_path / "out"

    def write(path, text):
        path.mkdir() if kind == "folder" else None
        for part in ("a", "b") if kind == "folder" else ("",):
            (path / part if part else path).write_text(text)
            if moment == "begun" and text == "new":
                os.kill(os.getpid(), signal.SIGKILL)

    def read():
        return {path.read_text() for path in ([*target.iterdir()] if target.is_dir() else [target])}

    with atomic_replace(target) as temporary:
        write(temporary, "old")
    if not (child := os.fork()):
        try:
            if moment == "written":
                monkeypatch.setattr("os.fsync", lambda _: os.kill(os.getpid(), signal.SIGKILL))
            monkeypatch.setattr("shutil.rmtree", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            with atomic_replace(target) as temporary:
                write(temporary, "new")
        finally:
            os._exit(1)  # else the child would run the other tests too
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert read() == {"new" if moment == "renamed" else "old"}
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["out"]
    with atomic_replace(target) as temporary:
        write(temporary, "newest")
    assert read() == {"newest"}


def test_numbers_are_on_one_line_and_strings_stay(tmp_path):
    value = {
        "row": [1, -2.5, 3e-9],
        "empty": [],
        "text": "[\n  1,\n  2\n]",
        "words": ["1", "2"],
        "rows": [[1], [2, 3]],
    }
    write_json(tmp_path / "found.json", value)
    written = (tmp_path / "found.json").read_text()
    assert json.loads(written) == value
    assert '"row": [1, -2.5, 3e-09]' in written
    assert '"rows": [\n    [1],\n    [2, 3]\n  ]' in written
