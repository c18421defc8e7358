"""Drift of a service: quiet traffic stays quiet, a change is found and named, and no answer counts twice."""

import io
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps
from starlette.testclient import TestClient

from helpers.live_server import pictures
from helpers.tiny_classifiers import SETTLED
from sightline.cli import main
from sightline.errors import JournalError
from sightline.feedback import examine_drift, watch_drift
from sightline.feedback.detector import Detector
from sightline.journal import (
    Journal,
    PredictionRecord,
    Projection,
    Reference,
    SketchRow,
    decode_sketches,
    make_sketches,
    new_prediction_id,
    predicted_classes,
    sketch_answers,
)
from sightline.serving import current_release, open_engine, publish
from sightline.serving.api import create_app
from sightline.serving.requests import PredictRequest, RequestLimits
from sightline.serving.service import Service, ServiceSettings
from sightline.sources.arrays import digits
from sightline.training import Recipe, train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(model="mlp", size=8, limit=900, epochs=4, batch_size=32, **SETTLED)
    return train("digits", recipe, out=tmp_path_factory.mktemp("run") / "digits")


@pytest.fixture(scope="module")
def template(run, tmp_path_factory):
    site = tmp_path_factory.mktemp("site") / "site"
    publish(site, run.folder)
    return site


@pytest.fixture
def site(template, tmp_path):
    return shutil.copytree(template, tmp_path / "site")


@pytest.fixture(scope="module")
def unseen(run):
    """Digits that the run never saw."""
    drawn = digits()
    known = {one.tobytes() for part in (run.splits.train, run.splits.val, run.splits.test) for one in part[:]}
    others = [image for image in drawn.images if image.tobytes() not in known]
    assert len(others) > 600
    return np.random.default_rng(0).permutation(np.stack(others))


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def answer(engine, images, **facts):
    """Records of the engine's answers."""
    files = [png(one) for one in images]
    found = engine.predict([PredictRequest(files)], RequestLimits())[0]
    return [
        PredictionRecord(
            new_prediction_id(), time.time(), 1, one.label, one.confidence, one.abstained, None,
            image=data if facts.get("keep") else None, sketch_inputs=one.sketch_inputs,
            subject=facts.get("subject"),
        )
        for one, data in zip(found, files, strict=True)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def engine(template):
    release = current_release(template)
    return open_engine(release.onnx, release=1, threads=1, reference=release.reference())


def open_journal(site, **options):
    return Journal.open(site, **options)


def test_a_release_holds_a_reference_of_test_images(run, template):
    release = current_release(template)
    found = release.reference()
    assert release.facts["reference"]["n"] == len(found.labels) == len(run.splits.test)
    assert (found.labels == run.splits.test.labels).all()
    assert 0.7 < found.right.mean() <= 1


def test_a_sketch_has_the_size_of_the_upright_picture_and_its_file(engine):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "jpeg", exif=exif)
    files = [*pictures(), stream.getvalue()]
    found = engine.predict([PredictRequest([b"junk", *files])], RequestLimits())[0][1:]
    upright = [ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size for data in files]
    assert upright[-1] == (20, 30)
    assert [one.sketch_inputs.size for one in found] == [
        (*size, len(data)) for size, data in zip(upright, files, strict=True)
    ]


def test_sketches_of_an_engine_hold_its_answers(engine, unseen):
    records = answer(engine, unseen[:30])
    sketches = decode_sketches(
        sketch_answers([one.sketch_inputs for one in records]), 10, engine.reference.projection.components.shape[1]
    )
    assert [engine.classes[k] for k in predicted_classes(sketches)] == [one.label for one in records]
    assert np.allclose(sketches["statistics"][:, 0], unseen[:30].mean((1, 2)) / 255, atol=1e-3)
    assert np.allclose(
        sketches["statistics"][:, 5].astype(float), [len(png(one)) / 64 for one in unseen[:30]], rtol=1e-3
    )
    features = engine.shared_runner.outputs(unseen[:30, :, :, None]).features
    assert np.allclose(sketches["projection"], engine.reference.projection.project(features, 30), atol=0.02)


def test_quiet_traffic_raises_no_alarm_and_a_change_does(site, engine, unseen):
    with open_journal(site, keep_images=True) as journal:
        journal.record(answer(engine, unseen[:550]))
        journal.flush()
        quiet = examine_drift(site, journal=journal, promise=10_000)
        assert (quiet.answers, quiet.alarm) == (550, False)
        assert quiet.first["n"] == 500
        assert abs(quiet.accuracy["atc"] - quiet.accuracy["tested"]) < 0.1
        assert examine_drift(site, journal=journal, promise=10_000).answers == 550
        dark = (unseen[550:800] * 0.5).astype(np.uint8)
        journal.record(answer(engine, dark, keep=True))
        journal.flush()
        found = examine_drift(site, journal=journal, promise=10_000)
        assert found.alarm
        words = [one.describe() for one in found.changes if one.evidence > 10_000]
        assert any("darker" in one for one in words)
        assert len(found.images) == 24


