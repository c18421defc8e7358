"""Spaces, searches and the journal: what is proposed, to whom, and that no death of a process loses any of it."""

import itertools
import math
import re
import shutil
import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.exceptions import StorageInternalError

from sightline.errors import ChoiceError, OutputError, RecipeError
from sightline.models import NETWORKS
from sightline.training.recipe import Recipe
from sightline.tuning import storage
from sightline.tuning.config import StudyConfig
from sightline.tuning.leaderboard import field_importance, leaderboard_rows
from sightline.tuning.search import SEARCHES, parse_search, sample_values
from sightline.tuning.space import SPACES, Categorical, NumericRange, SearchSpace, parse_space
from sightline.tuning.study_store import MAX_TRIAL_RESTARTS, StudyStore, check_same_plan, training_seconds

BASE = Recipe(model="mlp", data="digits")

# Ranges


def test_a_wide_range_is_searched_in_logarithms_by_itself():
    assert NumericRange(1e-4, 1e-1).log
    assert NumericRange(1, 10).log
    assert not NumericRange(1.0, 9.9).log
    assert not NumericRange(0.0, 0.5).log
    assert not NumericRange(1e-4, 1e-1, log=False).log


@pytest.mark.parametrize(
    ("range_", "oracle"),
    [
        (NumericRange(1e-4, 1e-1, points=4), np.geomspace(1e-4, 1e-1, 4)),
        (NumericRange(0.0, 0.5, points=6), np.linspace(0, 0.5, 6)),
        (NumericRange(0.1, 0.9), np.linspace(0.1, 0.9, 5)),
        (NumericRange(3, 7), [3, 4, 5, 6, 7]),
        (NumericRange(16, 256), [16, 32, 64, 128, 256]),
        (Categorical((32, 64)), [32, 64]),
    ],
    ids=str,
)
def test_a_grid_is_evenly_spaced_on_the_searched_scale(range_, oracle):
    assert range_.grid() == pytest.approx(oracle)
    assert all(type(value) is type(range_.examples[0]) for value in range_.grid())


NUMBERS = st.one_of(
    st.tuples(st.integers(0, 500), st.integers(1, 500)), st.tuples(st.floats(0, 10), st.floats(0.01, 10))
)


@given(NUMBERS, st.floats(0, 1), st.booleans())
def test_narrowing_halves_the_width_round_the_best(ends, share, log):
    low, width = ends
    old = NumericRange(low, low + width, log=log and low > 0)
    scale = math.log if old.log else float
    back = math.exp if old.log else float
    place = scale(old.low) + share * (scale(old.high) - scale(old.low))
    best = min(max(round(back(place)) if old.is_integer else back(place), old.low), old.high)
    new = old.narrow_around(best)
    assert old.low <= new.low <= best <= new.high <= old.high
    assert (new.log, new.is_integer) == (old.log, old.is_integer)
    reach = (scale(old.high) - scale(old.low)) / 4
    for end, outer in ((new.low, old.low), (new.high, old.high)):
        distance = abs(scale(best) - scale(end))
        if old.is_integer:
            assert abs(back(scale(best) + math.copysign(reach, end - best)) - end) < 1 + 1e-6 * end or end == outer
        else:
            assert distance == pytest.approx(reach, rel=1e-4, abs=1e-6) or end == outer


def test_narrowing_by_hand():
    narrowed = NumericRange(1e-4, 1e-1).narrow_around(1e-2)
    assert (narrowed.low, narrowed.high) == pytest.approx((10**-2.75, 10**-1.25))
    assert NumericRange(0.0, 1.0).narrow_around(0.9) == NumericRange(0.65, 1.0, log=False)
    assert NumericRange(10, 20).narrow_around(15) == NumericRange(12, 18)
    assert Categorical((1, 2)).narrow_around(1) == Categorical((1, 2))


# Words


