"""Batches and permutations: the same for any number of workers and at any step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midibert_ray.data.order import BatchOrder, Permutation, holdout, holdout_piece, split_rows

QUICK = settings(max_examples=40, deadline=None)


@QUICK
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_a_permutation_is_a_bijection(n: int, seed: int) -> None:
    images = Permutation(n, (seed,))(np.arange(n))
    assert images.dtype == np.int64
    np.testing.assert_array_equal(np.sort(images), np.arange(n))


@QUICK
@given(n=st.integers(2**31, 2**45), seed=st.integers(0, 2**31), at=st.integers(0, 2**31 - 2))
def test_a_large_permutation_stays_inside_and_collides_never(n: int, seed: int, at: int) -> None:
    images = Permutation(n, (seed,))(np.arange(at, min(at + 1000, n)))
    assert images.min() >= 0
    assert images.max() < n
    assert len(np.unique(images)) == len(images)


def test_permutations_look_random() -> None:
    """Every arrangement of four comes up about equally often; neighbours do not stay neighbours."""
    arrangements = np.array([Permutation(4, (seed,))(np.arange(4)) for seed in range(4800)])
    counts = np.unique(arrangements, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert abs(counts - 200).max() < 80  # 5.7 standard deviations
    images = Permutation(100_000, (0,))(np.arange(100_000))
    assert abs(np.corrcoef(np.arange(100_000), images)[0, 1]) < 0.02
    assert (abs(np.diff(images)) == 1).sum() < 20


def test_indices_outside_are_refused() -> None:
    with pytest.raises(IndexError, match=r"outside \[0, 5\)"):
        Permutation(5, (0,))(np.array([5]))
    with pytest.raises(ValueError, match="at least one"):
        Permutation(0, (0,))


@QUICK
@given(n=st.integers(1, 400), batch=st.integers(1, 60), seed=st.integers(0, 100), epoch=st.integers(0, 50))
def test_an_epoch_gives_every_segment_at_most_once(n: int, batch: int, seed: int, epoch: int) -> None:
    order = BatchOrder(n=n, batch_size=batch, seed=seed)
    batches = [order.indices(epoch, k) for k in range(order.batches_per_epoch)]
    assert {len(indices) for indices in batches} == {batch}
    counts = np.bincount(np.concatenate(batches), minlength=n)
    if n >= batch:
        assert counts.max() == 1
        assert order.batches_per_epoch == n // batch
    else:
        assert counts.max() - counts.min() <= 1
    whole = BatchOrder(n=n, batch_size=batch, seed=seed, drop_last=False)
    every = np.concatenate([whole.indices(epoch, k) for k in range(whole.batches_per_epoch)])
    np.testing.assert_array_equal(np.sort(every), np.arange(n))


@QUICK
@given(
    n=st.integers(1, 300),
    batch=st.integers(1, 40),
    seed=st.integers(0, 9),
    stop=st.integers(0, 60),
    data=st.data(),
)
def test_a_resumed_run_sees_what_it_has_not_seen(n: int, batch: int, seed: int, stop: int, data: st.DataObject) -> None:
    """Batch (epoch, k) depends on nothing that came before: a new object goes on at any step."""

    def steps(begin: int, end: int) -> list[list[int]]:
        order = BatchOrder(n=n, batch_size=batch, seed=seed)
        per_epoch = order.batches_per_epoch
        return [order.indices(step // per_epoch, step % per_epoch).tolist() for step in range(begin, end)]

    assert steps(0, stop) + steps(stop, 60) == steps(0, 60)
    shuffled = data.draw(st.permutations(range(10)))
    order = BatchOrder(n=n, batch_size=batch, seed=seed)
    seen = {epoch: order.indices(epoch, 0).tolist() for epoch in shuffled}
    assert all(seen[epoch] == BatchOrder(n=n, batch_size=batch, seed=seed).indices(epoch, 0).tolist() for epoch in seen)


def test_epochs_and_seeds_differ() -> None:
    first = BatchOrder(n=1000, batch_size=50, seed=0).indices(0, 0)
    assert not np.array_equal(first, BatchOrder(n=1000, batch_size=50, seed=0).indices(1, 0))
    assert not np.array_equal(first, BatchOrder(n=1000, batch_size=50, seed=1).indices(0, 0))


@pytest.mark.parametrize(("epoch", "k"), [(0, -1), (0, 4), (-1, 0)])
def test_batches_that_do_not_exist(epoch: int, k: int) -> None:
    with pytest.raises(IndexError, match="an epoch has 4 batches"):
        BatchOrder(n=20, batch_size=5, seed=0).indices(epoch, k)


def test_the_order_is_frozen() -> None:
    """These numbers are part of every run that can be resumed: they must not change with a version."""
    assert BatchOrder(n=1000, batch_size=6, seed=7).indices(3, 2).tolist() == [853, 963, 156, 860, 638, 463]
    assert [i for i in range(20) if holdout_piece(f"{i:03d}", corpus="pop909", seed=0)] == [2, 11, 12, 13]


@QUICK
@given(n=st.integers(0, 500).map(lambda n: n + 10), seed=st.integers(0, 50))
def test_rows_split_85_to_15(n: int, seed: int) -> None:
    train, valid = split_rows(n, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(n))
    assert len(train) == int(n * 0.85)


def test_held_out_pieces_stay_where_they_are() -> None:
    pieces = [f"src_{i:03d}/{i}.mid" for i in range(4000)]
    held = [holdout_piece(piece, corpus="pop1k7", seed=0) for piece in pieces]
    assert 0.13 < np.mean(held) < 0.17
    assert held != [holdout_piece(piece, corpus="pop1k7", seed=1) for piece in pieces]
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 15"):
        holdout_piece("001", corpus="pop909", seed=0, fraction=15)


def test_of_a_handful_of_pieces_one_is_held_out() -> None:
    for seed in range(40):
        few = [("mine", f"{i}.mid") for i in range(3)]
        held = [piece for corpus, piece in few if holdout(few, seed=seed)(corpus, piece)]
        assert 1 <= len(held) <= 2
        assert holdout(reversed(few), seed=seed)(*few[0]) == (few[0][1] in held)
    many = [("mine", f"{i}.mid") for i in range(100)]
    rule = holdout(many, seed=0)
    assert [rule(*name) for name in many] == [holdout_piece(piece, corpus=corpus, seed=0) for corpus, piece in many]
