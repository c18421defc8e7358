"""Near duplicates: the same picture resized, encoded again, or cropped by a little.

They are found by their low frequencies, confirmed by pixels, and grouped without chains. Candidates are all pairs whose
63 low frequencies of a grey thumbnail, divided by their norm, are at most 0.2 apart; the search for them is exact. A
candidate is confirmed if a small shift, stretch, blur and change of contrast explain the difference of the two
thumbnails (one step of least squares, as in Lucas and Kanade's registration), up to 0.3 % of the picture's variance.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8, UInt16
from numpy import ndarray
from torch import Tensor

from .. import progress, runtime
from ..errors import OutputError
from ..files import atomic_replace, write_csv
from ..types import Dataset
from .geometry import resize_images
from .similarity_join import find_close_pairs
from .store import MappedPixels

DUPLICATES_VERSION = 2
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

MAX_SPECTRAL_DISTANCE = 0.2
"""Largest distance of candidates in their normalised low frequencies."""
MAX_CANDIDATES = 100
"""Closest candidates of an image that are compared by pixels: those of a film of one scene would be all its images."""

_FREQUENCIES = 8
_PAIRS_PER_PART = 2048
_BLOCK = 128
"""Images or pairs that are computed at a time: what a core's cache holds."""


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
        _join_large_groups(leader, signatures)
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
    """Low frequencies, colours and contrast of each image, about 300 bytes, and whether two are the same picture."""

    def __init__(self, dataset: Dataset, positions: Int64[ndarray, " n"]):
        self.dataset, self.positions = dataset, positions
        self.size = min(SIGNATURE_SIDE, dataset.geometry.size[0]), min(SIGNATURE_SIDE, dataset.geometry.size[1])
        self.images_per_part = max(1, 1_000_000 // int(np.prod(dataset.geometry.shape)))
        waves = torch.from_numpy(np.kron(*(_dct_matrix(side) for side in self.size)).T.copy())
        self.low = np.empty((len(positions), _FREQUENCIES**2 - 1), np.float32)
        self.colours = np.empty((len(positions), 48), np.uint8) if dataset.geometry.channels == 3 else None
        self.contrast = np.empty(len(positions), np.float32)

        def measure(part: slice) -> None:
            small, grey = self._shrink(positions[part])
            sums, points = (grey.flatten(1) @ waves).numpy(), grey[0].numel()
            squares = torch.linalg.vector_norm(grey.flatten(1), dim=1).numpy() ** 2
            self.contrast[part] = np.sqrt(np.maximum(squares / points - (sums[:, 0] / points) ** 2, 0))
            low = sums[:, 1:]
            self.low[part] = low / np.maximum(np.linalg.norm(low, axis=1, keepdims=True), 1e-6)
            if self.colours is not None:
                self.colours[part] = resize_images(small, (4, 4)).reshape(len(small), -1)

        _work_in_parts(measure, len(positions), self.images_per_part, "Looking for near duplicates", "images")

    def candidate_pairs(self) -> Int64[ndarray, "p 2"]:
        """All pairs that may be near duplicates, each once, the smaller position first."""
        vivid = np.flatnonzero(self.contrast >= MIN_CONTRAST)
        return vivid[find_close_pairs(self.low[vivid], MAX_SPECTRAL_DISTANCE, most=MAX_CANDIDATES)]

    def confirm_pairs(self, pairs: Int64[ndarray, "p 2"]) -> Bool[ndarray, " p"]:
        """Which pairs are near duplicates, by their colours and pixels."""
        found = self._agree_in_colour(pairs)
        members, places = np.unique(pairs[found], return_inverse=True)
        places, same = places.reshape(-1, 2), np.zeros(int(found.sum()), np.bool_)
        down, across = (torch.from_numpy(_smoothing_matrix(side)) for side in self.size)
        thumbs = np.empty((len(members), *self.size), np.uint16)  # in 256ths of a level

        def smooth(part: slice) -> None:
            grey = self._shrink(self.positions[members[part]])[1]
            thumbs[part] = (down @ (grey @ across.T)).mul_(256).round_().numpy()

        def compare(part: slice) -> None:
            known, pair = np.unique(places[part], return_inverse=True)  # neighbours in the search: few images
            pair = pair.reshape(-1, 2)
            terms = _describe_changes(thumbs[known], every=3)  # a ninth of the points
            likely = np.flatnonzero(_is_same_picture(terms, pair, slack=3.0))
            known, pair = np.unique(places[part][likely], return_inverse=True)
            same[part.start + likely] = _is_same_picture(_describe_changes(thumbs[known]), pair.reshape(-1, 2))

        _work_in_parts(smooth, len(members), self.images_per_part, "Comparing near duplicates", "images")
        _work_in_parts(compare, len(places), _PAIRS_PER_PART, "Comparing near duplicates", "pairs")
        found[found] = same
        return found

    def _shrink(self, chosen: Int64[ndarray, " n"]) -> tuple[UInt8[ndarray, "n h w C"], Float32[Tensor, "n h w"]]:
        """Images at the size of a thumbnail, and their brightness."""
        pixels = self.dataset[chosen]
        small = pixels if pixels.shape[1:3] == self.size else resize_images(pixels, self.size)
        rows = torch.from_numpy(small).float().flatten(2)
        if small.shape[3] == 1:
            return small, rows
        weights = torch.tensor([[0.299], [0.587], [0.114]])
        return small, rows @ torch.kron(torch.eye(self.size[1]), weights)  # faster than three products a pixel

    def _agree_in_colour(self, pairs: Int64[ndarray, "p 2"]) -> Bool[ndarray, " p"]:
        """Which pairs agree on a coarse grid of colours, brightness aside."""
        found = np.ones(len(pairs), np.bool_)
        if self.colours is None:
            return found
        for start in range(0, len(pairs), 1 << 14):
            part = slice(start, start + (1 << 14))
            one, two = (self.colours[side].astype(np.float32).reshape(-1, 16, 3) for side in pairs[part].T)
            apart = one - two
            apart -= apart.mean(2, keepdims=True)
            found[part] = np.abs(apart).mean((1, 2)) <= MAX_COLOUR_DIFFERENCE
        return found


def _work_in_parts(work: Callable[[slice], None], count: int, size: int, what: str, unit: str) -> None:
    """Call ``work`` with each part of ``count``, ``size`` at a time, on all cores."""
    starts = range(0, count, size)
    with runtime.single_threaded_pool() as pool:
        for start, _ in zip(starts, pool.map(work, (slice(start, start + size) for start in starts)), strict=True):
            progress.break_silence(f"{what}: {start:,} of {count:,} {unit}")


def _smoothing_matrix(side: int) -> Float32[ndarray, "side side"]:
    """The binomial filter 1 2 1 as a matrix: it removes what resampling and JPEG change most."""
    rows = (np.eye(side, k=-1) + 2 * np.eye(side) + np.eye(side, k=1)) / 4
    rows[0, 0] = rows[-1, -1] = 0.75  # the border is repeated
    return rows.astype(np.float32)


def _dct_matrix(side: int) -> Float32[ndarray, "f side"]:
    """The lowest frequencies of the discrete cosine transform (DCT-II) as a matrix."""
    angles = np.pi * np.arange(_FREQUENCIES)[:, None] * (np.arange(side) + 0.5) / side
    return np.cos(angles).astype(np.float32)


def _describe_changes(thumbs: UInt16[ndarray, "m h w"], *, every: int = 1) -> Float32[ndarray, "m 6 p"]:
    """What small changes add to each picture: shift and stretch across and down, blur, and contrast.

    In every ``every``-th row and column, each without its mean, so that brightness does not matter.
    """
    height, width = thumbs.shape[1:]
    here, after, before = slice(1, -1, every), slice(2, None, every), slice(0, -2, every)
    x = ((np.arange(1, width - 1, every) + 0.5) / width - 0.5).astype(np.float32)
    y = ((np.arange(1, height - 1, every) + 0.5) / height - 0.5).astype(np.float32)[:, None]
    found = np.empty((len(thumbs), 6, len(y), len(x)), np.float32)
    for start in range(0, len(thumbs), _BLOCK):
        grey, terms = thumbs[start : start + _BLOCK] * np.float32(1 / 256), found[start : start + _BLOCK]
        left, right = grey[:, here, before], grey[:, here, after]
        above, below = grey[:, before, here], grey[:, after, here]
        terms[:, 5] = middle = grey[:, here, here]
        np.multiply(right - left, width / 2, out=terms[:, 0])
        np.multiply(below - above, height / 2, out=terms[:, 2])
        np.multiply(terms[:, 0], x, out=terms[:, 1])
        np.multiply(terms[:, 2], y, out=terms[:, 3])
        terms[:, 4] = left + right + above + below - 4 * middle
        terms -= terms.mean((2, 3), keepdims=True)
    return found.reshape(len(thumbs), 6, len(y) * len(x))


def _is_same_picture(
    terms: Float32[ndarray, "m 6 p"], pairs: Int64[ndarray, "n 2"], *, slack: float = 1.0
) -> Bool[ndarray, " n"]:
    """Whether one is the other, slightly shifted, stretched, blurred or changed in contrast.

    To first order such changes add the picture's derivatives to it, so their sizes, and what they
    leave unexplained, follow from least squares; the derivatives are taken of the mean of both.
    """
    same, room = np.zeros(len(pairs), np.bool_), np.empty((_BLOCK, 7, terms.shape[2]), np.float32)
    for start in range(0, len(pairs), _BLOCK):
        one, two = (terms.take(side, 0) for side in pairs[start : start + _BLOCK].T)
        design = room[: len(one)]  # twice the mean of both, and their difference
        np.add(one, two, out=design[:, :6])
        np.subtract(two[:, 5], one[:, 5], out=design[:, 6])
        products = (torch.from_numpy(design) @ torch.from_numpy(design).mT).numpy()
        normal, effect = products[:, :6, :6] + 0.04 * np.eye(6, dtype=np.float32), products[:, :6, 6:]
        amounts = np.linalg.solve(normal, effect)
        rest = products[:, 6, 6] - (amounts * (effect + 0.04 * amounts)).sum((1, 2))
        allowed = MAX_RESIDUAL_VARIANCE / 4 * products[:, 5, 5] + ROUNDING_NOISE**2 * terms.shape[2]
        moved = 2 * np.abs(amounts[:, :4, 0]).max(1)
        same[start : start + _BLOCK] = (rest <= slack * allowed) & (moved <= slack * MAX_DISPLACEMENT)
    return same


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


def _join_large_groups(leader: Int64[ndarray, " n"], signatures: ImageSignatures) -> None:
    """Join to each large group, in place, every group all of whose images are confirmed against its leader.

    Of more than ``MAX_CANDIDATES`` copies of one picture the search compares only some, so they are several groups.
    """
    sizes, vivid = np.bincount(leader), signatures.contrast >= MIN_CONTRAST
    large = np.flatnonzero(sizes > MAX_CANDIDATES)
    for head in large[np.argsort(-sizes[large], kind="stable")]:
        if leader[head] != head:
            continue
        others = np.flatnonzero((leader == np.arange(len(leader))) & vivid)
        near = signatures.low[others] @ signatures.low[head] > 1 - MAX_SPECTRAL_DISTANCE**2 / 2
        others = others[near & (others != head)]
        others = others[signatures.confirm_pairs(np.stack(np.broadcast_arrays(head, others), 1))]
        members = np.flatnonzero(np.isin(leader, others))
        agreed = signatures.confirm_pairs(np.stack(np.broadcast_arrays(head, members), 1))
        leader[members[~np.isin(leader[members], leader[members[~agreed]])]] = head
