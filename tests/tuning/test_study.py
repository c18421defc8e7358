"""Tuning from end to end on the digits: the leaderboard, the winner, and everything that may go wrong."""

import csv
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.cli.tune import NO_TUNE_FLAGS, recipe_and_space
from sightline.errors import Interrupted, OutputError, RecipeError, TrainingError
from sightline.evaluation.model_evaluation import evaluate
from sightline.training.recipe import Recipe
from sightline.training.run_folder import RunFolder
from sightline.tuning import Categorical, NumericRange, study, trial, tune
from sightline.tuning.space import parse_space
from sightline.tuning.study import TuningResult
from sightline.tuning.study_store import StudyStore
from sightline.tuning.trial import PruningHook

TINY = Recipe(model="mlp:hidden=(32,)", size=8, limit=300, epochs=2, batch_size=32)
OVER = ("lr=0.003..0.3:3", "model.dropout=0,0.3")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A grid of six, done."""
    return tune("digits", TINY, OVER, by="grid", out=tmp_path_factory.mktemp("tuning") / "t")


def essence(tuned):
    """What must not depend on how often a study was stopped."""
    names = ("trial", "state", "val_accuracy", "val_loss", "epochs_done", "round", "lr")
    return [tuple(row[name] for name in names) for row in sorted(tuned.rows, key=lambda row: row["trial"])]


def test_the_leaderboard_is_sorted_and_written(tuned):
    assert isinstance(tuned, TuningResult)
    assert len(tuned.rows) == 6
    keys = [(-row["val_accuracy"], row["val_loss"], row["trial"]) for row in tuned.rows]
    assert keys == sorted(keys)
    with (tuned.folder / "leaderboard.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert [int(row["trial"]) for row in written] == [row["trial"] for row in tuned.rows]
    assert [float(row["lr"]) for row in written] == [row["lr"] for row in tuned.rows]
    summary = json.loads((tuned.folder / "tuning.json").read_text())
    assert (summary["finished"], summary["pruned"], summary["failed"]) == (6, 0, 0)
    assert summary["best"] == tuned.best
    assert sum(summary["importance"].values()) == pytest.approx(1, abs=1e-3)


def test_plots_are_written(tuned):
    for name in ("history", "importance", "slices"):
        with Image.open(tuned.folder / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 5


def test_the_winner_repeats_the_best_trial_as_a_run(tuned):
    """The same recipe on the same images: the very same accuracy."""
    run = tuned.winner
    assert run.facts["val_accuracy"] == tuned.best["val_accuracy"]
    assert (run.recipe.lr, run.recipe.model) == (
        tuned.best["lr"],
        f"mlp:hidden=(32,):dropout={tuned.best['model.dropout']}",
    )
    assert RunFolder(tuned.folder / "winner").read_recipe() == run.recipe
    value = evaluate(run.classifier, run.splits.val).as_json()
    assert value["accuracy"] == pytest.approx(run.facts["val_accuracy"])
    assert not (tuned.folder / "winner" / "report.json").exists()


def test_checkpoints_of_trials_are_deleted(tuned):
    assert not list((tuned.folder / "trials").iterdir())
    assert {p.name for p in tuned.folder.iterdir()} == {
        *("history.png", "importance.png", "slices.png", "leaderboard.csv", "study.db"),
        *("trials", "tuning.json", "winner", "workers"),
    }


def test_repeating_a_finished_study_trains_nothing(tuned):
    before = (tuned.folder / "winner" / "training.json").stat().st_mtime_ns
    again = tune("digits", TINY, OVER, by="grid", out=tuned.folder)
    assert again.rows == tuned.rows
    assert (tuned.folder / "winner" / "training.json").stat().st_mtime_ns == before


def test_another_study_is_refused_in_the_same_folder(tuned, tmp_path):
    changes = {
        "range of lr": {"space": ("lr=0.003..0.3:4", OVER[1])},
        "range of momentum": {"space": (*OVER, "momentum=0.8,0.9")},
        "recipe's epochs": {"base": TINY.replace(epochs=3)},
        "--by": {"by": "random"},
        "recipe's seed": {"seed": 5},
    }
    for said, change in changes.items():
        asked = {"base": TINY, "space": OVER, "by": "grid"} | change
        with pytest.raises(RecipeError, match=said):
            tune("digits", out=tuned.folder, **asked)
    with pytest.raises(RecipeError, match="the images"):
        tune("shapes", TINY, OVER, by="grid", out=tuned.folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not a study"):
        tune("digits", TINY, OVER, out=tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trials": 0}, "--trials must be a whole number of at least 1, not 0"),
        ({"workers": 0}, "--workers must be a whole number of at least 1"),
        ({"zoom_rounds": -1}, "--zoom-rounds must be a whole number of at least 0"),
        ({"zoom_rounds": 1, "space": ("lr=0.1,0.2",)}, "only choices"),
        ({"budget": "soon"}, "budget is 'soon'"),
        ({"base": TINY.replace(epochs=0)}, "trains nothing"),
        ({"data": None}, "Name the images"),
        ({"space": ()}, "Name what to search"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_before_anything_runs(change, said, tmp_path):
    asked = {"data": "digits", "base": TINY, "space": OVER, "out": tmp_path / "t"} | change
    with pytest.raises(RecipeError, match=said):
        tune(**asked)
    assert not (tmp_path / "t").exists()


def test_a_failed_trial_is_recorded_with_its_reason_and_the_search_continues(tmp_path, monkeypatch):
    """One diverges, one asks for more memory than there is."""
    train_on = trial.train_on_splits

    def greedy(splits, recipe, *words, **named):
        if recipe.lr == 0.2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return train_on(splits, recipe, *words, **named)

    monkeypatch.setattr(trial, "train_on_splits", greedy)
    done = tune("digits", TINY, {"lr": Categorical((0.1, 0.2, 1e30))}, by="grid", out=tmp_path / "t")
    rows = {row["lr"]: row for row in done.rows}
    assert (done.best["lr"], done.best["rank"]) == (0.1, 1)
    assert [(rows[lr]["state"], rows[lr]["rank"]) for lr in (0.2, 1e30)] == [("failed", None)] * 2
    assert rows[0.2]["reason"].startswith("Memory ran out")
    assert "became" in rows[1e30]["reason"]


def test_a_trial_that_went_on_at_another_rate_failed(tmp_path, monkeypatch):
    train_on = trial.train_on_splits

    def diverging(splits, recipe, *words, **named):
        run = train_on(splits, recipe, *words, **named)
        said = "The loss became nan at step 7 (epoch 1). Training went on."
        return replace(run, facts={**run.facts, "recoveries": 1, "remarks": [said]}) if recipe.lr == 0.2 else run

    monkeypatch.setattr(trial, "train_on_splits", diverging)
    done = tune("digits", TINY, {"lr": Categorical((0.1, 0.2))}, by="grid", out=tmp_path / "t")
    rows = {row["lr"]: row for row in done.rows}
    assert (done.best["lr"], rows[0.2]["state"]) == (0.1, "failed")
    assert rows[0.2]["reason"] == "The loss became nan at step 7 (epoch 1)."


def test_no_values_are_trained_twice(tmp_path):
    """The board keeps what was asked for beside what was trained, and three points need three trainings."""
    done = tune("digits", TINY, ["epochs=1..3"], by="random", trials=8, out=tmp_path / "t")
    trained = {row["trial"]: row for row in done.rows if not row["reason"]}
    assert sorted(row["epochs"] for row in trained.values()) == [1, 2, 3]
    assert len(done.rows) == 8
    for row in done.rows:
        assert row["epochs_done"] == row["epochs"]
        if row["reason"]:
            again = trained[int(row["reason"].split()[6].rstrip(","))]
            assert (row["seconds"], row["epochs"]) == (0.0, again["epochs"])
            assert (row["val_accuracy"], row["val_loss"]) == (again["val_accuracy"], again["val_loss"])


def test_the_error_gives_the_reason_if_all_trials_fail(tmp_path):
    with pytest.raises(TrainingError, match=r"None of 2 trials could be trained.*became"):
        tune("digits", TINY, ["lr=1e30,1e31"], by="grid", out=tmp_path / "t")


def test_zooming_with_searched_image_sizes_and_automatic_epochs(tmp_path):
    """Sizes are prepared again; what is left open is the same for all."""
    space = {"lr": NumericRange(0.01, 0.5), "size": Categorical((8, 12))}
    base = TINY.replace(size=None, epochs=None, budget="0.2s", limit=100)
    done = tune("digits", base, space, trials=3, zoom_rounds=1, by="random", out=tmp_path / "t")
    assert [row["round"] for row in sorted(done.rows, key=lambda r: r["trial"])] == [0, 0, 0, 1, 1, 1]
    assert {row["size"] for row in done.rows} == {8, 12}
    assert {row["epochs_done"] for row in done.rows} == {done.winner.recipe.epochs}
    assert done.winner.classifier.geometry.size == (done.best["size"],) * 2


def test_pruned_trials_are_listed_and_do_not_win(tmp_path):
    base = TINY.replace(epochs=9)
    done = tune("digits", base, ["lr=1e-6..0.3"], by="hyperband:startup=2", trials=6, out=tmp_path / "t")
    states = [row["state"] for row in done.rows]
    assert set(states) == {"finished", "pruned"}
    assert states == sorted(states)
    assert all(row["epochs_done"] < 9 for row in done.rows if row["state"] == "pruned")


# Processes


SCRIPT = """
import sys
from sightline.training.recipe import Recipe
from sightline.tuning import tune
from pathlib import Path
base = Recipe.from_toml(Path(sys.argv[1]))
tune("digits", base, ["lr=0.003..0.3"], trials=5, by="random", out=sys.argv[2])
"""


def finished(folder):
    """Finished trials, asked of the database itself."""
    if not (folder / "study.db").exists():
        return 0
    database = sqlite3.connect(folder / "study.db", timeout=30)
    try:
        return database.execute("SELECT count(*) FROM trials WHERE state = 'COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        database.close()


def begun(tmp_path, base):
    (tmp_path / "recipe.toml").write_text(base.to_toml())
    words = [sys.executable, "-c", SCRIPT, tmp_path / "recipe.toml", tmp_path / "t"]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def waited(process, folder, trials):
    until = time.monotonic() + 300  # only against hanging: a busy machine takes more than one minute
    while finished(folder) < trials:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.01)


ASKED = {"space": ["lr=0.003..0.3"], "trials": 5, "by": "random"}
LONGER = TINY.replace(epochs=8)  # long enough to be killed in


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Five trials that nothing disturbed."""
    return tune("digits", LONGER, out=tmp_path_factory.mktemp("whole") / "t", **ASKED)


