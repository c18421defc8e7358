"""batches: every image once, the same however it is made, and no thread left behind."""

import threading

import numpy as np
import pytest
import torch

from sightline.batches import Batch
from sightline.data import Shuffle, batch_order, count_batches, iterate_batches, load_dataset, to_tensor
from sightline.types import Dataset, Geometry


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return load_dataset("shapes:100", Geometry(size=(16, 16)))


def jitter(batch: Batch, generator: torch.Generator) -> Batch:
    noise = torch.rand(batch.pixels.shape, generator=generator)
    return Batch(noise * batch.pixels, batch.labels, batch.index)


def same(one: list[Batch], two: list[Batch]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels) and torch.equal(a.index, b.index)
        for a, b in zip(one, two, strict=True)
    )


def test_stratified_draw_of_plain_data(shapes):
    """A loop over images, one by one, is the reference."""
    at = 0
    for batch in iterate_batches(shapes, 32):
        for pixels, label, index in zip(batch.pixels, batch.labels, batch.index, strict=True):
            plain = np.moveaxis(shapes[at][0], -1, 0).astype(np.float32) / np.float32(255)
            np.testing.assert_array_equal(pixels.numpy(), plain)
            assert (int(label), int(index)) == (shapes.labels[at], at)
            at += 1
    assert at == 100


def test_dtype_layout_and_range(shapes):
    (batch,) = iterate_batches(shapes, 100)
    assert batch.pixels.dtype == torch.float32
    assert batch.pixels.shape == (100, 3, 16, 16)
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= batch.pixels.min() < batch.pixels.max() <= 1
    (plain,) = iterate_batches(shapes, 100, memory_format=torch.contiguous_format)
    assert plain.pixels.is_contiguous()
    assert torch.equal(plain.pixels, batch.pixels)
    assert to_tensor(shapes[3]).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 7, 25, 100, 101])
def test_every_image_once_in_a_new_order_each_epoch(shapes, size, drop_last):
    orders = []
    for epoch in range(3):
        made = list(iterate_batches(shapes, size, order=Shuffle(5, epoch), drop_last=drop_last))
        assert len(made) == count_batches(100, size, drop_last=drop_last)
        seen = torch.cat([batch.index for batch in made]) if made else torch.zeros(0, dtype=torch.int64)
        assert len(seen.unique()) == len(seen) == (100 // size * size if drop_last else 100)
        orders.append(seen.tolist())
    if size <= 25:
        assert len({tuple(order) for order in orders}) == 3
        assert orders[0] != sorted(orders[0])


def test_the_order_depends_on_seed_and_epoch():
    labels = np.zeros(50, np.int64)
    assert batch_order(labels, Shuffle(1, 2)).tolist() == batch_order(labels, Shuffle(1, 2)).tolist()
    assert batch_order(labels, Shuffle(1, 2)).tolist() != batch_order(labels, Shuffle(2, 1)).tolist()
    assert batch_order(labels, None).tolist() == list(range(50))


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_resuming_at_any_batch_gives_the_same_batches(shapes, ahead):
    options = {"order": Shuffle(3, 1), "augment": jitter}
    whole = list(iterate_batches(shapes, 16, **options))
    for start in range(len(whole) + 1):
        assert same(list(iterate_batches(shapes, 16, start=start, ahead=ahead, **options)), whole[start:])


def test_balanced_batches_show_every_class_equally_often():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    order = batch_order(labels, Shuffle(4, 1, balanced=True))
    assert len(order) == 100
    seen = np.bincount(labels[order])
    assert seen.max() - seen.min() <= 2
    rare = np.bincount(order, minlength=100)[95:]
    assert rare.min() >= 5  # none is forgotten: 34 / 5, the last two of all left off
    assert order.tolist() != batch_order(labels, Shuffle(4, 2, balanced=True)).tolist()


def test_shares_of_processes_make_up_each_batch(shapes):
    whole = list(iterate_batches(shapes, 16, order=Shuffle(3)))
    parts = [list(iterate_batches(shapes, 16, order=Shuffle(3), share=(rank, 3))) for rank in range(3)]
    for number, batch in enumerate(whole):
        shares = [part[number].index.tolist() for part in parts]
        assert sorted(index for share in shares for index in share) == sorted(batch.index.tolist())
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_augmentation_differs_between_epochs_and_batches(shapes):
    ones = Batch(torch.ones(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    drawn = []
    for epoch in range(2):
        made = iterate_batches(
            shapes, 50, order=Shuffle(0, epoch), augment=lambda _, generator: jitter(ones, generator)
        )
        drawn += [batch.pixels for batch in made]
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 4


def test_group_codes(shapes):
    columns = {"group": np.resize(["p7", "p1"], 100)}
    grouped = Dataset(**{**shapes.__dict__, "columns": columns})
    (batch,) = iterate_batches(grouped, 100)
    assert batch.group is not None
    assert batch.group.tolist() == [1, 0] * 50
    assert next(iterate_batches(shapes, 10)).group is None


def loading_threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_stopping_early_leaves_no_thread(shapes):
    iterator = iterate_batches(shapes, 1, ahead=2)
    next(iterator)
    assert loading_threads() == 1
    iterator.close()
    assert loading_threads() == 0
    for _ in iterate_batches(shapes, 1, ahead=2):
        break
    assert loading_threads() == 0
    list(iterate_batches(shapes, 10, ahead=2))
    assert loading_threads() == 0


@pytest.mark.parametrize("ahead", [0, 2])
def test_errors_reach_the_consumer(shapes, ahead):
    def fail(batch: Batch, generator: torch.Generator) -> Batch:
        if int(batch.index[0]) == 20:
            raise ValueError("at the third batch")
        return batch

    iterator = iterate_batches(shapes, 10, augment=fail, ahead=ahead)
    assert [int(next(iterator).index[0]) for _ in range(2)] == [0, 10]
    with pytest.raises(ValueError, match="at the third batch"):
        next(iterator)
    assert loading_threads() == 0


def test_a_subset_of_a_subset(shapes):
    part = shapes.subset(np.array([5, 50, 99]))
    (batch,) = iterate_batches(part, 8)
    assert batch.index.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(batch.labels.numpy(), shapes.labels[[5, 50, 99]])
    assert torch.equal(batch.pixels, to_tensor(shapes[[5, 50, 99]]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(shapes):
    (batch,) = iterate_batches(shapes, 100, device="cuda")
    (plain,) = iterate_batches(shapes, 100)
    assert batch.pixels.is_cuda
    assert torch.equal(batch.pixels.cpu(), plain.pixels)
