"""sightline: from a folder of images to a classifier you can trust, ship and keep.

errors choose checks batches types files runtime progress metrics pictures : the ground, words every stage uses
sources : where labelled images lie, a folder, an archive, a table, a name
data : bytes become labelled images
exported_model : an exported file, which onnxruntime answers
predictions : image files become answers
preprocessing : images become what a network expects
augmentation : one image becomes many
layers : what networks are made of
models : from pixels to logits, and every change a network can survive
mixed_precision : answers in bfloat16 where that pays, close calls in float32
classifier : the waist, preprocessing + network + class names + calibration
inference : a classifier run over a dataset, logits, probabilities, features
features : what a backbone sees in every image, computed once and kept
attacks : the smallest change that breaks an answer
training : data and a recipe become a classifier
runs : a run or bundle opened with the images to examine it on
baselines : what the classical methods would have given
evaluation : how good is it, how sure are we, and for whom?
comparison : many trained, one table
tuning : many recipes, one winner
ensembles : several classifiers become one
formats : the same answers, in another file
explanation | robustness | compression : why? what breaks it? how small can it be?
adaptation : another world, and images without labels
continual : learn more later, forget less
evidence : all of it on one page
journal : what was answered, and what people said of it
serving : the classifier meets the world
feedback : the world answers
studio : the same verbs, with a mouse
cli : the same verbs, from a shell

The verbs of this table are offered here, and loaded when first used:

>>> import sightline
>>> sightline.Recipe(model="lenet5").model
'lenet5'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adaptation import adapt, pretrain
    from .classifier import Classifier, load
    from .comparison import compare, cross_validate
    from .compression import compress
    from .continual import learn
    from .data import audit
    from .ensembles import combine
    from .evaluation import evaluate
    from .evidence import write_report
    from .explanation import explain
    from .formats import export
    from .journal import Journal
    from .robustness import attack_run
    from .serving import Client, publish, serve
    from .training import Recipe, Run, reopen, resume, train
    from .tuning import tune

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "Client",
    "Journal",
    "Recipe",
    "Run",
    "adapt",
    "attack_run",
    "audit",
    "combine",
    "compare",
    "compress",
    "cross_validate",
    "evaluate",
    "explain",
    "export",
    "learn",
    "load",
    "pretrain",
    "publish",
    "reopen",
    "resume",
    "serve",
    "train",
    "tune",
    "write_report",
]

_STAGES = {
    "classifier": ("Classifier", "load"),
    "data": ("audit",),
    "training": ("Recipe", "Run", "reopen", "resume", "train"),
    "evaluation": ("evaluate",),
    "comparison": ("compare", "cross_validate"),
    "tuning": ("tune",),
    "ensembles": ("combine",),
    "formats": ("export",),
    "explanation": ("explain",),
    "robustness": ("attack_run",),
    "compression": ("compress",),
    "adaptation": ("adapt", "pretrain"),
    "continual": ("learn",),
    "evidence": ("write_report",),
    "journal": ("Journal",),
    "serving": ("Client", "publish", "serve"),
}


def __getattr__(name: str) -> Any:
    """Import a stage when a name of it is first used: ``import sightline`` alone costs nothing."""
    for stage, names in _STAGES.items():
        if name in names:
            return getattr(import_module(f".{stage}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