def test_words_become_ranges_of_the_fields_type():
    words = ["lr=1e-4..1e-1", "batch_size=16..64", "weight-decay=0..1:lin", "momentum=0,0.9"]
    words += ["mirrored=true,false"]
    words += ["model.dropout=0..0.5", "loss=cross-entropy,focal:gamma=2", "augment=none,shift:1 rotate:5"]
    space = parse_space(words, BASE)
    assert space.ranges["lr"] == NumericRange(1e-4, 1e-1, log=True)
    assert space.ranges["batch_size"] == NumericRange(16, 64, log=False)
    assert space.ranges["weight_decay"] == NumericRange(0.0, 1.0, log=False)
    assert space.ranges["momentum"] == Categorical((0.0, 0.9))
    assert space.ranges["mirrored"] == Categorical((True, False))
    assert space.ranges["model.dropout"] == NumericRange(0, 0.5)
    assert space.ranges["loss"] == Categorical(("cross-entropy", "focal:gamma=2"))
    assert space.ranges["augment"] == Categorical(("none", "shift:1 rotate:5"))
    assert parse_space(space.to_words(), BASE) == space


def test_brackets_keep_their_commas():
    space = parse_space(["model=mlp:hidden=(64,32),mlp:hidden=(16,),lenet5"], Recipe(size=28))
    assert space.ranges["model"] == Categorical(("mlp:hidden=(64,32)", "mlp:hidden=(16,)", "lenet5"))


def test_values_take_their_places_in_the_recipe():
    base = Recipe(model="enhanced:dropout=0.3:residual=False")
    space = parse_space(["lr=0.01..0.05", "model.dropout=0.1..0.5", "augment=none,flip shift:2"], base)
    made = space.apply_to(base, {"lr": 0.02, "model.dropout": 0.25, "augment": "flip shift:2"})
    assert made == base.replace(lr=0.02, model="enhanced:residual=False:dropout=0.25", augment=("flip", "shift:2"))


BAD = {
    "lr": "does not say what to search",
    "lr=": "leaves nothing to search",
    "lr=0.1": "leaves nothing to search",
    "lr=0.1..0.1": "is empty",
    "lr=0.1..0.01": "is reversed",
    "lr=0..1:log": "above 0",
    "lr=1e-3..1e-1:often": "log, lin or a number of points, not 'often'",
    "lr=1e-3..1e-1:1": "2 points or more",
    "lr=a..b": "ends of a range are numbers, not 'a' and 'b'",
    "lr=nan..1": "numbers, not 'nan' and '1'",
    "lr=0.1..": "numbers, not '0.1' and ''",
    "lr=fast,slow": "lr is 'fast': it must be a number",
    "lr=-1..1": "lr is -1.0: it must be a number above 0",
    "batch_size=0.5..64": "batch_size is 0.5: it must be a whole number",
    "batch_size=32,many": "batch_size is 'many'",
    "batch_size=32,32": "named twice",
    "mirrored=1..2": "true or false",
    "model=1..3": "model is 1: it must be a name",
    "model=lenet5,resnet21": "no model called 'resnet21'",
    "optimizer=sgd,adma": "Did you mean 'adam'",
    "learning_rate=0.1..1": "no field 'learning_rate' to search",
    "batchsize=1..2": "Did you mean 'batch_size'",
    "val=0.1..0.3": "'val' cannot be searched: it decides on which images",
    "seed=1,2": "'seed' cannot be searched",
    "budget=1m,2m": "'budget' cannot be searched: it is the time",
    "lr.low=1..2": "takes no arguments",
    "model.=1..2": "cannot be searched",
    "model.widht=1..2": "no argument 'widht'",
    "model.dropout=0.5..1.5": "dropout",
    "schedule.gamma=1..2": "gamma",
}


@pytest.mark.parametrize("word", BAD)
def test_a_space_that_cannot_be_is_one_sentence(word):
    with pytest.raises((RecipeError, ChoiceError), match=BAD[word]):
        parse_space([word], BASE)


