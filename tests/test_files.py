"""Tables that we write: a spreadsheet runs none of their cells, and reading gives back what was written."""

import csv
from pathlib import Path

import pytest

import sightline
from sightline.files import quote_formula, read_csv_rows, unquote_formula, write_csv

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
