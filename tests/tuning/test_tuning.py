"""Search spaces, methods and the study database: what is proposed, to whom, and that no crash loses a trial."""

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
from sightline.tuning import study_store
from sightline.tuning.leaderboard import field_importance, leaderboard_rows, training_seconds
from sightline.tuning.search import SEARCHES, parse_search, sample_values, search_word
from sightline.tuning.space import SPACES, Categorical, NumericRange, SearchSpace, parse_space
from sightline.tuning.study import check_same_plan
from sightline.tuning.study_store import MAX_ATTEMPTS, StudyConfig, StudyStore, upgrade_plan

BASE = Recipe(model="mlp", data="digits")

# Ranges


def test_a_wide_range_uses_a_log_scale_by_default():
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
def test_grid_values_are_evenly_spaced_on_the_scale_of_the_search(range_, oracle):
    assert range_.grid_values() == pytest.approx(oracle)
    assert all(type(value) is type(range_.boundary_values[0]) for value in range_.grid_values())


NUMBERS = st.one_of(
    st.tuples(st.integers(0, 500), st.integers(1, 500)), st.tuples(st.floats(0, 10), st.floats(0.01, 10))
)


@given(NUMBERS, st.floats(0, 1), st.booleans())
def test_narrowing_halves_the_width_around_the_best(ends, share, log):
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
    assert space.ranges["flip_tta"] == Categorical((True, False))
    assert space.ranges["model.dropout"] == NumericRange(0, 0.5)
    assert space.ranges["loss"] == Categorical(("cross-entropy", "focal:gamma=2"))
    assert space.ranges["augment"] == Categorical(("none", "shift:1 rotate:5"))
    assert parse_space(space.to_words(), BASE) == space


def test_commas_in_brackets_do_not_separate():
    space = parse_space(["model=mlp:hidden=(64,32),mlp:hidden=(16,),lenet5"], Recipe(size=28))
    assert space.ranges["model"] == Categorical(("mlp:hidden=(64,32)", "mlp:hidden=(16,)", "lenet5"))


def test_values_are_set_in_the_recipe():
    base = Recipe(model="enhanced:dropout=0.3:residual=False")
    space = parse_space(["lr=0.01..0.05", "model.dropout=0.1..0.5", "augment=none,flip shift:2"], base)
    made = space.apply_to(base, {"lr": 0.02, "model.dropout": 0.25, "augment": "flip shift:2"})
    assert made == base.replace(lr=0.02, model="enhanced:residual=False:dropout=0.25", augment=("flip", "shift:2"))


BAD = {
    "lr": "is not a search range",
    "lr=": "leaves nothing to search",
    "lr=0.1": "leaves nothing to search",
    "lr=0.1..0.1": "is empty",
    "lr=0.1..0.01": "is reversed",
    "lr=0..1:log": "above 0",
    "lr=1e-3..1e-1:often": "log, lin or a number of points, not 'often'",
    "lr=1e-3..1e-1:1": "points must be a whole number of at least 2",
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
    "val=0.1..0.3": "'val_fraction' cannot be searched: it decides on which images",
    "seed=1,2": "'seed' cannot be searched",
    "budget=1m,2m": "'budget' cannot be searched: it is the time",
    "lr.low=1..2": "takes no arguments",
    "model.=1..2": "cannot be searched",
    "model.widht=1..2": "no argument 'widht'",
    "model.dropout=0.5..1.5": "dropout",
    "schedule.gamma=1..2": "gamma",
}


@pytest.mark.parametrize("word", BAD)
def test_an_invalid_space_is_refused_in_one_sentence(word):
    with pytest.raises((RecipeError, ChoiceError), match=BAD[word]):
        parse_space([word], BASE)


def test_a_space_has_at_least_one_field_and_none_twice():
    with pytest.raises(RecipeError, match="searched twice"):
        parse_space(["lr=0.1,0.2", "lr=0.3,0.4"], BASE)
    with pytest.raises(RecipeError, match="Name what to search"):
        parse_space([], BASE)
    with pytest.raises(RecipeError, match="'depth' is an argument of a model: name it with --model"):
        parse_space(["model.depth=3..5"], Recipe())
    with pytest.raises(RecipeError, match="not a range"):
        parse_space({"lr": 0.1}, BASE)