def test_a_field_is_searched_once_and_something_must_be():
    with pytest.raises(RecipeError, match="searched twice"):
        parse_space(["lr=0.1,0.2", "lr=0.3,0.4"], BASE)
    with pytest.raises(RecipeError, match="Say what to search"):
        parse_space([], BASE)
    with pytest.raises(RecipeError, match="Say whose argument 'depth' is: add --model"):
        parse_space(["model.depth=3..5"], Recipe())
    with pytest.raises(RecipeError, match="not a range"):
        parse_space({"lr": 0.1}, BASE)


def test_table3_is_the_papers_table():
    preset = SPACES["table3"]
    space = parse_space(preset.over, preset.recipe)
    points = space.grid_points()
    assert len(points) == 3**5
    best = {"lr": 0.001, "batch_size": 64, "epochs": 20, "model.depth": 10, "model.kernel": 3}
    assert points.count(best) == 1
    assert space.apply_to(preset.recipe, best).model == "plain-cnn:depth=10:kernel=3"
    assert preset.recipe.model in NETWORKS


# Searches

SPACE = parse_space(["lr=1e-4..1e-1", "batch_size=4..64", "momentum=0.5..0.95:3", "optimizer=sgd,adamw"], BASE)
GRID = parse_space(["lr=1e-3..1e-1:2", "batch_size=8..9", "optimizer=sgd,adamw"], BASE)


def job_of(folder, by="random", space=SPACE, trials=8, **other):
    asked = {"refine": 0, "budget": None, "epochs": 2, "device": "cpu"} | other
    url = storage.database_url(None, folder)
    return StudyConfig(
        folder=folder, url=url, name="s", base=BASE, space=space, search=parse_search(by), trials=trials, **asked
    )


@pytest.fixture(scope="module", autouse=True)
def blank(tmp_path_factory):
    """A database with its tables, to be copied: making them takes longer than most tests."""
    folder = tmp_path_factory.mktemp("blank")
    StudyStore(storage.database_url(None, folder), "s", folder).storage.remove_session()
    BLANK.append(folder / "study.db")


BLANK = []


def opened(job):
    if job.url == storage.database_url(None, job.folder) and not (job.folder / "study.db").exists():
        job.folder.mkdir(exist_ok=True)
        shutil.copy(BLANK[0], job.folder / "study.db")
    journal = StudyStore(job.url, job.name, job.folder)
    if not journal.plan():
        journal.save_plan({"space": job.space.words()})
    return journal


def quality(values):
    """Best at lr = 0.01, batches of 16; between 0 and 1."""
    return 1 / (1 + (math.log10(values["lr"]) + 2) ** 2 + (math.log2(values["batch_size"]) - 4) ** 2)


WORDS = dict(zip(SEARCHES, SEARCHES, strict=True)) | {
    "tpe": "tpe:startup=4",
    "hyperband": "hyperband:startup=4",
    "median": "median:startup=4:after=2",
}
"""Every search, made to begin what it does after few trials."""


def carried_out(job, journal=None, most=10**6):
    """Work on a study, a formula in the place of training; the trials' values in order."""
    journal = journal or opened(job)
    done = []
    with journal.at_work():
        while len(done) < most and (trial := journal.claim(job)) is not None:
            done.append(dict(trial.params))
            pruned = False
            for epoch in range(1, job.epochs + 1):
                pruned = journal.report(job, trial, quality(trial.params) * epoch / job.epochs, epoch, known=False)
                if pruned and epoch < job.epochs:
                    break
            pruned = pruned and epoch < job.epochs
            journal.complete_trial(trial.number, quality(trial.params), {"val_loss": 1.0}, pruned=pruned)
    return done


def contains(range_, value):
    if isinstance(range_, Categorical):
        return value in range_.values
    return range_.low <= value <= range_.high and isinstance(value, int) == range_.whole


@pytest.mark.parametrize("by", SEARCHES)
def test_every_search_proposes_what_is_in_the_space(by, tmp_path):
    job = job_of(tmp_path, WORDS[by], GRID if by == "grid" else SPACE, trials=7)
    for values in carried_out(job):
        assert list(values) == list(job.space.ranges)
        assert all(contains(each, values[name]) for name, each in job.space.ranges.items())


