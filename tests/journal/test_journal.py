"""The journal on both databases: nothing acknowledged is lost, no row is changed, erased data are gone."""

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError

from helpers.journal_records import make_record, picture, record_and_flush
from helpers.postgres import Cluster, programs
from sightline.errors import DataError, JournalError
from sightline.journal.database import MIGRATIONS_FOLDER, SCHEMA_HEAD, connect_database, metadata
from sightline.journal.journal import JOURNAL_FILE, Journal
from sightline.journal.records import (
    DatabaseUnavailable,
    PredictionRecord,
    UnknownPrediction,
    new_prediction_id,
)
from sightline.journal.spool import Spool, decode_line, encode_lines
from sightline.sources import read_exemplar_table, store_exemplar, write_exemplar_table
from sightline.types import Geometry

# Ids and lines.


def test_ids_sort_by_time_and_never_repeat():
    ids = [new_prediction_id() for _ in range(20_000)]
    assert len(set(ids)) == len(ids)
    assert {len(id) for id in ids} == {32}
    assert all(id.isalnum() and id.isascii() for id in ids[:100])
    times = [int(id[:14], 16) for id in ids]
    assert times == sorted(times)
    time.sleep(0.001)
    assert new_prediction_id() > max(ids)


def test_encoded_lines_decode_to_the_same_records():
    some = [
        make_record(),
        make_record(subject="Zoë \U0001f600", source="a\nb", image=b"\0\xff" * 99),
        make_record(sha256=None),
    ]
    lines = encode_lines(some, images=True)
    assert [one for line in lines.splitlines() for one in decode_line(line)] == some
    assert [one.image for one in decode_line(encode_lines(some, images=False))] == [None] * 3
    large = [make_record(image=os.urandom(3_000_000)) for _ in range(3)]
    lines = encode_lines(large, images=True).splitlines()
    assert len(lines) > 1
    assert [one for line in lines for one in decode_line(line)] == large
    for bad in (b"", b"{}", b"[]", b"[3]", b'[1,["x"]]', b"[1,3]", lines[0][:-20]):
        with pytest.raises(ValueError, match=r"line|Expecting|unpack|Unterminated|Invalid"):
            decode_line(bad)


def test_lines_of_the_first_format_are_still_read():
    line = b'[1,["ab",5.0,1,"cat",0.5,false,null,"Zoe",null,"AAE="]]'
    assert decode_line(line) == [PredictionRecord("ab", 5.0, 1, "cat", 0.5, False, None, "Zoe", None, b"\0\1")]


# Answers.


def test_recorded_predictions_are_read_back(journal):
    given = [
        make_record(
            label=label, confidence=p, abstained=p < 0.5, release=release, subject=subject, source="front-door.jpg"
        )
        for label, p, release, subject in (("cat", 0.9, 1, None), ("dog", 0.4, 1, "Zoë"), ("cat", 0.6, 2, "b"))
    ]
    record_and_flush(journal, *given)
    rows = journal.predictions()
    assert [row.id for row in rows] == [one.id for one in given[::-1]]
    for row, one in zip(rows, given[::-1], strict=True):
        for name in ("id", "at", "release", "label", "confidence", "abstained", "sha256", "subject", "source"):
            assert getattr(row, name) == getattr(one, name)
        assert (row.image, row.erased_at, row.correction) == (None, None, None)
    ids = [one.id for one in given]
    for wanted, found in (
        ({"label": "cat"}, [2, 0]),
        ({"release": 1}, [1, 0]),
        ({"abstained": True}, [1]),
        ({"abstained": False}, [2, 0]),
        ({"subject": "Zoë"}, [1]),
        ({"limit": 2}, [2, 1]),
        ({"limit": 0}, []),
        ({"before": ids[2]}, [1, 0]),
        ({"before": ids[2], "limit": 1}, [1]),
        ({"since": given[1].at, "until": given[2].at}, [1]),
        ({"corrected": True}, []),
        ({"label": "cow"}, []),
    ):
        assert [ids.index(row.id) for row in journal.predictions(**wanted)] == found, wanted
    assert journal.count() | {"image_bytes": 0} == {
        "predictions": 3, "abstained": 1, "corrected": 0, "erased": 0, "images": 0, "image_bytes": 0
    }  # fmt: skip


def test_the_writer_thread_moves_records_to_the_database(journal):
    journal.record([make_record() for _ in range(1200)])
    assert journal.waiting <= 1200
    deadline = time.monotonic() + 30
    while journal.waiting and time.monotonic() < deadline:
        time.sleep(0.02)
    assert journal.waiting == 0
    assert journal.count()["predictions"] == 1200
    assert journal.healthy
    assert list((journal._site / "spool").glob("*.jsonl")) == []


