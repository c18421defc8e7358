"""What is explained: a run or a bundle, image files as its classifier sees them, and where it is all kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray

from .. import runtime
from ..choose import lookup
from ..classifier import Classifier, find_bundle
from ..data import ImageHeader, decode_with_header
from ..errors import DataError, ImageError, OutputError, SightlineError
from ..files import atomic_replace, checksum, write_json
from ..sources import list_images
from ..training import reopen
from ..types import Dataset, Geometry, Remark
from .neighbours import Gallery, build_gallery

if TYPE_CHECKING:
    from PIL.Image import Image

EXPLANATIONS_FOLDER = "explanations"
"""Where a run keeps what was explained."""

MAX_EXPLAINED_IMAGES = 100
"""Images explained by one command, at most: more than that nobody looks at."""


@dataclass(frozen=True, eq=False)
class ExplanationSubject:
    """A classifier to explain, and what its run tells of the images it learnt from."""

    path: Path
    classifier: Classifier
    train: Dataset | None = None
    test: Dataset | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def is_run(self) -> bool:
        """Whether there is a run folder to keep things in."""
        return (self.path / "recipe.toml").is_file()

    def gallery(self) -> Gallery | None:
        """The training images and their features, kept in the run folder for the next time; None without a run."""
        if self.train is None:
            return None
        kept, key = self.path / EXPLANATIONS_FOLDER / "features.npz", self._key()
        if kept.is_file():
            with np.load(kept, allow_pickle=False) as saved:
                if str(saved["key"]) == key:
                    return build_gallery(self.classifier, self.train, features=torch.from_numpy(saved["features"]))
        made = build_gallery(self.classifier, self.train)
        with atomic_replace(kept) as temporary, temporary.open("wb") as stream:
            np.savez(stream, key=key, features=made.features.cpu().numpy())
        return made

    def _key(self) -> str:
        assert self.train is not None
        return f"{checksum(find_bundle(self.path) / 'config.json')} {self.train.fingerprint} {len(self.train)}"


@dataclass(frozen=True, eq=False)
class DecodedFiles:
    """Image files as the classifier sees them."""

    files: tuple[str, ...]
    pixels: UInt8[ndarray, "N H W C"]
    remarks: tuple[Remark, ...] = field(default=())


def open_explanation_subject(run: Path, *, device: str = "auto") -> ExplanationSubject:
    """A run with its images, where they still are, or a bundle; raises BundleError for anything else."""
    if not (run / "recipe.toml").is_file():
        return ExplanationSubject(run, Classifier.load(run).to(runtime.resolve_device(device)))
    classifier = Classifier.load(run).to(runtime.resolve_device(device))
    try:
        splits = reopen(run, device=device).splits
    except SightlineError as error:  # an answer can be explained without the images it was learnt from
        remark = Remark("note", f"Nearest training images are left out: {error}")
        return ExplanationSubject(run, classifier, remarks=(remark,))
    return ExplanationSubject(run, classifier, splits.train, splits.test)


def decode_files(words: Sequence[str], geometry: Geometry) -> DecodedFiles:
    """The images that files, folders and patterns name, decoded by the classifier's geometry, which is said.

    One that cannot be read is a remark. Raises DataError where none can, or where there are more than a hundred.
    """
    files = [file for word in words for file in list_images(word)]
    if len(files) > MAX_EXPLAINED_IMAGES:
        raise DataError(
            f"These are {len(files):,} images, and at most {MAX_EXPLAINED_IMAGES} are explained at once: name fewer."
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
        if said := _describe_changes(file, header, geometry):
            remarks.append(Remark("note", said, (file,)))
    if not kept:
        named = f" ({remarks[0].text})" if remarks else ""
        raise DataError(f"No image could be read{named}: give image files, folders of them, or a pattern.")
    return DecodedFiles(tuple(kept), np.stack(pixels), tuple(remarks))


def _describe_changes(file: str, header: ImageHeader, geometry: Geometry) -> str:
    """What became of an image of another size or mode, in a sentence; "" where nothing did."""
    done = []
    if (header.height, header.width) != geometry.size:
        sides = f"{geometry.size[1]} x {geometry.size[0]} pixels ({geometry.resize_mode})"
        done.append(f"brought from {header.width} x {header.height} to {sides}")
    if header.channels != geometry.channels:
        done.append("turned grey" if geometry.channels == 1 else "given three equal channels")
    if header.transparent:
        done.append("laid on white")
    return f"'{file}' was {' and '.join(done)}, as the classifier sees it." if done else ""


def class_index(classifier: Classifier, name: str) -> int:
    """The number of a class; raises ChoiceError, with a name near it, where there is none of that name."""
    return lookup({each: k for k, each in enumerate(classifier.classes)}, name, "class")


def resolve_picture_path(subject: ExplanationSubject, out: Path | None, name: str) -> Path:
    """Where a picture goes: ``out``, or under its name in the run's folder.

    Raises OutputError for a bundle without ``out``, or an ending that is no picture's.
    """
    if out is None:
        if not subject.is_run:
            raise OutputError(
                f"'{subject.path}' is a classifier without its run: say where the picture goes, --out {name}."
            )
        return subject.path / EXPLANATIONS_FOLDER / name
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise OutputError(f"'{out}' does not end like a picture. Call it {out.stem or 'heat'}.png, for example.")
    return out


def save_picture(picture: "Image", path: Path) -> None:
    """Write a picture, whole or not at all."""
    with atomic_replace(path) as temporary:
        picture.save(temporary)


def write_result(subject: ExplanationSubject, name: str, value: Mapping[str, Any]) -> None:
    """Write what was measured into the run's folder; of a bundle nothing is kept."""
    if subject.is_run:
        write_json(subject.path / EXPLANATIONS_FOLDER / name, value)


def remarks_json(remarks: Sequence[Remark]) -> list[dict[str, Any]]:
    """Remarks, JSON-ready."""
    return [{"level": one.level, "text": one.text, "examples": list(one.examples)} for one in remarks]
