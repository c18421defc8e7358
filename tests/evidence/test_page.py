"""The page and the card: whole, self-contained, honest about what is missing, deaf to hostile names."""

import base64
import csv
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sightline import metrics, pictures
from sightline.errors import DataError
from sightline.evidence import load_evidence, render_card, write_report

CLASSES = ("cat", "dog", "owl")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "{{ 7 * 7 }} | *b*\n# title",
    "a: [b, 'c",
)
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag was closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.open, self.faults = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def measured(classes, n=90, seed=0):
    """A report as evaluation writes it, from simulated answers."""
    rng = np.random.default_rng(seed)
    k = len(classes)
    labels = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k))
    logits[np.arange(n), labels] += 2
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    overall, matrix = metrics.overall_metrics(labels, p), metrics.confusion_matrix(labels, p.argmax(1), k)
    rows = [
        {
            "class": classes[one.index],
            "n": one.n,
            "predicted": one.predicted,
            "precision": one.precision.value,
            "recall": one.recall.value,
            "f1": one.f1.value,
            "roc_auc": one.roc_auc.value if one.roc_auc else None,
            "intervals": {
                name: getattr(one, name).as_json()
                for name in ("precision", "recall", "f1", "roc_auc")
                if getattr(one, name)
            },
        }
        for one in metrics.per_class_metrics(labels, p)
    ]
    test = {"split": "test", "n": n, **{name: i.value for name, i in overall.items()}}
    test |= {"intervals": {name: i.as_json() for name, i in overall.items()}, "classes": list(classes)}
    test |= {"per_class": rows, **metrics.confusion_as_json(matrix), "remarks": []}
    costs = {"seconds_per_image": 1e-4, "images_per_second": 1e4, "latency_ms": 0.3, "multiply_adds": 40_800_000}
    costs |= {"latency": [{"batch_size": 32, "p50_ms": 7.1, "p95_ms": 23.4, "repetitions": 150}]}
    costs |= {"inference_memory_mb": 61.8, "inference_memory_kind": "process", "device": "cpu", "batch_size": 256}
    test |= {"efficiency": costs | {"parameters": 12345}}
    image = pictures.data_url(pictures.thumbnail(np.full((8, 8, 1), 200, np.uint8)))
    mistake = {"file": f"{classes[0]}/1.png", "label": classes[0], "predicted": classes[1], "confidence": 0.87}
    ranks = metrics.one_vs_rest(labels, p)
    curves = zip(classes, ranks.aucs, ranks.curves, strict=True)
    example = {"file": "a.png", "confidence": 0.77, "image": image}
    way = {"label": classes[0], "predicted": classes[1], "count": 3, "share": 0.125, "examples": [example]}
    back = {"label": classes[1], "predicted": classes[0], "count": 0, "share": 0.0, "examples": []}
    return {
        "roc": {
            "macro": {"auc": ranks.macro_auc.value, **ranks.macro_curve.as_json()},
            "classes": [
                {"class": name, "auc": area.value, **curve.as_json()} for name, area, curve in curves if area
            ],
        },
        "confusable_pairs": [{"count": 3, "directions": [way, back]}],
        "format": 2,
        "run": "x",
        "created": "2030-01-02T03:04:05+00:00",
        "evaluation": test,
        "training": {"seconds": 75.0, "epochs": 3, "best_epoch": 2, "peak_memory_mb": 512.0},
        "reliability": metrics.reliability(labels, p).as_json(),
        "top_confusions": [{"label": classes[0], "predicted": classes[1], "count": 4, "share": 0.1}],
        "mistakes": [mistake | {"image": image}],
    }


def configured(classes):
    return {
        "format": 1,
        "architecture": {"name": "lenet5", "arguments": {}, "surgery": []},
        "classes": list(classes),
        "geometry": {"size": [28, 28], "channels": 1, "fit": "squash", "filter": "bilinear", "exif": True},
        "temperature": 1.25,
        "provenance": {"data": "animals.zip", "data_fingerprint": "abc", "train_images": 700},
    }


