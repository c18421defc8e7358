"""The review of a site: what is queued, what people see and say, and what that shows."""

import io
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from starlette.testclient import TestClient

from helpers.tiny_classifiers import SETTLED
from sightline import metrics
from sightline.cli import main
from sightline.errors import ChoiceError, JournalError
from sightline.feedback import (
    add_review_routes,
    agreement,
    answers_needed,
    audit_accuracy,
    half_width_after,
    import_answers,
    known_classes,
    review,
    review_answer,
    select,
    settle_labels,
)
from sightline.feedback.lessons import HELD_OUT_SHARE, VALIDATION_SHARE, collect_field_images
from sightline.files import read_csv_rows
from sightline.journal import Journal, JournalRow, PredictionRecord, Review, draw_number, new_prediction_id
from sightline.serving import create_key, current_release, open_engine, publish
from sightline.serving.api import create_app
from sightline.serving.requests import PredictRequest, RequestLimits
from sightline.serving.service import Service, ServiceSettings
from sightline.sources.arrays import digits
from sightline.training import Recipe, train
from sightline.types import Geometry


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A site that answered 300 digits, images kept."""
    place = tmp_path_factory.mktemp("review")
    recipe = Recipe(model="mlp", size=8, limit=900, epochs=3, batch_size=32, **SETTLED)
    publish(place / "site", train("digits", recipe, out=place / "run").folder)
    release = current_release(place / "site")
    engine = open_engine(release.onnx, release=1, threads=1, reference=release.reference())
    images = np.random.default_rng(0).permutation(digits().images)[:300]
    files = []
    for pixels in images:
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "png")
        files.append(stream.getvalue())
    answers = engine.predict([PredictRequest(files)], RequestLimits())[0]
    records = [
        PredictionRecord(
            new_prediction_id(), time.time(), 1, one.label, one.confidence, i % 10 == 0, None, image=data,
            sketch_inputs=one.sketch_inputs,
        )
        for i, (one, data) in enumerate(zip(answers, files, strict=True))
    ]  # fmt: skip
    with Journal.open(place / "site", keep_images=True) as journal:
        journal.record(records)
    return place / "site", records


@pytest.fixture
def site(template, tmp_path):
    return shutil.copytree(template[0], tmp_path / "site")


@pytest.fixture
def journal(site):
    with Journal.open(site, keep_images=True) as journal:
        yield journal


def test_the_queue_is_filled_by_reasons_and_never_twice(site, journal, template):
    queued = select(site, journal=journal, count=20, by=["audit:0.1", "margin", "far", "abstained"])
    drawn = {one.id for one in template[1] if draw_number(one.id) < 0.1}
    assert queued["audit"] == len(drawn) > 10
    assert queued["margin"] > 0
    assert queued["abstained"] > 0
    waiting = journal.queued()
    assert len({image for _, image in waiting}) == len(waiting)
    counts = journal.count_queue()
    assert select(site, journal=journal, count=20, by=["audit:0.1", "margin", "far", "abstained"]) == {}
    assert journal.count_queue() == counts
    with pytest.raises(ChoiceError, match="no reason called 'marginn'"):
        select(site, journal=journal, by=["marginn"])


def test_a_reason_that_finds_nothing_leaves_its_share_to_the_others(site, journal):
    """Nothing drifted, so close calls fill the queue."""
    assert select(site, journal=journal, count=30, by=["margin", "drifted"]) == {"margin": 30}
    assert len(journal.queued()) == 30


def test_a_release_without_reference_is_reviewed_by_confidence(template, tmp_path):
    """As releases of earlier versions are."""
    site = tmp_path / "old"
    publish(site, template[0] / "releases" / "0001" / "classifier")
    records = [replace(one, sketch_inputs=None, abstained=False, confidence=0.9) for one in template[1][:50]]
    records[7] = replace(records[7], confidence=0.5)
    with Journal.open(site, keep_images=True) as journal:
        journal.record(records)
        journal.flush()
        assert select(site, journal=journal, count=1, by=["margin"]) == {"margin": 1}
        assert [id for id, _ in journal.queued()] == [records[7].id]


def test_an_answer_without_a_sketch_hides_no_other(site, journal, template):
    """As of a process that was killed: it counts by its confidence, the others by their sketches."""
    bare = replace(template[1][0], id=new_prediction_id(), confidence=0.75, sketch_inputs=None)
    journal.record([bare])
    journal.flush()
    rows = journal.predictions(limit=1000)[::-1]
    assert rows[-1].id == bare.id
    found = review._open_candidates(site, journal, current_release(site), rows, drifted=False)
    known = {one.id: one.sketch_inputs.probabilities for one in template[1]}
    assert np.allclose(found.probabilities[:-1], [known[row.id] for row in rows[:-1]], atol=1e-3)
    assert np.allclose(found.probabilities[-1], [0.75, 0.25] + [0] * 8)
    assert found.features[:-1].any(1).all()
    assert not found.features[-1].any()


def test_the_kind_of_an_answer_follows_from_its_word(site, journal, template):
    record = template[1][0]
    classes = known_classes(site, [])
    other = next(name for name in classes if name != record.label)
    for word, kind in ((record.label, "confirmed"), (other, "corrected"), ("none of these", "none of these")):
        (said,) = review_answer(journal, record.id, word, classes=classes, by="Ann")
        assert (said.kind, said.label) == (kind, None if kind == "none of these" else word)
    (said,) = review_answer(journal, record.id, "a rabbit", classes=classes, by="Ann")
    assert said.kind == "new class"
    assert "a rabbit" in known_classes(site, journal.reviews())
    with pytest.raises(ChoiceError, match="'a rabbit': write that"):
        review_answer(journal, record.id, "A Rabbitt", classes=known_classes(site, journal.reviews()))
    assert review_answer(journal, record.id, "A Rabbitt", classes=classes, new_class=True)[0].kind == "new class"


def make_review(id, label, *, by="Ann", kind=None, why="audit", at=0.0, predicted="cat", release=1):
    row = JournalRow(id, at, release, predicted, 0.9, False, None, None, None, f"{id}.png", None, None, None, None)
    kind = kind or ("confirmed" if label == predicted else "corrected")
    return Review(row, kind, None if kind == "unusable" else label, why, 0.01, at, by)


def test_the_accuracy_now_is_of_the_audit_alone():
    reviews = [make_review(f"a{i}", "cat" if i < 18 else "dog") for i in range(20)]
    reviews += [make_review(f"b{i}", "dog", why="margin") for i in range(50)]
    reviews += [make_review("c", None, kind="unusable"), make_review("a19", "dog", by="Bob")]
    found = audit_accuracy(reviews)
    assert (found.n, found.value) == (20, 0.9)
    assert (round(found.low, 3), round(found.high, 3)) == (0.591, 0.996)  # reference/circle: 18 of 20
    assert audit_accuracy(reviews, release=2).n == 0


def test_it_is_known_beforehand_what_more_answers_bring():
    known = metrics.anytime_interval(45, 50)
    later = metrics.anytime_interval(72, 80)
    assert half_width_after(known, 30) == (later.high - later.low) / 2
    needed = answers_needed(known)
    widths = [half_width_after(known, more) for more in range(needed + 5)]
    assert widths[needed] <= 0.05 < widths[needed - 2]
    assert answers_needed(metrics.anytime_interval(900, 1000)) == 0


def test_agreement_is_cohens_kappa():
    chance = np.random.default_rng(0)
    one = chance.choice(["cat", "dog", "emu"], 60)
    other = np.where(chance.random(60) < 0.7, one, chance.choice(["cat", "dog", "emu"], 60))
    reviews = [make_review(str(i), word, by="Ann") for i, word in enumerate(one)]
    reviews += [make_review(str(i), word, by="Bob") for i, word in enumerate(other)]
    (found,) = agreement(reviews)
    assert (found["people"], found["n"]) == (["Ann", "Bob"], 60)
    assert found["kappa"] == pytest.approx(cohen_kappa_score(one, other))
    assert agreement(reviews[:60]) == []
    assert np.isnan(metrics.cohen_kappa([], []))


def test_contradictory_labels_teach_nothing():
    reviews = [
        make_review("a", "dog", by="Ann"), make_review("a", "emu", by="Bob"),
        make_review("b", "dog", by="Ann"), make_review("b", "emu", by="Bob"),
        make_review("b", "emu", by="Cy", why=None),
        make_review("c", "dog", by="Ann", why="far"), make_review("c", "cat", by="Ann", why="far"),
        make_review("d", "dog", by="Ann"), make_review("d", None, kind="unusable", by="Ann"),
    ]  # fmt: skip
    found = {one.row.id: (one.label, one.contradictory, one.audited) for one in settle_labels(reviews)}
    assert found == {
        "a": (None, True, True),
        "b": ("emu", False, True),
        "c": ("cat", False, False),
        "d": (None, False, True),
    }


def test_answers_in_a_table_are_recorded_all_or_none(site, journal, tmp_path):
    select(site, journal=journal, count=10, by=["margin"])
    out = tmp_path / "queue.csv"
    assert main(["review", str(site), "export", "--out", str(out), "--reasons", "margin", "--count", "10"]) == 0
    rows = read_csv_rows(out)
    assert len(rows) == 10
    lines = out.read_text().splitlines()
    out.write_text("\n".join([lines[0], *(f"{line}7" for line in lines[1:])]) + "\n")
    classes = known_classes(site, [])
    bad = tmp_path / "bad.csv"
    bad.write_text("\n".join([lines[0], f"{lines[1]}7", "unknown,x,,7"]) + "\n")
    with pytest.raises(JournalError, match=r"Row 3 of .*no prediction with this id.*Nothing was recorded"):
        import_answers(journal, bad, classes=classes)
    assert not journal.reviews()
    assert main(["review", str(site), "import", str(out), "--by", "Ann"]) == 0
    assert [(one.label, one.by) for one in journal.reviews()] == [("7", "Ann")] * 10
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(JournalError, match="needs the columns id and answer"):
        import_answers(journal, tmp_path / "other.csv", classes=classes)


def test_the_command_shows_and_records(site, capsys):
    assert main(["review", str(site), "--reasons", "audit:0.1", "margin", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["accuracy"]["n"] == 0
    assert value["queued"]["audit"] > 0
    assert main(["review", str(site), "next", "--by", "Ann", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["blind"]
    assert "label" not in shown
    assert main(["review", str(site), "answer", shown["id"], "7", "--by", "Ann"]) == 0
    assert main(["review", str(site), "next", "--by", "Ann", "--reasons", "margin"]) == 0
    assert "Answered:" in capsys.readouterr().out
    assert main(["review", str(site)]) == 0
    out = capsys.readouterr().out
    assert "of 1 answers drawn at random" in out
    assert "30 more answers of the audit narrow this to +-" in out
    for words, message in (
        (["answer", shown["id"]], "what it is, after the id"),
        (["answer", "unknown", "7"], "no prediction with this id"),
        (["export", "--out", "queue.txt"], "--out queue.csv"),
        (["import", "nowhere.csv"], "cannot be read"),
        (["--count", "-1"], "--count is -1"),
    ):
        assert main(["review", str(site), *words]) == 2
        assert message in capsys.readouterr().err


def test_a_reviewer_sees_the_queue_and_cannot_promote(site, template):
    key = {"X-API-Key": create_key(site, "Ann", ["review"])}
    other = {"X-API-Key": create_key(site, "Bob", ["review"])}
    camera = {"X-API-Key": create_key(site, "camera", ["predict", "feedback", "read"])}
    settings = ServiceSettings(path=site, threads=1, routers=(add_review_routes,))
    service = Service(settings).open()
    with TestClient(create_app(service), base_url="http://localhost") as client:
        assert client.post("/review/next", json={}, headers=key).json() == {"id": None}
        select(site, journal=service.journal, count=6, by=["margin"])
        shown = client.post("/review/next", json={}, headers=key).json()
        assert shown["label"] in shown["classes"]
        assert client.post("/review/next", json={}, headers=other).json()["id"] != shown["id"]
        image = client.get(shown["image"], headers=key)
        assert image.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(image.content)) as drawn:
            assert drawn.size == (8, 8)
        given = {"id": shown["id"], "answer": "a rabbit"}
        answered = client.post("/review/answers", json=given, headers=key).json()
        assert answered == {"reviews": [{"id": shown["id"], "kind": "new class", "label": "a rabbit"}]}
        state = client.get("/review", headers=key).json()
        assert state["reviews"] == {"new class": 1}
        assert "a rabbit" in state["classes"]
        unqueued = next(one.id for one in template[1] if one.id not in dict(service.journal.queued(waiting=False)))
        assert client.get(f"/review/images/{unqueued}", headers=key).status_code == 404
        assert client.post("/review/answers", json={"id": unqueued, "answer": "7"}, headers=key).status_code == 404
        typo = client.post("/review/answers", json={**given, "answer": "A Rabbitt"}, headers=key)
        assert (typo.status_code, "write that" in typo.json()["detail"]) == (422, True)
        for method, path in (("post", "/releases/1/promote"), ("get", "/predictions"), ("get", "/releases")):
            assert getattr(client, method)(path, headers=key).status_code == 403
        for method, path in (("get", "/review"), ("get", f"/review/images/{shown['id']}")):
            assert getattr(client, method)(path, headers=camera).status_code == 403
        assert client.post("/review/next", json={}, headers=camera).status_code == 403


def test_a_class_whose_only_images_would_choose_is_learned_instead(journal, template):
    """A table with a class in val alone would be refused: the first answers of a person are few."""
    _, records = template
    drawn = {one.id: draw_number(f"split {one.id}") for one in records}
    choosing = [id for id, number in drawn.items() if HELD_OUT_SHARE <= number < HELD_OUT_SHARE + VALIDATION_SHARE]
    learned = [id for id, number in drawn.items() if number >= HELD_OUT_SHARE + VALIDATION_SHARE]
    journal.flush()
    for word, ids in (("lonely", choosing[:1]), ("common", [*choosing[1:3], *learned[:3]])):
        journal.review(ids, "corrected", word, by="Ann")
    field = collect_field_images(journal, Geometry(size=(8, 8), channels=1))
    found = {field.images.classes[field.images.labels[i]]: set() for i in range(len(field.images))}
    for i in range(len(field.images)):
        found[field.images.classes[field.images.labels[i]]].add(str(field.split[i]))
    assert found["lonely"] == {"train"}
    assert found["common"] == {"train", "val"}
