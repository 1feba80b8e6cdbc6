"""Batches made ahead of time: in order, two ahead, and made again where the loop goes elsewhere."""

import threading

import pytest

from midibert_ray.training.prefetch import AHEAD, Prefetcher


def test_two_are_made_beside_the_one_in_use_and_none_behind_the_last() -> None:
    made: list[int] = []
    reached = threading.Event()

    def make(key: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        made.append(key)
        if key == AHEAD:
            reached.set()
        return key * key

    batches = Prefetcher(make, lambda key: key + 1 if key < 9 else None)
    assert batches.take(0) == 0
    assert reached.wait(60), "nobody has asked for these"
    assert [batches.take(key) for key in range(1, 10)] == [key * key for key in range(1, 10)]
    assert made == list(range(10))
    assert batches.worked > 0 and batches.waited > 0
    batches.restart()
    assert batches.worked == batches.waited == 0


def test_another_place_is_found_at_once() -> None:
    batches = Prefetcher(str, lambda key: key + 1)
    assert [batches.take(key) for key in (0, 1, 40, 41, 7)] == ["0", "1", "40", "41", "7"]


def test_an_error_is_raised_where_its_batch_is_taken() -> None:
    batches = Prefetcher(lambda key: 1 // (2 - key), lambda key: key + 1)
    assert batches.take(0) == 0
    assert batches.take(1) == 1
    with pytest.raises(ZeroDivisionError):
        batches.take(2)
