"""Near duplicates: the same picture resized, encoded again, or cropped by a little.

They are found by hash, confirmed by pixels, and grouped without chains. The hash is the sign of 63 low frequencies of
a grey thumbnail, each minus its median over the images (as in pHash); images whose hashes agree in one of sixteen
random sets of 14 bits are candidates. A candidate is confirmed if a small shift, stretch, blur and change of contrast
explain the difference of the two thumbnails (one step of least squares, as in Lucas and Kanade's registration), up to
0.3 % of the picture's variance.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy import ndarray

from .. import progress
from ..errors import OutputError
from ..files import atomic_replace, write_csv
from ..types import Dataset
from .geometry import resize_images
from .store import MappedPixels

DUPLICATES_VERSION = 1
"""Increased whenever the search would find other pairs."""

SIGNATURE_SIDE = 32
"""Side of a thumbnail in pixels, or that of the images where it is smaller."""
MIN_COMPARED_SIDE = 16
"""Side in pixels below which images are only compared by their bytes: they have too few pixels to distinguish."""
MAX_RESIDUAL_VARIANCE = 0.003
"""Share of a thumbnail's variance that may remain unexplained."""
ROUNDING_NOISE = 0.5
"""Grey levels (of 255) that may remain unexplained at any contrast, from rounding."""
MIN_CONTRAST = 4.0
"""Standard deviation in grey levels below which an image has too little contrast to be compared."""
MAX_DISPLACEMENT = 0.06
"""Largest shift or stretch, as a share of the side."""
MAX_COLOUR_DIFFERENCE = 8.0
"""Largest mean difference in colour, in levels of 255, of pictures that agree in grey."""

_FREQUENCIES = 8
_TABLES, _BITS, _WINDOW, _APART = 16, 14, 24, 12
_MAX_SPECTRAL_DISTANCE = 0.2
"""Largest distance of candidates in their normalised low frequencies."""
_MAX_ALL_PAIRS_IMAGES = 3000
"""Images up to which all pairs are compared."""
_PAIRS_PER_CHUNK = 128


def find_near_duplicates(dataset: Dataset) -> Int64[ndarray, " N"]:
    """The position of the image that each image is a near duplicate of; its own position where there is none.

    Every image of a group is confirmed against the group's leader, so that groups are no chains. Files with equal
    bytes are in one group. Images without contrast, or smaller than 16 pixels, have no near duplicates. The result
    is cached in the folder of the pixel store.
    """
    place = None
    if isinstance(dataset.pixels, MappedPixels):
        what = f"{DUPLICATES_VERSION}".encode() + dataset.rows.astype("<i8").tobytes()
        digest = hashlib.blake2b(what, digest_size=8).hexdigest()
        place = dataset.pixels.path.with_name(f"near-{digest}.npy")
        with suppress(OSError, ValueError):
            found = np.load(place)
            if found.shape == (len(dataset),):
                return found
    first, back = np.unique(dataset.digests, return_index=True, return_inverse=True)[1:]
    leader = np.arange(len(first))
    if min(dataset.geometry.size) >= MIN_COMPARED_SIDE and len(first) > 1:
        signatures = ImageSignatures(dataset, first)
        pairs = signatures.candidate_pairs()
        leader = _assign_leaders(pairs[signatures.confirm_pairs(pairs)], len(first))
    found = first[leader[back]]
    if place:
        with suppress(OutputError), atomic_replace(place) as temporary, temporary.open("wb") as stream:
            np.save(stream, found)
    return found


def write_duplicate_table(dataset: Dataset, path: Path) -> Path:
    """Write the images that repeat another one: ``group``, ``file``, ``label``, and ``kind``, exact or near.

    The images of a group follow each other, the one that the others repeat first; its kind is empty.
    """
    leader = find_near_duplicates(dataset)
    members = np.flatnonzero(np.bincount(leader, minlength=len(dataset))[leader] > 1)
    members = members[np.lexsort((members, leader[members] != members, leader[members]))]
    names = (*dataset.classes, "")
    rows: list[list[object]] = [["group", "file", "label", "kind"]]
    for i in members.tolist():
        kind = "exact" if dataset.digests[i] == dataset.digests[leader[i]] else "near"
        label = names[dataset.labels[i]]  # -1, no label, is the last name
        rows.append([int(leader[i]), dataset.files[i], label, "" if leader[i] == i else kind])
    write_csv(path, rows)
    return path