@pytest.mark.parametrize("by", SEARCHES)
def test_a_stopped_search_proposes_what_it_would_have(by, tmp_path):
    """Exactly, and each trial once; the seed alone decides."""
    job = job_of(tmp_path / "whole", WORDS[by], GRID if by == "grid" else SPACE, trials=7)
    whole = carried_out(job)
    parts = job_of(tmp_path / "parts", WORDS[by], job.space, trials=7)
    pieces = carried_out(parts, most=5)
    dying = opened(parts)
    with dying.at_work():
        interrupted = dying.claim(parts)
    pieces += carried_out(parts)
    assert pieces == whole
    assert pieces[5] == interrupted.params
    other = job_of(tmp_path / "other", WORDS[by], job.space, trials=7)
    assert carried_out(replace(other, base=BASE.replace(seed=1)), most=2) != whole[:2]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_grid_is_every_combination_once_then_over(workers, tmp_path):
    job = job_of(tmp_path, "grid", GRID, trials=1000)
    journals = [opened(job) for _ in range(workers)]
    values = []
    for journal in itertools.cycle(journals):
        done = carried_out(job, journal, most=1)
        values += done
        if not done:
            break
    named = {name: each.grid_values() for name, each in GRID.ranges.items()}
    wanted = [dict(zip(named, point, strict=True)) for point in itertools.product(*named.values())]
    assert sorted(values, key=str) == sorted(wanted, key=str)
    assert len(wanted) == 8


def test_tpe_learns_where_it_is_good():
    def later(by):
        study, values = optuna.create_study(direction="maximize"), []
        for _ in range(40):
            trial = study.ask()
            sample_values(trial, SPACE, parse_search(by), 0)
            study.tell(trial, quality(trial.params))
            values.append(quality(trial.params))
        return np.mean(values[20:])

    assert later("tpe") > 1.5 * later("random")


@pytest.mark.parametrize("by", ["hyperband", "median"])
def test_pruning_stops_the_poor_and_keeps_the_best(by, tmp_path):
    job = job_of(tmp_path, WORDS[by], trials=10, epochs=4)
    journal = opened(job)
    values = carried_out(job, journal)
    trials = journal.trials()
    pruned = [t for t in trials if t.state.name == "PRUNED"]
    assert 2 <= len(pruned) < 10
    assert all(len(t.intermediate_values) < job.max_epochs for t in pruned)
    assert journal.best().params == max(values, key=quality)


def test_unknown_searches_and_arguments():
    with pytest.raises(ChoiceError, match=r"no search called 'tpee'\. Did you mean 'tpe'"):
        parse_search("tpee")
    for word in ("tpe:startup=0", "hyperband:eta=1", "median:least=0", "grid:5"):
        with pytest.raises(ChoiceError, match=r"cannot be made: (?!.*__init__)"):
            parse_search(word)
    with pytest.raises(ChoiceError, match=r"search 'tpe' has no argument 'start'\. Did you mean 'startup'\?"):
        parse_search("tpe:start=5")
    with pytest.raises(ChoiceError, match=r"search 'grid' has no argument 'x'\. It takes none\."):
        parse_search("grid:x=5")


def test_refining_narrows_round_the_best_and_goes_on(tmp_path):
    job = job_of(tmp_path, "random", trials=3, refine=2)
    journal = opened(job)
    values = carried_out(job, journal)
    rounds = journal.rounds(SPACE)
    assert [start for start, _ in rounds] == [0, 3, 6]
    assert len(values) == 9
    for (start, space), before in zip(rounds[1:], [s for _, s in rounds], strict=False):
        best = max(values[:start], key=quality)
        assert space == before.narrow_around(best)
        assert all(contains(space.ranges[n], v[n]) for v in values[start : start + 3] for n in v)


def test_a_refined_grid_tries_nothing_twice(tmp_path):
    job = job_of(tmp_path, "grid", GRID, trials=1000, refine=1)
    values = carried_out(job)
    assert len({str(sorted(each.items())) for each in values}) == len(values)
    assert len(values) > 8


