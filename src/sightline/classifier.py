"""The waist: preprocessing + network + class names + calibration.

Every stage after training uses a network through this class: pixels in [0, 1], (B C H W), at the working size, go
in. On disk it is a bundle: ``config.json`` with a checksum of every other file, ``model.safetensors`` and a card.
"""

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from . import runtime
from .data import ImageInput, to_tensor
from .errors import BundleError, SightlineError
from .exported_model import open_exported
from .files import atomic_replace, checksum, write_json, write_text
from .layers import Network, fold_replica, replicate
from .mixed_precision import MixedPrecision, Precision, make_answer
from .models import (
    ANSWERS_FILE,
    BUNDLE_FORMAT,
    CARD_FILE,
    MEMORY_FOLDER,
    TENSORS_FILE,
    Architecture,
    ExportedNetwork,
    Memory,
    build,
    check_bundle_files,
    check_bundle_values,
    copy_bundle,
    limit_parameters,
    list_bundle_files,
    read_answers,
    read_bundle_config,
    read_bundle_tensors,
    read_tensor_shapes,
)
from .predictions import MAX_BATCH_IMAGES, Ranker, batch_images, predict_batches
from .preprocessing import Preprocessing
from .types import Geometry, Prediction

FEW_BATCHES = 2
"""Batches that ``predict`` answers before replicas of the network, with folded norms, would be ready."""