def test_a_killed_study_continues_to_the_same_trials(whole, tmp_path, monkeypatch):
    """Random values depend on the index of the trial alone. None is trained twice."""
    monkeypatch.setattr(study, "HEARTBEAT_SECONDS", 1)
    process = begun(tmp_path, LONGER)
    waited(process, tmp_path / "t", 2)
    process.kill()
    process.communicate(timeout=60)
    assert finished(tmp_path / "t") < 5
    done = tune("digits", LONGER, out=tmp_path / "t", **ASKED)
    assert essence(done) == essence(whole)
    assert finished(tmp_path / "t") == 5


def test_a_trial_stopped_by_ctrl_c_is_continued(whole, tmp_path, monkeypatch):
    after_epoch, count = PruningHook.after_epoch, itertools.count(1)

    def pressed(self, state):
        if next(count) == 11:
            signal.raise_signal(signal.SIGINT)
        after_epoch(self, state)

    monkeypatch.setattr(PruningHook, "after_epoch", pressed)
    with pytest.raises(Interrupted, match=r"Stopped in trial 1\. .* Continue with the same command"):
        tune("digits", LONGER, out=tmp_path / "t", **ASKED)
    assert (tmp_path / "t" / "trials" / "0001" / "last.ckpt").is_file()
    assert essence(tune("digits", LONGER, out=tmp_path / "t", **ASKED)) == essence(whole)
    assert next(count) - 1 == 5 * 8, "each epoch of each trial is trained once"


