"""An exported file as a classifier's network again: pixels go in, its probabilities come out.

An ONNX file is a description of sums and products, run by onnxruntime; a ``.pt2`` file is unpickled by torch to be
read, which would run a stranger's code, so it is never read back.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from .. import runtime
from ..errors import BundleError, OutputError
from ..layers import Network
from ..types import Geometry

EXPORT_FORMAT = 1
"""Version of what an exported file says of itself; a release reads its own and every earlier one."""

EXPORT_INPUT, EXPORT_OUTPUT = "images", "probabilities"
"""Names of what goes in, uint8 (N H W C), and of what comes out, float32 (N K)."""

MAX_EXPORTED_BATCH = 256
"""Images that a file is given at once, at most."""


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """An exported file, ready to answer."""

    session: Any
    """onnxruntime's."""
    classes: tuple[str, ...]
    geometry: Geometry
    threshold: float
    """Confidences below it are answered "unknown"."""
    facts: Mapping[str, Any]
    """What else the file says of itself: ``format``, ``sightline``, ``model``, ``provenance``."""

    def probabilities(self, images: UInt8[ndarray, "N H W C"]) -> Float[ndarray, "N K"]:
        """The file's answers."""
        if not len(images):
            return np.zeros((0, len(self.classes)), np.float32)
        if len(images) <= MAX_EXPORTED_BATCH:
            return self.session.run(None, {EXPORT_INPUT: np.ascontiguousarray(images)})[0]
        return np.concatenate(
            [
                self.probabilities(images[i : i + MAX_EXPORTED_BATCH])
                for i in range(0, len(images), MAX_EXPORTED_BATCH)
            ]
        )


def open_exported(path: Path | str, *, threads: int | None = None) -> ExportedModel:
    """An ONNX file that ``export`` wrote, on as many ``threads`` as there are cores unless told otherwise.

    Raises BundleError for what is no such file, is damaged, or is newer than this release.
    """
    path = Path(path)
    if path.suffix.lower() != ".onnx":
        why = "a .pt2 file is unpickled to be read, so nobody's is" if path.suffix == ".pt2" else "it is no bundle"
        raise BundleError(f"'{path}' cannot be opened: {why}. Name a run, a bundle folder or an .onnx file.")
    if not path.is_file():
        raise BundleError(f"There is no file '{path}'.")
    return read_exported(open_session(path, threads), path)


def open_session(path: Path, threads: int | None = None, settings: Mapping[str, str] | None = None) -> Any:
    """A session of onnxruntime for a file, with its ``settings``; raises BundleError where it cannot be read."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(runtime.cpu_count(), torch.get_num_threads())
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in (settings or {}).items():
        options.add_session_config_entry(name, value)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a kind of its own for each of its codes
        reason = str(error).splitlines()[0].rstrip(".")
        raise BundleError(f"'{path}' cannot be read by onnxruntime: {reason}. Export it again.") from error


def read_exported(session: Any, path: Path) -> ExportedModel:
    """What a file says of itself; raises BundleError where that is missing or makes no sense."""
    said = session.get_modelmeta().custom_metadata_map
    if "classes" not in said or "geometry" not in said:
        raise BundleError(f"'{path}' was not exported by Sightline: it names no classes. Name a run or a bundle.")
    try:
        facts = {name: json.loads(text) for name, text in said.items()}
        if (version := int(facts["format"])) > EXPORT_FORMAT:
            raise BundleError(
                f"'{path}' has format {version}, newer than this release reads ({EXPORT_FORMAT}). "
                "Upgrade with: pip install --upgrade sightline"
            )
        geometry, threshold = Geometry.from_json(facts.pop("geometry")), float(facts.pop("threshold"))
        found = ExportedModel(session, tuple(facts.pop("classes")), geometry, threshold, facts)
        _check_exported(found)
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"What '{path}' says of itself makes no sense: {error}. Export it again.") from error


def _check_exported(found: ExportedModel) -> None:
    """Raise ValueError where names, sizes and the graph do not belong together."""
    classes, shape = found.classes, found.geometry.shape
    if len(set(classes)) != len(classes) or not all(isinstance(name, str) for name in classes):
        raise ValueError("its classes are not different names")
    ends = {one.name: one for one in (*found.session.get_inputs(), *found.session.get_outputs())}
    given, answers = list(ends[EXPORT_INPUT].shape[1:]), ends[EXPORT_OUTPUT].shape[-1]
    if given != list(shape) or answers != len(classes):
        raise ValueError(f"it takes {given} and gives {answers} numbers, not {list(shape)} and {len(classes)}")
    if not 0 <= found.threshold <= 1 or math.isnan(found.threshold):
        raise ValueError(f"its threshold is {found.threshold}, not a confidence from 0 to 1")


class ExportedNetwork(Network):
    """``pixels (B C H W) in [0, 1] -> log probabilities (B K)`` by the file; it has no gradient."""

    differentiable = False
    export_refusal = "This is an exported file already: copy it, or export the run it came from."

    known: Tensor

    def __init__(self, found: ExportedModel):
        super().__init__()
        self.found = found
        self.register_buffer("known", torch.ones(len(found.classes), dtype=torch.bool))

    @property
    def n_classes(self) -> int:
        """Classes it tells apart."""
        return len(self.known)

    def logits(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logarithms of the file's probabilities, which are of 8-bit pixels."""
        whole = (pixels.detach() * 255).round().clamp(0, 255).to(torch.uint8)
        answers = self.found.probabilities(whole.permute(0, 2, 3, 1).cpu().numpy())
        tiny = float(np.finfo(np.float32).tiny)
        return torch.from_numpy(answers).clamp_min(tiny).log().to(pixels.device)

    def save_extra_files(self, folder: Path) -> None:
        """A file is kept by copying it: raises OutputError."""
        del folder
        raise OutputError("An exported file is kept by copying it: it holds no weights that could be saved apart.")