def test_table3_is_the_papers_table():
    preset = SPACES["table3"]
    space = parse_space(preset.space, preset.recipe)
    points = space.grid_points()
    assert len(points) == 3**5
    best = {"lr": 0.001, "batch_size": 64, "epochs": 20, "model.depth": 10, "model.kernel": 3}
    assert points.count(best) == 1
    assert space.apply_to(preset.recipe, best).model == "plain-cnn:depth=10:kernel=3"
    assert preset.recipe.model in NETWORKS


# Searches

SPACE = parse_space(["lr=1e-4..1e-1", "batch_size=4..64", "momentum=0.5..0.95:3", "optimizer=sgd,adamw"], BASE)
GRID = parse_space(["lr=1e-3..1e-1:2", "batch_size=8..9", "optimizer=sgd,adamw"], BASE)


def config_of(folder, by="random", space=SPACE, trials=8, **other):
    asked = {"zoom_rounds": 0, "budget": None, "max_epochs": 2, "device": "cpu"} | other
    url = study_store.database_url(None, folder)
    return StudyConfig(
        folder=folder, url=url, name="s", base=BASE, space=space, search=parse_search(by), trials=trials, **asked
    )


@pytest.fixture(scope="module", autouse=True)
def blank(tmp_path_factory):
    """A database with its tables, to be copied: creating them takes longer than most tests."""
    folder = tmp_path_factory.mktemp("blank")
    StudyStore(study_store.database_url(None, folder), "s", folder)
    BLANK.append(folder / "study.db")


BLANK = []


def open_store(config):
    if config.url == study_store.database_url(None, config.folder) and not (config.folder / "study.db").exists():
        config.folder.mkdir(exist_ok=True)
        shutil.copy(BLANK[0], config.folder / "study.db")
    store = StudyStore(config.url, config.name, config.folder)
    if not store.plan():
        store.save_plan({"space": config.space.to_words(), "by": "random"})
    return store


def quality(values):
    """Best at lr = 0.01, batches of 16; between 0 and 1."""
    return 1 / (1 + (math.log10(values["lr"]) + 2) ** 2 + (math.log2(values["batch_size"]) - 4) ** 2)


WORDS = dict(zip(SEARCHES, SEARCHES, strict=True)) | {
    "tpe": "tpe:startup=4",
    "hyperband": "hyperband:startup=4",
    "median": "median:startup=4:after=2",
}
"""Every search method, with few trials before it does what it is for."""


class Killed(BaseException):
    """The process dies: nothing is recorded."""


def run(config, store=None, most=10**6, killed_at=None, epochs=0):
    """Run a study with a formula in place of training; returns the values of the trials in order.

    The trial of index `killed_at` dies after `epochs` epochs.
    """
    store = store or open_store(config)
    done = []

    def objective(trial, index):
        done.append(dict(trial.params))
        reported = store.reported_epochs(trial.number)
        for epoch in range(1, config.max_epochs + 1):
            if index == killed_at and epoch > epochs:
                raise Killed
            if epoch not in reported:
                trial.report(quality(trial.params) * epoch / config.max_epochs, epoch)
            if config.search.prunes and trial.should_prune() and epoch < config.max_epochs:
                trial.set_user_attr("facts", {"val_loss": 1.0, "epochs": epoch})
                raise optuna.TrialPruned
        trial.set_user_attr("facts", {"val_loss": 1.0, "epochs": epoch})
        return quality(trial.params)

    while len(done) < most and store.has_next(config):
        try:
            store.run_next(config, objective)
        except Killed:
            return done
    return done