def test_the_same_record_twice_is_one_row(journal):
    one = make_record()
    record_and_flush(journal, one, one)
    record_and_flush(journal, one, make_record(), replace(one, label="dog"))
    assert journal.count()["predictions"] == 2
    assert journal.predictions()[-1].label == "cat"


def test_text_is_made_safe_for_any_database(journal):
    hostile = "a\0b\ud800c" + "x" * 1000
    record_and_flush(journal, make_record(subject=hostile, source=hostile, label=hostile, confidence=float("nan")))
    (row,) = journal.predictions()
    assert row.subject == row.source == row.label
    assert row.subject.startswith("a\ufffdb?c")
    assert len(row.subject) == 500
    assert row.confidence == 0
    assert journal.erase(hostile).rows == 1


def test_a_rejected_value_does_not_stop_other_records(journal, capsys):
    ids = record_and_flush(journal, make_record(), make_record(release=2**70, subject="too large"), make_record())
    assert {row.id for row in journal.predictions()} == {ids[0], ids[2]}
    assert journal.waiting == 0
    assert "cannot store an answer" in capsys.readouterr().err
    (held,) = decode_line((journal._site / "spool" / "refused").read_bytes())
    assert held.id == ids[1]
    assert "refused" not in "".join(journal.erase("someone else").remains)
    assert (
        "refused' could not be stored earlier and mentions this subject" in journal.erase("too large").remains[-1]
    )


# Corrections.


def test_a_correction_is_stored_once_and_the_latest_counts(journal):
    (id, other) = record_and_flush(journal, make_record(), make_record())
    first = journal.correct(id, "dog", by="camera")
    assert (first.label, first.by, first.already) == ("dog", "camera", False)
    again = journal.correct(id, "dog", by="other")
    assert again.already
    assert (again.at, again.by) == (first.at, "camera")
    assert not journal.correct(id, "cow").already
    assert not journal.correct(id, "dog").already  # the latest correction counts
    (row,) = journal.predictions(corrected=True)
    assert (row.id, row.correction, row.label, row.corrected_by) == (id, "dog", "cat", None)
    assert [row.id for row in journal.predictions(corrected=False)] == [other]
    assert journal.count()["corrected"] == 1


@pytest.mark.parametrize("id", ["", "0" * 32, "x", "'; DROP TABLE predictions; --", "é\0", "\ud800", "x" * 10_000])
def test_an_unknown_id_is_refused(journal, id):
    record_and_flush(journal, make_record())
    with pytest.raises(UnknownPrediction, match="no prediction with this id"):
        journal.correct(id, "dog")
    assert journal.count() | {"corrected": 0} == journal.count()


def test_a_spooled_prediction_can_be_corrected(journal, tmp_path):
    own = make_record()
    journal.record([own])
    assert journal.correct(own.id, "dog").label == "dog"
    other = Spool(tmp_path / "site" / "spool", images=False)  # another worker's, alive
    theirs = [make_record(), make_record()]
    other.append(theirs)
    assert not journal.correct(theirs[1].id, "dog").already
    journal.flush()
    assert other.waiting == 2  # the living bring their own
    assert {row.id for row in journal.predictions()} == {own.id, *(one.id for one in theirs)}
    other.close()
    journal.flush()
    assert journal.count()["predictions"] == 3


@pytest.mark.parametrize("jump", [-86_400 * 400, 86_400 * 400])
def test_a_clock_that_jumps_loses_nothing(journal, jump, monkeypatch):
    ids = record_and_flush(journal, make_record(), make_record())
    journal.correct(ids[0], "dog")
    now, now_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + jump * 10**9)
    ids += record_and_flush(journal, make_record(), make_record())
    journal.correct(ids[0], "cow")  # the later correction, whatever the clock says
    monkeypatch.undo()
    ids += record_and_flush(journal, make_record())
    pages, before = [], None
    while page := journal.predictions(limit=2, before=before):
        pages += page
        before = page[-1].id
    assert sorted(row.id for row in pages) == sorted(ids)
    assert next(row for row in pages if row.id == ids[0]).correction == "cow"


