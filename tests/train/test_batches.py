from itertools import chain
from typing import Any

import numpy as np
import pytest

from raycd.config import Stage2Config
from raycd.train.batches import (
    batch_sizes,
    epoch_batches,
    epoch_choice,
    epoch_targets,
    epochs_to_see,
    triplets_seen,
)


def visited(count: int, batch_size: int, **options: Any) -> list[list[int]]:
    return [
        batch.tolist()
        for batch in epoch_batches(count, batch_size, seed=0, **{"epoch": 0, **options})
    ]


def test_an_epoch_visits_every_row_once() -> None:
    batches = visited(10, 4)
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(row for batch in batches for row in batch) == list(range(10))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert visited(50, 50, epoch=3) == visited(50, 50, epoch=3)
    assert visited(50, 50, epoch=3) != visited(50, 50, epoch=4)
    assert epoch_batches(50, 50, seed=1, epoch=3)[0].tolist() != visited(50, 50, epoch=3)[0]


def test_a_last_batch_of_one_row_is_left_out() -> None:
    assert [len(batch) for batch in visited(9, 4)] == [4, 4]


def test_a_single_row_is_a_batch_where_it_is_all_there_is() -> None:
    assert visited(1, 4) == [[0]]
    assert visited(0, 4) == []


def test_the_shares_of_all_workers_are_the_batch_of_one() -> None:
    first, second = visited(20, 8, rank=0, world=2), visited(20, 8, rank=1, world=2)
    assert [one + other for one, other in zip(first, second, strict=True)] == visited(20, 8)


def test_where_shares_cannot_be_equal_the_first_workers_have_a_row_more() -> None:
    shares = [visited(15, 8, rank=rank, world=2) for rank in range(2)]
    assert [[len(batch) for batch in share] for share in shares] == [[4, 4], [4, 3]]
    shares = [visited(10, 5, rank=rank, world=2) for rank in range(2)]
    assert [[len(batch) for batch in share] for share in shares] == [[3, 3], [2, 2]]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [4, 10, 15, 17, 19])
def test_any_number_of_workers_visits_the_rows_of_one(count: int, world: int) -> None:
    shares = [visited(count, 8, rank=rank, world=world) for rank in range(world)]
    together = [list(chain(*parts)) for parts in zip(*shares, strict=True)]
    expected = [batch for batch in visited(count, 8) if len(batch) >= world]
    assert together == expected
    assert [len(batch) for batch in expected] == batch_sizes(count, 8, world)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [6, 7, 8])
def test_batches_are_counted_without_drawing_them(world: int, batch_size: int) -> None:
    counts = range(30)
    drawn = [len(visited(count, batch_size, world=world)) for count in counts]
    assert [len(batch_sizes(count, batch_size, world)) for count in counts] == drawn


def test_a_choice_is_drawn_evenly_anew_in_each_epoch() -> None:
    choices = [epoch_choice(4000, 4, seed=0, epoch=epoch) for epoch in range(2)]
    for choice in choices:
        assert (np.bincount(choice, minlength=4) > 900).all()
        assert set(choice) == {0, 1, 2, 3}
    assert 0.2 < (choices[0] == choices[1]).mean() < 0.3
    assert (epoch_choice(4000, 4, seed=0, epoch=1) == choices[1]).all()
    assert 0.2 < (epoch_choice(4000, 4, seed=1, epoch=1) == choices[1]).mean() < 0.3


def test_one_of_the_right_targets_is_drawn_evenly_and_the_only_one_always() -> None:
    first = np.arange(3000)
    right = np.full((3000, 4), -1)
    right[::3] = [7, -1, 8, 9]  # the second has no image
    right[1::3, 2] = 5
    drawn = [epoch_targets(first, right, seed=0, epoch=epoch) for epoch in range(2)]
    for targets in drawn:
        assert (np.bincount(targets[::3], minlength=10)[[7, 8, 9]] > 270).all()
        assert set(targets[::3]) == {7, 8, 9}
        assert set(targets[1::3]) == {5}
        assert (targets[2::3] == first[2::3]).all()
    assert 0.25 < (drawn[0][::3] == drawn[1][::3]).mean() < 0.42
    assert (epoch_targets(first, right, seed=0, epoch=1) == drawn[1]).all()
    assert (epoch_targets(first, right, seed=1, epoch=1) != drawn[1]).any()


def test_the_last_small_batch_is_dropped_where_that_is_asked_for() -> None:
    assert [len(batch) for batch in epoch_batches(11, 4, seed=0, epoch=0)] == [4, 4, 3]
    dropped = epoch_batches(11, 4, seed=0, epoch=0, drop_last=True)
    assert [len(batch) for batch in dropped] == [4, 4]
    assert [len(batch) for batch in epoch_batches(8, 4, seed=0, epoch=0, drop_last=True)] == [4, 4]


def test_an_only_batch_is_never_dropped() -> None:
    assert [len(batch) for batch in epoch_batches(3, 4, seed=0, epoch=0, drop_last=True)] == [3]


def test_batches_are_counted_as_they_are_drawn_where_the_last_is_dropped() -> None:
    for world in (1, 2):
        for count in range(20):
            drawn = epoch_batches(count, 4, seed=0, epoch=0, world=world, drop_last=True)
            assert len(batch_sizes(count, 4, world, drop_last=True)) == len(drawn), count


def test_equal_triplets_are_the_fewest_epochs_that_see_as_many() -> None:
    settings = Stage2Config(epochs=30, k=5)
    # The demo's: 30 epochs are 25 of 8,100 originals and 5 of 52,310 pseudo triplets.
    assert triplets_seen(settings, 30, 8100, 52310) == 25 * 8100 + 5 * 52310 == 464_050
    assert triplets_seen(settings, 30, 8100, 0) == 30 * 8100
    assert epochs_to_see(settings, 464_050, 8100, 52310) == 30
    assert epochs_to_see(settings, 464_050, 8100, 0) == 58
    assert 57 * 8100 < 464_050 <= 58 * 8100
    cut = settings.model_copy(update={"batch_size": 1024, "drop_last": True})
    assert triplets_seen(cut, 1, 18_000, 0) == 17 * 1024  # the last batch is left out
