"""Intervals and tests against textbook values, brute force, and how often they are right."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midibert_ray.report import statistics


def tally(*pieces: tuple[float, float]) -> np.ndarray:
    return np.array(pieces, dtype=np.float64)


def test_wilson() -> None:
    # Agresti and Coull (1998), and Wilson's formula where nothing is right.
    assert statistics.wilson(70, 100) == pytest.approx((0.6042, 0.7811), abs=1e-4)
    z = 1.959964
    assert statistics.wilson(0, 10) == pytest.approx((0, z * z / (10 + z * z)), abs=1e-6)
    assert statistics.wilson(0, 0) == (0, 1)


def test_students_interval_over_seeds() -> None:
    five = [0.80, 0.82, 0.84, 0.86, 0.88]
    half = 2.776445 * np.std(five, ddof=1) / np.sqrt(5)  # from a table of t
    assert statistics.over_seeds(five) == pytest.approx((0.84 - half, 0.84 + half), abs=1e-6)
    assert statistics.over_seeds([0.8, 0.9]) == (pytest.approx(0.85 - 12.7062 * 0.05, abs=1e-4), 1.0)
    assert statistics.over_seeds([0.7, 0.7]) == (0.7, 0.7)


def test_the_bootstrap_draws_whole_pieces() -> None:
    """With three pieces all 27 resamples can be listed; the draws have their distribution."""
    scores = tally((9, 10), (30, 60), (5, 20))
    listed = [scores[list(chosen)].sum(axis=0) for chosen in itertools.product(range(3), repeat=3)]
    exact = np.array([correct / scored for correct, scored in listed])
    draws = statistics.resampled(scores)
    assert draws.shape == (statistics.DRAWS,)
    for value in np.unique(exact.round(9)):
        share = (exact.round(9) == value).mean()
        assert (draws.round(9) == value).mean() == pytest.approx(share, abs=0.02)
    assert statistics.over_pieces(scores) == statistics.percentiles(draws)


def test_notes_that_resemble_each_other_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    correct = random.binomial(1000, random.uniform(0.5, 0.9, size=86))
    scores = np.column_stack([correct, np.full(86, 1000)]).astype(float)
    low, high = statistics.over_pieces(scores)
    narrow = statistics.wilson(correct.sum(), 86_000)
    assert low < correct.sum() / 86_000 < high
    assert high - low > 5 * (narrow[1] - narrow[0])


def test_the_interval_over_pieces_covers_the_truth() -> None:
    random, hits = np.random.default_rng(1), 0
    for _ in range(300):
        share = random.beta(8, 2, size=40)
        size = random.integers(50, 150, size=40)
        low, high = statistics.over_pieces(np.column_stack([random.binomial(size, share), size]).astype(float))
        hits += low <= 0.8 <= high
    assert 0.90 <= hits / 300 <= 0.98


def test_where_all_is_right_the_interval_is_no_point() -> None:
    assert statistics.over_pieces(tally((5, 5), (7, 7))) == statistics.wilson(2, 2)
    assert statistics.over_pieces(tally((0, 5), (0, 7), (0, 1))) == statistics.wilson(0, 3)


def test_a_paired_difference_is_surer_than_two_means() -> None:
    random = np.random.default_rng(2)
    easy = random.uniform(0.3, 0.95, size=50)
    first, second = (
        np.column_stack([random.binomial(200, easy - less), np.full(50, 200)]).astype(float) for less in (0, 0.05)
    )
    paired = statistics.difference(first, second, paired=True)
    unpaired = statistics.difference(first, second, paired=False)
    assert 0 < paired[0] < 0.05 < paired[1] < 0.1
    assert unpaired[1] - unpaired[0] > 2 * (paired[1] - paired[0])
    assert statistics.difference(first, first, paired=True) == (0, 0)


def brute_force(first: np.ndarray, second: np.ndarray) -> float:
    """Exchange the answers of every subset of the pieces, and see how often the difference is as large."""

    def gap(swapped: tuple[bool, ...]) -> float:
        chosen = np.array(swapped)[:, None]
        one, other = np.where(chosen, second, first), np.where(chosen, first, second)
        return abs(one[:, 0].sum() - other[:, 0].sum())

    observed = gap((False,) * len(first))
    return float(np.mean([gap(swapped) >= observed for swapped in itertools.product([False, True], repeat=len(first))]))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=7))
def test_the_exact_test_tries_all_exchanges(pairs: list[tuple[int, int]]) -> None:
    first, second = (tally(*((pair[side], 9) for pair in pairs)) for side in (0, 1))
    p = statistics.paired_p(first, second)
    assert p == pytest.approx(brute_force(first, second))
    assert 0 < p <= 1
    assert statistics.paired_p(second, first) == p


def test_many_pieces_are_sampled_and_p_is_never_0() -> None:
    random = np.random.default_rng(3)
    size = np.full(86, 1000.0)
    better, worse = (np.column_stack([random.binomial(1000, share, size=86), size]) for share in (0.9, 0.8))
    assert statistics.paired_p(better, worse) == 1 / (statistics.DRAWS + 1)
    assert statistics.paired_p(better, better) == 1
    fourteen = tally(*((5 + number % 3, 10) for number in range(14)))
    other = tally(*((5 + number % 2, 10) for number in range(14)))
    assert statistics.paired_p(fourteen, other) == pytest.approx(brute_force(fourteen, other), abs=0.02)


def test_the_paired_test_is_right_about_equals() -> None:
    random, rejected = np.random.default_rng(4), 0
    for _ in range(400):
        easy = random.uniform(0.3, 0.9, size=30)
        pair = [np.column_stack([random.binomial(50, easy), np.full(30, 50)]).astype(float) for _ in range(2)]
        rejected += statistics.paired_p(*pair) <= 0.05
    assert 0.02 <= rejected / 400 <= 0.08


def test_holm() -> None:
    # Holm's own procedure by hand: 4 × 0.005, 3 × 0.01, 2 × 0.03, and never less than the one before.
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.7]) == [1, 1]
    assert statistics.holm([0.2]) == [0.2]
    assert statistics.holm([]) == []


def test_a_test_split_takes_no_time() -> None:
    random = np.random.default_rng(5)
    scores = np.column_stack([random.integers(100, 900, size=86), np.full(86, 1000)]).astype(float)
    statistics.over_pieces(scores)
    started = time.process_time()
    statistics.over_pieces(scores)
    statistics.paired_p(scores, scores[::-1])
    assert time.process_time() - started < 0.1


def test_groups_are_drawn_and_exchanged_whole() -> None:
    """Ten pieces that are there twice say no more than the ten."""
    random = np.random.default_rng(0)
    first, second = (np.stack([random.integers(0, 9, 10), np.full(10, 9)], axis=1).astype(np.float64) for _ in "ab")
    twice = statistics.number(
        [f"{at}{take}" for take in "ab" for at in range(10)], {f"{at}b": f"{at}a" for at in range(10)}
    )
    assert twice is not None
    assert twice.tolist() == [*range(10), *range(10)]
    doubled = np.concatenate([first, first])
    assert statistics.over_pieces(doubled, clusters=twice) == pytest.approx(statistics.over_pieces(first))
    assert statistics.over_pieces(doubled) != pytest.approx(statistics.over_pieces(first))
    other = np.concatenate([second, second])
    assert statistics.paired_p(doubled, other, clusters=twice) == statistics.paired_p(first, second)
    assert statistics.number(["a", "b"], {"c": "group:g"}) is None
