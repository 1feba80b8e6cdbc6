"""The rule-based melody baseline of the paper, skyline: the highest note is the melody, with refinements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MELODY_PITCH_LOW = 60
"""Middle C: nothing below it is melody."""
BAR = 32
"""Thirty-seconds."""
LEAP = 9
"""Semitones; a candidate this far below both its neighbours is not melody."""


def skyline(onset: NDArray[np.integer], duration: NDArray[np.integer], pitch: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which notes are melody, by rule: n notes -> bool[n].

    Reference behaviour: onsets and ends go to the eighth grid (ties to the even eighth; a note longer than a
    bar counts half a bar); of each onset's notes from middle C up the highest is a candidate, the last
    onset's left out; a candidate without length, or nine semitones or more below the one before and the one
    after, is none. Of equal notes the one that began earlier is taken, then the first in the order given: in
    the paper's note order that is the melody's, in the clean order nobody's in particular.

    Args:
        onset: [n] sub-beats, as in `Tokens` and `GridNotes`.
        duration: [n] index: d stands for d + 1 thirty-seconds.
        pitch: [n] MIDI 0..127.
    """
    start, end = _eighths(onset.astype(np.int64), duration.astype(np.int64) + 1)
    pitch = pitch.astype(np.int64)
    order = np.lexsort((onset, -pitch, start))
    order = order[pitch[order] >= MELODY_PITCH_LOW]
    highest = order[np.diff(start[order], prepend=-1) != 0][:-1]
    following = np.append(start[highest[1:]], np.iinfo(np.int64).max)
    sounding = highest[np.minimum(end[highest], following[: len(highest)]) != start[highest]]
    step = np.diff(pitch[sounding])
    below = np.zeros(len(sounding), dtype=bool)
    below[1:-1] = (step[:-1] <= -LEAP) & (step[1:] >= LEAP)
    melody = np.zeros(len(pitch), dtype=bool)
    melody[sounding[~below]] = True
    return melody


def _eighths(onset: NDArray[np.int64], thirty_seconds: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Onsets and ends of notes in eighths: int64[n] each."""
    length = np.where(thirty_seconds > BAR, BAR // 2, thirty_seconds)
    start, end = np.rint(onset / 2), np.rint((2 * onset + length) / 4)
    return start.astype(np.int64), end.astype(np.int64)


def top_note(
    onset: NDArray[np.integer], duration: NDArray[np.integer], pitch: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Which notes are melody, by the plainest rule: n notes -> bool[n].

    A note is, if it is the highest of its onset and nothing above it still sounds; of equal notes the first in the
    order given. Arguments as of `skyline`, in any order.
    """
    _, where = np.unique(onset, return_inverse=True)
    highest = 127 - np.argmax(sounding(onset, duration, pitch)[:, ::-1], axis=1)
    top = np.flatnonzero(pitch == highest[where])
    melody = np.zeros(len(pitch), dtype=bool)
    melody[top[np.unique(where[top], return_index=True)[1]]] = True
    return melody


def sounding(
    onset: NDArray[np.integer], duration: NDArray[np.integer], pitch: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """The pitches that sound at each of the m different onsets, held ones included: bool[m, 128].

    A note that ends where another begins does not sound there any more. Arguments as of `skyline`, in any order.
    """
    times, first = np.unique(onset, return_inverse=True)
    end = 2 * onset.astype(np.int64) + duration + 1  # thirty-seconds
    changes = np.zeros((len(times) + 1, 128), np.int16)
    np.add.at(changes, (first, pitch), 1)
    np.add.at(changes, (np.searchsorted(2 * times.astype(np.int64), end), pitch), -1)
    return np.asarray(changes[:-1].cumsum(axis=0, dtype=np.int16) > 0)
