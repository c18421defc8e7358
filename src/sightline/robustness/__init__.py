"""What breaks it? Robust accuracy over eps, adaptive attacks, corruptions, and certified radii."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from numpy import ndarray

from ..classifier import Classifier
from ..files import atomic_replace, write_json
from ..runs import sample_images
from ..training import Run
from ..types import Dataset
from .adaptive import (
    AdaptiveEvaluation,
    EOTClassifier,
    MaskingCheck,
    attack_view,
    check_masking,
    evaluate_adaptive,
    masking_remarks,
    strip_defences,
)
from .attacking import attack_run
from .corruption_benchmark import CorruptionResult, draw_forms, measure_corruptions
from .corruption_kernels import SEVERITIES, Corruption
from .corruptions import (
    Brightening,
    DefocusBlur,
    ElasticDistortion,
    Fog,
    Frost,
    GaussianNoise,
    GlassBlur,
    ImpulseNoise,
    JPEGCompression,
    LowContrast,
    MotionBlur,
    Pixelation,
    ShotNoise,
    Snow,
    ZoomBlur,
)
from .robust_accuracy import CurvePoint, RobustCurve, robust_curve
from .smoothing import ABSTAINS, Certificate, certify, predict_smoothed

if TYPE_CHECKING:
    from PIL.Image import Image

CORRUPTIONS: Mapping[str, Corruption] = {
    "gaussian-noise": GaussianNoise(),
    "shot-noise": ShotNoise(),
    "impulse-noise": ImpulseNoise(),
    "defocus-blur": DefocusBlur(),
    "glass-blur": GlassBlur(),
    "motion-blur": MotionBlur(),
    "zoom-blur": ZoomBlur(),
    "snow": Snow(),
    "frost": Frost(),
    "fog": Fog(),
    "brightness": Brightening(),
    "contrast": LowContrast(),
    "elastic": ElasticDistortion(),
    "pixelate": Pixelation(),
    "jpeg": JPEGCompression(),
}
"""Name -> corruption, in the order of the papers: noise, blur, weather, digital."""

MAX_CORRUPTED_IMAGES = 1000
"""Test images by default, at most: each is classified 76 times."""


def evaluate_corruptions(
    classifier: Classifier, dataset: Dataset, *, sample: str = "", seed: int = 0
) -> CorruptionResult:
    """Classify every image clean and in 75 corrupted forms, in eval mode, on the classifier's device.

    ``sample`` describes the images in a sentence. The random draws depend on ``seed`` alone. Raises DataError for
    images that do not fit the classifier.
    """
    return measure_corruptions(classifier, dataset, CORRUPTIONS, sample=sample, seed=seed)


def corrupt_run(run: Run, *, limit: int = MAX_CORRUPTED_IMAGES, seed: int = 0) -> CorruptionResult:
    """Test a run's classifier under every corruption and write ``corruptions.json`` and ``corruptions.png``.

    About ``limit`` test images are used, each class in its share. The picture shows one image in all its forms with
    the accuracy under each. Raises DataError for a limit below 1.
    """
    some, sentence = sample_images(run.splits.test, limit, seed, "test images")
    result = evaluate_corruptions(run.classifier, some, sample=sentence, seed=seed)
    write_json(run.folder / "corruptions.json", {"run": run.folder.name, **result.as_json()})
    with atomic_replace(run.folder / "corruptions.png") as temporary:
        draw_corruptions(run.splits.test[:1][0], result).save(temporary)
    return result


def draw_corruptions(
    image: ndarray, result: CorruptionResult | None = None, *, seed: int = 0, cell: int = 112
) -> "Image":
    """One image (H W C, uint8) in all its forms: a row per corruption, clean and at five severities.

    With a ``result`` the accuracy is written under each form. ``cell`` is the side of a form in pixels.
    """
    return draw_forms(image, CORRUPTIONS, result, seed=seed, cell=cell)