def run_folder(path, classes=CLASSES):
    (path / "classifier").mkdir(parents=True)
    (path / "report.json").write_text(json.dumps(measured(classes)), encoding="utf-8")
    (path / "classifier" / "config.json").write_text(json.dumps(configured(classes)), encoding="utf-8")
    (path / "recipe.toml").write_text('data = "animals.zip"\nmodel = "lenet5"\naugment = ["flip", "shift:2"]\n')
    (path / "environment.json").write_text('{"torch": "2.13.0", "cuda": null}')
    (path / "notes.json").write_text(json.dumps(["15 % of the images were split off at random as the test."]))
    with (path / "split.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file", "label", "split"])
        for split, n in (("train", 7), ("val", 2), ("test", 3)):
            writer.writerows([f"{i}.png", name, split] for name in classes for i in range(n))
    rows = "1,2.5,0.1,1.2,1.3,0.5,800\n2,2.4,0.05,0.8,1.0,0.7,810\n"
    head = "epoch,seconds,lr,train_loss,val_loss,val_accuracy,images_per_second\n"
    (path / "history.csv").write_text(head + rows)
    pictures.contact_sheet([np.zeros((8, 8, 1), np.uint8)], ["cat"]).save(path / "train_batch.png")
    return path


FILES = (
    "report.json",
    "classifier/config.json",
    "recipe.toml",
    "environment.json",
    "history.csv",
    "notes.json",
    "split.csv",
    "train_batch.png",
)


def page_of(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_the_page_shows_the_measured_numbers(tmp_path):
    run = run_folder(tmp_path / "run")
    page, report = page_of(run), measured(CLASSES)["evaluation"]
    assert page.faults == []
    assert page.open == []
    low, high = (report["intervals"]["accuracy"][side] * 100 for side in ("low", "high"))
    assert f"right {report['accuracy'] * 100:.1f} % of the time" in page.words
    assert f"{low:.1f} – {high:.1f} %" in page.words
    for name in ("balanced_accuracy", "f1_macro", "f1_weighted", "brier", "top_2_accuracy", "log_loss", "ece"):
        assert f"{report[name]:.4f}" in page.words
    for expected in (
        "lenet5",
        "animals.zip",
        "1 min 15 s",
        "12,345",
        "3 epochs, best 2",
        "split off at random",
        "flip, shift:2",
        "2.13.0",
        "One training run, one seed",
        "Small test set: 90 images",
        "87 %",
        "40.8 million multiply-adds",
        "median of 150; 95 % within 23 ms",
        "62 MB growth of the process",
        f"3 {CLASSES[0]} → {CLASSES[1]}, 12.5 %",
    ):
        assert expected in page.words
    assert "Not in this run folder" not in page.words


def test_counts_by_class_and_split_are_those_of_the_table(tmp_path):
    page = page_of(run_folder(tmp_path / "run"))
    assert re.search(r"cat 7 2 3 dog 7 2 3 owl 7 2 3 All 21 6 9", page.words)


def test_the_page_loads_nothing_and_runs_no_scripts(tmp_path):
    page = page_of(run_folder(tmp_path / "run"))
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "script" not in {tag for tag, _ in page.tags}
    assert "link" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?://", html)


def test_every_picture_on_the_page_decodes(tmp_path):
    images = [attributes["src"] for tag, attributes in page_of(run_folder(tmp_path / "run")).tags if tag == "img"]
    assert len(images) == 6  # mistake, example of a pair, ROC, reliability, curves, training batch
    for url in images:
        head, _, body = url.partition(",")
        assert head == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(body, validate=True))).verify()


@pytest.mark.parametrize("classes", [HOSTILE, HOSTILE * 6], ids=["table", "picture"])
def test_hostile_names_stay_text(tmp_path, classes):
    page = page_of(run_folder(tmp_path / "run", tuple(f"{name}{i}" for i, name in enumerate(classes))))
    assert page.faults == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "<script>alert(1)</script>0" in page.words
    assert "{{ 7 * 7 }}" in page.words


def test_a_mistake_cannot_make_the_page_load_something(tmp_path):
    run = run_folder(tmp_path / "run")
    report = measured(CLASSES)
    for url in ("https://example.org/x.png", 'data:image/png;base64,AA" onload="x', "data:image/svg+xml,<svg/>"):
        report["mistakes"].append(report["mistakes"][0] | {"image": url})
        report["confusable_pairs"][0]["directions"][0]["examples"].append(
            {"file": "", "confidence": 1, "image": url}
        )
    (run / "report.json").write_text(json.dumps(report))
    html = write_report(run).read_text(encoding="utf-8")
    assert "example.org" not in html
    assert html.count("<figcaption") == 2