def silence(config):
    """Make every running trial look as if its heartbeat stopped an hour ago."""
    with sqlite3.connect(config.folder / "study.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    database.close()


def states(config):
    return [one.state.name for one in open_store(config).trials()]


def contains(range_, value):
    if isinstance(range_, Categorical):
        return value in range_.values
    return range_.low <= value <= range_.high and isinstance(value, int) == range_.is_integer


@pytest.mark.parametrize("by", SEARCHES)
def test_every_method_proposes_values_of_the_space(by, tmp_path):
    config = config_of(tmp_path, WORDS[by], GRID if by == "grid" else SPACE, trials=7)
    for values in run(config):
        assert list(values) == list(config.space.ranges)
        assert all(contains(each, values[name]) for name, each in config.space.ranges.items())


@pytest.mark.parametrize("by", SEARCHES)
def test_a_study_continued_by_another_process_proposes_the_same_values(by, tmp_path):
    config = config_of(tmp_path / "whole", WORDS[by], GRID if by == "grid" else SPACE, trials=7)
    whole = run(config)
    parts = replace(config, folder=tmp_path / "parts", url=study_store.database_url(None, tmp_path / "parts"))
    assert [*run(parts, most=5), *run(parts)] == whole
    other = replace(config, folder=tmp_path / "other", url=study_store.database_url(None, tmp_path / "other"))
    assert run(replace(other, base=BASE.replace(seed=1)), most=2) != whole[:2]


@pytest.mark.parametrize("by", ["grid", "random"])
def test_a_killed_study_tries_exactly_the_values_of_an_undisturbed_one(by, tmp_path):
    config = config_of(tmp_path / "whole", by, GRID if by == "grid" else SPACE, trials=7)
    whole = run(config)
    killed = replace(config, folder=tmp_path / "killed", url=study_store.database_url(None, tmp_path / "killed"))
    first = run(killed, killed_at=3)
    assert first == whole[:4]
    silence(killed)
    rest = run(killed)
    assert rest[0] == whole[3]
    assert rest[1:] == whole[4:]
    store = open_store(killed)
    rows = leaderboard_rows(store.trials(), store.rounds(killed.space))
    assert sorted(row["trial"] for row in rows) == list(range(7))
    assert {row["state"] for row in rows} == {"finished"}


@pytest.mark.parametrize("workers", [1, 3])
def test_a_grid_tries_every_combination_once(workers, tmp_path):
    config = config_of(tmp_path, "grid", GRID, trials=1000)
    stores = [open_store(config) for _ in range(workers)]
    values = []
    for store in itertools.cycle(stores):
        done = run(config, store, most=1)
        values += done
        if not done:
            break
    named = {name: each.grid_values() for name, each in GRID.ranges.items()}
    wanted = [dict(zip(named, point, strict=True)) for point in itertools.product(*named.values())]
    assert sorted(values, key=str) == sorted(wanted, key=str)
    assert len(wanted) == 8


def test_points_belong_to_finite_searches_only():
    for name in SEARCHES:
        points = parse_search(name).points(GRID)
        assert (points is None) == (name != "grid")
        assert points is None or len(points) == 8


def test_tpe_finds_good_regions():
    def later(by):
        study, values = optuna.create_study(direction="maximize"), []
        for index in range(40):
            trial = study.ask()
            sample_values(trial, SPACE, parse_search(by), seed=0, index=index)
            study.tell(trial, quality(trial.params))
            values.append(quality(trial.params))
        return np.mean(values[20:])

    assert later("tpe") > 1.5 * later("random")


@pytest.mark.parametrize("by", ["hyperband", "median"])
def test_pruning_stops_poor_trials_and_keeps_the_best(by, tmp_path):
    config = config_of(tmp_path, WORDS[by], trials=10, max_epochs=4)
    store = open_store(config)
    values = run(config, store)
    pruned = [t for t in store.trials() if t.state.name == "PRUNED"]
    assert 2 <= len(pruned) < 10
    assert all(len(t.intermediate_values) < config.max_epochs for t in pruned)
    assert store.best().params == max(values, key=quality)


def test_unknown_methods_and_arguments_are_refused():
    with pytest.raises(ChoiceError, match=r"no search called 'tpee'\. Did you mean 'tpe'"):
        parse_search("tpee")
    for word in ("tpe:startup=0", "hyperband:eta=1", "median:least=0", "grid:5"):
        with pytest.raises(ChoiceError, match=r"cannot be made: (?!.*__init__)"):
            parse_search(word)
    with pytest.raises(ChoiceError, match=r"search 'tpe' has no argument 'start'\. Did you mean 'startup'\?"):
        parse_search("tpe:start=5")
    with pytest.raises(ChoiceError, match=r"search 'grid' has no argument 'x'\. It takes none\."):
        parse_search("grid:x=5")


@pytest.mark.parametrize("word", [*WORDS.values(), "hyperband:startup=2:eta=4:least=2"])
def test_a_search_word_is_read_back(word):
    assert parse_search(search_word(parse_search(word))) == parse_search(word)


def test_zoom_rounds_narrow_around_the_best(tmp_path):
    config = config_of(tmp_path, "random", trials=3, zoom_rounds=2)
    store = open_store(config)
    values = run(config, store)
    rounds = store.rounds(SPACE)
    assert [start for start, _ in rounds] == [0, 3, 6]
    assert len(values) == 9
    for (start, space), before in zip(rounds[1:], [s for _, s in rounds], strict=False):
        best = max(values[:start], key=quality)
        assert space == before.narrow_around(best)
        assert all(contains(space.ranges[n], v[n]) for v in values[start : start + 3] for n in v)


def test_a_zoomed_grid_tries_nothing_twice(tmp_path):
    config = config_of(tmp_path, "grid", GRID, trials=1000, zoom_rounds=1)
    values = run(config)
    assert len({str(sorted(each.items())) for each in values}) == len(values)
    assert len(values) > 8


def test_more_trials_may_be_asked_for_later(tmp_path):
    config = config_of(tmp_path, trials=3)
    assert len(run(config)) == 3
    assert len(run(config)) == 0
    assert len(run(replace(config, trials=5))) == 2


# Several processes, and dead ones


def test_two_processes_never_train_the_same_trial(tmp_path):
    """The second begins its trial while the first still trains."""
    config = config_of(tmp_path, "grid", GRID, trials=2)
    one, two, seen = open_store(config), open_store(config), []

    def outer(trial, index):
        seen.append((index, dict(trial.params)))
        assert two.has_next(config)
        two.run_next(config, lambda inner, place: seen.append((place, dict(inner.params))) or 0.5)
        return 0.5

    one.run_next(config, outer)
    assert [index for index, _ in seen] == [0, 1]
    assert seen[0][1] != seen[1][1]
    assert not one.has_next(config)


def test_a_trial_too_many_is_not_trained_and_not_shown(tmp_path):
    """Two machines began the last trial at the same moment."""
    config = config_of(tmp_path, trials=1)
    store = open_store(config)

    def outer(trial, index):
        store.run_next(config, lambda *_: pytest.fail("trained"))
        return quality(trial.params)

    open_store(config).run_next(config, outer)
    (row,) = leaderboard_rows(store.trials(), store.rounds(SPACE))
    assert (row["trial"], row["state"]) == (0, "finished")


def test_the_trial_of_a_dead_process_is_tried_again_and_that_of_a_living_one_is_not(tmp_path):
    config = config_of(tmp_path, trials=1)
    values = run(config, killed_at=0)
    other = open_store(config)
    other.heartbeat_seconds = 0  # it does not wait to see whether the process is alive
    assert not other.has_next(config)
    silence(config)
    assert run(config) == values
    assert states(config) == ["FAIL", "COMPLETE"]


def test_a_process_that_dies_before_its_first_heartbeat_loses_no_trial(tmp_path, monkeypatch):
    config = config_of(tmp_path, trials=1)
    store = open_store(config)
    store.study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING))
    assert states(config) == ["RUNNING"]
    monkeypatch.setattr(study_store, "datetime", Later)
    assert len(run(config, store)) == 1
    assert states(config) == ["FAIL", "COMPLETE"]
    (row,) = leaderboard_rows(store.trials(), store.rounds(SPACE))
    assert (row["trial"], row["state"]) == (0, "finished")


