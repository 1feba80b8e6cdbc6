"""The certainty of a metric: 95 % intervals, and a test of two models on the same pieces.

Notes of one piece resemble each other, and so do its segments; pieces are independent. So the bootstrap draws whole
pieces, and the test exchanges the answers of two models piece by piece. A *tally* is the score of a model by piece,
float64 [pieces, columns]; its columns are those of a `Statistic`: for accuracies, `SHARE`, correct (a mean over seeds)
and scored notes or segments.

Where pieces come in groups (takes of one song, near-duplicates) these are drawn and exchanged whole: *clusters* say for
each piece of a tally the number of its group, int64 [pieces], 0..groups-1.

scipy.stats has Wilson's interval and Student's t. Its `bootstrap` and `permutation_test` neither draw the pieces of two
models alike for one comparison and apart for another, nor keep their draws for the next cell; and it has no Holm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from midibert_ray.training.metrics import mean_average_precision

Interval = tuple[float, float]
Floats = NDArray[np.float64]
Clusters = NDArray[np.int64] | None
LEVEL = 0.95
DRAWS = 10_000
"""Resamples of a bootstrap, and of a test that cannot try everything."""
EXACT = 12
"""Most pieces for which a test tries every exchange (4,096)."""
SEED = 2021


@dataclass(frozen=True)
class Statistic:
    """A metric of a tally whose pieces count several times, or not at all."""

    of: Callable[[Floats, Floats], Floats]
    """Takes weights [draws, pieces] and a tally, and gives the metric of each draw: [draws]."""
    shared: int
    """The first columns of a tally, which are the truth and the same for all models."""
    gain: Callable[[Floats, Floats], Floats] | None = None
    """Takes two tallies of the same pieces, and gives what each piece adds to the difference of the metrics: [pieces],
    up to a positive factor. None where a metric is no sum over pieces."""

    def total(self, tally: Floats) -> float:
        """The metric of all pieces."""
        return float(self.of(np.ones((1, len(tally))), tally)[0])


def _share(weights: Floats, tally: Floats) -> Floats:
    correct, scored = (weights @ tally).T
    return np.asarray(correct / scored)


def _share_gain(first: Floats, second: Floats) -> Floats:
    (_, total_first), (_, total_second) = first.sum(axis=0), second.sum(axis=0)
    return np.asarray(first[:, 0] / total_first - second[:, 0] / total_second)


SHARE = Statistic(_share, shared=0, gain=_share_gain)
"""Accuracy: correct and scored."""


def _r_squared(weights: Floats, tally: Floats) -> Floats:
    count, total, squares, errors = (weights @ tally[:, :4]).T
    spread = squares - total**2 / count
    return np.where(spread > 1e-12 * squares, 1 - errors / np.where(spread > 0, spread, 1), 0.0)


R_SQUARED = Statistic(_r_squared, shared=3, gain=lambda first, second: second[:, 3] - first[:, 3])
"""Share of the variance that is explained: number, sum and sum of squares of the true values, sum of squared errors.
0 where all true values of a draw are the same."""


def average_precision(tags: int) -> Statistic:
    """The mean over `tags` of each one's average precision, and over seeds: the truth (0 or 1), then scores by seed.

    Ties are taken together, as scikit-learn does; a tag that no piece of a draw has is left out there.
    """

    def of(weights: Floats, tally: Floats) -> Floats:
        runs = [tally[:, start : start + tags] for start in range(tags, tally.shape[1], tags)]
        return np.mean([mean_average_precision(tally[:, :tags], scores, weights) for scores in runs], axis=0)

    return Statistic(of, shared=tags)


def wilson(correct: float, scored: int) -> Interval:
    """Wilson's score interval of a share of independent answers; too narrow where answers resemble each other."""
    if scored == 0:
        return 0.0, 1.0
    low, high = stats.binomtest(round(correct), scored).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def over_seeds(accuracies: Sequence[float], lowest: float = 0.0) -> Interval:
    """Student's t interval of the mean of two seeds or more, cut to `lowest`..1: what other seeds would score here."""
    mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(accuracies) - 1)) * deviation / math.sqrt(len(accuracies))
    return max(lowest, mean - half), min(1.0, mean + half)


