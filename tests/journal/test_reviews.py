"""What people say of answers, on both databases: leases, second opinions, what is kept, and what erasure leaves."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from helpers.journal_records import make_record, picture, record_and_flush
from sightline.errors import JournalError
from sightline.journal import Journal, QueueEntry, draw_number
from sightline.journal.journal import JOURNAL_FILE
from sightline.journal.records import UnknownPrediction


def lease_next(journal, by, **more):
    found = journal.lease(1, by, **more)
    return found[0] if found else None


def queue_all(journal, ids, why="margin", chance=0.0, leader=None):
    return journal.add_to_queue([QueueEntry(id, why, chance, leader) for id in ids])


@pytest.fixture
def filled(open_journal):
    """A journal with four queued images."""
    journal = open_journal(keep_images=True)
    ids = record_and_flush(journal, *(make_record(image=picture(seed)) for seed in range(4)))
    assert queue_all(journal, ids) == 4
    return journal, ids


def test_two_people_never_see_one_image(filled, open_journal):
    journal, ids = filled
    another = open_journal()  # as in another process
    seen = [lease_next(journal, "Ann").row.id, lease_next(another, "Bob").row.id, lease_next(journal, None).row.id]
    assert seen == ids[:3]
    assert lease_next(another, "Bob").row.id == ids[1]  # one's own is shown again
    assert lease_next(another, None).row.id == ids[3]
    assert lease_next(journal, "Cy") is None
    assert lease_next(journal, "Bob", seconds=-1).row.id == ids[1]  # expired
    assert lease_next(journal, "Cy").row.id == ids[1]


def test_a_review_is_a_correction_with_a_reason_and_a_chance(filled):
    journal, ids = filled
    more = record_and_flush(journal, make_record(image=picture(9)))
    queue_all(journal, more, why="audit", chance=0.01)
    assert queue_all(journal, [*ids, *more, "unknown"]) == 0
    (said,) = journal.review(more, "corrected", "dog", by="Ann")
    assert (said.kind, said.label, said.why, said.chance, said.by) == ("corrected", "dog", "audit", 0.01, "Ann")
    journal.review(ids[:1], "confirmed", "cat", by="Ann")
    journal.review(ids[1:2], "unusable", by="Ann")
    journal.review(ids[2:3], "new class", "emu", by="Ann")
    assert [row.correction for row in journal.predictions()[::-1]] == ["cat", None, "emu", None, "dog"]
    assert journal.count_queue() == {"margin": {"waiting": 1, "done": 3}, "audit": {"waiting": 0, "done": 1}}
    assert [id for id, _ in journal.queued()] == ids[3:]
    journal.review(ids[:1], "confirmed", "cat", by="Ann")
    assert len(journal.reviews()) == 4  # the repetition added nothing


def test_second_opinions_are_kept(filled):
    journal, ids = filled
    journal.review(ids[:1], "confirmed", "cat", by="Ann")
    assert lease_next(journal, "Ann", second=True) is None
    assert lease_next(journal, "Bob", second=True).row.id == ids[0]
    journal.review(ids[:1], "corrected", "dog", by="Bob")
    assert lease_next(journal, "Cy", second=True) is None
    journal.correct(ids[1], "emu", by="a camera")  # that no one asked for
    said = [(one.row.id, one.label, one.why, one.by) for one in journal.reviews()]
    assert said == [
        (ids[0], "cat", "margin", "Ann"),
        (ids[0], "dog", "margin", "Bob"),
        (ids[1], "emu", None, "a camera"),
    ]


def test_one_answer_may_label_those_it_stands_for(filled):
    journal, ids = filled
    more = record_and_flush(journal, *(make_record(image=picture(seed)) for seed in (10, 11, 12)))
    queue_all(journal, more[:1], why="far")
    queue_all(journal, more[1:], why="far", leader=more[0])
    shown = lease_next(journal, "Ann", reasons=["far"])
    assert (shown.row.id, shown.followers) == (more[0], tuple(more[1:]))
    journal.review([shown.row.id, *shown.followers], "new class", "emu", by="Ann")
    assert journal.count_queue()["far"] == {"waiting": 0, "done": 3}
    with pytest.raises(UnknownPrediction):
        journal.review([ids[0], "unknown"], "unusable", by="Ann")
    assert len(journal.reviews()) == 3  # all or none


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("confirmed", None, "with a label"),
        ("unusable", "cat", "without label"),
    ],
)
def test_a_review_is_of_a_known_kind(filled, kind, label, message):
    journal, ids = filled
    with pytest.raises(JournalError, match=message):
        journal.review(ids[:1], kind, label)


def test_what_people_said_is_never_changed(filled):
    journal, ids = filled
    journal.review(ids[:1], "unusable")
    for statement in ("UPDATE reviews SET kind = 'confirmed'", "DELETE FROM reviews"):
        with (
            pytest.raises(DBAPIError, match="never changed"),
            journal._database.durable_engine.begin() as connection,
        ):
            connection.execute(text(statement))


def test_erasure_takes_images_out_of_the_queue(open_journal):
    journal = open_journal(keep_images=True)
    ids = record_and_flush(
        journal,
        make_record(image=picture(0), subject="Zoe", sha256="00" * 32),
        make_record(image=picture(1), subject="Max", sha256="11" * 32),
    )
    queue_all(journal, ids)
    journal.review(ids[:1], "corrected", "dog", by="Ann")
    journal.erase("Zoe")
    assert [id for id, _ in journal.queued(waiting=False)] == ids[1:]
    assert lease_next(journal, "Bob").row.id == ids[1]
    assert [(one.label, one.row.image) for one in journal.reviews()] == [("dog", None)]


def test_reviewed_queued_and_random_images_outlive_the_others(open_journal):
    """The reservoir is the sample of the smallest hashes of all answers, however old; the rest are the newest."""
    size = len(picture(0))
    journal = open_journal(keep_images=True, quota_mb=40.5 * size / 1e6)
    first = record_and_flush(journal, *(make_record(image=picture(seed)) for seed in range(8)))
    journal.review(first[:2], "confirmed", "cat")
    queue_all(journal, first[2:4])
    ids = list(first)
    for start in range(8, 128, 8):
        ids += record_and_flush(journal, *(make_record(image=picture(start + k)) for k in range(8)))
    assert journal.dropped_images == 0
    kept = {row.id for row in journal.predictions(limit=1000) if row.image is not None}
    assert set(first[:4]) <= kept
    by_number = sorted(ids[4:], key=draw_number)
    assert set(by_number[:10]) <= kept
    assert set(ids[-8:]) <= kept
    aged = [id for id in ids[4:-40] if id not in by_number[:30]]
    assert len(kept & set(aged)) < 0.2 * len(aged)
    assert journal.count()["image_bytes"] <= 40.5 * size


def test_a_journal_of_revision_0002_is_upgraded_in_place(tmp_path):
    """One is made by the migrations of 0001 and 0002 alone."""
    from alembic import command
    from alembic.config import Config

    from sightline.journal.database import MIGRATIONS_FOLDER, connect_database

    (tmp_path / "old").mkdir()
    database = connect_database(tmp_path / "old" / JOURNAL_FILE)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER))
    with database.write_transaction(durable=True) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        held = Path(__file__).with_name("journal-0001.sql").read_text().splitlines()[::-1]
        for line in held:
            if line.startswith(('INSERT INTO "predictions', 'INSERT INTO "corrections')):
                connection.exec_driver_sql(line)
    database.close()
    with Journal.open(tmp_path / "old") as journal:
        assert [one.label for one in journal.reviews()] == ["dog", "cow", "dog"]
        newest = journal.predictions()[0].id
        journal.review([newest], "none of these")
        assert journal.reviews()[-1].kind == "none of these"
    connection = sqlite3.connect(tmp_path / "old" / JOURNAL_FILE)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0003",)
    connection.close()
