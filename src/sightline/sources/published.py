"""Sets known by name, fetched from where their authors publish them and checked before they are read."""

import hashlib
import os
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from .. import progress, runtime
from ..errors import DataError
from ..files import atomic_replace
from .arrays import ImageArrays
from .cifar import read_cifar, select_cifar_files
from .idx import read_idx
from .tars import list_tar

_DOWNLOAD_BLOCK_BYTES = 1 << 18
_DOWNLOAD_TIMEOUT_SECONDS = 30
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class PublishedDataset:
    """A set of images on the internet."""

    description: str
    """A line about it."""
    base_url: str
    """The address its files are below."""
    files: dict[str, tuple[str, int]]
    """MD5 (as published) and bytes of each file."""
    read: Callable[[Sequence[Path]], ImageArrays]


def _read_idx_files(paths: Sequence[Path], names: Sequence[str] | None = None) -> ImageArrays:
    return read_idx({path.name: path.read_bytes() for path in paths}, str(paths[0].parent), names)


def _read_fashion_mnist(paths: Sequence[Path]) -> ImageArrays:
    names = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
    return _read_idx_files(paths, names.split(","))


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
        _read_fashion_mnist,
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
    """The files of a published set in the cache, downloaded where they are missing.

    ``SIGHTLINE_MIRROR`` names another place to fetch them from: ``<mirror>/<name>/<file>``. A file is
    there whole and with the right checksum, or not at all. Raises DataError, saying what to do by hand.
    """
    chosen = PUBLISHED_DATASETS[name]
    folder = runtime.cache_dir() / "downloads" / name
    mirror = os.environ.get("SIGHTLINE_MIRROR")
    base = f"{mirror.rstrip('/')}/{name}/" if mirror else chosen.base_url
    missing = [file for file, (_, size) in chosen.files.items() if not _is_complete(folder / file, size)]
    for file in missing:
        try:
            with atomic_replace(folder / file) as temporary:
                _download_file(base + file, temporary, *chosen.files[file])
        except _DownloadError as error:
            raise DataError(
                _manual_download_help(name, base, folder, missing[missing.index(file) :], error)
            ) from error
    return [folder / file for file in chosen.files]


def verify_checksums(name: str, paths: Sequence[Path]) -> None:
    """DataError unless these are the files that were published: asked before a byte of them is understood."""
    for path in paths:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, _new_md5).hexdigest()
        if found != PUBLISHED_DATASETS[name].files[path.name][0]:
            raise DataError(
                f"'{path}' is not the published file (its MD5 is {found}, it should be "
                f"{PUBLISHED_DATASETS[name].files[path.name][0]}): delete it and start again."
            )


def _new_md5() -> Any:
    return hashlib.md5(usedforsecurity=False)  # what the authors publish


def _is_complete(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


class _DownloadError(Exception):
    """Why a file did not come, or not whole; what the disk says is another matter."""


def _download_file(url: str, target: Path, md5: str, size: int) -> None:
    digest = _new_md5()
    title = f"Downloading {url.rpartition('/')[2]} (MB)"
    with target.open("wb") as stream, progress.progress_bar(title, size / 1e6) as advance:
        for block in _stream_url(url):
            digest.update(block)
            stream.write(block)
            advance(len(block) / 1e6)
            if stream.tell() > size:
                raise _DownloadError(f"it is longer than the {size:,} bytes of the published file")
        if stream.tell() != size:
            raise _DownloadError(f"only {stream.tell():,} of {size:,} bytes came")
    if digest.hexdigest() != md5:
        raise _DownloadError(f"its MD5 is {digest.hexdigest()}, not the published {md5}")


def _stream_url(url: str) -> Iterator[bytes]:
    try:
        _check_url(url)
        with urllib.request.build_opener(_SafeRedirectHandler()).open(
            url, timeout=_DOWNLOAD_TIMEOUT_SECONDS
        ) as answer:
            while block := answer.read(_DOWNLOAD_BLOCK_BYTES):
                yield block
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise _DownloadError(getattr(reason, "strerror", None) or reason) from error


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


def _manual_download_help(name: str, base: str, folder: Path, files: Sequence[str], error: Exception) -> str:
    return (
        f"'{name}' has to be downloaded, and {base}{files[0]} cannot be had ({error}): "
        f"fetch {' and '.join(files)} from {base} by hand into the folder '{folder}', "
        "or give a folder or file of the set that you have."
    )
