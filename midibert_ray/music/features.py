"""Plain features of notes, for baselines that know nothing of Transformers: of a passage as a whole, and of each note.

They read what a model reads, onset, position, pitch and duration of notes on the grid, and neither velocity nor part.
The choice follows what symbolic music research has long counted (jSymbolic: McKay et al., ISMIR 2018): histograms of
pitch classes, intervals, durations and positions, density, range, metre and rhythm.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from midibert_ray.music.skyline import sounding
from midibert_ray.music.vocabulary import PITCH_LOW, POSITIONS

Floats = NDArray[np.float32]

_INTERVALS = (*range(8), 8, 10, 12, 13)
"""Lowest semitones of each class of melodic steps: single ones up to a fifth, sixths, sevenths, octave, wider."""
_DURATIONS = (1, 2, 3, 5, 9, 17)
"""Lowest thirty-seconds of each class: a 32nd, up to a 16th, an eighth, a quarter, a half, longer."""
_WAITS = (1, 2, 3, 5, 9)
"""Lowest sub-beats of each class of times from onset to onset."""
_MIDDLE_C = 60

PASSAGE_FEATURES = (
    *(f"pitch class {step} above the commonest" for step in range(12)),
    *(f"top line steps from {low} semitones" for low in _INTERVALS),
    "top line steps upwards",
    *(f"chord notes at interval class {size} from the lowest" for size in range(7)),
    *("onsets at a bar's start", "onsets on other beats", "onsets on other eighths", "onsets on other sixteenths"),
    *(f"durations from {low} thirty-seconds" for low in _DURATIONS),
    *("log duration, mean", "log duration, deviation"),
    *(f"waits from {low} sub-beats" for low in _WAITS),
    *("notes a bar", "notes a bar, deviation", "onsets a bar", "notes an onset", "single-note onsets", "polyphony"),
    *("bars without an onset", "sub-beats a bar", "bars with the rhythm of the one before"),
    *("pitch, mean", "pitch, deviation", "lowest pitch", "highest pitch", "range", "pitches below middle C"),
    *("top line, mean", "bass line, mean", "pitch class entropy", "wait entropy"),
)
"""Names of the columns of `passage_features`. Histograms are shares that add up to 1."""

NOTE_FEATURES = (
    *("pitch", "pitch class", "duration", "position", "beat position", "notes of its onset"),
    *("rank from the top", "rank from the bottom", "below the highest of its onset", "above the lowest of its onset"),
    *("below the highest sounding", "above the lowest sounding", "pitches sounding"),
    *("to the next note above in its onset", "to the next note below in its onset"),
    *("since the last onset", "to the next onset", "from the last top", "to the next top", "from the last bass"),
    *("to the nearest pitch of the last onset", "to the nearest pitch of the next onset"),
    *("above the mean pitch around", "deviations above the mean pitch around", "notes a beat around"),
    *("log duration above the mean around", "ends before the next onset"),
)
"""Names of the columns of `note_features`; distances are semitones, times sub-beats, durations thirty-seconds."""

_AROUND = 8
"""Onsets before and after a note that are around it."""
_FAR = 48
"""Semitones and sub-beats that stand for "none there", and for anything further away."""


def passage_features(tokens: NDArray[np.uint8], onset: NDArray[np.integer]) -> Floats:
    """Features of a piece or a part of it: float32[len(PASSAGE_FEATURES)], all finite.

    Args:
        tokens: uint8 [n, 4] CP ids without padding, n >= 1, as in `Tokens`.
        onset: [n] sub-beats, never falling.
    """
    pitch, duration = tokens[:, 2].astype(np.int64) + PITCH_LOW, tokens[:, 3].astype(np.int64) + 1
    start = onset.astype(np.int64)
    times, first, where, size = np.unique(start, return_index=True, return_inverse=True, return_counts=True)
    top, bass = np.maximum.reduceat(pitch, first), np.minimum.reduceat(pitch, first)
    classes = np.bincount(pitch % 12, weights=duration, minlength=12)
    step, wait = np.diff(top), np.diff(times)
    above = np.abs(pitch - bass[where])[np.arange(len(pitch)) != first[where]] % 12
    lengths = np.log2(duration)
    features = [
        *_shares(np.roll(classes, -int(classes.argmax()))),
        *_binned(np.abs(step), _INTERVALS),
        (step > 0).sum() / max(1, (step != 0).sum()),
        *_shares(np.bincount(np.minimum(above, 12 - above), minlength=7)),
        *_shares(np.bincount(_metrical(tokens[first, 1].astype(np.int64)), minlength=4)),
        *_binned(duration, _DURATIONS),
        *(lengths.mean(), lengths.std()),
        *_binned(wait, _WAITS),
        *_density(tokens, start, times, first, size, duration),
        *(pitch.mean(), pitch.std(), pitch.min(), pitch.max(), np.ptp(pitch), (pitch < _MIDDLE_C).mean()),
        *(top.mean(), bass.mean(), _entropy(classes), _entropy(np.bincount(np.minimum(wait, 64)))),
    ]
    return np.array(features, np.float32)


def note_features(tokens: NDArray[np.uint8], onset: NDArray[np.integer]) -> Floats:
    """Features of every note of a piece and of its surroundings: float32[n, len(NOTE_FEATURES)], all finite.

    Arguments as of `passage_features`; the whole piece, as its surroundings are looked up in it.
    """
    pitch, duration = tokens[:, 2].astype(np.int64) + PITCH_LOW, tokens[:, 3].astype(np.int64) + 1
    onset = onset.astype(np.int64)
    times, where = np.unique(onset, return_inverse=True)
    heard = sounding(onset, duration - 1, pitch)
    starts = np.zeros_like(heard)
    starts[where, pitch] = True
    wait = np.diff(times)
    since, until = np.concatenate([[_FAR], wait]), np.concatenate([wait, [_FAR]])
    last, following = starts[np.maximum(where - 1, 0)], starts[np.minimum(where + 1, len(times) - 1)]
    last[where == 0], following[where == len(times) - 1] = False, False
    position = tokens[:, 1].astype(np.int64)
    columns = [
        *(pitch, pitch % 12, duration, position, position % 4),
        *_chord(pitch, where, starts),
        *(_highest(heard)[where] - pitch, pitch - _lowest(heard)[where], heard.sum(axis=1)[where]),
        *_neighbours(pitch, where),
        *(np.minimum(since, _FAR)[where], np.minimum(until, _FAR)[where]),
        *(_leap(pitch, _highest(last)), _leap(pitch, _highest(following)), _leap(pitch, _lowest(last))),
        *(_nearest(pitch, last), _nearest(pitch, following)),
        *_around(pitch, duration, where, times),
        duration <= 2 * until[where],
    ]
    return np.stack(columns, axis=1).astype(np.float32)


def _shares(counts: NDArray[np.generic]) -> NDArray[np.float64]:
    """Counts as shares of their sum; without any, all 0."""
    return np.asarray(counts / max(counts.sum(), 1), np.float64)


def _binned(values: NDArray[np.int64], lowest: tuple[int, ...]) -> NDArray[np.float64]:
    """Shares of the values by the class that they fall in; those below the first are in it."""
    found = np.maximum(np.searchsorted(lowest, values, side="right") - 1, 0)
    return _shares(np.bincount(found, minlength=len(lowest)))


def _metrical(position: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 at a bar's start, 1 on its other beats, 2 on its other eighths, 3 elsewhere."""
    return np.select([position == 0, position % 4 == 0, position % 2 == 0], [0, 1, 2], 3)