@pytest.mark.parametrize("absent", FILES)
def test_absent_files_are_named(tmp_path, absent):
    run = run_folder(tmp_path / "run")
    (run / absent).unlink()
    page = page_of(run)
    assert page.faults == []
    assert f"{absent} (absent)" in page.words


def test_damaged_files_are_named(tmp_path):
    run = run_folder(tmp_path / "run")
    for name in FILES:
        (run / name).write_bytes(b"\xff\x00 = [not,\n\xfeanything,1\n")
    page = page_of(run)
    assert page.faults == []
    assert "not measured yet" in page.words
    for name in FILES:
        assert f"{name} (cannot be read" in page.words


def test_an_empty_run_folder_has_a_page(tmp_path):
    page = page_of(tmp_path)
    assert page.faults == []
    assert "not measured yet" in page.words
    assert all(name in page.words for name in FILES)


def test_a_missing_run_is_an_error_with_a_remedy(tmp_path):
    with pytest.raises(DataError, match="There is no run"):
        write_report(tmp_path / "nowhere")


def test_validation_is_never_reported_as_test(tmp_path):
    run = run_folder(tmp_path / "run")
    report = measured(CLASSES)
    report["evaluation"]["split"] = "val"
    (run / "report.json").write_text(json.dumps(report))
    words = page_of(run).words
    assert "On 90 validation images" in words
    assert "which also selected the best epoch" in words
    assert "test images selected nothing" not in words


def test_a_report_from_training_json_alone(tmp_path):
    run = run_folder(tmp_path / "run")
    (run / "report.json").unlink()
    (run / "training.json").write_text('{"seconds": 8.31, "epochs": 2, "best_epoch": 1}')
    assert "8.3 s" in page_of(run).words


@pytest.mark.parametrize(
    ("epochs", "best", "said"),
    [(1, 1, "1 epoch, best 1"), (2, 0, "2 epochs, none better than its start"), (0, 0, "none")],
)
def test_the_page_describes_the_epochs_of_training(epochs, best, said, tmp_path):
    run = run_folder(tmp_path / "run")
    (run / "report.json").unlink()
    (run / "training.json").write_text(json.dumps({"seconds": 8.31, "epochs": epochs, "best_epoch": best}))
    assert f"8.3 s {said}" in page_of(run).words


@pytest.mark.parametrize("count", [40, 101])
def test_many_classes_are_a_picture_and_collapsed_tables(count, tmp_path):
    classes = tuple(f"class {i}" for i in range(count))
    page = page_of(run_folder(tmp_path / "run", classes))
    summaries = [words for words in page.text if words.startswith(f"All {count} classes")]
    assert len(summaries) == 2
    assert any(attributes.get("alt") == "Confusion matrix" for _, attributes in page.tags)


def test_the_confusion_matrix_of_many_classes_is_read(tmp_path):
    classes = tuple(f"class {i}" for i in range(101))
    run, report = run_folder(tmp_path / "run", classes), measured(classes)
    rows = load_evidence(run).measured["confusion"]
    assert {(i, j): n for i, row in enumerate(rows) for j, n in enumerate(row) if n} == {
        (i, j): n for i, j, n in report["evaluation"]["confusion_cells"]
    }
    report["evaluation"]["confusion_cells"].append([101, 0, 1])
    (run / "report.json").write_text(json.dumps(report))
    assert "report.json (cannot be read" in " ".join(load_evidence(run).missing)


def test_a_test_without_errors_gets_a_caveat(tmp_path):
    run = run_folder(tmp_path / "run")
    report = measured(CLASSES)
    report["evaluation"]["confusion"] = (np.eye(3, dtype=int) * 30).tolist()
    report |= {"mistakes": [], "top_confusions": [], "confusable_pairs": []}
    (run / "report.json").write_text(json.dumps(report))
    assert "a reason to test on more images" in page_of(run).words


CURVE = {
    "sizes": [
        {
            "share": share,
            "images": n,
            "accuracy": a,
            "intervals": {"accuracy": {"value": a, "low": a - 0.1, "high": a + 0.05, "n": 90}},
            "seeds": [a],
        }
        for share, n, a in ((0.5, 350, 0.7), (1.0, 700, 0.8))
    ],
    "sentence": "From 350 to 700 training images, accuracy changed by +10.0 points.",
}


