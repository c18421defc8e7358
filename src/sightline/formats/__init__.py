"""The same answers, in another file: exported, and compared with the classifier before it is kept."""

from collections.abc import Mapping
from pathlib import Path

from ..choose import lookup
from ..classifier import Classifier
from ..exported_model import ExportedModel, open_exported
from ..types import Dataset
from .exporting import MAX_COMPARED_IMAGES, Format, export_compared, write_format
from .module import ExportModule
from .onnx_file import open_onnx, open_openvino, write_onnx, write_openvino
from .parity import FLOAT_LIMITS, INT8_LIMITS, Parity, Runner, TorchRunner, compare_answers, measure_latencies
from .torch_file import open_torch_program, write_torch

FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", write_onnx, open_onnx, "One file for onnxruntime on any system; int8 stays int8."),
    "torch": Format(".pt2", write_torch, open_torch_program, "torch.export, for programs that have torch."),
    "openvino": Format("", write_openvino, open_openvino, "A folder for OpenVINO (an optional extra)."),
}
"""Word of ``--to`` -> the format."""


def export(
    run: Path | str | Classifier,
    out: Path | str,
    *,
    to: str = "onnx",
    data: Path | str | Dataset | None = None,
    limit: int | None = MAX_COMPARED_IMAGES,
    overwrite: bool = False,
) -> Parity:
    """Write a classifier as a file, and keep it only if its answers on labelled images are the classifier's.

    Args:
        run: a run or bundle folder, or a classifier.
        out: the file, or the folder for openvino.
        to: a word of ``FORMATS``.
        data: labelled images to compare on. Default: the run's validation images.
        limit: about how many images to compare, each class in its share; None for all.

    Raises RequirementNotMet for what the format cannot hold and for answers that differ, OutputError where ``out``
    exists or cannot be written, DataError where there are no images to compare on.
    """
    form = lookup(FORMATS, to, "format")
    return export_compared(run, Path(out), form, to, data=data, limit=limit, overwrite=overwrite)


def write_exported(classifier: Classifier, path: Path | str, *, to: str = "onnx") -> Path:
    """Write a classifier as a file, whole or not at all, without comparing anything: see ``export`` for that.

    Raises RequirementNotMet for a classifier that the format cannot hold, OutputError where it cannot be written.
    """
    return write_format(classifier, Path(path), lookup(FORMATS, to, "format"), to)
