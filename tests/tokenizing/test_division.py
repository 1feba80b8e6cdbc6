"""Division of pieces: groups stay whole, labels get their shares, and the seed alone decides between equals."""

import numpy as np
import pytest

from midibert_ray.tokenizing.division import SHARES, divide

EIGHT_ONE_ONE = list(SHARES.values())


def alone(count: int) -> list[str]:
    return [f"piece {number}" for number in range(count)]


@pytest.mark.parametrize(("count", "sizes"), [(2, [1, 1, 0]), (3, [1, 1, 1]), (10, [8, 1, 1]), (200, [160, 20, 20])])
def test_pieces_of_one_label_are_divided_by_share(count: int, sizes: list[int]) -> None:
    parts = divide(alone(count), np.arange(count), np.zeros(count, np.int64), EIGHT_ONE_ONE, seed=1)
    assert np.bincount(parts, minlength=3).tolist() == sizes


def test_each_label_gets_its_share_and_groups_stay_whole() -> None:
    labels = np.repeat([0, 1, 2], [100, 40, 20])
    units = [f"group {number // 2:03}" for number in range(160)]
    parts = divide(units, np.arange(160), labels, EIGHT_ONE_ONE, seed=1)
    assert len(parts) == 80
    by_piece = parts[np.unique(units, return_inverse=True)[1]]
    counts = np.array([np.bincount(by_piece[labels == label], minlength=3) for label in range(3)])
    assert counts.tolist() == [[80, 10, 10], [32, 4, 4], [16, 2, 2]]


def test_a_large_group_is_learned_from_and_small_ones_are_tested() -> None:
    units = [f"g{size}-{at}" for at, size in enumerate((50, 20, 5, 5)) for _ in range(size)]
    parts = divide(units, np.arange(80), np.zeros(80, np.int64), EIGHT_ONE_ONE, seed=1)
    assert dict(zip(np.unique(units).tolist(), parts.tolist(), strict=True)) in (
        {"g50-0": 0, "g20-1": 0, "g5-2": 1, "g5-3": 2},
        {"g50-0": 0, "g20-1": 0, "g5-2": 2, "g5-3": 1},
    )


def test_folds_are_even_and_every_label_is_in_each() -> None:
    labels = np.repeat([0, 1], [50, 15])
    parts = divide(alone(65), np.arange(65), labels, [0.2] * 5, seed=1)
    by_name = parts[np.unique(alone(65), return_inverse=True)[1]]
    assert [np.bincount(by_name[labels == label]).tolist() for label in (0, 1)] == [[10] * 5, [3] * 5]


def test_the_seed_decides_and_nothing_else() -> None:
    def made(seed: int, order: np.ndarray) -> dict[str, int]:
        names = [alone(40)[at] for at in order]
        parts = divide(names, np.arange(40), (order % 4).astype(np.int64), EIGHT_ONE_ONE, seed)
        return dict(zip(np.unique(names).tolist(), parts.tolist(), strict=True))

    first = made(1, np.arange(40))
    assert made(1, np.random.default_rng(0).permutation(40)) == first
    assert made(2, np.arange(40)) != first