class ImageSignatures:
    """Thumbnail, low frequencies, colours and contrast of each image: about 2.5 kB."""

    def __init__(self, dataset: Dataset, positions: Int64[ndarray, " n"]):
        size = min(SIGNATURE_SIDE, dataset.geometry.size[0]), min(SIGNATURE_SIDE, dataset.geometry.size[1])
        tall, wide = (_dct_matrix(side) for side in size)
        down, across = (_smoothing_matrix(side) for side in size)
        count, channels = len(positions), dataset.geometry.channels
        self.thumbs = np.empty((count, *size), np.uint16)  # in 256ths of a level
        self.low = np.empty((count, _FREQUENCIES**2 - 1), np.float32)
        self.colours = np.empty((count, 48), np.uint8) if channels == 3 else None
        self.contrast = np.empty(count, np.float32)
        step = max(1, 4_000_000 // int(np.prod(dataset.geometry.shape)))
        for start in range(0, count, step):
            progress.break_silence(f"Looking for near duplicates: {start:,} of {count:,} images")
            part = slice(start, start + step)
            pixels = dataset[positions[part]]
            small = pixels if pixels.shape[1:3] == size else resize_images(pixels, size)
            if small.shape[3] == 1:
                grey = small[..., 0].astype(np.float32)
            else:
                flat = small.reshape(-1, 3).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
                grey = flat.reshape(small.shape[:3])
            self.contrast[part] = grey.std((1, 2))
            self.thumbs[part] = np.rint(down @ grey @ across.T * 256)
            waves = (tall @ grey @ wide.T).reshape(len(grey), -1)[:, 1:]
            self.low[part] = waves / np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), 1e-6)
            if self.colours is not None:
                self.colours[part] = resize_images(small, (4, 4)).reshape(len(small), -1)

    def candidate_pairs(self) -> Int64[ndarray, "p 2"]:
        """Pairs that may be near duplicates, each once, the smaller position first."""
        vivid = np.flatnonzero(self.contrast >= MIN_CONTRAST)
        if len(vivid) <= _MAX_ALL_PAIRS_IMAGES:
            pairs = np.stack(
                np.nonzero(np.triu(self.low[vivid] @ self.low[vivid].T > 1 - _MAX_SPECTRAL_DISTANCE**2 / 2, 1)), 1
            )
            return vivid[pairs]
        pairs = vivid[_match_hashes(self.low[vivid])]
        close = np.empty(len(pairs), np.bool_)
        for start in range(0, len(pairs), 1 << 16):
            one, two = (self.low[pairs[start : start + (1 << 16), side]] for side in (0, 1))
            close[start : start + (1 << 16)] = np.einsum("ij,ij->i", one, two) > 1 - _MAX_SPECTRAL_DISTANCE**2 / 2
        return pairs[close]

    def confirm_pairs(self, pairs: Int64[ndarray, "p 2"]) -> Bool[ndarray, " p"]:
        """Which pairs are near duplicates, by their pixels."""
        found = np.zeros(len(pairs), np.bool_)
        for start in range(0, len(pairs), _PAIRS_PER_CHUNK):
            progress.break_silence(f"Comparing near duplicates: {start:,} of {len(pairs):,} pairs")
            one, two = (
                self.thumbs[side] * np.float32(1 / 256) for side in pairs[start : start + _PAIRS_PER_CHUNK].T
            )
            likely = np.flatnonzero(_is_same_picture(one, two, every=3, slack=3.0))  # a ninth of the points
            found[start + likely] = _is_same_picture(one[likely], two[likely])
        if self.colours is not None:
            one, two = (self.colours[side].astype(np.float32).reshape(-1, 16, 3) for side in pairs[found].T)
            apart = one - two
            apart -= apart.mean(2, keepdims=True)  # brightness aside
            found[found] = np.abs(apart).mean((1, 2)) <= MAX_COLOUR_DIFFERENCE
        return found


def _smoothing_matrix(side: int) -> Float32[ndarray, "side side"]:
    """The binomial filter 1 2 1 as a matrix: it removes what resampling and JPEG change most."""
    rows = (np.eye(side, k=-1) + 2 * np.eye(side) + np.eye(side, k=1)) / 4
    rows[0, 0] = rows[-1, -1] = 0.75  # the border is repeated
    return rows.astype(np.float32)