def test_opening_waits_for_a_process_that_creates_the_journal(tmp_path):
    writer = sqlite3.connect(tmp_path / JOURNAL_FILE, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")  # SQLite refuses another switch to its write-ahead log without waiting
    release = threading.Timer(0.3, writer.execute, ["ROLLBACK"])
    release.start()
    Journal.open(tmp_path).close()
    release.join()
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    writer.close()


# Nothing is lost.

WORKERS = """
import os, sys, time
from sightline.journal.journal import Journal
from sightline.journal.records import PredictionRecord, new_prediction_id

def say(*words):
    os.write(1, (" ".join(words) + "\\n").encode())  # of one piece

def work(name, count):
    journal = Journal.open(sys.argv[1], site=sys.argv[2])
    if name != "c":
        say("pid", str(os.getpid()))
    for i in range(count):
        ids = [new_prediction_id() for _ in range(1 + i % 3)]
        some = [PredictionRecord(id, time.time(), 1, "cat", 0.5, False, None, name) for id in ids]
        journal.record(some)
        say("recorded", *(one.id for one in some))
        if i % 10 == 5:
            say("corrected", journal.correct(some[0].id, name).id)
    journal.close()

for name, count in (("a", 100_000), ("b", 100_000), ("c", 40)):  # three processes, after one import
    if not os.fork():
        work(name, count)
        os._exit(0)
say("ended", *(str(os.WEXITSTATUS(status) - os.WTERMSIG(status)) for _, status in (os.wait() for _ in "abc")))
"""


def test_killed_processes_lose_nothing(where, open_journal, tmp_path):
    site = tmp_path / "site"  # all three find no journal, and make it at once
    words = [sys.executable, "-c", WORKERS, str(where), str(site)]
    output = {"recorded": [], "corrected": [], "pid": [], "ended": []}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as workers:
        for line in workers.stdout:
            word, *ids_or_codes = line.split()
            output[word] += ids_or_codes
            if len(output["pid"]) == 2 and len(output["corrected"]) >= 20:  # the two that would write without end
                for pid in map(int, output["pid"]):
                    os.kill(pid, signal.SIGKILL)
                output["pid"].append("killed")
    assert sorted(output["ended"]) == ["-9", "-9", "0"]
    recorded_ids, corrected_ids = output["recorded"], output["corrected"]
    assert len(recorded_ids) > 50
    journal = open_journal()
    journal.flush()
    held = {row.id: row for row in journal.predictions(limit=100_000)}
    assert set(recorded_ids) <= held.keys()
    for id in corrected_ids:
        assert held[id].correction == held[id].subject
    assert list((site / "spool").glob("*.jsonl")) == []
    assert len(list((site / "spool").glob("*.lock"))) == 1  # our own


def test_a_truncated_last_line_is_skipped(open_journal, tmp_path):
    dead = Spool(tmp_path / "site" / "spool", images=False)
    whole = make_record()
    dead.append([whole])
    segment = dead.oldest_segment()
    with segment.open("ab") as stream:
        stream.write(encode_lines([make_record()], images=False)[:-30])
    dead.close()
    journal = open_journal()
    journal.flush()
    assert [row.id for row in journal.predictions()] == [whole.id]
    assert list((tmp_path / "site" / "spool").glob("*.damaged")) == []


@pytest.mark.parametrize("line", [b"rubbish\n", b"[9,[]]\n"])
def test_an_unreadable_segment_is_set_aside(open_journal, tmp_path, capsys, line):
    dead = Spool(tmp_path / "site" / "spool", images=False)
    whole = make_record()
    dead.append([whole])
    segment = dead.oldest_segment()
    with segment.open("ab") as stream:
        stream.write(line)
    dead.close()
    journal = open_journal()
    journal.flush()
    after = record_and_flush(journal, make_record())
    assert journal.waiting == 0
    assert {row.id for row in journal.predictions()} >= set(after)
    (aside,) = (tmp_path / "site" / "spool").glob("*.damaged")
    assert whole.id.encode() in aside.read_bytes()
    assert "cannot be read. It was moved to" in capsys.readouterr().err


def test_the_spool_is_bounded(tmp_path):
    spool = Spool(tmp_path / "spool", images=True, limit=20_000, segment=3000)
    image = os.urandom(600)
    held = 0
    with pytest.raises(JournalError, match=r"spool is full: \d+ answers wait"):  # noqa: PT012
        for _ in range(1000):
            spool.append([make_record(image=image)])
            held += 1
    assert spool.waiting == held
    assert spool.dropped_images > 0  # images gave way first
    assert sum(path.stat().st_size for path in (tmp_path / "spool").glob("*.jsonl")) <= 20_000
    while segment := spool.oldest_segment():
        spool.remove(segment)
    assert spool.waiting == 0
    spool.append([make_record(image=image)])
    spool.close()


# Rows are never changed.


def statements(journal):
    found = []
    for engine in {journal._database.fast_engine, journal._database.durable_engine}:
        event.listen(engine, "before_cursor_execute", lambda *given: found.append(given[2].split()[0].upper()))
    return found


def test_only_inserts_are_executed(journal):
    found = statements(journal)
    (id,) = record_and_flush(journal, make_record())
    journal.correct(id, "dog")
    journal.correct(id, "cow")
    journal.predictions()
    assert set(found) <= {"SELECT", "INSERT", "BEGIN", "SET"}
    assert "INSERT" in found


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE predictions SET label = 'dog'",
        "UPDATE predictions SET confidence = 1",
        "UPDATE predictions SET subject = 'someone'",
        "UPDATE predictions SET id = 'x'",
        "DELETE FROM predictions",
        "UPDATE corrections SET label = 'cow'",
        "DELETE FROM corrections",
    ],
)
def test_triggers_refuse_to_change_rows(journal, statement):
    (id,) = record_and_flush(journal, make_record())
    journal.correct(id, "dog")
    with pytest.raises(DBAPIError, match="never changed"), journal._database.durable_engine.begin() as connection:
        connection.execute(text(statement))
    (row,) = journal.predictions()
    assert (row.label, row.correction) == ("cat", "dog")