def _entropy(counts: NDArray[np.generic]) -> float:
    """In bits."""
    shares = _shares(counts)
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


def _density(
    tokens: NDArray[np.uint8],
    onset: NDArray[np.int64],
    times: NDArray[np.int64],
    first: NDArray[np.int64],
    size: NDArray[np.int64],
    duration: NDArray[np.int64],
) -> tuple[float, ...]:
    """The features from "notes a bar" to "bars with the rhythm of the one before"."""
    position = tokens[:, 1].astype(np.int64)
    bars, notes = np.unique(onset - position, return_counts=True)
    rhythm = np.zeros((len(bars), POSITIONS), bool)
    rhythm[np.searchsorted(bars, times - position[first]), position[first]] = True
    length = float(np.median(np.diff(bars))) if len(bars) > 1 else 16.0
    span = int(times[-1] - times[0]) + 1
    all_bars = (bars[-1] - bars[0]) / length + 1
    return (
        *(float(notes.mean()), float(notes.std()), len(times) / len(bars)),
        *(float(size.mean()), float((size == 1).mean()), float(duration.sum()) / 2 / span),
        *(float(np.clip(1 - len(bars) / all_bars, 0, 1)), length),
        float((rhythm[1:] == rhythm[:-1]).all(axis=1).mean()) if len(bars) > 1 else 0.0,
    )