class Later(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(seconds=61)


def test_an_interrupted_trial_is_queued_at_once_however_often(tmp_path):
    config = config_of(tmp_path, trials=1)

    def press(trial, index):
        raise KeyboardInterrupt

    for _ in range(MAX_ATTEMPTS + 1):
        store = open_store(config)
        assert store.has_next(config)
        with pytest.raises(KeyboardInterrupt):
            store.run_next(config, press)
    assert len(run(config)) == 1
    (row,) = leaderboard_rows(store.trials(), store.rounds(SPACE))
    assert row["state"] == "finished"


def test_a_trial_that_kills_every_process_is_given_up(tmp_path):
    config = config_of(tmp_path, trials=1)
    for _ in range(MAX_ATTEMPTS):
        assert len(run(config, killed_at=0)) == 1
        silence(config)
    assert run(config) == []
    store = open_store(config)
    (row,) = leaderboard_rows(store.trials(), store.rounds(SPACE))
    assert row["state"] == "failed"
    assert row["reason"].startswith(f"Its process died {MAX_ATTEMPTS} times at the same epoch")


def test_deaths_with_progress_between_them_do_not_count(tmp_path):
    config = config_of(tmp_path, trials=1, max_epochs=MAX_ATTEMPTS + 3)
    for epochs in range(1, MAX_ATTEMPTS + 2):
        assert len(run(config, killed_at=0, epochs=epochs)) == 1
        silence(config)
    assert len(run(config)) == 1
    assert states(config)[-1] == "COMPLETE"


def test_a_study_of_an_earlier_version_is_continued(tmp_path):
    """It stored owners, not hosts; a trial of a dead process was left running or waiting under its own number."""
    config = config_of(tmp_path, "grid", GRID, trials=1000)
    store = open_store(config)
    store.save_plan({"space": GRID.to_words(), "by": "Grid", "recipe": {}, "data": "x", "settled": {}})
    points = study_store.remaining_points(config.search, GRID, BASE.seed, [])
    kinds = {name: each.distribution() for name, each in GRID.ranges.items()}
    create = optuna.trial.create_trial
    owner, facts = {"owner": {"host": "h", "lock": "l", "beat": 0.0}}, {"facts": {"val_loss": 1.0, "epochs": 2}}
    done = create(value=0.5, params=points[0], distributions=kinds, user_attrs=owner | facts)
    failed = create(
        state=optuna.trial.TrialState.FAIL,
        params=points[1],
        distributions=kinds,
        user_attrs={"facts": {"reason": "It became NaN."}},
    )
    dead = create(state=optuna.trial.TrialState.RUNNING, params=points[2], distributions=kinds, user_attrs=owner)
    dead.datetime_start = datetime.now() - timedelta(days=1)
    waiting = create(
        state=optuna.trial.TrialState.WAITING, params=points[3], distributions=kinds, user_attrs=owner
    )
    for one in (done, failed, dead, waiting):
        store.study.add_trial(one)
    values = run(config)
    assert sorted(values, key=str) == sorted(points[2:], key=str)
    rows = leaderboard_rows(store.trials(), store.rounds(GRID))
    assert sorted((row["trial"], row["state"]) for row in rows) == [
        (index, "failed" if index == 1 else "finished") for index in range(8)
    ]


def test_renamed_fields_of_an_old_study_are_understood(tmp_path):
    """Its plan, its rounds and the values of its trials; a trial that waits keeps its values."""
    space = parse_space(["ema_decay=0.9,0.99"], BASE)
    config = config_of(tmp_path, "grid", space, trials=1000)
    store = open_store(config)
    store.save_plan(
        {"space": {"ema": "0.9,0.99"}, "by": "Grid", "recipe": {}, "data": "x", "settled": {"replicas": 1}}
    )
    assert store.plan()["space"] == {"ema_decay": "0.9,0.99"}
    assert store.plan()["settled"] == {"cpu_replicas": 1}
    points = study_store.remaining_points(config.search, space, BASE.seed, [])
    kinds = {"ema": space.ranges["ema_decay"].distribution()}
    done = optuna.trial.create_trial(
        value=0.5,
        params={"ema": points[0]["ema_decay"]},
        distributions=kinds,
        user_attrs={"facts": {"val_loss": 1}},
    )
    store.study.add_trial(done)
    tried = []
    while store.has_next(config):
        store.run_next(config, lambda trial, _: tried.append(dict(trial.params)) or 0.1)
    assert tried == points[1:]
    rows = leaderboard_rows(store.trials(), store.rounds(space))
    assert [row["ema_decay"] for row in rows] == [points[0]["ema_decay"], points[1]["ema_decay"]]


def test_the_search_of_an_earlier_version_is_understood():
    for old, new in {
        "Grid": "grid",
        "TPE(startup=10)": "tpe:startup=10",
        "Median(startup=4, after=2, least=1)": "median:startup=4:after=2:least=1",
    }.items():
        assert upgrade_plan({"by": old}) == {"by": new}
        assert upgrade_plan({"by": new}) == {"by": new}


# Time


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=8))
def test_training_time_counts_parallel_trials_once(spans):
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