def test_more_trials_may_be_asked_for_later(tmp_path):
    job = job_of(tmp_path, trials=3)
    assert len(carried_out(job)) == 3
    assert len(carried_out(job)) == 0
    assert len(carried_out(replace(job, trials=5))) == 2


# Whose trial it is


def test_two_processes_never_have_the_same_trial(tmp_path):
    job = job_of(tmp_path, trials=4)
    one, two = opened(job), opened(job)
    with one.at_work(), two.at_work():
        numbers = [journal.claim(job).number for journal in (one, two, one, two)]
        assert numbers == [0, 1, 2, 3]
        assert one.claim(job) is None


def test_the_trial_of_a_dead_process_goes_on_and_that_of_a_living_one_does_not(tmp_path):
    job = job_of(tmp_path, trials=2)
    dead, living, third = opened(job), opened(job), opened(job)
    with dead.at_work():
        lost = dead.claim(job)
    with living.at_work(), third.at_work():
        assert living.claim(job).number == lost.number
        assert third.claim(job).number == 1
        assert third.claim(job) is None
    assert [t.state.name for t in third.trials()] == ["RUNNING", "RUNNING"]


def test_a_silent_process_of_another_machine_is_dead_after_a_while(tmp_path, monkeypatch):
    job = job_of(tmp_path, trials=1)
    far, near = opened(job), opened(job)
    with monkeypatch.context() as patch:
        patch.setattr("platform.node", lambda: "far")
        far.claim(job)
    assert near.claim(job) is None
    monkeypatch.setattr("time.time", lambda: datetime.now().timestamp() + 301)
    assert near.claim(job).number == 0


def test_a_trial_that_kills_every_process_is_given_up(tmp_path):
    job = job_of(tmp_path, trials=1)
    for _ in range(MAX_TRIAL_RESTARTS):
        journal = opened(job)
        with journal.at_work():
            assert journal.claim(job).number == 0
    journal = opened(job)
    assert journal.claim(job) is None
    (row,) = leaderboard_rows(journal.trials(), journal.rounds(SPACE))
    assert (
        row["state"],
        row["reason"].startswith(f"Its process ended {MAX_TRIAL_RESTARTS} times without getting further"),
    ) == (
        "failed",
        True,
    )


def test_deaths_with_progress_between_them_do_not_count(tmp_path):
    job = job_of(tmp_path, trials=1)
    for epoch in range(1, MAX_TRIAL_RESTARTS + 2):
        journal = opened(job)
        with journal.at_work():
            journal.report(job, journal.claim(job), 0.5, epoch, known=False)
    assert opened(job).claim(job).number == 0


# Time


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=8))
def test_time_spent_counts_what_is_done_at_once_once(spans):
    begun = datetime(2026, 1, 1)
    state = SimpleNamespace(name="COMPLETE")
    trials = [
        SimpleNamespace(
            state=state,
            datetime_start=begun + timedelta(seconds=start),
            datetime_complete=begun + timedelta(seconds=start + length),
        )
        for start, length in spans
    ]
    oracle = len({second for start, length in spans for second in range(start, start + length)})
    assert training_seconds(trials, begun) == oracle


def test_no_trial_is_begun_that_would_end_too_late(tmp_path):
    job = job_of(tmp_path, trials=50)
    assert len(carried_out(replace(job, budget=3600.0), most=3)) == 3
    assert carried_out(replace(job, budget=1e-6)) == []


# Databases


def test_a_locked_database_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SQLITE_TIMEOUT_SECONDS", 0.1)
    job = job_of(tmp_path)
    journal = opened(job)
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputError, match=r"study\.db' cannot be used: another program keeps it locked"):
        journal.claim(job)
    with pytest.raises(OutputError, match="keeps it locked"):
        opened(job)
    other.rollback()
    assert journal.claim(job).number == 0
    other.close()


def test_a_read_only_database_is_a_sentence(tmp_path):
    job = job_of(tmp_path)
    opened(job)
    url = f"sqlite:///file:{tmp_path / 'study.db'}?mode=ro&uri=true"
    with pytest.raises(OutputError, match="read-only: change its permissions"):
        StudyStore(url, "s", tmp_path).claim(replace(job, url=url))


