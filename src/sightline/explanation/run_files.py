"""What explaining reads and writes: a run or bundle, image files, and the run's folder of explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from .. import runtime
from ..choose import lookup
from ..classifier import Classifier
from ..data import decode_with_header
from ..errors import DataError, ImageError, OutputError, SightlineError
from ..files import atomic_replace, write_json
from ..runs import open_run
from ..sources import list_images
from ..training import Run
from ..types import Geometry, Remark
from .counterfactual import Gallery, build_gallery

if TYPE_CHECKING:
    from PIL.Image import Image

EXPLANATIONS_FOLDER = "explanations"
"""Folder of a run that keeps its explanations."""

MAX_EXPLAINED_IMAGES = 100
"""Images that one command explains, at most."""


@dataclass(frozen=True, eq=False)
class ExplainedRun:
    """A run or bundle to explain, and the folder that keeps the results."""

    path: Path
    classifier: Classifier
    run: Run | None = None
    """None for a bundle, and for a run whose images are missing."""
    remarks: tuple[Remark, ...] = ()

    @classmethod
    def open(cls, path: Path, *, device: str = "auto") -> "ExplainedRun":
        """Open a run with its images where they still are, or a bundle; BundleError for anything else."""
        remarks: tuple[Remark, ...] = ()
        if (path / "recipe.toml").is_file():
            try:
                run = open_run(path, device=device)
            except SightlineError as error:  # an answer can be explained without the training images
                remarks = (Remark("note", f"Nearest training images are left out: {error}"),)
            else:
                return cls(path, run.classifier, run)
        return cls(path, Classifier.load(path).to(runtime.resolve_device(device)), remarks=remarks)

    def gallery(self) -> Gallery | None:
        """The training images with their features; None without a run."""
        return None if self.run is None else build_gallery(self.classifier, self.run.splits.train)

    def picture_path(self, out: Path | None, name: str) -> Path:
        """Where a picture goes: ``out``, or ``name`` in the run's folder of explanations.

        Raises OutputError for a bundle without ``out``, and for an ending that is no picture's.
        """
        if out is None:
            if not (self.path / "recipe.toml").is_file():
                raise OutputError(
                    f"'{self.path}' is a classifier without its run: say where the picture goes, --out {name}."
                )
            return self.path / EXPLANATIONS_FOLDER / name
        if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise OutputError(
                f"'{out}' does not end like a picture. Call it {out.stem or 'heat'}.png, for example."
            )
        return out

    def save(self, picture: "Image", where: Path, name: str, value: Mapping[str, Any]) -> None:
        """Write the picture, and the results as ``name`` into the run's folder; a bundle keeps no results."""
        with atomic_replace(where) as temporary:
            picture.save(temporary)
        if (self.path / "recipe.toml").is_file():
            write_json(self.path / EXPLANATIONS_FOLDER / name, value)


@dataclass(frozen=True, eq=False)
class DecodedFiles:
    """Image files as the classifier sees them."""

    files: tuple[str, ...]
    pixels: UInt8[ndarray, "N H W C"]
    remarks: tuple[Remark, ...] = ()


def decode_files(words: Sequence[str], geometry: Geometry) -> DecodedFiles:
    """Decode the images that files, folders and patterns name, as the classifier sees them.

    Remarks name the files that could not be read, and what was changed in others. Raises DataError where none
    could be read, and for more than MAX_EXPLAINED_IMAGES.
    """
    files = [file for word in words for file in list_images(word)]
    if len(files) > MAX_EXPLAINED_IMAGES:
        raise DataError(
            f"At most {MAX_EXPLAINED_IMAGES} images can be explained at once, and these are {len(files):,}: name fewer."
        )
    kept, pixels, remarks = [], [], []
    for file in files:
        try:
            picture, header = decode_with_header(Path(file).read_bytes(), geometry)
        except (ImageError, OSError) as error:
            reason = str(error.strerror if isinstance(error, OSError) else error)
            remarks.append(Remark("problem", f"'{file}' could not be read: {reason}.", (file,)))
            continue
        kept.append(file)
        pixels.append(picture)
        changes = []
        if (header.height, header.width) != geometry.size:
            sides = f"{geometry.size[1]} x {geometry.size[0]} pixels ({geometry.resize_mode})"
            changes.append(f"resized from {header.width} x {header.height} to {sides}")
        if header.channels != geometry.channels:
            changes.append("converted to grey" if geometry.channels == 1 else "given three equal channels")
        if header.transparent:
            changes.append("laid on white")
        if changes:
            text = f"'{file}' was {' and '.join(changes)}, as the classifier sees it."
            remarks.append(Remark("note", text, (file,)))
    if not kept:
        named = f" ({remarks[0].text})" if remarks else ""
        raise DataError(f"No image could be read{named}: give image files, folders of them, or a pattern.")
    return DecodedFiles(tuple(kept), np.stack(pixels), tuple(remarks))


def class_index(classifier: Classifier, name: str) -> int:
    """The index of a class; ChoiceError, with a similar name, for an unknown one."""
    return lookup({each: k for k, each in enumerate(classifier.classes)}, name, "class")


def remarks_json(remarks: Sequence[Remark]) -> list[dict[str, Any]]:
    """Remarks, JSON-ready."""
    return [{"level": one.level, "text": one.text, "examples": list(one.examples)} for one in remarks]
