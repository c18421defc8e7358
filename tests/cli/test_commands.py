"""Every verb from a shell: its answer on stdout, all else on stderr, and its exit code."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sightline import __version__
from sightline.classifier import Classifier
from sightline.cli.app import OLD_FLAGS, app, rename_old_flags
from sightline.training import defaults
from sightline.training.hooks import HistoryWriter

TINY = ("--model", "mlp", "--size", "8", "--limit", "300", "--epochs", "1")
VERBS = ("demo", "train", "tune", "combine", "check", "evaluate", "report", "compare", "predict", "runs", "list")
VERBS += ("explain",)
VERBS += ("attack",)
VERBS += ("compress", "learn", "adapt", "pretrain")
VERBS += ("export",)
VERBS += ("serve", "releases", "keys", "journal")
FAMILIES = (
    "models",
    "augmentations",
    "losses",
    "samplings",
    "semi-supervised",
    "self-supervised",
    "domain-terms",
    "attacks",
    "optimizers",
    "initialisations",
    "schedules",
    "searches",
)
FAMILIES += ("freezings", "mitigations", "scores", "explainers", "combinations", "filters", "corruptions")
FAMILIES += ("normalisations", "presets", "baselines", "features", "data")
FAMILIES += ("compressors", "strategies", "adapters")
FAMILIES += ("formats",)
pytestmark = pytest.mark.usefixtures("undrawn")
SHELL = (sys.executable, "-c", "import sys; from sightline.cli import main; sys.exit(main())")


def shell(*words, **options):
    return subprocess.run([*SHELL, *map(str, words)], capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny run, trained and tested by a process of its own, and what that printed."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    done = shell("train", "digits", *TINY, "--out", folder)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(folder=folder, out=done.stdout, err=done.stderr)


@pytest.fixture(scope="module")
def run(trained):
    return trained.folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Real digits as files, in a folder for each class: {3, 7}/0.png ... 5.png."""
    folder, digits = tmp_path_factory.mktemp("images"), load_digits()
    for label in (3, 7):
        (folder / str(label)).mkdir()
        for i, pixels in enumerate(digits.images[digits.target == label][:6]):
            Image.fromarray(np.rint(pixels * 255 / 16).astype(np.uint8)).save(folder / f"{label}/{i}.png")
    return folder


def stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


# The way of the command line itself


def test_help_names_every_verb_and_version_is_the_release(cli):
    answer = cli("--help")
    assert answer.code == 0
    assert all(re.search(rf"^│ {verb} ", answer.out, re.MULTILINE) for verb in VERBS)
    assert cli("--version").out.strip() == __version__
    assert cli().out == answer.out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example_of_it(cli, verb):
    answer = cli(verb, "--help")
    assert answer.code == 0
    assert f"Example: sightline {verb}" in answer.out
    assert "--json" in answer.out


def test_help_shows_a_dozen_flags_and_the_rest_on_demand():
    few, every = (shell("train", word).stdout for word in ("--help", "--help-all"))
    assert "--epochs" in few
    assert "--label-smoothing" not in few
    assert all(
        f"--{flag} " in every for flag in ("epochs", "label-smoothing", "ema-decay", "momentum", "precision")
    )


def test_flags_are_parsed_without_torch():
    code = """if True:
        import sys
        from sightline.cli import main
        for words in (["--help"], ["train", "--help"], ["predict", "--help"], ["--version"], ["train", "--epoch"]):
            main(words)
        assert "torch" not in sys.modules and "numpy" not in sys.modules, "torch or numpy was imported"
        """
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_installed_script_is_the_same_program():
    script = Path(sys.executable).with_name("sightline")
    if not script.exists():
        pytest.skip("the package is not installed with its script")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize("verb", OLD_FLAGS)
def test_every_old_flag_becomes_a_flag_of_its_verb(verb):
    """In both forms of the command line; the command line itself refuses the old names."""
    for old, new in OLD_FLAGS[verb].items():
        assert rename_old_flags([verb, f"--{old}", "1"]) == [verb, f"--{new}", "1"]
        assert rename_old_flags([verb, f"--{old}=1"]) == [verb, f"--{new}=1"]
        flags = {name for argument in app[verb].assemble_argument_collection() for name in argument.names}
        assert f"--{new}" in flags
        assert f"--{old}" not in flags


