"""Datasets that grow image by image: each picture is on the disk before the page says so."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..data import IMAGE_FORMATS, read_header
from ..errors import DataError, ImageError
from ..files import atomic_replace, explain_write_errors, write_text
from ..sources import Edit
from .datasets import Datasets, clean_class_name

TABLE_FILE, PICTURES_FOLDER = "images.jsonl", "pictures"
"""In the folder of such a dataset: the path and the label of each image, and the images by hash."""

MAX_GIVEN_IMAGES = 64
"""Images of one request."""

LOCK_SECONDS = 10.0
"""Seconds to wait for another request that adds images."""


@dataclass(frozen=True)
class GivenImages:
    """What a request added."""

    id: str
    """Of the dataset, which the first images make."""
    added: int
    known: int
    """Images that were there already, of any class: nothing was added for them."""


def add_images(datasets: Datasets, id: str, label: str, images: Sequence[bytes]) -> GivenImages:
    """Add images of a class to a dataset that grows; an empty ``id`` makes one.

    All are added or none. Raises DataError for what is no image, for a name that no class may have, and for a dataset
    that does not grow (an upload, a folder); OutputError where the disk is full.
    """
    label = clean_class_name(label)
    if not 0 < len(images) <= MAX_GIVEN_IMAGES:
        raise DataError(f"{len(images)} pictures came at once: send 1 to {MAX_GIVEN_IMAGES}.")
    named: dict[str, bytes] = {}
    for number, data in enumerate(images, 1):
        try:
            suffix = read_header(data).format.lower()
            named[f"{PICTURES_FOLDER}/{hashlib.sha256(data).hexdigest()}.{suffix}"] = data
        except ImageError as error:
            kinds = ", ".join(IMAGE_FORMATS)
            raise DataError(f"Picture {number} cannot be read ({error}): give {kinds}.") from error
    folder = datasets.path(id).parent if id else datasets.reserve()
    table = folder / TABLE_FILE
    if id and not table.is_file():
        raise DataError(
            "This dataset is read where it lies: teach from pictures of your own, or bring images on Data."
        )
    with explain_write_errors(folder):
        (folder / PICTURES_FOLDER).mkdir(parents=True, exist_ok=True)
    with explain_write_errors(table), FileLock(folder / ".images.lock", timeout=LOCK_SECONDS):
        before = table.read_text(encoding="utf-8") if table.is_file() else ""
        known, rows = {json.loads(line)["path"] for line in before.splitlines()}, []
        for path, data in named.items():
            if path not in known:
                with atomic_replace(folder / path) as temporary:
                    temporary.write_bytes(data)
                rows.append(json.dumps({"path": path, "label": label}))
        if rows:
            write_text(table, before + "\n".join(rows) + "\n")
    if not id:
        datasets.add(table, "taught", folder)
    return GivenImages(folder.name, len(rows), len(images) - len(rows))


def rename_class(datasets: Datasets, id: str, old: str, new: str, *, by: str) -> None:
    """Give a class of a dataset another name; a name that another class has makes them one. Raises DataError."""
    found = datasets.open(id, again=True)
    if clean_class_name(old) not in found.now.classes or clean_class_name(old) == clean_class_name(new):
        return
    edit = Edit(kind="merge", names=(clean_class_name(old),), value=new, by=by)
    datasets.edit(id, edit, seen=found.version, new_class=True)


def count_classes(datasets: Datasets, id: str) -> dict[str, int]:
    """Images by class, in the order in which the classes came; raises DataError."""
    now = datasets.open(id, again=True).now
    counts = Counter(now.classes[k] for k in now.labels.tolist() if k >= 0)
    first = {now.classes[k]: i for i, k in reversed([*enumerate(now.labels.tolist())]) if k >= 0}
    return {name: counts[name] for name in sorted(counts, key=first.__getitem__)}


def is_collected(path: Path) -> bool:
    """Whether the dataset of this file of corrections grows image by image."""
    return (path.parent / TABLE_FILE).is_file()