def over_pieces(tally: Floats, statistic: Statistic = SHARE, clusters: Clusters = None) -> Interval:
    """Percentile interval of a metric by drawing pieces anew: what other pieces would give.

    Where all or nothing is right no draw differs from another, and Wilson's interval over the pieces stands in.
    """
    if statistic is SHARE and (correct := tally[:, 0].sum()) in (0, tally[:, 1].sum()):
        drawn = len(tally) if clusters is None else int(clusters.max()) + 1
        return wilson(drawn * (correct > 0), drawn)
    return percentiles(resampled(tally, statistic=statistic, clusters=clusters))


def resampled(tally: Floats, stream: int = 0, statistic: Statistic = SHARE, clusters: Clusters = None) -> Floats:
    """A metric over as many pieces, drawn with replacement: float64 [DRAWS].

    The same stream and number of pieces draw the same pieces, so that two models can be compared draw by draw.
    """
    if clusters is None:
        return statistic.of(_weights(len(tally), stream), tally)
    return statistic.of(_weights(int(clusters.max()) + 1, stream)[:, clusters], tally)


def percentiles(draws: Floats) -> Interval:
    """The middle 95 % of some draws."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def difference(
    first: Floats, second: Floats, *, paired: bool, statistic: Statistic = SHARE, clusters: Clusters = None
) -> Interval:
    """Interval of the first metric less the second; `paired` where both tallies are of the same pieces, in order.

    `clusters` are those of both, if these are paired.
    """
    other = resampled(second, stream=0 if paired else 1, statistic=statistic, clusters=clusters)
    return percentiles(resampled(first, statistic=statistic, clusters=clusters) - other)


def paired_p(first: Floats, second: Floats, statistic: Statistic = SHARE, clusters: Clusters = None) -> float:
    """Two-sided p of two models being alike, from tallies of the same pieces in the same order.

    If they are alike, each piece's answers could as well have come from the other model. All such exchanges are
    tried where few pieces differ, else 10,000 of them, among which the observed one counts: p is never 0. Of a metric
    that is no sum over pieces it is 1,000.
    """
    if statistic.gain is None:
        return _exchanged_p(first, second, statistic, np.arange(len(first)) if clusters is None else clusters)
    gain = statistic.gain(first, second)
    gain = gain if clusters is None else np.bincount(clusters, weights=gain).astype(np.float64)
    gain = gain[gain != 0]
    if len(gain) == 0:
        return 1.0
    exact = len(gain) <= EXACT
    signs = _all_signs(len(gain)) if exact else _random_signs(len(gain))
    as_far = int((np.abs(signs @ gain) >= abs(gain.sum()) - 1e-12).sum())  # sums differ in their last bits
    return as_far / len(signs) if exact else (as_far + 1) / (len(signs) + 1)


def _exchanged_p(first: Floats, second: Floats, statistic: Statistic, clusters: NDArray[np.int64]) -> float:
    """The same by computing the metrics of both models after every exchange."""
    moved = np.unique(clusters[(first != second).any(axis=1)])
    if len(moved) == 0:
        return 1.0
    exact = len(moved) <= EXACT // 2
    signs = _all_signs(len(moved)) if exact else _random_signs(len(moved))[: DRAWS // 10]
    observed, as_far = abs(statistic.total(first) - statistic.total(second)), 0
    for sign in signs:
        one, other = first.copy(), second.copy()
        swapped = np.isin(clusters, moved[sign < 0])
        one[swapped], other[swapped] = second[swapped], first[swapped]
        as_far += abs(statistic.total(one) - statistic.total(other)) >= observed - 1e-12
    return as_far / len(signs) if exact else (as_far + 1) / (len(signs) + 1)


def p_text(p: float | None) -> str:
    """A p value as it is read; nothing where there is no test."""
    if p is None:
        return ""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def number(pieces: Sequence[str], groups: Mapping[str, str]) -> Clusters:
    """The clusters of pieces, in their order, from the groups of those that are in one; None where none is."""
    if not groups.keys() & set(pieces):
        return None
    names = [groups.get(piece, piece) for piece in pieces]
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


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


@lru_cache(maxsize=8)
def _all_signs(pieces: int) -> Floats:
    return np.array(list(product((1.0, -1.0), repeat=pieces)))
