"""Images as callers give them: paths, files, arrays and Pillow's images become the bytes of an image file."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy import ndarray

from ..errors import DataError, ImageError
from ..sources import Source, make_printable, read_image_file
from . import codecs

if TYPE_CHECKING:
    from PIL.Image import Image

    ImageInput = str | PathLike[str] | bytes | bytearray | memoryview | ndarray | BinaryIO | Image
else:
    ImageInput = Any  # read_input refuses other types with a sentence; Pillow is imported late

_KINDS = (
    "a path, the bytes of an image file, a file opened in binary mode, a Pillow image, or an array of uint8 (H W) "
    "or (H W C)"
)


def list_inputs(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    """The images one by one: a single one as a list, several (also an array (N H W C)) as they are."""
    one = isinstance(images, str | PathLike | bytes | bytearray | memoryview | Mapping)
    if (
        one
        or hasattr(images, "read")
        or getattr(images, "ndim", 1) in (0, 2, 3)
        or not isinstance(images, Iterable)
    ):
        return [images]  # type: ignore[list-item]  an Iterable that is not several images is one, or refused later
    return images


def name_input(image: ImageInput) -> str:
    """The path or name of an image, where it has one; else an empty text."""
    if isinstance(image, str | PathLike):
        return str(image)
    name = getattr(image, "name", None) or getattr(image, "filename", None)
    return name if isinstance(name, str) else ""


def read_input(image: ImageInput, *, compress_level: int = 0) -> bytes:
    """The bytes of an image file; an array or a Pillow image is encoded without loss.

    A file is read from its beginning. Arrays are uint8 or bool, (H W) or (H W C) with 1 to 4 channels, or grey
    uint16. ``compress_level`` is that of zlib. Raises ImageError where a file cannot be read, DataError for anything
    else than an image.
    """
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | PathLike) or hasattr(image, "read"):
        try:
            if isinstance(image, str | PathLike):
                return read_image_file(image, pipes=True)
            stream: Any = image
            if getattr(
                stream, "seekable", bool
            )():  # what was just written to a BytesIO is read too, as Pillow does
                stream.seek(0)
            data = stream.read()
        except (OSError, ValueError) as error:  # ValueError: a closed file, or a zero in a path
            raise ImageError(getattr(error, "strerror", None) or str(error)) from error
        if isinstance(data, bytes):
            return data
        raise DataError("The file is opened as text: open it in binary mode, with open(path, 'rb').")
    from PIL import Image

    if isinstance(image, ndarray):
        image = Image.fromarray(_check_array(image))
    elif not isinstance(image, Image.Image):
        remedy = " Convert it with .numpy() first." if hasattr(image, "numpy") else ""
        raise DataError(f"An object of type {type(image).__name__} is not an image: give {_KINDS}.{remedy}")
    try:
        return _encode_image(image, compress_level)
    except Exception as error:  # Pillow reads a file only now, and raises nearly anything on a damaged one
        raise ImageError(codecs.DAMAGED_IMAGE) from error


@dataclass(frozen=True, eq=False)
class InputReader:
    """Reads images as callers give them."""

    images: Sequence[ImageInput]

    def read(self, key: int) -> bytes:
        """The bytes of image ``key``; raises ImageError."""
        return read_input(self.images[key])


def source_from_inputs(name: str, images: Sequence[ImageInput]) -> Source:
    """These images in their order, without labels; they are known by their names, which may change below them."""
    files, notes = make_printable([name_input(image) for image in images])
    digest = hashlib.blake2b("\0".join(files).encode(), digest_size=16)
    rows = np.arange(len(images))
    return Source(
        name=name,
        reader=InputReader(images),
        keys=rows,
        files=files,
        labels=np.full(len(images), -1),
        classes=(),
        fingerprint=digest.hexdigest(),
        notes=notes,
    )


def _check_array(array: ndarray) -> ndarray:
    """The array as Pillow takes it; raises DataError where it is not one picture."""
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    channels = array.shape[2] if array.ndim == 3 else 1
    depth = {("u", 1): 8, ("u", 2): 16}.get((array.dtype.kind, array.dtype.itemsize))
    right_shape = array.ndim in (2, 3) and array.size and 1 <= channels <= 4
    if right_shape and (depth == 8 or (depth == 16 and channels == 1)):
        plane = array.squeeze(-1) if array.ndim == 3 and channels == 1 else array
        return plane.astype(np.uint16) if depth == 16 else plane
    if array.ndim == 3 and not right_shape and array.shape[0] in (1, 3, 4):
        remedy = "move its channels to the end, array.transpose(1, 2, 0)"
    elif array.ndim == 3 and not right_shape and array.size:
        remedy = "give several pictures as a list"
    elif array.dtype.kind == "f":
        remedy = "scale its values to 0 to 255 and round them, such as (255 * array).round().astype('uint8')"
    else:
        remedy = "convert it, such as array.astype('uint8') for values from 0 to 255"
    raise DataError(
        f"An array of {array.dtype} {array.shape} is not a picture of uint8 (H W) or (H W C): {remedy}."
    )


def _encode_image(image: "Image", compress_level: int) -> bytes:
    """PNG, or TIFF for what PNG cannot hold: printers' inks and values of more than 16 bits."""
    stream = BytesIO()
    if image.mode in ("I", "F", "I;16B", "CMYK"):
        image.save(stream, "tiff")
        return stream.getvalue()
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGBA" if image.mode in ("PA", "RGBa", "La") else "RGB")
    exif = image.getexif()
    turned = exif.get(codecs.EXIF_ORIENTATION_TAG, 1) != 1  # kept, so that it is turned upright as its file is
    image.save(stream, "png", compress_level=compress_level, **({"exif": exif} if turned else {}))
    return stream.getvalue()