def _dct_matrix(side: int) -> Float32[ndarray, "f side"]:
    """The lowest frequencies of the discrete cosine transform (DCT-II) as a matrix."""
    angles = np.pi * np.arange(_FREQUENCIES)[:, None] * (np.arange(side) + 0.5) / side
    return np.cos(angles).astype(np.float32)


def _match_hashes(low: Float32[ndarray, "n f"]) -> Int64[ndarray, "p 2"]:
    """Pairs whose hashes agree in all bits of a table and differ in few of the others.

    A table sorts the hashes by its own bits first and looks at the next few: the time is that of sorting.
    """
    count = len(low)
    bits = np.pad(low > np.median(low, axis=0), ((0, 0), (0, 1)))
    whole = _pack_bits(bits)
    drawn = np.random.default_rng(0)
    found = []
    for _ in range(_TABLES):
        keys = _pack_bits(bits[:, [*drawn.permutation(bits.shape[1] - 1), bits.shape[1] - 1]])
        order = np.argsort(keys)
        table, hashes = keys[order] >> np.uint64(64 - _BITS), whole[order]
        for lag in range(1, min(_WINDOW, count - 1) + 1):
            hits = np.flatnonzero(table[lag:] == table[:-lag])
            hits = hits[np.bitwise_count(hashes[hits] ^ hashes[hits + lag]) <= _APART]
            one, two = order[hits], order[hits + lag]
            found.append(np.minimum(one, two) * count + np.maximum(one, two))
    pairs = np.sort(np.concatenate(found))  # np.unique hashes, which takes four times as long
    return np.stack(np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], count), 1)


def _pack_bits(bits: Bool[ndarray, "n 64"]) -> ndarray:
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(">u8")[:, 0].astype(np.uint64)


def _is_same_picture(
    one: Float32[ndarray, "B h w"], two: Float32[ndarray, "B h w"], *, every: int = 1, slack: float = 1.0
) -> Bool[ndarray, " B"]:
    """Whether one is the other, slightly shifted, stretched, blurred or changed in contrast.

    To first order such changes add the picture's derivatives to it, so their sizes, and what they
    leave unexplained, follow from least squares; the derivatives are taken of the mean of both.
    """
    count, height, width = one.shape
    mean = (one + two) / 2
    here, after, before = slice(1, -1, every), slice(2, None, every), slice(0, -2, every)
    middle = mean[:, here, here]
    left, right, above, below = (
        mean[:, here, before],
        mean[:, here, after],
        mean[:, before, here],
        mean[:, after, here],
    )
    across, down = (right - left) * (width / 2), (below - above) * (height / 2)
    x = ((np.arange(1, width - 1, every) + 0.5) / width - 0.5).astype(np.float32)
    y = ((np.arange(1, height - 1, every) + 0.5) / height - 0.5).astype(np.float32)[:, None]
    contrast = middle - middle.mean((1, 2), keepdims=True)
    blur = left + right + above + below - 4 * middle
    terms = [across, across * x, down, down * y, blur, contrast, np.ones_like(middle)]
    points = middle.shape[1] * middle.shape[2]
    design = np.stack(terms, 1).reshape(count, len(terms), points)
    change = (two - one)[:, here, here].reshape(count, points)
    normal = design @ design.transpose(0, 2, 1) + 0.01 * np.eye(len(terms), dtype=np.float32)
    amounts = np.linalg.solve(normal, design @ change[..., None])
    rest = change - (amounts.transpose(0, 2, 1) @ design)[:, 0]
    moved = np.abs(amounts[:, :4, 0]).max(1)
    allowed = MAX_RESIDUAL_VARIANCE * (contrast**2).mean((1, 2)) + ROUNDING_NOISE**2
    return ((rest**2).mean(1) <= slack * allowed) & (moved <= slack * MAX_DISPLACEMENT)


def _assign_leaders(pairs: Int64[ndarray, "p 2"], count: int) -> Int64[ndarray, " n"]:
    """The leader of each image: the image with most partners leads all of them that are still free, and so on."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    partners = np.bincount(both[:, 0], minlength=count)
    ends = np.cumsum(partners)
    leader, free = np.arange(count), np.ones(count, np.bool_)
    for head in np.argsort(-partners, kind="stable")[: int((partners > 0).sum())]:
        if free[head]:
            members = both[ends[head] - partners[head] : ends[head], 1]
            taken = members[free[members]]
            leader[taken] = head
            free[taken] = False
            free[head] = False
    return leader