# Erasure.


def test_erasure_reaches_exemplars_of_the_site_and_of_its_runs(open_journal, tmp_path):
    journal = open_journal(keep_images=True)
    mine, others = picture(1), picture(2)
    hashes = [hashlib.sha256(one).hexdigest() for one in (mine, others)]
    record_and_flush(
        journal,
        make_record(subject="alice", image=mine, sha256=hashes[0]),
        make_record(subject="bob", image=others, sha256=hashes[1]),
    )
    stored = []
    for folder in (tmp_path / "site", tmp_path / "site" / "runs"):
        rows = [
            {"path": store_exemplar(folder, one, ".png"), "label": "cat", "split": "train"}
            for one in (mine, others)
        ]
        (folder / "learned").mkdir()
        write_exemplar_table(folder / "learned", rows)
        stored.append([folder / "exemplars" / f"{one}.png" for one in hashes])
    assert all(file.is_file() for files in stored for file in files)
    journal.erase("alice")
    for mine_there, others_there in stored:
        assert not mine_there.exists()
        assert others_there.read_bytes() == others
        assert [Path(row["path"]).stem for row in read_exemplar_table(mine_there.parents[1] / "learned")] == [
            hashes[1]
        ]


def test_a_subject_is_erased_everywhere(open_journal, tmp_path):
    journal = open_journal(keep_images=True)
    mine, same, others = picture(1), picture(1), picture(2)
    ids = record_and_flush(
        journal,
        make_record(subject="alice", image=mine, sha256="a1" * 32),
        make_record(subject="alice", image=picture(3), sha256="a3" * 32),
        make_record(subject=None, image=same, sha256="a1" * 32),
        make_record(subject="bob", image=others, sha256="b2" * 32),
    )
    journal.correct(ids[0], "dog")
    journal.record([make_record(subject="alice", image=picture(4), sha256="a4" * 32)])  # still on its way
    before = {row.id: row for row in journal.predictions()}
    assert journal.erase("alice").rows == 4
    after = {row.id: row for row in journal.predictions()}
    assert journal.erase("alice").rows == 0
    for id in set(after) - {ids[3]}:
        row = after[id]
        assert (row.image, row.sha256) == (None, None)
        assert abs(row.erased_at - time.time()) < 60
        if id in before:
            assert replace(before[id], image=None, sha256=None, erased_at=row.erased_at) == row
    assert after[ids[3]] == before[ids[3]]
    journal.flush()
    files = [path for path in (tmp_path / "site" / "images").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [after[ids[3]].image]
    assert journal.count()["images"] == 1
    assert journal.erase("nobody").rows == 0


def files_with(folder, needles):
    """The files of a folder in whose bytes one of these occurs, whatever their names."""
    held = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path.name for path, data in held.items() for needle in needles if needle in data}


def traces(images, hashes):
    """What must be gone: hashes, and a piece of each image as it is stored, and as a spool writes it."""
    pieces = [image[48:348] for image in images]
    return [*(one.encode() for one in hashes), *pieces, *(b64encode(one)[4:-4] for one in pieces)]


