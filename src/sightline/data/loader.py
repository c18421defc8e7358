"""Batches of a dataset: each is one index of the store, and may be prepared in advance by a thread."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from .. import runtime
from ..batches import Batch
from ..types import Dataset

Augment = Callable[[Batch, torch.Generator], Batch]

_SHUFFLE, _AUGMENT = 1, 2  # separate streams of random numbers of one seed


@dataclass(frozen=True)
class Shuffle:
    """A new order each epoch, a pure function of (seed, epoch)."""

    seed: int
    epoch: int = 0
    balanced: bool = False
    """Every class equally often, and as many images in all: rare classes are repeated, common ones subsampled."""
    groups: bool = False
    """Balanced by the column ``group`` instead of the class."""
    classes: int = 0
    """Classes of each batch, with as many images of each (P x K batches: Hermans et al. 2017); 0 for any images."""


def batch_order(
    labels: Int64[ndarray, " N"], order: Shuffle | None, batch_size: int | None = None
) -> Int64[ndarray, " M"]:
    """The positions 0 to N - 1 in the order of the batches; ascending where ``order`` is None.

    Where ``order.classes`` is given, of ``batch_size`` images a batch, and M is N up to a whole number of batches.
    """
    count = len(labels)
    if order is None:
        return np.arange(count)
    if order.classes and batch_size:
        return _class_batches(labels, order, batch_size)
    mixed = runtime.permutation(count, order.seed, order.epoch, _SHUFFLE)
    if not order.balanced:
        return mixed
    positions = [mixed[labels[mixed] == label] for label in np.unique(labels)]
    share = -(-count // len(positions))
    drawn = np.concatenate([np.resize(of_class, share) for of_class in positions])
    return drawn[runtime.permutation(len(drawn), order.seed, order.epoch, _SHUFFLE, 1)][:count]


def _class_batches(labels: Int64[ndarray, " N"], order: Shuffle, batch_size: int) -> Int64[ndarray, " M"]:
    """Batches of ``order.classes`` classes: classes and the images of a class are drawn in turn, in random order."""
    mixed = runtime.permutation(len(labels), order.seed, order.epoch, _SHUFFLE)
    images = [mixed[labels[mixed] == label] for label in np.unique(labels)]
    turn, used = runtime.permutation(len(images), order.seed, order.epoch, _SHUFFLE, 2), [0] * len(images)
    places = min(order.classes, len(images))
    batches = []
    for batch in range(count_batches(len(labels), batch_size)):
        for place in range(places):
            label = turn[(batch * places + place) % len(turn)]
            share = batch_size // places + ((place + batch) % places < batch_size % places)
            batches.append(images[label].take(range(used[label], used[label] + share), mode="wrap"))
            used[label] += share
    return np.concatenate(batches)


def to_tensor(pixels: UInt8[ndarray, "B H W C"], device: torch.device | str = "cpu") -> Float[Tensor, "B C H W"]:
    """Stored pixels as a network takes them: float32 in [0, 1], channels_last in memory.

    They are copied to the device as uint8, a quarter of the bytes.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2)
    return tensor.to(torch.float32, memory_format=torch.preserve_format).div_(255)


def count_batches(count: int, batch_size: int, *, drop_last: bool = False) -> int:
    """The number of batches of ``count`` images."""
    return count // batch_size if drop_last else -(-count // batch_size)


def iterate_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    order: Shuffle | None = None,
    start: int = 0,
    device: torch.device | str = "cpu",
    drop_last: bool = False,
    augment: Augment | None = None,
    memory_format: torch.memory_format = torch.channels_last,
    ahead: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The dataset in batches, from batch number ``start`` on.

    Args:
        order: None for the dataset's own order, ``Shuffle(seed, epoch)`` for a random one.
        drop_last: whether a last batch of fewer images is left out.
        augment: is given each batch and a generator that depends on seed, epoch and batch number alone, so that a
            resumed epoch goes on as an uninterrupted one would.
        ahead: batches prepared in advance by a thread. Default 2 for an accelerator and for images decoded on read,
            else 0: a second thread would take the cores from the network.
        share: (rank, count): every count-th image of each batch, the share of one process.
    """
    device = torch.device(device)
    if ahead is None:
        stored = not getattr(dataset.pixels, "decodes_on_read", False)
        ahead = 0 if stored and device.type == "cpu" else 2
    rank, ranks = share
    own = (rank,) if ranks > 1 else ()  # each of several processes draws from its own stream
    labels = torch.from_numpy(dataset.labels)
    groups = dataset.columns.get("group")
    codes = None if groups is None else torch.from_numpy(np.unique(groups, return_inverse=True)[1])
    by_group = codes is not None and order is not None and order.groups
    indices = batch_order(codes.numpy() if by_group and codes is not None else dataset.labels, order, batch_size)
    seed, epoch = (order.seed, order.epoch) if order else (0, 0)

    def make(step: int) -> Batch:
        chosen = indices[step * batch_size : (step + 1) * batch_size][rank::ranks]
        index = torch.from_numpy(chosen)
        batch = Batch(
            pixels=to_tensor(dataset[chosen], device).contiguous(memory_format=memory_format),
            labels=labels[index].to(device),
            index=index.to(device),
            group=None if codes is None else codes[index].to(device),
            classes=len(dataset.classes),
            epoch=epoch,
        )
        if augment is None:
            return batch
        return augment(batch, runtime.make_generator(seed, epoch, step, _AUGMENT, *own))

    steps = range(start, count_batches(len(dataset), batch_size, drop_last=drop_last))
    return _prefetch(make, steps, ahead) if ahead else map(make, steps)


def _prefetch(make: Callable[[int], Batch], steps: range, ahead: int) -> Iterator[Batch]:
    """The batches of another thread, in order; the thread ends with the iterator."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(ahead)
    stop = threading.Event()

    def hand(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for step in steps:
                if not hand(make(step)):
                    return
            hand(None)
        except BaseException as error:  # raised again in the consumer's thread
            hand(error)

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while not ready.empty():  # a waiting producer wakes at once
            ready.get_nowait()
        thread.join()
