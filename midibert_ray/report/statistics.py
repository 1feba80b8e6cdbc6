"""The certainty of an accuracy: 95 % intervals, and a test of two models on the same pieces.

Notes of one piece resemble each other, and so do its segments; pieces are independent. So the bootstrap draws whole
pieces, and the test exchanges the answers of two models piece by piece. A *tally* is the score of a model by piece:
float64 [pieces, 2], correct (a mean over seeds) and scored notes or segments.

scipy.stats has Wilson's interval and Student's t. Its `bootstrap` and `permutation_test` neither draw the pieces of two
models alike for one comparison and apart for another, nor keep their draws for the next cell; and it has no Holm.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]
Floats = NDArray[np.float64]
LEVEL = 0.95
DRAWS = 10_000
"""Resamples of a bootstrap, and of a test that cannot try everything."""
EXACT = 12
"""Most pieces for which a test tries every exchange (4,096)."""
SEED = 2021


def wilson(correct: float, scored: int) -> Interval:
    """Wilson's score interval of a share of independent answers; too narrow where answers resemble each other."""
    if scored == 0:
        return 0.0, 1.0
    low, high = stats.binomtest(round(correct), scored).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def over_seeds(accuracies: Sequence[float]) -> Interval:
    """Student's t interval of the mean of two seeds or more, cut to 0..1: what other seeds would score here."""
    mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(accuracies) - 1)) * deviation / math.sqrt(len(accuracies))
    return max(0.0, mean - half), min(1.0, mean + half)


def over_pieces(tally: Floats) -> Interval:
    """Percentile interval of the accuracy by drawing pieces anew: what other pieces would give.

    Where all or nothing is right no draw differs from another, and Wilson's interval over the pieces stands in.
    """
    correct, scored = tally.sum(axis=0)
    if correct in (0, scored):
        return wilson(len(tally) * (correct > 0), len(tally))
    return percentiles(resampled(tally))


def resampled(tally: Floats, stream: int = 0) -> Floats:
    """Accuracies over as many pieces, drawn with replacement: float64 [DRAWS].

    The same stream and number of pieces draw the same pieces, so that two models can be compared draw by draw.
    """
    correct, scored = (_weights(len(tally), stream) @ tally).T
    return np.asarray(correct / scored)


def percentiles(draws: Floats) -> Interval:
    """The middle 95 % of some draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(first: Floats, second: Floats, *, paired: bool) -> Interval:
    """Interval of the first accuracy less the second; `paired` where both tallies are of the same pieces, in order."""
    return percentiles(resampled(first) - resampled(second, stream=0 if paired else 1))


def paired_p(first: Floats, second: Floats) -> float:
    """Two-sided p of two models being alike, from tallies of the same pieces in the same order.

    If they are alike, each piece's answers could as well have come from the other model. All such exchanges are
    tried where few pieces differ, else 10,000 of them, among which the observed one counts: p is never 0.
    """
    (_, total_first), (_, total_second) = first.sum(axis=0), second.sum(axis=0)
    gain = first[:, 0] / total_first - second[:, 0] / total_second
    gain = gain[gain != 0]
    if len(gain) == 0:
        return 1.0
    exact = len(gain) <= EXACT
    signs = np.array(list(product((1.0, -1.0), repeat=len(gain)))) if exact else _random_signs(len(gain))
    as_far = int((np.abs(signs @ gain) >= abs(gain.sum()) - 1e-12).sum())  # sums differ in their last bits
    return as_far / len(signs) if exact else (as_far + 1) / (len(signs) + 1)


def p_text(p: float | None) -> str:
    """A p value as it is read; nothing where there is no test."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def holm(values: Sequence[float]) -> list[float]:
    """P values that hold for all of several tests together (Holm, 1979), in the order given."""
    raw = np.asarray(values, dtype=np.float64)
    order = np.argsort(raw)
    steps = np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1))
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted.tolist()


@lru_cache(maxsize=8)
def _weights(pieces: int, stream: int) -> Floats:
    """Counts of each piece in each resample: [DRAWS, pieces]."""
    drawn = np.random.default_rng((SEED, pieces, stream)).integers(pieces, size=(DRAWS, pieces))
    drawn += pieces * np.arange(DRAWS)[:, None]
    return np.bincount(drawn.ravel(), minlength=DRAWS * pieces).reshape(DRAWS, pieces).astype(np.float64)


@lru_cache(maxsize=8)
def _random_signs(pieces: int) -> Floats:
    return np.random.default_rng((SEED, pieces)).choice((-1.0, 1.0), size=(DRAWS, pieces))