@pytest.mark.parametrize("rows", [40, 700])
def test_erased_bytes_are_in_no_file_of_the_site(open_journal, where, tmp_path, request, rows):
    site, mine = tmp_path / "site", [picture(seed) for seed in range(3)]
    hashes = [f"{seed:02x}" * 32 for seed in range(3)]
    journal = open_journal(keep_images=True)
    other = Spool(site / "spool", images=True)  # of a worker that lives and answers
    record_and_flush(
        journal, *(make_record(subject=f"s{i % 9}", sha256=os.urandom(32).hex()) for i in range(rows))
    )
    for image, sha256 in zip(mine, hashes, strict=True):
        record_and_flush(journal, make_record(subject="alice", image=image, sha256=sha256))
    record_and_flush(
        journal, *(make_record(subject=f"s{i % 9}", sha256=os.urandom(32).hex()) for i in range(rows))
    )
    journal.record([make_record(subject="alice", image=mine[0], sha256=hashes[0])])
    other.append([make_record(subject="bob", image=mine[1], sha256=hashes[1])])
    (id,) = record_and_flush(journal, make_record(subject="alice", image=picture(9)))
    journal.correct(id, "dog")
    found = journal.dataset(geometry=Geometry(size=(12, 10), channels=3))
    needles = [*traces([*mine, picture(9)], hashes), found[:1].tobytes()]
    (stale := next((site / "images").iterdir()) / ".killed").write_bytes(mine[2])
    assert {"pixels.npy", stale.name, JOURNAL_FILE} - {"journal.sqlite"} <= files_with(site, needles)
    threading.Timer(0.3, lambda: other.remove(other.oldest_segment())).start()  # as its owner would
    done = journal.erase("alice")
    assert done.rows == 6
    assert files_with(site, needles) == set()
    if isinstance(where, Path):
        assert done.remains == ()
    else:
        assert "write-ahead log" in "".join(done.remains)
        assert files_with(request.getfixturevalue("cluster").root / "data" / "base", needles) == set()


