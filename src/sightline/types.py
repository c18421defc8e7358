"""The values that every stage exchanges.

Legend of shapes, used by every signature in the package:

    B batch    C channels    H height    W width    K classes    N images of a dataset

Pixels are uint8 (N H W C) at rest, as decoded, and float32 in [0, 1] (B C H W) once in a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt8
from numpy import ndarray

from .checks import check_choice, check_int

ResizeMode = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic", "box", "lanczos"]

UNLABELLED = -1
"""The label of an image without a known class: used in training and in checks of the data, nowhere else."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How an image file becomes pixels. It is stored with the classifier, so that training and serving agree.

    Raises ValueError for values that no image can be decoded with: a bundle's config may be damaged.
    """

    size: tuple[int, int]
    """Working size (height, width) in pixels, 1 to 4096."""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for RGB."""
    resize_mode: ResizeMode = "squash"
    """``squash`` keeps every pixel and changes the aspect ratio; ``crop`` keeps the aspect ratio and cuts the
    borders of the long side; ``pad`` keeps both and adds black borders."""
    crop_fraction: float = 1.0
    """Share of the short side that ``crop`` keeps, in (0, 1]: published weights often expect 0.875."""
    interpolation: Interpolation = "bilinear"
    """Resampling filter, antialiased when shrinking."""
    exif: bool = True
    """Whether to turn the image upright by its EXIF orientation."""
    window: tuple[float, float] | None = None
    """The values of images with more than 8 bits that become black and white; None for the full range."""

    def __post_init__(self) -> None:
        if len(self.size) != 2 or self.channels not in (1, 3):
            raise ValueError(f"a geometry of {self.size} pixels and {self.channels} channels is impossible")
        for side in self.size:
            check_int("each side of the size", side, 1, 4096)
        check_choice("the resize mode", self.resize_mode, get_args(ResizeMode))
        check_choice("the interpolation", self.interpolation, get_args(Interpolation))
        if not 0 < self.crop_fraction <= 1 or (self.crop_fraction < 1 and self.resize_mode != "crop"):
            raise ValueError(
                f"a crop of {self.crop_fraction} of the short side does not go with {self.resize_mode}"
            )
        if self.window is not None and not -1e9 < self.window[0] < self.window[0] + 1e-6 <= self.window[1] < 1e9:
            raise ValueError(f"a window from {self.window[0]} to {self.window[1]} is empty or impossible")

    def as_json(self) -> dict[str, Any]:
        """The fields by their names in bundles: ``fit`` for the resize mode, ``filter`` for the interpolation."""
        names = {"resize_mode": "fit", "interpolation": "filter"}
        known = {name: value for name, value in vars(self).items() if (name, value) != ("crop_fraction", 1.0)}
        return {names.get(name, name): value for name, value in known.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Geometry":
        """The geometry of what ``as_json`` wrote; raises ValueError or TypeError for anything else."""
        names = {"fit": "resize_mode", "filter": "interpolation"}
        found: dict[str, Any] = {}
        for name, value in values.items():
            found[names.get(name, name)] = tuple(value) if isinstance(value, list) else value
        return cls(**found)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one decoded image."""
        return (*self.size, self.channels)


@runtime_checkable
class Pixels(Protocol):
    """Decoded images by row: a memory-mapped store, an array, or a decoder with this interface."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C)."""
        ...

    def __getitem__(self, rows: Any, /) -> UInt8[ndarray, "B H W C"]:
        """The images of these rows, as uint8."""
        ...


@dataclass(frozen=True)
class SkippedFile:
    """A file that could not be used, and why."""

    file: str
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Labelled images, decoded once: a frozen view of rows of a pixel store."""

    pixels: Pixels
    """The whole store, (N_store, H, W, C) uint8; several datasets share one."""
    rows: Int[ndarray, " N"]
    """The rows of the store that belong to this dataset, in order."""
    labels: Int[ndarray, " N"]
    """Class index of each image, in [0, K); ``UNLABELLED`` (-1) where it is not known."""
    classes: tuple[str, ...]
    """The K class names, in label order."""
    files: Shaped[ndarray, " N"]
    """Path of each image, as the user would name it (array of str)."""
    digests: Shaped[ndarray, " N"]
    """uint64 hash of each file's bytes: equal for exact duplicates."""
    geometry: Geometry
    fingerprint: str
    """Hash of the files' bytes and labels; two datasets of equal fingerprint and geometry have equal pixels."""
    columns: Mapping[str, Shaped[ndarray, " N"]] = field(default_factory=dict)
    """Further facts about each image: ``split``, ``group``, ``width``, ``height``, ..."""
    skipped: tuple[SkippedFile, ...] = ()
    """Files that could not be used."""
    notes: tuple[str, ...] = ()
    """What the user should know about the reading, one sentence each."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Any) -> UInt8[ndarray, "B H W C"]:
        """Pixels of these images, decoded; ``indices`` is a slice, an index array or a mask."""
        return self.pixels[np.atleast_1d(self.rows[indices])]

    def subset(self, indices: Int[ndarray, " n"] | Shaped[ndarray, " N"]) -> "Dataset":
        """The images at these indices (or where this mask is true), in that order: a cheap view."""
        return replace(
            self,
            rows=self.rows[indices],
            labels=self.labels[indices],
            files=self.files[indices],
            digests=self.digests[indices],
            columns={name: column[indices] for name, column in self.columns.items()},
        )

    @property
    def is_labelled(self) -> Bool[ndarray, " N"]:
        """Which images have a label."""
        return self.labels != UNLABELLED

    @property
    def counts(self) -> Int[ndarray, " K"]:
        """Labelled images of each class."""
        return np.bincount(self.labels[self.is_labelled], minlength=len(self.classes))

    @property
    def labelled(self) -> "Dataset":
        """The images with a label: all that validation, test, class weights and calibration may use."""
        return self if self.is_labelled.all() else self.subset(self.is_labelled)

    @property
    def unlabelled(self) -> "Dataset":
        """The images without a label."""
        return self.subset(~self.is_labelled)


@dataclass(frozen=True)
class Splits:
    """Three disjoint splits of a dataset, and what the user should know about them."""

    train: Dataset
    val: Dataset
    test: Dataset
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    file: str
    label: str | None
    """The most probable class; None where the image could not be read."""
    confidence: float | None
    """Its calibrated probability."""
    top: tuple[tuple[str, float], ...] = ()
    """The k most probable classes with their probabilities, best first."""
    error: str | None = None
    """Why there is no prediction."""
    abstained: bool = False
    """The confidence is below the classifier's threshold: its answer is "unknown", and ``label`` only a guess."""
    among: tuple[str, ...] | None = None
    """The classes of the conformal set, most probable first; None without conformal sets."""


@dataclass(frozen=True)
class Interval:
    """A measured number with its 95 % confidence interval and the sample it comes from."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}] (n={self.n})"

    def as_json(self) -> dict[str, float]:
        """``{"value", "low", "high", "n"}``: the shape of an interval in every file we write."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


RemarkLevel = Literal["problem", "warning", "note"]


@dataclass(frozen=True)
class Remark:
    """One finding as a sentence, with what to do about it."""

    level: RemarkLevel
    text: str
    examples: tuple[str, ...] = ()
    """A few of the files or classes that it is about."""


@dataclass(frozen=True)
class Findings:
    """The result of an examination: numbers for programs, remarks for people."""

    subject: str
    values: Mapping[str, Any]
    """JSON-ready numbers and tables, under the names of the field (``accuracy``, ``ece``, ...)."""
    remarks: tuple[Remark, ...] = ()
