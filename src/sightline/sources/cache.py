"""The cache of sources: downloads of published datasets, and what was found in archives and array files.

A found entry is a folder named after the path: ``facts.json``, ``files.txt``, a ``.npy`` for each array and, for
images that are arrays, ``images.npy``, which is mapped into memory. It counts only while the stamp of the files
(sizes, times, identity) is the one it was made under, and nothing in it is a pickle.
"""

import hashlib
import json
import os
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from .. import progress, runtime
from ..errors import DataError, OutputError
from ..files import atomic_replace
from .archives import ArchiveReader, ShardReader, list_tar
from .array_files import read_idx
from .arrays import ArrayReader, ImageArrays, open_npy_reader
from .cifar import read_cifar, select_cifar_files
from .source import Source

# found before

_CACHE_VERSION = 2
_ARCHIVE_ARRAYS = ("offsets", "packed", "sizes", "deflated", "crcs")
_SHARD_ARRAYS = ("shards", "offsets", "sizes")


def load_or_build(path: Path, stamp: str, make: Callable[[], Source]) -> Source:
    """The result of ``make``, or the cached one that was made of the same ``path`` and ``stamp``.

    A cache that cannot be read or written costs time and nothing else.
    """
    place = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=12).hexdigest()
    folder = runtime.cache_dir() / "found" / place
    stamp = f"{_CACHE_VERSION} {runtime.version()} {stamp}"
    if source := _read_entry(folder, stamp, str(path)):
        return source
    source = make()
    if not set(source.columns) <= {"split"}:  # of a table, which is read again
        return source
    with suppress(OutputError):
        with atomic_replace(folder) as temporary:
            _write_entry(source, stamp, temporary)
        return _read_entry(folder, stamp, str(path)) or source  # mapped arrays replace those in memory
    return source


def _write_entry(source: Source, stamp: str, folder: Path) -> None:
    folder.mkdir()
    reader = source.reader
    facts: dict[str, Any] = {
        "stamp": stamp,
        "classes": source.classes,
        "fingerprint": source.fingerprint,
        "notes": source.notes,
        "count": len(source),
    }
    arrays = {"keys": source.keys, "labels": source.labels, "split": source.columns.get("split")}
    if isinstance(reader, ArchiveReader):
        facts["archive"] = str(reader.path.absolute())
        arrays |= {name: vars(reader)[name] for name in _ARCHIVE_ARRAYS}
    elif isinstance(reader, ShardReader):
        facts["tars"] = [str(path.absolute()) for path in reader.paths]
        arrays |= {name: vars(reader)[name] for name in _SHARD_ARRAYS}
    elif isinstance(reader, ArrayReader):
        arrays["images"] = reader.images
    for name, array in arrays.items():
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    (folder / "files.txt").write_bytes("\0".join(source.files).encode())
    (folder / "facts.json").write_text(json.dumps(facts), "utf-8")


def _read_entry(folder: Path, stamp: str, name: str) -> Source | None:
    """The source of this entry; None where it is absent, damaged or of another stamp."""

    def load(array: str) -> ndarray | None:
        path = folder / f"{array}.npy"
        return np.load(path, allow_pickle=False) if path.exists() else None

    try:
        facts = json.loads((folder / "facts.json").read_text("utf-8"))
        if facts["stamp"] != stamp:
            return None
        files = np.array((folder / "files.txt").read_bytes().decode().split("\0"), object)
        keys, labels, split = map(load, ("keys", "labels", "split"))
        if "archive" in facts:
            path, (offsets, packed, sizes, deflated, crcs) = Path(facts["archive"]), map(load, _ARCHIVE_ARRAYS)
            if offsets is None or packed is None or sizes is None or not path.exists():
                return None
            reader = ArchiveReader(path, offsets, packed, sizes, deflated, crcs)
        elif "tars" in facts:
            paths, (shards, offsets, sizes) = tuple(map(Path, facts["tars"])), map(load, _SHARD_ARRAYS)
            if shards is None or offsets is None or sizes is None or not all(path.exists() for path in paths):
                return None
            reader = ShardReader(paths, shards, offsets, sizes)
        else:
            reader = open_npy_reader(folder / "images.npy")
        classes, notes, fingerprint = tuple(facts["classes"]), tuple(facts["notes"]), facts["fingerprint"]
        if keys is None or labels is None or not len(files) == len(keys) == facts["count"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return Source(
        name=name,
        reader=reader,
        keys=keys,
        files=files,
        labels=labels,
        classes=classes,
        fingerprint=fingerprint,
        columns={} if split is None else {"split": split},
        notes=notes,
    )


# published datasets, fetched from where their authors publish them and checked before they are read

_DOWNLOAD_BLOCK_BYTES = 1 << 18
_DOWNLOAD_TIMEOUT_SECONDS = 30
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class PublishedDataset:
    """A dataset on the internet."""

    description: str
    base_url: str
    """The address of the folder of its files."""
    files: dict[str, tuple[str, int]]
    """MD5 (as published) and bytes of each file."""
    read: Callable[[Sequence[Path]], ImageArrays]


FASHION_MNIST_CLASSES = tuple(
    "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")  # noqa: SIM905
)


def _read_idx_files(paths: Sequence[Path], names: Sequence[str] | None = None) -> ImageArrays:
    return read_idx({path.name: path.read_bytes() for path in paths}, str(paths[0].parent), names)


def _read_cifar_archive(paths: Sequence[Path]) -> ImageArrays:
    (path,) = paths
    listing = list_tar(path)
    known = set(select_cifar_files(listing.names))
    files = {name: listing.reader.read(i) for i, name in enumerate(listing.names) if name in known}
    return read_cifar(files, str(path))


_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"