def test_old_flags_belong_to_their_verb_and_to_flags_only():
    words = ["releases", "site", "prune", "--keep", "5"]
    assert rename_old_flags(words) == words
    assert rename_old_flags(["predict", "runs/a", "keep.png", "form"]) == ["predict", "runs/a", "keep.png", "form"]


def test_an_old_command_still_works(cli, run, images):
    new = cli("predict", run, images, "--format", "csv", "--threshold", "0.5").out
    assert cli("predict", run, images, "--form", "csv", "--unknown-below=0.5").out == new


# Verbs that make


def test_train_writes_a_complete_run_and_prints_its_choices(trained):
    assert "drawn for testing" in trained.err
    assert "Working in grey" in trained.err
    assert re.search(r"accuracy +\d+\.\d\d% +\d+\.\d\d% to \d+\.\d\d%", trained.out)
    assert str(trained.folder / "report.html") in trained.out
    names = {path.name for path in trained.folder.iterdir()}
    assert names >= {"recipe.toml", "report.html", "report.json", "predictions.csv", "classifier", "README.md"}


def test_train_json_is_one_object_with_the_names_of_the_design(cli, tmp_path):
    folder = tmp_path / "r"
    answer = cli("train", "digits", *TINY, "--augment", "shift:1", "rotate:5", "--out", folder, "--json")
    value = json.loads(answer.out)
    assert (value["run"], value["split"]) == (str(folder), "test")
    names = ("accuracy", "balanced_accuracy", "f1_macro", "roc_auc_ovr", "log_loss", "ece")
    assert all(
        value["intervals"][name]["low"] <= value[name] <= value["intervals"][name]["high"] for name in names
    )
    assert Path(value["report"]).is_file()
    with (folder / "predictions.csv").open() as stream:
        right = [row["label"] == row["predicted"] for row in csv.DictReader(stream)]
    assert (len(right), sum(right) / len(right)) == (value["n"], pytest.approx(value["accuracy"]))
    assert 'augment = ["shift:1", "rotate:5"]' in (folder / "recipe.toml").read_text()


def test_flags_override_the_recipe_file(cli, run, tmp_path):
    answer = cli("train", "--recipe", run / "recipe.toml", "--seed", "5", "--out", tmp_path / "r", "--json")
    assert answer.code == 0
    text = (tmp_path / "r" / "recipe.toml").read_text()
    assert "seed = 5" in text
    assert 'data = "digits"' in text
    assert 'model = "mlp"' in text


def test_a_handful_of_images_trains(cli, images, tmp_path):
    """Eight images to train on, fewer than any batch size chosen for larger sets."""
    answer = cli("train", images, "--model", "mlp", "--epochs", "1", "--out", tmp_path / "r", "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["n"] == 2


def test_photos_of_different_sizes_train_with_few_flags(cli, shared_data, tmp_path):
    photos = shared_data / "photos_jpg.zip"
    answer = cli(
        "train", photos, "--limit", "60", "--size", "32", "--epochs", "1", "--out", tmp_path / "r", "--json"
    )
    assert answer.code == 0
    assert "Network resnet20" in answer.err
    value = json.loads(answer.out)
    assert (value["n"], value["classes"]) == (20, ["cats", "dogs"])
    with zipfile.ZipFile(photos) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".jpg"))
        (tmp_path / "one.jpg").write_bytes(archive.read(name))
    assert re.match(r".*one\.jpg: (cats|dogs) \d", cli("predict", tmp_path / "r", tmp_path / "one.jpg").out)


def test_a_run_is_replaced_only_when_asked(cli, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "r")
    before = (folder / "recipe.toml").stat().st_mtime_ns
    refused = cli("train", "digits", *TINY, "--out", folder)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (folder / "recipe.toml").stat().st_mtime_ns == before
    assert cli("train", "digits", *TINY, "--out", folder, "--overwrite").code == 0
    assert (folder / "recipe.toml").stat().st_mtime_ns > before


