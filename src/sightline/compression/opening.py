"""What is compressed: a run with its own images, or a run or bundle with images of its kind."""

from pathlib import Path

from .. import runtime
from ..classifier import Classifier
from ..errors import DataError
from ..runs import open_run, trained_on
from ..training import INHERIT, Recipe, RunFolder, architecture_word, prepare
from ..types import Splits
from .pipeline import Original


def open_original(run: Path | str, data: str | None = None, *, device: str = "auto") -> Original:
    """A run with the very images it was trained, chosen and tested on; or with ``data``, split as it splits.

    A bundle without its run needs ``data``. Raises DataError where the images are missing, were decoded otherwise
    or show other classes, and whatever reading a run or a classifier raises.
    """
    folder = Path(run)
    if folder.suffix.lower() in (".onnx", ".pt2"):
        raise DataError(
            f"'{run}' is an exported file, whose network cannot be changed: compress the run it is of."
        )
    if data is None:
        remedy = f"name images to calibrate and fine-tune it on: sightline compress {run} DATA"
        whole = open_run(run, device=device, remedy=remedy)
        return Original(folder, whole.classifier.eval(), whole.recipe, whole.splits)
    classifier = Classifier.load(run).to(runtime.resolve_device(device))
    known = (folder / "recipe.toml").is_file()
    recipe = RunFolder(folder).read_recipe() if known else recipe_from_classifier(classifier)
    weights = {"weights": None, "normalize": None if recipe.normalize == INHERIT else recipe.normalize}
    recipe, splits, notes = prepare(recipe.replace(data=_absolute_path(data), **weights))
    check_images_fit(classifier, splits, data)
    if not known and trained_on(run, splits.test).any():
        notes = (
            *notes,
            f"This classifier was trained on images of '{data}'. Without its run it is not known which of them "
            "were held out, so both accuracies are too optimistic.",
        )
    return Original(folder, classifier, recipe, splits, notes)


def _absolute_path(data: str) -> str:
    return str(Path(data).resolve()) if Path(data).exists() else data


def recipe_from_classifier(classifier: Classifier) -> Recipe:
    """A recipe that reads images as a classifier does; DataError where no recipe can say how."""
    known = classifier.geometry
    if known.size[0] != known.size[1] or not known.exif:
        raise DataError(
            f"This classifier looks at images of {known.size[0]} x {known.size[1]} pixels as no run does: "
            "compress the run it came from."
        )
    return Recipe(
        model=architecture_word(classifier.architecture),
        size=known.size[0],
        channels=known.channels,
        fit=known.fit,
        filter=known.filter,
        window=None if known.window is None else f"{known.window[0]:g}:{known.window[1]:g}",
        epochs=0,
    )


def check_images_fit(classifier: Classifier, splits: Splits, data: str = "the images") -> None:
    """Raise DataError for images of another geometry or of other classes than the classifier's."""
    if splits.train.geometry != classifier.geometry:
        raise DataError(
            f"'{data}' was decoded as {splits.train.geometry}, but the classifier expects {classifier.geometry}: "
            "load the images with the classifier's geometry."
        )
    if splits.train.classes != classifier.classes:
        other = sorted({*splits.train.classes} ^ {*classifier.classes})
        what = f"not the same: {', '.join(map(repr, other[:5]))}" if other else "in another order"
        raise DataError(
            f"The classes of '{data}' and of the classifier are {what}. Name images of the same classes."
        )
