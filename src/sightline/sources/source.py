"""Where labelled images come from: a name or a path becomes a ``Source``."""

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np

from ..choose import choose
from ..errors import DataError, ImageError
from .archives import list_zip
from .arrays import Arrays
from .builtin import BUILTIN
from .cifar import cifar_files, read_cifar
from .found import Source, from_arrays, from_files
from .idx import image_files, labels_file, read_idx
from .layout import understand
from .listing import Listing, list_folder, stamp_of
from .manifest import read_manifest
from .npz import read_npz
from .parquet import held_images, read_parquet
from .pixels import pixel_columns, read_pixels
from .published import PUBLISHED, check, fetched
from .remember import remembered
from .tables import Table, header_of, read_csv, read_jsonl
from .tars import list_tar

_FEW = 500
"""Array files come few to a folder: in larger ones their names are not looked for."""


TABLES: dict[str, Callable[[Path], Table]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
}
"""The kinds of table, by the end of the file's name."""


def find(path: str | Path, *, limit: int | None = None, seed: int = 0, several: bool = True) -> Source:
    """Labelled images at ``path``: a folder, an archive, a table, a file of arrays, or a name (see ``READERS``).

    ``limit`` keeps about that many, drawn by ``seed`` in equal shares of every split and class,
    at least one of each. Images of one class are enough to test on, not ``several`` to train on.
    Raises DataError, saying what to do, when the data cannot be used.
    """
    source = _named(str(path)) or _found(Path(path))
    if several and len(source.classes) == 1:
        raise _only_one(str(path), source.classes[0])
    return source if limit is None else _limited(source, limit, seed)


def _named(name: str) -> Source | None:
    """A built-in or published set, unless something of that name lies in the current folder."""
    if name.partition(":")[0] in BUILTIN and not Path(name).exists():
        return from_arrays(name, choose(BUILTIN, name, "built-in data set"))
    if name in PUBLISHED and not Path(name).exists():
        paths = fetched(name)
        return replace(remembered(paths[0], stamp_of(*paths), lambda: _published(name, paths)), name=name)
    return None


def _published(name: str, paths: list[Path]) -> Source:
    check(name, paths)
    return from_arrays(name, PUBLISHED[name].read(paths))


def _found(path: Path) -> Source:
    if not path.exists():
        known = ", ".join((*BUILTIN, *PUBLISHED))
        raise DataError(f"There is nothing at '{path}'.{_near(path)} Sets known by name: {known}.")
    return READERS[_kind(path)](path)


def _near(path: Path) -> str:
    """A hint at a name much like the missing one, in the same folder."""
    parent = path.parent
    try:
        known = [entry.name for entry in parent.iterdir()]
    except OSError:
        return f" Not even the folder '{parent}' is there."
    near = difflib.get_close_matches(path.name, known, n=1)
    return f" Did you mean '{parent / near[0]}'?" if near else ""


def _kind(path: Path) -> str:
    """Which of ``READERS`` a path is for: by its content; by its name where the content does not tell."""
    if path.is_dir():
        return "folder"
    with path.open("rb") as stream:
        head = stream.read(262)
    name = path.name.lower()
    if name.endswith(".npz"):
        return "npz"
    if image_files([name]) or head[:3] == b"\0\0\x08":
        return "idx"
    if path.suffix.lower() in TABLES:
        return "table"
    if head[:2] == b"PK" or name.endswith(".zip"):
        return "zip"
    packed = head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or head[:6] == b"\xfd7zXZ\0"
    called_tar = name.endswith((".tar", ".tgz", ".tbz2", ".txz")) or ".tar." in name
    if packed or head[257:262] == b"ustar" or called_tar:
        return "tar"
    raise DataError(
        f"'{path}' is not a kind of data that can be read: give a folder with one sub-folder per class, "
        "a zip or tar of one, a table with the columns 'path' and 'label' (CSV, TSV, JSONL, Parquet), "
        "or a file of arrays (npz, IDX)."
    )


def _folder(path: Path) -> Source:
    listing = list_folder(path)
    if rows := _array_files(listing):
        stamp = stamp_of(*(path / listing.names[row] for row in rows))
        return remembered(path, stamp, lambda: from_arrays(str(path), _arrays(listing, rows, path)))
    try:
        layout = understand(listing, str(path))
    except DataError as error:
        return _tabled(path, listing, error)
    if len(layout.classes) == 1 and _tables(listing):  # one folder of images, and a table beside it
        return _tabled(path, listing, _only_one(str(path), layout.classes[0]))
    return from_files(str(path), listing, layout)


def _tabled(path: Path, listing: Listing, error: DataError) -> Source:
    """What a table inside the folder says; raises ``error`` where there is none."""
    parquets = [path / name for name in sorted(listing.names) if name.endswith(".parquet")]
    if parquets and (held := held_images(parquets, path)):
        return from_files(str(path), *held)
    return _from_table(_table_in(path, listing, error), str(path))