def test_no_trial_begins_that_would_end_after_the_budget(tmp_path):
    config = config_of(tmp_path, trials=50)
    assert len(run(replace(config, budget=3600.0), most=3)) == 3
    assert run(replace(config, budget=1e-6)) == []


# Databases


def test_a_locked_database_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(study_store, "SQLITE_TIMEOUT_SECONDS", 0.1)
    config = config_of(tmp_path)
    store = open_store(config)
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(OutputError, match=r"study\.db' cannot be used: another program locks it"):
        store.has_next(config)
    with pytest.raises(OutputError, match="program locks it"):
        open_store(config)
    other.rollback()
    assert store.has_next(config)
    other.close()


def test_a_read_only_database_is_explained(tmp_path):
    config = config_of(tmp_path)
    open_store(config)
    url = f"sqlite:///file:{tmp_path / 'study.db'}?mode=ro&uri=true"
    with pytest.raises(OutputError, match="read-only: change its permissions"):
        StudyStore(url, "s", tmp_path).save_plan({"by": "random"})


@pytest.mark.parametrize("version", ["v0.9.0.a", "v99.0.0.a"])
def test_a_database_of_another_version_is_explained(version, tmp_path):
    open_store(config_of(tmp_path))
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))
    database.close()
    with pytest.raises(OutputError, match="another version of Optuna made it"):
        open_store(config_of(tmp_path))