@pytest.mark.parametrize("version", ["v0.9.0.a", "v99.0.0.a"])
def test_a_database_of_another_version_is_a_sentence(version, tmp_path):
    opened(job_of(tmp_path))
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
    database.close()
    with pytest.raises(OutputError, match="another version of Optuna made it"):
        opened(job_of(tmp_path))


def test_what_is_no_database_is_a_sentence(tmp_path):
    (tmp_path / "study.db").write_text("notes" * 1000)
    with pytest.raises(OutputError, match="not a database"):
        opened(job_of(tmp_path))
    for url, said in {
        f"sqlite:///{tmp_path}/none/x.db": "cannot be opened",
        "nosuch://host/x": "nobody knows that kind",
        "postgresql+nosuch://host/x": "nobody knows that kind",
        "sqlite://:bad:address": "no address of a database",
    }.items():
        with pytest.raises(OutputError, match=said):
            StudyStore(url, "s", tmp_path)


def test_a_folder_is_no_storage(tmp_path):
    with pytest.raises(OutputError, match=r"is the folder .* name a file in it"):
        storage.database_url(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("connection failed: port 5432 failed: Connection refused", "no server answers there: start it"),
        ('failed to resolve host "nowhere": Name or service not known', "nobody knows its host"),
        ('FATAL: password authentication failed for user "me"', "refuses that user or password"),
        ('FATAL: database "studies" does not exist', "no such database or user: create it"),
        ("Something new.", "it says 'Something new.': correct the address, or choose another"),
    ],
)
def test_what_a_server_complains_of_has_a_remedy(told, said):
    with (
        pytest.raises(OutputError, match=re.escape(said)),
        storage.explain_database_errors("postgresql://me@host/studies"),
    ):
        raise StorageInternalError(told)


def test_a_password_is_not_shown():
    assert storage.redact_url("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"


def test_a_study_of_another_program_is_not_touched(tmp_path):
    job = job_of(tmp_path)
    study = optuna.create_study(storage=job.url, study_name="s")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(OutputError, match="that another program made"):
        opened(job)


def test_another_study_does_not_go_on_and_all_that_differs_is_named(tmp_path):
    plan = {"space": {"lr": "1..2:lin"}, "by": "Grid", "recipe": {"seed": 0, "model": "mlp"}, "data": "a"}
    check_same_plan(plan, plan, tmp_path)
    other = {"space": {"momentum": "0.1,0.2"}, "by": "TPE", "recipe": {"seed": 1, "epochs": 2}, "data": "b"}
    with pytest.raises(RecipeError) as error:
        check_same_plan(plan, other, tmp_path)
    for words in (
        "the range of lr (not given before, 1..2:lin now)",
        "the range of momentum (0.1,0.2 before, not given now)",
        "the recipe's seed (1 before, 0 now)",
        "the recipe's model (not given before, mlp now)",
        "the recipe's epochs (2 before, not given now)",
        "--by (TPE before, Grid now)",
        "the images",
        "choose another --out",
    ):
        assert words in str(error.value)


# Results


def test_importance_finds_the_field_that_matters():
    generator = np.random.default_rng(0)
    space = SearchSpace(
        {"lr": NumericRange(1e-4, 1e-1), "clip": NumericRange(0.0, 1.0), "momentum": NumericRange(0.0, 0.9)}
    )
    rows = [
        {
            "state": "finished",
            "lr": 10 ** generator.uniform(-4, -1),
            "clip": generator.uniform(),
            "momentum": generator.uniform(0, 0.9),
        }
        for _ in range(40)
    ]
    for row in rows:
        row["val_accuracy"] = 0.9 - 0.1 * (math.log10(row["lr"]) + 2) ** 2 + 0.02 * row["clip"]
    found = field_importance(rows, space)
    assert next(iter(found)) == "lr"
    assert found["lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert field_importance(rows[:3], space) is None
    assert field_importance([row | {"val_accuracy": 0.5} for row in rows], space) is None
