"""The pages of review and of what happens now: what people see, say and start."""

import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from helpers.live_server import CLASSES, pictures, site_of_two, until
from helpers.service_process import classifier
from helpers.studio_client import ORIGIN, Reader, open_studio, post, sign_in
from sightline.feedback import audit_accuracy
from sightline.files import write_json
from sightline.journal import QueueEntry
from sightline.serving import create_key, current_number, publish
from sightline.studio import Jobs
from sightline.studio.live_pages import latency_quantiles
from sightline.studio.review_pages import number_keys

HOSTILE = ("<img src=x onerror=alert(1)>", "--json", "a & 'b' \"c\"")


def answer_images(client, files):
    """Ids of what the service answered to images, in order; all queued as close calls, but the last as an audit."""
    ids = []
    for data in files:
        answer = client.post("/predict", content=data, headers={"X-API-Key": client.secret})
        ids.append(answer.json()["predictions"][0]["id"])
    journal = client.service.journal
    journal.flush()
    journal.add_to_queue([QueueEntry(id, "margin", 0.0) for id in ids[:-1]] + [QueueEntry(ids[-1], "audit", 0.1)])
    return ids


@pytest.fixture
def client(tmp_path):
    site = shutil.copytree(site_of_two(), tmp_path / "site")
    with open_studio(site) as client:
        client.secret = create_key(site, "camera", ["predict"])
        client.service.keyring._checked_at = 0
        client.ids = answer_images(client, pictures()[:6])
        yield client


def shown(answer):
    """The id of the answer that a page asks about; None where it asks nothing."""
    found = Reader(answer.text).every("input", name="id")
    return found[0]["value"] if found else None


def test_the_queue_is_answered_one_by_one_until_nothing_waits(client):
    seen = []
    for turn in range(6):
        page = client.get("/studio/review")
        id = shown(page)
        row = client.service.journal.find_row(id)
        blind = turn == 5  # the audit hides what was answered
        assert (f"It answered {row.label}" in Reader(page.text).text) != blind
        assert post(client, "/studio/review/answers", id=id, answer=CLASSES[turn % 4]).status_code == 303
        seen.append(id)
    assert seen == client.ids
    said = {one.row.id: one for one in client.service.journal.reviews()}
    assert [said[id].label for id in seen] == [CLASSES[turn % 4] for turn in range(6)]
    assert {one.by for one in said.values()} == {"anna"}
    assert audit_accuracy(list(said.values())).n == 1
    assert "Nothing waits" in client.get("/studio/review").text


def test_by_htmx_the_next_image_comes_by_itself(client):
    headers = {**ORIGIN, "HX-Request": "true"}
    first = client.get("/studio/review", headers=headers)
    assert "<html" not in first.text
    for word, kind in (("none of these", "none of these"), ("unusable", "unusable"), ("hexagon", "new class")):
        id = shown(first)
        first = post(client, "/studio/review/answers", headers, id=id, answer="", typed=word)
        assert "<html" not in first.text
        assert f"Saved: <b>{word}</b>" in first.text
        assert shown(first) != id
        assert next(one for one in client.service.journal.reviews() if one.row.id == id).kind == kind
    assert "hexagon" in [held.get("value") for held in Reader(first.text).every("button", name="answer")]


def test_a_slip_of_the_pen_is_questioned_and_nothing_is_lost(client):
    id = shown(client.get("/studio/review"))
    answer = post(client, "/studio/review/answers", id=id, answer="", typed="Circle")
    assert "circle" in Reader(answer.text).text
    assert shown(answer) == id
    assert client.service.journal.reviews() == []
    (button,) = Reader(answer.text).every("button", name="new")
    assert post(client, "/studio/review/answers", id=id, new=button["value"]).status_code == 303
    assert client.service.journal.reviews()[0].label == "Circle"
    empty = post(client, "/studio/review/answers", id=shown(client.get("/studio/review")), answer="")
    assert "needs the right class" in Reader(empty.text).text