def test_an_erasure_names_the_copies_that_it_does_not_reach(tmp_path, cli, monkeypatch):
    from sightline.journal import journal as module

    site, name = tmp_path / "site", f"{JOURNAL_FILE}-wal"
    monkeypatch.setattr(module, "_SEGMENT_SECONDS", 0.2)
    with Journal.open(site, keep_images=True) as journal:
        ids = record_and_flush(
            journal, make_record(subject="a", image=picture(0)), make_record(image=picture(1), sha256="01" * 32)
        )
        for id in ids:
            journal.correct(id, "dog")
        for out in ("rows.csv", "images"):
            assert cli("journal", site, "export", "--out", tmp_path / out).code == 0
        assert journal.erase("nobody").remains == ()
        other = Spool(site / "spool", images=True)
        other.append([make_record()])  # its process hangs
        reader = sqlite3.connect(site / JOURNAL_FILE, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM predictions").fetchone()
        journal._database.durable_engine.dispose()
        event.listen(
            journal._database.durable_engine, "connect", lambda held, _: held.execute("PRAGMA busy_timeout = 100")
        )
        wal, segment, table, folder = journal.erase("a").remains
        reader.close()
    assert f"{name}' holds erased hashes as long as" in wal
    assert f"'{other.oldest_segment()}' may hold what was erased" in segment
    other.close()
    assert table.startswith(f"The export '{tmp_path / 'rows.csv'}' holds 1 of the erased hashes")
    assert folder.startswith(f"The export '{tmp_path / 'images'}' holds 1 of the erased images")
    again = json.loads(cli("journal", site, "erase", "a", "--json").out)
    assert (again["erased"], again["remains"]) == (0, [table, folder])
    shutil.rmtree(tmp_path / "images")
    assert table.split(":")[0] in " ".join(cli("journal", site, "erase", "a").out.split())
    (tmp_path / "rows.csv").unlink()
    assert json.loads(cli("journal", site, "retain", "--days", 9, "--json").out)["remains"] == []


def test_retention_keeps_younger_rows(open_journal, tmp_path):
    journal = open_journal(keep_images=True)
    old, now = time.time() - 10 * 86_400, time.time()
    ids = record_and_flush(
        journal,
        make_record(at=old, image=picture(1)),
        make_record(at=old, image=picture(2)),
        make_record(at=now, image=picture(2)),
        make_record(at=old, sha256=None),
    )
    assert journal.retain(30).rows == 0
    assert journal.retain(9).rows == 2
    rows = {row.id: row for row in journal.predictions()}
    assert [rows[id].image is None for id in ids] == [True, True, False, True]
    assert journal.image_path(rows[ids[2]]).is_file()
    assert journal.count() | {"image_bytes": 0} == {
        "predictions": 4, "abstained": 0, "corrected": 0, "erased": 2, "images": 1, "image_bytes": 0
    }  # fmt: skip
    assert journal.retain(0).rows >= 1
    assert [path for path in (tmp_path / "site" / "images").rglob("*") if path.is_file()] == []
    with pytest.raises(JournalError, match="--days is -1"):
        journal.retain(-1)


# Images.


def test_images_are_kept_on_request_and_within_the_quota(open_journal, tmp_path, capsys):
    pictures = [picture(seed) for seed in range(6)]
    journal = open_journal()
    record_and_flush(journal, make_record(image=pictures[0]))
    assert journal.count()["images"] == 0
    journal.close()
    room = sum(map(len, pictures[:3])) + 10
    journal = open_journal(keep_images=True, quota_mb=room / 1e6)
    record_and_flush(
        journal,
        *(make_record(image=one) for one in pictures[:2]),
        make_record(image=pictures[0]),
        make_record(image=b"rubbish"),
    )
    record_and_flush(journal, *(make_record(image=one) for one in pictures[2:4]))  # an older one makes room
    assert journal.count()["images"] == 3
    assert journal.count()["image_bytes"] <= room
    assert journal.dropped_images == 1  # the rubbish
    kept = [row for row in journal.predictions() if row.image is not None]
    assert {row.id for row in journal.predictions(limit=2)} < {row.id for row in kept}
    assert all(journal.image_path(row).is_file() for row in kept)
    assert len([*(tmp_path / "site" / "images").glob("*/*.png")]) == 3
    for row in kept:
        journal.correct(row.id, "dog")
    another = open_journal(keep_images=True, quota_mb=room / 1e6)  # the quota is of all processes
    record_and_flush(another, make_record(image=pictures[5]))
    assert another.dropped_images == 1
    assert "raise --quota-mb, or no new answer can be reviewed" in capsys.readouterr().err
    assert journal.count()["images"] == 3


def test_corrected_images_become_a_data_set(open_journal, tmp_path):
    journal = open_journal(keep_images=True)
    small = Geometry(size=(12, 10), channels=3)
    with pytest.raises(DataError, match="has no labelled images"):
        journal.dataset(geometry=small)
    ids = record_and_flush(
        journal,
        make_record(image=picture(0), subject="a"),
        make_record(image=picture(1), subject="a", confidence=0.95),
        make_record(image=picture(2), confidence=0.99),
        make_record(image=picture(3), confidence=0.99, abstained=True),
        make_record(image=picture(0), subject="b", release=2),
        make_record(image=None),
    )
    for id, label in ((ids[0], "dog"), (ids[1], "cow"), (ids[1], "emu"), (ids[5], "dog")):
        journal.correct(id, label)
    found = journal.dataset(geometry=small)
    assert found.classes == ("dog", "emu")
    assert [found.classes[k] for k in found.labels] == ["dog", "emu"]
    assert list(found.columns["prediction"]) == ids[:2]
    assert list(found.columns["group"]) == ["a", "a"]
    assert list(found.columns["release"]) == [1, 1]
    for i, seed in enumerate((0, 1)):
        expected = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        assert np.array_equal(found[[i]][0], expected)
    journal.correct(ids[4], "cow")  # the same image, corrected later
    more = journal.dataset(corrected_only=False, geometry=small)
    assert [more.classes[k] for k in more.labels] == ["emu", "cat", "cow"]
    assert list(more.columns["prediction"]) == [ids[1], ids[2], ids[4]]
    assert list(more.columns["group"]) == ["a", ids[2], "b"]


# Databases that cannot be used.


def test_a_database_outage_loses_nothing(request, cluster, tmp_path, capsys):
    server = Cluster(programs())
    request.addfinalizer(server.close)
    with Journal.open(server.database(), site=tmp_path) as journal:
        known = record_and_flush(journal, make_record())
        journal.correct(known[0], "dog")
        server.stop()
        ids = [one.id for one in (make_record() for _ in range(50)) if journal.record([replace(one)]) is None]
        for way in (
            lambda: journal.correct(known[0], "cow"),
            lambda: journal.erase("x"),
            journal.predictions,
            journal.flush,
        ):
            with pytest.raises(DatabaseUnavailable, match="does not answer") as away:
                way()
            assert "hidden-word" not in str(away.value)
        deadline = time.monotonic() + 20
        while journal.healthy and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not journal.healthy
        assert "hidden-word" not in journal.last_error
        assert journal.waiting == 50
        assert capsys.readouterr().err.count("does not answer") == 1
        server.start()
        deadline = time.monotonic() + 30
        while journal.waiting and time.monotonic() < deadline:
            time.sleep(0.05)
        rows = {row.id: row for row in journal.predictions()}
        assert rows.keys() == {*known, *ids}
        assert rows[known[0]].correction == "dog"
        assert journal.healthy


def test_a_full_database_acknowledges_only_what_it_stored(open_journal, where, tmp_path):
    if not isinstance(where, type(tmp_path)):
        pytest.skip("only SQLite has a maximal size to set")
    journal = open_journal()
    (id,) = record_and_flush(journal, make_record())
    for engine in (journal._database.fast_engine, journal._database.durable_engine):
        engine.dispose()
        event.listen(engine, "connect", lambda held, _: held.execute("PRAGMA max_page_count = 1"))
    journal.record([make_record(subject="x" * 400) for _ in range(300)])
    with pytest.raises(DatabaseUnavailable, match="full"):
        journal.flush()
    with pytest.raises(DatabaseUnavailable, match="full"):  # noqa: PT012
        for word in range(3000):
            journal.correct(id, f"class {word}")
    assert journal.waiting == 300
    noted = len({row.correction for row in journal.predictions(corrected=True)})
    for engine in (journal._database.fast_engine, journal._database.durable_engine):
        engine.dispose()
        event.listen(engine, "connect", lambda held, _: held.execute("PRAGMA max_page_count = 1000000"))
    journal.flush()
    assert journal.waiting == 0
    assert journal.count()["predictions"] == 301
    assert len({row.correction for row in journal.predictions(corrected=True)}) == noted


def test_a_newer_schema_is_refused(where, open_journal):
    open_journal().close()
    url = where if isinstance(where, str) else f"sqlite:///{where / JOURNAL_FILE}"
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(JournalError, match=r"has schema 9999, newer than this release reads \(0003\)"):
        open_journal()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://user:hidden-word@127.0.0.1:1/journal", "does not answer"),
        ("postgresql://user@127.0.0.1:1/journal?password=hidden-word", "does not answer"),
        ("mysql://user:hidden-word@host/x", "cannot be used: give postgresql://"),
        ("sqlite://", "cannot be used"),
        ("://hidden-word", "cannot be used"),
        ("nonsense://hidden-word@/", "cannot be used"),
        ("postgresql://user:hidden-word@host:port/x", "cannot be used"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url, message, tmp_path):
    with pytest.raises(JournalError, match=message) as refused:
        Journal.open(url, site=tmp_path)
    assert "hidden-word" not in str(refused.value)
    with pytest.raises(JournalError, match="needs a folder"):
        Journal.open("postgresql://host/x")


def test_a_journal_does_not_show_its_password(cluster, tmp_path):
    with Journal.open(cluster.database(), site=tmp_path) as journal:
        for shown in (repr(journal), str(journal), repr(journal._database), repr(vars(journal))):
            assert "hidden-word" not in shown


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / JOURNAL_FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalError, match=r"journal\.sqlite' refuses: file is not a database"):
        Journal.open(tmp_path / "a")
    (tmp_path / "b" / JOURNAL_FILE).mkdir(parents=True)
    with pytest.raises(JournalError, match="unable to open"):
        Journal.open(tmp_path / "b")
    (tmp_path / "c").mkdir()
    sqlite3.connect(tmp_path / "c" / JOURNAL_FILE).execute("CREATE TABLE predictions (x)").connection.close()
    with pytest.raises(JournalError, match="already exists"):
        Journal.open(tmp_path / "c")


