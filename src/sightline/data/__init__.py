"""Bytes become labelled images: find them, decode them once, split them, hand them out in batches."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..sources import stratified_subset
from .audit import (
    audit,
    draw_sample_sheet,
    find_faulty_images,
    format_audit,
    format_clean_summary,
    format_remarks,
    write_clean_manifest,
)
from .codecs import (
    DAMAGED_IMAGE,
    EXIF_ORIENTATION_TAG,
    PILLOW_LOCK,
    JpegHeader,
    read_jpeg_header,
    valid_orientation,
)
from .dataset import (
    FACT_COLUMNS,
    MAX_UNREADABLE_SHARE,
    LengthRange,
    Survey,
    concat,
    load_dataset,
    relabel,
    strip_labels,
    survey,
)
from .decode import IMAGE_FORMATS, MAX_IMAGE_PIXELS, ImageHeader, decode, decode_with_header, read_header
from .inputs import ImageInput, list_inputs, name_input, read_input, source_from_inputs
from .label_audit import audit_class_names
from .row_work import time_decoding
from .rows import hash_file
from .splits import (
    DEFAULT_VAL_SHARE,
    MAX_NEAR_DUPLICATE_IMAGES,
    Fold,
    find_leak_groups,
    find_leaks,
    make_folds,
    nested_subset,
    split,
)
from .store import LivePixels, is_stored

if TYPE_CHECKING:
    from .duplicates import find_near_duplicates, write_duplicate_table
    from .loader import Augment, Shuffle, batch_order, count_batches, iterate_batches, to_tensor

__all__ = [
    "DAMAGED_IMAGE",
    "DEFAULT_VAL_SHARE",
    "EXIF_ORIENTATION_TAG",
    "FACT_COLUMNS",
    "IMAGE_FORMATS",
    "MAX_IMAGE_PIXELS",
    "MAX_NEAR_DUPLICATE_IMAGES",
    "MAX_UNREADABLE_SHARE",
    "PILLOW_LOCK",
    "Augment",
    "Fold",
    "ImageHeader",
    "ImageInput",
    "JpegHeader",
    "LengthRange",
    "LivePixels",
    "Shuffle",
    "Survey",
    "audit",
    "audit_class_names",
    "batch_order",
    "concat",
    "count_batches",
    "decode",
    "decode_with_header",
    "draw_sample_sheet",
    "find_faulty_images",
    "find_leak_groups",
    "find_leaks",
    "find_near_duplicates",
    "format_audit",
    "format_clean_summary",
    "format_remarks",
    "hash_file",
    "is_stored",
    "iterate_batches",
    "list_inputs",
    "load_dataset",
    "make_folds",
    "name_input",
    "nested_subset",
    "read_header",
    "read_input",
    "read_jpeg_header",
    "relabel",
    "source_from_inputs",
    "split",
    "stratified_subset",
    "strip_labels",
    "survey",
    "time_decoding",
    "to_tensor",
    "valid_orientation",
    "write_clean_manifest",
    "write_duplicate_table",
]


def __getattr__(name: str) -> Any:
    """Import the loader or the search for duplicates, and with it torch, when it is first used: a decoded picture is
    an array.
    """
    if name in ("find_near_duplicates", "write_duplicate_table"):
        return getattr(import_module(".duplicates", __name__), name)
    if name in ("Augment", "Shuffle", "batch_order", "count_batches", "iterate_batches", "to_tensor"):
        return getattr(import_module(".loader", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
