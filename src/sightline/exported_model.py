"""An exported ONNX file, opened: its metadata, and its answers to images. Nothing here needs torch.

An ONNX file describes arithmetic, which onnxruntime runs. A ``.pt2`` file is never read back: torch unpickles it,
which would run its author's code.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from . import progress, runtime
from .errors import BundleError
from .types import Geometry

EXPORT_FORMAT = 1
"""Version of an exported file's metadata; a release reads its own and every earlier one."""

EXPORT_INPUT, EXPORT_OUTPUTS = "images", ("probabilities", "features", "energy")
"""Names of the input, uint8 (N H W C), and of the outputs, float32 (N K), (N D) and (N).

Files of earlier releases and of networks without a last layer have the first output only.
"""

MAX_EXPORTED_BATCH = 256
"""Images per call of the session, at most."""


@dataclass(frozen=True, eq=False)
class NetworkOutputs:
    """What a network says of N images in one pass."""

    probabilities: Float[ndarray, "N K"]
    """Calibrated."""
    features: Float[ndarray, "N D"] | None = None
    """The input of the last layer; None for a network without one."""
    energy: Float[ndarray, " N"] | None = None
    """Minus the logarithm of the sum of exponentials of the logits: high for images unlike those trained on."""


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An open exported file."""

    session: Any
    """An ``onnxruntime.InferenceSession``."""
    classes: tuple[str, ...]
    geometry: Geometry
    threshold: float
    """Confidence below which the answer is "unknown"."""
    facts: Mapping[str, Any]
    """Its other metadata: ``format``, ``sightline``, ``model``, ``provenance``."""

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """Calibrated probabilities of uint8 images."""
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        some = [images[i : i + MAX_EXPORTED_BATCH] for i in range(0, len(images), MAX_EXPORTED_BATCH)]
        answers = [self._run(EXPORT_OUTPUTS[:1], one)[0] for one in some]
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def outputs(self, images: UInt8[ndarray, "N H W C"]) -> NetworkOutputs:
        """All outputs of at most ``MAX_EXPORTED_BATCH`` uint8 images."""
        return NetworkOutputs(*self._run(self._names, images))

    @cached_property
    def _names(self) -> tuple[str, ...]:
        given = {one.name for one in self.session.get_outputs()}
        return tuple(name for name in EXPORT_OUTPUTS if name in given)

    def _run(self, names: Sequence[str], images: UInt8[ndarray, "N H W C"]) -> list[ndarray]:
        return self.session.run(list(names), {EXPORT_INPUT: np.ascontiguousarray(images)})


def open_exported(path: Path | str, *, threads: int | None = None) -> ExportedModel:
    """Open an ONNX file that ``export`` wrote; ``threads`` defaults to those of torch.

    Raises BundleError for any other file, and for one that is damaged or newer than this release.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        why = "reading a .pt2 file could run code in it" if path.suffix == ".pt2" else "it is not a bundle"
        raise BundleError(f"'{path}' cannot be opened: {why}. Name a run, a bundle folder or an .onnx file.")
    if not path.is_file():
        raise BundleError(f"There is no file '{path}'.")
    return read_exported(open_session(path, threads), path)


def open_session(path: Path, threads: int | None = None, settings: Mapping[str, str] | None = None) -> Any:
    """An onnxruntime session for a file, with these config entries; raises BundleError where it cannot be read."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or runtime.thread_count()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each of its codes
        reason = str(error).splitlines()[0].rstrip(".")
        raise BundleError(f"'{path}' cannot be read by onnxruntime: {reason}. Export it again.") from error


def read_exported(session: Any, path: Path) -> ExportedModel:
    """The model of an open session, checked; raises BundleError where its metadata is missing or inconsistent."""
    metadata = session.get_modelmeta().custom_metadata_map
    if "classes" not in metadata or "geometry" not in metadata:
        raise BundleError(f"'{path}' was not exported by Sightline: it names no classes. Name a run or a bundle.")
    try:
        facts = {name: json.loads(text) for name, text in metadata.items()}
        if (version := int(facts["format"])) > EXPORT_FORMAT:
            raise BundleError(
                f"'{path}' has format {version}, newer than this release reads ({EXPORT_FORMAT}). "
                "Upgrade with: pip install --upgrade sightline"
            )
        geometry, threshold = Geometry.from_json(facts.pop("geometry")), float(facts.pop("threshold"))
        classes = tuple(facts.pop("classes"))
        if len(set(classes)) != len(classes) or not all(isinstance(name, str) for name in classes):
            raise ValueError("its classes are not different names")
        ends = {one.name: one for one in (*session.get_inputs(), *session.get_outputs())}
        given, answers = list(ends[EXPORT_INPUT].shape[1:]), ends[EXPORT_OUTPUTS[0]].shape[-1]
        if given != list(geometry.shape) or answers != len(classes):
            wanted = f"{list(geometry.shape)} and {len(classes)}"
            raise ValueError(f"it takes {given} and gives {answers} numbers, not {wanted}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"its threshold is {threshold}, not a confidence from 0 to 1")
        if facts.get("int8_bits") == 8 and runtime.has_vnni() is False:
            progress.notify(
                f"'{path}' has weights of 8 bits, whose sums overflow on this processor (it has no VNNI): some answers "
                "are wrong. Compress again with int8, whose weights of 7 bits are right on every processor."
            )
        return ExportedModel(session, classes, geometry, threshold, facts)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"The metadata of '{path}' makes no sense: {error}. Export it again.") from error