# Migrations.


def test_the_migrations_make_the_tables(where, open_journal):
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    assert ScriptDirectory(str(MIGRATIONS_FOLDER)).get_current_head() == SCHEMA_HEAD
    journal = open_journal()
    with journal._database.read_transaction() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_heads() == (SCHEMA_HEAD,)


def dump(file):
    connection = sqlite3.connect(file)
    try:
        return "\n".join(connection.iterdump())
    finally:
        connection.close()


def test_a_journal_of_revision_0001_is_upgraded_in_place(tmp_path):
    """``journal-0001.sql`` was written before the migrations had a script directory."""
    held = Path(__file__).with_name("journal-0001.sql").read_text()
    (tmp_path / "old").mkdir()
    connection = sqlite3.connect(tmp_path / "old" / JOURNAL_FILE)
    connection.executescript(held)
    connection.close()
    with Journal.open(tmp_path / "old") as journal:
        upgraded = dump(tmp_path / "old" / JOURNAL_FILE)
        changed = [line for line in held.strip().splitlines() if line not in upgraded.splitlines()]
        assert changed == ["INSERT INTO \"alembic_version\" VALUES('0001');"]
        assert [row.correction for row in journal.predictions()] == [None, "dog", "dog", None]
        journal.correct(journal.predictions()[0].id, "emu")
        assert journal.count()["corrected"] == 3
        with (
            pytest.raises(DBAPIError, match="never changed"),
            journal._database.durable_engine.begin() as connection,
        ):
            connection.execute(text("UPDATE predictions SET label = 'dog'"))
    Journal.open(tmp_path / "new").close()
    tables = [line for line in upgraded.splitlines() if not line.startswith("INSERT")]
    fresh = [line for line in dump(tmp_path / "new" / JOURNAL_FILE).splitlines() if not line.startswith("INSERT")]
    assert fresh == tables