def test_a_file_or_address_without_a_database_is_explained(tmp_path):
    (tmp_path / "study.db").write_text("notes" * 1000)
    with pytest.raises(OutputError, match="not a database"):
        open_store(config_of(tmp_path))
    for url, said in {
        f"sqlite:///{tmp_path}/none/x.db": "cannot be opened",
        "nosuch://host/x": "kind of database is unknown",
        "postgresql+nosuch://host/x": "kind of database is unknown",
        "sqlite://:bad:address": "not the address of a database",
    }.items():
        with pytest.raises(OutputError, match=said):
            StudyStore(url, "s", tmp_path)


def test_a_folder_is_refused_as_storage(tmp_path):
    with pytest.raises(OutputError, match=r"is the folder .* name a file in it"):
        study_store.database_url(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("connection failed: port 5432 failed: Connection refused", "no server answers at that address: start it"),
        ('failed to resolve host "nowhere": Name or service not known', "its host is unknown"),
        ('FATAL: password authentication failed for user "me"', "rejects that user or password"),
        ('FATAL: database "studies" does not exist', "no such database or user: create it"),
        ("Something new.", "it says 'Something new.': correct the address, or choose another"),
    ],
)
def test_errors_of_a_server_have_a_remedy(told, said):
    with (
        pytest.raises(OutputError, match=re.escape(said)),
        study_store.explain_database_errors("postgresql://me@host/studies"),
    ):
        raise StorageInternalError(told)


def test_a_password_is_not_shown():
    assert study_store.redact_url("postgresql://me:secret@host/name") == "postgresql://me:***@host/name"


def test_a_study_of_another_program_is_not_touched(tmp_path):
    config = config_of(tmp_path)
    study = optuna.create_study(storage=config.url, study_name="s")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(OutputError, match="that another program made"):
        open_store(config)


def test_a_study_with_other_settings_is_refused_and_each_difference_named(tmp_path):
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
        {"lr": NumericRange(1e-4, 1e-1), "clip_grad": NumericRange(0.0, 1.0), "momentum": NumericRange(0.0, 0.9)}
    )
    rows = [
        {
            "state": "finished",
            "lr": 10 ** generator.uniform(-4, -1),
            "clip_grad": generator.uniform(),
            "momentum": generator.uniform(0, 0.9),
        }
        for _ in range(40)
    ]
    for row in rows:
        row["val_accuracy"] = 0.9 - 0.1 * (math.log10(row["lr"]) + 2) ** 2 + 0.02 * row["clip_grad"]
    found = field_importance(rows, space)
    assert next(iter(found)) == "lr"
    assert found["lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1, abs=1e-3)
    assert field_importance(rows[:3], space) is None
    assert field_importance([row | {"val_accuracy": 0.5} for row in rows], space) is None
