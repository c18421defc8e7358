"""The kinds of file a classifier can be written as."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float, UInt8
from numpy import ndarray

from ..choose import lookup
from ..classifier import Classifier
from ..errors import OutputError
from ..files import atomic_replace
from . import onnx_file, openvino_file, torch_file


@runtime_checkable
class Runner(Protocol):
    """Anything that answers 8-bit images with probabilities: an exported file, or the classifier itself."""

    def probabilities(self, images: UInt8[ndarray, "N H W C"], /) -> Float[ndarray, "N K"]:
        """The probability of each class for each image."""
        ...


@dataclass(frozen=True)
class Format:
    """A kind of file."""

    suffix: str
    """How its name ends; a folder's has none."""
    write: Callable[[Classifier, Path], None]
    """``(classifier, path)``; raises Refused for what it cannot hold."""
    open: Callable[[Path], Runner]
    """A file just written, ready to be compared."""
    summary: str


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        ".onnx", onnx_file.write_onnx, onnx_file.open_onnx, "One file for onnxruntime, anywhere; int8 stays int8."
    ),
    "torch": Format(
        ".pt2",
        torch_file.write_torch,
        torch_file.open_torch_program,
        "torch.export, for programs that have torch.",
    ),
    "openvino": Format(
        "", openvino_file.write_openvino, openvino_file.open_openvino, "A folder for OpenVINO (an optional extra)."
    ),
}
"""Name -> the kind of file."""


def get_format(to: str, path: Path) -> Format:
    """The format called ``to``; raises ChoiceError or, where the path does not fit it, OutputError."""
    found = lookup(FORMATS, to, "format")
    if path.suffix.lower() != found.suffix and (found.suffix or path.suffix.lower() in (".onnx", ".pt2", ".xml")):
        what = f"ends in {found.suffix}" if found.suffix else "is a folder"
        raise OutputError(f"'{path}' does not fit --to {to}, which {what}: call it {path.stem}{found.suffix}.")
    return found


def write_exported(classifier: Classifier, path: Path | str, *, to: str = "onnx") -> Path:
    """Write a classifier as a file, whole or not at all, without comparing anything: see ``export`` for that.

    Raises Refused for a classifier that the format cannot hold, OutputError where it cannot be written.
    """
    path = Path(path)
    form = get_format(to, path)
    with atomic_replace(path) as temporary:
        form.write(classifier, temporary)
    return path