def test_workers_finish_the_trials_of_a_dead_worker(tmp_path, monkeypatch, capsys):
    """The first is killed after a trial: the others try each of the rest once, its unfinished one again."""
    spawn, processes = trial._spawn_worker, []
    monkeypatch.setattr(study, "HEARTBEAT_SECONDS", 1)

    def doomed(payload):
        processes.append(spawn(payload))
        if len(processes) == 2:
            waited(processes[0], tmp_path / "t", 1)
            processes[0].kill()
        return processes[-1]

    monkeypatch.setattr(trial, "_spawn_worker", doomed)
    done = tune("digits", LONGER, out=tmp_path / "t", workers=2, **ASKED)
    assert sorted(row["trial"] for row in done.rows) == list(range(5))
    assert [row["state"] for row in done.rows] == ["finished"] * 5
    said = capsys.readouterr().err
    assert "1 of 2 workers died without a message" in said
    assert done.winner.facts["val_accuracy"] == done.best["val_accuracy"]


# From a shell


def test_the_tune_verb_trains_tests_and_prints(cli, tmp_path):
    words = ("tune", "digits", "--model", "mlp", "--size", "8", "--limit", "300", "--epochs", "1")
    words += ("--out", tmp_path / "a study")
    words += ("--search-space", "lr=0.05,0.1", "weight_decay=0,1e-3", "--by", "grid")
    answer = cli(*words, "--json")
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert len(value["trials"]) == 4
    assert value["best"] == value["trials"][0]
    assert Path(value["winner"]["report"]).is_file()
    assert 0 <= value["winner"]["accuracy"] <= 1
    before = (tmp_path / "a study" / "winner" / "report.json").stat().st_mtime_ns
    told = cli(*words)
    assert told.code == 0
    assert "Continuing the study" in told.err
    assert "validation accuracy" in told.out
    assert "Test on" in told.out
    assert f"sightline predict '{tmp_path / 'a study' / 'winner'}' IMAGE" in told.out
    assert (tmp_path / "a study" / "winner" / "report.json").stat().st_mtime_ns == before