PUBLISHED_DATASETS: dict[str, PublishedDataset] = {
    "mnist": PublishedDataset(
        "MNIST: 70,000 handwritten digits, 28x28 grey, downloaded (11 MB)",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
            "train-labels-idx1-ubyte.gz": ("d53e105ee54ea40749a09fcbcd1e9432", 28_881),
            "t10k-images-idx3-ubyte.gz": ("9fb629c4189551a2d022fa330f9573f3", 1_648_877),
            "t10k-labels-idx1-ubyte.gz": ("ec29112dd5afa0611ce80d1b7f02629c", 4_542),
        },
        _read_idx_files,
    ),
    "fashion-mnist": PublishedDataset(
        "Fashion-MNIST: 70,000 pieces of clothing, 28x28 grey, downloaded (31 MB)",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        {
            "train-images-idx3-ubyte.gz": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
            "train-labels-idx1-ubyte.gz": ("25c81989df183df01b3e8a0aad5dffbe", 29_515),
            "t10k-images-idx3-ubyte.gz": ("bef4ecab320f06d8554ea6380940ec79", 4_422_102),
            "t10k-labels-idx1-ubyte.gz": ("bb300cfdad3c16e7a12a480ee83cd310", 5_148),
        },
        lambda paths: _read_idx_files(paths, FASHION_MNIST_CLASSES),
    ),
    "cifar10": PublishedDataset(
        "CIFAR-10: 60,000 photographs of ten things, 32x32 RGB, downloaded (170 MB)",
        _CIFAR_URL,
        {"cifar-10-python.tar.gz": ("c58f30108f718f92721af3b95e74349a", 170_498_071)},
        _read_cifar_archive,
    ),
    "cifar100": PublishedDataset(
        "CIFAR-100: 60,000 photographs of a hundred things, 32x32 RGB, downloaded (169 MB)",
        _CIFAR_URL,
        {"cifar-100-python.tar.gz": ("eb9058c3a382ffc7106e4002c42a8d85", 169_001_437)},
        _read_cifar_archive,
    ),
}
"""The sets that are downloaded when they are first asked for."""


def download_dataset(name: str) -> list[Path]:
    """The files of a published dataset in the cache, downloaded where they are missing.

    ``SIGHTLINE_MIRROR`` names another place to download from: ``<mirror>/<name>/<file>``. A file is there whole
    and with the right checksum, or not at all. Raises DataError, with what to do by hand.
    """
    chosen = PUBLISHED_DATASETS[name]
    folder = runtime.cache_dir() / "downloads" / name
    mirror = os.environ.get("SIGHTLINE_MIRROR")
    base = f"{mirror.rstrip('/')}/{name}/" if mirror else chosen.base_url
    paths = {file: folder / file for file in chosen.files}
    missing = [
        file
        for file, (_, size) in chosen.files.items()
        if not (paths[file].is_file() and paths[file].stat().st_size == size)
    ]
    for file in missing:
        try:
            with atomic_replace(paths[file]) as temporary:
                _download_file(base + file, temporary, *chosen.files[file])
        except _DownloadError as error:
            left = missing[missing.index(file) :]
            raise DataError(
                f"'{name}' has to be downloaded, and {base}{file} cannot be downloaded ({error}): "
                f"fetch {' and '.join(left)} from {base} by hand into the folder '{folder}', "
                "or give a folder or file of the dataset that you have."
            ) from error
    return list(paths.values())


def verify_checksums(name: str, paths: Sequence[Path]) -> None:
    """Raise DataError unless these are the published files: called before a byte of them is interpreted."""
    for path in paths:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, _new_md5).hexdigest()
        expected = PUBLISHED_DATASETS[name].files[path.name][0]
        if found != expected:
            raise DataError(
                f"'{path}' is not the published file (its MD5 is {found}, it should be {expected}): "
                "delete it and start again."
            )


def _new_md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # the checksum that the authors publish


class _DownloadError(Exception):
    """Why a file did not arrive, or not whole; errors of the disk are others."""


def _download_file(url: str, target: Path, md5: str, size: int) -> None:
    digest = _new_md5()
    title = f"Downloading {url.rpartition('/')[2]} (MB)"
    with target.open("wb") as stream, progress.progress_bar(title, size / 1e6) as advance:
        try:
            _check_url(url)
            opener = urllib.request.build_opener(_SafeRedirectHandler())
            answer = opener.open(url, timeout=_DOWNLOAD_TIMEOUT_SECONDS)
        except (OSError, HTTPException, ValueError) as error:
            raise _download_error(error) from error
        with answer:
            while True:
                try:
                    block = answer.read(_DOWNLOAD_BLOCK_BYTES)
                except (OSError, HTTPException, ValueError) as error:
                    raise _download_error(error) from error
                if not block:
                    break
                digest.update(block)
                stream.write(block)
                advance(len(block) / 1e6)
                if stream.tell() > size:
                    raise _DownloadError(f"it is longer than the {size:,} bytes of the published file")
        if stream.tell() != size:
            raise _DownloadError(f"only {stream.tell():,} of {size:,} bytes arrived")
    if digest.hexdigest() != md5:
        raise _DownloadError(f"its MD5 is {digest.hexdigest()}, not the published {md5}")


def _download_error(error: Exception) -> _DownloadError:
    reason = getattr(error, "reason", None) or error
    return _DownloadError(getattr(reason, "strerror", None) or reason)


class _SafeRedirectHandler(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow to another safe address only."""
        try:
            _check_url(newurl)
        except ValueError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str) -> None:
    where = urllib.parse.urlsplit(url)
    if where.scheme != "https" and not (where.scheme == "http" and where.hostname in _LOCAL_HOSTS):
        raise ValueError(f"only https is used, not '{where.scheme or url}'")