class Classifier(nn.Module):
    """Preprocessing, a network, class names and calibration.

    ``classifier(x)`` returns raw logits, ``classifier.probabilities(x)`` applies the temperature and
    ``classifier.predict(files)`` decodes image files and returns class names.

    Arguments:
        preprocessing: Steps from pixels in [0, 1] to what the network expects.
        network: ``(B C H W) -> logits (B K)``.
        architecture: What ``build`` needs to make the network again when a bundle is loaded.
        classes: K names, in the order of the logits.
        geometry: How an image file becomes pixels of the working size.
        temperature: Above 0; logits are divided by it before the softmax.
        threshold: Confidence in [0, 1] below which the answer is "unknown"; 0 never abstains.
        answers: Contents of ``answers.json``: conformal quantiles.
        memory: What continual learning needs to know of past data.
        provenance: Data, recipe and parent of the classifier, as JSON.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        network: Network,
        *,
        architecture: Architecture,
        classes: Sequence[str],
        geometry: Geometry,
        temperature: float = 1.0,
        threshold: float = 0.0,
        answers: Mapping[str, Any] | None = None,
        memory: Memory | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        self.network = network
        self.architecture = architecture
        self.classes = tuple(classes)
        self.geometry = geometry
        self.temperature = temperature
        self.threshold = threshold
        self.answers, self.memory = dict(answers or {}), memory or Memory()
        self.provenance = dict(provenance or {})

    def forward(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Raw logits of pixels in [0, 1]."""
        return self.network(self.preprocessing(pixels))

    def probabilities(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Calibrated probabilities: softmax(logits / temperature), in float32."""
        return torch.softmax(self(pixels).float() / self.temperature, dim=1)

    def features(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The input of the last layer (of a baseline, of its estimator); BundleError where the network has none."""
        return self.network.embed(self.preprocessing(pixels))

    def features_and_logits(self, pixels: Float[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, K) of one pass, for a loss that needs both."""
        return self.network.features_and_logits(self.preprocessing(pixels))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def differentiable(self) -> bool:
        """Whether logits have a gradient with respect to the pixels; a scikit-learn estimator has none."""
        return self.network.differentiable

    @property
    def stochastic(self) -> bool:
        """Whether a module draws at random in eval mode, such as noise on pixels or in weights."""
        inside = chain(self.preprocessing.modules(), self.network.modules())
        return any(getattr(module, "stochastic", False) for module in inside)

    def with_network(self, network: Network, change: str, arguments: Mapping[str, Any]) -> "Classifier":
        """A classifier with ``network``, this one's after the surgery ``change``, which loading repeats.

        ``arguments`` are those of the surgery, as JSON. The temperature stays; threshold, conformal quantiles and
        memory belong to the old answers and are dropped.
        """
        plan = self.architecture
        return Classifier(
            copy.deepcopy(self.preprocessing),
            network,
            architecture=dataclasses.replace(plan, surgery=(*plan.surgery, (change, arguments))),
            classes=self.classes,
            geometry=self.geometry,
            temperature=self.temperature,
            provenance=self.provenance,
        ).to(self.device).eval()  # fmt: skip

    def predict(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        top: int = 5,
        precision: Precision = "auto",
    ) -> list[Prediction]:
        """The ``top`` most probable classes of each image, in order.

        ``images`` is one image or several: paths, bytes of image files, files opened in binary mode, Pillow images,
        or uint8 arrays (H W) or (H W C) of any size. An image that cannot be read gives a Prediction with its
        ``error``; anything else than an image raises DataError. ``precision`` is that of ``iter_predictions``.
        """
        return list(self.iter_predictions(images, top=top, precision=precision))

    def iter_predictions(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        top: int = 5,
        precision: Precision = "auto",
    ) -> Iterator[Prediction]:
        """``predict`` as a stream, for more images than should be waited for or held in memory.

        On the CPU, more images than a few are answered by one thread for each core, each with a replica of the network
        whose batch norms are folded (``fold_replica``). With ``precision`` "auto" they use bfloat16 where that pays
        (``MixedPrecision``): labels are those of float32, confidences differ by a few hundredths at most.
        """
        self.eval()
        threads, alone = runtime.thread_count(), make_answer(self.probabilities, self.device)
        ranker = Ranker(self.classes, self.geometry, self.threshold, top)
        if self.device.type == "cpu" and self.differentiable:
            size, begin = batch_images(self.geometry), runtime.use_one_thread
            plain = precision == "float32" or self.network.rounding is not None or self.stochastic
            mixed = None if plain or not runtime.has_bfloat16() else MixedPrecision(self.threshold)
            share = lambda: [make_answer(one.probabilities, self.device, mixed) for one in self._replicas(threads)]  # noqa: E731
        else:  # one pass at a time: an accelerator, or another library, which has threads of its own
            size, begin, share = MAX_BATCH_IMAGES, None, lambda: [alone] * threads
        try:
            yield from predict_batches(images, ranker, size, alone, share, begin, FEW_BATCHES)
        finally:
            torch.set_num_threads(threads)  # a thread's own setting becomes the default of later threads

    def fold(self) -> "Classifier":
        """A replica for inference mode with batch norms folded (``fold_replica``); itself where that cannot be."""
        steady = self.differentiable and self.network.rounding is None and not self.stochastic
        if self.device.type != "cpu" or not steady:
            return self
        drawn = np.random.default_rng(0).integers(0, 256, (1, *self.geometry.shape), np.uint8)
        return fold_replica(self, to_tensor(drawn), (self.memory, self.provenance, self.answers))

    def _replicas(self, count: int) -> "list[Classifier]":
        """Classifiers that answer as this one does: modules of their own, with the same weights."""
        kept, folded = (self.memory, self.provenance, self.answers), self.fold()
        return [replicate(folded, kept) for _ in range(count)]

    def save(self, folder: Path | str) -> Path:
        """Write the bundle, whole or not at all; raises OutputError where it cannot be written."""
        folder = Path(folder)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        with atomic_replace(folder) as temporary:
            temporary.mkdir()
            (temporary / TENSORS_FILE).write_bytes(save(tensors))
            self.network.save_extra_files(temporary)
            if self.answers:
                write_json(temporary / ANSWERS_FILE, self.answers)
            if self.memory:
                self.memory.save(temporary / MEMORY_FOLDER)
            (temporary / CARD_FILE).write_text(self._card_text(), encoding="utf-8")
            config = self.config()
            config["files"] = {name: checksum(temporary / name) for name in list_bundle_files(temporary)}
            write_json(temporary / "config.json", config)
        return folder

    def config(self) -> dict[str, Any]:
        """Everything but tensors, as ``config.json`` holds it."""
        return {
            "format": BUNDLE_FORMAT,
            "sightline": runtime.version(),
            "architecture": self.architecture.config(),
            "classes": list(self.classes),
            "preprocessing": self.preprocessing.config(),
            "geometry": self.geometry.as_json(),
            "temperature": self.temperature,
            "threshold": self.threshold,
            "provenance": self.provenance,
        }

    def _card_text(self) -> str:
        g, plan = self.geometry, self.architecture
        return (
            f"# A Sightline image classifier\n\n{plan.arguments.get('word') or plan.name} for "
            f"{len(self.classes)} classes: "
            f"{', '.join(self.classes)}.\n\nIt expects {g.size[0]} x {g.size[1]} pixels, {g.channels} "
            f"channel(s), fitted by '{g.resize_mode}'; image files of any size are resized automatically:\n\n"
            "    import sightline\n"
            '    print(sightline.load("THIS_FOLDER").predict("image.jpg"))\n'
        )

    @classmethod
    def load(cls, folder: Path | str) -> "Classifier":
        """The classifier of a run folder, a bundle folder or an exported ONNX file, in eval mode.

        Raises BundleError where it is damaged, unsafe, unknown or from a newer release.
        """
        if Path(folder).is_file():
            return cls._from_exported(Path(folder))
        folder = find_bundle(folder)
        config = read_bundle_config(folder)
        check_bundle_files(folder, config)
        shapes = read_tensor_shapes(folder)
        with _explain_config_errors(folder), limit_parameters(len(shapes)):
            planned = cls._from_config(config, folder)  # without memory: a stranger's config may ask for any size
        planned._check_shapes(shapes, folder)
        with _explain_config_errors(folder):
            classifier = cls._from_config(config, folder)
        classifier.load_state_dict(read_bundle_tensors(folder, classifier.state_dict()))
        classifier.network.load_extra_files(folder)
        classifier.memory = Memory.load(folder / MEMORY_FOLDER)
        if (outputs := classifier.network.n_classes) != len(classifier.classes):
            names = f"{len(classifier.classes)} classes for {outputs} outputs"
            raise BundleError(f"The config.json of '{folder}' names {names}. Copy the bundle again.")
        return classifier.eval()

    @classmethod
    def _from_config(cls, config: Mapping[str, Any], folder: Path) -> "Classifier":
        architecture = Architecture.from_config(config["architecture"])
        geometry = Geometry.from_json(config["geometry"])
        check_bundle_values(config)
        return cls(
            Preprocessing.from_config(config["preprocessing"]),
            build(architecture),
            architecture=architecture,
            classes=config["classes"],
            geometry=geometry,
            temperature=float(config["temperature"]),
            threshold=float(config.get("threshold", 0.0)),  # bundles of the first releases have none
            answers=read_answers(folder),
            provenance=config["provenance"],
        )

    @classmethod
    def _from_exported(cls, path: Path) -> "Classifier":
        """An exported file as a classifier: preprocessing and temperature are inside its network."""
        found = open_exported(path)
        geometry = found.geometry
        given = {"classes": len(found.classes), "channels": geometry.channels, "size": list(geometry.size)}
        return cls(
            Preprocessing(),
            ExportedNetwork(found),
            architecture=Architecture("exported", given),
            classes=found.classes,
            geometry=geometry,
            threshold=found.threshold,
            provenance=found.facts.get("provenance", {}),
        ).eval()

    def _check_shapes(self, given: Mapping[str, tuple[int, ...]], folder: Path) -> None:
        """Raise BundleError unless the tensors of these shapes are those of this classifier."""
        own = {name: tuple(t.shape) for name, t in self.state_dict().items()}
        for what, names in (
            ("lacks tensors", own.keys() - given.keys()),
            ("has tensors that its network does not have", given.keys() - own.keys()),
            ("has tensors of another shape", {n for n in own.keys() & given.keys() if own[n] != given[n]}),
        ):
            if names:
                raise BundleError(
                    f"The bundle '{folder}' {what}: {', '.join(sorted(names)[:3])}{' ...' if len(names) > 3 else ''}. "
                    "Save or copy it again; its config.json and model.safetensors do not belong together."
                )


@contextmanager
def frozen_eval(classifier: Classifier, *, weight_noise: bool = True) -> Iterator[None]:
    """Eval mode, gradients recorded for the pixels and not for the weights; afterwards every module is as before.

    ``weight_noise=False`` also switches off the noise that a defence draws in the weights.
    """
    modes = [(module, module.training) for module in classifier.modules()]
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    networks = [module for module in classifier.modules() if isinstance(module, Network)]
    noisy = [] if weight_noise else [(one, one.noise) for one in networks if one.noise is not None]
    try:
        for network, _ in noisy:
            network.noise = None
        classifier.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode
        for network, noise in noisy:
            network.noise = noise


def load(run: str | Path) -> Classifier:
    """The classifier of a run, a bundle or a release folder: ``Classifier.load``."""
    return Classifier.load(run)


@contextmanager
def _explain_config_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, SightlineError) as error:
        raise BundleError(f"The config.json of '{folder}' cannot be understood: {error}.") from error


def find_bundle(path: Path | str) -> Path:
    """The bundle folder of a run, or ``path`` itself; raises BundleError where there is no bundle yet."""
    folder = Path(path)
    if not folder.exists():
        raise BundleError(f"There is no run or bundle '{path}'. `sightline runs` lists the runs.")
    if (folder / "recipe.toml").is_file() and not (folder / "classifier").is_dir():
        raise BundleError(f"The run '{path}' has no classifier yet. Go on with: sightline train --resume {path}")
    return folder / "classifier" if (folder / "classifier").is_dir() else folder


def write_bundle_card(folder: Path, text: str) -> None:
    """Replace a bundle's card and the card's checksum."""
    config = read_bundle_config(folder)
    write_text(folder / CARD_FILE, text)
    config["files"][CARD_FILE] = checksum(folder / CARD_FILE)
    write_json(folder / "config.json", config)


def amend_bundle(
    folder: Path | str, *, threshold: float | None = None, answers: Mapping[str, Any] | None = None
) -> Path:
    """Set the threshold or the ``answers.json`` of a bundle or of a run's bundle, and return the bundle's folder.

    A changed copy of the bundle replaces it in one step. Raises BundleError where its files do not pass the checks
    of loading.
    """
    folder = find_bundle(folder)
    config = read_bundle_config(folder)
    check_bundle_files(folder, config)
    with atomic_replace(folder) as temporary:
        copy_bundle(folder, temporary)
        if threshold is not None:
            config["threshold"] = threshold
        if answers is not None:
            write_json(temporary / ANSWERS_FILE, answers)
            config["files"][ANSWERS_FILE] = checksum(temporary / ANSWERS_FILE)
        write_json(temporary / "config.json", config)
    return folder