def test_a_learning_curve_is_shown_if_it_exists(tmp_path):
    run = run_folder(tmp_path / "run")
    assert "Would more images help?" not in page_of(run).words
    assert not (run / "learning_curve.png").exists()
    (run / "learning_curve.json").write_text(json.dumps({"trainings": []}))  # not finished
    assert "Would more images help?" not in page_of(run).words
    (run / "learning_curve.json").write_text(json.dumps({"curve": CURVE}))
    assert CURVE["sentence"] in page_of(run).words
    Image.open(run / "learning_curve.png").verify()


def test_the_pictures_of_the_page_are_files_too(tmp_path):
    run = run_folder(tmp_path / "run")
    page = page_of(run)
    (shown,) = (attributes["src"] for tag, attributes in page.tags if "ROC" in attributes.get("alt", ""))
    assert base64.b64decode(shown.partition(",")[2]) == (run / "roc.png").read_bytes()


def test_a_report_of_an_earlier_release_has_a_page(tmp_path):
    run, report = run_folder(tmp_path / "run"), measured(CLASSES)
    for name in ("roc", "confusable_pairs"):
        del report[name]
    kept = {"accuracy", "f1_macro", "intervals", "per_class", "confusion", "classes", "n", "split", "parameters"}
    report["evaluation"] = {name: value for name, value in report["evaluation"].items() if name in kept}
    for row in report["evaluation"]["per_class"]:
        row["intervals"].pop("roc_auc", None)
    (run / "report.json").write_text(json.dumps(report))
    page = page_of(run)
    assert page.faults == []
    assert f"right {report['evaluation']['accuracy'] * 100:.1f} % of the time" in page.words


def test_load_evidence_reads_every_file(tmp_path):
    found = load_evidence(run_folder(tmp_path / "run"))
    assert found.run == "run"
    assert list(found.counts) == ["train", "val", "test"]
    assert found.counts["val"] == {"cat": 2, "dog": 2, "owl": 2}
    assert [row["epoch"] for row in found.history] == ["1", "2"]
    assert found.missing == ()


def front_matter(text):
    assert text.startswith("---\n")
    return text[4 : text.index("\n---\n", 4)].splitlines()


def test_the_card_has_the_numbers_and_the_front_matter_of_hubs():
    report = measured(CLASSES)
    text = render_card(configured(CLASSES), report)
    head = front_matter(text)
    assert "pipeline_tag: image-classification" in head
    assert f"      value: {report['evaluation']['accuracy']:.6f}" in head
    assert '      name: "animals.zip"' in head
    assert f"| {report['evaluation']['accuracy']:.4f} |" in text
    assert "cat, dog, owl" in text
    assert "28 x 28 grey pixels" in text
    assert "Only 90 test images" in text
    assert 'sightline.load("THIS_FOLDER")' in text


def test_a_card_without_a_report_has_no_numbers():
    text = render_card(configured(CLASSES))
    assert "Nothing yet" in text
    assert "model-index" not in text
    assert "| metric |" not in text


def test_hostile_names_cannot_leave_the_card():
    config = configured(HOSTILE)
    config["provenance"]["data"] = 'x"\n---\nlicense: stolen\n`<script>'
    text = render_card(config, measured(HOSTILE))
    head = front_matter(text)
    assert not any(line.startswith(("license", "---")) for line in head)
    for line in head:
        if "name: " in line and '"' in line:
            json.loads(line.partition("name: ")[2])
    body = text[text.index("\n---\n", 4) :]
    assert "<script>" not in body.replace("`", "").replace("x\" --- license: stolen '<script>", "")
    assert "\n# title" not in body


def test_the_run_gets_its_card(tmp_path):
    run = run_folder(tmp_path / "run")
    write_report(run)
    assert (run / "README.md").read_text(encoding="utf-8") == render_card(configured(CLASSES), measured(CLASSES))


def test_rendering_needs_no_torch(tmp_path):
    run = run_folder(tmp_path / "run")
    code = "import sys; from sightline.evidence import write_report; write_report(sys.argv[1]); "
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
