"""Images are read and split, and a plan is fitted to them, before anything is built."""

from ..data import MAX_UNREADABLE_SHARE, audit_class_names, load_dataset
from ..errors import RecipeError
from ..preprocessing import forecast_fit
from ..sources import find
from ..types import Dataset, Splits
from .defaults import default_fractions, default_method, default_network
from .domain import find_target
from .plan import Plan
from .recipe import INHERIT, PRETRAINED, Recipe
from .restoring import restore_splits, split_by_recipe, split_to_train
from .run_folder import RunFolder
from .starts import Default, affordable_network, choose_pixels, limit_train_images
from .unlabelled import find_pool, limit_validation


def split_as_before(
    run: RunFolder,
    recipe: Recipe,
    dataset: Dataset,
    fingerprint: str | None,
    classes: tuple[str, ...] | None = None,
) -> tuple[Splits, tuple[str, ...], tuple[str, ...]]:
    """The splits of a run that began with images of this fingerprint; all notes; and those of changes since.

    A finished run, whose ``classes`` are known, may lack a few images.
    """
    if fingerprint in (None, dataset.fingerprint):
        splits, read = split_by_recipe(dataset, recipe)
        known = {(row["file"], row["split"]) for row in run.read_split()}
        parts = (("train", splits.train), ("val", splits.val), ("test", splits.test))
        drawn = {(str(file), name) for name, part in parts for file in part.files}
        if not known or known == drawn:  # else an older release drew them, or a run of another size
            return splits, read, ()
    if recipe.limit is not None or recipe.train_limit is not None:  # they would draw others now
        dataset, _ = read_dataset(recipe.replace(limit=None, train_limit=None), max_bad=1.0)
    splits = restore_splits(
        run, dataset, fingerprint or "", classes=classes, max_missing=0.0 if classes is None else 0.05
    )
    return splits, (*dataset.notes, *splits.notes), splits.notes


def read_dataset(
    recipe: Recipe,
    *,
    plan: Plan | None = None,
    max_bad: float = MAX_UNREADABLE_SHARE,
    within_budget: bool = False,
) -> tuple[Dataset, list[Default]]:
    """Find and decode the recipe's images, at its size or a chosen one; returns them and what was chosen.

    With ``plan``, the plan of the recipe, photos may get published weights, which have their own size. Of training
    images, ``within_budget`` reads no more than the recipe's budget has time for.

    Raises DataError where more than the fraction ``max_bad`` of them cannot be read.
    """
    if recipe.data is None:
        raise RecipeError("Say which images to use: a folder, an archive, a table, or a name such as digits.")
    source = find(recipe.data, limit=recipe.limit, seed=recipe.data_seed, rule=recipe.label_rule)
    chosen = choose_pixels(plan or recipe, source)
    recipe = recipe.replace(**{default.field: default.value for default in chosen})
    source, limited = limit_train_images(recipe, source, within_budget=within_budget)
    chosen += limited
    return load_dataset(source, recipe.geometry, max_bad=max_bad), chosen


def read_splits(recipe: Recipe) -> tuple[Splits, tuple[str, ...]]:
    """The images of a recipe, split as it says; and notes. Size and channels are chosen where they are open."""
    dataset, _ = read_dataset(recipe)
    return split_by_recipe(dataset, recipe)


def prepare(plan: Plan, run: RunFolder | None = None) -> tuple[Plan, Splits, tuple[str, ...]]:
    """Read and split the images; choose size, channels, network, batches and learning rate.

    With a ``run`` that began already, the images are split as they were then, found by their bytes.
    Returns the plan with those choices, fitted to the training images, the splits, and the notes to report.
    """
    dataset, pixels = read_dataset(plan.recipe, plan=plan, within_budget=run is None)
    pixels += affordable_network(with_defaults(plan, pixels), dataset.geometry, len(dataset))
    plan = with_defaults(plan, pixels)
    plan = with_defaults(plan, fractions := default_fractions(plan, dataset))
    recipe = plan.recipe
    splits, read, _ = (
        (*split_to_train(dataset, recipe), ())
        if run is None
        else split_as_before(run, recipe, dataset, run.read_fingerprint())
    )
    splits, limited = limit_validation(plan, splits)
    pool = () if plan.semi_supervised is None else find_pool(plan, splits)[1]
    train = splits.train.labelled
    plan = with_defaults(plan, method := default_method(plan, train.counts))
    network = default_network(plan, train_images=len(train))
    plan = with_defaults(plan, network).fit_to(train)
    recipe = plan.recipe
    trains = recipe.epochs != 0 and (plan.head is None or plan.head.fine_tunes)
    skip = set() if trains else {"augment", "batch_size", "lr", "weights"}
    chosen = tuple(d.reason for d in (*pixels, *fractions, *method, *network) if d.reason and d.field not in skip)
    cost = (
        ()
        if recipe.normalize in (INHERIT, PRETRAINED)
        else forecast_fit(recipe.normalize or "", train.geometry.shape, len(splits.train))
    )
    target = () if plan.domain is None else find_target(recipe, splits)[1]
    doubts = (f"{doubt.text} ({', '.join(doubt.examples)})" for doubt in audit_class_names(dataset))
    return plan, splits, (*read, *limited, *pool, *doubts, *plan.notes, *chosen, *cost, *target)


def with_defaults(plan: Plan, chosen: list[Default]) -> Plan:
    """The plan with what was chosen where its recipe was open."""
    return plan.replace(**{default.field: default.value for default in chosen})