def test_files_of_a_journal_are_private(tmp_path):
    with Journal.open(tmp_path, keep_images=True) as journal:
        record_and_flush(journal, make_record(image=picture(0)))
        journal.record([make_record()])
        for path in [
            tmp_path / JOURNAL_FILE,
            *(tmp_path / "images").rglob("*.png"),
            *(tmp_path / "spool").glob("*.jsonl"),
        ]:
            assert path.stat().st_mode & 0o077 == 0, path


def test_sqlite_pragmas_match_the_documented_durability(tmp_path):
    database = connect_database(tmp_path / "x.sqlite")
    for engine, level in ((database.fast_engine, 1), (database.durable_engine, 2)):
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA synchronous")) == level  # 1 is NORMAL, 2 is FULL
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA busy_timeout")) == 10_000
    database.close()


def test_durable_commits_override_postgresql_settings(cluster):
    database = connect_database(url := cluster.database())
    with database.fast_engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text(f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = off"))
    database.close()
    for durable, setting in ((False, "off"), (True, "on")):
        with database.write_transaction(durable=durable) as connection:
            assert connection.scalar(text("SHOW synchronous_commit")) == setting
    database.close()


# From a shell.


def make_shell_record(i):
    return make_record(image=picture(i), subject=f"=s{i % 2}", at=1e9 + i, sha256=f"{i:02x}" * 32)


def test_the_journal_on_the_command_line(cli, tmp_path):
    from sightline.data import load_dataset

    site = tmp_path / "site"
    assert "has no journal yet" in cli("journal", site).err
    with Journal.open(site, keep_images=True) as journal:
        ids = record_and_flush(journal, *(make_shell_record(i) for i in range(6)))
        for i, id in enumerate(ids):
            journal.correct(id, ("dog", "emu")[i % 2])
    shown = cli("journal", site, "list", "--limit", 2)
    assert shown.code == 0, shown.err
    assert ids[5] in shown.out
    assert ids[3] not in shown.out
    assert "6 predictions, 0 of them unknown; 6 corrected; 6 images stored" in shown.out
    value = json.loads(cli("journal", site, "--label", "cat", "--before", ids[1], "--json").out)
    assert [row["id"] for row in value["rows"]] == [ids[0]]
    assert json.loads(cli("journal", site, "list", "--no-corrected", "--json").out)["rows"] == []
    assert json.loads(cli("journal", site, "export", "--out", tmp_path / "a.csv", "--json").out)["n"] == 6
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[0].startswith("id,at,release,label,confidence")
    assert lines[1].startswith(ids[0])
    assert ",'=s1," in lines[2]
    assert json.loads(cli("journal", site, "export", "--out", tmp_path / "images", "--json").out)["n"] == 6
    found = load_dataset(tmp_path / "images", Geometry(size=(12, 10), channels=3))
    assert found.classes == ("dog", "emu")
    assert sorted(found.columns["prediction"]) == ids
    assert json.loads(cli("journal", site, "erase", "=s1", "--json").out)["erased"] == 3
    assert "3 rows" in cli("journal", site, "retain", "--days", 30).out
    for words, message in (
        (("erase",), "`erase` needs the subject"),
        (("retain",), "Set how long"),
        (("export",), "Set the destination"),
        (("list", "x"), "takes no further argument"),
        (("export", "--out", tmp_path / "a.csv"), "exists already"),
        (("export", "--out", tmp_path / "b"), "has no labelled images"),
        (("list", "--url", "mysql://u:hidden-word@h/d"), "cannot be used"),
    ):
        refused = cli("journal", site, *words)
        assert (refused.code, message in refused.err, "hidden-word" in refused.err) == (2, True, False), (
            refused.err
        )


def test_a_copied_site_is_complete(tmp_path):
    with Journal.open(tmp_path / "a", keep_images=True) as journal:
        (id,) = record_and_flush(journal, make_record(image=picture(0)))
        journal.correct(id, "dog")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with Journal.open(tmp_path / "b") as journal:
        (row,) = journal.predictions()
        assert (row.correction, journal.image_path(row).is_file()) == ("dog", True)


def test_a_journal_on_a_read_only_disk_names_the_way_out(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        Journal.open(disk / "site").close()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(
            DatabaseUnavailable, match=r"make its folder writable, copy the site .* or give --journal"
        ):
            Journal.open(disk / "site")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
