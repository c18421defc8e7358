"""Sections of the page on confidence, groups, attacks, corruptions and explanations; verdicts; --collect."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sightline.cli import main
from sightline.errors import ChoiceError, DataError, RecipeError
from sightline.evidence import load_evidence, render_card, render_page, write_report
from sightline.evidence.formatting import ChartLine, line_chart
from sightline.evidence.measure_missing import MIN_IMAGES, measure_missing_evidence
from sightline.evidence.page import attach_comparison
from sightline.evidence.requirements import REQUIRABLE_METRICS, Verdict, check_requirements, parse_requirements
from sightline.evidence.sections import SECTION_BUILDERS, SECTION_COMMANDS, build_sections
from sightline.training import Recipe, train

FILES = ("calibration.json", "corruptions.json", "robustness.json", "explanations/answers.json", "report.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run with everything that can be collected of it."""
    place = tmp_path_factory.mktemp("collected") / "run"
    recipe = Recipe(model="lenet5", epochs=2, limit=400, size=16)
    train("digits", recipe, out=place)
    came = measure_missing_evidence(place, budget="5s")
    assert all(one.startswith("done") for one in came.values()), came
    return place


class Tags(HTMLParser):
    """Every tag of a page, with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_collecting_makes_every_section_and_measures_nothing_twice(run):
    html = write_report(run).read_text(encoding="utf-8")
    for name in ("coverage", "robustness", "corruptions", "explanations"):
        assert f'<section id="{name}">' in html
    assert all((run / file).is_file() for file in FILES)
    assert measure_missing_evidence(run) == {}
    held = json.loads((run / "robustness.json").read_text())["attacks"]
    (attack,) = held.values()
    assert attack["n"] >= MIN_IMAGES
    assert f"{attack['points'][-1]['accuracy'] * 100:.1f} %" in html


def test_the_page_loads_nothing_and_its_pictures_are_named(run):
    tags = Tags(write_report(run).read_text(encoding="utf-8")).found
    assert not {tag for tag, _ in tags} & {"script", "link", "iframe", "object"}
    assert all(attrs["src"].startswith("data:image/png;base64,") for tag, attrs in tags if tag == "img")
    assert all(attrs.get("alt") for tag, attrs in tags if tag == "img")
    assert all(attrs.get("aria-label") for tag, attrs in tags if tag == "svg")
    anchors = {attrs["id"] for _, attrs in tags if "id" in attrs}
    links = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert links
    assert all(link.startswith("#") and link[1:] in anchors for link in links)


def test_a_cell_of_the_confusion_matrix_shows_its_images(run):
    report = json.loads((run / "report.json").read_text())
    matrix = report["evaluation"]["confusion"]
    wrong = {(i, j) for i, row in enumerate(matrix) for j, n in enumerate(row) if n and i != j}
    assert {(cell["row"], cell["column"]) for cell in report["confusion_examples"]} == wrong
    classes = report["evaluation"]["classes"]
    for cell in report["confusion_examples"]:
        assert cell["count"] == matrix[cell["row"]][cell["column"]]
        assert {(one["label"], one["predicted"]) for one in cell["examples"]} == {
            (classes[cell["row"]], classes[cell["column"]])
        }


def test_damaged_results_are_named_and_the_rest_is_shown(run, tmp_path):
    extras = dict(load_evidence(run).extras)
    shown, damaged = build_sections(
        extras | {"robustness": {"attacks": {"x": {"points": []}}}, "groups": {"a": 3}}
    )
    assert set(damaged) == {"robustness", "groups"}
    assert {"calibration", "corruptions"} <= set(shown)
    assert build_sections({}) == ({}, [])
    assert set(SECTION_COMMANDS) <= set(SECTION_BUILDERS)


def test_names_from_the_data_cannot_add_markup(run):
    extras = json.loads(json.dumps(dict(load_evidence(run).extras)))
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'
    for one in extras["explanations"]["images"]:
        one["sentence"] = one["file"] = one["answer"] = hostile
    for one in extras["explanations"]["images"][1:]:
        one["image"] = "https://example.org/spy.png"
    row = {"group": hostile, "n": 40, "small": False, "accuracy": 0.5, "intervals": {"accuracy": BOUNDS}}
    extras["groups"] = {hostile: {"groups": [row], "worst_group": hostile, "gap": None, "remarks": [hostile]}}
    html = render_page(replace(load_evidence(run), extras=extras))
    assert "<script" not in html
    assert "onerror=alert(2)>" not in html
    assert "spy.png" not in html
    assert "<script" not in render_card(load_evidence(run).config, load_evidence(run).report, extras)


BOUNDS = {"low": 0.4, "high": 0.6, "n": 40}


def test_the_card_lists_limitations_and_what_was_not_measured(run):
    evidence = load_evidence(run)
    before, after = (
        render_card(evidence.config, evidence.report),
        render_card(evidence.config, evidence.report, evidence.extras),
    )
    assert (
        "Nothing was measured about groups of people or things, adversarial attacks or corrupted images." in before
    )
    assert "Nothing was measured about groups of people or things." in after
    assert "Under attack" in after
    assert "On corrupted images" in after


@pytest.mark.parametrize(
    ("verdict", "met", "sure"),
    [
        (Verdict("accuracy", 0.9, False, 0.95, 0.92, 0.97), True, True),
        (Verdict("accuracy", 0.9, False, 0.95, 0.88, 0.97), True, False),
        (Verdict("accuracy", 0.9, False, 0.85, 0.80, 0.89), False, True),
        (Verdict("accuracy", 0.9, False, 0.85, 0.80, 0.91), False, False),
        (Verdict("ece", 0.02, True, 0.01, 0.005, 0.018), True, True),
        (Verdict("ece", 0.02, True, 0.01, 0.005, 0.03), True, False),
        (Verdict("ece", 0.02, True, 0.05, 0.03, 0.07), False, True),
        (Verdict("ece", 0.02, True, 0.05, 0.01, 0.07), False, False),
        (Verdict("ece", 0.02, True, None), False, True),
    ],
)
def test_the_value_decides_a_verdict_and_the_interval_whether_it_is_conclusive(verdict, met, sure):
    assert (verdict.is_met, verdict.is_conclusive) == (met, sure)
    assert ("includes" in verdict.sentence) is not sure


def test_requirements_are_checked_before_anything_is_done():
    assert parse_requirements(["accuracy=0.98", "ece=0.02"]) == {"accuracy": 0.98, "ece": 0.02}
    with pytest.raises(RecipeError, match=r"'accuracy' is not a requirement: write .* accuracy=0.98"):
        parse_requirements(["accuracy"])
    with pytest.raises(RecipeError, match="'ece=low'"):
        parse_requirements(["ece=low"])
    with pytest.raises(ChoiceError, match="Did you mean 'accuracy'"):
        parse_requirements(["acuracy=1"])


def test_every_requirable_metric_can_be_measured(run):
    evidence = load_evidence(run)
    verdicts = check_requirements(dict.fromkeys(REQUIRABLE_METRICS, 0.5), evidence.measured, evidence.extras)
    unknown = {one.metric for one in verdicts if one.value is None}
    assert unknown == {"worst_group_accuracy"}  # no column of groups in these data


def test_report_ends_with_3_where_a_requirement_is_missed(run, capsys):
    assert main(["report", str(run), "--require", "accuracy=0", "log_loss=100"]) == 0
    assert main(["report", str(run), "--json", "--require", "accuracy=1.01", "ece=1"]) == 3
    told = capsys.readouterr()
    verdicts = json.loads(told.out.splitlines()[-1])["verdicts"]
    assert [one["met"] for one in verdicts] == [False, True]
    assert "accuracy" in told.err
    assert "<h2>Requirements</h2>" in (run / "report.html").read_text(encoding="utf-8")


def test_a_comparison_is_attached_and_another_folder_refused(run, tmp_path):
    with pytest.raises(DataError, match="contains no finished comparison"):
        attach_comparison(run, tmp_path)
    row = {
        "entrant": "knn",
        "accuracy": 0.5,
        "intervals": {"accuracy": BOUNDS},
        "train_seconds": 1.5,
        "ms_per_image": 0.02,
    }
    content = {"n": 10, "entrants": [row], "sentences": ["knn is first."], "failures": []}
    (tmp_path / "compare.json").write_text(json.dumps(content))
    attach_comparison(run, tmp_path)
    assert "knn is first." in write_report(run).read_text(encoding="utf-8")
    (run / "comparison.json").unlink()


def test_groups_need_collecting(run, capsys):
    assert main(["report", str(run), "--group", "colour"]) == 2
    assert "--collect" in capsys.readouterr().err


def test_a_missing_column_is_reported_and_the_rest_is_measured(run):
    came = measure_missing_evidence(run, columns=("colour",))
    assert "no column 'colour'" in came["groups, colour"]


def test_a_chart_puts_points_where_they_belong_and_escapes_names():
    svg = line_chart(
        [ChartLine("a", [(0, 1.0), (0.5, 0.5), (1, 0.0)], [(1, 1), (0.4, 0.6), (0, 0)])],
        x="<x>",
        y="y",
        title='"t"',
        write_x=str,
    )
    assert "<x>" not in svg
    assert "&lt;x&gt;" in svg
    assert 'aria-label="&quot;t&quot;"' in svg
    line = re.search(r'<polyline points="([^"]+)"', svg)
    places = [tuple(map(float, pair.split(","))) for pair in line[1].split()]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x1 < x2
    assert y0 < y1 < y2
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2)
