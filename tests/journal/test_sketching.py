"""Sketches are made behind the answers, once each: after a stop, beside another process, and without a database."""

import numpy as np
import pytest

from helpers.journal_records import make_record, picture
from sightline.errors import JournalError
from sightline.journal import Journal, Projection, Reference, SketchInputs, make_sketches, sketching, spool
from sightline.journal.database import Database
from sightline.journal.records import DatabaseUnavailable
from sightline.journal.spool import Spool, decode_line

CLASSES, FEATURES = ("a", "b", "c"), 5


def make_reference(seed):
    chance = np.random.default_rng(seed)
    features, labels = chance.normal(size=(60, FEATURES)).astype(np.float32), np.arange(60) % 3
    projection = Projection.fit(features, labels, 3)
    pixels = chance.integers(0, 256, (60, 12, 10, 3), dtype=np.uint8)
    probabilities = chance.dirichlet(np.ones(3), 60).astype(np.float32)
    projected = projection.project(features, 60)
    return Reference(
        CLASSES, projection, make_sketches(probabilities, None, projected, pixels, [(0, 0, 0)] * 60), labels
    )


REFERENCES = [make_reference(0), make_reference(1)]


def make_answers(count, **facts):
    """Records of two releases in turn, and the sketches that they should have, each made alone."""
    chance = np.random.default_rng(count)
    records, wanted = [], []
    for i in range(count):
        reference, image = REFERENCES[i % 2], picture(i)
        pixels = chance.integers(0, 256, (12, 10, 3), dtype=np.uint8)
        probabilities = chance.dirichlet(np.ones(3)).astype(np.float32)
        features, energy = chance.normal(size=FEATURES).astype(np.float32), float(chance.normal())
        inputs = SketchInputs(reference, probabilities, energy, features, pixels, (10, 12, len(image)))
        records.append(make_record(release=1 + i % 2, sketch_inputs=inputs, **facts))
        projected = (features - reference.projection.mean) @ reference.projection.components
        (sketch,) = make_sketches(
            probabilities[None], np.array([energy]), projected[None], pixels[None], [(10, 12, len(image))]
        )
        wanted.append(sketch)
    return records, wanted


def stored(journal, records):
    """The sketches in the database, one list for each record."""
    rows = [row for release in (1, 2) for row in journal.sketch_rows(release)]
    return [[row.values for row in rows if row.id == one.id] for one in records]


def assert_sketches(found, wanted):
    """Each answer has one sketch, equal but for the last bit of a product of matrices."""
    assert [len(one) for one in found] == [1] * len(wanted)
    for (one,), sketch in zip(found, wanted, strict=True):
        got = np.frombuffer(one, sketch.dtype)[0]
        for name in sketch.dtype.names:
            assert np.allclose(got[name], sketch[name], rtol=2e-3, atol=1e-3), name


@pytest.mark.parametrize("together", [1, 7, 1000])
def test_the_writer_makes_the_sketches_of_all_releases(journal, monkeypatch, together):
    monkeypatch.setattr(sketching, "_BATCH_BYTES", together * 12 * 10 * 3)
    records, wanted = make_answers(75)
    journal.record(records)
    journal.flush()
    assert_sketches(stored(journal, records), wanted)
    journal.record(records)  # again
    journal.flush()
    assert_sketches(stored(journal, records), wanted)


def test_an_answer_waits_for_no_sketch_while_there_is_room(tmp_path, monkeypatch):
    some = Spool(tmp_path / "spool", images=False)
    records, _ = make_answers(4)
    with monkeypatch.context() as patched:
        patched.setattr(spool, "sketch_answers", lambda inputs: [1 / 0 for _ in inputs])
        some.append(records)
    assert sorted(some.sketches.make([one.id for one in records])) == sorted(one.id for one in records)
    lines = some.oldest_segment().read_bytes().splitlines()
    assert [row.sketch for line in lines for row in decode_line(line)] == [None] * 4


def test_beyond_the_room_an_answer_brings_its_own_sketch(journal):
    records, wanted = make_answers(6)
    journal._spool.sketches.limit = 2 * records[0].sketch_inputs.nbytes + 300
    with journal._writer._lock:  # nothing is moved meanwhile
        for one in records:
            journal.record([one])
        lines = [
            line for path in (journal._site / "spool").glob("*.jsonl") for line in path.read_bytes().splitlines()
        ]
        ready = [row.sketch is not None for line in lines for row in decode_line(line)]
    assert ready == [False, False, True, True, True, True]
    journal.flush()
    assert_sketches(stored(journal, records), wanted)
    assert not journal._spool.sketches.make([one.id for one in records])


def test_a_refused_answer_leaves_nothing_behind(tmp_path):
    some = Spool(tmp_path / "spool", images=False, limit=10)
    records, _ = make_answers(2)
    with pytest.raises(JournalError, match="spool is full"):
        some.append(records)
    assert not some.sketches.make([one.id for one in records])


def test_a_stop_without_a_database_keeps_the_sketches_for_the_next_process(tmp_path, monkeypatch):
    records, wanted = make_answers(5, image=picture(1))
    with monkeypatch.context() as patched:

        def refuse(*_, **__):
            raise DatabaseUnavailable("The database does not answer.")

        journal = Journal.open(tmp_path / "site", keep_images=True)
        patched.setattr(Database, "write_transaction", refuse)
        journal.record(records)
        journal.close()
    with Journal.open(tmp_path / "site", keep_images=True) as journal:
        journal.flush()
        assert_sketches(stored(journal, records), wanted)
        assert journal.count()["images"] == 1


def test_another_process_may_write_an_answer_first(open_journal):
    """As a correction does that reaches another worker at once."""
    journal, other = open_journal(), open_journal()
    records, wanted = make_answers(3)
    with journal._writer._lock:
        journal.record(records)
        other.correct(records[0].id, "dog")
    journal.flush()
    assert_sketches(stored(journal, records), wanted)


def test_an_erased_answer_gets_no_sketch_any_more(open_journal):
    journal, other = open_journal(), open_journal()
    records, _ = make_answers(3, subject="Zoe")
    with journal._writer._lock:
        journal.record(records)
        other.correct(records[0].id, "dog")
        with other._database.write_transaction(durable=True) as connection:
            from sightline.journal import erasure

            assert erasure.erase_subject(connection, other._images, "Zoe") == 3
    journal.flush()
    assert stored(journal, records) == [[], [], []]
    assert not journal._spool.sketches.make([one.id for one in records])