def test_one_goes_back_and_what_is_said_then_replaces_it(client):
    first = shown(client.get("/studio/review"))
    post(client, "/studio/review/answers", id=first, answer="star")
    second = shown(client.get("/studio/review"))
    post(client, "/studio/review/answers", id=second, answer="star")
    back = client.get("/studio/review/back")
    assert shown(back) == second
    assert "You said: star" in Reader(back.text).text
    assert shown(client.get(f"/studio/review/back?id={second}")) == first
    assert client.get(f"/studio/review/back?id={first}").status_code == 404
    post(client, "/studio/review/answers", id=first, answer="square")
    latest = [one.label for one in client.service.journal.reviews() if one.row.id == first]
    assert latest == ["star", "square"]


def test_two_people_never_see_one_image(client):
    mine = shown(client.get("/studio/review"))
    cookies = dict(client.cookies)
    secret = create_key(client.service.settings.path, "bob", ["review"])
    client.service.keyring._checked_at = 0
    client.cookies.clear()
    sign_in(client, secret)
    many = Reader(client.get("/studio/review/many").text).every("input", name="ids")
    assert {one["value"] for one in many} == set(client.ids[:5]) - {mine}  # no audit among them: it is blind
    client.cookies.clear()
    client.cookies.update(cookies)
    assert shown(client.get("/studio/review")) == mine
    post(client, "/studio/review/answers", id=mine, answer="star")
    assert shown(client.get("/studio/review")) == client.ids[5]  # the others are leased to Bob


def test_one_word_answers_all_that_are_marked(client):
    marked = [one["value"] for one in Reader(client.get("/studio/review/many").text).every("input", name="ids")]
    assert len(marked) == 5
    answer = client.post("/studio/review/many", data={"ids": marked[:3], "answer": "star"}, headers=ORIGIN)
    assert answer.status_code == 303
    assert {one.row.id: one.label for one in client.service.journal.reviews()} == dict.fromkeys(marked[:3], "star")
    assert "No image is marked" in post(client, "/studio/review/many", answer="star").text
    strange = client.post(
        "/studio/review/many", data={"ids": [*marked[3:], "x"], "answer": "star"}, headers=ORIGIN
    )
    assert strange.status_code == 404
    assert len(client.service.journal.reviews()) == 3  # all or none