def test_a_second_run_gets_another_name(cli, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "runs/digits-mlp")
    assert cli("train", "digits", *TINY).code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["digits-mlp", "digits-mlp-2"]


def test_resume_finishes_an_interrupted_run(cli, run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "r")
    for name in ("training.json", "report.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "classifier")
    assert json.loads(cli("runs", tmp_path, "--json").out)["runs"][0]["state"] == "unfinished"
    refused = cli("predict", folder, "x.png")
    assert refused.code == 2
    assert f"sightline train --resume {folder}" in refused.err
    refused = cli("train", "--resume", folder, "--epochs", "3")
    assert refused.code == 2
    assert "leave out the other flags" in refused.err
    answer = cli("train", "--resume", folder, "--json")
    assert answer.code == 0
    assert json.loads(answer.out)["n"] == json.loads((run / "report.json").read_text())["evaluation"]["n"]
    assert Classifier.load(folder).classes == Classifier.load(run).classes


def test_ctrl_c_while_decoding_leaves_no_partial_store(tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "data" / label / "0.png", compress_level=1)
        for i in range(1, 40):
            os.link(tmp_path / "data" / label / "0.png", tmp_path / "data" / label / f"{i}.png")
    cache = tmp_path / "cache"
    process = subprocess.Popen(
        [*SHELL, "check", str(tmp_path / "data")],
        env={**os.environ, "SIGHTLINE_CACHE": str(cache)},
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and all they start, ignore Ctrl-C: this one must not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    while not list(cache.glob("stores/*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert (process.returncode, err) == (130, "sightline: Interrupted.\n")
    assert [path.suffix for path in cache.glob("stores/*")] in ([".lock"], [])


# Verbs that examine


def test_check_prints_a_summary_and_writes_a_contact_sheet(cli, images, tmp_path):
    answer = cli("check", images, "--out", tmp_path / "new" / "sheet.png")
    assert answer.code == 0
    assert answer.out.startswith("12 images of 2 classes\n  3: 6\n  7: 6\n")
    assert "WARNING: 2 classes have fewer than 10 images" in answer.out
    with Image.open(tmp_path / "new" / "sheet.png") as picture:
        assert picture.format == "PNG"


def test_check_prints_json(cli, images):
    value = json.loads(cli("check", images, "--json").out)
    assert (value["images"], value["per_class"], value["unreadable"]) == (12, {"3": 6, "7": 6}, [])
    assert value["width"] == {"min": 8, "median": 8, "max": 8}
    assert {remark["level"] for remark in value["remarks"]} <= {"problem", "warning", "note"}


def test_evaluate_again_gives_the_same_numbers(cli, run):
    saved = json.loads((run / "report.json").read_text())["evaluation"]
    value = json.loads(cli("evaluate", run, "--json").out)
    assert value["run"] == str(run)
    assert {name: value[name] for name in ("n", "accuracy", "ece", "confusion")} == {
        name: saved[name] for name in ("n", "accuracy", "ece", "confusion")
    }
    assert "never seen in training" in cli("evaluate", run).out


def test_evaluate_on_other_images(cli, run, images):
    value = json.loads(cli("evaluate", run, images, "--json").out)
    answers = Classifier.load(run).predict(sorted(images.rglob("*.png")))
    right = [Path(answer.file).parent.name == answer.label for answer in answers]
    assert (value["n"], value["accuracy"]) == (12, pytest.approx(sum(right) / 12))
    assert f"Test on 12 images of '{images}'" in cli("evaluate", run, images).out


def test_a_label_pattern_is_kept_in_the_run(cli, images, tmp_path):
    """Names as the user has them: train, check and evaluate read labels by one pattern, those of other images too."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
        for file in images.glob("*/*.png"):
            more = folder.name.encode()  # other bytes: not the images it was trained on
            (folder / f"digit-{file.parent.name}-{file.name}").write_bytes(file.read_bytes() + more)
    pattern = ("--label-pattern", "digit-{label}-{number}.png")
    assert "digit-{label}" in cli("check", mine, *pattern).out
    trained = cli("train", mine, *pattern, "--epochs", "1", "--model", "lenet5", "--out", tmp_path / "r")
    assert trained.code == 0, trained.err
    assert 'label_pattern = "digit-{label}-{number}.png"' in (tmp_path / "r/recipe.toml").read_text()
    assert cli("evaluate", tmp_path / "r").code == 0
    found = json.loads(cli("evaluate", tmp_path / "r", other, "--json").out)
    assert found["n"] == 12
    assert json.loads(cli("evaluate", tmp_path / "r", images, "--json").out)["n"] == 12  # class folders
    table = other / "list.csv"
    table.write_text("path,label,digit\n" + "".join(f"{f.name},x,{f.name[6]}\n" for f in other.glob("*.png")))
    named = json.loads(cli("evaluate", tmp_path / "r", table, "--label-column", "digit", "--json").out)
    assert (named["n"], named["accuracy"]) == (12, found["accuracy"])
    table.unlink()
    run = tmp_path / "r"
    attacked = json.loads(cli("attack", run, other, "--by", "fgsm", "--no-checks", "--json").out)
    assert attacked["n"] == 12
    small = cli("compress", run, other, "--by", "int8", "--out", tmp_path / "small")
    assert small.code == 0, small.err
    taught = cli("learn", run, other, "--by", "lda", "--out", tmp_path / "taught")
    assert taught.code == 0, taught.err
    explained = json.loads(cli("explain", run, other, "--by", "saliency", "--json").out)
    assert len(explained["images"]) == 12
    mine.rename(tmp_path / "moved")
    assert cli("evaluate", run, tmp_path / "moved").code == 0


def test_an_interrupted_run_resumes_by_its_label_pattern_where_its_images_lie_now(
    cli, images, tmp_path, monkeypatch
):
    mine, run = tmp_path / "mine", tmp_path / "r"
    mine.mkdir()
    for file in images.glob("*/*.png"):
        (mine / f"digit-{file.parent.name}-{file.name}").write_bytes(file.read_bytes())
    words = ("--label-pattern", "digit-{label}-{number}.png", "--epochs", "2", "--model", "mlp", "--size", "8")
    with monkeypatch.context() as patched:
        patched.setattr(HistoryWriter, "after_epoch", lambda *_: signal.raise_signal(signal.SIGINT))
        assert cli("train", mine, *words, "--out", run).code == 130
    mine.rename(tmp_path / "moved")
    assert cli("train", "--resume", run).code == 2
    resumed = cli("train", "--resume", run, tmp_path / "moved", "--json")
    assert resumed.code == 0, resumed.err
    assert Classifier.load(run).classes == ("3", "7")


@pytest.mark.parametrize("pair", [("cat", "cat "), ("Cat", "cat"), ("1", "1.0"), ("part 1", "part 2")])
def test_train_warns_of_classes_that_are_one(cli, images, tmp_path, pair):
    pictures = sorted(images.glob("*/*.png"))
    for i, name in enumerate(pair):
        (tmp_path / "d" / name).mkdir(parents=True)
        for file in pictures[i::2]:
            (tmp_path / "d" / name / f"{file.parent.name}{file.name}").write_bytes(file.read_bytes())
    words = ("--model", "mlp", "--size", "8", "--epochs", "1", "--out", tmp_path / "r")
    trained = cli("train", tmp_path / "d", *words)
    said = " ".join((trained.out + trained.err).split())
    assert trained.code == 0, said
    sentence = "Classes differ in case" if pair[0] != "part 1" else "called like parts of a data set"
    assert sentence in said
    assert sentence in " ".join(cli("check", tmp_path / "d", "--size", "8").out.split())
    assert sentence in (tmp_path / "r/log.txt").read_text()


def test_max_megapixels_is_a_flag(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("SIGHTLINE_MAX_MEGAPIXELS", "")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("1", (1300, 1000), name == "a").save(tmp_path / f"{name}/1.png")
    refused = cli("check", tmp_path, "--size", "8", "--max-megapixels", "1")
    assert (refused.code, "--max-megapixels 2" in refused.err) == (2, True)
    assert "whole number from 1 to 4000" in cli("check", tmp_path, "--max-megapixels", "0").err
    assert cli("check", tmp_path, "--max-megapixels", "2", "--size", "8").code == 0


def test_evaluate_warns_about_training_images(cli, images, tmp_path):
    words = ("--model", "mlp", "--size", "8", "--epochs", "1", "--batch-size", "4", "--out", tmp_path / "r")
    cli("train", images, *words)
    assert "too optimistic" in cli("evaluate", tmp_path / "r", images).out


def test_report_renders_what_is_saved(cli, run):
    page = run / "report.html"
    page.unlink()
    assert cli("report", run).out == f"{page}\n"
    assert page.read_text().startswith("<!")
    assert json.loads(cli("report", run, "--json").out) == {"run": str(run), "report": str(page)}


# Verbs that use and list


def test_predict_names_files_folders_and_patterns_in_order(cli, run, images):
    answer = cli("predict", run, images / "7" / "2.png", images / "3", images / "*" / "0.png")
    names = [line.partition(": ")[0] for line in answer.out.splitlines()]
    expected = [images / "7" / "2.png", *(images / "3" / f"{i}.png" for i in range(6))]
    assert names == [*map(str, expected), str(images / "3/0.png"), str(images / "7/0.png")]
    assert answer.err == ""


@pytest.mark.parametrize("count", [1, 3, 12])
def test_shards_one_after_the_other_are_all_answers(cli, run, images, tmp_path, count):
    whole = cli("predict", run, images, "--format", "jsonl").out
    parts = [tmp_path / f"{number}.jsonl" for number in range(1, count + 1)]
    for number, part in enumerate(parts, 1):
        cli("predict", run, images, "--format", "jsonl", "--shard", f"{number}/{count}", "--out", part)
    wanted, found = (
        [json.loads(line) for line in text.splitlines()]
        for text in (whole, "".join(part.read_text() for part in parts))
    )
    assert [(one["file"], one["label"]) for one in found] == [(one["file"], one["label"]) for one in wanted]
    confidences = [one["confidence"] for one in wanted]
    assert [one["confidence"] for one in found] == pytest.approx(
        confidences, abs=1e-5
    )  # batches round differently
    parts[0].write_text("kept")
    again = cli("predict", run, images, "--format", "jsonl", "--shard", f"1/{count}", "--out", parts[0])
    assert "is done" in again.err
    assert parts[0].read_text() == "kept"


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "a/b", "-1/2", "13/13"])
def test_an_impossible_shard_is_refused(cli, run, images, shard):
    answer = cli("predict", run, images, f"--shard={shard}")
    assert answer.code == 2
    assert "--shard" in answer.err


def test_every_format_has_the_same_predictions(cli, run, images, tmp_path):
    words = ("predict", run, images, "--top", "2")
    lines = [json.loads(line) for line in cli(*words, "--format", "jsonl").out.splitlines()]
    table = list(csv.DictReader(io.StringIO(cli(*words, "--format", "csv").out)))
    value = json.loads(cli(*words, "--json").out)
    assert value == {"n": 12, "predictions": lines}
    assert [row["label"] for row in table] == [line["label"] for line in lines]
    assert list(table[0]) == ["file", "label", "confidence", "label_2", "confidence_2", "error"]
    assert [float(row["confidence_2"]) for row in table] == [line["top"][1]["confidence"] for line in lines]
    text = cli(*words).out.splitlines()
    assert all(
        f": {line['label']} {line['confidence']:.1%}" in said for line, said in zip(lines, text, strict=True)
    )
    assert cli(*words, "--format", "csv", "--out", tmp_path / "a" / "b.csv").out == ""
    assert list(csv.DictReader(io.StringIO((tmp_path / "a" / "b.csv").read_text()))) == table


def test_an_unreadable_file_is_a_row_with_its_error(cli, run, images, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    words = ("predict", run, tmp_path / "empty.png", tmp_path / "absent.png", images / "3" / "0.png")
    answer = cli(*words, "--json")
    empty, absent, good = json.loads(answer.out)["predictions"]
    assert answer.code == 0
    assert (empty["label"], empty["error"]) == (None, "the file is empty (zero bytes)")
    assert absent["error"] == "No such file or directory"
    assert good["error"] is None
    assert good["label"] in "0123456789"
    assert "could not be read" in cli(*words).out
    assert [bool(row["error"]) for row in csv.DictReader(io.StringIO(cli(*words, "--format", "csv").out))] == [
        1,
        1,
        0,
    ]


@pytest.mark.parametrize("words", [(), ("-",)])
def test_predict_takes_names_or_an_image_from_stdin(cli, run, images, monkeypatch, words):
    files = [str(images / "3" / "0.png"), str(images / "7" / "1.png")]
    stdin(monkeypatch, "\n".join([*files, ""]).encode())
    named = json.loads(cli("predict", run, *words, "--json").out)
    assert [row["file"] for row in named["predictions"]] == files
    stdin(monkeypatch, Path(files[1]).read_bytes())
    piped = json.loads(cli("predict", run, *words, "--json").out)
    assert piped["n"] == 1
    one, other = (row["predictions"][i]["confidence"] for row, i in ((piped, 0), (named, 1)))
    assert one == pytest.approx(other, rel=1e-5)


def test_a_bundle_predicts_like_its_run(cli, run, images, tmp_path):
    shutil.copytree(run / "classifier", tmp_path / "bundle")
    answers = [cli("predict", folder, images, "--format", "jsonl").out for folder in (run, tmp_path / "bundle")]
    assert answers[0] == answers[1] != ""


def test_a_closed_pipe_is_not_an_error(run, images):
    command = f'{" ".join(map(repr, SHELL[:1]))} -c "{SHELL[2]}" predict {run} {"{0} " * 50} | head -1'
    done = subprocess.run(
        command.format(images), shell=True, capture_output=True, text=True, check=True, timeout=60
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Error" not in done.stderr


def test_runs_lists_the_newest_first(cli, run, tmp_path):
    for age, name in enumerate(("new", "old")):
        shutil.copytree(run, tmp_path / name)
        os.utime(tmp_path / name / "recipe.toml", (1e9 - age, 1e9 - age))
    (tmp_path / "old" / "report.json").unlink()
    (tmp_path / "not-a-run").mkdir()
    rows = json.loads(cli("runs", tmp_path, "--json").out)["runs"]
    assert [(Path(row["run"]).name, row["state"]) for row in rows] == [("new", "tested"), ("old", "trained")]
    assert rows[0]["accuracy"] == json.loads((run / "report.json").read_text())["evaluation"]["accuracy"]
    assert [line.split()[0] for line in cli("runs", tmp_path).out.splitlines()] == [
        "run", str(tmp_path / "new"), str(tmp_path / "old"),
    ]  # fmt: skip
    assert "sightline demo" in cli("runs", tmp_path / "not-a-run").out


def test_list_names_every_family(cli):
    value = json.loads(cli("list", "--json").out)
    assert tuple(value) == FAMILIES
    assert all(rows and all(row["name"] for row in rows) for rows in value.values())
    assert {"mlp", "lenet5", "resnet20", "enhanced"} <= {row["name"] for row in value["models"]}


@pytest.mark.parametrize("family", FAMILIES)
def test_list_prints_a_line_for_each_member(cli, family):
    names = [row["name"] for row in json.loads(cli("list", family, "--json").out)[family]]
    assert [line.split()[0] for line in cli("list", family).out.splitlines()[2:] if line.strip()] == names


def test_the_demo_trains_tests_and_reports(cli, tmp_path, monkeypatch):
    """The whole default path, as a stranger runs it first, cut short after two epochs."""
    monkeypatch.setattr(defaults, "MAX_DEFAULT_EPOCHS", 2)
    answer = cli("demo", "--out", tmp_path / "demo", "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert value["n"] > 200
    assert value["accuracy"] > 0.3
    assert Path(value["report"]).is_file()
