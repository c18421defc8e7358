"""What a compressor is, and the run or bundle it is applied to."""

import copy
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .. import runtime
from ..classifier import Classifier
from ..errors import DataError
from ..models import NETWORKS
from ..runs import open_run, trained_on
from ..training import INHERIT, Objective, Recipe, RunFolder, architecture_word, prepare, resolve
from ..types import Splits
from .fine_tuning import FineTuning


@dataclass(frozen=True, eq=False)
class Original:
    """The classifier to compress, with the images it is fine-tuned and tested on."""

    folder: Path
    """The run or bundle, as the user named it."""
    classifier: Classifier
    recipe: Recipe
    splits: Splits
    notes: tuple[str, ...] = ()


class Compressor(ABC):
    """A change that makes a smaller classifier: ``(classifier, splits) -> classifier``.

    A member is usually a frozen dataclass whose fields are the arguments of its word, as in ``channels:0.4``. It
    must define ``__call__``; what the pipeline asks besides (how to train the result, by which objective, whether
    it can be made stronger) has defaults here. One line in ``COMPRESSORS`` makes it a word of ``--by``.
    """

    fresh: ClassVar[bool] = False
    """Whether the result has new weights instead of the original's: such a compressor comes first, its training is
    kept whatever it gives, and the result has no ancestors."""

    @property
    def name(self) -> str:
        """Its word in ``COMPRESSORS``; the class name in lower case unless overridden."""
        return type(self).__name__.lower()

    @abstractmethod
    def __call__(self, classifier: Classifier, data: Splits, /) -> Classifier:
        """Return a smaller classifier and leave the given one unchanged; it may look at training images."""

    def training(self, original: Original, settings: FineTuning) -> Recipe:
        """The recipe that trains the result, of 0 epochs for none. Default: a short fine-tuning."""
        return settings.fine_tuning_recipe(original.recipe)

    def objective(self, original: Original, labels: Objective) -> Objective:
        """The loss of that training, given the recipe's own loss ``labels``, which is the default."""
        del original
        return labels

    def at_strength(self, strength: float) -> "Compressor | None":
        """The same compressor taking away the share ``strength``, in (0, 1); None where it has no strength."""
        del strength
        return None

    def word(self) -> str:
        """The word that makes it again, without the arguments that have their default value."""
        words = [self.name]
        for field in fields(self) if is_dataclass(self) else ():
            value = vars(self)[field.name]
            if field.default is MISSING or value != field.default or field.metadata.get("always_shown"):
                words.append(f"{field.name}={str(value).replace(' ', '')}")
        return ":".join(words)


def open_original(run: Path | str, data: str | None = None, *, device: str = "auto") -> Original:
    """Open a run with the images it was trained, validated and tested on; or with ``data``, split as its recipe
    says.

    A bundle without its run needs ``data``. Raises DataError where the images are missing, were decoded with
    another geometry or show other classes, and what reading a run or a classifier raises.
    """
    folder = Path(run)
    if folder.suffix.lower() in (".onnx", ".pt2"):
        raise DataError(
            f"'{run}' is an exported file, whose network cannot be changed: compress the run it was exported from."
        )
    if data is None:
        remedy = f"name images to calibrate and fine-tune it on: sightline compress {run} DATA"
        whole = open_run(run, device=device, remedy=remedy)
        return Original(folder, whole.classifier.eval(), whole.recipe, whole.splits)
    classifier = Classifier.load(run).to(runtime.resolve_device(device))
    has_run = (folder / "recipe.toml").is_file()
    recipe = RunFolder(folder).read_recipe() if has_run else recipe_from_classifier(classifier)
    plan, splits, notes = prepare(
        resolve(
            recipe.replace(
                data=str(Path(data).resolve()) if Path(data).exists() else data,
                weights=None,
                freeze="none",
                normalize=None if recipe.normalize == INHERIT else recipe.normalize,
            )
        )
    )
    check_images_fit(classifier, splits, data)
    if not has_run and trained_on(run, splits.test).any():
        notes = (
            *notes,
            f"This classifier was trained on images of '{data}'. Without its run it is not known which of them "
            "were held out, so both accuracies are too optimistic.",
        )
    return Original(folder, classifier, plan.recipe.replace(freeze=recipe.freeze), splits, notes)


def recipe_from_classifier(classifier: Classifier) -> Recipe:
    """A recipe that reads images as the classifier does; DataError where no recipe can."""
    geometry = classifier.geometry
    if geometry.size[0] != geometry.size[1] or not geometry.exif:
        raise DataError(
            "Runs only support square images with EXIF orientation applied, but this classifier expects "
            f"{geometry.size[0]} x {geometry.size[1]} pixels: compress the run it was trained in."
        )
    architecture = classifier.architecture
    return Recipe(
        model=architecture_word(architecture) if architecture.name in NETWORKS else None,
        from_scratch=True,  # nothing is trained: no published weights are looked for
        method="gradient",
        size=geometry.size[0],
        channels=geometry.channels,
        resize_mode=geometry.resize_mode,
        crop_fraction=None if geometry.crop_fraction == 1 else geometry.crop_fraction,
        interpolation=geometry.interpolation,
        window=None if geometry.window is None else f"{geometry.window[0]:g}:{geometry.window[1]:g}",
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


def example_input(classifier: Classifier, count: int = 2) -> Float[Tensor, "B C H W"]:
    """``count`` images of random pixels after the preprocessing, on the CPU: an input of the network."""
    height, width = classifier.geometry.size
    shape = (count, classifier.geometry.channels, height, width)
    pixels = torch.rand(shape, generator=runtime.make_generator(0))
    with torch.no_grad():
        return copy.deepcopy(classifier.preprocessing).cpu().eval()(pixels)