def test_images_of_the_queue_are_shown_and_no_others(client):
    answer = client.post("/predict", content=pictures()[7], headers={"X-API-Key": client.secret})
    unqueued = answer.json()["predictions"][0]["id"]
    client.service.journal.flush()
    answer = client.get(f"/studio/review/images/{client.ids[0]}")
    expected = np.asarray(Image.open(io.BytesIO(pictures()[0])).convert("RGB"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")), expected)
    for id in (unqueued, "x", "..%2f..%2fkeys.json"):
        assert client.get(f"/studio/review/images/{id}").status_code == 404


def test_a_heat_map_stands_beside_an_answer_but_not_beside_the_audit(client):
    beside = client.get(f"/studio/review/beside/{client.ids[0]}").text
    assert "data:image/png;base64," in beside
    assert "data:image" not in client.get(f"/studio/review/beside/{client.ids[5]}").text

    def neighbours():
        text = client.get(f"/studio/review/beside/{client.ids[0]}").text
        return "" if "being computed" in text else text

    assert "was not published from a run" in until(neighbours)  # this release has none


def test_live_shows_traffic_releases_and_what_answers_bring(client):
    read = Reader(client.get("/studio/live").text)
    assert "6 Answers in 24 hours" in read.text
    assert "30 random answers tell the accuracy to ±17 points." in read.text  # the anytime interval of 27 of 30
    assert "99 % within" in read.text
    assert len(read.every("rect")) == 24
    for name in ("promote", "compare-releases"):
        assert read.every("form", action=f"/studio/run/{name}")
    home = Reader(client.get("/studio").text).text
    assert "Release 1 answers" in home
    assert "6 answers in the last 24 hours" in home


def test_a_release_is_promoted_and_rolled_back_by_its_verb(client):
    site = client.service.settings.path
    for action, fields, number in (("promote", {"number": "2"}, 2), ("rollback", {}, 1)):
        page = post(client, f"/studio/run/{action}", **fields).headers["location"]
        client.get(page + "/events")
        read = Reader(client.get(page).text)
        assert "Done" in read.text, read.text
        assert current_number(site) == number
        assert until(lambda number=number: client.service.release == number)


def test_a_reviewer_reviews_and_promotes_nothing(tmp_path):
    site = shutil.copytree(site_of_two(), tmp_path / "site")
    with open_studio(site, scopes=["review", "read"]) as client:
        assert client.get("/studio/review").status_code == 200
        assert not Reader(client.get("/studio/live").text).every("form", action="/studio/run/promote")
        assert post(client, "/studio/run/promote", number="2").status_code == 403
    assert current_number(site) == 1


def test_hostile_class_names_are_text(tmp_path):
    publish(tmp_path / "site", classifier(classes=HOSTILE).save(tmp_path / "bundle"))
    with open_studio(tmp_path / "site") as client:
        client.secret = create_key(tmp_path / "site", "camera", ["predict"])
        client.service.keyring._checked_at = 0
        ids = answer_images(client, pictures()[:2])
        for path in ("/studio", "/studio/review", "/studio/review/many", "/studio/live"):
            read = Reader(client.get(path).text)
            assert not [held for _, held in read.tags if held.get("src") == "x" or "onerror" in held]
        read = Reader(client.get("/studio/review").text)
        values = [held.get("value") for held in read.every("button", name="answer")]
        assert set(HOSTILE) <= set(values)
        post(client, "/studio/review/answers", id=ids[0], answer=HOSTILE[0])
        assert client.service.journal.reviews()[0].label == HOSTILE[0]


def test_the_first_release_answers_without_a_restart(tmp_path):
    with open_studio(tmp_path / "site") as client:
        assert "Begin here" in client.get("/studio").text
        assert client.get("/studio/review").status_code == 404
        assert "Nothing answers yet" in client.get("/studio/live").text
        secret = create_key(tmp_path / "site", "camera", ["predict", "read"])
        client.service.keyring._checked_at = 0
        held = {"X-API-Key": secret}
        assert client.post("/predict", content=pictures()[0], headers=held).status_code == 503
        assert client.get("/readyz").status_code == 503
        assert client.get("/releases", headers=held).json() == {"current": None, "releases": []}
        publish(tmp_path / "site", classifier().save(tmp_path / "bundle"))
        assert until(lambda: client.service.release == 1)
        assert client.post("/predict", content=pictures()[0], headers=held).status_code == 200
        assert "Release 1 answers" in client.get("/studio").text


def test_a_tried_image_is_kept_only_where_a_person_says_what_it_is(client):
    def try_image(data, **fields):
        answer = client.post("/studio/try", data=fields, files={"image": ("x.png", data)}, headers=ORIGIN)
        return Reader(answer.text).text

    journal, before = client.service.journal, len(client.service.journal.predictions(limit=100))
    assert "Add this image to the data" in try_image(pictures()[8])
    assert "Say what it is" in try_image(pictures()[8], add="1", word=" ")
    assert "circle" in try_image(pictures()[8], add="1", word="Circle")  # a probable slip
    assert len(journal.predictions(limit=100)) == before
    assert "Kept as hexagon" in try_image(pictures()[8], add="1", word="hexagon")
    assert "Kept as Circle" in try_image(pictures()[9], add="new", word="Circle")
    said = {one.label: one for one in journal.reviews()}
    assert (said["hexagon"].kind, said["Circle"].kind) == ("new class", "new class")
    path = journal.image_path(said["hexagon"].row)
    kept, given = (np.asarray(Image.open(one).convert("RGB")) for one in (path, io.BytesIO(pictures()[8])))
    assert np.array_equal(kept, given)


def test_number_keys_mean_classes_of_that_name():
    assert number_keys(["1", "0", "cat"], [("0", 0.9), ("cat", 0.1)]) == [("0", "0", 0.9), ("1", "1", None)]
    assert number_keys(["cat", "dog", "owl"], [("owl", 0.6), ("cat", 0.3)]) == [
        ("1", "owl", 0.6),
        ("2", "cat", 0.3),
    ]
    assert number_keys(["cat", "dog"], ()) == [("1", "cat", None), ("2", "dog", None)]
    assert number_keys([f"c{k}" for k in range(10)], ()) == []


def test_latencies_are_interpolated_as_prometheus_does():
    text = "# TYPE sightline_predict_seconds histogram\n"
    counts = {"0.001": 10, "0.002": 60, "0.005": 100, "+Inf": 100}
    text += "".join(f'sightline_predict_seconds_bucket{{le="{edge}"}} {n}\n' for edge, n in counts.items())
    text += "sightline_predict_seconds_count 100\nsightline_predict_seconds_sum 1\n"
    found = latency_quantiles(text)
    assert found["p50"] == pytest.approx(1.8)  # 40 of the 50 between 1 and 2 ms
    assert found["p99"] == pytest.approx(2 + 3 * 39 / 40)
    assert latency_quantiles("") is None


def test_the_journal_counts_between_moments(client):
    now = time.time()
    assert client.service.journal.count_between([now - 3600, now - 1800, now + 1]) == [0, 6]


def test_an_alarm_shows_in_words_and_images_what_changed(client, tmp_path):
    path = tmp_path / "changed.png"
    path.write_bytes(pictures()[0])
    changes = [{"channel": "sharpness", "words": "images are blurrier (by 2.1 standard deviations)"}]
    client.service.observed = {
        "alarm": True, "promise": 100_000, "changes": changes, "images": (str(path),), "answers": 900, "first": None,
    }  # fmt: skip
    read = Reader(client.get("/studio/live").text)
    assert "Images are blurrier" in read.text
    assert "at most one false alarm comes in 100,000 answers" in read.text
    assert read.every("img", src="/studio/live/drift/0")
    assert read.every("form", action="/studio/run/accept-drift")
    assert client.get("/studio/live/drift/0").content == pictures()[0]
    for place in ("1", "-1", "x", "..%2f0"):
        assert client.get(f"/studio/live/drift/{place}").status_code == 404


def test_the_difference_of_two_releases_begins_with_what_becomes_wrong(client, tmp_path):
    flip = {"file": "<b>7.png", "label": "star", "before": "star", "after": "circle"}
    verdict = {"decision": "keep", "reasons": ["class star loses"], "unproven": [], "needed": 0}
    result = {
        "first": 1, "second": 2, "n": 40, "sample": "All 40 test images.", "accuracy": [0.9, 0.875],
        "newly_wrong": [flip], "newly_right": [], "verdict": verdict,
    }  # fmt: skip
    jobs, words = Jobs(client.service.settings.path / "studio" / "jobs"), ["releases", str(tmp_path)]
    folder = jobs.start(words, title="Compare", back="/live", action="compare-releases").folder
    page = f"/studio/jobs/{folder.name}"
    client.get(page + "/events")  # until it has ended
    write_json(folder / "result.json", result)
    (folder / "sheet.png").write_bytes(pictures()[0])
    read = Reader(client.get(page).text)
    assert read.text.index("Newly wrong: 1 of 40") < read.text.index("Newly right: 0")
    assert "<b>7.png star star circle" in read.text
    assert "It would be kept back. Class star loses" in read.text
    assert client.get(page + "/sheet").content == pictures()[0]