def _highest(pitches: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The highest of some pitches in each row of [m, 128]; -1 where there are none."""
    return np.where(pitches.any(axis=1), 127 - np.argmax(pitches[:, ::-1], axis=1), -1)


def _lowest(pitches: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The lowest; -1 where there are none."""
    return np.where(pitches.any(axis=1), np.argmax(pitches, axis=1), -1)


def _leap(pitch: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Semitones from another pitch to a note's, within `_FAR`; `_FAR` where the other is -1."""
    return np.where(other < 0, _FAR, np.clip(pitch - other, -_FAR, _FAR))


def _nearest(pitch: NDArray[np.int64], pitches: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Semitones to the nearest of some pitches: pitch [n], pitches [n, 128] -> [n], at most `_FAR`."""
    steps = np.abs(np.arange(128, dtype=np.int16)[None, :] - pitch[:, None].astype(np.int16))
    return np.minimum(np.where(pitches, steps, np.int16(_FAR)).min(axis=1), _FAR)


def _chord(
    pitch: NDArray[np.int64], where: NDArray[np.int64], starts: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], ...]:
    """The features from "notes of its onset" to "above the lowest of its onset"; equal notes are one here."""
    size = starts.sum(axis=1)[where]
    above = size - starts.cumsum(axis=1)[where, pitch]
    return size, above, size - 1 - above, _highest(starts)[where] - pitch, pitch - _lowest(starts)[where]


def _neighbours(pitch: NDArray[np.int64], where: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Semitones to the next note above and below in a note's onset; 0 to an equal one, `_FAR` to none."""
    order = np.lexsort((pitch, where))
    same, gap = np.diff(where[order]) == 0, np.diff(pitch[order])
    steps = np.where(same, gap, _FAR)
    above, below = np.empty((2, len(pitch)), np.int64)
    above[order], below[order] = np.append(steps, _FAR), np.concatenate([[_FAR], steps])
    return above, below


def _around(
    pitch: NDArray[np.int64], duration: NDArray[np.int64], where: NDArray[np.int64], times: NDArray[np.int64]
) -> tuple[NDArray[np.float64], ...]:
    """A note beside the notes of its own onset and of the `_AROUND` before and after it."""
    low, high = np.maximum(where - _AROUND, 0), np.minimum(where + _AROUND, len(times) - 1)

    def mean(values: NDArray[np.generic]) -> NDArray[np.float64]:
        sums = np.concatenate([[0.0], np.bincount(where, weights=values, minlength=len(times)).cumsum()])
        return np.asarray((sums[high + 1] - sums[low]) / count)

    counts = np.concatenate([[0], np.bincount(where, minlength=len(times)).cumsum()])
    count = counts[high + 1] - counts[low]
    centre = mean(pitch)
    deviation = np.sqrt(np.maximum(mean(pitch**2) - centre**2, 1.0))
    lengths = np.log2(duration)
    beats = (times[high] - times[low] + 1) / 4
    return pitch - centre, (pitch - centre) / deviation, count / beats, lengths - mean(lengths)