def test_given_ranges_replace_those_of_a_preset():
    flags = replace(NO_TUNE_FLAGS, size=8, optimizer="adamw")
    base, words, by = recipe_and_space(flags, None, "table3", ("model.depth=3,4", "batch-size=16,32"))
    assert base == Recipe(model="plain-cnn", optimizer="adamw", size=8)
    space = parse_space(words, base)
    assert {name: space.ranges[name].grid_values() for name in ("model.depth", "batch_size", "epochs")} == {
        "model.depth": (3, 4),
        "batch_size": (16, 32),
        "epochs": (10, 20, 30),
    }
    assert (len(space.grid_points()), by) == (2 * 2 * 3 * 3 * 3, "grid")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--search-space", "lrr=1..2"), "no field 'lrr' to search"),
        (("--search-space", "lr=2..1"), "is reversed"),
        ((), "Name what to search"),
        (("--search-space", "lr=0.1,0.2", "--by", "gird"), "Did you mean 'grid'"),
        (("--search-space", "lr=0.1,0.2", "--storage", "nosuch://x/y"), "that kind of database is unknown"),
        (("--search-space", "lr=0.1,0.2", "--trials", "many"), "many"),
        (("--preset", "tabel3"), "Did you mean 'table3'"),
        (("--search-space", "epochs=0..3"), "trains nothing"),
        (("--search-space", "lr=0.1,0.2", "--workers", "1000000"), "--workers is 1000000: use at most"),
    ],
)
def test_errors_of_the_tune_verb_are_one_sentence(words, said, cli, tmp_path):
    answer = cli("tune", "digits", "--limit", "100", "--model", "mlp", "--out", tmp_path / "t", *words)
    assert answer.code == 2
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_processes_that_create_a_study_at_once_share_it(tmp_path):
    import optuna.storages._rdb.storage  # noqa: F401 imported before the processes part

    children = []
    for _ in range(3):
        if not (child := os.fork()):
            try:
                StudyStore(f"sqlite:///{tmp_path}/study.sqlite", "study", tmp_path)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert StudyStore(f"sqlite:///{tmp_path}/study.sqlite", "study", tmp_path).trials() == []
