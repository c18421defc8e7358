"""Laws of every strategy, on a small stream of digits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sightline.classifier import Classifier
from sightline.continual import STRATEGIES, Past, Task, grow, parse_strategies, run_stream, split_by_class
from sightline.continual.protocol import learn_task
from sightline.continual.strategy import draw_balanced, new_batches, regroup_head, with_new_head
from sightline.data import load_dataset, relabel, split
from sightline.errors import ChoiceError, RecipeError
from sightline.inference import predict_logits
from sightline.sources import find
from sightline.training import Recipe, build_classifier, resolve
from sightline.types import Geometry, Splits

RECIPE = Recipe(
    model="mlp:hidden=[64]", lr=0.05, batch_size=16, epochs=3, schedule="constant", warmup=0.0, normalize="fitted",
    augment=(), optimizer="sgd",
)  # fmt: skip
MEMORY = 60
WORDS = {"ewc": "ewc:weight=100:images=40", "ranpac": "ranpac:projections=100", "gdumb": "gdumb:passes=31"}
"""Smaller forms of some."""


@pytest.fixture(scope="module")
def splits():
    images = load_dataset(find("digits", limit=400), Geometry(size=(8, 8), channels=1))
    return split(images, val=0.02, test=0.3, seed=0)


@pytest.fixture(scope="module")
def results(splits):
    """Every strategy on three tasks of two digits each, class- and task-incremental."""
    train, test = (
        relabel(part, splits.train.classes[:6], drop_unknown=True) for part in (splits.train, splits.test)
    )
    found = {}
    for kind in ("class", "task"):
        stream = split_by_class(train, test, 3, kind=kind)
        for name in STRATEGIES:
            (strategy,) = parse_strategies([WORDS.get(name, name)]).values()
            found[name, kind] = run_stream(strategy, stream, RECIPE, memory_size=MEMORY, name=name)
    return found


LEARNS = [name for name in STRATEGIES if name != "keep"]
REMEMBERS = [name for name, kind in STRATEGIES.items() if kind.needs_images or kind.computes_head]


@pytest.mark.parametrize("name", LEARNS)
def test_every_strategy_learns_tasks_that_are_told_apart(results, name):
    assert results[name, "task"].average_accuracy > 0.85


@pytest.mark.parametrize("name", [name for name in REMEMBERS if "gem" not in name])
def test_what_remembers_beats_fine_tuning_where_any_class_may_come(results, name):
    naive = results["finetune", "class"]
    assert results[name, "class"].average_accuracy > naive.average_accuracy + 0.2
    assert naive.average_accuracy < 0.45  # a third of the classes, and nothing else
    assert naive.forgetting > 0.8


def test_gem_forgets_less_than_fine_tuning(results):
    for name in ("gem", "a-gem"):
        assert results[name, "class"].average_accuracy >= results["finetune", "class"].average_accuracy


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_memory_is_bounded(results, name):
    pixels = results[name, "class"].memory_bytes
    if not STRATEGIES[name].computes_head and name not in ("ewc", "retrain"):
        assert pixels <= MEMORY * 64
    if name == "retrain":  # the upper bound keeps every image
        assert pixels > 2 * MEMORY * 64


@pytest.fixture(scope="module")
def task(splits):
    """Digits 0 to 4 are known, 5 to 9 are new; the memory holds 50 old images."""
    train = splits.train
    plan = resolve(RECIPE.replace(size=8, channels=1, epochs=1)).fit_to(train)
    classifier, _ = build_classifier(plan, Splits(train, train, train), torch.device("cpu"))
    old, new = (train.subset(chosen) for chosen in (train.labels < 5, train.labels >= 5))
    first = Task(classifier=classifier, previous=None, new=old, past=_nothing(train), plan=plan, memory_size=50)
    learn_task(STRATEGIES["finetune"](), first)
    past = STRATEGIES["replay"]().remember(first)
    return lambda: Task(
        classifier=grow(classifier, classifier.classes), previous=classifier, new=new, past=past, plan=plan,
        memory_size=50, old_classes=range(5),
    )  # fmt: skip


def _nothing(images):
    return Past(images=images.subset(np.zeros(0, np.int64)), tasks=np.zeros(0, np.int64))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_seed_gives_the_same_classifier_and_a_bundle_keeps_it(task, splits, tmp_path, name):
    (strategy,) = parse_strategies([WORDS.get(name, name)]).values()
    first, remembered = learn_task(strategy, task())
    again, _ = learn_task(strategy, task())
    logits = predict_logits(first, splits.test)[0]
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(predict_logits(again, splits.test)[0], logits, rtol=0, atol=0)
    assert len(remembered) <= (50 if name != "retrain" else len(task().past) + len(task().new))
    loaded = Classifier.load(first.save(tmp_path / "bundle"))
    torch.testing.assert_close(predict_logits(loaded, splits.test)[0], logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_previous_classifier_is_left_alone(task, name):
    (strategy,) = parse_strategies([WORDS.get(name, name)]).values()
    given = task()
    before = {key: value.clone() for key, value in given.previous.state_dict().items()}
    learn_task(strategy, given)
    for key, value in given.previous.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_replayed_images_are_shown_for_each_class_equally_often(task):
    batches, steps = new_batches(task(), 0.5)
    drawn = torch.cat([batch.beside.labels for batch in batches(0, 0)])
    counts = torch.bincount(drawn, minlength=5)[:5]
    assert counts.max() - counts.min() <= steps
    resumed = [batch.index for batch in batches(0, 2)]
    whole = [batch.index for batch in batches(0, 0)]
    assert all(torch.equal(one, other) for one, other in zip(resumed, whole[2:], strict=True))


def test_balanced_draws_repeat_an_image_only_after_all_others_of_its_class():
    labels = np.array([0] * 3 + [1] * 10)
    drawn = draw_balanced(labels, 6, 0, 1)
    assert np.bincount(labels[drawn]).tolist() == [3, 3]
    assert len(set(drawn.tolist())) == 6


def test_a_reservoir_remembers_in_proportion(task):
    given = task()
    (strategy,) = parse_strategies(["replay:reservoir=True"]).values()
    given = replace(given, past=replace(given.past, seen=int(given.past.images.counts.sum()) + 150))
    kept = strategy.remember(given)
    assert len(kept) == 50
    assert kept.seen == given.past.seen + len(given.new)
    share = (kept.images.labels >= 5).mean()  # of images learned in all, the new ones' share
    assert abs(share - len(given.new) / kept.seen) < 0.25


def test_a_grown_head_says_nothing_of_new_classes(task):
    old = task().previous
    grown = grow(old, (*old.classes, "x", "y"))
    logits = grown(torch.rand(3, 1, 8, 8))
    assert logits.shape == (3, 12)
    assert logits[:, 10:].abs().max() == 0
    twice = grow(grown, (*grown.classes, "z"))
    assert [name for name, _ in twice.architecture.surgery] == ["head"]  # ten lessons leave one change


@pytest.mark.parametrize("kind", ["linear", "prototypes", "random-features"])
def test_a_merged_class_has_the_mean_of_the_rows(task, tmp_path, kind):
    changed = with_new_head(task().previous, task().previous.classes, kind)
    with torch.no_grad():
        changed.network.head.weight.normal_()
    merged = regroup_head(changed, ("low", "high"), [range(5), range(5, 10)])
    expected = changed.network.head.weight[:5].mean(0)
    torch.testing.assert_close(merged.network.head.weight[0], expected)
    loaded = Classifier.load(merged.save(tmp_path / "bundle"))
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded(x), merged.eval()(x), rtol=0, atol=0)


def test_unknown_and_unfit(task):
    with pytest.raises(ChoiceError, match="replay"):
        parse_strategies(["replai"])
    with pytest.raises(ChoiceError, match="weigth"):
        parse_strategies(["ewc:weigth=3"])
    quantised = grow(task().previous, task().previous.classes)
    quantised.architecture = replace(quantised.architecture, surgery=(("quantised", {}),))
    with pytest.raises(RecipeError, match="int8 classifier cannot learn more"):
        grow(quantised, (*quantised.classes, "x"))