def test_evidence_is_the_same_however_often_it_is_asked_for(template, engine, unseen, tmp_path):
    records = answer(engine, unseen[:300])
    sites = [tmp_path / name for name in ("once", "often")]
    for one in sites:
        shutil.copytree(template, one)
    with open_journal(sites[0]) as journal:
        journal.record(records)
        journal.flush()
        once = examine_drift(sites[0], journal=journal)
    for i in range(0, 300, 75):
        with open_journal(sites[1]) as journal:
            journal.record(records[i : i + 75])
            journal.flush()
            often = examine_drift(sites[1], journal=journal)
    assert (often.answers, often.evidence, often.peak) == (once.answers, once.evidence, once.peak)
    assert [one.channel for one in often.changes] == [one.channel for one in once.changes]


def test_what_is_accepted_is_normal_from_then_on(site, engine, unseen):
    dark = (unseen * 0.5).astype(np.uint8)
    with open_journal(site) as journal:
        journal.record(answer(engine, dark[:520]))
        journal.flush()
        before = examine_drift(site, journal=journal, promise=10_000)
        assert before.alarm
        assert not before.first["like_tested"]
        accepted = examine_drift(site, journal=journal, promise=10_000, accept=True, by="Ann")
        assert (accepted.alarm, accepted.answers) == (False, 0)
        journal.record(answer(engine, dark[520:800]))
        journal.flush()
        after = examine_drift(site, journal=journal, promise=10_000)
        assert (after.alarm, after.answers, after.accuracy) == (False, len(dark[520:800]), None)
    line = json.loads((site / "releases.jsonl").read_text().splitlines()[-1])
    assert (line["what"], line["by"], line["answers"]) == ("accept drift", "Ann", 500)


def test_almost_equal_images_of_a_burst_count_once():
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 256, (3, 32, 32, 1), dtype=np.uint8)
    noisy = np.clip(pixels[:1] + chance.integers(-2, 3, (4, 32, 32, 1)), 0, 255).astype(np.uint8)
    pixels = np.concatenate([pixels, noisy])
    probabilities = chance.dirichlet([1, 1], 7).astype(np.float32)
    sketches = make_sketches(probabilities, None, np.zeros((7, 0), np.float32), pixels, [(32, 32, 0)] * 7)
    reference = Reference(("a", "b"), Projection.fit(None, np.zeros(3, int), 2), sketches[:3], np.zeros(3, int))

    def rows(*chosen):
        return [
            SketchRow(i, new_prediction_id(), 100.0 + seconds, None, source, None, sketches[place].tobytes())
            for i, (place, seconds, source) in enumerate(chosen, 1)
        ]

    detector = Detector.start(reference)
    detector.advance(rows((0, 0, "a"), (3, 1, "a"), (4, 59, "a"), (5, 61, "a"), (6, 62, "b"), (1, 62, "a")))
    assert (detector.counted, detector.thinned) == (4, 2)


def test_erasure_deletes_sketches(site, engine, unseen):
    with open_journal(site) as journal:
        records = answer(engine, unseen[:6], subject="Zoe") + answer(engine, unseen[6:10])
        journal.record([replace(one, sha256=f"{i:064d}") for i, one in enumerate(records)])
        journal.flush()
        assert len(journal.sketch_rows(1)) == 10
        journal.erase("Zoe")
        assert [row.id for row in journal.sketch_rows(1)] == [one.id for one in records[6:]]
        journal.retain(0)
        assert not journal.sketch_rows(1)


def test_a_release_without_reference_says_what_to_do(run, tmp_path):
    publish(tmp_path / "site", run.folder / "classifier")
    with (
        open_journal(tmp_path / "site") as journal,
        pytest.raises(JournalError, match="Publish it again from its run"),
    ):
        examine_drift(tmp_path / "site", journal=journal)


def test_a_damaged_state_says_what_to_do(site, engine, unseen):
    with open_journal(site) as journal:
        examine_drift(site, journal=journal)
        (site / "drift" / "0001.safetensors").write_bytes(b"nothing")
        with pytest.raises(JournalError, match="--restart"):
            examine_drift(site, journal=journal)
        journal.record(answer(engine, unseen[:5]))
        journal.flush()
        assert examine_drift(site, journal=journal, restart=True).answers == 0


def test_the_command_reports_in_sentences_and_json(site, engine, unseen, capsys):
    assert main(["drift", str(site)]) == 2
    assert "has no journal yet" in capsys.readouterr().err
    with open_journal(site) as journal:
        journal.record(answer(engine, unseen[:60]))
    assert main(["drift", str(site)]) == 0
    assert "No change" in capsys.readouterr().out
    assert main(["drift", str(site), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == 60
    assert main(["drift", str(site), "--promise", "5"]) == 2
    assert main(["drift", str(site), "--accept"]) == 2
    assert "Only 60 answers" in capsys.readouterr().err


def test_a_service_watches_its_answers_and_shows_what_it_saw(site, unseen):
    settings = ServiceSettings(path=site, threads=1, observer=watch_drift)
    service = Service(settings).open()
    with TestClient(create_app(service), base_url="http://localhost") as client:
        for image in unseen[:3]:
            assert client.post("/predict", content=png(image)).status_code == 200
        service.journal.flush()
        found = client.get("/drift").json()
        assert (found["release"], found["answers"], found["alarm"]) == (1, 3, False)
        assert "images" not in found
        assert "sightline_drift_answers 3.0" in client.get("/metrics").text
    with_site = replace(settings, path=site / "releases" / "0001" / "model.onnx")
    alone = Service(with_site).open()
    with TestClient(create_app(alone), base_url="http://localhost") as client:
        assert client.get("/drift").status_code == 404