def _only_one(place: str, name: str) -> DataError:
    return DataError(f"'{place}' has only one class, '{name}': a classifier needs at least two.")


def _tables(listing: Listing) -> list[str]:
    return sorted(name for name in listing.names if "/" not in name and PurePath(name).suffix.lower() in TABLES)


def _table_in(path: Path, listing: Listing, error: DataError) -> Path:
    """The table that labels a folder's images: metadata, labels, or the only one; else the error is raised."""
    tables = _tables(listing)
    chosen = [name for stem in ("metadata", "labels") for name in tables if PurePath(name).stem.lower() == stem]
    if chosen or len(tables) == 1:
        return path / (chosen or tables)[0]
    if tables:
        more = f"It has the tables {', '.join(tables[:5])}: one of them may be what to give."
        raise DataError(f"{error} {more}") from error
    raise error


def _archive(lister: Callable[[Path], Listing]) -> Callable[[Path], Source]:
    def read(path: Path) -> Source:
        return remembered(path, stamp_of(path), lambda: look(path))

    def look(path: Path) -> Source:
        listing = lister(path)
        if rows := _array_files(listing):
            return from_arrays(str(path), _arrays(listing, rows, path))
        return from_files(str(path), listing, understand(listing, str(path)))

    return read


def _array_files(listing: Listing) -> list[int]:
    """Which files of a listing are IDX or CIFAR's."""
    if len(listing.names) > _FEW:
        return []
    if image_files(listing.names):
        return [i for i, name in enumerate(listing.names) if "ubyte" in name.lower()]
    known = set(cifar_files(listing.names))
    return [i for i, name in enumerate(listing.names) if name in known]


def _arrays(listing: Listing, rows: Sequence[int], path: Path) -> Arrays:
    files = {}
    for row in rows:
        try:
            files[listing.names[row]] = listing.reader.read(row)
        except ImageError as error:
            raise DataError(f"'{listing.names[row]}' of '{path}' cannot be read: {error}.") from error
    return read_idx(files, str(path)) if image_files(files) else read_cifar(files, str(path))


def _idx(path: Path) -> Source:
    labels = path.with_name(labels_file(path.name))
    other = labels.with_suffix("") if labels.suffix == ".gz" else labels.with_name(labels.name + ".gz")
    pair = [path, next((each for each in (labels, other) if each.is_file() and each != path), path)]

    def look() -> Source:
        return from_arrays(str(path), read_idx({each.name: each.read_bytes() for each in pair}, str(path)))

    return remembered(path, stamp_of(*pair), look)


def _npz(path: Path) -> Source:
    return remembered(path, stamp_of(path), lambda: from_arrays(str(path), read_npz(path)))


def _table(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".parquet" and (held := held_images([path], path)):
        return from_files(str(path), *held)
    if suffix in (".csv", ".tsv") and pixel_columns(header_of(path)):
        return remembered(path, stamp_of(path), lambda: from_arrays(str(path), read_pixels(path)))
    return _from_table(path, str(path))


def _from_table(path: Path, name: str) -> Source:
    source = from_files(name, *read_manifest(TABLES[path.suffix.lower()](path)))
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    fingerprint = hashlib.blake2b(f"{digest} {source.fingerprint}".encode(), digest_size=16).hexdigest()
    return replace(source, fingerprint=fingerprint)


READERS: dict[str, Callable[[Path], Source]] = {
    "folder": _folder,
    "zip": _archive(list_zip),
    "tar": _archive(list_tar),
    "table": _table,
    "idx": _idx,
    "npz": _npz,
}
"""What a path may be, each with its reader; a folder or archive may hold class folders, IDX or CIFAR files."""


def _limited(source: Source, limit: int, seed: int) -> Source:
    """About ``limit`` images, in equal shares of each (split, class)."""
    if limit < 1:
        raise DataError(f"The limit is {limit}: it must be at least 1 image.")
    if limit >= len(source):
        return source
    splits = source.columns.get("split")
    parts = np.zeros(len(source), np.int64) if splits is None else np.unique(splits, return_inverse=True)[1]
    _, cell, sizes = np.unique(
        parts * len(source.classes) + source.labels, return_inverse=True, return_counts=True
    )
    shares = np.maximum(1, np.rint(sizes * limit / len(source))).astype(np.int64)
    order = np.random.default_rng([seed, 1]).permutation(len(source))
    order = order[np.argsort(cell[order], kind="stable")]  # cell by cell, shuffled within
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.sort(order[rank < np.repeat(shares, sizes)])
    note = f"Limited to {len(chosen):,} of {len(source):,} images, in equal shares of every class (seed {seed})."
    return replace(source.subset(chosen), notes=(*source.notes, note))
