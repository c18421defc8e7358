"""Bytes become labelled images: find them, decode them once, split them, hand them out in batches."""

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
from .codecs import DAMAGED_IMAGE, EXIF_ORIENTATION_TAG, PILLOW_LOCK, read_jpeg_header, valid_orientation
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
from .duplicates import find_near_duplicates, write_duplicate_table
from .inputs import ImageInput, list_inputs, name_input, read_input
from .label_audit import audit_class_names
from .loader import Augment, Shuffle, batch_order, count_batches, iterate_batches, to_tensor
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
from .store import hash_file, is_stored, time_decoding
