"""Where labelled images lie: folders, archives, tables, arrays and names become a ``Source``."""

from .builtin import BUILTIN_DATASETS, shapes
from .layout import Layout, list_images, sort_classes
from .listing import MAX_FILE_BYTES, FolderReader, Listing
from .published import PUBLISHED_DATASETS
from .resolve import Source, find
from .source import source_from_files, stratified_subset

__all__ = [
    "BUILTIN_DATASETS",
    "MAX_FILE_BYTES",
    "PUBLISHED_DATASETS",
    "FolderReader",
    "Layout",
    "Listing",
    "Source",
    "find",
    "list_images",
    "shapes",
    "sort_classes",
    "source_from_files",
    "stratified_subset",
]
